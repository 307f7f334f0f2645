"""CONCATENATION, PAD, RESHAPE, TRANSPOSE move codes; RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR pick and mix them.

All keep the encoding: the kernels refuse, or do not look, where input and output differ.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from intact.reference.fixed_point import Array, divide_half_away, round_half_away
from intact.reference.litert.quant import Kernels, round_half_even

__all__ = ["Grid", "resize_bilinear", "resize_nearest"]

Grid = Literal["asymmetric", "half_pixel", "align_corners"]


def _places(size: int, new: int, grid: Grid) -> tuple[Array, Array, Array]:
    """Lower neighbour, upper neighbour and position in units of 1/1024 of each new index."""
    index = np.arange(new)
    if grid == "align_corners" and new > 1:
        step = (1024 * (size - 1) + (new - 1) // 2) // (new - 1)
    else:
        step = (1024 * size + new // 2) // new
    place = index * step + (step // 2 - 512 if grid == "half_pixel" else 0)
    towards_zero = np.sign(place) * (np.abs(place) // 1024)
    upper = np.sign(place + 1023) * (np.abs(place + 1023) // 1024)
    return np.maximum(towards_zero, 0), np.minimum(upper, size - 1), place


def _places_delegated(size: int, new: int, grid: Grid) -> tuple[Array, Array, Array]:
    """Lower neighbour, upper neighbour and the share of the upper one in units of 1/2048, of each new index."""
    less = int(grid == "align_corners" and new != 1)
    step, half = np.float32(size - less) / np.float32(new - less), np.float32(0.5)
    place = np.arange(new, dtype=np.float32) * step
    if grid == "half_pixel":
        place = np.clip(place + (half * step - half), 0, np.float32(size - 1))
    lower = place.astype(np.int64)
    share = round_half_even((place - lower.astype(np.float32)) * np.float32(2048)).astype(np.int64)
    return lower, np.minimum(lower + 1, size - 1), share


def _bilinear_delegated(x: Array, height: int, width: int, grid: Grid) -> Array:
    """XNNPACK: 11 fraction bits a side, half up."""
    (y0, y1, down) = _places_delegated(x.shape[1], height, grid)
    (x0, x1, right) = _places_delegated(x.shape[2], width, grid)
    rows = x[:, y0], x[:, y1]
    top, bottom = (2048 * r[:, :, x0] + (r[:, :, x1] - r[:, :, x0]) * right[:, None] for r in rows)
    return np.asarray((2048 * top + (bottom - top) * down[:, None, None] + (1 << 21)) >> 22)


def resize_bilinear(
    x: Array, height: int, width: int, grid: Grid = "half_pixel", *, kernels: Kernels = "reference"
) -> Array:
    """RESIZE_BILINEAR of [N, H, W, C] with 10 fraction bits a side; a tie goes away from code 0.

    XNNPACK (int8): 11 fraction bits from float32 places, a tie upwards.

    >>> resize_bilinear(np.array([[[[0], [4]]]]), 1, 4).ravel()
    array([0, 1, 3, 4])
    """
    if kernels == "delegated" and x.dtype == np.int8:
        return _bilinear_delegated(x.astype(np.int64), height, width, grid)
    (y0, y1, y), (x0, x1, at) = _places(x.shape[1], height, grid), _places(x.shape[2], width, grid)
    down, right = (y - 1024 * y0)[:, None, None], (at - 1024 * x0)[None, :, None]
    codes = x.astype(np.int64)
    rows = codes[:, y0], codes[:, y1]
    left, far = ((1024 - down) * rows[0][:, :, i] + down * rows[1][:, :, i] for i in (x0, x1))
    return divide_half_away((1024 - right) * left + right * far, 1 << 20)


def resize_nearest(x: Array, height: int, width: int, grid: Grid = "asymmetric") -> Array:
    """RESIZE_NEAREST_NEIGHBOR of [N, H, W, C]: the code at floor((i + offset) * scale) in float32.

    offset is 1/2 on the half-pixel grid; with aligned corners the place is rounded half away instead of down.

    >>> resize_nearest(np.array([[[[7], [9]]]]), 1, 4).ravel()
    array([7, 7, 9, 9])
    """
    def index(size: int, new: int) -> Array:
        corners = grid == "align_corners" and new > 1
        scale = np.float32(size - 1) / np.float32(new - 1) if corners else np.float32(size) / np.float32(new)
        place = (np.arange(new, dtype=np.float32) + np.float32(0.5 if grid == "half_pixel" else 0)) * scale
        whole = round_half_away(place) if grid == "align_corners" else np.floor(place)
        return np.clip(whole.astype(np.int64), 0, size - 1)
    return x[:, index(x.shape[1], height)][:, :, index(x.shape[2], width)]
