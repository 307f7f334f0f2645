"""Small networks with chosen numbers, and the two comparisons: simulation with integers, integers with the runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import intact
from intact.exporters.certificate import Certificate, certify
from intact.exporters.onnx.build import build, instrumented
from intact.simulation.bind import bind
from intact.types import Fixed, QParams, Shared

__all__ = ["Between", "Fan", "calibrated", "certified", "differing", "hard_inputs", "integer_ops", "respecified",
           "with_dyadic_weights"]

Op = Callable[..., Tensor]


class Fan(nn.Module):
    """Layers side by side on the same inputs: one capture and one session for a whole table of attributes."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, y: Tensor | None = None) -> list[Tensor]:
        return [layer(x) if y is None else layer(x, y) for layer in self.layers]


class Between(nn.Module):
    """An operation between integer ones: on the input's codes before a linear layer, or between convolutions."""

    def __init__(self, op: Op, *shapes: tuple[int, ...], convs: bool = False) -> None:
        super().__init__()
        self.op = op
        examples = [torch.rand(2, *s) for s in shapes]
        wide = len(shapes[0]) - 1
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[wide - 1] if convs else nn.Identity
        self.before = nn.ModuleList(conv(s[0], s[0], 1) if convs else nn.Identity() for s in shapes)
        y = op(*examples)
        self.after: nn.Module = conv(y.shape[1], 3, 1) if convs else nn.Linear(y.shape[-1], 3)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        xs = [x] if y is None else [x, y]
        z: Tensor = self.after(self.op(*[f(v) for f, v in zip(self.before, xs, strict=True)]))
        return z


def with_dyadic_weights(net: nn.Module) -> nn.Module:
    """Every weight a multiple of a power of two that is its channel's scale: sums of products are often ties."""
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim < 2:
                p.copy_(torch.randint(-64, 65, p.shape) / 32)
                continue
            codes = torch.randint(-127, 128, p.shape).float().flatten(1)
            codes[:, 0] = 127 * (1 - 2 * torch.randint(0, 2, (len(codes),)))
            p.copy_((codes * 2.0 ** torch.randint(-9, -6, (len(codes), 1))).reshape(p.shape))
    return net


def calibrated(
    fm: intact.FloatModel, xs: Sequence[Tensor], recipe: intact.Recipe | None = None, *, kind: str = "as calibrated",
    target: str = "onnxruntime",
) -> intact.QFloatModel:
    """A calibrated simulation; of another ``kind`` with the numbers of :func:`respecified`."""
    qfloat = intact.prepare(fm, intact.plan(fm, target=target, recipe=recipe))
    if kind == "dyadic":
        with_dyadic_weights(qfloat)
    intact.calibrate(qfloat, [tuple(xs)])
    return qfloat if kind == "as calibrated" else respecified(qfloat, kind)


def respecified(qfloat: intact.QFloatModel, kind: str, seed: int = 0) -> intact.QFloatModel:
    """The same model with other scales and zero points; edges that shared parameters still do.

    ``dyadic``: scales are powers of two, zero points odd, so that ties are frequent. ``wild``: scales up to a
    factor of 2 away, zero points at the ends of the range or anywhere (0 where the target has no other).
    """
    g = torch.Generator().manual_seed(seed)
    fresh: dict[tuple[float, int, str], QParams] = {}
    target = qfloat.plan.target

    def other(q: QParams) -> QParams:
        key = (float(q.scale), int(q.zero_point), str(q.qtype))
        if key not in fresh:
            u, v = (float(torch.rand((), generator=g)) for _ in range(2))
            low, high = q.qtype.qmin, q.qtype.qmax
            anywhere = low + int(u * (high - low + 1))
            if kind == "dyadic":
                scale, zero = 2.0 ** round(math.log2(key[0])), anywhere | 1
            else:
                scale, zero = key[0] * 2 ** (2 * v - 1), (low, high, anywhere, anywhere | 1)[int(v * 4)]
            symmetric = target.symmetric_activations or q.qtype.bits >= target.symmetric_from
            zero = 0 if symmetric and q.qtype.signed else min(zero, high)
            fresh[key] = QParams.per_tensor(scale, zero, q.qtype)
        return fresh[key]

    kept = {k for k, spec in qfloat.plan.edges.items() if isinstance(spec, Fixed)}
    for node in qfloat.plan.graph:
        spec = qfloat.plan.edges.get(node.name)
        if isinstance(spec, Shared) and spec.source in kept:
            kept.add(node.name)
    table = {k: q if k in kept else other(q) for k, q in qfloat._edge_params().items()}
    qfloat._bound = bind(qfloat.plan, qfloat._folded(), table)
    return qfloat


def hard_inputs(q: intact.QModel, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs at codes and half-way between them, the ends of the range and what lies beyond among them."""
    g = torch.Generator().manual_seed(seed)
    made = {}
    for node in q.graph.inputs:
        shape = [batch if d == "batch" else int(d) for d in node.shape]
        if node.name not in q.qparams:
            made[node.name] = torch.randn(shape, generator=g)
            continue
        p = q.qparams[node.name]
        low, high = 2 * p.qtype.qmin, 2 * p.qtype.qmax
        halves = torch.randint(low - 3, high + 4, shape, generator=g)
        where = torch.rand(shape, generator=g)
        halves = torch.where(where < 0.05, low, torch.where(where > 0.95, high, halves))
        made[node.name] = (halves - 2 * p.zero_point) * (p.scale * 0.5)
    return made


def differing(qfloat: intact.QFloatModel, q: intact.QModel, inputs: dict[str, Tensor]) -> list[str]:
    """E2: edges where the simulation has other codes than the integer model (and names that only one has)."""
    ours = qfloat.program.codes_from(inputs, integer=False)
    theirs = q.program.codes_from(inputs, integer=True)
    same = {k for k in ours.keys() & theirs.keys() if torch.equal(ours[k], theirs[k])}
    return sorted((ours.keys() | theirs.keys()) - same)


def certified(q: intact.QModel, folder: Path, inputs: dict[str, Tensor] | None = None) -> Certificate:
    """E3: what the runtime computed, held against the integer model; never raises on a difference."""
    path = folder / "net.onnx"
    path.write_bytes(build(q).SerializeToString())
    return certify(q, instrumented(q), path, inputs, True)


def integer_ops(q: intact.QModel) -> set[str]:
    """Canonical operations that run in integers."""
    return {b.op for b in q.bindings.values()}

