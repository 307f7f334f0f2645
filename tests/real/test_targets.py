"""The trained ResNet-20 on the integer targets: nothing saturates in pairs, and what each costs in accuracy."""

from __future__ import annotations

import pytest
import torch

import intact
from intact.analysis import saturating_pairs

from .data import cifar10_test, cifar10_train, requires_shared, resnet20

pytestmark = [pytest.mark.real, requires_shared]

IMAGES = 1_000
#: correct of the 1,000 may be fewer than in float by so many
LOSS = {"x86_avx2": 10, "horizon_j6": 10, "horizon_j6_half_up": 10, "power_of_two": 15}


@pytest.mark.parametrize("target", LOSS)
def test_accuracy(target: str) -> None:
    net, (x, y) = resnet20(), cifar10_test(slice(None, None, 10_000 // IMAGES))
    batches = list(cifar10_train(slice(0, 512 * 39, 39))[0].split(64))
    q = intact.quantize(net, batches, target=target)
    with torch.no_grad():
        right = [int((torch.cat([f(b) for b in x.split(100)]).argmax(1) == y).sum()) for f in (net, q)]
    bits = [b.weight.qparams.qtype.bits for b in q.bindings.values() if b.weight is not None]
    print(f"{target}: {right[1]} of {IMAGES} (float {right[0]}), {bits.count(7)} of {len(bits)} layers with 7 bits")
    assert right[1] >= right[0] - LOSS[target]
    if target == "x86_avx2":
        found = saturating_pairs(q, [x[:4]])
        assert found.saturated == 0 and all(layer.at_risk == 0 for layer in found.layers)
        eight = saturating_pairs(intact.quantize(net, batches), [x[:4]])
        assert eight.saturated > 0  # without it this network would be wrong on such a machine
