"""What LiteRT's kernels share: the encoding of a tensor, the fused activations, the sets of kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from intact.reference.fixed_point import INT32_MIN, Array, round_half_away

__all__ = [
    "Activation",
    "Kernels",
    "Quant",
    "activation_range",
    "blocks_then_rest",
    "clamp",
    "round_half_even",
    "to_int32",
]

Kernels = Literal["reference", "optimized", "delegated"]
"""``reference``: the portable kernels. ``optimized``: the built-in ones for x86-64, without a delegate. ``delegated``:
XNNPACK for what it takes, the default of the interpreter; what it does not take runs in the optimized kernels."""
Activation = Literal["NONE", "RELU", "RELU_N1_TO_1", "RELU6"]


@dataclass(frozen=True)
class Quant:
    """The encoding of one tensor: real = scale * (code - zero_point), scale in float32, signed codes of ``bits``.

    >>> Quant(0.5, 3).qmin, Quant(0.5, 0, 16).qmax
    (-128, 32767)
    """

    scale: float
    zero_point: int = 0
    bits: int = 8

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """The highest code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def f32(self) -> np.float32:
        """The scale as the file holds it."""
        return np.float32(self.scale)


def round_half_even(x: Array) -> Array:
    """The nearest integer of floats, ties to even: the float unit's own rounding.

    >>> round_half_even(np.float32([0.5, 1.5, -2.5]))
    array([ 0.,  2., -2.], dtype=float32)
    """
    down = np.floor(x)
    with np.errstate(invalid="ignore"):  # infinities stay
        rest, odd = x - down, np.fmod(down, 2) != 0
    return np.asarray(down + ((rest > 0.5) | ((rest == 0.5) & odd)).astype(x.dtype))


def to_int32(x: Array) -> Array:
    """Floats with integral values as int32, as x86 converts them: NaN and what does not fit become -2**31.

    >>> to_int32(np.array([3.0, 3e9, -3e9, np.nan]))
    array([          3, -2147483648, -2147483648, -2147483648])
    """
    fits = (x >= -(2.0**31)) & (x < 2.0**31)
    return np.where(fits, np.where(fits, x, 0).astype(np.int64), INT32_MIN)


def blocks_then_rest(blocks: Array, rest: Array, size: int) -> Array:
    """A vectorised kernel's result: ``blocks`` where a full block of ``size`` flat elements lies, ``rest`` after it.

    >>> blocks_then_rest(np.zeros(5, int), np.ones(5, int), 2)
    array([0, 0, 0, 0, 1])
    """
    index = np.arange(blocks.size).reshape(blocks.shape)
    return np.where(index < blocks.size - blocks.size % size, blocks, rest)


def activation_range(q: Quant, activation: Activation = "NONE", kernels: Kernels = "reference") -> tuple[int, int]:
    """The codes between which a fused activation clamps: its bounds quantized in float32.

    Half away from zero, then the zero point; XNNPACK (int8, delegated): the zero point, then half to even.

    >>> activation_range(Quant(0.1, -10), "RELU6")
    (-10, 50)
    >>> activation_range(Quant(2.0, 2), "RELU_N1_TO_1"), activation_range(Quant(2.0, 2), "RELU_N1_TO_1", "delegated")
    ((1, 3), (2, 2))
    """
    def code(bound: float) -> int:
        steps = np.asarray(np.float32(bound) / q.f32)
        if kernels == "delegated" and q.bits == 8:
            return int(round_half_even(steps + np.float32(q.zero_point)))
        return q.zero_point + int(round_half_away(steps))

    bounds = {"NONE": (None, None), "RELU": (0.0, None), "RELU_N1_TO_1": (-1.0, 1.0), "RELU6": (0.0, 6.0)}[activation]
    low, high = (
        default if bound is None else code(bound)
        for bound, default in zip(bounds, (q.qmin, q.qmax), strict=True)
    )
    return max(q.qmin, low), min(q.qmax, high)


def clamp(x: Array, q: Quant, activation: Activation = "NONE", kernels: Kernels = "reference") -> Array:
    """Add the zero point and clamp to the type and the fused activation; int64.

    >>> clamp(np.array([-300, 0, 300]), Quant(0.1, 5), "RELU")
    array([  5,   5, 127])
    """
    low, high = activation_range(q, activation, kernels)
    return np.clip(x.astype(np.int64) + q.zero_point, low, high)
