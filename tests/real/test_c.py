"""ResNet-20 in C on CIFAR-10: the codes of the integer model, on every image."""

import subprocess
from pathlib import Path

import pytest
import torch

import intact
from intact.exporters.c.compiler import compile_network, find_compiler, run_samples
from intact.exporters.c.program import build_program

from .data import cifar10_test, cifar10_train, requires_shared, resnet20

pytestmark = [pytest.mark.real, requires_shared,
              pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler")]

IMAGES = 10_000


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16])
def test_resnet20_on_cifar10(bits: int, tmp_path: Path) -> None:
    images, _ = cifar10_train(slice(0, 512 * 39, 39))
    recipe = intact.Recipe(default=intact.Quant(activation_bits=bits))
    q = intact.quantize(resnet20(), list(images.split(64)), target="fixed_point", recipe=recipe)
    certificate = intact.export(q, tmp_path / "net.c")
    print(f"W8A{bits}: {certificate}")
    assert certificate.clean
    assert certificate.memory["constants"] <= 1.2 * certificate.memory["weights"]
    assert certificate.memory["arena"] <= 1.1 * certificate.memory["largest live set"]
    program, binary = build_program(q, "net"), compile_network(find_compiler() or "", tmp_path, "net")
    assert subprocess.run([binary], check=False).returncode == 0
    (edge,) = (p.edge for p in program.outputs)
    right = differ = 0
    for start in range(0, IMAGES, 500):
        x, labels = cifar10_test(slice(start, start + 500))
        want = q.codes(x)
        (given,) = (p.edge for p in program.inputs)
        found = torch.cat([s[edge] for s in run_samples(binary, program, [{given: c[None]} for c in want[given]])])
        differ += int((found != want[edge]).sum())
        right += int((found.argmax(1) == labels).sum())
    print(f"W8A{bits}: {differ} of {IMAGES * 10} output codes differ; top-1 {100 * right / IMAGES:.2f} %")
    assert differ == 0
