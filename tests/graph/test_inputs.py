"""What a forward can be called with: dicts, tuples and lists of tensors, any number of them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import intact
from intact import CalibrationError, CaptureError, IntactError
from intact.graph import capture, tree


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

    def both(self, left: Tensor, right: Tensor) -> Tensor:
        y: Tensor = self.a(left) + self.b(right)
        return y


class OneDict(Base):
    def forward(self, d: dict[str, Any]) -> Tensor:
        return self.both(d["left"], d["more"]["right"])


class Tuples(Base):
    def forward(self, pair: Any, nested: Any) -> Tensor:
        return self.both(*pair) + self.both(nested[0][0], nested[1])


class Many(Base):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.both(*xs[:2]) + sum(self.a(x) for x in xs[2:])  # type: ignore[no-any-return]


class OneAndMany(Base):
    def forward(self, right: Tensor, *xs: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.both(xs[0], right) + sum(self.a(x) for x in xs)
        return y if scale is None else y * scale


class AnyName(Base):
    def forward(self, **inputs: Tensor) -> Tensor:
        return self.both(inputs["left"], inputs["right"])


class Named(Base):
    def forward(self, pair: Pair) -> Tensor:
        return self.both(pair.left, pair.right)


L, R = torch.randn(6, 4), torch.randn(6, 5)
LABELS = torch.arange(6) % 3
#: model, a batch with labels, and what the model is called with
CASES: dict[str, tuple[type[Base], Any, tuple[Any, ...], dict[str, Any]]] = {
    "a dict": (OneDict, {"left": L, "more": {"right": R}}, ({"left": L, "more": {"right": R}},), {}),
    "a dict and labels": (OneDict, ({"left": L, "more": {"right": R}}, LABELS),
                          ({"left": L, "more": {"right": R}},), {}),
    "an ordered dict": (OneDict, [OrderedDict(left=L, more=OrderedDict(right=R))],
                        ({"left": L, "more": {"right": R}},), {}),
    "nested tuples": (Tuples, ((L, R), ((L,), R), LABELS), ((L, R), ((L,), R)), {}),
    "nested lists": (Tuples, ([L, R], [[L], R], LABELS), ([L, R], [[L], R]), {}),
    "any number": (Many, (L, R, L + 1.0), (L, R, L + 1.0), {}),
    "one and any number": (OneAndMany, (R, L, L), (R, L, L), {}),
    "a named tuple": (Named, (Pair(L, R), LABELS), (Pair(L, R),), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_one_call(case: str, tmp_path: Path) -> None:
    make, batch, args, kwargs = CASES[case]
    net = make()
    q = intact.quantize(net, [batch, batch])
    with torch.no_grad():
        assert float((q(*args, **kwargs) - net(*args, **kwargs)).abs().max()) < 0.1
    loaded = intact.load(intact.save(q, tmp_path / "net.intact"))
    assert torch.equal(loaded(*args, **kwargs), q(*args, **kwargs))
    labelled = isinstance(batch, tuple) and batch[-1] is LABELS
    report = intact.compare(net, q, [batch], latency=False)
    assert report.samples == 6 and (report.metric is not None) == labelled


@pytest.mark.parametrize("case", CASES)
def test_the_batch_stays_free(case: str) -> None:
    make, _, args, kwargs = CASES[case]
    net = make()

    def part(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: part(v) for k, v in x.items()}
        if isinstance(x, Pair):
            return Pair(*map(part, x))
        return x[:1] if isinstance(x, Tensor) else type(x)(map(part, x))

    fm = intact.capture(net, args or kwargs)
    with torch.no_grad():
        for change in (lambda x: x, part):
            xs, ys = change(args), change(kwargs)
            assert torch.allclose(fm(*xs, **ys), net(*xs, **ys), atol=1e-6)


def test_keyword_and_variadic_together() -> None:
    net, inputs = OneAndMany(), {"right": R, "scale": torch.rand(6, 1)}
    with pytest.raises(CaptureError):  # xs[0] is missing
        intact.capture(net, inputs)
    net = Keyword()
    q = intact.quantize(net, [{"x": L, "scale": inputs["scale"], "label": LABELS}])
    assert torch.equal(q(x=L, scale=inputs["scale"]), q(L, inputs["scale"]))


class Keyword(Base):
    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        y: Tensor = self.a(x) * scale
        return y


class Settings(Base):
    def forward(self, x: Tensor, flag: bool, right: Tensor) -> Tensor:
        return self.both(x, right) if flag else x


def test_plain_values_become_part_of_the_model() -> None:
    fm = intact.capture(Settings(), (L, True, R))
    assert fm.signature.names == ("x", "right")
    assert fm(L, R).shape == (6, 3)


def test_inputs_of_any_name_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"no name in the signature.*left, right.*wrap the model"):
        intact.quantize(AnyName(), [{"left": L, "right": R}])


def test_a_dict_for_a_tensor() -> None:
    with pytest.raises(CaptureError, match=r"name the keys of the batch \(image, label\) like the arguments"):
        intact.quantize(nn.Linear(4, 3), [{"image": L, "label": LABELS}])
    q = intact.quantize(nn.Linear(4, 3), [L])
    with pytest.raises(IntactError, match="give a batch that is a dict the key 'input'"):
        q({"image": L})
    with pytest.raises(CalibrationError, match="dict with keys image, label"):
        intact.compare(nn.Linear(4, 3), q, [{"input": L}, {"image": L, "label": LABELS}], latency=False)


def test_other_structures_say_what_is_missing() -> None:
    q = intact.quantize(OneDict(), [{"left": L, "more": {"right": R}}])
    with pytest.raises(IntactError, match=r"d\['more'\].*\['rigth'\].*key 'right'"):
        q({"left": L, "more": {"rigth": R}})
    with pytest.raises(IntactError, match=r"tuple of 2"):
        intact.quantize(Tuples(), [((L, R), ((L,), R))])((L, R), (L, R, R))


def test_what_is_taken_for_labels_is_said_where_forward_could_mean_it() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            y = self.fc(x)
            return y if mask is None else y * mask

    x, second = torch.randn(8, 4), torch.ones(8, 3)
    notes = dict(intact.quantize(Masked(), [(x, second)]).info["notes"])
    assert "taken for labels" in notes["mask"] and "'mask' of forward" in notes["mask"]
    for data in ([x], [{"x": x, "mask": second}]):
        assert "mask" not in dict(intact.quantize(Masked(), data).info["notes"])
    assert not any("labels" in text for _, text in intact.quantize(nn.Linear(4, 3), [(x, second)]).info["notes"])


@pytest.mark.parametrize("batch", [1, 2, 3, 9])
@pytest.mark.parametrize("layers", [1, 2])
def test_samples_on_another_axis_than_the_first_are_found(batch: int, layers: int) -> None:
    lstm, x, h = nn.LSTM(4, 4, layers, batch_first=True), torch.randn(batch, 5, 4), torch.randn(layers, batch, 4)
    fm = capture(lstm, (x, (h, h.clone())))
    assert [n.shape for n in fm.graph.inputs] == [("batch", 5, 4), (layers, "batch", 4), (layers, "batch", 4)]
    assert all(v.shape[fm.graph[k].shape.index("batch")] == 1 for k, v in fm.small_example(1).items())
    x, h = torch.randn(6, 5, 4), torch.randn(layers, 6, 4)
    for mine, theirs in zip(tree.leaves(fm(x, (h, h))), tree.leaves(lstm(x, (h, h))), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_positional_inputs_that_are_none_may_be_given_again() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, y: Tensor | None = None) -> Tensor:
            return x if y is None else x + y

    fm, x = capture(Masked(), (torch.ones(2, 3), None, torch.ones(2, 3))), torch.ones(4, 3)
    assert torch.equal(fm(x, None, x), fm(x, x))
    with pytest.raises(IntactError, match="too many inputs"):
        fm(x, x, x)
