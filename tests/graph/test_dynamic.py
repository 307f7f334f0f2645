"""Axes besides the batch that stay free: how they are named, found, held against the model, and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.errors import CalibrationError, CaptureError, IntactError
from intact.graph import FloatModel
from intact.graph.capture import capture


class Flat(nn.Module):
    """Works with one length only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(17, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Skip(nn.Module):
    """Works with even sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return torch.cat([y, nn.functional.interpolate(self.down(self.pool(y)), scale_factor=2.0)], 1)


class Way(nn.Module):
    """Takes another way for multiples of three."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] % 3 else x * 3


class Long(nn.Module):
    """Takes another way for short inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] > 10 else x * 3


class Gate(nn.Module):
    """Cannot be captured."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x * 3


class Two(nn.Module):
    """Two inputs; their lengths are the same only if the second output is there."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined, self.a, self.b = joined, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x, other = self.a(x), self.b(other)
        return x + other if self.joined else x.mean(1) + other.mean(1)


def shapes(fm: FloatModel) -> list[Any]:
    return [n.shape for n in fm.graph.inputs]


def same(fm: FloatModel, net: nn.Module, *xs: Tensor) -> None:
    assert torch.allclose(fm(*xs), net(*xs), atol=1e-4)


@pytest.mark.parametrize("dynamic", [
    {2: "length"}, {-1: "length"}, {"input": {2: "length"}}, ({2: "length"},), {"input": [2]}, {2: True},
    {2: torch.export.Dim("length")}, {2: torch.export.Dim.DYNAMIC}])
def test_axes_are_said_as_in_torch_export(dynamic: Any) -> None:
    net = nn.Conv1d(3, 2, 5, stride=2)
    fm = intact.capture(net, torch.randn(2, 3, 20), dynamic=dynamic)
    assert shapes(fm) == [("batch", 3, "length")]
    assert fm.graph.nodes[-1].shape == ("batch", 2, "(length - 5)//2 + 1")
    for length in (5, 6, 41):
        same(fm, net, torch.randn(3, 3, length))


def test_an_example_of_length_one_will_do() -> None:
    fm = intact.capture(nn.Linear(4, 2), torch.randn(1, 1, 4), dynamic={1: "length"})
    assert fm(torch.randn(3, 9, 4)).shape == (3, 9, 2)


def test_multiples_are_found() -> None:
    net = Skip()
    fm = intact.capture(net, torch.randn(2, 3, 8, 12), dynamic={2: True, 3: True})
    assert shapes(fm) == [("batch", 3, "2*height", "2*width")]
    same(fm, net, torch.randn(1, 3, 2, 30))
    with pytest.raises(IntactError, match="wrong shape"):
        fm(torch.randn(1, 3, 7, 8))
    said = intact.capture(net, torch.randn(2, 3, 8, 12), dynamic={2: "4*h", 3: "2*w"})
    assert shapes(said) == [("batch", 3, "4*h", "2*w")]


def test_another_way_through_forward_is_found() -> None:
    fm = intact.capture(Way(), torch.randn(2, 18), dynamic={1: "length"})
    assert shapes(fm) == [("batch", "3*length")]
    with pytest.raises(CaptureError, match="cannot be left free: with length"):
        intact.capture(Way(), torch.randn(2, 17), dynamic={1: "length"})
    short = intact.capture(Long(), torch.randn(2, 17), dynamic={1: "length"})
    with pytest.raises(IntactError, match="11 and more"):
        short(torch.randn(2, 10))


def test_equal_axes_have_one_name() -> None:
    joined = intact.capture(Two(True), (torch.randn(2, 7, 4), torch.randn(2, 7, 4)),
                            dynamic={"x": {1: "words"}, "other": {1: "marks"}})
    assert shapes(joined) == [("batch", "words", 4)] * 2
    apart = intact.capture(Two(False), (torch.randn(2, 7, 4), torch.randn(2, 7, 4)), dynamic=({1: True}, {1: True}))
    assert shapes(apart) == [("batch", "length", 4), ("batch", "length_2", 4)]
    with pytest.raises(IntactError, match="wrong shape"):
        joined(torch.randn(2, 7, 4), torch.randn(2, 8, 4))


def test_a_range_is_kept() -> None:
    fm = intact.capture(nn.ReLU(), torch.randn(2, 18), dynamic={1: torch.export.Dim("length", min=4, max=20)})
    fm(torch.randn(2, 4)), fm(torch.randn(2, 20))
    for length in (3, 21):
        with pytest.raises(IntactError, match=r"length is out of range.*4 to 20"):
            fm(torch.randn(2, length))


def test_a_program_keeps_its_axes() -> None:
    net = nn.Conv1d(3, 4, 3).eval()
    program = torch.export.export(net, (torch.randn(2, 3, 9),), dynamic_shapes=(
        {0: torch.export.Dim("b"), 2: torch.export.Dim("t", min=5, max=50)},))
    fm = intact.capture(program)
    assert fm.graph.nodes[-1].shape == ("batch", 4, "length - 2")
    same(fm, net, torch.randn(3, 3, 31))


def test_a_module_that_is_not_captured_takes_all_lengths() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Gate(), nn.Linear(4, 2))
    fm = intact.capture(net, torch.randn(2, 7, 4), dynamic={1: "length"})
    assert [n.op for n in fm.graph] == ["input", "linear", "opaque", "linear"]
    assert fm.graph.nodes[2].shape == ("batch", "length", 4)
    same(fm, net, torch.randn(3, 11, 4))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a fixed length": (lambda: intact.capture(Flat(), torch.randn(2, 17), dynamic={"x": {1: "length"}}),
                       r"axis 1 of 'x'.*'head'.*size 17 only"),
    "an unknown input": (lambda: intact.capture(Flat(), torch.randn(2, 17), dynamic={"y": {1: "n"}}), "allowed: x"),
    "an unknown axis": (lambda: intact.capture(Flat(), torch.randn(2, 17), dynamic={"x": {2: "n"}}), "no such axis"),
    "no name": (lambda: intact.capture(Flat(), torch.randn(2, 17), dynamic={"x": {1: "n + 1"}}), "cannot name"),
    "no input": (lambda: intact.capture(Two(True), (torch.randn(2, 7, 4),) * 2, dynamic={1: "n"}), "without an input"),
    "no dict": (lambda: intact.capture(Flat(), torch.randn(2, 17), dynamic="n"), "neither a dict nor"),  # type: ignore
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_free_is_refused(case: str) -> None:
    act, says = REFUSED[case]
    with pytest.raises(CaptureError, match=says):
        act()


def test_axes_that_differ_in_the_data_are_left_free() -> None:
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3))
    q = intact.quantize(net, (x for x in [torch.randn(4, 3, 9), torch.randn(4, 3, 12)]))
    assert q.graph.inputs[0].shape == ("batch", 3, "length")
    assert q(torch.randn(1, 3, 50)).shape == (1, 2, 46)


def test_where_they_cannot_be_free_the_wrong_batch_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"batch 1: an input has the wrong shape.*an axis cannot be left free"):
        intact.quantize(Flat(), [torch.randn(4, 17), torch.randn(4, 18)])


class Masked(nn.Module):
    """Fills up a mask that is too short, as models with caches do: its length is free only with that of the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        missing = ids.shape[1] - mask.shape[1]
        if missing > 0:
            mask = nn.functional.pad(mask, (0, missing))
        places = torch.arange(ids.shape[1])
        y: Tensor = self.head(self.table(ids)) * mask[:, places, None]
        return y


def test_axes_that_are_always_of_one_size_are_one_where_they_must_be() -> None:
    def batch(length: int) -> dict[str, Tensor]:
        return {"ids": torch.randint(0, 9, (4, length)), "mask": torch.ones(4, length)}

    q = intact.quantize(Masked(), [batch(5), batch(7)])
    assert [n.shape for n in q.graph.inputs] == [("batch", "length")] * 2
    assert q(**batch(11)).shape == (4, 11, 2)


def test_sizes_behind_large_strides_are_free(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv1d(1, 4, 10, 5), nn.ReLU(), nn.Conv1d(4, 4, 8, 4), nn.ReLU(), nn.Conv1d(4, 4, 4, 2))
    q = intact.quantize(net, [torch.randn(4, 1, n) for n in (2080, 2280)])
    assert q.graph.nodes[-1].shape == ("batch", 4, "((length//5 - 9)//4 - 3)//2 + 1")
    assert q(torch.randn(2, 1, 3000)).shape == net(torch.randn(2, 1, 3000)).shape
    assert intact.export(q, tmp_path / "net.onnx").codes_differ == 0
    intact.save(q, tmp_path / "net.intact")
    assert intact.load(tmp_path / "net.intact")(torch.randn(1, 1, 999)).shape == net(torch.randn(1, 1, 999)).shape


class Noisy(nn.Module):
    """Gives something a little else where it is captured, as codes may that lie between two."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.layer, self.by = nn.Linear(4, 4), by

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if torch.compiler.is_compiling() else y * (1 + self.by)


def test_codes_between_two_are_no_other_way() -> None:
    x = torch.randn(4, 7, 4)
    for coded, by, fine in ((False, 0.01, False), (True, 0.01, True), (True, 0.3, False)):
        if fine:
            capture(Noisy(by), x, {1: "length"}, coded=coded)
        else:
            with pytest.raises(CaptureError, match="another way"):
                capture(Noisy(by), x, {1: "length"}, coded=coded)
