"""The cosine search against brute force over the same scales."""

from __future__ import annotations

import pytest
import torch

from intact.arithmetic import dequantize, quantize
from intact.observers import EasyQuant, affine_parameters
from intact.types import Free, QParams, QType


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_finds_the_cosine_of_the_best_of_the_scales(bits: int, symmetric: bool) -> None:
    x = torch.randn(16384, generator=torch.Generator().manual_seed(0))
    spec = Free(QType(bits, signed=False), symmetric=symmetric)
    observer = EasyQuant()
    observer.update(x)
    ends = torch.stack([x.min(), x.max()]).double()

    def cosine(factor: float) -> float:
        scale, zero = affine_parameters(*(ends * factor), spec.qtype, symmetric)
        q = dequantize(quantize(x, QParams(scale, zero, spec.qtype)), QParams(scale, zero, spec.qtype))
        return float(torch.cosine_similarity(x.double(), q.double(), dim=0))

    best = max(cosine(float(f)) for f in (1.0, *torch.linspace(0.8, 1.2, 40)))
    found = cosine(observer.range(spec)[1] / float(ends[1]))
    assert best - found <= 0.02 * (1 - best)


def test_the_range_stays_between_the_two_factors() -> None:
    observer = EasyQuant()
    observer.update(torch.cat([torch.randn(4000) * 0.01, torch.tensor([1.0])]))
    assert 0.8 <= observer.range(Free(QType(2, signed=False)))[1] <= 1.2
