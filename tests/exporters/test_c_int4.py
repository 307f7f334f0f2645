"""Weights of at most 4 bits in C: two a byte in flash, the same codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import intact
from intact.exporters.c.four_bits import packed_halves, packed_neighbours

from .c_tools import differences, needs_compiler, needs_gcc

rows = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(0, 999))


def halves_of(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = packed & 15, packed >> 4 & 15
    return (low ^ 8) - 8, (high ^ 8) - 8


@given(rows)
def test_packed_rows_hold_their_codes(size: tuple[int, int, int]) -> None:
    count, length, seed = size
    codes = torch.randint(-8, 8, (count, length), generator=torch.Generator().manual_seed(seed))
    for pack in (packed_halves, packed_neighbours):
        packed = pack(codes)
        assert packed.shape == (count, (length + 1) // 2)
        assert int(packed.min()) >= -128 and int(packed.max()) <= 127
        low, high = halves_of(packed)
        found = torch.cat([low, high], 1) if pack is packed_halves else torch.stack([low, high], 2).flatten(1)
        assert torch.equal(found[:, :length], codes) and not found[:, length:].any()


def net() -> nn.Module:
    """Rows of odd and even lengths, groups, channels that 16 does not divide."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 19, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(19, 19, 3, groups=19, padding=1), nn.ReLU(), nn.Conv2d(19, 38, 3, groups=19), nn.ReLU(),
        nn.Conv2d(38, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 11))


def quantized(bits: int, activation_bits: int = 8) -> intact.QModel:
    recipe = intact.Recipe(default=intact.Quant(weight_bits=bits, activation_bits=activation_bits))
    return intact.quantize(net(), [torch.randn(8, 3, 16, 16)], target="fixed_point", recipe=recipe)


@needs_gcc
@pytest.mark.parametrize("bits, activation_bits", [(4, 8), (4, 16), (2, 8)])
def test_the_same_codes_under_the_sanitizers(bits: int, activation_bits: int, tmp_path: Path) -> None:
    assert differences(quantized(bits, activation_bits), tmp_path) == []
    text = (tmp_path / "net.c").read_text()
    assert "conv2d4_" in text and "depthwise2d4_" in text and " conv2d_" not in text and " dot(" not in text


@needs_compiler
def test_flash_is_half_a_byte_a_weight(tmp_path: Path) -> None:
    """But for rows of odd length, which begin with a whole byte."""
    sizes = {bits: intact.export(quantized(bits), tmp_path / "net.c").memory["weights"] for bits in (4, 5, 8)}
    count = sum(p.numel() for p in net().parameters() if p.ndim > 1)
    assert sizes[8] == sizes[5] == count
    assert count / 2 <= sizes[4] < 0.52 * count
