"""The recurrences of LSTM, GRU and RNN over any product of a state with a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Inputs", "Kind", "State", "bias_of", "inputs_of", "run_layer", "run_segments", "step_of"]

Kind = Literal["lstm", "gru", "tanh", "relu"]
State = tuple[Tensor, ...]
Inputs = tuple[Tensor, ...]
#: the state after a step, from what the input gives to the gates (its parts (rows, features)) and the state before
Step = Callable[[Inputs, State], State]
#: all steps: from what the input gives to the gates (its parts (steps, rows, features)) and the state before, the state
#: after and, written to the third operand, the hidden state after every step (steps, rows, hidden)
Steps = Callable[[Inputs, State, Tensor], State]
#: the product of a hidden state with the recurrent weight, plus the second operand (rows, gates * hidden)
Recurrent = Callable[[Tensor, Tensor], Tensor]


def inputs_of(kind: Kind, x: Tensor, bias: Tensor | None) -> Inputs:
    """What the input gives to the gates, in the parts that a step takes.

    For a GRU these are what is added to the recurrent product, and what is added to the last gate after it was reset.

    Args:
        kind: of the cell.
        x: the product of the input with its weight, its biases of :func:`bias_of` added, (rows, gates * hidden);
            overwritten.
        bias: of the recurrent product.
    """
    if kind != "gru":
        return (x,)
    size = x.shape[1] // 3
    inner, new = x[:, 2 * size :], x[:, 2 * size :].clone(memory_format=torch.contiguous_format)
    if bias is None:
        inner.zero_()
    else:
        inner.copy_(bias[2 * size :].expand_as(inner))
    return x, new


def bias_of(kind: Kind, bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor | None:
    """What is added to the product of the input: for a GRU, the last gate's recurrent bias is not."""
    if bias_ih is None or bias_hh is None:
        return bias_ih if bias_hh is None else bias_hh
    if kind != "gru":
        return bias_ih + bias_hh
    size = bias_ih.shape[0] // 3
    return torch.cat((bias_ih[: 2 * size] + bias_hh[: 2 * size], bias_ih[2 * size :]))


def step_of(kind: Kind, recurrent: Recurrent, projection: Callable[[Tensor], Tensor] | None = None) -> Step:
    """One step of a cell, with the formulas of ``torch.nn.LSTM``, ``GRU`` and ``RNN``.

    Args:
        kind: of the cell.
        recurrent: what the last hidden state gives to the gates, and what is added to it.
        projection: of the hidden state of an LSTM.
    """

    def lstm(x: Inputs, state: State) -> State:
        h, c = state
        gates = recurrent(h, x[0])
        i, f, _, o = torch.sigmoid(gates).chunk(4, 1)
        c = torch.addcmul(f * c, i, torch.tanh(gates.chunk(4, 1)[2]))
        h = o * torch.tanh(c)
        return (h if projection is None else projection(h)), c

    def gru(x: Inputs, state: State) -> State:
        (h,) = state
        gates = recurrent(h, x[0])
        r, z, inner = gates.chunk(3, 1)
        r, z = torch.sigmoid(gates[:, : 2 * r.shape[1]]).chunk(2, 1)
        n = torch.tanh(torch.addcmul(x[1], r, inner))
        return (torch.lerp(n, h, z),)

    def plain(x: Inputs, state: State) -> State:
        y = recurrent(state[0], x[0])
        return (torch.tanh(y) if kind == "tanh" else torch.relu(y),)

    return lstm if kind == "lstm" else gru if kind == "gru" else plain


def run_layer(x: Inputs, sizes: Sequence[int], state: State, step: Step, *, reverse: bool) -> tuple[Tensor, State]:
    """One direction of one layer over sequences packed as ``torch.nn.utils.rnn.PackedSequence`` packs them.

    Args:
        x: what the input gives to the gates, each part (sum of sizes, features): step after step.
        sizes: sequences that have not ended, for each step; never growing.
        state: before the first step, each (sequences, features).
        step: of the cell.
        reverse: from the last step to the first.

    Returns:
        The hidden state after every step, (sum of sizes, features) in the order of ``x``; the state of every sequence
        after its last step.
    """
    parts = list(zip(*(p.split(list(sizes)) for p in x), strict=True))
    outputs: list[Tensor] = []
    for part in reversed(parts) if reverse else parts:
        rows = part[0].shape[0]
        whole = rows == state[0].shape[0]
        new = step(part, state if whole else tuple(s[:rows] for s in state))
        # sequences that have ended, or not yet begun, keep their state
        state = new if whole else tuple(torch.cat((n, s[rows:])) for n, s in zip(new, state, strict=True))
        outputs.append(new[0])
    if reverse:
        outputs.reverse()
    return torch.cat(outputs), state


def run_segments(
    x: Inputs, sizes: Sequence[int], state: State, steps: Steps, *, reverse: bool
) -> tuple[Tensor, State]:
    """As :func:`run_layer`, with all steps that have the same number of sequences at once."""
    y, segments, begin = x[0].new_empty(x[0].shape[0], state[0].shape[1]), [], 0
    for rows, same in groupby(sizes):
        count = len(list(same))
        segments.append((begin, count, rows))
        begin += count * rows
    for begin, count, rows in reversed(segments) if reverse else segments:
        xs, ys = (tuple(t[begin : begin + count * rows].view(count, rows, -1) for t in ts) for ts in (x, (y,)))
        new = steps(xs, tuple(s[:rows] for s in state), ys[0])
        state = tuple(torch.cat((n, s[rows:])) for n, s in zip(new, state, strict=True))
    return y, state
