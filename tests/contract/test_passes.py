"""What every pass must do: float outputs before and after are equal up to the rounding of reordered sums.

A new pass is found by being a subclass of Pass in a module of intact.graph.passes; it must find something to do on one
of these networks.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil

import pytest
import torch
from torch import Tensor, nn

from intact.graph import FloatModel, passes
from intact.graph import capture as capture_plain
from intact.graph.passes import DEFAULT_PASSES, Pass, transform
from intact.graph.passes.base import TOLERANCE
from tests.parity.cases import CASES
from tests.zoo import ZOO

for _found in pkgutil.iter_modules(passes.__path__):
    importlib.import_module(f"{passes.__name__}.{_found.name}")
PASSES = {p.name: p for p in Pass.__subclasses__()}
SMALL = [e.name for e in ZOO.values() if math.prod(e.input_shape) <= 3 * 32 * 32]
VECTORS = ["conv with batch norm", "transposed conv1d", "transposed conv2d", "constant operands",
           "layer norm and softmax", "norms and slopes"]


class Norms(nn.Module):
    """What is split where there are integers only, and joined where there are floats."""

    def __init__(self) -> None:
        super().__init__()
        self.group, self.slope, self.rms = nn.GroupNorm(2, 4), nn.PReLU(4), nn.RMSNorm(6)
        for p in self.parameters():
            p.data = torch.randn(p.shape)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rms(self.slope(torch.relu(self.group(x))))
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)


@functools.cache
def captured(name: str) -> FloatModel:
    """A network as torch.export gives it, before any pass."""
    if name in ZOO:
        return capture_plain(ZOO[name].build(), ZOO[name].example(4))
    if name == "norms and slopes":
        torch.manual_seed(2)
        return capture_plain(Norms(), torch.randn(4, 4, 5, 6))
    case = next(c for c in CASES if c.name == name)
    torch.manual_seed(2)
    return capture_plain(case.build().eval(), tuple(torch.randn(4, *s) for s in case.shapes))


def tensors(model: FloatModel, batch: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(batch)
    return {n.name: torch.randn([batch, *(int(d) for d in n.shape[1:])], generator=g) for n in model.graph.inputs}


def outputs(model: FloatModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    found: dict[str, Tensor] = {}
    model.run(inputs, lambda node, x: found.__setitem__(node.name, x))
    return [found[name] for name in model.graph.outputs]


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(
        a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * float(a.abs().max())
        for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", [*SMALL, *VECTORS])
@pytest.mark.parametrize("which", PASSES)
def test_outputs_are_equal(which: str, name: str) -> None:
    model, step = captured(name), PASSES[which]()
    params = {k: v.clone() for k, v in model.params.items()}
    after = transform(model, [step])  # which asks for what it ensures
    assert all(torch.equal(v, params[k]) for k, v in model.params.items())
    assert after.signature == model.signature
    for batch in (1, 3):
        inputs = tensors(model, batch)
        assert same(outputs(model, inputs), outputs(after, inputs))


@pytest.mark.parametrize("which", PASSES)
def test_it_is_done_once_it_is_done(which: str) -> None:
    """On some network it does something, and nothing is left of that."""
    step, worked, order = PASSES[which](), False, [p.name for p in DEFAULT_PASSES]
    earlier = DEFAULT_PASSES[: order.index(which) if which in order else 3]
    for name in [*VECTORS, *SMALL]:
        model = transform(captured(name), earlier)  # as it is run
        once = step.run(model)
        changed = once.graph != model.graph or any(not torch.equal(v, model.params[k]) for k, v in once.params.items()
                                                   if k in model.params)
        worked |= changed
        again = step.run(once)
        assert step.ensures(once) is None
        assert again.graph == once.graph, name
        if which != "equalize_channels":  # which measures anew
            assert all(torch.equal(v, once.params[k]) for k, v in again.params.items())
        if changed:
            break
    assert worked


def test_default_passes_are_found() -> None:
    assert {p.name for p in DEFAULT_PASSES} <= set(PASSES)
    assert len(PASSES) == len(Pass.__subclasses__())
