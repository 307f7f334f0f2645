"""CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, BATCH_MATMUL: sums of products, then one requantization.

Weights are int8 (or int4) with zero point 0, activations int8, or int16 with zero point 0. With int16 activations the
bias is int64 by default; int32 (``quantizedBiasType``) keeps 31 bits of the multiplier instead of 15.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from intact.reference.fixed_point import (
    Array,
    multiply_by_quantized_multiplier,
    multiply_int64_by_quantized_multiplier,
    quantized_multipliers,
    round_half_away,
    wrap_int32,
)
from intact.reference.litert.quant import Activation, Kernels, Quant, clamp, round_half_even, to_int32

__all__ = [
    "Padding",
    "batch_matmul",
    "conv_2d",
    "depthwise_conv_2d",
    "fully_connected",
    "requantize_sums",
    "same_padding",
]

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
BiasType = Literal["int32", "int64"]


def same_padding(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Padding:
    """What "SAME" adds (before, after) in height and width: the odd row goes after.

    >>> same_padding((5, 6), (3, 3), (2, 2), (1, 1))
    ((1, 1), (0, 1))
    """
    def one(n: int, k: int, s: int, d: int) -> Pair:
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        return total // 2, total - total // 2
    height, width = (one(*v) for v in zip(size, kernel, stride, dilation, strict=True))
    return height, width


def requantize_sums(
    sums: Array, x: Quant, weight_scales: npt.ArrayLike, y: Quant, *, op: str = "CONV_2D",
    kernels: Kernels = "reference", bias: BiasType = "int32", activation: Activation = "NONE",
) -> Array:
    """Codes of y from exact sums of products with the bias added.

    With M = s_x * s_w / s_y, computed in float64 from the float32 scales:

    =================  =========================  =========================  ==========================
    op, bias           reference                  optimized                  delegated, int8 only
    =================  =========================  =========================  ==========================
    convolutions       Q31, rounded twice         Q31, twice, half up        float32, half to even
    .. int64 bias      Q15, rounded once          the same                   (optimized)
    FULLY_CONNECTED    float64, half away         Q31, twice, half up        float32, half to even
    .. int64 bias      float64, half away         the same                   (optimized)
    =================  =========================  =========================  ==========================

    In float32 M is (s_x * s_w) / s_y rounded after each step, and the product with the sum is rounded too. An optimized
    FULLY_CONNECTED with one weight scale forms s_x * s_w in float32. Optimized depthwise convolutions of int16 round as
    the reference.

    Args:
        sums: integers, last axis the output channels.
        x: encoding of the activations.
        weight_scales: one, or one for each output channel.
        y: encoding of the result.
        op: ``"FULLY_CONNECTED"`` or a convolution.
        kernels: which set.
        bias: its type.
        activation: the fused one.

    >>> sums, x, y = np.array([[7, 8, -8, -24]]), Quant(0.25), Quant(1.0)
    >>> [requantize_sums(sums, x, 0.25, y, kernels=k).tolist() for k in ("reference", "optimized", "delegated")]
    [[[1, 1, -1, -2]], [[1, 1, 0, -1]], [[0, 0, 0, -2]]]
    """
    scales = np.asarray(weight_scales, np.float32)
    real = np.float64(x.f32) * scales.astype(np.float64) / np.float64(y.f32)
    if kernels == "delegated" and x.bits == 8:
        scaled = wrap_int32(sums).astype(np.float32) * (x.f32 * scales / y.f32).astype(np.float32)
        return clamp(round_half_even(scaled), y, activation, kernels)
    if bias == "int32":
        sums = wrap_int32(sums)
    if op == "FULLY_CONNECTED" and (bias == "int64" or kernels == "reference"):
        return clamp(wrap_int32(to_int32(round_half_away(sums * real)) + y.zero_point) - y.zero_point, y, activation)
    if op == "FULLY_CONNECTED" and scales.size == 1:
        real = (x.f32 * scales).astype(np.float64) / np.float64(y.f32)
    m0, shift = quantized_multipliers(real)
    if bias == "int64":
        return clamp(multiply_int64_by_quantized_multiplier(sums, m0, shift), y, activation)
    twice = multiply_by_quantized_multiplier(sums, m0, shift)
    if kernels != "reference":
        up = multiply_by_quantized_multiplier(sums, m0, shift, "double_up")
        channels = sums.shape[-1]
        full = channels - channels % 8 if op == "DEPTHWISE_CONV_2D" else channels
        twice = np.where(np.arange(channels) < full, up, twice)
    return clamp(twice, y, activation)


def _windows(x: Array, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Array:
    """Windows of [N, H, W, C] as [N, OH, OW, KH, KW, C]; x has its zero point off, so that 0 is padding."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(1, 2))
    view = view[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    return np.asarray(np.moveaxis(view, 3, -1))


def conv_2d(
    x: Array, w: Array, bias: Array | None, qx: Quant, weight_scales: npt.ArrayLike, qy: Quant, *,
    stride: Pair = (1, 1), padding: Padding = ((0, 0), (0, 0)), dilation: Pair = (1, 1),
    kernels: Kernels = "reference", bias_type: BiasType = "int32", activation: Activation = "NONE",
) -> Array:
    """CONV_2D with groups: [N, H, W, C] and [OC, KH, KW, C / groups] to [N, OH, OW, OC].

    >>> x, w = np.full((1, 3, 3, 1), 10), np.ones((1, 3, 3, 1), int)
    >>> conv_2d(x, w, np.array([5]), Quant(0.1), 1.0, Quant(0.5, -3)).ravel()  # (9 * 10 + 5) * 0.2 - 3
    array([16])
    """
    windows = _windows(x.astype(np.int64) - qx.zero_point, (w.shape[1], w.shape[2]), stride, padding, dilation)
    groups = x.shape[3] // w.shape[3]
    parts = [np.tensordot(a, b.astype(np.int64), axes=((3, 4, 5), (1, 2, 3)))
             for a, b in zip(np.split(windows, groups, -1), np.split(w, groups, 0), strict=True)]
    sums = np.concatenate(parts, -1) + (0 if bias is None else bias.astype(np.int64))
    return requantize_sums(sums, qx, weight_scales, qy, kernels=kernels, bias=bias_type, activation=activation)


def depthwise_conv_2d(
    x: Array, w: Array, bias: Array | None, qx: Quant, weight_scales: npt.ArrayLike, qy: Quant, *,
    stride: Pair = (1, 1), padding: Padding = ((0, 0), (0, 0)), dilation: Pair = (1, 1),
    kernels: Kernels = "reference", bias_type: BiasType = "int32", activation: Activation = "NONE",
) -> Array:
    """DEPTHWISE_CONV_2D: [N, H, W, C] and [1, KH, KW, C * m] to [N, OH, OW, C * m].

    Channel c feeds the outputs from c * m on. The optimized int8 kernel works on 8 output channels at a time; the last
    ``channels % 8`` round as the reference does.

    >>> x, w = np.full((1, 2, 2, 2), 10), np.ones((1, 2, 2, 2), int)
    >>> depthwise_conv_2d(x, w, None, Quant(0.1), [1.0, 2.0], Quant(1.0)).ravel()
    array([4, 8])
    """
    windows = _windows(x.astype(np.int64) - qx.zero_point, (w.shape[1], w.shape[2]), stride, padding, dilation)
    spread = np.repeat(windows, w.shape[3] // x.shape[3], axis=-1)
    sums = (spread * w[0].astype(np.int64)).sum((3, 4)) + (0 if bias is None else bias.astype(np.int64))
    return requantize_sums(sums, qx, weight_scales, qy, op="DEPTHWISE_CONV_2D", kernels=kernels, bias=bias_type,
                           activation=activation)


def fully_connected(
    x: Array, w: Array, bias: Array | None, qx: Quant, weight_scales: npt.ArrayLike, qy: Quant, *,
    kernels: Kernels = "reference", bias_type: BiasType = "int32", activation: Activation = "NONE",
) -> Array:
    """FULLY_CONNECTED: [..., C] and [OC, C] to [..., OC].

    >>> fully_connected(np.array([[1, 2]]), np.array([[3, 4]]), None, Quant(0.5), 0.5, Quant(1.0))
    array([[3]])
    """
    sums = (x.astype(np.int64) - qx.zero_point) @ w.astype(np.int64).T + (0 if bias is None else bias.astype(np.int64))
    return requantize_sums(sums, qx, weight_scales, qy, op="FULLY_CONNECTED", kernels=kernels, bias=bias_type,
                           activation=activation)


def batch_matmul(a: Array, b: Array, qa: Quant, qb: Quant, qy: Quant, *, kernels: Kernels = "reference") -> Array:
    """BATCH_MATMUL of two activations: [..., M, K] and [..., K, N]; b may have a zero point too.

    int8: Q31 of (s_a * s_b in float32) / s_y, rounded twice; XNNPACK takes those where b has the zero point 0, and
    computes in float32, half to even. int16: the Q15 form.

    >>> batch_matmul(np.array([[4, 2]]), np.array([[1], [3]]), Quant(0.5), Quant(0.5, 1), Quant(1.0))
    array([[1]])
    """
    sums = (a.astype(np.int64) - qa.zero_point) @ (b.astype(np.int64) - qb.zero_point)
    if kernels == "delegated" and qa.bits == 8 and qb.zero_point == 0:
        return clamp(round_half_even(wrap_int32(sums).astype(np.float32) * (qa.f32 * qb.f32 / qy.f32)), qy)
    m0, shift = quantized_multipliers(np.float64(qa.f32 * qb.f32) / np.float64(qy.f32))
    if qa.bits == 16:
        return clamp(multiply_int64_by_quantized_multiplier(sums, m0, shift), qy)
    return clamp(multiply_by_quantized_multiplier(wrap_int32(sums), m0, shift), qy)
