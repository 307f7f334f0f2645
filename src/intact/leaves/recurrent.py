"""LSTM, GRU and RNN, whole and as cells, on codes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product as product_of
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from intact.errors import IntactError
from intact.leaves.base import Leaf, MakeWeight, constant
from intact.leaves.how import Dynamic, LeafHow, how_to_json
from intact.leaves.product import product
from intact.leaves.recording import operands, recording, tracing
from intact.leaves.recurrent_core import (
    Inputs,
    Kind,
    State,
    Step,
    Steps,
    bias_of,
    inputs_of,
    run_layer,
    run_segments,
    step_of,
)
from intact.leaves.recurrent_steps import gru_steps, lstm_steps
from intact.leaves.weight import QWeight
from intact.private import compiled
from intact.types import PerGroup, PerTensor, PerToken

__all__ = ["Gates", "QRecurrent", "QRecurrentCell", "run_layers"]


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return "lstm"
    if isinstance(module, nn.GRU | nn.GRUCell):
        return "gru"
    return "relu" if module.nonlinearity == "relu" else "tanh"


def _for_many_steps(weight: QWeight) -> Callable[..., Tensor]:
    """The product with a weight; one that is not multiplied as integers is made real once."""
    if isinstance(weight.how, Dynamic) or recording():
        return lambda x, added=None: product(x, weight, added)
    real = weight.without_columns()

    def times(x: Tensor, added: Tensor | None = None) -> Tensor:
        y = F.linear(weight.balanced(x.to(torch.float32)), real)
        return (y if added is None else y + added.to(torch.float32)).to(x.dtype)

    return times


@dataclass(frozen=True, eq=False)
class Gates:
    """Weights and biases of one direction of one layer; the projection is an LSTM's."""

    weight_ih: QWeight
    weight_hh: QWeight
    weight_hr: QWeight | None
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def of_input(self, kind: Kind, x: Tensor) -> Inputs:
        """What inputs give to the gates; all biases are added there, but one of a GRU."""
        return inputs_of(kind, product(x, self.weight_ih, bias_of(kind, self.bias_ih, self.bias_hh)), self.bias_hh)

    def run(self, kind: Kind, x: Tensor, sizes: Sequence[int], state: State, *, reverse: bool) -> tuple[Tensor, State]:
        """One direction of one layer over packed sequences (see :func:`intact.leaves.recurrent_core.run_layer`)."""
        gates = self.of_input(kind, x)
        if self._fused_applies(kind, gates, state):
            with torch.no_grad():
                y, last = run_segments(gates, sizes, state, self._steps(kind, reverse), reverse=reverse)
            if math.isfinite(float(y.sum())):
                return y, last
        return run_layer(gates, sizes, state, self.step(kind), reverse=reverse)

    def _fused_applies(self, kind: Kind, gates: Inputs, state: State) -> bool:
        """Whether all steps can be one function, which takes every hidden state to be finite."""
        how = self.weight_hh.how
        return (kind in ("lstm", "gru") and self.weight_hr is None and isinstance(how, Dynamic)
                and not isinstance(how.weight, PerGroup)
                and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (*gates, *state))
                and state[0].shape[0] > 0 and state[0].shape[1] % 4 == 0
                and not torch.compiler.is_compiling() and loops_are_exact()
                and math.isfinite(float(state[0].sum())))

    def _steps(self, kind: Kind, reverse: bool) -> Steps:
        d, how = self.weight_hh.derived(), self.weight_hh.how
        by_rows = isinstance(how, Dynamic) and isinstance(how.activation, PerToken)
        same = (d.wide if by_rows else d.codes, d.row_scale, d.offsets)
        run, sums = compiled(gru_steps if kind == "gru" else lstm_steps), None if by_rows else d.sums[:, 0]

        def steps(x: Inputs, state: State, out: Tensor) -> State:
            few = d.few_rows(out.shape[1]) if by_rows else None
            found = run(*x, *(s.contiguous() for s in state), *same, out, reverse, few, sums)
            return (found,) if kind == "gru" else found

        return steps

    def step(self, kind: Kind) -> Step:
        """The state after a step."""
        weight = self.weight_hr
        return step_of(kind, _for_many_steps(self.weight_hh), None if weight is None else _for_many_steps(weight))

    def step_alone(self, kind: Kind, x: Tensor, state: State) -> State:
        """The state after the only step of a cell, in operations that a captured graph has: no bias is folded."""
        given = product(x, self.weight_ih, self.bias_ih)
        size = 2 * state[0].shape[1]
        parts = (F.pad(given[:, :size], (0, size // 2)), given[:, size:]) if kind == "gru" else (given,)
        return step_of(kind, lambda h, added: added + product(h, self.weight_hh, self.bias_hh))(parts, state)


def run_layers(
    x: Tensor, sizes: Sequence[int], state: State, gates: Sequence[Gates], kind: Kind, ways: int, dropout: float = 0.0
) -> tuple[Tensor, State]:
    """All layers and directions over packed sequences: outputs of all steps, and the state after the last ones."""
    lasts: list[State] = []
    for first in range(0, len(gates), ways):
        outputs = []
        for way in range(ways):
            cell = gates[first + way]
            before = tuple(s[first + way] for s in state)
            y, last = cell.run(kind, x, sizes, before, reverse=way == 1)
            outputs.append(y)
            lasts.append(last)
        x = torch.cat(outputs, 1) if ways == 2 else outputs[0]
        if dropout and first + ways < len(gates):
            x = F.dropout(x, dropout)
    return x, tuple(torch.stack(parts) for parts in zip(*lasts, strict=True))


@lru_cache(maxsize=1)
@torch.no_grad()
def loops_are_exact() -> bool:
    """Whether the functions of all steps run here and give the numbers of the single steps, bit for bit."""
    g = torch.Generator().manual_seed(0)
    kinds: tuple[tuple[Kind, int, int], ...] = (("lstm", 4, 2), ("gru", 3, 1))
    for rows, size in ((1, 4), (3, 20), (16, 64), (5, 260), (30, 184)):
        for (kind, count, states), how in product_of(kinds, (Dynamic(), Dynamic(activation=PerTensor()))):
            n = count * size
            codes = torch.randint(-127, 128, (n, size), generator=g, dtype=torch.int8)
            weight = QWeight(how, (n, size), codes, torch.rand(n, generator=g) * 0.01)
            state = tuple(torch.randn(rows, size, generator=g) for _ in range(states))
            gates = Gates(weight, weight, None, None, None)
            x = inputs_of(kind, torch.randn(4 * rows, n, generator=g), torch.randn(n, generator=g))
            wanted = run_layer(x, [rows] * 4, state, gates.step(kind), reverse=True)
            try:
                found = run_segments(x, [rows] * 4, state, gates._steps(kind, True), reverse=True)
            except (RuntimeError, AttributeError):  # not compiled for this CPU, or gone from this version of torch
                return False
            if not all(map(torch.equal, (found[0], *found[1]), (wanted[0], *wanted[1]))):
                return False
    return True


class _Cell(nn.Module):
    """Weights and biases of one direction of one layer."""

    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(self, module: nn.Module, suffix: str, make: MakeWeight) -> None:
        super().__init__()

        def weight(name: str) -> QWeight | None:
            value = getattr(module, name + suffix, None)
            return None if value is None else make(value, name + suffix)

        self.weight_ih, self.weight_hh = cast(QWeight, weight("weight_ih")), cast(QWeight, weight("weight_hh"))
        self.weight_hr = weight("weight_hr")
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, constant(getattr(module, name + suffix, None)))

    def gates(self) -> Gates:
        """The same, as values."""
        return Gates(self.weight_ih, self.weight_hh, self.weight_hr, self.bias_ih, self.bias_hh)


class QRecurrent(Leaf):
    """``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` with all their flags.

    The inputs of all steps are multiplied at once; the hidden state is quantized anew at every step.

    >>> import torch, intact
    >>> q = intact.quantize_dynamic(torch.nn.LSTM(3, 4, bidirectional=True))
    >>> y, (h, c) = q(torch.randn(7, 2, 3))
    >>> y.shape, c.shape
    (torch.Size([7, 2, 8]), torch.Size([2, 2, 4]))
    """

    def __init__(self, module: nn.RNNBase, how: LeafHow, make: MakeWeight) -> None:
        super().__init__()
        self.how, self.kind = how, _kind(module)
        self.mode, self.bias = module.mode, module.bias
        self.input_size, self.hidden_size, self.proj_size = module.input_size, module.hidden_size, module.proj_size
        self.num_layers, self.bidirectional = module.num_layers, module.bidirectional
        self.batch_first, self.dropout = module.batch_first, float(module.dropout)
        directions = ("", "_reverse") if module.bidirectional else ("",)
        self.cells = nn.ModuleList(_Cell(module, f"_l{layer}{way}", make)
                                   for layer in range(module.num_layers) for way in directions)

    @classmethod
    def from_float(cls, module: nn.Module, how: LeafHow, make: MakeWeight) -> Self:
        """The leaf in the place of a recurrent layer."""
        return cls(cast(nn.RNNBase, module), how, make)

    def flatten_parameters(self) -> None:
        """Nothing: for code that calls it on recurrent layers."""

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Outputs of all steps, and the last state, as the float layer gives them."""
        if isinstance(input, PackedSequence):
            data, lengths, order, back = input
            hidden = None if hx is None or order is None else order
            y, state = self._packed(data, lengths.tolist(), self._state(hx, data, int(lengths[0]), hidden))
            if back is not None:
                state = tuple(s.index_select(1, back) for s in state)
            return PackedSequence(y, lengths, order, back), self._last(state)
        x = input.unsqueeze(0 if self.batch_first else 1) if input.ndim == 2 else input
        if x.ndim != 3 or x.shape[-1] != self.input_size:
            raise IntactError("the input does not fit a recurrent layer", where=self.mode, got=tuple(input.shape),
                              allowed=f"2 or 3 axes, the last one of {self.input_size}")
        x = x.transpose(0, 1) if self.batch_first else x
        steps, batch, _ = x.shape
        if steps == 0:
            raise IntactError("a sequence has no steps", where=self.mode, got=tuple(input.shape))
        single = input.ndim == 2
        hx = self._unsqueezed(hx) if single and hx is not None else hx
        if recording():
            y, *rest = self._recorded(x, hx)
            state = tuple(rest)
        else:
            flat = x.reshape(steps * batch, self.input_size)
            y, state = self._packed(flat, [batch] * steps, self._state(hx, x, batch, None))
            y = y.reshape(steps, batch, y.shape[-1])
        if single:
            return y[:, 0], self._last(tuple(s[:, 0] for s in state))
        return (y.transpose(0, 1) if self.batch_first else y), self._last(state)

    def _recorded(self, x: Tensor, hx: Any) -> list[Tensor]:
        """One operation for it all."""
        if tracing():
            raise IntactError("torch.jit.trace cannot take a quantized recurrent layer", where=self.mode,
                              fix="call torch.export.export, or intact.export for ONNX")
        gates = [cast(_Cell, cell).gates() for cell in self.cells]
        weights = [t for g in gates for t in (
            *operands(g.weight_ih), *operands(g.weight_hh), *operands(g.weight_hr), g.bias_ih, g.bias_hh)]
        state = [] if hx is None else list(self._state(hx, x, x.shape[1], None))
        settings = {"how": how_to_json(self.how), "kind": self.kind, "ways": 2 if self.bidirectional else 1,
                    "hidden": self.hidden_size, "out": self.proj_size or self.hidden_size}
        found: list[Tensor] = torch.ops.intact.leaf_recurrent(x, state, weights, json.dumps(settings))
        return found

    def _unsqueezed(self, hx: Any) -> Any:
        return tuple(s.unsqueeze(1) for s in hx) if self.kind == "lstm" else hx.unsqueeze(1)

    def _last(self, state: State) -> Any:
        return state if self.kind == "lstm" else state[0]

    def _state(self, hx: Any, like: Tensor, batch: int, order: Tensor | None) -> State:
        """State before the first step, (layers * directions, batch, features) each."""
        cells, out = len(self.cells), self.proj_size or self.hidden_size
        sizes = (out, self.hidden_size) if self.kind == "lstm" else (out,)
        if hx is None:
            return tuple(like.new_zeros(cells, batch, size) for size in sizes)
        state: State = tuple(hx) if self.kind == "lstm" else (hx,)
        for given, size in zip(state, sizes, strict=True):
            if tuple(given.shape) != (cells, batch, size):
                raise IntactError("the initial state does not fit the layer", where=self.mode,
                                  got=tuple(given.shape), allowed=(cells, batch, size))
        return state if order is None else tuple(s.index_select(1, order) for s in state)

    def _packed(self, x: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        gates = [cast(_Cell, cell).gates() for cell in self.cells]
        dropout = self.dropout if self.training else 0.0
        return run_layers(x, sizes, state, gates, self.kind, 2 if self.bidirectional else 1, dropout)

    def extra_repr(self) -> str:
        """Sizes and encoding."""
        layers = f", num_layers={self.num_layers}" if self.num_layers > 1 else ""
        both = ", bidirectional=True" if self.bidirectional else ""
        return f"{self.mode}, {self.input_size}, {self.hidden_size}{layers}{both}, {self.how}"


class QRecurrentCell(Leaf):
    """``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell``.

    >>> import torch, intact
    >>> intact.quantize_dynamic(torch.nn.GRUCell(3, 4))(torch.randn(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(self, module: nn.RNNCellBase, how: LeafHow, make: MakeWeight) -> None:
        super().__init__()
        self.how, self.kind = how, _kind(module)
        self.input_size, self.hidden_size, self.bias = module.input_size, module.hidden_size, module.bias
        self.cell = _Cell(module, "", make)

    @classmethod
    def from_float(cls, module: nn.Module, how: LeafHow, make: MakeWeight) -> Self:
        """The leaf in the place of a cell."""
        return cls(cast(nn.RNNCellBase, module), how, make)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """The state after one step: (h, c) for an LSTM, else h."""
        single = input.ndim == 1
        x = input.unsqueeze(0) if single else input
        if x.ndim != 2:
            raise IntactError("the input does not fit a recurrent cell", where=self.kind, got=tuple(input.shape),
                              allowed="1 or 2 axes")
        count = 2 if self.kind == "lstm" else 1
        if hx is None:
            state = (x.new_zeros(x.shape[0], self.hidden_size),) * count
        else:
            given = tuple(hx) if count == 2 else (hx,)
            state = tuple(s.unsqueeze(0) for s in given) if single else given
            wanted = (x.shape[0], self.hidden_size)
            for s in state:
                if tuple(s.shape) != wanted:
                    raise IntactError("the state does not fit the cell", where=self.kind, got=tuple(s.shape),
                                      allowed=wanted)
        gates = self.cell.gates()
        state = gates.step_alone(self.kind, x, state)
        if single:
            state = tuple(s[0] for s in state)
        return state if count == 2 else state[0]

    def extra_repr(self) -> str:
        """Sizes and encoding."""
        return f"{self.kind}, {self.input_size}, {self.hidden_size}, {self.how}"
