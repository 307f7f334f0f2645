"""Which fast kernels exist here and give the numbers of the plain ones: found out once in a process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from intact.private import (
    few_rows_matmul,
    four_bit_matmul,
    pack_few_rows,
    pack_four_bits,
    pack_matrix,
    packed_matmul,
)

__all__ = ["few_rows_is_exact", "four_bits_are_exact", "packed_matmul_is_exact"]


def _hard_cases(sizes: Iterable[tuple[int, int, int]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """uint8 (m, k) and int8 (n, k), any and such as saturate 16 bits; a float32 scale (n,)."""
    g = torch.Generator().manual_seed(0)
    for m, k, n in sizes:
        x = torch.randint(0, 256, (m, k), generator=g, dtype=torch.uint8)
        w = torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8)
        scale = torch.rand(n, generator=g) + 0.01
        yield x, w, scale
        yield torch.where(x < 64, 0, 255).to(torch.uint8), torch.where(w < 0, -127, 127).to(torch.int8), scale


@lru_cache(maxsize=1)
def packed_matmul_is_exact() -> bool:
    """Whether :func:`packed_matmul` exists here and equals the scalar loop on hard cases."""
    if not torch.backends.mkldnn.is_available():
        return False
    for x, w, scale in _hard_cases(((16, 2, 1), (16, 33, 7), (17, 64, 16), (64, 576, 64), (130, 257, 31))):
        zero = 137 if len(x) % 2 else 0
        try:
            fast = packed_matmul(x, pack_matrix(w), scale, zero)
        except (RuntimeError, AttributeError):  # not compiled for this CPU, or gone from this version of torch
            return False
        if not torch.equal(fast, ((x.to(torch.int32) - zero) @ w.to(torch.int32).t()).to(torch.float32) * scale):
            return False
    return True


@lru_cache(maxsize=4)
def _few_rows_of(engine: str) -> bool:
    for x, w, scale in _hard_cases(((2, 2, 1), (3, 33, 7), (5, 64, 17), (16, 576, 64), (23, 257, 31))):
        try:
            found = few_rows_matmul(x, pack_few_rows(w, scale))
        except (RuntimeError, AttributeError):  # not compiled for this CPU, or gone from this version of torch
            return False
        if not torch.equal(found, (x.to(torch.int32) @ w.to(torch.int32).t()).to(torch.float32) * scale):
            return False
    return True


def few_rows_is_exact() -> bool:
    """Whether products with :func:`pack_few_rows` exist here and equal the scalar loop on hard cases."""
    engine = torch.backends.quantized.engine  # which kernels torch lays weights out for: the user's to choose
    return engine in ("x86", "fbgemm") and _few_rows_of(engine)


@lru_cache(maxsize=1)
def four_bits_are_exact() -> bool:
    """Whether :func:`four_bit_matmul` exists here, multiplies with those weights and sums in more than bfloat16."""
    g = torch.Generator().manual_seed(0)
    for n, k, size in ((16, 64, 32), (48, 128, 64), (80, 256, 128), (64, 512, 256)):
        codes = torch.randint(0, 16, (n, k), generator=g, dtype=torch.uint8)
        scales = torch.randn(k // size, n, 2, generator=g).to(torch.bfloat16)
        steps, zeros = (scales[..., i].t().repeat_interleave(size, 1).to(torch.float32) for i in (0, 1))
        w, x = (codes.to(torch.float32) - 8.0) * steps + zeros, torch.randn(5, k, generator=g).to(torch.bfloat16)
        try:
            packed = pack_four_bits(codes)
            one, y = (four_bit_matmul(v, packed, size, scales) for v in (torch.eye(k, dtype=x.dtype), x))
        except (RuntimeError, AttributeError):  # not compiled for this CPU, or gone from this version of torch
            return False
        exact = x.to(torch.float64) @ w.to(torch.float64).t()
        if not torch.equal(one, w.t().to(x.dtype)) or bool((y - exact).abs().gt(exact.abs() / 250 + 1e-3).any()):
            return False
    return True
