"""Writes a .tflite flatbuffer from plain lists of tensors and operators.

Nothing here knows of models or of quantization: what the lists say is what the file holds. The schema is the one that
ships inside the interpreter's own wheel (``ai_edge_litert.schema_py_generated``), so that file and runtime agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from intact.errors import ExportError

__all__ = ["LiteRTOp", "LiteRTTensor", "litert_bytes", "schema"]

Array = npt.NDArray[Any]

_ALIGNMENT = 16  # of constant data, as the schema's force_align asks for: kernels load them as vectors
_VERSION = 3  # of the file format
_TYPES = {
    "float32": "FLOAT32", "int32": "INT32", "int64": "INT64", "int16": "INT16", "int8": "INT8", "uint8": "UINT8",
    "int4": "INT4", "bool": "BOOL",
}
# Operator -> (options table, version with int8 inputs, version with int16 inputs); "" where there is no table.
# Source of the versions: GetBuiltinOperatorVersion in tflite/tools/versioning/op_version.cc.
_OPS = {
    "ADD": ("AddOptions", 2, 3),
    "AVERAGE_POOL_2D": ("Pool2DOptions", 2, 3),
    "BATCH_MATMUL": ("BatchMatMulOptions", 2, 3),
    "CAST": ("CastOptions", 1, 2),
    "CONCATENATION": ("ConcatenationOptions", 2, 3),
    "CONV_2D": ("Conv2DOptions", 3, 4),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", 3, 5),
    "DEQUANTIZE": ("DequantizeOptions", 2, 3),
    "FULLY_CONNECTED": ("FullyConnectedOptions", 4, 7),
    "GATHER": ("GatherOptions", 2, 4),
    "GELU": ("GeluOptions", 2, 2),
    "HARD_SWISH": ("HardSwishOptions", 1, 1),
    "LEAKY_RELU": ("LeakyReluOptions", 1, 2),
    "LOGISTIC": ("", 2, 3),
    "MAXIMUM": ("MaximumMinimumOptions", 2, 3),
    "MAX_POOL_2D": ("Pool2DOptions", 2, 3),
    "MEAN": ("ReducerOptions", 2, 3),
    "MINIMUM": ("MaximumMinimumOptions", 2, 3),
    "MUL": ("MulOptions", 2, 4),
    "PAD": ("PadOptions", 2, 3),
    "PADV2": ("PadV2Options", 2, 3),
    "QUANTIZE": ("QuantizeOptions", 1, 2),
    "RELU": ("", 2, 3),
    "RELU6": ("", 2, 3),
    "RELU_N1_TO_1": ("", 1, 1),
    "RESHAPE": ("ReshapeOptions", 1, 1),
    "RESIZE_BILINEAR": ("ResizeBilinearOptions", 3, 4),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", 3, 4),
    "SOFTMAX": ("SoftmaxOptions", 2, 3),
    "STRIDED_SLICE": ("StridedSliceOptions", 2, 4),
    "SUB": ("SubOptions", 2, 5),
    "TANH": ("", 2, 3),
    "TRANSPOSE": ("TransposeOptions", 2, 5),
}


@dataclass(frozen=True)
class LiteRTTensor:
    """One tensor of the file.

    Args:
        name: unique in the file.
        dtype: a NumPy name, or ``"int4"`` (two codes a byte, the first in the low half).
        shape: LiteRT's order, NHWC for images.
        scales: none (not quantized), one, or one for each index of ``axis``.
        zero_points: as many as scales; empty for all 0.
        axis: the quantized dimension.
        data: the constant's values in the shape given; None for a tensor that is computed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0
    data: Array | None = None


@dataclass(frozen=True)
class LiteRTOp:
    """One operator of the file.

    Args:
        code: a name of ``BuiltinOperator``, as ``"CONV_2D"``.
        inputs: names of tensors; ``""`` for an optional one that is absent.
        outputs: names of tensors.
        options: fields of the operator's options table, in the schema's spelling (``strideW``); those left out
            have the schema's defaults, which are 0 for most.
        version: of the operator; 0 for the usual one of its input type.
    """

    code: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=dict)
    version: int = 0


def schema() -> Any:
    """The generated schema module.

    Raises:
        ExportError: where the package is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ExportError("LiteRT files need the package ai-edge-litert", got=str(error),
                          fix="pip install 'intact[litert]'") from error
    return schema_py_generated


class _Buffer:
    """A buffer whose data start on an aligned address: the generated one aligns bytes to 1."""

    def __init__(self, s: Any, data: bytes) -> None:
        self._schema, self._data = s, data

    def Pack(self, builder: Any) -> Any:  # the generated code's name
        if self._data:
            # The builder grows downwards: room for the data and their length first, then the bytes.
            builder.StartVector(1, len(self._data), _ALIGNMENT)
            builder.head -= len(self._data)
            builder.Bytes[builder.Head(): builder.Head() + len(self._data)] = self._data
            vector = builder.EndVector()
        self._schema.BufferStart(builder)
        if self._data:
            self._schema.BufferAddData(builder, vector)
        return self._schema.BufferEnd(builder)


def _packed(tensor: LiteRTTensor) -> bytes:
    """A constant's bytes, little endian."""
    if tensor.data is None:
        return b""
    data = np.ascontiguousarray(tensor.data)
    if tuple(data.shape) != tensor.shape:
        raise ExportError("a constant is not of its tensor's shape", where=tensor.name, got=data.shape,
                          allowed=tensor.shape)
    if tensor.dtype != "int4":
        if data.dtype != np.dtype(tensor.dtype):
            raise ExportError("a constant is not of its tensor's type", where=tensor.name, got=data.dtype,
                              allowed=tensor.dtype)
        return data.astype(data.dtype.newbyteorder("<")).tobytes()
    codes = data.astype(np.int8).ravel()
    codes = np.append(codes, np.zeros(codes.size % 2, np.int8)).astype(np.uint8) & 0xF
    return (codes[0::2] | codes[1::2] << 4).astype(np.uint8).tobytes()


