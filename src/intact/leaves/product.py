"""The product of float activations with the codes of a weight."""

from __future__ import annotations

import threading
from functools import lru_cache

import torch
from torch import Tensor

from intact.arithmetic import quantize_rows, quantize_tensor, tensor_range
from intact.errors import IntactError
from intact.leaves.decoded import decoded_product
from intact.leaves.how import Dynamic
from intact.leaves.recording import call, recording
from intact.leaves.weight import Derived, QWeight
from intact.private import (
    ROW_MARGIN,
    compiled,
    int8_matmul,
    packed_matmul,
    packed_matmul_is_exact,
    rows_times_weight,
)
from intact.types import PerToken

__all__ = ["product", "scaled_products"]

_CHUNK = 1 << 16  # float32 numbers at a time: what several passes touch stays in a core's cache
_LARGE = 1 << 20  # numbers of a weight: to lay them out anew costs more than the packed kernel's fixed cost
_PACKED = 12  # rows: for fewer the fixed cost of the packed kernel is more than it saves


def product(x: Tensor, weight: QWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ w.T + bias`` for x (..., columns), in the dtype of ``x``.

    With :class:`Dynamic` weights both operands of the product are integers, and it is exact; no gradient flows. Else
    the weight is made float32 first.

    Args:
        x: real numbers.
        weight: a matrix.
        bias: (rows of the weight,), or of the shape of the result.

    Raises:
        IntactError: if x does not fit.

    >>> from intact.leaves.weight import encode
    >>> x, w = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, -1.27]])
    >>> product(x, encode(w, Dynamic()))
    tensor([[1.7700]])
    """
    if recording() or not isinstance(weight.how, Dynamic):
        return _named_or_float(x, weight, bias)
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _dynamic(x, weight, bias)
    return _dynamic(x, weight, bias)


def _check(x: Tensor, weight: QWeight) -> None:
    if x.ndim == 0 or x.shape[-1] != weight.shape[1] or not x.is_floating_point():
        raise IntactError("the input does not fit the layer", got=f"{x.dtype}, {tuple(x.shape)}",
                          allowed=f"real numbers, {weight.shape[1]} in the last axis")


def _named_or_float(x: Tensor, weight: QWeight, bias: Tensor | None) -> Tensor:
    """The operation of a graph, or the product with the weight made float32."""
    _check(x, weight)
    dtype, x = x.dtype, weight.balanced(x)
    if recording():
        result: Tensor = call("leaf_product", weight, x, bias)
        return result.to(dtype)
    rows = x.to(torch.float32).reshape(-1, x.shape[-1])
    y = decoded_product(rows, weight).view(*x.shape[:-1], weight.shape[0])
    return (y if bias is None else y + bias.to(torch.float32)).to(dtype)


def _dynamic(x: Tensor, weight: QWeight, bias: Tensor | None) -> Tensor:
    """What can be one function is tried first: looking at an input costs as much as a small product."""
    derived, dtype = weight.derived(), x.dtype
    if weight.has_columns():
        _check(x, weight)
        x = weight.balanced(x)
    if bias is not None and (bias.dtype != torch.float32 or bias.ndim > 2):
        bias = bias.to(torch.float32).reshape(bias.shape if bias.ndim < 3 else (-1, bias.shape[-1]))
    if derived.plain and not torch.compiler.is_compiling() and _fused_is_exact() and _per_token(weight):
        found = _at_once(x, derived, bias)
        if found is not None:
            return found if dtype == torch.float32 else found.to(dtype)
    _check(x, weight)
    rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
    return _integer(rows, weight, bias).view(*x.shape[:-1], weight.shape[0]).to(dtype)


def _per_token(weight: QWeight) -> bool:
    return isinstance(weight.how, Dynamic) and isinstance(weight.how.activation, PerToken)


def _integer(x: Tensor, weight: QWeight, bias: Tensor | None) -> Tensor:
    """For float32 x (rows, columns).

    Per token ``(codes_x @ codes_w.T * scale_w) * step + (low * offsets + bias)``; per tensor, as ONNX Runtime,
    ``(codes_x - zero) @ codes_w.T * (step * scale_w) + bias``.
    """
    derived = weight.derived()
    if x.shape[0] == 0:
        return x.new_empty(0, weight.shape[0])
    if _per_token(weight):
        return _by_steps(x, derived, bias)
    step, zero = tensor_range(x)
    rows = max(1, _CHUNK // x.shape[1])
    parts = [quantize_tensor(part, step, zero) for part in x.split(rows)]
    codes = parts[0] if len(parts) == 1 else torch.cat(parts)
    scaled = scaled_products(codes, derived, step=step, zero=int(zero.nan_to_num()))
    return scaled if bias is None else scaled.add_(bias)


def _by_steps(x: Tensor, derived: Derived, bias: Tensor | None, *, fast: bool = True) -> Tensor:
    """Roundings are those of ONNX Runtime: one for ``bias + low * offsets``, one for what is added to it.

    What is added to every row apart is what a recurrent layer adds, whose sigmoids no runtime rounds alike: there the
    second sum is one operation with its product, and rounds once.
    """
    codes, step, low = quantize_rows(x, fast=fast)
    base = low * derived.offsets if bias is None else torch.addcmul(bias, low, derived.offsets)
    scaled = scaled_products(codes, derived, fast=fast)
    if bias is not None and bias.ndim == 2:
        return base.addcmul_(scaled, step)
    return scaled.mul_(step).add_(base)


def _at_once(x: Tensor, derived: Derived, bias: Tensor | None) -> Tensor | None:
    """The same for x (..., columns) in one function; None if it is not for such x."""
    codes = derived.codes
    rows, columns = codes.shape
    count = x.numel() // columns
    results, few = count * rows, derived.few_rows(count)
    large = results > _CHUNK or codes.numel() >= _LARGE
    packed = derived.packed(ROW_MARGIN) if few is None and large and count >= _PACKED else None
    y: Tensor | None = compiled(rows_times_weight)(
        x, codes, packed, derived.row_scale, derived.zeros, derived.offsets, bias,
        _SCRATCH.floats(max(_CHUNK, results if packed is None else rows)), few)
    return y


@lru_cache(maxsize=1)
def _fused_is_exact() -> bool:
    """Whether the kernels exist here and give the numbers of the steps, bit for bit, on hard cases."""
    if not packed_matmul_is_exact():
        return False
    g = torch.Generator().manual_seed(0)
    for m, k, n in ((1, 2, 1), (3, 33, 7), (5, 64, 257), (16, 5, 3), (64, 576, 64), (40, 64, 1700), (130, 258, 2100)):
        x = torch.randn(m, k, generator=g) * 10.0 + torch.randn(m, 1, generator=g)
        x[-1] = x[-1, 0]
        codes = torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8)
        derived, bias = Derived(codes, torch.rand(n, generator=g) + 0.01), torch.randn(n, generator=g)
        for b in (bias, torch.randn(m, n, generator=g), None):
            try:
                y = _at_once(x, derived, b)
            except (RuntimeError, AttributeError):  # not compiled for this CPU, or gone from this version of torch
                return False
            if y is None or not torch.equal(y, _by_steps(x, derived, b, fast=False)):
                return False
    return True


class _Scratch(threading.local):
    """A thread's room for what does not outlast a step: fresh memory costs as much as several passes over it."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def floats(self, count: int) -> Tensor:
        """At least so many float32 numbers of any value, overwritten by the next call."""
        if self._buffer.numel() < count:
            with torch.inference_mode(False):
                self._buffer = torch.empty(count)
        return self._buffer


