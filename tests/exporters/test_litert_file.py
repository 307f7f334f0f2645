"""The .tflite writer: what goes in comes out, constants are aligned, bad lists are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'intact[litert]'")

from intact.errors import ExportError
from intact.exporters.litert.file import LiteRTOp, LiteRTTensor, litert_bytes, schema
from intact.exporters.litert.run import LiteRTModel


def _dense(dtype: str = "int8") -> tuple[list[LiteRTTensor], list[LiteRTOp]]:
    w = np.arange(-6, 6).reshape(4, 3).astype(np.int8)
    tensors = [
        LiteRTTensor("x", "int8", (2, 3), (0.5,), (3,)),
        LiteRTTensor("w", dtype, (4, 3), (0.5, 0.25, 1.0, 2.0), (), 0, w),
        LiteRTTensor("b", "int32", (4,), (0.25, 0.125, 0.5, 1.0), (), 0, np.array([1, -2, 3, 400], np.int32)),
        LiteRTTensor("y", "int8", (2, 4), (0.5,), (-1,)),
    ]
    version = 10 if dtype == "int4" else 0
    return tensors, [LiteRTOp("FULLY_CONNECTED", ("x", "w", "b"), ("y",), {"keepNumDims": True}, version)]


def test_the_schema_reads_back_what_was_written() -> None:
    s, (tensors, ops) = schema(), _dense()
    content = litert_bytes(tensors, ops, ["x"], ["y"])
    assert content == litert_bytes(tensors, ops, ["x"], ["y"])
    model = s.ModelT.InitFromPackedBuf(content)
    graph = model.subgraphs[0]
    assert [t.name for t in graph.tensors] == [b"x", b"w", b"b", b"y"]
    w = graph.tensors[1]
    assert (w.quantization.scale == np.float32([0.5, 0.25, 1, 2])).all() and w.quantization.quantizedDimension == 0
    assert np.array_equal(model.buffers[w.buffer].data.view(np.int8), tensors[1].data.ravel())
    assert graph.operators[0].builtinOptions.keepNumDims
    assert model.operatorCodes[0].builtinCode == s.BuiltinOperator.FULLY_CONNECTED
    assert model.signatureDefs[0].inputs[0].name == b"x"


def test_constants_lie_on_16_bytes() -> None:
    tensors, ops = _dense()
    content = litert_bytes(tensors, ops, ["x"], ["y"])
    for tensor in tensors[1:3]:
        assert content.find(tensor.data.tobytes()) % 16 == 0


def test_int4_weights_run_as_int8_ones_do() -> None:
    x = np.array([[10, -20, 30], [127, -128, 0]], np.int8)
    y = [LiteRTModel(litert_bytes(*_dense(dtype), ["x"], ["y"])).run({"x": x})["y"] for dtype in ("int8", "int4")]
    assert np.array_equal(*y) and len(np.unique(y[0])) > 4


X, Y = LiteRTTensor("x", "int8", (1, 2), (0.5,)), LiteRTTensor("y", "int8", (1, 2), (0.5,))
SIGMOID = [LiteRTOp("LOGISTIC", ("x",), ("y",))]  # wants an output scale of 1/256
BAD: dict[str, Callable[[], bytes]] = {
    "no table for": lambda: litert_bytes([X, Y], [LiteRTOp("WHILE", ("x",), ("y",))], ["x"], ["y"]),
    "unknown option": lambda: litert_bytes([X, Y], [LiteRTOp("ADD", ("x", "x"), ("y",), {"speed": 1})], ["x"], ["y"]),
    "unique and known": lambda: litert_bytes([X, Y], [LiteRTOp("RELU", ("z",), ("y",))], ["x"], ["y"]),
    "tensor's shape": lambda: litert_bytes([LiteRTTensor("c", "int8", (3,), data=np.zeros(2, np.int8))], [], [], ["c"]),
    "tensor's type": lambda: litert_bytes([LiteRTTensor("c", "int8", (2,), data=np.zeros(2))], [], [], ["c"]),
    "zero points": lambda: litert_bytes([LiteRTTensor("c", "int8", (2,), (0.5,), (1, 2))], [], ["c"], ["c"]),
    "refuses the model": lambda: LiteRTModel(litert_bytes([X, Y], SIGMOID, ["x"], ["y"])),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_lists_are_refused(message: str) -> None:
    with pytest.raises(ExportError, match=message):
        BAD[message]()
