"""Calibrates and trains on this process's part of each global batch; run by torchrun, or alone."""

import json
import os
import sys

import torch
import torch.distributed as td
import torch.nn.functional as F
from torch import nn

import intact
from intact import Quant, Recipe

STEPS, BATCH = 6, 16


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 3, 6, 6, generator=generator)
    return x, torch.randint(0, 4, (BATCH,), generator=generator)


def main(quantizer: str, out: str, other_plan: bool) -> None:
    alone = "RANK" not in os.environ
    if not alone:
        td.init_process_group("gloo")
    rank, size = (0, 1) if alone else (td.get_rank(), td.get_world_size())
    part = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    bits = 5 if other_plan and rank == 1 else 4
    recipe = Recipe(default=Quant(bits, bits, weight_quantizer=quantizer, activation_quantizer=quantizer))
    fm = intact.capture(network(), batch(0)[0])
    qfloat = intact.prepare(fm, intact.plan(fm, recipe=recipe))
    intact.calibrate(qfloat, [batch(s)[0][part] for s in range(3)])
    result = {"ranges": [float(q.qparams().scale) for q in qfloat.edge_quantizers.values()], "losses": []}
    model: nn.Module = qfloat if alone else nn.parallel.DistributedDataParallel(qfloat)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        x, y = (t[part] for t in batch(step))
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        whole = loss.detach().clone()
        if not alone:
            td.all_reduce(whole)
        result["losses"].append(float(whole) / size)
    qfloat.eval()
    result["trained"] = [float(q.qparams().scale) for q in qfloat.edge_quantizers.values()]
    result["mean"] = qfloat.state_dict()["1.running_mean"].tolist()
    if rank == 0:
        with open(out, "w") as file:
            json.dump(result, file)
    if not alone:
        td.barrier()
        os._exit(0)  # tearing down gloo now and then waits for ever


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], len(sys.argv) > 3)
