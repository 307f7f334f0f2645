"""Products of bfloat16 activations with groups of 4-bit codes, which are read as they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intact.leaves.group_codes import unpack
from intact.leaves.how import WeightOnly
from intact.leaves.weight import QWeight
from intact.private import four_bit_matmul, is_transformed, pack_four_bits
from intact.proven import four_bits_are_exact

__all__ = ["four_bit_product"]

_SIZES = (32, 64, 128, 256)  # of groups that the kernel has
_MOST = 16  # rows: for more the weight is better made real, once for all of them


@dataclass(frozen=True, eq=False)
class _Packed:
    """A weight as the kernel takes it: ``(codes - 8) * scale + origin``, both in bfloat16.

    Args:
        codes: packed.
        scales: bfloat16 (groups, rows, 2).
        rest: float32 (groups, rows), what the origin loses in bfloat16; None if nothing.
    """

    codes: Tensor
    scales: Tensor
    rest: Tensor | None


def _packed(w: QWeight) -> _Packed:
    assert w.scale is not None
    scale = w.scale.to(torch.float32)
    origin = torch.zeros_like(scale) if w.zero_point is None else (8.0 - w.zero_point.to(torch.float32)) * scale
    kept = origin.to(torch.bfloat16)
    rest = (origin - kept.to(torch.float32)).t().contiguous()
    scales = torch.stack([w.scale.t(), kept.t()], 2).contiguous()
    return _Packed(pack_four_bits(unpack(w.codes, w.shape[1])), scales, rest if bool(rest.any()) else None)


def four_bit_product(x: Tensor, weight: QWeight) -> Tensor | None:
    """``x @ w.T`` in float32 for few rows of bfloat16 x (rows, columns), about as fast as the codes can be read.

    The kernel rounds sums to bfloat16. Inputs that a balanced weight multiplies are no bfloat16 numbers any more: they
    are taken in two parts, the second one what the first loses.

    Returns:
        None where the kernel does not apply: then the weight has to be made real.
    """
    how, scale = weight.how, weight.scale
    if (x.dtype != torch.bfloat16 or not isinstance(how, WeightOnly) or how.bits != 4 or scale is None
            or scale.ndim < 2 or scale.dtype != torch.bfloat16 or not 0 < len(x) <= _MOST
            or x.device.type != "cpu" or weight.codes.device.type != "cpu" or torch.compiler.is_compiling()
            or (torch.is_grad_enabled() and x.requires_grad) or is_transformed(x)):
        return None
    size = weight.shape[1] // scale.shape[1]
    if size not in _SIZES or weight.shape[0] % 16 or not four_bits_are_exact():
        return None
    packed: _Packed | None = weight.kept(_packed)
    if packed is None:
        return None
    with torch.no_grad():
        exact = weight.balanced(x)
        first = exact.to(torch.bfloat16)
        parts = torch.cat([first, (exact - first).to(torch.bfloat16)]) if weight.has_columns() else first
        try:
            y = four_bit_matmul(parts.contiguous(), packed.codes, size, packed.scales).to(torch.float32)
        except NotImplementedError:  # forward-mode differentiation by hand, which the kernel does not know
            return None
        if weight.has_columns():
            y = y[: len(x)] + y[len(x):]
        if packed.rest is not None:
            y = y.addmm(exact.to(torch.float32).reshape(len(x), -1, size).sum(2), packed.rest)
        return y
