"""Trained networks in C on real images: the codes of the simulation and of the integer model, on every image."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.exporters.c.compiler import compile_network, find_compiler, run_samples
from intact.exporters.c.program import build_program
from tests.parity.harness import differing

from .data import cifar10_test, cifar10_train, imagenet_sample, requires_shared, resnet20, squeezenet

pytestmark = [pytest.mark.real, pytest.mark.slow, requires_shared,
              pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler")]

RESNET_IMAGES = 10_000
SQUEEZENET_IMAGES = 1_000


def top1_in_c(net: nn.Module, calibration: Tensor, bits: int, data: Iterator[tuple[Tensor, Tensor]],
              folder: Path) -> float:
    """Percent, once QFloat, Q and the compiled program gave the same codes on every image."""
    recipe = intact.Recipe(default=intact.Quant(activation_bits=bits))
    fm = intact.capture(net, calibration[:2])
    qfloat = intact.prepare(fm, intact.plan(fm, target="fixed_point", recipe=recipe))
    q = intact.convert(intact.calibrate(qfloat, list(calibration.split(64))))
    certificate = intact.export(q, folder / "net.c")
    assert certificate.clean, str(certificate)
    assert certificate.memory["constants"] <= 1.2 * certificate.memory["weights"]
    assert certificate.memory["arena"] <= 1.1 * certificate.memory["largest live set"]
    program, binary = build_program(q, "net"), compile_network(find_compiler() or "", folder, "net")
    assert subprocess.run([binary], check=False).returncode == 0
    (given,), (edge,) = ([p.edge for p in ports] for ports in (program.inputs, program.outputs))
    right = seen = codes = 0
    for x, labels in data:
        assert differing(qfloat, q, {given: x}) == []
        want = q.codes(x)
        found = torch.cat([s[edge] for s in run_samples(binary, program, [{given: c[None]} for c in want[given]])])
        assert torch.equal(found, want[edge])
        right += int((found.flatten(1).argmax(1) == labels).sum())
        seen, codes = seen + len(x), codes + found.numel()
    print(f"W8A{bits}: 0 of {codes:,} output codes differ on {seen} images, top-1 {100 * right / seen:.2f} %; "
          f"arena {certificate.memory}")
    return 100 * right / seen


@pytest.mark.parametrize(("bits", "top1"), [(8, 87.45), (16, 87.6)])
def test_resnet20_on_cifar10(bits: int, top1: float, tmp_path: Path) -> None:
    """8 bits: what the target `onnxruntime` reaches, less 0.1. 16 bits: the float model, less 0.05."""
    images, _ = cifar10_train(slice(0, 512 * 39, 39))
    data = (cifar10_test(slice(i, i + 250)) for i in range(0, RESNET_IMAGES, 250))
    assert top1_in_c(resnet20(), images, bits, data, tmp_path) >= top1


def test_squeezenet_on_imagenet(tmp_path: Path) -> None:
    images, _ = imagenet_sample(slice(0, 1000, 4))
    data = (imagenet_sample(slice(i, i + 20)) for i in range(0, SQUEEZENET_IMAGES, 20))
    assert top1_in_c(squeezenet(), images, 8, data, tmp_path) >= 60.9
