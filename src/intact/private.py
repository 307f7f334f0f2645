"""The only file that uses names of torch that are not public, and why.

* ``torch._int_mm``: torch has no public integer matrix product that is faster than a scalar loop. It is used only
  where :func:`int8_matmul` has found, once in a process, that its results equal the scalar loop's on codes that
  expose 16-bit saturation (x86 without VNNI) and on odd sizes; else the loop is used.
* ``torch.ops.onednn.qlinear_prepack`` and ``qlinear_pointwise``: the same product of uint8 and int8, with the weight
  laid out once, and scaled as it is written. Used only where :func:`intact.proven.packed_matmul_is_exact` has found
  its float32 results equal to those of the loop.
* ``torch._make_per_channel_quantized_tensor``, ``torch.ops.quantized.linear_prepack`` and
  ``linear_with_input_q_dq_qweight_dq_output_fp32``: the same product once more, by fbgemm. For few rows the others lay
  the weight out in each call, or cost more than the product. Used only where
  :func:`intact.proven.few_rows_is_exact` has found its float32 results equal to those of the loop (x86 without VNNI
  saturates).
* ``torch._convert_weight_to_int4pack_for_cpu`` and ``_weight_int4pack_mm_for_cpu``: products of bfloat16 with 4-bit
  codes, which read an eighth of the memory. Used only where :func:`intact.proven.four_bits_are_exact` has found the
  weights equal.
* ``torch._C._functorch.is_functorch_wrapped_tensor``: in ``torch.func.vmap`` such kernels are not called, as they know
  nothing of it.
* ``torch.ops.quantized.embedding_bag_byte_prepack``: fbgemm's row-wise codes in one pass over memory; torch has no
  other kernel that finds the range of every row and rounds to it. Its operands are plain tensors. Used only where
  :func:`intact.arithmetic.quantize_rows` has found its results equal to those of torch's elementwise operations.
* ``torch.jit.script``, public but deprecated: a QLinear is a dozen operations, and called one by one from Python they
  take as long as a small product. Where it cannot compile them the same functions run as they are.
* ``torch.nn.modules.transformer._detect_is_causal_mask``: it looks at the numbers of a mask, only to find a faster
  kernel, and so keeps ``nn.TransformerEncoder`` and ``nn.TransformerDecoder`` with a mask from being captured.
* ``Module._parameters``, ``_buffers`` and ``_modules``: the public walks over them take a tenth of a forward pass of a
  small network, and such a walk comes before each (see the next).
* ``Tensor._version``: the only way to learn that a tensor was written to in place, so that a model whose weights
  changed after they were turned into codes is never evaluated with stale codes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["ROW_MARGIN", "FewRows", "causal_only_where_said", "compiled", "few_rows_matmul", "fingerprint",
           "four_bit_matmul", "fused_rows", "int8_matmul", "int8_product", "is_transformed", "pack_few_rows",
           "pack_four_bits", "pack_matrix", "packed_matmul", "rows_and_ranges", "rows_times_weight", "tensors_of"]

ROW_MARGIN = 8  #: columns behind the codes of :func:`fused_rows`: two float32 numbers
if TYPE_CHECKING:
    FewRows: TypeAlias = Any
else:
    try:
        FewRows = torch.classes.quantized.LinearPackedParamsBase  #: what :func:`pack_few_rows` gives
    except (RuntimeError, AttributeError):  # gone from this version of torch
        FewRows = Tensor


def fingerprint(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes whenever one of the tensors is replaced or written to in place (not through ``.data``)."""
    return tuple([(t.data_ptr(), t._version) for t in tensors])


def tensors_of(module: torch.nn.Module) -> list[Tensor]:
    """All parameters and buffers; takes a tenth of the time of ``parameters()`` and ``buffers()``."""
    found: list[Tensor] = []
    left = [module]
    while left:
        own: Any = left.pop()
        found += [t for table in (own._parameters, own._buffers) for t in table.values() if t is not None]
        left += [child for child in own._modules.values() if child is not None]
    return found


