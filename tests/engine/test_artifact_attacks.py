"""Files that are damaged or malicious: each is refused with an ArtifactError, in bounded time and memory."""

import copy
import io
import json
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.artifact_tools import Parts, frame, join, split
from torch import Tensor, nn

import intact.api as api
from intact.engine.artifact import load, save
from intact.errors import ArtifactError


class Small(nn.Module):
    """One of everything: convolutions, a shortcut, a float island, an operation by name, a dict output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = torch.relu(self.conv(x))
        y = torch.cat([self.deep(y), y[:, :, 1:-1, 1:-1]], 1)[:, :4]
        y = torch.nn.functional.max_pool2d(y, 2).mean([2, 3]).cumsum(1)
        return {"y": self.head(self.norm(y)), "note": ("text", y)}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    torch.manual_seed(0)
    q = api.quantize(Small(), [torch.randn(8, 2, 6, 6)])
    return split(save(q, tmp_path_factory.mktemp("good") / "net.intact").read_bytes())


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., ArtifactError]:
    """Loads the bytes and gives the error, which must say where and how to mend it."""

    def refuse(raw: bytes, match: str | None = None) -> ArtifactError:
        path = tmp_path / "net.intact"
        path.write_bytes(raw)
        with pytest.raises(ArtifactError, match=match) as caught:
            load(path)
        assert str(path) in str(caught.value.where)
        assert caught.value.fix
        return caught.value

    return refuse


Refuse = Callable[..., ArtifactError]


def test_the_tools_keep_a_good_file(good: Parts, tmp_path: Path) -> None:
    (tmp_path / "net.intact").write_bytes(join(good))
    q = load(tmp_path / "net.intact")
    assert {n.op for n in q.graph} >= {"conv", "concat", "aten", "layer_norm", "linear"}


# -- damage -------------------------------------------------------------------------------------


def test_every_truncation(good: Parts, refuse: Refuse) -> None:
    raw = join(good)
    for length in [*range(64), *range(64, len(raw), 37), len(raw) - 1]:
        refuse(raw[:length])


def test_anything_appended(good: Parts, refuse: Refuse) -> None:
    for tail in (b"\0", b" ", b"\0" * 1000):
        refuse(join(good) + tail)


def test_every_byte_counts(good: Parts, refuse: Refuse) -> None:
    raw, rng = join(good), random.Random(0)
    for _ in range(1500):
        damaged = bytearray(raw)
        damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        refuse(bytes(damaged))


def test_bytes_swapped_and_overwritten(good: Parts, refuse: Refuse) -> None:
    raw, rng = join(good), random.Random(1)
    for _ in range(500):
        damaged = bytearray(raw)
        start = rng.randrange(len(raw))
        damaged[start : start + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
        if damaged != raw:
            refuse(bytes(damaged))


# -- not an artefact ----------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def foreign() -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "pickle", pickle.dumps(Bomb())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", pickle.dumps(Bomb()))
    yield "zip", archive.getvalue()
    yield "text", b"hello, world, this is no model\n" * 9
    yield "zeros", bytes(4096)
    yield "ones", b"\xff" * 4096
    yield "noise", random.Random(0).randbytes(4096)
    yield "onnx", b"\x08\x0a\x12\x07pytorch" * 9
    for length in (0, 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1):
        yield f"length {length}", struct.pack("<Q", length) + b"{}" * 40
    yield "other safetensors", frame(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))
    yield "no tensors", frame(b"{}", b"")
    for text in ("null", "[]", "1", '"text"', "{", '{"a":NaN}', "nul", "\xff", '{"__metadata__":null}',
                 '{"__metadata__":{"intact":null}}', '{"__metadata__":{"intact":"{}"}}',
                 '{"__metadata__":{"intact":"[]"}}', '{"__metadata__":{"intact":"' + "[" * 999 + '"}}'):
        yield f"header {text[:40]}", frame(text.encode("latin-1"), b"")


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in foreign()])
def test_a_foreign_file(raw: bytes, refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(raw)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("path", ["missing", ".", os.devnull, "/dev/zero", "a\0b", None, b"\xff", 1.5])
def test_a_path_that_is_no_file(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError):
        load(path)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="not a file"):
        load(tmp_path / "pipe")


# -- bombs --------------------------------------------------------------------------------------


def with_document_text(text: str) -> bytes:
    return frame(json.dumps({"__metadata__": {"intact": text}}).encode(), b"")


@pytest.mark.parametrize("text", [
    "[" * 500_000,
    '{"a":' * 100_000,
    "[" * 65 + "]" * 65,
    "[[]" + ",[]" * 3_000_000 + "]",
    "[" + "9" * 5000 + "]",
    '{"format":1e999999999}',
    '"' + "\\u0000" * 100_000 + '"',
], ids=lambda t: t[:12])
def test_a_json_bomb(text: str, refuse: Refuse) -> None:
    for raw in (with_document_text(text), frame(text.encode(), b"")):
        tracemalloc.start()
        refuse(raw)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * len(raw) + (1 << 20)


def test_duplicate_keys(good: Parts, refuse: Refuse) -> None:
    refuse(join(good, lambda t: t.replace('"format":"intact"', '"format":"intact","format":"intact"')), "twice")
    raw = json.dumps({"scales": good.table["scales"]})[:-1].encode()
    refuse(frame(raw + b"," + raw[1:] + b"}", good.data), "twice")


def test_numbers_that_json_does_not_have(good: Parts, refuse: Refuse) -> None:
    for number in ("NaN", "Infinity", "-Infinity"):
        refuse(join(good, lambda t, n=number: t.replace('"info":{', f'"info":{{"x":{n},')), "number")  # type: ignore[misc]


def test_the_memory_taken_is_about_the_file(good: Parts, tmp_path: Path) -> None:
    path = tmp_path / "net.intact"
    path.write_bytes(join(good))
    load(path)
    tracemalloc.start()
    load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * len(join(good))  # the objects of the document; tensors are views of one buffer


# -- the container ------------------------------------------------------------------------------


def entry(name: str, **fields: Any) -> Callable[[Parts], Parts]:
    def edit(p: Parts) -> Parts:
        return replace(p, table={**p.table, name: {**p.table[name], **fields}})

    return edit


def offsets(shift: int) -> Callable[[Parts], Parts]:
    return lambda p: entry("scales", data_offsets=[o + shift for o in p.table["scales"]["data_offsets"]])(p)


def without(name: str) -> Callable[[Parts], Parts]:
    return lambda p: replace(p, table={k: v for k, v in p.table.items() if k != name})


def swapped(a: str, b: str) -> Callable[[Parts], Parts]:
    return lambda p: entry(a, data_offsets=p.table[b]["data_offsets"])(p)


def added(name: str, dtype: str = "F32", size: int = 4, shape: Any = (1,)) -> Callable[[Parts], Parts]:
    def edit(p: Parts) -> Parts:
        end = len(p.data)
        new = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        return replace(p, table={**p.table, name: new}, data=p.data + bytes(size))

    return edit


CODES = "codes/conv.weight"
CONTAINERS: dict[str, Callable[[Parts], Parts]] = {
    "overlap": swapped("codes/deep.weight", CODES),
    "shifted": offsets(4),
    "unaligned": offsets(1),
    "negative": offsets(-(2**40)),
    "beyond the end": offsets(2**40),
    "reversed": entry("scales", data_offsets=[8, 0]),
    "one offset": entry("scales", data_offsets=[0]),
    "offsets as text": entry("scales", data_offsets=["0", "8"]),
    "offsets as floats": entry("scales", data_offsets=[0.0, 8.0]),
    "huge shape": entry("scales", shape=[2**40]),
    "shape that wraps around": entry("scales", shape=[2**32, 2**32]),
    "many axes": entry("scales", shape=[1] * 1000),
    "negative shape": entry("scales", shape=[-1, -1]),
    "boolean shape": entry("scales", shape=[True]),
    "unknown dtype": entry("scales", dtype="F8_E4M3"),
    "dtype as list": entry("scales", dtype=["F32"]),
    "wrong dtype": entry("scales", dtype="I32"),
    "float codes": entry("bias/deep", dtype="F32"),
    "unsigned codes": entry(CODES, dtype="U8"),
    "extra field": entry("scales", more=1),
    "transposed weight": entry(CODES, shape=[2, 4, 3, 3]),
    "flat weight": entry(CODES, shape=[72]),
    "bias with two axes": entry("bias/deep", shape=[2, 2]),
    "a hole": lambda p: replace(p, data=p.data + bytes(8)),
    "missing scales": without("scales"),
    "missing codes": without(CODES),
    "missing bias": without("bias/deep"),
    "extra tensor": added("extra"),
    "extra float": added("float/extra"),
    "extra codes": added("codes/extra", "I8"),
    "empty tensor of a huge shape": added("float/extra", size=0, shape=[0, 2**40, 2**40]),
    "a boolean that is 7": lambda p: replace(
        added("float/extra", "BOOL", 8, [8])(p), data=p.data + b"\x07" * 8),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_malformed_container(name: str, good: Parts, refuse: Refuse) -> None:
    parts = CONTAINERS[name](good)
    assert parts != good
    refuse(join(parts))


# -- numbers ------------------------------------------------------------------------------------


def row_of(parts: Parts, kind: str, name: str) -> tuple[int, int]:
    """First scale of an entry, and its row."""
    row = parts.document[kind][name]
    return sum(r["count"] for r in parts.document["qparams"][:row]), row


def number_at(tensor: str, code: str, kind: str, name: str, value: float | int) -> Callable[[Parts], Parts]:
    def edit(p: Parts) -> Parts:
        at, _ = row_of(p, kind, name)
        raw = bytearray(p.tensor(tensor))
        struct.pack_into(code, raw, 4 * at, value)
        return p.with_tensor(tensor, bytes(raw))

    return edit


def row(kind: str, name: str, **fields: Any) -> Callable[[Parts], Parts]:
    def edit(p: Parts) -> Parts:
        rows = list(p.document["qparams"])
        _, i = row_of(p, kind, name)
        rows[i] = {**rows[i], **fields}
        return replace(p, document={**p.document, "qparams": rows})

    return edit


def filled(tensor: str, code: str, value: float | int) -> Callable[[Parts], Parts]:
    return lambda p: p.with_tensor(tensor, struct.pack(code, value) * (len(p.tensor(tensor)) // struct.calcsize(code)))


def both(*edits: Callable[[Parts], Parts]) -> Callable[[Parts], Parts]:
    def edit(p: Parts) -> Parts:
        for e in edits:
            p = e(p)
        return p

    return edit


SCALES = {"nan": float("nan"), "inf": float("inf"), "zero": 0.0, "minus zero": -0.0, "negative": -1.0,
          "subnormal": 1e-40, "-inf": float("-inf")}
NUMBERS: dict[str, Callable[[Parts], Parts]] = {
    **{f"edge scale {k}": number_at("scales", "<f", "edges", "x", v) for k, v in SCALES.items()},
    **{f"weight scale {k}": number_at("scales", "<f", "weights", CODES, v) for k, v in SCALES.items()},
    **{f"zero point {v}": number_at("zero_points", "<i", "edges", "x", v) for v in (-1, 256, 2**31 - 1, -(2**31))},
    "weight zero point": number_at("zero_points", "<i", "weights", CODES, 3),
    "multiplier overflows": both(number_at("scales", "<f", "edges", "x", 3e38),
                                 number_at("scales", "<f", "weights", CODES, 3e38)),
    "bias overflows": filled("bias/deep", "<i", 2**31 - 1),
    "bias underflows": filled("bias/deep", "<i", -(2**31)),
    "code below qmin": filled(CODES, "<b", -128),
    "weight of 4 bits with wide codes": row("weights", CODES, bits=4),
    "weight of 16 bits": row("weights", CODES, bits=16),
    "weight of 32 bits": row("weights", CODES, bits=32),
    "unsigned weight": row("weights", CODES, signed=False, narrow=False),
    "narrow and unsigned": row("weights", CODES, signed=False, narrow=True),
    "weight per input channel": row("weights", CODES, axis=1),
    "weight axis 9": row("weights", CODES, axis=9),
    "fewer scales": row("weights", CODES, count=3),
    "more scales": row("weights", CODES, count=5),
    "huge count": row("weights", CODES, count=2**40),
    "no scales": row("weights", CODES, count=0),
    "several scales per tensor": row("weights", CODES, axis=None),
    "edge that is an accumulator": row("edges", "x", bits=32, signed=True),
    "edge of 17 bits": row("edges", "x", bits=17),
    "edge of 1 bit": row("edges", "x", bits=1),
    "edge per channel": row("edges", "x", axis=1),
    "bits as text": row("edges", "x", bits="8"),
    "signed as number": row("edges", "x", signed=1),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_wrong_number(name: str, good: Parts, refuse: Refuse) -> None:
    parts = NUMBERS[name](good)
    assert parts != good
    refuse(join(parts))


# -- the document -------------------------------------------------------------------------------


def node(kind: str, /, **fields: Any) -> Callable[[dict[str, Any]], None]:
    def edit(d: dict[str, Any]) -> None:
        next(n for n in d["graph"]["nodes"] if n["op"] == kind).update(fields)

    return edit


def attrs(op: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    def edit(d: dict[str, Any]) -> None:
        next(n for n in d["graph"]["nodes"] if n["op"] == op)["attrs"].update(fields)

    return edit


ATEN = [
    "aten.save.default", "aten.from_file.default", "aten.add.__class__", "aten.add.overloads", "aten.name.upper",
    "aten.add_.Tensor", "aten.add.out", "aten.set_.source_Storage", "aten.empty_like.default", "aten.resize_.default",
    "aten.__class__.mro", "aten.full.default", "aten.rand.default", "aten._pin_memory.default", "prim.device.default",
    "aten.as_strided.default", "aten.kaiser_window.default", "aten.dict.Tensor", "aten.conv_tbc_backward.default",
    "os.system.default", "aten.cumsum.default\n", "", None, 3, ["aten.cumsum.default"], "aten.cumsum",
]
DOCUMENTS: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"aten {t!r}": attrs("aten", target=t) for t in ATEN},
    "aten device": attrs("aten", kwargs={"device": "cpu"}),
    "aten unknown argument": attrs("aten", kwargs={"x": 1}),
    "aten operand": attrs("aten", args=[{"input": 1}, 1]),
    "aten template": attrs("aten", args=[{"input": 0, "param": "x"}, 1]),
    "aten dtype": attrs("aten", args=[{"input": 0}, {"dtype": "__class__"}]),
    "aten missing argument": attrs("aten", args=[{"input": 0}]),
    "aten index": attrs("aten", index=0),
    "aten that fills memory": attrs("aten", target="aten.kaiser_window.default", args=[2**31]),
    "aten memory format": attrs("aten", target="aten.clone.default", args=[{"input": 0}],
                                kwargs={"memory_format": 2**63 - 1}),
    "aten without a tensor": attrs("aten", target="aten.einsum.default", args=["", []]),
    "unknown op": node("conv", op="opaque"),
    "op of python": node("conv", op="__import__"),
    "shape": node("conv", shape=["batch", 4, 5, 6]),
    "fixed batch": node("conv", shape=[2, 4, 6, 6]),
    "unknown dimension": node("conv", shape=["batch", "4*x", 6, 6]),
    "dimension with code": node("conv", shape=["batch*__import__('os')", 4, 6, 6]),
    "negative dimension": node("conv", shape=["batch", -4, 6, 6]),
    "huge input": node("input", shape=["batch", 2**31 - 1, 2**31 - 1]),
    "dtype": node("conv", dtype="int8"),
    "dtype of python": node("input", dtype="nn"),
    "a loop": node("conv", inputs=["conv"]),
    "unknown operand": node("conv", inputs=["gone"]),
    "no operand": node("conv", inputs=[]),
    "two operands": node("conv", inputs=["x", "x"]),
    "name twice": node("conv", name="x"),
    "no parameters": node("conv", params={}),
    "extra parameter": node("conv", params={"weight": "conv.weight", "bias": "conv.bias", "more": "conv.bias"}),
    "stride 0": attrs("conv", stride=[0, 0]),
    "huge stride": attrs("conv", stride=[2**62, 1]),
    "one stride": attrs("conv", stride=[1]),
    "stride as text": attrs("conv", stride=["1", "1"]),
    "groups 0": attrs("conv", groups=0),
    "groups": attrs("conv", groups=3),
    "boolean groups": attrs("conv", groups=True),
    "negative padding": attrs("conv", pad_begin=[-1, -1]),
    "dilation": attrs("conv", dilation=[9, 9]),
    "unknown attribute": attrs("conv", more=1),
    "activation reversed": attrs("conv", activation=[1.0, 0.0]),
    "activation nan": attrs("conv", activation=[0.0, {"float": "nan"}]),
    "activation of three": attrs("conv", activation=[0.0, 1.0, 2.0]),
    "unknown float": attrs("conv", activation=[0.0, {"float": "1e5"}]),
    "concat axis": attrs("concat", axis=4),
    "slice step": attrs("slice", step=0),
    "kernel": attrs("max_pool", kernel=[99, 99]),
    "ceil mode": attrs("max_pool", ceil_mode=1),
    "normalised shape": attrs("layer_norm", shape=[5]),
    "input without an edge": lambda d: d["edges"].pop("x"),
    "unknown edge": lambda d: d["edges"].update(gone=0),
    "edge index": lambda d: d["edges"].update(x=10**6),
    "negative edge index": lambda d: d["edges"].update(x=-1),
    "binding of nothing": lambda d: d["bindings"].update(gone={"weight": None, "bias": None}),
    "binding of a float node": lambda d: d["bindings"].update(norm={"weight": None, "bias": None}),
    "binding without weight": lambda d: d["bindings"]["deep"].update(weight=None),
    "binding without bias": lambda d: d["bindings"]["deep"].update(bias=None),
    "bias of another": lambda d: d["bindings"]["deep"].update(bias="bias/head"),
    "weight of another": lambda d: d["bindings"]["deep"].update(weight=CODES),
    "weight that is a scale": lambda d: d["weights"].update(scales=0),
    "no weights": lambda d: d.update(weights={}),
    "output": lambda d: d["graph"].update(output={"kind": "edge", "name": "gone"}),
    "output kind": lambda d: d["graph"].update(output={"kind": "object", "name": "x"}),
    "output pairs": lambda d: d["graph"].update(output={"kind": "dict", "items": [["a"]]}),
    "output twice": lambda d: d["graph"].update(
        output={"kind": "dict", "items": [["a", {"kind": "const", "value": 1}]] * 2}),
    "signature empty": lambda d: d.update(signature=[]),
    "signature twice": lambda d: d.update(signature=d["signature"] * 2),
    "signature of an inner edge": lambda d: d.update(signature=[["x", {"kind": "edge", "name": "conv"}]]),
    "info as list": lambda d: d.update(info=[]),
    "no nodes": lambda d: d["graph"].update(nodes=[]),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_wrong_document(name: str, good: Parts, refuse: Refuse, tmp_path: Path) -> None:
    document = copy.deepcopy(good.document)
    DOCUMENTS[name](document)
    assert json.dumps(document) != json.dumps(good.document)
    refuse(join(replace(good, document=document)))


VALUES = [None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 0.5, "", "x", "batch", "9*batch", "\ud800", [], [[]], {},
          {"float": "inf"}, {"kind": "edge", "name": "x"}, [1, 2], ["batch"] * 20]


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document: container and key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from leaves(value[key])


def test_any_value_anywhere(good: Parts, tmp_path: Path) -> None:
    """With a right digest: refused, or a model that is whole. Never another error, a hang or a crash."""
    path, rng, outcomes = tmp_path / "net.intact", random.Random(0), {"refused": 0, "loaded": 0}
    for _ in range(1500):
        document = copy.deepcopy(good.document)
        document["info"] = {}
        places = list(leaves(document))
        container, key = rng.choice(places)
        action = rng.random()
        if action < 0.1:
            del container[key]
        elif action < 0.25:
            other, k = rng.choice(places)
            container[key] = copy.deepcopy(other[k])
        else:
            container[key] = rng.choice(VALUES)
        path.write_bytes(join(replace(good, document=document)))
        try:
            repr(load(path))
        except ArtifactError:
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
    assert outcomes["refused"] > 1200
    assert outcomes["loaded"] > 10  # a path, a name of an input, an activation: legitimate


def test_any_number_anywhere(good: Parts, tmp_path: Path) -> None:
    """Random bytes in the tensors, with a right digest."""
    path, rng = tmp_path / "net.intact", random.Random(0)
    for _ in range(500):
        data = bytearray(good.data)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(join(replace(good, data=bytes(data))))
        try:
            q = load(path)
        except ArtifactError:
            continue
        codes = q.codes(torch.ones(2, 2, 6, 6))
        assert all(v.min() >= q.qparams[k].qtype.qmin for k, v in codes.items())
