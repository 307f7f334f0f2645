"""The recurrences of LSTM, GRU and RNN over any product of a state with a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Kind", "State", "run_layer", "step_of"]

Kind = Literal["lstm", "gru", "tanh", "relu"]
State = tuple[Tensor, ...]
#: the state after a step, from what the input gives to the gates (rows, gates * hidden) and the state before
Step = Callable[[Tensor, State], State]
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
        i, f, g, o = (x + recurrent(h)).chunk(4, 1)
        c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h if projection is None else projection(h)), c

    def gru(x: Tensor, state: State) -> State:
        (h,) = state
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), recurrent(h).chunk(3, 1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(torch.addcmul(xn, r, hn))
        return (n + z * (h - n),)

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
