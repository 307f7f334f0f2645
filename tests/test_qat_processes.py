"""Two processes, each with its half of the data: the ranges are those of one process with all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from torch import nn

import intact
from intact.simulation import QFloatModel


def model(config: intact.QConfig) -> QFloatModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return intact.quantize_qat(net, config, example_inputs=torch.zeros(2, 6))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 6, generator=generator) * (i + 1) for i in range(4)]


def scales(qfloat: QFloatModel) -> list[float]:
    return [float(q.qparams().scale) for q in qfloat.edge_quantizers.values()]


def follow(part: slice) -> list[list[float]]:
    """Scales after two batches, after two more that are not observed, and those of a search over all batches."""
    qfloat, found = model(intact.sync_ema_fakequant_qconfig), []
    for i, x in enumerate(batches()):
        if i == 2:
            intact.disable_observer(qfloat)
        qfloat(x[part])
        found.append(scales(qfloat))
    gathered = model(intact.calibration_qconfig)
    for x in batches():
        gathered(x[part])
    intact.enable_fake_quant(gathered)
    return [found[1], found[3], scales(gathered)]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(torch.tensor(follow(slice(rank * 4, rank * 4 + 4))), f"{folder}/{rank}.pt")
    td.barrier()
    td.destroy_process_group()


@pytest.mark.slow
def test_ranges_are_shared_and_can_be_held(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = torch.tensor(follow(slice(None)))
    assert torch.equal(one, two)
    assert torch.equal(one[0], one[1])
    assert torch.allclose(one, alone, rtol=1e-6)
    assert torch.equal(one[2, 0], alone[2, 0])  # the input; sums inside the network depend on the batch size
