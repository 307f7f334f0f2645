"""Pairs of products in 16 bits, counted: against a plain loop over every output, in the order of the kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.analysis import saturating_pairs
from intact.errors import CalibrationError
from intact.kernels import Binding


def plainly(b: Binding, x: Tensor) -> tuple[int, int, int]:
    """Pairs, pairs beyond 16 bits, outputs that have one: output by output, tap by tap."""
    assert b.weight is not None
    w, q, a = b.weight.codes.long(), b.inputs[0], b.attrs
    x = x.long() - q.qtype.qmin
    zero = int(q.zero_point) - q.qtype.qmin
    per, out = w.shape[1], len(w) // a["groups"]
    height, width = (x.shape[2 + i] + a["pad_begin"][i] + a["pad_end"][i] for i in (0, 1))
    padded = torch.full((*x.shape[:2], height, width), zero)
    top, left = a["pad_begin"]
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    pairs = beyond = wrong = 0
    reach = [a["dilation"][i] * (w.shape[2 + i] - 1) + 1 for i in (0, 1)]
    rows, columns = range(0, height - reach[0] + 1, a["stride"][0]), range(0, width - reach[1] + 1, a["stride"][1])
    for n, o, i, j in itertools.product(range(len(x)), range(len(w)), rows, columns):
        products = [int(w[o, c, u, v]) * int(padded[n, o // out * per + c, i + u * a["dilation"][0],
                                                    j + v * a["dilation"][1]])
                    for u in range(w.shape[2]) for v in range(w.shape[3]) for c in range(per)]
        sums = [sum(products[k : k + 2]) for k in range(0, len(products), 2)]
        bad = sum(not -(2**15) <= s < 2**15 for s in sums)
        pairs, beyond, wrong = pairs + len(sums), beyond + bad, wrong + (bad > 0)
    return pairs, beyond, wrong


@pytest.mark.parametrize(("layer", "channels"), [
    (nn.Conv2d(3, 4, 3, padding=1), 3), (nn.Conv2d(4, 4, (2, 3), stride=(1, 2), groups=2, padding=(1, 0)), 4),
    (nn.Conv2d(2, 3, 2, dilation=2, bias=False), 2), (nn.Conv2d(3, 3, 3, groups=3, padding=1), 3)], ids=str)
@pytest.mark.parametrize("target", ["onnxruntime", "fixed_point"])
def test_the_count_is_that_of_a_plain_loop(layer: nn.Conv2d, channels: int, target: str) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()
    x = torch.randn(2, channels, 6, 7).abs() * 3 - 1
    q = intact.quantize(layer, [x], target=target)
    (name, binding), = q.bindings.items()
    found = saturating_pairs(q, [x[:1], x[1:]]).layers[0]
    want = plainly(binding, q.codes(x)["input"])
    assert (found.pairs, found.saturated, found.wrong) == want and found.edge == name
    assert found.outputs == q(x).numel()
    if target == "onnxruntime":
        assert want[1] > 0 or layer.groups > 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))  # type: ignore[no-any-return]


def test_with_seven_bits_nothing_saturates_and_the_report_says_so() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 9) * 2
    risky = saturating_pairs(intact.quantize(Net(), [x]), [x])
    safe = saturating_pairs(intact.quantize(Net(), [x], target="x86_avx2"), [x])
    assert risky.saturated > 0 and "3 of 3 layers are at risk" in str(risky) and risky.samples == 4
    assert safe.saturated == 0 and all(x.at_risk == 0 for x in safe.layers) and "0 of 3 layers" in str(safe)


def test_without_data() -> None:
    q = intact.quantize(nn.Linear(3, 2), [torch.randn(4, 3)])
    with pytest.raises(CalibrationError, match="no data"):
        saturating_pairs(q, [])
    with pytest.raises(CalibrationError, match="batch 0"):
        saturating_pairs(q, [torch.randn(4, 5)])
