"""All steps of a recurrence whose hidden state is quantized at every step, as functions to be compiled.

The numbers are those of ``step_of`` and ``product``, bit for bit, which ``loops_are_exact`` checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intact.arithmetic import quantize_tensor, tensor_range
from intact.private import FewRows, few_rows_matmul, int8_product, rows_and_ranges

__all__ = ["gru_steps", "lstm_steps"]


_Room = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _room(rows: int, columns: int) -> _Room:
    """What :func:`_add_product` writes to: sums, real numbers, ranges and lowest values of rows, steps; the least step.

    Made once: fresh memory in every step would cost as much as an operation.
    """
    return (torch.empty(rows, columns, dtype=torch.int32), torch.empty(rows, columns), torch.empty(0), torch.empty(0),
            torch.empty(rows, 1), torch.full((1,), 1e-8 / 255.0))


def _add_product(
    x: Tensor, h: Tensor, w: Tensor, scale: Tensor, offsets: Tensor, few: FewRows | None, sums: Tensor | None,
    base: Tensor, room: _Room,
) -> None:
    """``base = x + h @ w``; the operands are those of :func:`lstm_steps`."""
    acc, real, step, low, wider, least = room
    if sums is not None:  # one scale and zero point for all of h
        whole, zero = tensor_range(h)
        int8_product(quantize_tensor(h, whole, zero), w, acc)
        acc.sub_(sums, alpha=int(zero.nan_to_num()))
        torch.add(real.copy_(acc).mul_(scale * whole), x, out=base)
        return
    codes, rows, at = rows_and_ranges(h), h.shape[0], h.shape[1] // 4
    step.set_(codes, at, [rows, 1], [at + 2, 1])  # type: ignore[call-overload]
    low.set_(codes, at + 1, [rows, 1], [at + 2, 1])  # type: ignore[call-overload]
    torch.add(step, least, out=wider)
    if few is None:
        real.copy_(int8_product(codes, w, acc)).mul_(scale)
    else:
        real = few_rows_matmul(codes.narrow(1, 0, h.shape[1]), few)
    torch.addcmul(x, low, offsets, out=base)
    base.addcmul_(real, wider)


def lstm_steps(
    x: Tensor, h: Tensor, c: Tensor, wide: Tensor, scale: Tensor, offsets: Tensor, out: Tensor, reverse: bool,
    few: FewRows | None, sums: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """All steps of an LSTM whose hidden state is quantized at every step, as ``step_of`` and ``product`` do them.

    Args:
        x: what the input gives to the gates, all biases included, float32 (steps, rows, 4 * hidden).
        h: the state before, finite, (rows, hidden); hidden is a multiple of 4.
        c: likewise.
        wide: int8 (4 * hidden, hidden + :data:`intact.private.ROW_MARGIN`), the last columns zeros.
        scale: float32 (4 * hidden,).
        offsets: likewise.
        out: the hidden state after every step, (steps, rows, hidden), is written here.
        reverse: from the last step to the first.
        few: the weight from :func:`pack_few_rows`; None to do without.
        sums: int32 (4 * hidden,), of the rows of the weight, for one scale of all numbers of a step (``wide`` has no
            further columns then); None for one of each row.
    """
    steps, rows, size = out.shape[0], out.shape[1], out.shape[2]
    base, room, w = torch.empty(rows, 4 * size), _room(rows, 4 * size), wide.t()
    i, f, _, o = base.split(size, 1)
    inner = base.narrow(1, 2 * size, size)
    new, t = torch.empty(rows, size), c.clone()
    c = c.clone()
    xs, outs = x.unbind(0), out.unbind(0)
    for n in range(steps):
        s = steps - 1 - n if reverse else n
        _add_product(xs[s], h, w, scale, offsets, few, sums, base, room)
        torch.tanh(inner, out=new)
        base.sigmoid_()  # of one gate in vain: a call more would take longer
        c.mul_(f).addcmul_(i, new)
        h = torch.mul(o, torch.tanh(c, out=t), out=outs[s])
    return h, c


def gru_steps(
    x: Tensor, xn: Tensor, h: Tensor, wide: Tensor, scale: Tensor, offsets: Tensor, out: Tensor, reverse: bool,
    few: FewRows | None, sums: Tensor | None,
) -> Tensor:
    """All steps of a GRU; the operands are those of :func:`lstm_steps`, but for three gates.

    Args:
        x: what is added to the product of the hidden state: for the last gate its own bias only.
        xn: what the input gives to the last gate, float32 (steps, rows, hidden).
        h: the state before.
        wide: int8.
        scale: float32.
        offsets: likewise.
        out: the hidden states.
        reverse: the direction.
        few: the weight.
        sums: of its rows.
    """
    steps, rows, size = out.shape[0], out.shape[1], out.shape[2]
    base, room, w = torch.empty(rows, 3 * size), _room(rows, 3 * size), wide.t()
    (r, z, inner), opened = base.split(size, 1), base.narrow(1, 0, 2 * size)
    xs, ns, outs, new = x.unbind(0), xn.unbind(0), out.unbind(0), torch.empty(rows, size)
    for n in range(steps):
        s = steps - 1 - n if reverse else n
        _add_product(xs[s], h, w, scale, offsets, few, sums, base, room)
        opened.sigmoid_()
        torch.addcmul(ns[s], r, inner, out=new)
        h = torch.lerp(new.tanh_(), h, z, out=outs[s])
    return h
