"""Trained networks on real images in the LiteRT interpreter, for each of its targets: every code of every edge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.exporters.litert.export import build_litert, compare_litert
from tests.parity.harness import differing

from .data import cifar10_test, cifar10_train, imagenet_sample, requires_shared, resnet20, squeezenet

pytestmark = [pytest.mark.real, pytest.mark.slow, requires_shared]

TARGETS = ("litert", "litert_reference")
RESNET_IMAGES = 10_000
SQUEEZENET_IMAGES = 1_000
#: the reference kernels of 16 bits are slow
WIDE_RESNET_IMAGES, WIDE_SQUEEZENET_IMAGES = 500, 20
#: percent; what the target `onnxruntime` reaches on the same images, less 0.1
RESNET_TOP1, SQUEEZENET_TOP1 = 87.45, 60.9


def top1_in_litert(net: nn.Module, calibration: Tensor, target: str, data: Iterator[tuple[Tensor, Tensor]],
                   batch: int) -> float:
    """Percent, once QFloat, Q and the interpreter gave the same codes on every image."""
    qfloat = intact.prepare(fm := intact.capture(net, calibration[:2]), intact.plan(fm, target=target))
    intact.calibrate(qfloat, list(calibration.split(64)))
    q = intact.convert(qfloat)
    file, twin = (build_litert(q, batch=batch, edges=edges) for edges in (False, True))
    (feed,) = (n.name for n in q.graph.inputs)
    right = seen = codes = 0
    for x, labels in data:
        assert differing(qfloat, q, {feed: x}) == []
        certificate = compare_litert(q, file, twin, x)
        assert certificate.clean and certificate.samples == len(x), str(certificate)
        right += int((q(x).flatten(1).argmax(1) == labels).sum())
        seen, codes = seen + len(x), codes + certificate.codes_compared
    print(f"{target}: 0 of {codes:,} codes differ on {seen} images, top-1 {100 * right / seen:.2f} %")
    return 100 * right / seen


@pytest.mark.parametrize("target", TARGETS)
def test_resnet20_on_cifar10(target: str) -> None:
    images, _ = cifar10_train(slice(0, 512 * 39, 39))
    data = (cifar10_test(slice(i, i + 250)) for i in range(0, RESNET_IMAGES, 250))
    assert top1_in_litert(resnet20(), images, target, data, 25) >= RESNET_TOP1


@pytest.mark.parametrize("target", TARGETS)
def test_squeezenet_on_imagenet(target: str) -> None:
    images, _ = imagenet_sample(slice(0, 1000, 4))
    data = (imagenet_sample(slice(i, i + 25)) for i in range(0, SQUEEZENET_IMAGES, 25))
    assert top1_in_litert(squeezenet(), images, target, data, 5) >= SQUEEZENET_TOP1


def test_resnet20_with_16_bits() -> None:
    """As good as the float model, on the images that both saw."""
    net, (images, _) = resnet20(), cifar10_train(slice(0, 512 * 39, 39))
    step = 10_000 // WIDE_RESNET_IMAGES
    with torch.no_grad():
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in [cifar10_test(slice(0, None, step))])
    data = (cifar10_test(slice(i * step, (i + 50) * step, step)) for i in range(0, WIDE_RESNET_IMAGES, 50))
    assert top1_in_litert(net, images, "litert_16x8", data, 25) >= 100 * right / WIDE_RESNET_IMAGES - 0.3


def test_squeezenet_with_16_bits() -> None:
    images, _ = imagenet_sample(slice(0, 1000, 20))
    data = (imagenet_sample(slice(i, i + 5)) for i in range(0, WIDE_SQUEEZENET_IMAGES, 5))
    top1_in_litert(squeezenet(), images, "litert_16x8", data, 5)