@contextmanager
def causal_only_where_said() -> Iterator[None]:
    """``nn.Transformer`` and its parts take a mask for what it is; its values are not looked at."""
    module: Any = torch.nn.modules.transformer
    before = module._detect_is_causal_mask
    module._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        yield
    finally:
        module._detect_is_causal_mask = before


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Exact int32 product of int8 or uint8 (m, k) and int8 (k, n)."""
    if a.shape[1] == 1:  # an outer product: torch._int_mm (2.13) gives wrong numbers for k == 1 and n > 1
        return a.to(torch.int32) * b.to(torch.int32)
    if a.device.type == "cpu" and _fast_is_exact(a.dtype):
        return torch._int_mm(a, b)
    if a.device.type == "cpu" and a.dtype == torch.uint8 and _fast_is_exact(torch.int8):
        centred = (a ^ 128).view(torch.int8)  # flipping the top bit subtracts 128
        return torch._int_mm(centred, b).add_(b.sum(0, dtype=torch.int32), alpha=128)
    if a.device.type == "cpu":
        return a.to(torch.int32) @ b.to(torch.int32)
    # accelerators have no int32 matrix product; float64 is exact: |sum| <= 2**15 * k < 2**53
    return (a.to(torch.float64) @ b.to(torch.float64)).to(torch.int32)


@lru_cache(maxsize=2)
def _fast_is_exact(dtype: torch.dtype) -> bool:
    """Whether ``torch._int_mm`` exists here for such codes and equals the scalar loop on hard cases."""
    if not hasattr(torch, "_int_mm"):
        return False
    generator = torch.Generator().manual_seed(0)
    low, high = (0, 255) if dtype == torch.uint8 else (-128, 127)
    for m, k, n in ((1, 2, 1), (3, 2, 5), (3, 5, 7), (17, 33, 9), (64, 576, 64), (130, 257, 31)):
        for extreme in (True, False):
            a = torch.randint(low, high + 1, (m, k), generator=generator).to(dtype)
            b = torch.randint(-128, 128, (k, n), generator=generator, dtype=torch.int8)
            if extreme:
                a = torch.where(a < (low + high + 1) // 2, low, high).to(dtype)
                b = torch.where(b < 0, -128, 127).to(torch.int8)
            try:
                fast = torch._int_mm(a, b)
            except RuntimeError:  # not compiled for this CPU, or a size or type that it refuses
                return False
            if not torch.equal(fast, a.to(torch.int32) @ b.to(torch.int32)):
                return False
    return True


def is_transformed(x: Tensor) -> bool:
    """Whether a transformation of ``torch.func`` is at work on a tensor."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def int8_product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """:func:`int8_matmul`'s kernel, for functions that are compiled; whether it is exact is the caller's to know."""
    return torch._int_mm(a, b, out=out)


def rows_and_ranges(x: Tensor) -> Tensor:
    """:func:`fused_rows`'s kernel, likewise: codes, and behind them the bytes of two float32 numbers."""
    codes: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(x)
    return codes


