"""Layer normalization in integers: exact sums, an integer square root, one division for every value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "GAMMA_BITS", "MOST_VALUES", "integer_sqrt", "layer_norm_epsilon", "normalized_bits", "normalized_codes",
    "normalized_limit",
]

MOST_VALUES = 2**14  # that are normalised together: sums of squares of 16-bit codes stay below 2**61
GAMMA_BITS = 12  # of the factor of each channel: with them, and normalized_bits, a sum fits in 32 bits


def normalized_bits(count: int) -> int:
    """Fraction bits of a normalized value, of which none exceeds ``sqrt(count)``.

    >>> normalized_bits(384), normalized_bits(4096)
    (14, 13)
    """
    return max(0, min(14, 19 - math.ceil(math.log2(max(count, 1)) / 2)))


def normalized_limit(count: int) -> float:
    """No normalized value of ``count`` is larger, in units of its last bit (and one, for the rounding).

    >>> normalized_limit(4)
    32769.0
    """
    return math.sqrt(count) * 2.0 ** normalized_bits(count) + 1.0


def layer_norm_epsilon(eps: float, count: int, scale: float) -> int:
    """What is added to ``count**2`` times the variance of the codes; at least 1, so that nothing is divided by 0.

    >>> layer_norm_epsilon(1e-5, 100, 0.01)
    1000
    """
    return min(max(round(eps * count**2 / scale**2), 1), 2**60)


def integer_sqrt(x: Tensor) -> Tensor:
    """The largest integer whose square is at most ``x``, for int64 integers from 0 to 2**62 - 1.

    >>> integer_sqrt(torch.tensor([0, 15, 16, 2**62 - 1])).tolist()
    [0, 3, 4, 2147483647]
    """
    root = x.to(torch.float64).sqrt().to(torch.int64)  # off by one at most
    root = torch.where(root * root > x, root - 1, root)
    above = root + 1
    return torch.where(above * above <= x, above, root)


def _even_room(x: Tensor) -> Tensor:
    """The even shift that brings positive int64 integers to [2**60, 2**62)."""
    exponent = torch.frexp(x.to(torch.float64)).exponent.to(torch.int64) - 1
    exponent = torch.where((x >> exponent) == 0, exponent - 1, exponent)  # the conversion may round up
    return 61 - exponent & ~1


def normalized_codes(codes: Tensor, axes: tuple[int, ...], epsilon: int) -> Tensor:
    """``(x - mean) / sqrt(variance + eps)`` with :func:`normalized_bits` bits behind the point, int64.

    With n values, S their sum and Q the sum of their squares: ``d = n * code - S``, ``W = n * Q - S**2 + epsilon``; W
    is shifted to the left by an even ``k``, as far as it stays below 2**62; ``r`` is its integer square root; the
    result is ``d * 2**(k/2 + bits) / r``, rounded half away from zero. The zero point cancels.

    Args:
        codes: int64, of at most 16 bits.
        axes: that are normalised together; at most 2**15 values.
        epsilon: of :func:`layer_norm_epsilon`.

    >>> normalized_codes(torch.tensor([[-1, 1]]), (1,), 1).div(2**14)
    tensor([[-0.8944,  0.8944]])
    """
    count = math.prod(codes.shape[a] for a in axes)
    total = codes.sum(axes, keepdim=True)
    wide = count * (codes * codes).sum(axes, keepdim=True) - total * total + epsilon
    room = _even_room(wide)
    root = integer_sqrt(wide << room)
    d = count * codes - total
    size = ((d.abs() << (room // 2 + normalized_bits(count))) + (root >> 1)) // root
    return torch.where(d < 0, -size, size)