def _tensor(s: Any, tensor: LiteRTTensor, buffer: int) -> Any:
    if tensor.zero_points and len(tensor.zero_points) != len(tensor.scales):
        raise ExportError("there must be as many zero points as scales", where=tensor.name,
                          got=(len(tensor.scales), len(tensor.zero_points)))
    out = s.TensorT(shape=np.array(tensor.shape, np.int32), type=getattr(s.TensorType, _TYPES[tensor.dtype]),
                    buffer=buffer, name=tensor.name, hasRank=True)
    if tensor.scales:
        zero_points = tensor.zero_points or (0,) * len(tensor.scales)
        out.quantization = s.QuantizationParametersT(
            scale=np.array(tensor.scales, np.float32), zeroPoint=np.array(zero_points, np.int64),
            quantizedDimension=tensor.axis)
    return out


def _options(s: Any, op: LiteRTOp) -> tuple[int, Any]:
    """The options' type code and table."""
    if op.code not in _OPS:
        raise ExportError("an operator that the writer has no table for", where=op.code, allowed=sorted(_OPS))
    name = _OPS[op.code][0]
    if not name:
        return 0, None
    table = getattr(s, name + "T")()
    for key, value in op.options.items():
        if not hasattr(table, key):
            raise ExportError("an unknown option", where=op.code, got=key, allowed=sorted(vars(table)))
        setattr(table, key, value)
    return getattr(s.BuiltinOptions, name), table


def _version(op: LiteRTOp, tensors: Mapping[str, LiteRTTensor]) -> int:
    dtypes = [tensors[name].dtype for name in (*op.inputs, *op.outputs) if name]
    _, int8, int16 = _OPS[op.code]
    return op.version or (int16 if "int16" in dtypes else int8 if "int8" in dtypes else 1)


def _signature(s: Any, inputs: Sequence[str], outputs: Sequence[str], index: Mapping[str, int]) -> Any:
    """Names for inputs and outputs, which newer runtimes ask for."""
    def maps(names: Sequence[str]) -> list[Any]:
        return [s.TensorMapT(name=name, tensorIndex=index[name]) for name in names]
    return s.SignatureDefT(inputs=maps(inputs), outputs=maps(outputs), signatureKey="serving_default", subgraphIndex=0)


def litert_bytes(
    tensors: Sequence[LiteRTTensor], ops: Sequence[LiteRTOp], inputs: Sequence[str], outputs: Sequence[str],
    *, description: str = "intact",
) -> bytes:
    """The file: the same lists give the same bytes.

    Args:
        tensors: all of them, constants included; names are unique.
        ops: in the order of execution.
        inputs: names of the tensors that the caller fills.
        outputs: names of the tensors that the caller reads.
        description: free text in the file.

    Raises:
        ExportError: for an unknown operator, option or tensor name, and for a constant of another shape or type.

    >>> x, y = (LiteRTTensor(n, "int8", (1, 4), (0.5,), (0,)) for n in "xy")
    >>> content = litert_bytes([x, y], [LiteRTOp("RELU", ("x",), ("y",))], ["x"], ["y"])
    >>> content[4:8]
    b'TFL3'
    """
    s = schema()
    import flatbuffers  # a dependency of the schema package

    by_name = {t.name: t for t in tensors}
    index = {t.name: i for i, t in enumerate(tensors)}
    used = [*inputs, *outputs, *(n for op in ops for n in (*op.inputs, *op.outputs) if n)]
    unknown = sorted(set(used) - index.keys())
    if unknown or len(index) != len(tensors):
        raise ExportError("tensor names must be unique and known", got=unknown or [t.name for t in tensors])
    tables = [_options(s, op) for op in ops]
    kinds = sorted({(op.code, _version(op, by_name)) for op in ops})
    buffers, rows = [_Buffer(s, b"")], []  # buffer 0 is the empty one, by convention
    for tensor in tensors:
        data = _packed(tensor)
        rows.append(_tensor(s, tensor, len(buffers) if data else 0))
        buffers += [_Buffer(s, data)] if data else []
    operators = []
    for op, (kind, table) in zip(ops, tables, strict=True):
        operators.append(s.OperatorT(
            opcodeIndex=kinds.index((op.code, _version(op, by_name))),
            inputs=np.array([index[n] if n else -1 for n in op.inputs], np.int32),
            outputs=np.array([index[n] for n in op.outputs], np.int32),
            builtinOptionsType=kind, builtinOptions=table))
    graph = s.SubGraphT(tensors=rows, inputs=np.array([index[n] for n in inputs], np.int32),
                        outputs=np.array([index[n] for n in outputs], np.int32), operators=operators, name="main")
    codes = [getattr(s.BuiltinOperator, code) for code, _ in kinds]
    model = s.ModelT(
        version=_VERSION, subgraphs=[graph], buffers=buffers, description=description,
        operatorCodes=[s.OperatorCodeT(deprecatedBuiltinCode=min(c, 127), builtinCode=c, version=v)
                       for c, (_, v) in zip(codes, kinds, strict=True)],
        signatureDefs=[_signature(s, inputs, outputs, index)])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
