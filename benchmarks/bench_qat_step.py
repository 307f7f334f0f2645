"""Time and memory of a training step of the QFloat model against the float module: forward, backward, optimizer."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _common import arguments, emit, images, interleaved, log, median, network, ratio, shape

import intact.api as intact
from intact import Quant, Recipe

TIME_LIMIT, MEMORY_LIMIT = 1.35, 1.5
KINDS = ("observed", "lsq")


def trainable(net: torch.nn.Module, x: torch.Tensor, kind: str) -> torch.nn.Module:
    """A calibrated QFloat model in training mode."""
    fm = intact.capture(net, x[:2])
    recipe = Recipe(default=Quant(weight_quantizer=kind, activation_quantizer=kind))
    qfloat = intact.prepare(fm, intact.plan(fm, recipe=recipe))
    return intact.calibrate(qfloat, [x[:4]], progress=False).train()


def stepper(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """One step of SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class Saved:
    """Bytes that a step keeps for its backward: tensors saved by autograd, each storage once, and what they cost more.

    Counted by saved-tensor hooks, which see exactly what stays alive between forward and backward.
    """

    def __init__(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self.seen: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            if t.untyped_storage().data_ptr() not in own:
                self.seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = F.cross_entropy(model(x), y)
        kept = sum(t.numel() * t.element_size() for t in model.parameters())
        self.bytes = sum(self.seen.values()) + 3 * kept  # weights, gradients, momentum
        del loss


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)


def main() -> None:
    args = arguments(__doc__, options)
    torch.set_num_threads(args.threads)
    batch, repeats = (2, 2) if args.quick else (args.batch, args.repeats)
    net = network(args.network)
    x = images(batch, shape(args.network))
    y = torch.arange(batch)
    models = {"float": copy.deepcopy(net).train(), **{k: trainable(net, x, k) for k in KINDS}}
    seconds = interleaved({k: stepper(m, x, y) for k, m in models.items()}, repeats, warmup=1)
    memory = {k: Saved(m, x, y).bytes for k, m in models.items()}
    results: dict[str, dict[str, object]] = {}
    targets: dict[str, tuple[float, float]] = {}
    for kind in KINDS:
        time, space = ratio(seconds[kind], seconds["float"]), memory[kind] / memory["float"]
        log(f"{kind}: time {time:.2f}, memory {space:.2f}")
        results[kind] = {"step_ms": median(seconds[kind]) * 1e3, "float_step_ms": median(seconds["float"]) * 1e3,
                         "step_over_float": time, "memory_over_float": space}
        targets[f"{kind}/time"], targets[f"{kind}/memory"] = (time, TIME_LIMIT), (space, MEMORY_LIMIT)
    emit("qat_step", vars(args), results, targets)


if __name__ == "__main__":
    main()
