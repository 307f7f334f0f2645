"""All steps of a recurrence whose hidden state is quantized at every step, as functions to be compiled.

The numbers are those of ``step_of`` and ``product``, bit for bit, which ``loops_are_exact`` checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intact.arithmetic import quantize_tensor, tensor_range
from intact.private import FewRows, few_rows_matmul, int8_product, rows_and_ranges

__all__ = ["gru_steps", "lstm_steps"]


def _whole_product(h: Tensor, w: Tensor, scale: Tensor, sums: Tensor, acc: Tensor) -> Tensor:
    """``h @ w`` with one scale and zero point for all of h."""
    step, zero = tensor_range(h)
    int8_product(quantize_tensor(h, step, zero), w, acc)
    return acc.sub_(sums, alpha=int(zero)).to(torch.float32).mul_(scale * step)


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
    acc = torch.empty(rows, 4 * size, dtype=torch.int32)
    real, base = torch.empty(rows, 4 * size), torch.empty(rows, 4 * size)
    i, f, _, o = base.split(size, 1)
    inner = base.narrow(1, 2 * size, size)
    new, t = torch.empty(rows, size), c.clone()
    c = c.clone()
    step, low, wider, at, w = torch.empty(0), torch.empty(0), torch.empty(rows, 1), size // 4, wide.t()
    xs, outs, least = x.unbind(0), out.unbind(0), torch.full((1,), 1e-8 / 255.0)
    for n in range(steps):
        s = steps - 1 - n if reverse else n
        if sums is not None:
            torch.add(_whole_product(h, w, scale, sums, acc), xs[s], out=base)
        else:
            codes = rows_and_ranges(h)
            step.set_(codes, at, [rows, 1], [at + 2, 1])  # type: ignore[call-overload]
            low.set_(codes, at + 1, [rows, 1], [at + 2, 1])  # type: ignore[call-overload]
            torch.add(step, least, out=wider)
            if few is None:
                real.copy_(int8_product(codes, w, acc)).mul_(scale)
            else:
                real = few_rows_matmul(codes.narrow(1, 0, size), few)
            torch.addcmul(xs[s], low, offsets, out=base)
            base.addcmul_(real, wider)
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
    acc = torch.empty(rows, 3 * size, dtype=torch.int32)
    real, base, new = torch.empty(rows, 3 * size), torch.empty(rows, 3 * size), torch.empty(rows, size)
    (r, z, inner), opened = base.split(size, 1), base.narrow(1, 0, 2 * size)
    step, low, wider, at, w = torch.empty(0), torch.empty(0), torch.empty(rows, 1), size // 4, wide.t()
    xs, ns, outs, least = x.unbind(0), xn.unbind(0), out.unbind(0), torch.full((1,), 1e-8 / 255.0)
    for n in range(steps):
        s = steps - 1 - n if reverse else n
        if sums is not None:
            torch.add(_whole_product(h, w, scale, sums, acc), xs[s], out=base)
        else:
            codes = rows_and_ranges(h)
            step.set_(codes, at, [rows, 1], [at + 2, 1])  # type: ignore[call-overload]
            low.set_(codes, at + 1, [rows, 1], [at + 2, 1])  # type: ignore[call-overload]
            torch.add(step, least, out=wider)
            if few is None:
                real.copy_(int8_product(codes, w, acc)).mul_(scale)
            else:
                real = few_rows_matmul(codes.narrow(1, 0, size), few)
            torch.addcmul(xs[s], low, offsets, out=base)
            base.addcmul_(real, wider)
        opened.sigmoid_()
        torch.addcmul(ns[s], r, inner, out=new)
        h = torch.lerp(new.tanh_(), h, z, out=outs[s])
    return h
