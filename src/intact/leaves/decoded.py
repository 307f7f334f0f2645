"""The product with a weight that is made real part by part, so that no part leaves a core's cache.

Nothing is written to what depends on the input: ``torch.func.vmap`` and forward-mode differentiation go through.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from intact.leaves.how import Dynamic, WeightOnly
from intact.leaves.weight import QWeight
from intact.private import compiled

__all__ = ["decoded_product"]

_PART = 1 << 18  # float32 numbers of a weight at a time, on each core


def decoded_product(x: Tensor, weight: QWeight) -> Tensor:
    """``x @ w.T`` for float32 x (rows, columns) and the real numbers w that the codes of a weight stand for.

    A weight that is made real as a whole is written to memory and read again: several times the time of a product with
    few rows. Where a gradient is to flow, or elsewhere than on a CPU, it is done so all the same.

    Args:
        x: real numbers, multiplied already by the columns of a weight that is balanced.
        weight: a matrix; float16, or 8 or 4 bits.

    >>> from intact.leaves.how import Float16
    >>> from intact.leaves.weight import encode
    >>> w = encode(torch.tensor([[0.5, -1.27]]), Float16())
    >>> decoded_product(torch.tensor([[1.0, -1.0]]), w)
    tensor([[1.7695]])
    """
    codes, scale, zero, how = weight.codes, weight.scale, weight.zero_point, weight.how
    columns = x.shape[1]
    groups = scale.shape[1] if scale is not None and scale.ndim == 2 else 1
    if (x.device.type != "cpu" or codes.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0
            or (torch.is_grad_enabled() and x.requires_grad) or isinstance(how, Dynamic)):
        return F.linear(x, weight.without_columns())
    four = isinstance(how, WeightOnly) and how.bits == 4
    if four and groups > 1 and columns // groups % 2:
        return F.linear(x, weight.without_columns())
    count = len(codes)
    rows = min(count, max(1, _PART * torch.get_num_threads() // columns))
    with torch.no_grad():
        factor = None if scale is None or groups == 1 else scale.to(torch.float32)
        y: Tensor = (compiled(_four_bits)(x, codes.view(torch.int8), factor, rows) if four else
                     compiled(_plain)(x, codes.reshape(count, columns), factor, rows))
        if zero is not None or four:
            origin = torch.full((count, groups), 8.0) if zero is None else zero.to(torch.float32).reshape(-1, groups)
            if factor is not None:
                origin = origin * factor
            y = y.addmm(x.reshape(len(x), groups, -1).sum(2), origin.expand(count, groups).t(), alpha=-1.0)
        return y if scale is None or groups > 1 else y * scale.to(torch.float32).reshape(-1)


def _four_bits(x: Tensor, codes: Tensor, scale: Tensor | None, rows: int) -> Tensor:
    """``x @ (codes * scale).T``, even columns of a part first, then odd ones: as the halves of bytes come.

    Args:
        x: float32 (m, columns).
        codes: 0 to 15, two a byte, int8 (n, half of the columns).
        scale: float32 (n, groups), or None for 1.
        rows: of the weight at a time.
    """
    count, half = codes.shape[0], codes.shape[1]
    groups = 1 if scale is None else scale.shape[1]
    odd = x[:, 1::2]
    if odd.shape[1] < half:
        odd = torch.nn.functional.pad(odd, [0, 1])
    sides = torch.cat([x[:, 0::2], odd], 1)
    steps = torch.empty(rows, 2, half, dtype=torch.int8)
    real, products = torch.empty(rows, 2, half), [sides]
    for begin in range(0, count, rows):
        size = min(rows, count - begin)
        part, some, numbers = codes.narrow(0, begin, size), steps.narrow(0, 0, size), real.narrow(0, 0, size)
        high = some.select(1, 1)
        torch.bitwise_and(part, 15, out=some.select(1, 0))
        torch.bitwise_right_shift(part, 4, out=high)
        high.bitwise_and_(15)
        numbers.copy_(some)
        if scale is not None:
            numbers.view(size, 2, groups, half // groups).mul_(
                scale.narrow(0, begin, size).reshape(size, 1, groups, 1))
        products.append(torch.mm(sides, numbers.view(size, 2 * half).t()))
    return torch.cat(products[1:], 1)


def _plain(x: Tensor, codes: Tensor, scale: Tensor | None, rows: int) -> Tensor:
    """The same for codes of 8 bits, and for float16 numbers.

    Args:
        x: float32 (m, columns).
        codes: (n, columns).
        scale: float32 (n, groups), or None for 1.
        rows: of the weight at a time.
    """
    count, columns = codes.shape[0], codes.shape[1]
    real, products = torch.empty(rows, columns), [x]
    for begin in range(0, count, rows):
        size = min(rows, count - begin)
        numbers = real.narrow(0, 0, size)
        numbers.copy_(codes.narrow(0, begin, size))
        if scale is not None:
            groups = scale.shape[1]
            numbers.view(size, groups, columns // groups).mul_(scale.narrow(0, begin, size).reshape(size, groups, 1))
        products.append(torch.mm(x, numbers.t()))
    return torch.cat(products[1:], 1)
