"""The recurrences of LSTM, GRU and RNN over any product of a state with a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Kind", "State", "run_layer", "run_segments", "step_of"]

Kind = Literal["lstm", "gru", "tanh", "relu"]
State = tuple[Tensor, ...]
#: the state after a step, from what the input gives to the gates (rows, gates * hidden) and the state before
Step = Callable[[Tensor, State], State]
#: all steps: from what the input gives to the gates (steps, rows, gates * hidden) and the state before, the state after
#: and, written to the third operand, the hidden state after every step (steps, rows, hidden)
Steps = Callable[[Tensor, State, Tensor], State]
Product = Callable[[Tensor], Tensor]


def step_of(kind: Kind, recurrent: Product, projection: Product | None = None) -> Step:
    """One step of a cell, with the formulas of ``torch.nn.LSTM``, ``GRU`` and ``RNN``.

    Args:
        kind: of the cell.
        recurrent: what the last hidden state gives to the gates, bias included.
        projection: of the hidden state of an LSTM.
    """

    def lstm(x: Tensor, state: State) -> State:
        h, c = state
        both, g, o = (x + recurrent(h)).split([2 * c.shape[1], c.shape[1], c.shape[1]], 1)
        i, f = torch.sigmoid(both).chunk(2, 1)
        c = torch.addcmul(f * c, i, torch.tanh(g))
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h if projection is None else projection(h)), c

    def gru(x: Tensor, state: State) -> State:
        (h,) = state
        sizes = [2 * h.shape[1], h.shape[1]]
        (xs, xn), (hs, hn) = x.split(sizes, 1), recurrent(h).split(sizes, 1)
        r, z = torch.sigmoid(xs + hs).chunk(2, 1)
        n = torch.tanh(torch.addcmul(xn, r, hn))
        return (torch.lerp(n, h, z),)

    def plain(x: Tensor, state: State) -> State:
        (h,) = state
        y = x + recurrent(h)
        return (torch.tanh(y) if kind == "tanh" else torch.relu(y),)

    return lstm if kind == "lstm" else gru if kind == "gru" else plain


def run_layer(x: Tensor, sizes: Sequence[int], state: State, step: Step, *, reverse: bool) -> tuple[Tensor, State]:
    """One direction of one layer over sequences packed as ``torch.nn.utils.rnn.PackedSequence`` packs them.

    Args:
        x: what the input gives to the gates, (sum of sizes, gates * hidden): step after step.
        sizes: sequences that have not ended, for each step; never growing.
        state: before the first step, each (sequences, features).
        step: of the cell.
        reverse: from the last step to the first.

    Returns:
        The hidden state after every step, (sum of sizes, features) in the order of ``x``; the state of every sequence
        after its last step.
    """
    parts = x.split(list(sizes))
    outputs: list[Tensor] = []
    for part in reversed(parts) if reverse else parts:
        rows = part.shape[0]
        whole = rows == state[0].shape[0]
        new = step(part, state if whole else tuple(s[:rows] for s in state))
        # sequences that have ended, or not yet begun, keep their state
        state = new if whole else tuple(torch.cat((n, s[rows:])) for n, s in zip(new, state, strict=True))
        outputs.append(new[0])
    if reverse:
        outputs.reverse()
    return torch.cat(outputs), state


def run_segments(
    x: Tensor, sizes: Sequence[int], state: State, steps: Steps, *, reverse: bool
) -> tuple[Tensor, State]:
    """As :func:`run_layer`, with all steps that have the same number of sequences at once."""
    y, segments, begin = x.new_empty(x.shape[0], state[0].shape[1]), [], 0
    for rows, same in groupby(sizes):
        count = len(list(same))
        segments.append((begin, count, rows))
        begin += count * rows
    for begin, count, rows in reversed(segments) if reverse else segments:
        part = slice(begin, begin + count * rows)
        new = steps(x[part].view(count, rows, -1), tuple(s[:rows] for s in state), y[part].view(count, rows, -1))
        state = tuple(torch.cat((n, s[rows:])) for n, s in zip(new, state, strict=True))
    return y, state
