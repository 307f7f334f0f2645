"""Files of leaves that are damaged or malicious: each is refused with an ArtifactError; none gives a wrong model."""

from __future__ import annotations

import copy
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
from intact import ArtifactError
from tests.engine.artifact_tools import Parts, join, split


class Net(nn.Module):
    """All forms of tensors of a file: tied, odd columns, buffers of other dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.odd = nn.Embedding(10, 16), nn.Linear(16, 16), nn.Linear(5, 3)
        self.attention, self.head = nn.MultiheadAttention(16, 2), nn.Linear(16, 10, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("mask", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("turns", torch.zeros(2, dtype=torch.complex64))

    def forward(self, index: Tensor) -> Tensor:
        x = self.fc(self.table(index))
        return self.head(self.attention(x, x, x)[0]) + self.odd(x[..., :5]).sum()


INDEX = torch.arange(8).reshape(4, 2)
WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "int8": intact.quantize_dynamic,
    "float16": lambda n: intact.quantize_dynamic(n, dtype=torch.float16),
    "int4": lambda n: intact.quantize_weights(n, {nn.Module: 4, "odd": {"group": None}}, group=8),
    "symmetric": lambda n: intact.quantize_weights(n, bits=8, group=None, symmetric=True),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parts]:
    torch.manual_seed(0)
    net, folder = Net().eval(), tmp_path_factory.mktemp("good")
    return {way: split(intact.save(make(net), folder / way).read_bytes()) for way, make in WAYS.items()}


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., None]:
    """Loads the bytes and looks at the error, which must say where and how to mend it."""

    def refuse(raw: bytes, match: str | None = None, model: Any = Net) -> None:
        path = tmp_path / "net.safetensors"
        path.write_bytes(raw)
        with pytest.raises(ArtifactError, match=match) as caught:
            intact.load(path, model=model)
        assert str(caught.value.where).startswith(str(path)) and caught.value.fix

    return refuse


Refuse = Callable[..., None]


@pytest.mark.parametrize("way", WAYS)
def test_damage(way: str, files: dict[str, Parts], refuse: Refuse) -> None:
    raw, rng = join(files[way]), random.Random(0)
    for length in [*range(24), *range(24, len(raw), 211), len(raw) - 1]:
        refuse(raw[:length])
    refuse(raw + b"\0")
    for _ in range(100):
        damaged = bytearray(raw)
        damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        refuse(bytes(damaged))


FORMS: dict[str, tuple[str, list[Any]]] = {
    "F32": ("<f", [float("nan"), float("inf"), 0.0, -0.0, -1.0, 1e-40]),
    "BF16": ("<H", [0x7FC0, 0x7F80, 0, 0x8000, 0xBF80, 1]),  # nan, inf, 0, -0, -1, subnormal
    "F16": ("<e", [float("nan"), float("inf")]), "I8": ("<b", [-128]), "U8": ("<B", [255]),
}


@pytest.mark.parametrize("way", WAYS)
def test_numbers_that_no_encoding_has(way: str, files: dict[str, Parts], refuse: Refuse) -> None:
    """A right digest, and one wrong number in any tensor of any weight."""
    parts, count = files[way], 0
    for name, entry in parts.table.items():
        kind = name.rpartition(".")[2]
        any_code = kind == "codes" and way in ("int4", "symmetric")  # all codes are legal there
        if kind not in ("codes", "scale", "zero_point") or (any_code and name != "odd.qweight.codes"):
            continue
        if way == "symmetric" and kind == "codes":
            continue
        form, values = FORMS[entry["dtype"]]
        for value in values:
            raw = bytearray(parts.tensor(name))
            struct.pack_into(form, raw, len(raw) - struct.calcsize(form), value)
            refuse(join(parts.with_tensor(name, bytes(raw))), "encoding of a weight is broken")
            count += 1
    assert count >= 10


def edited(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda d: d.update(fields)


def leaf(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda d: d["leaves"].update({name: value})


DYNAMIC = {"kind": "dynamic", "weight": "channel", "activation": "token"}
DOCUMENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown key": edited(more=1),
    "no leaves": edited(leaves={}),
    "leaves as list": edited(leaves=["fc"]),
    "no same": lambda d: d.pop("same"),
    "same as list": edited(same=[]),
    "same of nothing": edited(same={"head.qweight.codes": "nothing"}),
    "same of itself": edited(same={"head.qweight.codes": "head.qweight.codes"}),
    "same as number": edited(same={"head.qweight.codes": 3}),
    "same in a chain": lambda d: d["same"].update({"head.qweight.scale": "head.qweight.codes"}),
    "same of a tensor that is there": lambda d: d["same"].update({"fc.bias": "odd.bias"}),
    "newer": edited(format_version=2),
    "version as text": edited(format_version="1"),
    "leaf that is not there": leaf("nothing", DYNAMIC),
    "leaf that is no layer": leaf("", DYNAMIC),
    "leaf inside a leaf": leaf("attention.out_proj", DYNAMIC),
    "part of a leaf": leaf("fc.qweight", DYNAMIC),
    "leaf too few": lambda d: d["leaves"].pop("fc"),
    "leaf without encoding": leaf("fc", None),
    "unknown kind": leaf("fc", {"kind": "ternary"}),
    "kind as list": leaf("fc", {"kind": ["dynamic"]}),
    "unknown field": leaf("fc", {**DYNAMIC, "more": 1}),
    "unknown granularity": leaf("fc", {**DYNAMIC, "weight": "row"}),
    "token weights": leaf("fc", {**DYNAMIC, "weight": "token"}),
    "channel activations": leaf("fc", {**DYNAMIC, "activation": "channel"}),
    "other encoding": leaf("fc", {"kind": "float16"}),
    "other group": leaf("fc", {**DYNAMIC, "weight": 8}),
    "group of 0": leaf("fc", {**DYNAMIC, "weight": 0}),
    "negative group": leaf("fc", {**DYNAMIC, "weight": -8}),
    "huge group": leaf("fc", {**DYNAMIC, "weight": 2**70}),
    "group as boolean": leaf("fc", {**DYNAMIC, "weight": True}),
    "group as float": leaf("fc", {**DYNAMIC, "weight": 8.0}),
    "3 bits": leaf("fc", {"kind": "weight_only", "weight": 8, "bits": 3, "symmetric": True, "refine": True}),
    "bits as float": leaf("fc", {"kind": "weight_only", "weight": 8, "bits": 4.0, "symmetric": True, "refine": True}),
    "flag as number": leaf("fc", {"kind": "weight_only", "weight": 8, "bits": 4, "symmetric": 1, "refine": True}),
    "tied weights apart": leaf("head", {"kind": "float16"}),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_wrong_document(name: str, files: dict[str, Parts], refuse: Refuse) -> None:
    document = copy.deepcopy(files["int8"].document)
    DOCUMENTS[name](document)
    assert document != files["int8"].document
    refuse(join(replace(files["int8"], document=document)))


def entry(name: str, **fields: Any) -> Callable[[Parts], Parts]:
    return lambda p: replace(p, table={**p.table, name: {**p.table[name], **fields}})


CONTAINERS: dict[str, Callable[[Parts], Parts]] = {
    "codes unsigned": entry("fc.qweight.codes", dtype="U8"),
    "codes flat": entry("fc.qweight.codes", shape=[256]),
    "codes of other rows": entry("fc.qweight.codes", shape=[8, 32]),
    "scale as integers": entry("fc.qweight.scale", dtype="I32"),
    "scale as a column": entry("fc.qweight.scale", shape=[16, 1]),
    "bias as integers": entry("fc.bias", dtype="I32"),
    "huge shape": entry("fc.bias", shape=[2**40]),
    "shape that wraps around": entry("fc.bias", shape=[2**32, 2**32]),
    "negative shape": entry("fc.bias", shape=[-1]),
    "beyond the end": entry("fc.bias", data_offsets=[2**40, 2**40 + 64]),
    "overlap": lambda p: entry("fc.bias", data_offsets=p.table["odd.bias"]["data_offsets"])(p),
    "unknown dtype": entry("fc.bias", dtype="F4"),
    "missing": lambda p: replace(p, table={k: v for k, v in p.table.items() if k != "fc.bias"}),
    "another name": lambda p: replace(p, table={("bias" if k == "fc.bias" else k): v for k, v in p.table.items()}),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_malformed_container(name: str, files: dict[str, Parts], refuse: Refuse) -> None:
    tracemalloc.start()
    refuse(join(CONTAINERS[name](files["int8"])))
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


VALUES = [None, True, 0, -1, 2**70, 1.5, "", "channel", "tensor", [], {}, {"kind": "dynamic"},
          {"kind": "float16"}, DYNAMIC]


def test_any_value_anywhere(files: dict[str, Parts], tmp_path: Path) -> None:
    path, rng, good = tmp_path / "net", random.Random(0), files["int8"]
    path.write_bytes(join(good))
    want, refused = intact.load(path, model=Net).eval()(INDEX), 0
    for _ in range(300):
        document = copy.deepcopy(good.document)
        places = [(document, k) for k in document] + [(document[k], n) for k in ("leaves", "same") for n in document[k]]
        places += [(how, n) for how in document["leaves"].values() for n in how]
        container, key = rng.choice(places)
        container[key] = rng.choice(VALUES)
        path.write_bytes(join(replace(good, document=document)))
        try:
            got = intact.load(path, model=Net).eval()(INDEX)
        except ArtifactError:
            refused += 1
        else:  # the digest was replaced (and made anew), or activations have one scale per tensor: a legal model
            assert torch.equal(got, want) or '"activation": "tensor"' in str(document).replace("'", '"')
    assert refused > 240


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential(), lambda: intact.quantize_dynamic(Net()),
                                   lambda: None, lambda: nn.Sequential(Net())], ids=range(5))
def test_models_of_another_structure(model: Any, files: dict[str, Parts], refuse: Refuse) -> None:
    refuse(join(files["int8"]), model=model)


def test_what_is_not_saved(tmp_path: Path) -> None:
    q = intact.quantize_dynamic(Net())
    q.fc.qweight.scale[0] = torch.nan
    with pytest.raises(ArtifactError, match=r"broken.*fc\.qweight"):
        intact.save(q, tmp_path / "net")
    for buffer in (torch.eye(3).to_sparse(), torch.zeros(3).to(torch.float8_e4m3fn), torch.zeros(3, device="meta")):
        q = intact.quantize_dynamic(nn.Sequential(nn.Linear(3, 3)))
        q.register_buffer("more", buffer)
        with pytest.raises(ArtifactError, match=r"cannot be stored.*more"):
            intact.save(q, tmp_path / "net")
    assert not list(tmp_path.iterdir())
