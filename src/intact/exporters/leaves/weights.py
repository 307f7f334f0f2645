"""The weights of quantized layers in ONNX: codes as they are, or real numbers made of them when a session is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from intact.exporters.builder import Builder, onnx_type
from intact.graph import Node
from intact.leaves.how import LeafHow, WeightOnly, how_from_json
from intact.leaves.weight import QWeight
from intact.types import PerGroup

__all__ = ["LeafWeight", "block_of", "integers", "numbers", "packed_blocks", "parameter", "real", "real_transposed",
           "weight_of"]

T = TypeVar("T")
_LEAST_BLOCK, _LARGEST_BLOCK = 16, 256  # of MatMulNBits, powers of two


@dataclass(frozen=True)
class LeafWeight:
    """The codes of a layer and their names in the file."""

    qweight: QWeight
    codes: str
    scale: str | None
    zero: str | None

    @property
    def how(self) -> LeafHow:
        """The encoding."""
        return self.qweight.how

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.qweight.shape

    @property
    def columns(self) -> int:
        """Numbers in a row."""
        return int(np.prod(self.shape[1:]))


def weight_of(b: Builder, n: Node, shape: Sequence[int], prefix: str = "") -> LeafWeight:
    """The weight of a node, by the prefix of its roles."""
    names = [n.params.get(prefix + role) for role in ("codes", "scale", "zero_point")]
    tensors = [None if name is None else b.params[name] for name in names]
    assert names[0] is not None and tensors[0] is not None
    how = how_from_json(n.attrs["settings"]["how"])
    return LeafWeight(QWeight(how, tuple(shape), tensors[0], tensors[1], tensors[2]), names[0], names[1], names[2])


def parameter(b: Builder, n: Node, role: str) -> str | None:
    """A parameter as it is."""
    name = n.params.get(role)
    return None if name is None else b.const(name, b.params[name].detach())


def numbers(b: Builder, values: Sequence[int]) -> str:
    """A constant list of integers, stored once."""
    return b.const(f"integers:{','.join(map(str, values))}", np.array(values, np.int64))


def integers(b: Builder, w: LeafWeight) -> list[str]:
    """int8 codes of each group as the right operand of a product, (columns of the group, rows)."""
    groups = w.qweight.scale.shape[1] if w.qweight.scale is not None and w.qweight.scale.ndim == 2 else 1
    if groups == 1:
        return [_constant(b, ("transposed", w.codes), lambda: _transposed(b, w))]
    parts = w.qweight.codes.t().chunk(groups)
    return [b.const(f"{w.codes}:group{i}", part.contiguous()) for i, part in enumerate(parts)]


def real_transposed(b: Builder, w: LeafWeight) -> str:
    """Float32 numbers as the right operand of a product, made once when a session is opened."""
    return _constant(b, ("real transposed", w.codes),
                     lambda: b.op("Transpose", [real(b, w)], f"{w.codes}:right", perm=[1, 0]))


def _transposed(b: Builder, w: LeafWeight) -> str:
    if _looked_up(b, w.codes):  # stored once, as rows; a session transposes it when it is opened
        return b.op("Transpose", [b.const(w.codes, w.qweight.codes)], f"{w.codes}:transposed", perm=[1, 0])
    return b.const(f"{w.codes}:transposed", w.qweight.codes.t().contiguous())


def _constant(b: Builder, key: tuple[str, ...], make: Callable[[], T]) -> T:
    """What is made of constants, once."""
    if key not in b.shared:
        b.shared[key] = make()
    found: T = b.shared[key]
    return found


def _looked_up(b: Builder, codes: str) -> bool:
    """Whether rows of these codes are read elsewhere: an embedding that is tied to a product."""
    return any(n.op == "leaf_rows" and n.params["codes"] == codes for n in b.graph)


# -- real numbers -------------------------------------------------------------------------------


def real(b: Builder, w: LeafWeight, rows: str | None = None) -> str:
    """Float32 numbers (rows, columns): of all rows, then made once when a session is opened; or of some of them.

    Args:
        b: the builder.
        w: the weight.
        rows: indices, 1-d.
    """
    if rows is None:
        return _constant(b, ("real", w.codes), lambda: _real(b, w, None))
    return _real(b, w, rows)


def _real(b: Builder, w: LeafWeight, rows: str | None) -> str:
    q, base = w.qweight, w.codes
    matrix = q.codes.reshape(q.codes.shape[0], -1)
    codes = _taken(b, b.const(base, matrix), rows)
    four = isinstance(w.how, WeightOnly) and w.how.bits == 4
    y = b.op("Cast", [_unpacked(b, codes, base, w.columns) if four else codes], f"{base}:float",
             to=onnx_type("float32"))
    if q.scale is None or w.scale is None:
        return y
    if four and q.zero_point is None:
        y = b.op("Sub", [y, b.const("number:8", np.array(8.0, np.float32))], f"{base}:centred")
    groups = q.scale.shape[1] if q.scale.ndim == 2 else 0
    if groups:
        y = b.op("Reshape", [y, numbers(b, [-1, groups, w.columns // groups])], f"{base}:groups")
    if w.zero is not None and q.zero_point is not None:
        y = b.op("Sub", [y, _factor(b, w.zero, q.zero_point, rows)], f"{base}:centred")
    y = b.op("Mul", [y, _factor(b, w.scale, q.scale, rows)], f"{base}:real")
    return b.op("Reshape", [y, numbers(b, [-1, w.columns])], f"{base}:rows") if groups else y


def _taken(b: Builder, table: str, rows: str | None) -> str:
    return table if rows is None else b.op("Gather", [table, rows], f"{table}:taken", axis=0)


def _factor(b: Builder, name: str, value: Tensor, rows: str | None) -> str:
    """A scale or zero point as float32 with an axis of one number at its end."""
    y = b.const(name, value)
    if value.ndim:
        y = b.op("Unsqueeze", [_taken(b, y, rows), numbers(b, [-1])], f"{name}:factor")
    return y if value.dtype == torch.float32 else b.op("Cast", [y], f"{name}:float", to=onnx_type("float32"))


def _unpacked(b: Builder, packed: str, base: str, columns: int) -> str:
    """The 4-bit codes of bytes, the one in the low half first."""
    low = b.op("BitwiseAnd", [packed, b.const("code:15", np.array(15, np.uint8))], f"{base}:low")
    high = b.op("BitShift", [packed, b.const("code:4", np.array(4, np.uint8))], f"{base}:high", direction="RIGHT")
    halves = [b.op("Unsqueeze", [h, numbers(b, [2])], f"{base}:half") for h in (low, high)]
    both = b.op("Concat", halves, f"{base}:both", axis=2)
    y = b.op("Reshape", [both, numbers(b, [-1, columns + columns % 2])], f"{base}:codes")
    if columns % 2:
        y = b.op("Slice", [y, *(numbers(b, [v]) for v in (0, columns, 1))], f"{base}:codes")
    return y


# -- the runtime's own product with packed codes ------------------------------------------------


def block_of(w: LeafWeight) -> int | None:
    """Numbers in a block of ``MatMulNBits``, all of one scale; None if the weight has no such form."""
    if not isinstance(w.how, WeightOnly):
        return None
    size = w.how.weight.size if isinstance(w.how.weight, PerGroup) else w.columns
    block = min(size & -size, _LARGEST_BLOCK)
    return block if block >= _LEAST_BLOCK else None


def packed_blocks(b: Builder, w: LeafWeight, block: int) -> list[str]:
    """Operands of ``MatMulNBits`` behind the first: codes, scales and, if there are any, zero points."""
    return _constant(b, ("blocks", w.codes), lambda: _packed_blocks(b, w, block))


def _packed_blocks(b: Builder, w: LeafWeight, block: int) -> list[str]:
    q, how, rows = w.qweight, w.how, w.shape[0]
    assert isinstance(how, WeightOnly) and q.scale is not None and w.scale is not None
    blocks = w.columns // block
    codes = q.codes if q.codes.dtype == torch.uint8 else q.codes.view(torch.uint8) ^ 128  # the code of 0 is 128 there
    shape = [rows, blocks, block * how.bits // 8]
    if q.codes.dtype == torch.uint8 and _looked_up(b, w.codes):
        operand = b.op("Reshape", [b.const(w.codes, codes), numbers(b, shape)], f"{w.codes}:blocks")
    else:
        operand = b.const(f"{w.codes}:blocks", codes.reshape(shape))
    found = [operand, _scales(b, w.scale, q.scale, rows, blocks)]
    if q.zero_point is not None:
        zero = _repeated(q.zero_point, rows, blocks)
        if how.bits == 4:
            zero = torch.nn.functional.pad(zero, (0, blocks % 2))
            zero = zero[:, ::2] | (zero[:, 1::2] << 4)
        found.append(b.const(f"{w.zero}:blocks", zero.reshape(-1).contiguous()))
    return found


def _repeated(value: Tensor, rows: int, blocks: int) -> Tensor:
    """One number for each block."""
    grid = value.reshape(-1, value.shape[1] if value.ndim == 2 else 1)
    return grid.expand(rows, -1).repeat_interleave(blocks // grid.shape[1], 1)


def _scales(b: Builder, name: str, scale: Tensor, rows: int, blocks: int) -> str:
    """Scales as they are stored; a session makes them float32, and as many as there are blocks."""
    y = b.const(name, scale)
    if scale.dtype != torch.float32:
        y = b.op("Cast", [y], f"{name}:float", to=onnx_type("float32"))
    groups = scale.shape[1] if scale.ndim == 2 else 1
    if scale.numel() != rows * blocks:
        y = b.op("Reshape", [y, numbers(b, [-1, groups, 1])], f"{name}:groups")
        y = b.op("Expand", [y, numbers(b, [rows, groups, blocks // groups])], f"{name}:blocks")
    return b.op("Reshape", [y, numbers(b, [-1])], f"{name}:flat")