_SCRATCH = _Scratch()


def scaled_products(
    x: Tensor, derived: Derived, *, step: Tensor | None = None, zero: int = 0, fast: bool = True
) -> Tensor:
    """``float32((x - zero) @ codes.T) * (step * scale)``, summed over groups, for uint8 codes x (m, k).

    Args:
        x: activations; columns behind those of the weight do not count.
        derived: of the weight.
        step: a scale of all activations; None for 1.
        zero: their zero point.
        fast: allow the kernel with the packed weight, which gives the same numbers.
    """
    w, scale = derived.codes, derived.row_scale if step is None else derived.row_scale * step
    columns = w.shape[1]
    if scale.ndim < 2:
        if fast and len(x) >= _PACKED and x.device.type == "cpu" and packed_matmul_is_exact():
            return packed_matmul(x, derived.packed(x.shape[1] - columns), scale, zero)
        acc = int8_matmul(x[:, :columns].contiguous(), w.t())
        return (acc.sub_(derived.sums[:, 0], alpha=zero) if zero else acc).to(torch.float32).mul_(scale)
    size = columns // scale.shape[1]
    total: Tensor | None = None
    for g in range(scale.shape[1]):
        part = slice(g * size, (g + 1) * size)
        acc = int8_matmul(x[:, part].contiguous(), w[:, part].contiguous().t())
        term = acc.sub_(derived.sums[:, g], alpha=zero).to(torch.float32).mul_(scale[:, g])
        total = term if total is None else total.add_(term)
    assert total is not None
    return total
