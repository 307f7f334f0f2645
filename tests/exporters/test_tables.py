"""Functions of one code: the forms that the exporter chooses from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from torch import nn

import intact
from intact.exporters.builder import Builder
from intact.exporters.onnx.tables import _FORMS, _POSITION_DEPENDENT
from intact.exporters.runtime import open_session, optimised_nodes, wrap
from intact.graph import Graph, Node

ATTRS = {"elu": {"alpha": 0.7}}


@pytest.mark.parametrize("op", sorted(_FORMS))
def test_what_a_form_gives_does_not_depend_on_the_position(op: str) -> None:
    node = Node("y", op, ("x",), attrs=ATTRS.get(op, {}))
    b = Builder(Graph((), {}), {}, {}, {})
    out = _FORMS[op](b, node, "x")
    session = open_session(wrap(b, {"x": ("float32", [None])}, {out: ("float32", [None])}), threads=1)
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = (np.arange(256, dtype=np.float32) - 100) * np.float32(2 ** generator.uniform(-8, 0))
        expected = session.run(None, {"x": np.repeat(values, 64)})[0].reshape(256, 64)
        assert np.array_equal(expected, np.repeat(expected[:, :1], 64, axis=1))
        for size in (1, 3, 7, 9, 17, 31, 63, 255):
            index = generator.integers(0, 256, size)
            assert np.array_equal(session.run(None, {"x": values[index]})[0], expected[index, 0])


@pytest.mark.parametrize(("layer", "kernels"), [
    (nn.SiLU(), {"QuickGelu"}), (nn.Mish(), {"Exp", "Div"}), (nn.ELU(0.7), {"Exp", "Min"}), (nn.Softplus(), {"Gather"}),
])
def test_codes_are_those_of_the_table(layer: nn.Module, kernels: set[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 4, 1))
    q = intact.quantize(net, [torch.randn(8, 3, 12, 12)])
    certificate = intact.export(q, tmp_path / "net.onnx")
    assert certificate.clean
    assert kernels <= {n.op_type for n in optimised_nodes(tmp_path / "net.onnx")}


def test_an_operator_of_the_runtime_brings_its_definition(tmp_path: Path) -> None:
    torch.manual_seed(0)
    q = intact.quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1)), [torch.randn(8, 3, 12, 12)])
    intact.export(q, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    plain = onnx.inliner.inline_local_functions(model)
    assert {n.domain for n in model.graph.node} == {"", "com.microsoft"}
    assert {n.domain for n in plain.graph.node} == {""}
    x = {model.graph.input[0].name: np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)}
    found = [open_session(m).run(None, x)[0] for m in (model, plain)]
    assert np.array_equal(*found)


def test_functions_without_a_safe_form_are_looked_up() -> None:
    assert {"softplus", "log", "sin", "cos", "pow_scalar"} <= _POSITION_DEPENDENT - _FORMS.keys()
