"""Weights of at most 4 bits in ONNX: two a byte in the file, int8 in the kernels, the same codes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import intact
from intact.exporters.runtime import optimised_nodes


class Net(nn.Module):
    """Odd numbers of weights, a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 9, 5)
        self.depth, self.head, self.odd = nn.Conv2d(9, 9, 3, groups=9), nn.Linear(9, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depth(torch.relu(self.body(torch.relu(self.stem(x))))))
        z = self.head(y.mean((2, 3)))
        return self.odd(self.odd(z))  # type: ignore[no-any-return]


def exported(bits: int, path: Path) -> tuple[intact.QModel, onnx.ModelProto]:
    torch.manual_seed(0)
    q = intact.quantize(Net().eval(), [torch.randn(8, 3, 12, 12)],
                        recipe=intact.Recipe(default=intact.Quant(weight_bits=bits)))
    certificate = intact.export(q, path)
    assert certificate.codes_differ == 0 and certificate.codes_compared > 0 and not certificate.not_fused
    assert certificate.outputs_differ == 0
    return q, onnx.load(path)


def nbytes(model: onnx.ModelProto) -> int:
    return sum(len(t.raw_data) for t in model.graph.initializer
               if t.name.endswith((":codes", ":int4")) and "bias" not in t.name)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_two_codes_a_byte_and_integer_kernels(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    q, model = exported(bits, path)
    weights = {n.params["weight"]: w.codes for n in q.graph
               if n.name in q.bindings and (w := q.bindings[n.name].weight) is not None}
    assert len(weights) == 5
    four = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert len(four) == 5
    assert sum(len(t.raw_data) for t in four) == sum((w.numel() + 1) // 2 for w in weights.values())
    kinds = [n.op_type for n in optimised_nodes(path)]
    assert kinds.count("QLinearConv") == 3 and kinds.count("QGemm") == 3 and "Conv" not in kinds


def test_eight_bits_stay_int8_and_take_twice_the_bytes(tmp_path: Path) -> None:
    _, four = exported(4, tmp_path / "four.onnx")
    _, eight = exported(8, tmp_path / "eight.onnx")
    assert {t.data_type for t in eight.graph.initializer} >= {onnx.TensorProto.INT8}
    assert not any(t.data_type == onnx.TensorProto.INT4 for t in eight.graph.initializer)
    assert nbytes(four) < 0.51 * nbytes(eight)
