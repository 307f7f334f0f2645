"""The NumPy mirror against the engine: every node of every vector, from the engine's own codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import intact
from intact.graph import Node
from intact.kernels import Binding
from intact.kernels.base import activation_codes
from intact.reference import integer as mirror
from intact.types import QParams
from tests.parity.cases import CASES, Case
from tests.parity.harness import calibrated, hard_inputs

#: multiplied with weights, summed, or divided; tables and moves are the same code or none
MIRRORED = {"conv", "linear", "matmul", "add", "sub", "mul", "concat", "mean", "softmax", "layer_norm"}
RECIPE = intact.Recipe(default=intact.Quant(activation_observer="minmax"))


def encoding(q: QParams, clip: tuple[int, int] | None = None) -> mirror.Codes:
    low, high = clip or (q.qtype.qmin, q.qtype.qmax)
    return mirror.Codes(float(q.scale), int(q.zero_point), low, high)


def mirrored(b: Binding, xs: list[np.ndarray]) -> np.ndarray:
    """Codes of one node."""
    rounding: Any = b.arithmetic.rounding.value
    ins, out = [encoding(q) for q in b.inputs], encoding(b.output, activation_codes(b))
    a = b.attrs
    if b.op in ("add", "sub"):
        return mirror.weighted_sum(*xs, *ins, out, rounding, 1 if b.op == "add" else -1)
    if b.op == "mul":
        return mirror.multiply(*xs, *ins, out, rounding)
    if b.op == "concat":
        return np.concatenate([mirror.rescale(x, q, out, rounding) for x, q in zip(xs, ins, strict=True)], a["axis"])
    if b.op == "mean":
        axes = tuple(a["axes"])
        total = (xs[0].astype(np.int64) - ins[0].zero).sum(axes, keepdims=a["keepdim"])
        return mirror.average(total, np.prod([xs[0].shape[i] for i in axes]), ins[0], out, rounding)
    if b.op == "softmax":
        return mirror.softmax(xs[0], a["axis"], ins[0], b.inputs[0].qtype.bits, out)
    if b.op == "matmul":
        acc = (xs[0].astype(np.int64) - ins[0].zero) @ (xs[1].astype(np.int64) - ins[1].zero)
        return mirror.requantize(acc, ins[0].scale * ins[1].scale / out.scale, out, rounding)
    weight = None if b.weight is None else b.weight.centred().numpy()
    bias = None if b.bias is None else b.bias.numpy()
    if b.op == "layer_norm":
        axes = tuple(range(xs[0].ndim - len(a["shape"]), xs[0].ndim))
        scale = 1.0 if b.weight is None else float(b.weight.qparams.scale)
        return mirror.layer_norm(xs[0], axes, a["eps"], weight, scale, bias, ins[0], out, rounding)
    assert b.weight is not None and weight is not None
    real = ins[0].scale * b.weight.qparams.scale.double().numpy() / out.scale
    if b.op == "linear":
        return mirror.requantize(mirror.linear(xs[0], weight, bias, ins[0].zero), real, out, rounding)
    acc = mirror.conv(xs[0], weight, bias, ins[0].zero, stride=a["stride"], begin=a["pad_begin"], end=a["pad_end"],
                      dilation=a["dilation"], groups=a["groups"])
    real = real.reshape(-1, *[1] * (acc.ndim - 2)) if real.ndim else real
    return mirror.requantize(acc, real, out, rounding)


def nodes(q: intact.QModel) -> list[Node]:
    return [n for n in q.graph if n.op in MIRRORED]


VECTORS = [c for c in CASES if c.covers & MIRRORED and c.name != "attention"]


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: c.name)
def test_the_mirror_gives_the_engines_codes(case: Case) -> None:
    torch.manual_seed(1)
    fm = intact.capture(case.build(), tuple(torch.randn(4, *s) for s in case.shapes))
    xs = tuple(torch.randn(4, *s) for s in case.shapes)
    q = intact.convert(calibrated(fm, xs, RECIPE, kind="wild", target="fixed_point"))
    codes = {k: v.numpy() for k, v in q.codes(**hard_inputs(q, 2)).items()}
    assert nodes(q)
    for node in nodes(q):
        found = mirrored(q.bindings[node.name], [codes[i] for i in node.inputs])
        assert np.array_equal(found, codes[node.name]), node.name
