"""Saved and loaded: the same model, bit for bit, in any process; and what cannot be saved."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.engine.artifact_tools import join, split
from tests.zoo import ZOO
from torch import Tensor, nn

import intact.api as api
from intact.engine.artifact import load, save
from intact.engine.op_schema import OPS
from intact.engine.qmodel import QModel
from intact.engine.shapes import RULES
from intact.errors import ArtifactError
from intact.graph import Node
from intact.graph.float_ops import FLOAT_OPS, run_float
from intact.kernels import KERNELS, MOVES, UNARY_OPS
from intact.leaves.operations import LEAF_OPS
from intact.targets import TARGETS

ROOT = Path(__file__).parents[2]


def quantized(name: str) -> tuple[QModel, Tensor]:
    entry = ZOO[name]
    return api.quantize(entry.build(), [entry.example(8)]), entry.example(3, seed=5)


@pytest.fixture(scope="module")
def small() -> tuple[QModel, Tensor]:
    return quantized("autoencoder")


def seeded(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return net


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for item in items for t in tensors(item)]


def assert_same(q: QModel, again: QModel, *args: Any, **kwargs: Any) -> None:
    want, got = q.codes(*args, **kwargs), again.codes(*args, **kwargs)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) and want[k].dtype == got[k].dtype for k in want)
    left, right = q(*args, **kwargs), again(*args, **kwargs)
    assert type(left) is type(right)
    assert list(left) == list(right) if isinstance(left, dict) else True
    assert all(torch.equal(a, b) for a, b in zip(tensors(left), tensors(right), strict=True))


# -- round trip ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "vit_sdpa", "detector_dict", "unet_bilinear", "keyword"])
def test_round_trip_of_a_network(name: str, tmp_path: Path) -> None:
    q, x = quantized(name)
    path = save(q, tmp_path / "net.intact")
    again = load(path)
    assert_same(q, again, x)
    assert repr(again) == repr(q)
    assert dict(again.info) == dict(q.info)
    assert again.graph == q.graph
    assert again.target is TARGETS["onnxruntime"]
    assert save(again, tmp_path / "again.intact").read_bytes() == path.read_bytes()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(4, 5)

    def forward(self, left: Tensor, right: dict[str, Tensor]) -> dict[str, Any]:
        y = torch.relu(self.a(left)) + self.b(right["z"])
        return {"second": y, "first": (y.cumsum(1), 3)}


def test_named_and_nested_inputs_and_outputs(tmp_path: Path) -> None:
    q = api.quantize(seeded(TwoInputs()), [{"left": noise(8, 6), "right": {"z": noise(8, 4)}}])
    again = load(save(q, tmp_path / "net.intact"))
    left, right = noise(3, 6, seed=1), {"z": noise(3, 4, seed=2)}
    want, got = q(left=left, right=right), again(left, right)
    assert list(got) == ["second", "first"]
    assert got["first"][1] == 3
    assert torch.equal(want["second"], got["second"])
    assert torch.equal(want["first"][0], got["first"][0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.mix(self.mix(self.embed(ids)))
        return self.head(x)


def test_a_tied_weight_is_stored_once_and_shared_after_loading(tmp_path: Path) -> None:
    q = api.quantize(seeded(Tied()), [torch.arange(56).reshape(8, 7) % 7])
    path = save(q, tmp_path / "net.intact")
    again = load(path)
    assert_same(q, again, torch.arange(14).reshape(2, 7) % 7)
    mixes = [b.weight for b in again.bindings.values() if b.weight is not None and b.weight.codes.shape == (6, 6)]
    assert len(mixes) == 2
    assert mixes[0] is mixes[1]
    assert sum(name.startswith("codes/mix") for name in split(path.read_bytes()).table) == 1


def test_other_safetensors_readers_open_it(small: tuple[QModel, Tensor], tmp_path: Path) -> None:
    path = save(small[0], tmp_path / "net.intact")
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        codes = {n: file.get_tensor(n) for n in names if n.startswith("codes/")}
    assert {"scales", "zero_points"} <= names
    assert {t.dtype for t in codes.values()} == {torch.int8}


def test_scales_keep_every_bit(small: tuple[QModel, Tensor], tmp_path: Path) -> None:
    q = small[0]
    again = load(save(q, tmp_path / "net.intact"))
    for name, p in q.qparams.items():
        assert torch.equal(p.scale.view(torch.int32), again.qparams[name].scale.view(torch.int32))


def test_an_infinite_attribute_is_standard_json(tmp_path: Path) -> None:
    net = seeded(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    path = save(api.quantize(net, [noise(8, 4)]), tmp_path / "net.intact")
    assert b"Infinity" not in path.read_bytes()
    assert load(path).graph.nodes[-1].attrs["activation"] == [0.0, float("inf")]


CHILD = """
import sys, torch
from safetensors.torch import load_file
from intact.engine.artifact import load
q, data = load(sys.argv[1]), load_file(sys.argv[2])
codes = q.codes(data["x"])
assert not [m for m in sys.modules if m.startswith("tests")]
assert all(torch.equal(codes[k], data[f"codes/{k}"]) for k in codes)
assert torch.equal(q(data["x"]), data["y"])
assert "torch._dynamo" not in sys.modules  # takes longer to import than all else
"""

def python(script: str, *args: object, **env: str) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script, *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False,
                            env={**os.environ, "PYTHONPATH": paths, **env})
    assert result.returncode == 0, result.stderr


def test_a_fresh_process_gives_the_same_bits(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    q, x = quantized("vit_softmax")
    expected = {f"codes/{k}": v.contiguous().clone() for k, v in q.codes(x).items()}
    save_file({"x": x, "y": q(x), **expected}, tmp_path / "expected")
    python(CHILD, save(q, tmp_path / "net.intact"), tmp_path / "expected")


# -- the same bytes -----------------------------------------------------------------------------


def shuffled(value: Any, seed: int) -> Any:
    items = list(value.items())
    random.Random(seed).shuffle(items)
    return dict(items)


def test_the_order_of_dicts_does_not_matter(tmp_path: Path) -> None:
    q, _ = quantized("vit_sdpa")
    digests = set()
    for seed in range(3):
        nodes = tuple(replace(n, attrs=shuffled(n.attrs, seed), params=shuffled(n.params, seed)) for n in q.graph)
        other = replace(q, graph=replace(q.graph, nodes=nodes), bindings=shuffled(q.bindings, seed),
                        qparams=shuffled(q.qparams, seed), float_params=shuffled(q.float_params, seed),
                        info=shuffled(q.info, seed))
        digests.add(hashlib.sha256(save(other, tmp_path / f"{seed}").read_bytes()).hexdigest())
    assert len(digests) == 1


def make(path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5),
                            nn.Softmax(1))
        save(api.quantize(net, [torch.randn(4, 3, 8, 8)]), path)


MAKER = """
import pathlib, sys, warnings; warnings.simplefilter("ignore")
from tests.engine.test_artifact import make
make(pathlib.Path(sys.argv[1]))
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "here")
    python(MAKER, tmp_path / "there", PYTHONHASHSEED="7")
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


