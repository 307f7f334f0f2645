"""A few steps of low-bit training on real images: the figure of the training log is that of the deployed file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import intact
from intact import Distill, Quant, Recipe, Rule, first, last, op
from intact.exporters.runtime import open_session

from .data import cifar10_test, cifar10_train, requires_shared, resnet20

pytestmark = [pytest.mark.real, requires_shared]

STEPS, BATCH, IMAGES = 40, 64, 2_000


@pytest.mark.parametrize("bits", [4, 2])
def test_the_figure_seen_is_the_figure_shipped(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = cifar10_train(slice(0, 7 * STEPS * BATCH, 7))
    wide = Quant(weight_quantizer="lsq", activation_quantizer="lsq")
    low = replace(wide, weight_bits=bits, activation_bits=bits)
    recipe = Recipe(rules=(Rule(first() | last(), wide), Rule(op("add"), replace(wide, output_bits=bits))), default=low)
    fm = intact.capture(resnet20().eval(), x[:8])
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, recipe=recipe)), [x[:256]])
    images, labels = cifar10_test()
    before = accuracy(qfloat, images[:IMAGES], labels[:IMAGES])
    order = torch.randperm(len(x))
    batches = [(x[part], y[part]) for part in order.split(BATCH)]
    intact.train(qfloat, batches, distill=Distill(weight=0.9, temperature=4.0))
    after = accuracy(qfloat, images[:IMAGES], labels[:IMAGES])
    q = intact.convert(qfloat)
    assert intact.export(q, tmp_path / "net.onnx").codes_differ == 0
    session = open_session(tmp_path / "net.onnx")
    (feed,) = (i.name for i in session.get_inputs())
    outputs = np.concatenate([session.run(None, {feed: b.numpy()})[0] for b in images[:IMAGES].split(100)])
    with torch.no_grad():
        simulated = torch.cat([qfloat(b) for b in images[:IMAGES].split(100)])
    assert torch.equal(torch.from_numpy(outputs), simulated)
    print(f"W{bits}A{bits}: {before:.2f} % calibrated, {after:.2f} % after {STEPS} steps")
    assert after > before


def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        found = torch.cat([model(b).argmax(1) for b in images.split(100)])
    return 100.0 * float((found == labels).double().mean())