def fused_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of rows, ``rint((x - low) * (255 / (high - low + 1e-8)))``, for finite float32 x (m, k).

    Returns:
        Codes, uint8 (m, k + 8), the last 8 columns of no meaning; ``(high - low) / 255`` and ``low``, (m, 1).
    """
    codes: Tensor = _row_codes()(x)
    k = x.shape[1]
    if k % 4:  # the numbers are not where a float32 may be
        pair = codes[:, k:].clone(memory_format=torch.contiguous_format).view(torch.float32)
        return codes, pair[:, :1], pair[:, 1:]
    numbers = codes.view(torch.float32)
    return codes, numbers.narrow(1, k // 4, 1), numbers.narrow(1, k // 4 + 1, 1)


@lru_cache(maxsize=1)
def _row_codes() -> Callable[[Tensor], Tensor]:
    found: Callable[[Tensor], Tensor] = torch.ops.quantized.embedding_bag_byte_prepack.default
    return found


def pack_matrix(w: Tensor) -> Tensor:
    """An int8 matrix (n, k) in the layout that :func:`packed_matmul` takes."""
    # contiguous: a transposed view is taken for what it is a view of (torch 2.13), silently if it is square
    packed: Tensor = torch.ops.onednn.qlinear_prepack(w.contiguous(), None)
    return packed


def packed_matmul(x: Tensor, packed: Tensor, scale: Tensor, zero: int = 0) -> Tensor:
    """``float32((x - zero) @ w.T) * scale`` for uint8 codes x (m, k), a packed int8 w (n, k), float32 scale (n,)."""
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero, packed, scale, _no_zero_points(len(scale)), None, 1.0, 0, torch.float32, "none", [], "")
    return result


@lru_cache(maxsize=64)
def _no_zero_points(count: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(count, dtype=torch.int32)


def pack_few_rows(w: Tensor, scale: Tensor) -> Any:
    """An int8 matrix (n, k) and the float32 scale of its rows (n,) in the layout for products with 2 to 30 rows."""
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # tensors of quantized types are deprecated; this one does not outlast the call
        zeros = torch.zeros(len(w), dtype=torch.int64)
        made = torch._make_per_channel_quantized_tensor(w.clone(), scale.to(torch.float64), zeros, 0)
        return torch.ops.quantized.linear_prepack(made, None)


def few_rows_matmul(codes: Tensor, few: FewRows) -> Tensor:
    """``float32(codes @ w.T) * scale`` for uint8 codes (m, k)."""
    y: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        codes.to(torch.float32), 1.0, 0, few)
    return y


def pack_four_bits(codes: Tensor) -> Tensor:
    """4-bit codes, uint8 (n, k), n a multiple of 16, in the layout of :func:`four_bit_matmul`: two a byte."""
    parts = [part.to(torch.int32) for part in codes.split(1024)]  # as a whole they would take 8 times as much
    return torch.cat([torch._convert_weight_to_int4pack_for_cpu(part, 1) for part in parts])


def four_bit_matmul(x: Tensor, packed: Tensor, size: int, scales: Tensor) -> Tensor:
    """``x @ w.T`` for bfloat16 x (m, k), ``w = (codes - 8) * scales[..., 0] + scales[..., 1]``, in bfloat16.

    Args:
        x: activations.
        packed: from :func:`pack_four_bits`.
        size: of a group: 32, 64, 128 or 256, a divisor of k.
        scales: bfloat16 (k / size, n, 2).
    """
    return torch._weight_int4pack_mm_for_cpu(x, packed, size, scales)


@lru_cache(maxsize=16)
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors without Python between its operations; the function itself where that cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        try:
            found: Callable[..., Any] = torch.jit.script(function)
        except (RuntimeError, AttributeError, OSError):  # no such kernel; no torch.jit; no source
            return function
    return found


def rows_times_weight(
    x: Tensor, codes: Tensor, packed: Tensor | None, scale: Tensor, zeros: Tensor, offsets: Tensor,
    bias: Tensor | None, scratch: Tensor, few: FewRows | None,
) -> Tensor | None:
    """``(codes_x @ codes.T * scale) * step + (low * offsets + bias)``, the steps of ``product`` in one function.

    Args:
        x: (..., k).
        codes: int8 (n, k), k > 1.
        packed: the same with :data:`ROW_MARGIN` columns of zeros behind, from :func:`pack_matrix`; None to do without.
        scale: float32 (n,).
        zeros: int32 (n,).
        offsets: float32 (n,).
        bias: float32 (n,), or for each row (m, n).
        scratch: float32 (at least n,), without ``packed`` (at least m * n,); overwritten.
        few: the codes and scale from :func:`pack_few_rows`; None to do without.

    Returns:
        float32 (..., n); None if x is not float32, is elsewhere than the codes, has no rows or not k columns, or if not
        every number of it is finite.
    """
    k, n = codes.shape[1], codes.shape[0]
    if x.dtype != torch.float32 or x.device != codes.device or x.dim() == 0 or x.numel() == 0 or x.size(-1) != k:
        return None
    m = x.numel() // k
    matrix = x.reshape(m, k)
    if not math.isfinite(float(matrix.sum())):
        return None
    rows = torch.ops.quantized.embedding_bag_byte_prepack(matrix)
    tail, at = rows, k // 4
    if k % 4 != 0:  # the numbers behind the codes are not where a float32 may be
        tail, at = rows.narrow(1, k, 8).clone(), 0
    step = torch.empty(0).set_(tail, at, [m, 1], [at + 2, 1]).add(1e-8 / 255.0)
    low = torch.empty(0).set_(tail, at + 1, [m, 1], [at + 2, 1])
    if few is not None:
        y = few_rows_matmul(rows.narrow(1, 0, k), few)
    elif packed is None:
        acc = torch.empty(0, dtype=torch.int32)
        acc.set_(scratch, 0, [m, n], [n, 1])  # type: ignore[call-overload]
        y = torch.empty(m, n).copy_(torch._int_mm(rows.narrow(1, 0, k), codes.t(), out=acc)).mul_(scale)
    else:
        y = torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, 0, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    count, begin = max(1, scratch.shape[0] // n), 0
    if m <= count:
        _scale_rows(y, step, low, offsets, bias, scratch)
        begin = m
    while begin < m:  # what several passes touch stays in a core's cache
        size = min(count, m - begin)
        added = bias if bias is None or bias.dim() == 1 else bias.narrow(0, begin, size)
        _scale_rows(y.narrow(0, begin, size), step.narrow(0, begin, size), low.narrow(0, begin, size), offsets, added,
                    scratch)
        begin += size
    shape = list(x.shape[:-1])
    shape.append(n)
    return y.view(shape)


def _scale_rows(
    y: Tensor, step: Tensor, low: Tensor, offsets: Tensor, added: Tensor | None, scratch: Tensor
) -> Tensor:
    base = scratch.narrow(0, 0, y.numel()).view(y.shape)
    if added is None:
        torch.mul(low, offsets, out=base)
    else:
        torch.addcmul(added, low, offsets, out=base)
    if added is not None and added.dim() == 2:
        return torch.addcmul(base, y, step, out=y)
    return y.mul_(step).add_(base)