# -- writing ------------------------------------------------------------------------------------


def test_an_existing_file_is_replaced_and_nothing_else_is_left(small: tuple[QModel, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "net.intact"
    path.write_text("old")
    save(small[0], path)
    load(path)
    assert os.listdir(tmp_path) == ["net.intact"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_leaves_the_old_file(call: str, small: tuple[QModel, Tensor], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.intact"
    path.write_text("old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ArtifactError, match="No space left"):
        save(small[0], path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["net.intact"]


def test_a_link_is_followed(small: tuple[QModel, Tensor], tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    save(small[0], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    load(tmp_path / "real")


@pytest.mark.parametrize("path", ["", "missing/net.intact", ".", os.devnull, "a\0b", None, 3])
def test_a_path_that_cannot_be_written(path: Any, small: tuple[QModel, Tensor], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("intact.engine.artifact.encode", lambda q: pytest.fail("work was done first"))
    with pytest.raises(ArtifactError, match="cannot be written"):
        save(small[0], path)


def test_a_folder_without_permission(small: tuple[QModel, Tensor], tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *a: False)  # root may write anywhere
    with pytest.raises(ArtifactError, match="not writable"):
        save(small[0], tmp_path / "net.intact")


class Data(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def test_an_opaque_module_is_named(tmp_path: Path) -> None:
    net = nn.Sequential()
    net.add_module("body", nn.Linear(4, 4))
    net.add_module("odd_one", Data())
    q = api.quantize(net, [noise(8, 4)])
    with pytest.raises(ArtifactError, match="odd_one"):
        save(q, tmp_path / "net.intact")
    assert not os.listdir(tmp_path)


def test_only_an_integer_model_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"intact\.convert"):
        save(nn.Linear(2, 2), tmp_path / "x")  # type: ignore[arg-type]


def broken(q: QModel, **changes: Any) -> QModel:
    return replace(q, **changes)


def with_node(q: QModel, i: int, **changes: Any) -> QModel:
    nodes = list(q.graph.nodes)
    nodes[i] = replace(nodes[i], **changes)
    return broken(q, graph=replace(q.graph, nodes=tuple(nodes)))


BROKEN: dict[str, Callable[[QModel], QModel]] = {
    "the target is not known": lambda q: broken(q, target=replace(q.target, name="mine")),
    "cannot be stored as JSON": lambda q: broken(q, info={"x": object()}),
    "not bound to what the graph says": lambda q: broken(q, bindings={
        k: replace(b, attrs={"activation": [0.0, 1.0]}) for k, b in q.bindings.items()}),
    "unknown operation": lambda q: with_node(q, -1, op="mystery"),
    "no parameters": lambda q: broken(q, qparams={}),
    "float parameters": lambda q: broken(q, float_params={"extra": torch.zeros(1)}),
    "no producer": lambda q: broken(q, graph=replace(q.graph, output={"kind": "edge", "name": "gone"})),
    "signature": lambda q: broken(q, signature=replace(q.signature, names=(), templates=())),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_model_is_not_written(message: str, small: tuple[QModel, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        save(BROKEN[message](small[0]), tmp_path / "net.intact")
    assert not os.listdir(tmp_path)


# -- versions and targets -----------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value", "message"), [
    ("format_version", 2, "newer version of Intact.*upgrade Intact"),
    ("format_version", 0, "format_version"),
    ("format", "other", "not an Intact file"),
    ("target", {"name": "abacus", "version": 1}, "target that is not known here.*onnxruntime"),
    ("target", {"name": "onnxruntime", "version": 99}, "another version of its target"),
    ("surprise", 1, "unknown"),
])
def test_what_this_version_does_not_read(field: str, value: Any, message: str, small: tuple[QModel, Tensor],
                                         tmp_path: Path) -> None:
    path = save(small[0], tmp_path / "net.intact")
    parts = split(path.read_bytes())
    path.write_bytes(join(replace(parts, document={**parts.document, field: value})))
    with pytest.raises(ArtifactError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "[fix:" in str(caught.value)


# -- the tables ---------------------------------------------------------------------------------


def test_every_operation_has_a_schema() -> None:
    eager = set(LEAF_OPS)  # of eager models with quantized layers, which have files of their own
    assert set(OPS) == {*KERNELS, *FLOAT_OPS, *MOVES, *UNARY_OPS, "input", "aten"} - eager
    assert set(RULES) <= set(OPS)


W, K = {"weight": (6, 4, 3, 2)}, {"kernel": [3, 2], "stride": [2, 2], "padding": [1, 0]}
SHAPES: list[tuple[str, list[tuple[int, ...]], dict[str, tuple[int, ...]], dict[str, Any]]] = [
    ("conv", [(2, 8, 9, 7)], {**W, "bias": (6,)}, {"stride": [2, 1], "pad_begin": [1, 0], "pad_end": [2, 1],
                                                  "dilation": [2, 3], "groups": 2}),
    ("linear", [(2, 3, 4)], {"weight": (5, 4)}, {}),
    ("matmul", [(2, 1, 3, 4), (5, 4, 6)], {}, {}),
    ("add", [(2, 1, 3), (4, 1)], {}, {}),
    ("concat", [(2, 3), (2, 1)], {}, {"axis": 1}),
    ("mean", [(2, 3, 4)], {}, {"axes": [0, 2], "keepdim": False}),
    ("sum", [(2, 3, 4)], {}, {"axes": [1], "keepdim": True}),
    *[("max_pool", [(2, 3, n, n + 1)], {}, {**K, "dilation": [1, 2], "ceil_mode": c})
      for n in (5, 6, 7, 8) for c in (False, True)],
    *[("avg_pool", [(2, 3, n, n + 3)], {}, {**K, "ceil_mode": c, "count_include_pad": True})
      for n in (5, 6, 7, 8) for c in (False, True)],
    ("softmax", [(2, 3)], {}, {"axis": 1}),
    ("layer_norm", [(2, 3, 4)], {"weight": (4,)}, {"shape": [4], "eps": 1e-5}),
    ("interpolate", [(2, 3, 4, 5)], {}, {"size": [7, 9], "source": [4, 5], "mode": "bilinear", "align_corners": False}),
    ("interpolate_nearest", [(2, 3, 4)], {}, {"size": [7], "source": [4], "mode": "nearest", "align_corners": None}),
    ("reshape", [(2, 12)], {}, {"shape": ["batch", 3, 4]}),
    ("permute", [(2, 3, 4)], {}, {"axes": [2, 0, 1]}),
    ("slice", [(2, 9)], {}, {"axis": 1, "start": 1, "end": 2**31 - 1, "step": 3}),
    ("index_select", [(2, 9)], {}, {"axis": 1, "indices": [8, 0, 0]}),
    ("tanh", [(2, 9)], {}, {}),
]


@pytest.mark.parametrize(("op", "shapes", "params", "attrs"), SHAPES)
def test_shape_rules_are_those_of_torch(op: str, shapes: list[Any], params: dict[str, Any], attrs: Any) -> None:
    values = {k: torch.randn(v) for k, v in params.items()}
    y = run_float(op, [torch.randn(s) for s in shapes], values, attrs, {"batch": 2})
    assert RULES[op](shapes, params, attrs, {"batch": 2}) == tuple(y.shape)
    assert Node("y", op).op in OPS


def test_every_shape_rule_is_tested() -> None:
    same = {"sub", "mul", "div", "minimum", "maximum", "log_softmax", *UNARY_OPS}
    assert set(RULES) - same <= {op for op, *_ in SHAPES}
