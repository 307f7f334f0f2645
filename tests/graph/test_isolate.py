"""Modules that torch.export refuses stay float, whatever the way in which they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
from intact import CaptureError


class Gate(nn.Module):
    """Control flow on data: torch.export refuses it."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, width))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, *, factor: float = 1.0, other: Tensor | None = None) -> Tensor:
        y = self.drop(x) * self.scale * factor if x.sum() > 0 else x
        return y if other is None else y + other


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(4, 4), Gate(), nn.Linear(4, 2)


class Keywords(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.gate(other=y, factor=2.0, x=y + 1.0))


class Repeated(Net):
    """Called three times, with other shapes, another number of rows, and other settings."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.first(x))
        z = self.gate(torch.stack([y, y], 1), factor=3.0)
        w = self.gate(torch.cat([y, z[:, 0]]))
        return self.last(z.sum(1) + w.reshape(2, -1, 4)[0])


class Twice(Net):
    """One module under two names, in two parents."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), self.gate)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.gate(self.first(x))))


class Structured(nn.Module):
    def forward(self, xs: list[Tensor], options: dict[str, Any], batch: int) -> dict[str, Any]:
        a, b = xs
        if a.sum() > 0:
            a = a * 2.0
        return {"sum": a + b[0], "rest": [options["bias"] + a, None], "batch": batch}


class Structure(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Structured()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        found = self.gate([y, (y, y)[0]], {"bias": self.last.bias.sum(), "mode": "up"}, x.shape[0])
        return self.last(found["sum"] - found["rest"][0]).reshape(found["batch"], 2)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x[x < 0] = 0.0
        return x * 2.0


class Changed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate = InPlace()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.gate(y)
        return self.last(y + z)


class Peek(nn.Module):
    """Looks into a module that is refused, so that it is refused with it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) + self.gate.scale


class Direct(nn.Module):
    """Calls the forward of its child itself, so that nobody sees the call."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gate.forward(x)
        return y * 2.0 if y.sum() > 0 else y


class Opaque:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Opaque:
        return Opaque(x if x.sum() > 0 else -x)


class Wrapped(nn.Module):
    """What its child returns can only be told from inside."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Strange()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.child(x).x
        return y


class Choice(nn.Module):
    """Captured with one setting, refused with the other."""

    def forward(self, x: Tensor, hard: bool) -> Tensor:
        return x * 2.0 if not hard or x.sum() > 0 else x


class Settings(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Choice()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gate(self.gate(self.first(x), False), True))


def chain(*inner: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), *inner, nn.Linear(4, 2))


def lists() -> nn.Sequential:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates = nn.ModuleDict({"a": nn.ModuleList([Gate(), nn.Linear(4, 4)])})

        def forward(self, x: Tensor) -> Tensor:
            for module in self.gates["a"]:
                x = module(x)
            return x

    return chain(Held())


CASES: dict[str, tuple[Any, list[str]]] = {
    "keywords": (Keywords, ["gate"]),
    "repeated": (Repeated, ["gate", "gate", "gate"]),
    "two names": (Twice, ["gate", "inner.1"]),
    "structures": (Structure, ["gate", "gate"]),
    "in place": (Changed, ["gate", "gate"]),
    "looked into": (lambda: chain(Peek()), ["1"]),
    "strange result": (lambda: chain(Wrapped()), ["1"]),
    "one setting": (Settings, ["gate", "gate"]),
    "two in a row": (lambda: chain(Gate(), nn.ReLU(), Gate()), ["1", "3"]),
    "in lists": (lists, ["1.gates.a.0"]),
    "the same twice": (lambda: chain(*[Gate()] * 2), ["1", "2"]),
    "inside another and outside": (lambda: (lambda p: chain(p, p.gate))(Peek()), ["1", "2"]),
    "with its parent": (lambda: chain(nn.Sequential(nn.Linear(4, 4), Direct())), ["1.1"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rest_is_quantized(case: str) -> None:
    make, paths = CASES[case]
    net, x = make().train(), torch.randn(6, 4)
    kinds = [type(m) for m in net.modules()]
    fm = intact.capture(net, x)
    assert [type(m) for m in net.modules()] == kinds and net.training
    assert [n.path for n in fm.graph if n.op == "opaque"] == paths
    net.eval()
    with torch.no_grad():
        for rows in (x, -x, x[:1], torch.randn(11, 4)):
            assert torch.allclose(fm(rows.clone()), net(rows.clone()), atol=1e-6)
    plan = intact.plan(fm)
    refused = {r.path: r.reason for r in plan.rejections if r.op == "opaque"}
    assert sorted(refused) == sorted(set(paths))
    assert all(len(reason) > len("could not be captured, one float call: ") for reason in refused.values())
    linear = [n for n in fm.graph if n.op == "linear"]
    assert len(linear) >= 2 and all(plan.decisions[n.name].integer for n in linear)


@pytest.mark.parametrize("case", CASES)
def test_simulation_and_integer_model_agree(case: str) -> None:
    net, x = CASES[case][0](), torch.randn(6, 4)
    fm = intact.capture(net, x)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x, torch.randn(9, 4)])
    q = intact.convert(qfloat)
    assert torch.equal(qfloat(x), q(x))
    assert all(torch.equal(c, q.codes(x)[name]) for name, c in qfloat.codes(x).items())
    assert intact.compare(net, q, [x], latency=False).samples == 6


def test_capture_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    intact.capture(Keywords(), torch.randn(4, 4))
    assert capfd.readouterr() == ("", "")


def test_an_opaque_module_is_not_the_users() -> None:
    net, x = Keywords(), torch.rand(4, 4) + 1.0
    fm = intact.capture(net, x)
    before = fm(x)
    with torch.no_grad():
        net.gate.scale.mul_(2.0)
    assert torch.equal(fm(x), before)


def test_a_rule_names_one_of_two_names() -> None:
    fm = intact.capture(Twice(), torch.randn(4, 4))
    recipe = intact.Recipe(rules=(intact.Rule(intact.path("inner"), intact.FLOAT),))
    floats = [r.path for r in intact.plan(fm, recipe=recipe).rejections]
    assert floats == ["gate", "inner.0", "inner.1"]


class Rows(Net):
    """Calls its gate once for each row."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.stack([self.gate(row) for row in self.first(x)]))


class OwnResult(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strange = Strange()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.strange(x).x
        return y


@pytest.mark.parametrize(("make", "words"), [(Rows, "own forward"), (OwnResult, "more than tensors")])
def test_what_cannot_be_isolated_is_refused(make: Any, words: str) -> None:
    net = make()
    with pytest.raises(CaptureError, match="own forward") as caught:
        intact.capture(net, torch.randn(4, 4))
    assert words in str(caught.value)
    assert not any(type(m).__name__ == "_Stub" for m in net.modules())


def test_packed_sequences_with_steps_first_are_named() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 4)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.gru(nn.utils.rnn.pack_padded_sequence(x, lengths))[1]
            return y

    with pytest.raises(intact.CaptureError, match="packed sequences"):
        intact.capture(Packed(), (torch.randn(7, 3, 4), torch.tensor([7, 4, 2])))
