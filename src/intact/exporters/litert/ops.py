"""Integer operations in LiteRT's operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intact.exporters.litert.build import Builder
from intact.exporters.litert.functions import emit_function, emit_square, rescaled_codes
from intact.graph import Node
from intact.kernels import KERNELS, MOVES, UNARY_OPS, Binding
from intact.kernels.concat import rescaled
from intact.kernels.passive import PadKernel
from intact.reference.litert.linear import same_padding
from intact.reference.litert.move import resize_nearest
from intact.types import QParams, QType
from intact.types.dims import resolve_dim, resolve_shape

__all__ = ["EMITTERS"]

Array = npt.NDArray[Any]
Emit = Callable[[Builder, Node, Binding], None]
EMITTERS: dict[str, Emit] = {}
_SAME, _VALID = 0, 1


def _emits(*ops: str) -> Callable[[Emit], Emit]:
    def register(function: Emit) -> Emit:
        EMITTERS.update(dict.fromkeys(ops, function))
        return function
    return register


def _pair(values: Sequence[int], fill: int) -> tuple[int, int]:
    """Height and width; a signal has one row."""
    height, width = (fill, *values)[-2:]
    return int(height), int(width)


# -- layers with weights --------------------------------------------------------------------------


def _weight_scales(binding: Binding) -> Array:
    """One scale for each output channel."""
    assert binding.weight is not None
    w = binding.weight
    return np.broadcast_to(w.qparams.scale.numpy(), (w.codes.shape[0],)).astype(np.float32)


def _bias(b: Builder, node: Node, binding: Binding) -> str:
    assert binding.weight is not None
    channels = binding.weight.codes.shape[0]
    codes = np.zeros(channels) if binding.bias is None else binding.bias.numpy()
    scales = np.float32(float(binding.inputs[0].scale)) * _weight_scales(binding)
    return b.const(f"{node.name}:bias", codes.astype(b.dialect.bias), scales=[float(s) for s in scales])


def _weight(b: Builder, node: Node, codes: Array, binding: Binding, axis: int = 0) -> str:
    return b.const(f"{node.params['weight']}:codes", codes, scales=[float(s) for s in _weight_scales(binding)],
                   axis=axis)


def _padded(b: Builder, x: str, pads: Sequence[tuple[int, int]], code: int, zero_point: int) -> str:
    """PAD with the zero point, or PADV2 with another code; pads of every axis, in memory's order."""
    if not any(v for pair in pads for v in pair):
        return x
    shape = [n + p + q for n, (p, q) in zip(b.tensors[x].shape, pads, strict=True)]
    return _pad_into(b, x, pads, code, zero_point, b.like(x, f"{x}:padded", shape))


def _pad_into(b: Builder, x: str, pads: Sequence[tuple[int, int]], code: int, zero_point: int, out: str) -> str:
    amounts = b.const(":pads", np.array(pads, np.int32))
    if code == zero_point:
        return b.op("PAD", [x, amounts], out)
    return b.op("PADV2", [x, amounts, _code(b, code, x)], out)


def _code(b: Builder, code: int, like: str) -> str:
    """One code, in another tensor's encoding."""
    t = b.tensors[like]
    q = QParams.per_tensor(t.scales[0], t.zero_points[0], QType(b.dialect.bits, signed=True))
    return b.const(":code", np.array([code], t.dtype), q=q)


