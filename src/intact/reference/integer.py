"""The kernels of targets without floats, in NumPy: what the engine, the simulation and exported C must give.

Codes and what comes of them are int64 arrays; no intermediate result leaves 64 bits. A multiplier is ``m0 * 2**-shift``
(:func:`fixed_point`), a rounding one of ``half_even``, ``half_away``, ``half_up``, ``floor``. Layouts are PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from intact.reference.fixed_point import Array

__all__ = [
    "Codes",
    "average",
    "conv",
    "curve",
    "fixed_point",
    "knots",
    "layer_norm",
    "linear",
    "multiply",
    "requantize",
    "rescale",
    "rounded_shift",
    "softmax",
    "weighted_sum",
]

Rounding = Literal["half_even", "half_away", "half_up", "floor"]


@dataclass(frozen=True)
class Codes:
    """How codes stand for real numbers: ``x = (code - zero) * scale``, codes in [low, high]."""

    scale: float
    zero: int
    low: int
    high: int


def fixed_point(real: float) -> tuple[int, int]:
    """``(m0, shift)``, ``real`` about ``m0 * 2**-shift``: m0 in [2**30, 2**31), but less where shift is 62.

    >>> fixed_point(0.75), fixed_point(3.0)
    ((1610612736, 31), (1610612736, 29))
    """
    shift = min(31 - math.frexp(real)[1], 62)
    m0 = round(math.ldexp(real, shift))
    return (m0 // 2, shift - 1) if m0 == 2**31 else (m0, shift)


def rounded_shift(x: npt.ArrayLike, shift: npt.ArrayLike, rounding: Rounding, zero: int = 0) -> Array:
    """``round(x / 2**shift + zero)`` for integers below 2**62.

    >>> rounded_shift([-5, -3, -1, 1, 3, 5], 1, "half_even")
    array([-2, -2,  0,  0,  2,  2])
    >>> rounded_shift([-5, -3, -1, 1, 3, 5], 1, "half_up")
    array([-2, -1,  0,  1,  2,  3])
    """
    x, shift = np.asarray(x, np.int64), np.asarray(shift, np.int64)
    whole = (x >> shift) + zero
    rest, half = x - ((x >> shift) << shift), (np.int64(1) << shift) >> 1
    tie = (rest == half) & (shift > 0)
    up = (rest > half) & (shift > 0)
    if rounding == "half_even":
        up |= tie & (whole & 1 == 1)
    elif rounding == "half_away":
        up |= tie & (whole >= 0)
    elif rounding == "half_up":
        up |= tie
    else:
        up[...] = False
    return np.asarray(whole + up)


def requantize(
    acc: npt.ArrayLike, real: npt.ArrayLike, out: Codes, rounding: Rounding, *, inside: bool = False,
    clip: tuple[int, int] | None = None,
) -> Array:
    """Codes of accumulators in [-2**31, 2**31): ``clamp(round(acc * real) + zero)``.

    Args:
        acc: integers.
        real: multipliers, broadcast against ``acc``.
        out: encoding of the result.
        rounding: of the product.
        inside: the zero point is added before the rounding.
        clip: codes that a folded activation leaves.

    >>> requantize([100, -3], 0.5, Codes(1.0, 3, -128, 127), "half_up")
    array([53,  2])
    """
    real = np.asarray(real, np.float64)
    pairs = np.array([fixed_point(float(r)) for r in real.ravel()], np.int64).reshape(*real.shape, 2)
    product = np.asarray(acc, np.int64) * pairs[..., 0]
    if inside:
        codes = rounded_shift(product, pairs[..., 1], rounding, out.zero)
    else:
        codes = rounded_shift(product, pairs[..., 1], rounding) + out.zero
    return np.clip(codes, *(clip or (out.low, out.high)))


def linear(x: Array, weight: Array, bias: Array | None, zero: int) -> Array:
    """Accumulators (..., out) of codes (..., in) and weight codes (out, in).

    >>> linear(np.array([[3, 5]]), np.array([[2, -1]]), np.array([10]), 3)
    array([[8]])
    """
    acc: Array = (x.astype(np.int64) - zero) @ weight.astype(np.int64).T
    return acc if bias is None else acc + bias


def conv(
    x: Array, weight: Array, bias: Array | None, zero: int, *, stride: Sequence[int], begin: Sequence[int],
    end: Sequence[int], dilation: Sequence[int], groups: int,
) -> Array:
    """Accumulators (batch, out, *spatial); padded positions hold the zero point, and so add nothing.

    >>> conv(np.array([[[1, 2, 3]]]), np.array([[[1, 1]]]), None, 0, stride=[1], begin=[0], end=[0], dilation=[1],
    ...      groups=1)
    array([[[3, 5]]])
    """
    padded = np.pad(x.astype(np.int64) - zero, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, x.ndim)))
    every = (slice(None, None, s) for s in (1, 1, *stride, *dilation))
    windows, w = windows[tuple(every)], weight.astype(np.int64)
    per, out, n = w.shape[1], w.shape[0] // groups, len(reach)
    parts = []
    for g in range(groups):
        taps = [1, *range(2 + n, 2 + 2 * n)]
        part = np.tensordot(windows[:, g * per:(g + 1) * per], w[g * out:(g + 1) * out], (taps, list(range(1, 2 + n))))
        parts.append(np.moveaxis(part, -1, 1))
    acc = np.concatenate(parts, 1)
    return acc if bias is None else acc + bias.reshape(-1, *[1] * n)


def weighted_sum(a: Array, b: Array, qa: Codes, qb: Codes, out: Codes, rounding: Rounding, sign: int = 1) -> Array:
    """``a + sign * b``: both products with one shift, one rounding.

    >>> half = Codes(0.5, 0, -128, 127)
    >>> weighted_sum(np.array([3]), np.array([4]), half, half, Codes(1.0, 0, -128, 127), "half_up")
    array([4])
    """
    _, shift = fixed_point(max(qa.scale, qb.scale) / out.scale)
    ma, mb = (min(round(math.ldexp(q.scale / out.scale, shift)), 2**31 - 1) for q in (qa, qb))
    total = (a.astype(np.int64) - qa.zero) * ma + sign * ((b.astype(np.int64) - qb.zero) * mb)
    codes: Array = rounded_shift(total, shift, rounding) + out.zero
    return np.clip(codes, out.low, out.high)


def multiply(a: Array, b: Array, qa: Codes, qb: Codes, out: Codes, rounding: Rounding) -> Array:
    """``a * b``: the product of two centred codes, requantized.

    >>> one = Codes(1.0, 0, -128, 127)
    >>> multiply(np.array([3]), np.array([4]), one, one, one, "half_up")
    array([12])
    """
    product = (a.astype(np.int64) - qa.zero) * (b.astype(np.int64) - qb.zero)
    return requantize(product, qa.scale * qb.scale / out.scale, out, rounding)


def rescale(x: Array, q: Codes, out: Codes, rounding: Rounding) -> Array:
    """The same numbers in another encoding (an operand of a concatenation)."""
    if q == out:
        return x.astype(np.int64)
    return requantize(x.astype(np.int64) - q.zero, q.scale / out.scale, out, rounding)


def average(total: Array, count: npt.ArrayLike, q: Codes, out: Codes, rounding: Rounding) -> Array:
    """Codes of means, from sums of ``count`` centred codes.

    >>> one = Codes(1.0, 0, -128, 127)
    >>> average(np.array([10]), 4, one, one, "half_even")
    array([2])
    """
    return requantize(total, q.scale / (out.scale * np.asarray(count, np.float64)), out, rounding)


def knots(function: Callable[[float], float], q: Codes, out: Codes, step: int) -> Array:
    """Values of a function at every ``2**step``-th code from the lowest on: codes of ``out``, 8 bits behind the point.

    >>> knots(lambda x: x * x, Codes(1.0, 0, -4, 3), Codes(1.0, 0, -128, 127), 2).tolist()
    [4096, 0, 4096]
    """
    places = range(q.low, q.high + 1 + (1 << step), 1 << step)
    values = [function((code - q.zero) * q.scale) / out.scale + out.zero for code in places]
    return np.array([round(min(max(v * 256.0, -(2.0**30)), 2.0**30)) for v in values], np.int64)


def curve(x: Array, at: Array, step: int, q: Codes, out: Codes, rounding: Rounding) -> Array:
    """Codes of a function as straight lines between knots, ``2**step`` codes apart.

    >>> q, out = Codes(1.0, 0, -4, 3), Codes(1.0, 0, -128, 127)
    >>> curve(np.array([-4, -3, 0, 2]), np.array([4096, 0, 4096]), 2, q, out, "half_up")
    array([16, 12,  0,  8])
    """
    index = x.astype(np.int64) - q.low
    left, rest = index >> step, index & ((1 << step) - 1)
    total = (at[left] << step) + (at[left + 1] - at[left]) * rest
    return np.clip(rounded_shift(total, step + 8, rounding), out.low, out.high)


def softmax(x: Array, axis: int, q: Codes, bits: int, out: Codes, hidden: Array | None = None) -> Array:
    """Codes of probabilities: ``bits`` is the width of the operand's codes, the scale of ``out`` a power of two.

    What is ``hidden`` by a mask takes no part: neither in the maximum nor in the sum, and its probability is 0.

    >>> q, out = Codes(0.1, 0, -128, 127), Codes(1 / 256, -128, -128, 127)
    >>> softmax(np.array([[10, 10], [10, -100]]), 1, q, 8, out)
    array([[   0,    0],
           [ 127, -128]])
    """
    fraction = min(16, 30 - (x.shape[axis] - 1).bit_length())
    high = [round(math.exp(-q.scale * (h << 8)) * 2**fraction) for h in range(1 << max(bits - 8, 0))]
    low = [round(math.exp(-q.scale * v) * 2**15) for v in range(1 << min(bits, 8))]
    seen = np.full(x.shape, True) if hidden is None else ~np.broadcast_to(hidden, x.shape)
    x = np.where(seen, x.astype(np.int64), x.min())
    d = x.max(axis, keepdims=True) - x
    e = np.where(seen, (np.array(high)[d >> 8] * np.array(low)[d & 255] + 2**14) >> 15, 0)
    total = np.maximum(e.sum(axis, keepdims=True), 1)
    codes: Array = (e * round(1 / out.scale) + (total >> 1)) // total + out.zero
    return np.clip(codes, out.low, out.high)


def layer_norm(
    x: Array, axes: tuple[int, ...], eps: float, weight: Array | None, weight_scale: float, bias: Array | None,
    q: Codes, out: Codes, rounding: Rounding,
) -> Array:
    """Codes of ``(x - mean) / sqrt(variance + eps) * weight + bias``.

    A normalized value has ``b = min(14, 19 - ceil(log2(n) / 2))`` bits behind the point; weight codes have the scale
    ``weight_scale``, bias codes ``weight_scale * 2**-b``.

    >>> q, out = Codes(0.1, 0, -128, 127), Codes(0.1, 0, -128, 127)
    >>> layer_norm(np.array([[-50, 50]]), (1,), 1e-5, None, 1.0, None, q, out, "half_up")
    array([[-10,  10]])
    """
    x = x.astype(np.int64)
    n = math.prod(x.shape[a] for a in axes)
    bits = max(0, min(14, 19 - math.ceil(math.log2(n) / 2)))
    epsilon = min(max(round(eps * n**2 / q.scale**2), 1), 2**60)
    total = x.sum(axes, keepdims=True)
    wide = n * (x * x).sum(axes, keepdims=True) - total * total + epsilon
    found = [(61 - (int(w).bit_length() - 1)) & ~1 for w in wide.ravel()]
    room = np.array(found, np.int64).reshape(wide.shape)
    root = np.array([math.isqrt(int(w) << r) for w, r in zip(wide.ravel(), found, strict=True)], np.int64)
    root, d = root.reshape(wide.shape), n * x - total
    normalized = np.sign(d) * (((np.abs(d) << (room // 2 + bits)) + (root >> 1)) // root)
    acc = normalized if weight is None else normalized * weight.astype(np.int64)
    acc = acc if bias is None else acc + bias
    return requantize(acc, math.ldexp(weight_scale, -bits) / out.scale, out, rounding)
