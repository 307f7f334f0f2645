"""Capture: whatever the module is like, it stays as it was, and what cannot be captured says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
from intact import CaptureError


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
                         nn.Linear(144, 5))


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(3))


# -- the user's module -------------------------------------------------------------------------------


def test_every_mode_is_restored() -> None:
    net = small().train()
    net[1].eval()
    before = [m.training for m in net.modules()]
    fm = intact.capture(net, images())
    intact.quantize(net, [images()])
    assert [m.training for m in net.modules()] == before
    with torch.no_grad():
        assert torch.allclose(fm(images()), net.eval()(images()), atol=1e-5)


def test_modes_are_restored_after_a_failure() -> None:
    net = small().train()
    with pytest.raises(CaptureError):
        intact.capture(net, torch.randn(2, 5, 8, 8))
    assert all(m.training for m in net.modules())


def test_state_hooks_and_gradients_are_unchanged() -> None:
    net = small().train()
    calls: list[str] = []
    net[0].register_forward_hook(lambda *a: calls.append("hook"))
    net[5].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    hooks = [list(m._forward_hooks) for m in net.modules()]
    kinds = [type(m) for m in net.modules()]
    intact.quantize(net, [images()])
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [list(m._forward_hooks) for m in net.modules()] == hooks
    assert [type(m) for m in net.modules()] == kinds
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, True, False, True]
    calls.clear()
    net(images())
    assert calls == ["hook"]


def test_the_model_is_not_aliased() -> None:
    net = nn.Linear(3, 2)
    fm = intact.capture(net, torch.randn(2, 3))
    before = fm.params["weight"].clone()
    with torch.no_grad():
        net.weight.add_(1.0)
    assert torch.equal(fm.params["weight"], before)


# -- reuse -------------------------------------------------------------------------------------------


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.b(self.act(self.a(x)) * 100.0)))


def test_a_module_used_twice_has_two_scales() -> None:
    q = intact.quantize(Reused(), [torch.randn(64, 4)])
    reads = [b.inputs[0] for b in q.bindings.values() if b.op == "linear"]
    assert len(reads) == 3
    assert len({float(p.scale) for p in reads}) == 3
    assert float(reads[2].scale) > 5 * float(reads[0].scale)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def weights_of(q: intact.QModel) -> list[Tensor]:
    found = [b.weight.codes for b in q.bindings.values() if b.weight is not None]
    assert len(found) == 2
    return found


def test_a_tied_weight_has_one_quantizer(tmp_path: Path) -> None:
    x = torch.randn(32, 6)
    fm = intact.capture(Tied(), x)
    assert [k for k in fm.params if k.endswith("weight")] == ["a.weight"]
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
    assert list(qfloat.plan.weights) == ["a.weight"]
    q = intact.convert(qfloat)
    a, b = weights_of(q)
    assert a.data_ptr() == b.data_ptr()
    loaded = intact.load(intact.save(q, tmp_path / "tied.intact"))
    a, b = weights_of(loaded)
    assert a.data_ptr() == b.data_ptr()
    assert torch.equal(loaded(x), q(x))


# -- inputs and outputs ------------------------------------------------------------------------------


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        return {"first": a, "rest": (b, [a + 1.0, {"deep": b * 2.0}]), "none": None, "n": 3}


class Dict(Nested):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": self.a(x), "b": self.b(x)}


class Pair(Nested):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def same_structure(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and bool(((a - b).abs() < 0.1).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same_structure(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_structure, a, b))
    return bool(a == b)


@pytest.mark.parametrize("kind", [Dict, Pair, Nested])
def test_outputs_keep_their_structure(kind: type[nn.Module], tmp_path: Path) -> None:
    net, x = kind(), torch.randn(32, 4)
    q = intact.quantize(net, [x])
    with torch.no_grad():
        want = net(x)
    assert same_structure(want, intact.capture(net, x)(x))
    assert same_structure(want, q(x))
    assert same_structure(want, intact.load(intact.save(q, tmp_path / "net.intact"))(x))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.a(left) - self.b(right)


def test_inputs_by_name_in_any_order() -> None:
    net = Two()
    batch = {"right": torch.randn(8, 5), "left": torch.randn(8, 4)}
    fm = intact.capture(net, batch)
    with torch.no_grad():
        assert torch.allclose(fm(**batch), net(**batch))
    q = intact.quantize(net, [batch])
    assert torch.equal(q(**batch), q(left=batch["left"], right=batch["right"]))
    positional = intact.quantize(net, [(batch["left"], batch["right"])])
    assert torch.equal(positional(batch["left"], batch["right"]), q(**batch))


class OneDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Two()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.inner(batch["left"], batch["right"])


def test_one_argument_that_is_a_dict() -> None:
    net, batch = OneDict(), {"left": torch.randn(8, 4), "right": torch.randn(8, 5)}
    fm = intact.capture(net, (batch,))
    with torch.no_grad():
        assert torch.allclose(fm(batch), net(batch))


class Variadic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, *xs: Tensor) -> Tensor:
        y = xs[0]
        for x in xs[1:]:
            y = y + x
        return self.linear(y)


def test_any_number_of_positional_inputs() -> None:
    net, xs = Variadic(), tuple(torch.randn(8, 4) for _ in range(3))
    fm = intact.capture(net, xs)
    with torch.no_grad():
        assert torch.allclose(fm(*xs), net(*xs))
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [xs])
    assert torch.equal(intact.convert(qfloat)(*xs), qfloat(*xs))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_stays_free(batch: int) -> None:
    net = small().eval()
    fm = intact.capture(net, images(batch))
    for n in (1, 3, 7):
        with torch.no_grad():
            assert torch.allclose(fm(images(n)), net(images(n)), atol=1e-5)
    q = intact.quantize(net, [images(batch)])
    assert q(images(7)).shape == (7, 5)


# -- what cannot be captured -------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if x.sum() > 0 else x


class WithBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(4, 4), Branching(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gate(self.first(x)))


def test_control_flow_stays_float_by_name_and_reason() -> None:
    net, x = WithBranch(), torch.randn(16, 4)
    fm = intact.capture(net, x)
    assert isinstance(net.gate, Branching)
    plan = intact.plan(fm)
    (rejection,) = (r for r in plan.rejections if r.op == "opaque")
    assert rejection.path == "gate" and "could not be captured" in rejection.reason
    assert len(rejection.reason) > len("could not be captured, one float call: ")
    assert [n.path for n in fm.graph if plan.decisions[n.name].integer] == ["first", "last"]
    with torch.no_grad():
        for sign in (x, -x):
            assert torch.allclose(fm(sign), net(sign), atol=1e-6)
    q = intact.quantize(net, [x])
    assert q(x[:3]).shape == (3, 2)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (self.linear(x),))  # type: ignore[no-any-return]


def test_conditions_stay_float_with_the_reason() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), Conditional()), torch.randn(16, 4)
    fm = intact.capture(net, x)
    (reason,) = (call.reason for call in fm.opaque.values())
    assert "control flow" in reason and "cond" in reason
    with torch.no_grad():
        for sign in (x, -x):
            assert torch.allclose(fm(sign), net(sign), atol=1e-6)


class BranchAtTop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else x


def test_a_branch_in_the_models_own_forward_is_refused() -> None:
    with pytest.raises(CaptureError, match="own forward") as caught:
        intact.capture(BranchAtTop(), torch.randn(4, 4))
    assert "BranchAtTop" in str(caught.value)


def test_what_is_quantized_already_is_refused() -> None:
    net, x = small().eval(), images()
    fm = intact.capture(net, x)
    prepared = intact.prepare(fm, intact.plan(fm))
    with pytest.raises(CaptureError, match="already quantized"):
        intact.capture(prepared, x)
    with pytest.raises(CaptureError, match="already quantized"):
        intact.capture(nn.Sequential(prepared), x)


def test_what_is_no_module_is_refused() -> None:
    for other in (torch.relu, nn.Linear, intact.quantize(nn.Linear(3, 2), [torch.randn(8, 3)]), None):
        with pytest.raises(CaptureError, match=r"not a torch\.nn\.Module"):
            intact.capture(other, torch.randn(2, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(CaptureError, match="float32"):
        intact.capture(nn.Linear(3, 2).to(dtype), torch.randn(2, 3, dtype=dtype))


@pytest.mark.parametrize("example", [torch.empty(0, 3), "x", 3, ()])
def test_examples_that_are_none(example: Any) -> None:
    with pytest.raises(CaptureError):
        intact.capture(nn.Linear(3, 2), example)


def test_stubs_of_torch_are_identities() -> None:
    stubs = pytest.importorskip("torch.ao.quantization.stubs")

    class Stubbed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.fc, self.dequant = stubs.QuantStub(), nn.Linear(4, 4), stubs.DeQuantStub()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.dequant(self.fc(self.quant(x)))
            return y

    net, x = Stubbed(), torch.randn(3, 4)
    for model in (net, stubs.QuantWrapper(nn.Linear(4, 4))):
        fm = intact.capture(model, x)
        assert [n.op for n in fm.graph] == ["input", "linear"] and torch.equal(fm(x), model(x))


class Random(nn.Module):
    """Gives something else in every call, also in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(3)


def test_a_model_of_random_numbers_is_refused_as_such() -> None:
    with pytest.raises(CaptureError, match=r"something else in every call.*random numbers"):
        intact.capture(Random(), torch.randn(4, 3))


class LargeScores(nn.Module):
    """Attention to keys far apart, some of them hidden."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask[:, None])


def test_what_a_mask_hides_stays_hidden_however_large_the_scores_are() -> None:
    x, mask = torch.randn(4, 6, 8) * 1e3, torch.tensor([True] * 4 + [False] * 2).expand(4, 6)
    found = intact.capture(LargeScores(), {"x": x, "mask": mask}).run({"x": x, "mask": mask})
    torch.testing.assert_close(found, LargeScores()(x, mask))


def test_rows_of_which_all_is_hidden_are_noted() -> None:
    x, mask = torch.randn(4, 6, 8), torch.zeros(4, 6, dtype=torch.bool)
    found = intact.capture(LargeScores(), {"x": x, "mask": mask})
    assert any("differs from the model on the example" in text for _, text in found.notes)
