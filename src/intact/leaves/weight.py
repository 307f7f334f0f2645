"""The weight of a leaf as integer codes: a module of plain buffers, which leaves that are tied share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intact.arithmetic import quantize_weight
from intact.errors import NonFiniteError, PlanError
from intact.leaves.group_codes import group_codes, pack, unpack
from intact.leaves.how import Dynamic, Float16, LeafHow, WeightOnly
from intact.observers import weight_qparams
from intact.private import ROW_MARGIN, fingerprint, pack_few_rows, pack_matrix
from intact.proven import few_rows_is_exact
from intact.types import INT8_NARROW, PerChannel, PerGroup, PerTensor, PerToken

__all__ = ["Derived", "QWeight", "column_sizes", "encode", "skeleton"]

_FLOAT16_MAX = 65504.0
_LEAST_COLUMN = 2.0**-40  # of the largest: what is smaller is nothing
# measured on x86 with VNNI: a single row is multiplied with the weight as it lies; from so many rows on, and for small
# weights, laying it out anew is a small part of a product
_FEW_ROWS, _LARGE = 24, 1 << 17
_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


class Derived:
    """What products need besides the codes of a symmetric int8 weight.

    Args:
        codes: int8, its rows on axis 0. Kept, as is ``scale``: their addresses are not to be used again.
        scale: ``()``, ``(rows,)`` or ``(rows, groups)``.
    """

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale
        groups = scale.shape[1] if scale.ndim == 2 else 1
        self.sums = codes.reshape(codes.shape[0], groups, -1).sum(2, dtype=torch.int32)
        self.row_scale = scale if scale.ndim == 2 else scale.reshape(-1).expand(codes.shape[0]).contiguous()
        self.offsets = (self.sums.to(torch.float32) * self.row_scale.reshape(codes.shape[0], -1)).sum(1)

        self.plain = scale.ndim < 2 and codes.ndim == 2 and codes.shape[1] > 1 and codes.device.type == "cpu"
        self.zeros = torch.zeros(codes.shape[0], dtype=torch.int32, device=codes.device)
        self._packed: dict[int, Tensor] = {}
        self._few: Any = None

    @cached_property
    def wide(self) -> Tensor:
        """The codes of a matrix with columns of zeros for what stands behind the codes of rows."""
        return F.pad(self.codes, (0, ROW_MARGIN))

    def packed(self, margin: int) -> Tensor:
        """The codes of a matrix once more, with ``margin`` columns of zeros behind, laid out for the fast product."""
        if margin not in self._packed:
            self._packed[margin] = pack_matrix(F.pad(self.codes, (0, margin)))
        return self._packed[margin]

    def few_rows(self, rows: int) -> Any:
        """The codes and scale for a product with so many rows, where that is fastest; else None."""
        if not (1 < rows < _FEW_ROWS and self.codes.numel() >= _LARGE and few_rows_is_exact()):
            return None
        if self._few is None:
            self._few = pack_few_rows(self.codes, self.row_scale)
        return self._few


class QWeight(nn.Module):
    """Codes of a matrix (rows, columns), or of any tensor with its rows on axis 0.

    ``state_dict`` has ``codes`` and, but for float16, ``scale`` and (not symmetric) ``zero_point``; and ``columns`` if
    it is balanced. Those keep their dtype when the module is moved to another one (``half()``): only ``dtype`` changes.

    Args:
        how: the encoding.
        shape: of the weight.
        codes: int8 (symmetric, 8 bits), uint8 (two a byte for 4 bits), or the float16 weight itself.
        scale: ``()``, ``(rows,)`` or ``(rows, groups)``.
        zero_point: uint8, the shape of ``scale``.
        columns: float32, by which every column is multiplied in the end; None for 1.
        dtype: of the weight, and so of rows that are looked up in it.

    >>> from intact.leaves.how import Dynamic
    >>> w = encode(torch.tensor([[0.5, -1.27]]), Dynamic())
    >>> w.codes.tolist(), w.scale
    ([[50, -127]], tensor([0.0100]))
    """

    like: Tensor
    codes: Tensor
    scale: Tensor | None
    zero_point: Tensor | None
    columns: Tensor | None

    def __init__(
        self, how: LeafHow, shape: tuple[int, ...], codes: Tensor, scale: Tensor | None = None,
        zero_point: Tensor | None = None, columns: Tensor | None = None, *, dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.how, self.shape = how, shape
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("columns", columns)
        self._derived: tuple[object, Derived] | None = None
        self._kept: tuple[object, list[Tensor], Any] | None = None

    def extra_repr(self) -> str:
        """Shape and encoding."""
        return f"{tuple(self.shape)}, {self.how}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": None, "_kept": None}

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight that the codes stand for."""
        return self.like.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # a scale rounded to another dtype is another weight: its bits are moved as integers, whose dtype stays
        for name, value in self._buffers.items():
            if value is not None:
                kept = _BITS.get(value.dtype) if name != "like" else None
                self._buffers[name] = fn(value) if kept is None else fn(value.view(kept)).view(value.dtype)
        return self

    def derived(self) -> Derived:
        """What follows from codes and scales; made again when they were written to."""
        codes, scale = self._buffers["codes"], self._buffers["scale"]  # not by way of Module.__getattr__
        assert codes is not None and scale is not None
        known = self._derived
        if known is not None and known[1].codes is codes and known[1].scale is scale and known[0] == fingerprint(
                (codes, scale)):
            return known[1]
        derived = Derived(codes, scale)
        lasting = not (codes.is_inference() or scale.is_inference())  # those do not say when they are written to
        self._derived = (fingerprint((codes, scale)), derived) if lasting else None
        return derived

    def kept(self, make: Callable[[QWeight], Any]) -> Any:
        """What ``make`` gives for this weight; made again when the weight was written to. None if nobody can tell."""
        parts = [t for t in (self.codes, self.scale, self.zero_point) if t is not None]
        if any(t.is_inference() for t in parts):  # those do not say when they are written to
            return None
        mark = fingerprint(parts)
        if self._kept is None or self._kept[0] != mark:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = mark, parts, make(self)  # the parts stay: their addresses are not to be used again
        return self._kept[2]

    def problem(self) -> str | None:
        """What of codes, scales and zero points cannot be; None if nothing."""
        codes, scale, zero, how = self.codes, self.scale, self.zero_point, self.how
        if scale is None:
            return None if bool(torch.isfinite(codes).all()) else "a weight is not finite"
        if self.columns is not None and not bool(((self.columns > 0) & (self.columns <= 1)).all()):
            return "the size of a column is not between 0 and 1"
        if not bool((torch.isfinite(scale) & (scale >= torch.finfo(torch.float32).tiny)).all()):
            return "a scale is not a positive normal number"
        if isinstance(how, Dynamic) and int(codes.amin()) < -127:
            return "a code is out of range: -128"
        if isinstance(how, WeightOnly) and how.bits == 4:
            if zero is not None and int(zero.amax()) > 15:
                return f"a zero point is out of range: {int(zero.amax())}"
            if _columns(self.shape) % 2 and int(codes[:, -1].amax()) > 15:
                return "a code stands behind the last column"
        return None

    def rows(self, index: Tensor) -> Tensor:
        """The rows of ``index`` (1-d, integers that are not negative), in the dtype of the weight."""
        scale, zero = self.scale, self.zero_point
        per_row = scale is not None and scale.ndim > 0
        # not [index]: it counts from the end where an index is negative, and takes bytes and booleans for masks
        codes, scale, zero = (t.index_select(0, index) if t is not None and (per_row or t is self.codes) else t
                              for t in (self.codes, scale, zero))
        assert codes is not None
        return self._with_columns(self._real(codes, scale, zero)).to(self.dtype)

    def real(self) -> Tensor:
        """The whole weight in its own dtype, for code that looks at it."""
        return self.dequantize().to(self.dtype)

    def dequantize(self) -> Tensor:
        """The whole weight in float32."""
        return self._with_columns(self.without_columns())

    def without_columns(self) -> Tensor:
        """The matrix that inputs are multiplied with which ``columns`` have multiplied before, in float32."""
        return self._real(self.codes, self.scale, self.zero_point)

    def has_columns(self) -> bool:
        """Whether inputs are to be multiplied by ``columns``."""
        return self._buffers["columns"] is not None

    def balanced(self, x: Tensor) -> Tensor:
        """Inputs for :meth:`without_columns`, and for products with the codes."""
        columns = self._buffers["columns"]  # not by way of Module.__getattr__
        return x if columns is None else x.to(torch.float32) * columns

    def _with_columns(self, real: Tensor) -> Tensor:
        return real if self.columns is None else real * self.columns

    def _real(self, codes: Tensor, scale: Tensor | None, zero: Tensor | None) -> Tensor:
        """Float32 numbers of some rows of codes."""
        shape = (codes.shape[0], *self.shape[1:])
        if scale is None:
            return codes.to(torch.float32)
        four = isinstance(self.how, WeightOnly) and self.how.bits == 4
        columns = _columns(self.shape)
        flat = (unpack(codes, columns) if four else codes).reshape(shape[0], columns)
        real = flat.to(torch.float32)
        if four and zero is None:
            real = real.sub_(8.0)
        if scale.ndim == 2:
            real = real.reshape(shape[0], scale.shape[1], columns // scale.shape[1])
        while scale.ndim and scale.ndim < real.ndim:
            scale = scale.unsqueeze(-1)
        if zero is not None:
            real = real.sub_(zero.to(torch.float32).reshape(scale.shape))
        return real.mul_(scale.to(torch.float32)).reshape(shape)


def _columns(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape[1:]:
        count *= n
    return count


def _groups(shape: tuple[int, ...], how: LeafHow, where: str) -> int | None:
    """Groups in a row; None without groups.

    Raises:
        PlanError: if the size does not divide the row.
    """
    if isinstance(how, Float16) or not isinstance(how.weight, PerGroup):
        return None
    columns, size = _columns(shape), how.weight.size
    if columns % size:
        fits = [n for n in (16, 32, 64, 128, 256) if columns % n == 0]
        raise PlanError("groups do not divide the rows of a weight", where=where, got=f"groups of {size} in {columns}",
                        allowed=f"a divisor of {columns}, such as {', '.join(map(str, fits)) or columns}",
                        fix="choose another group size, None for one scale a channel, or leave the layer out "
                            "(spec of quantize_weights)")
    return columns // size


def column_sizes(w: Tensor, power: float) -> Tensor:
    """Root mean squares of the columns of a matrix, to a power; the largest is 1.

    Trained networks have small weights where inputs are large. Columns that are divided by their sizes share a scale
    without loss, and what is rounded stays small where inputs are large. (Müller et al., "SINQ: Sinkhorn-Normalized
    Quantization", 2025, normalise rows and columns in turn; rows have scales of their own here.)

    Args:
        w: finite, (rows, columns).
        power: 1 if only weights are rounded; 1/2 if inputs are too, which are multiplied by the sizes.

    >>> column_sizes(torch.tensor([[4.0, 1.0, 0.0], [-4.0, 1.0, 0.0]]), 1.0)
    tensor([1.0000, 0.2500, 1.0000])
    """
    sizes = w.to(torch.float64).square().mean(0).sqrt()
    sizes = sizes / sizes.amax().clamp(min=torch.finfo(torch.float64).tiny)
    sizes = torch.where(sizes > 0, sizes.clamp(min=_LEAST_COLUMN), torch.ones_like(sizes))  # an empty column has none
    return sizes.pow(power).to(torch.float32)


def encode(weight: Tensor, how: LeafHow, where: str = "", *, product: bool = False) -> QWeight:
    """Codes of a weight.

    Args:
        weight: rows on axis 0.
        how: the encoding.
        where: module path, for errors.
        product: inputs (..., columns) are multiplied with the weight and nothing else: it can be balanced.

    Raises:
        PlanError: if its shape does not fit the encoding, or its numbers float16.
        NonFiniteError: if it holds a NaN or an infinity.
    """
    w, shape = weight.detach().to(torch.float32).contiguous(), tuple(weight.shape)
    if w.numel() == 0 or w.ndim < 2:
        raise PlanError("no matrix to quantize", where=where, got=shape)
    if not bool(torch.isfinite(w).all()):
        bad = int((~torch.isfinite(w)).sum())
        raise NonFiniteError("a weight is not finite", where=where, got=f"{bad} of {w.numel()}")
    groups = _groups(shape, how, where)
    match how:
        case Float16():
            largest = float(w.abs().max())
            if largest > _FLOAT16_MAX:
                raise PlanError("a weight is too large for float16", where=where, got=largest, allowed=_FLOAT16_MAX,
                                fix="quantize the layer to int8, or leave it out")
            return QWeight(how, shape, w.to(torch.float16), dtype=weight.dtype)
        case WeightOnly():
            columns = column_sizes(w, 1.0) if product and how.balance else None
            return _encode_groups(w if columns is None else w / columns, how, weight.dtype, groups, columns)
        case Dynamic():
            columns = column_sizes(w, 0.5) if product and how.balance else None
            w = w if columns is None else w / columns
    if groups is not None:
        rows = w.reshape(shape[0] * groups, -1)
        q = quantize_weight(rows, weight_qparams(rows, INT8_NARROW, PerChannel(0), where=where))
        scale = q.qparams.scale.reshape(shape[0], groups)
        return QWeight(how, shape, q.codes.reshape(shape), scale, None, columns, dtype=weight.dtype)
    assert not isinstance(how.weight, PerGroup | PerToken)
    q = quantize_weight(w, weight_qparams(w, INT8_NARROW, how.weight, where=where))
    return QWeight(how, shape, q.codes, q.qparams.scale, None, columns, dtype=weight.dtype)


def _encode_groups(
    w: Tensor, how: WeightOnly, dtype: torch.dtype, groups: int | None, columns: Tensor | None
) -> QWeight:
    shape = tuple(w.shape)
    rows = w.reshape(1, -1) if isinstance(how.weight, PerTensor) else w.reshape(shape[0] * (groups or 1), -1)
    q = group_codes(rows, how.bits, symmetric=how.symmetric, refine=how.refine, dtype=_scale_dtype(how))
    codes = q.codes.reshape(shape[0], -1)
    if how.bits == 4:
        codes = pack(codes)
    elif how.symmetric:
        codes = (codes ^ 128).view(torch.int8).reshape(shape)
    else:
        codes = codes.reshape(shape)
    grid = _scale_shape(shape, how, groups)
    zero = None if how.symmetric else q.zero.reshape(grid)
    return QWeight(how, shape, codes, q.scale.reshape(grid), zero, columns, dtype=dtype)


def _scale_dtype(how: LeafHow) -> torch.dtype:
    # bfloat16: 16 bits that reach every float32; the codes are chosen for the scale as stored
    grouped = not isinstance(how, Float16) and isinstance(how.weight, PerGroup)
    return torch.bfloat16 if grouped and isinstance(how, WeightOnly) else torch.float32


def _scale_shape(shape: tuple[int, ...], how: LeafHow, groups: int | None) -> tuple[int, ...]:
    if groups is not None:
        return (shape[0], groups)
    per_tensor = not isinstance(how, Float16) and isinstance(how.weight, PerTensor)
    return () if per_tensor else (shape[0],)


def skeleton(weight: Tensor, how: LeafHow, where: str = "", *, product: bool = False) -> QWeight:
    """What :func:`encode` makes, with codes of 0: to be filled by ``load_state_dict``.

    >>> from intact.leaves.how import WeightOnly
    >>> skeleton(torch.zeros(4, 64), WeightOnly()).codes.shape
    torch.Size([4, 32])
    """
    shape = tuple(weight.shape)
    groups = _groups(shape, how, where)
    if isinstance(how, Float16):
        return QWeight(how, shape, torch.zeros(shape, dtype=torch.float16), dtype=weight.dtype)
    scale = torch.ones(_scale_shape(shape, how, groups), dtype=_scale_dtype(how))
    columns = torch.ones(shape[1]) if product and how.balance else None
    if isinstance(how, Dynamic):
        return QWeight(how, shape, torch.zeros(shape, dtype=torch.int8), scale, None, columns, dtype=weight.dtype)
    dtype = torch.int8 if how.symmetric and how.bits == 8 else torch.uint8
    codes = torch.zeros((shape[0], (_columns(shape) + 1) // 2) if how.bits == 4 else shape, dtype=dtype)
    zero = None if how.symmetric else torch.zeros(scale.shape, dtype=torch.uint8)
    return QWeight(how, shape, codes, scale, zero, columns, dtype=weight.dtype)
