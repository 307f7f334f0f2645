"""AVERAGE_POOL_2D, MAX_POOL_2D, MEAN: sums and maxima of codes."""

from __future__ import annotations

import numpy as np

from intact.reference.fixed_point import (
    Array,
    divide_half_away,
    multiply_by_quantized_multiplier,
    quantized_multiplier,
    round_half_away,
)
from intact.reference.litert.linear import Padding
from intact.reference.litert.quant import Activation, Kernels, Quant, activation_range, clamp, round_half_even

__all__ = ["average_pool_2d", "max_pool_2d", "mean"]

Pair = tuple[int, int]


def _windows(x: Array, fill: int, kernel: Pair, stride: Pair, padding: Padding) -> Array:
    """Windows of [N, H, W, C] as [N, OH, OW, C, KH, KW]."""
    padded = np.pad(x.astype(np.int64), ((0, 0), *padding, (0, 0)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))
    return np.asarray(view[:, :: stride[0], :: stride[1]])


def average_pool_2d(
    x: Array, q: Quant, kernel: Pair, *, stride: Pair = (1, 1), padding: Padding = ((0, 0), (0, 0)),
    kernels: Kernels = "reference", activation: Activation = "NONE",
) -> Array:
    """AVERAGE_POOL_2D of [N, H, W, C]: the codes' own mean, a tie away from code 0; padding does not count.

    Input and output share one encoding: the kernel does not read the scales.

    >>> average_pool_2d(np.array([[[[1]], [[2]]], [[[-1]], [[-2]]]]), Quant(1.0), (2, 1)).ravel()
    array([ 2, -2])
    """
    total = _windows(x, 0, kernel, stride, padding).sum((-2, -1))
    count = _windows(np.ones_like(x), 0, kernel, stride, padding).sum((-2, -1))
    return np.clip(divide_half_away(total, count), *activation_range(q, activation))


def max_pool_2d(
    x: Array, q: Quant, kernel: Pair, *, stride: Pair = (1, 1), padding: Padding = ((0, 0), (0, 0)),
    kernels: Kernels = "reference", activation: Activation = "NONE",
) -> Array:
    """MAX_POOL_2D of [N, H, W, C], in one encoding; padding does not count.

    >>> max_pool_2d(np.array([[[[1], [5]]]]), Quant(1.0), (1, 2)).ravel()
    array([5])
    """
    highest = _windows(x, q.qmin, kernel, stride, padding).max((-2, -1))
    return np.asarray(np.clip(highest, *activation_range(q, activation, kernels)))


def mean(
    x: Array, axes: tuple[int, ...], qx: Quant, qy: Quant, *, keep: bool = False, kernels: Kernels = "reference"
) -> Array:
    """MEAN over axes, n elements each.

    Reference: Q31 of s_x / s_y with floor(log2 n) more bits, divided by n as an integer, rounded twice. XNNPACK (int8):
    ``_mean_delegated``. Optimized int8 is the reference, but for the mean of [N, H, W, C] over H and W with ``keep``:
    ``_mean_of_images``.

    >>> mean(np.array([[1, 2, 3, 5]]), (1,), Quant(1.0), Quant(0.5))
    array([6])
    """
    n = int(np.prod([x.shape[a] for a in axes]))
    sums = x.astype(np.int64).sum(axes, keepdims=keep)
    if qx.bits == 8 and kernels == "delegated":
        return _mean_delegated(sums, n, qx, qy)
    if qx.bits == 8 and kernels == "optimized" and keep and x.ndim == 4 and set(axes) == {1, 2}:
        return _mean_of_images(sums, n, qx, qy)
    m0, shift = quantized_multiplier(float(qx.f32) / float(qy.f32))
    more = min(n.bit_length() - 1, 32, 31 + shift)
    scaled = multiply_by_quantized_multiplier(sums - n * qx.zero_point, (m0 << more) // n, shift - more)
    return clamp(scaled, qy)


def _mean_delegated(sums: Array, n: int, qx: Quant, qy: Quant) -> Array:
    """XNNPACK, in float32 with every step rounded: S = s_x / s_y / n; sum * S + (z_y - (n * z_x) * S), half to even."""
    scale = qx.f32 / qy.f32 / np.float32(n)
    offset = np.float32(-n * qx.zero_point) * scale + np.float32(qy.zero_point)
    nearest = round_half_even(sums.astype(np.float32) * scale + offset)
    return np.clip(nearest.astype(np.int64), qy.qmin, qy.qmax)


def _mean_of_images(sums: Array, n: int, qx: Quant, qy: Quant) -> Array:
    """The sum of the codes themselves, Q31, and the input's zero point as an offset that is rounded by itself.

    Blocks of 16 channels round both times half up, the last ``channels % 16`` as the reference.
    """
    m0, shift = quantized_multiplier(float(qx.f32 / (np.float32(n) * qy.f32)))
    offset = int(round_half_away(np.asarray(np.float32(qx.zero_point) * qx.f32 / qy.f32)))
    up, twice = (multiply_by_quantized_multiplier(sums, m0, shift, r) for r in ("double_up", "double"))
    channels = sums.shape[-1]
    return clamp(np.where(np.arange(channels) < channels - channels % 16, up, twice) - offset, qy)