@_emits("conv")
def _conv(b: Builder, node: Node, binding: Binding) -> None:
    a = node.attrs
    assert binding.weight is not None
    codes = binding.weight.centred().numpy().astype(np.int8)
    if codes.ndim == 3:
        codes = codes[:, :, None]
    x = b.image(node.inputs[0])
    shape = b.tensors[x].shape
    kernel = (codes.shape[2], codes.shape[3])
    stride, dilation = _pair(a["stride"], 1), _pair(a["dilation"], 1)
    begin, end = _pair(a["pad_begin"], 0), _pair(a["pad_end"], 0)
    pads = ((begin[0], end[0]), (begin[1], end[1]))
    padding = _VALID
    if pads != ((0, 0), (0, 0)):
        if same_padding(shape[1:3], kernel, stride, dilation) == pads:
            padding = _SAME
        else:
            zero = int(binding.inputs[0].zero_point)
            x = _padded(b, x, ((0, 0), *pads, (0, 0)), zero, zero)
    inner, own = b.image_result(node.name)
    geometry = {"padding": padding, "strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0],
                "dilationWFactor": dilation[1]}
    if a["groups"] == shape[3] and a["groups"] > 1:  # channel c feeds the outputs from c * m on, in both worlds
        weight = _weight(b, node, codes[:, 0].transpose(1, 2, 0)[None], binding, 3)
        b.clamped("DEPTHWISE_CONV_2D", [x, weight, _bias(b, node, binding)], inner, binding,
                  depthMultiplier=codes.shape[0] // shape[3], **geometry)
    else:
        weight = _weight(b, node, codes.transpose(0, 2, 3, 1), binding)
        b.clamped("CONV_2D", [x, weight, _bias(b, node, binding)], inner, binding, **geometry)
    b.finish(inner, own)


@_emits("linear")
def _linear(b: Builder, node: Node, binding: Binding) -> None:
    assert binding.weight is not None
    codes = binding.weight.centred().numpy().astype(np.int8)
    out, inside = codes.shape
    x = b.plain(node.inputs[0])
    rows = int(np.prod(b.tensors[x].shape[:-1], dtype=np.int64))
    conv = b.dialect.linear_as_conv
    own = b.made(node.name, tuple(range(len(b.shape(node.name)))))
    flat = (rows, 1, 1, out) if conv else (rows, out)
    inner = own if b.tensors[own].shape == flat else b.like(own, f"{node.name}:rows", flat)
    if conv:
        operands = [b.reshape(x, (rows, 1, 1, inside)), _weight(b, node, codes[:, None, None], binding)]
        b.clamped("CONV_2D", [*operands, _bias(b, node, binding)], inner, binding, padding=_VALID, strideH=1, strideW=1,
                  dilationHFactor=1, dilationWFactor=1)
    else:
        operands = [b.reshape(x, (rows, inside)), _weight(b, node, codes, binding)]
        b.clamped("FULLY_CONNECTED", [*operands, _bias(b, node, binding)], inner, binding)
    b.finish(inner, own)


# -- functions of codes -----------------------------------------------------------------------------


@_emits("add", "sub", "mul")
def _binary(b: Builder, node: Node, binding: Binding) -> None:
    rank = len(node.shape)
    lead = next((i for i in node.inputs if len(b.shape(i)) == rank and b.graph[i].op != "constant"), None)
    perm = b.where(lead)[0] if lead is not None else tuple(range(rank))
    # with 16 bits the schema's default asks for another kernel, where all scales are powers of two
    options = {"potScaleInt16": False} if node.op != "mul" else {}
    operands = [b.operand(i, perm) for i in node.inputs]
    if node.op == "mul" and operands[0] == operands[1] and emit_square(b, operands[0], node, perm, binding):
        return
    b.clamped(node.op.upper(), operands, b.made(node.name, perm), binding, **options)


@_emits("matmul")
def _matmul(b: Builder, node: Node, binding: Binding) -> None:
    own = b.made(node.name, tuple(range(len(node.shape))))
    inner = own if b.fused(binding) == "NONE" else b.like(own, f"{own}:unclamped", b.tensors[own].shape)
    b.op("BATCH_MATMUL", [b.plain(i) for i in node.inputs], inner)
    if inner != own:
        b.clamp(inner, own, binding)


EMITTERS.update(dict.fromkeys(UNARY_OPS, emit_function))


@_emits("concat")
def _concat(b: Builder, node: Node, binding: Binding) -> None:
    perm = b.where(next((i for i in node.inputs if b.graph[i].op != "constant"), node.inputs[0]))[0]
    parts = []
    for edge, q in zip(node.inputs, binding.inputs, strict=True):
        table = rescaled(q, binding) if b.dialect.bits == 8 else None
        parts.append(rescaled_codes(b, b.get(edge, perm), q, binding.output, table))
    axis = perm.index(node.attrs["axis"] % len(perm))
    b.op("CONCATENATION", parts, b.made(node.name, perm), axis=axis)


@_emits("mean")
def _mean(b: Builder, node: Node, binding: Binding) -> None:
    perm, x = b.where(node.inputs[0])
    axes, keep = [a % len(perm) for a in node.attrs["axes"]], bool(node.attrs["keepdim"])
    rest = [p for p in perm if p not in axes]
    after = perm if keep else tuple(sorted(rest).index(p) for p in rest)
    own = b.made(node.name, after)
    inner = own if b.fused(binding) == "NONE" else b.like(own, f"{own}:unclamped", b.tensors[own].shape)
    _reduce(b, x, sorted(perm.index(a) for a in axes), inner, keep)
    if inner != own:
        b.clamp(inner, own, binding)


def _reduce(b: Builder, x: str, axes: list[int], output: str, keep: bool) -> None:
    """MEAN; XNNPACK takes 6 axes, so of more than 4 neighbours that are summed, or kept, become one."""
    shape = b.tensors[x].shape
    if len(shape) <= 4:
        b.op("MEAN", [x, b.const(":axes", np.array(axes, np.int32))], output, keepDims=keep)
        return
    runs = [(summed, [shape[i] for i in run]) for summed, run in groupby(range(len(shape)), axes.__contains__)]
    x = b.reshape(x, [math.prod(sizes) for _, sizes in runs])
    inner = b.like(output, f"{output}:joined", [math.prod(sizes) for summed, sizes in runs if not summed])
    where = np.array([i for i, (summed, _) in enumerate(runs) if summed], np.int32)
    b.finish(b.op("MEAN", [x, b.const(":axes", where)], inner, keepDims=False), output)


@_emits("softmax")
def _softmax(b: Builder, node: Node, binding: Binding) -> None:
    rank = len(node.shape)
    axis = node.attrs["axis"] % rank
    perm = (*(i for i in range(rank) if i != axis), axis)
    b.op("SOFTMAX", [b.get(node.inputs[0], perm)], b.made(node.name, perm), beta=1.0)


# -- windows --------------------------------------------------------------------------------------


def _windows(b: Builder, node: Node, binding: Binding, code: str, fill: int) -> None:
    """A pool over whole windows, of an operand that is padded first."""
    a, q = node.attrs, binding.inputs[0]
    x = b.image(node.inputs[0])
    kernel, stride = _pair(a["kernel"], 1), _pair(a["stride"], 1)
    begin = _pair(a["padding"], 0)
    inner, own = b.image_result(node.name)
    pads = [(0, 0)]
    for n, m, k, s, p in zip(b.tensors[x].shape[1:3], b.tensors[inner].shape[1:3], kernel, stride, begin, strict=True):
        pads.append((p, max(0, (m - 1) * s + k - n - p)))
    x = _padded(b, x, [*pads, (0, 0)], fill, int(q.zero_point))
    b.clamped(code, [x], inner, binding, padding=_VALID, strideH=stride[0], strideW=stride[1], filterHeight=kernel[0],
              filterWidth=kernel[1])
    b.finish(inner, own)


@_emits("avg_pool")
def _avg_pool(b: Builder, node: Node, binding: Binding) -> None:
    _windows(b, node, binding, "AVERAGE_POOL_2D", int(binding.inputs[0].zero_point))


@_emits("max_pool")
def _max_pool(b: Builder, node: Node, binding: Binding) -> None:
    _windows(b, node, binding, "MAX_POOL_2D", binding.inputs[0].qtype.qmin)


@_emits("interpolate")
def _interpolate(b: Builder, node: Node, binding: Binding) -> None:
    x, corners = b.image(node.inputs[0]), bool(node.attrs["align_corners"])
    inner, own = b.image_result(node.name)
    size = b.const(":size", np.array(b.tensors[inner].shape[1:3], np.int32))
    out = inner if b.fused(binding) == "NONE" else b.like(inner, f"{inner}:unclamped", b.tensors[inner].shape)
    b.op("RESIZE_BILINEAR", [x, size], out, alignCorners=corners, halfPixelCenters=not corners)
    if out != inner:
        b.clamp(out, inner, binding)
    b.finish(inner, own)


# -- moves ----------------------------------------------------------------------------------------


def _factors(source: Sequence[int], shape: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of a reshape that are split and merged among themselves, as (axes before, axes after), in order."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) and j < len(shape):
        before, after, have, want = [i], [j], source[i], shape[j]
        i, j = i + 1, j + 1
        while have != want:
            if have < want:
                have, i = have * source[i], i + 1
                before.append(i - 1)
            else:
                want, j = want * shape[j], j + 1
                after.append(j - 1)
        groups.append((before, after))
    groups = groups or [([], [])]
    groups[-1][0].extend(range(i, len(source)))  # of size 1
    groups[-1][1].extend(range(j, len(shape)))
    return groups


@_emits("reshape")
def _reshape(b: Builder, node: Node, binding: Binding) -> None:
    """Each group of axes that are split or merged stays where it lies in memory; only its own order is restored."""
    source, shape = b.shape(node.inputs[0]), b.shape(node.name)
    perm = b.where(node.inputs[0])[0]
    groups = _factors(source, shape)
    if len(groups) > 1:
        groups.sort(key=lambda g: min(perm.index(a) for a in ([a for a in g[0] if source[a] > 1] or g[0])))
    x = b.get(node.inputs[0], tuple(a for before, _ in groups for a in before))
    after = tuple(a for _, axes in groups for a in axes)
    b.put(node.name, after, b.reshape(x, [shape[a] for a in after], node.name))


@_emits("permute")
def _permute(b: Builder, node: Node, binding: Binding) -> None:
    axes = [a % len(node.shape) for a in node.attrs["axes"]]
    perm, x = b.where(node.inputs[0])
    b.put(node.name, tuple(axes.index(p) for p in perm), x)


@_emits("slice")
def _slice(b: Builder, node: Node, binding: Binding) -> None:
    a = node.attrs
    perm, x = b.where(node.inputs[0])
    shape = b.tensors[x].shape
    at = perm.index(a["axis"] % len(perm))
    first, last = (resolve_dim(a[k], b.sizes) for k in ("start", "end"))
    start, end, step = slice(first, last, a["step"]).indices(shape[at])
    begins, ends, steps = [0] * len(shape), list(shape), [1] * len(shape)
    begins[at], ends[at], steps[at] = start, end, step
    operands = [b.const(n, np.array(v, np.int32)) for n, v in ((":begin", begins), (":end", ends), (":step", steps))]
    b.op("STRIDED_SLICE", [x, *operands], b.made(node.name, perm))


@_emits("pad")
def _pad(b: Builder, node: Node, binding: Binding) -> None:
    perm, x = b.where(node.inputs[0])
    rank, given = len(perm), list(node.attrs["pads"])
    pads = [(0, 0)] * rank
    for i in range(len(given) // 2):
        pads[perm.index(rank - 1 - i)] = (int(given[2 * i]), int(given[2 * i + 1]))
    own = b.made(node.name, perm)
    if node.attrs["mode"] == "constant" and min(v for pair in pads for v in pair) >= 0:
        kernel = KERNELS["pad"](binding)
        assert isinstance(kernel, PadKernel)
        _pad_into(b, x, pads, kernel.value, int(binding.inputs[0].zero_point), own)
        return
    mode = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[node.attrs["mode"]]
    indices = {i: np.pad(np.arange(n), p, mode=mode) for i, (n, p) in  # type: ignore[call-overload]
               enumerate(zip(b.tensors[x].shape, pads, strict=True)) if p != (0, 0)}
    _gathers(b, x, indices, own)


def _gathers(b: Builder, x: str, indices: dict[int, Any], own: str) -> None:
    """Places of several axes, one after the other."""
    last = max(indices, default=0)
    for axis, index in indices.items() or [(0, range(b.tensors[x].shape[0]))]:
        x = b.gather(x, axis, [int(i) for i in index], own if axis == last else "")


@_emits("expand")
def _expand(b: Builder, node: Node, binding: Binding) -> None:
    shape = b.shape(node.name)
    source = b.shape(node.inputs[0])
    x = b.reshape(b.plain(node.inputs[0]), (1,) * (len(shape) - len(source)) + source)
    own = b.made(node.name, tuple(range(len(shape))))
    _gathers(b, x, {i: [0] * n for i, (n, m) in enumerate(zip(shape, b.tensors[x].shape, strict=True)) if n != m}, own)


@_emits("index_select")
def _index_select(b: Builder, node: Node, binding: Binding) -> None:
    perm, x = b.where(node.inputs[0])
    b.gather(x, perm.index(node.attrs["axis"] % len(perm)), node.attrs["indices"], b.made(node.name, perm))


@_emits("interpolate_nearest")
def _nearest(b: Builder, node: Node, binding: Binding) -> None:
    """RESIZE_NEAREST_NEIGHBOR where its index arithmetic is torch's, else places of each axis."""
    x = b.image(node.inputs[0])
    source, size = b.tensors[x].shape[1:3], _pair(resolve_shape(node.attrs["size"], b.sizes), 1)
    inner, own = b.image_result(node.name)
    grid = torch.arange(source[0] * source[1]).reshape(1, 1, *source)
    want = MOVES["interpolate_nearest"](grid, {"size": size}, {})[0, 0].numpy()
    theirs = resize_nearest(grid.permute(0, 2, 3, 1).numpy(), *size)[0, :, :, 0]
    if np.array_equal(want, theirs):
        b.op("RESIZE_NEAREST_NEIGHBOR", [x, b.const(":size", np.array(size, np.int32))], inner)
    else:
        _gathers(b, x, {1: want[:, 0] // source[1], 2: want[0] % source[1]}, inner)
    b.finish(inner, own)
