"""Networks in C: the codes of the integer model, memory, names, refusals, other processors."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.arithmetic import shared_fixed_point
from intact.errors import ExportError
from intact.exporters.c import export as c_export
from intact.exporters.c.compiler import compile_network, run_samples
from intact.exporters.c.ops import C_OPS
from tests.zoo import ZOO

from .c_tools import differences, needs_compiler, needs_gcc, written
from .tiny import TINY


@functools.cache
def tiny(name: str) -> intact.QModel:
    build, shape = TINY[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return intact.quantize(build(), [torch.randn(4, *shape)], target="fixed_point")


def quantized(net: nn.Module, *xs: Tensor, recipe: intact.Recipe | None = None) -> intact.QModel:
    return intact.quantize(net, [xs], target="fixed_point", recipe=recipe)


@needs_gcc
@pytest.mark.parametrize("name", sorted(TINY))
def test_networks_of_microcontrollers(name: str, tmp_path: Path) -> None:
    certificate = intact.export(tiny(name), tmp_path / "net.c")
    assert certificate.clean and certificate.outputs_compared > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.c", "net.c.certificate.json", "net.h", "net_test.c"]
    memory = certificate.memory
    assert memory["arena"] <= 1.1 * memory["largest live set"]
    assert memory["constants"] <= 1.25 * memory["weights"]  # 9 bytes a channel: much where channels have few weights
    assert f"#define NET_ARENA_BYTES {memory['arena']} " in (tmp_path / "net.h").read_text()
    assert json.loads((tmp_path / "net.c.certificate.json").read_text())["memory"] == memory
    for word in ("float", "double", "malloc", "<math.h>", "<stdlib.h>"):
        assert word not in re.sub(r"/\*.*?\*/", "", (tmp_path / "net.c").read_text(), flags=re.S)
    # the vectors pass, and a wrong one does not
    test, text = tmp_path / "net_test.c", (tmp_path / "net_test.c").read_text()
    assert subprocess.run([compile_network("gcc", tmp_path, "net")], check=False).returncode == 0
    head, want, rest = text.partition(" want_")
    test.write_text(head + want + re.sub(r"\{(-?\d+)", lambda m: f"{{{int(m[1]) ^ 1}", rest, count=1))
    assert test.read_text() != text
    assert subprocess.run([compile_network("gcc", tmp_path, "net")], check=False).returncode == 1


@needs_gcc
@pytest.mark.parametrize("name", ["keyword", "squeezenet1_1", "shufflenet_v2", "unet_bilinear", "mobilenet_v3_large",
                                  "vit_sdpa"])
def test_networks_of_the_zoo_under_sanitizers(name: str, tmp_path: Path) -> None:
    q = intact.quantize(ZOO[name].build(), [ZOO[name].example(4)], target="fixed_point")
    assert differences(q, tmp_path) == []


@needs_gcc
@pytest.mark.parametrize("weights, activations", [(8, 16), (4, 8), (4, 16), (2, 4)])
def test_other_widths(weights: int, activations: int, tmp_path: Path) -> None:
    recipe = intact.Recipe(default=intact.Quant(weight_bits=weights, activation_bits=activations))
    build, shape = TINY["resnet8"]
    q = intact.quantize(build(), [torch.randn(4, *shape)], target="fixed_point", recipe=recipe)
    assert differences(q, tmp_path) == []


@needs_gcc
@pytest.mark.parametrize("target", ["power_of_two", "horizon_j6", "horizon_j6_half_up"])
def test_other_targets_of_integers(target: str, tmp_path: Path) -> None:
    build, shape = TINY["resnet8"]
    q = intact.quantize(build(), [torch.randn(4, *shape)], target=target)
    assert differences(q, tmp_path) == []


class Tricky(nn.Module):
    """Results that must not overwrite what is read again, views of one another, and outputs of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.register_buffer("c", torch.randn(1, 4, 6, 6))

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.a(x)
        turned = y + y.transpose(2, 3)           # two views of one memory
        late = self.b(turned) * y
        rows = y.flatten(2).transpose(1, 2) @ y.flatten(2)
        return {"x": x, "y": y, "again": y, "turned": turned, "flat": late.flatten(1), "rows": rows,
                "constant": torch.relu(y - self.c), "up": nn.functional.interpolate(y, scale_factor=2.0)}


@needs_gcc
def test_memory_is_not_reused_too_early(tmp_path: Path) -> None:
    q = quantized(Tricky(), torch.randn(4, 3, 6, 6))
    assert differences(q, tmp_path) == []
    assert intact.export(q, tmp_path / "net.c").clean


@needs_compiler
def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert intact.export(tiny("autoencoder"), "net.c").clean
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.c", "net.c.certificate.json", "net.h", "net_test.c"]


@needs_compiler
def test_names_of_every_kind(tmp_path: Path) -> None:
    names = ["int", "for", "conv2d_s8_s8", "a b", "a_b", "größe", "arena", "*/ int x; /*", "x", "output", "AXES", "9"]
    net = nn.Sequential()
    for name in names:
        net.add_module(name, nn.Conv2d(2, 2, 1, groups=2 if len(name) == 1 else 1))
    q = quantized(net, torch.randn(4, 2, 3, 3))
    for file in ("my net-1.c", "int.c", "2.c", "größe.c", "arena.c"):
        assert intact.export(q, tmp_path / file).clean
    assert "/* a b: conv" in (tmp_path / "int.c").read_text()
    for bad in ('quote".c', "back\\slash.c", "line\nbreak.c"):
        with pytest.raises(ExportError, match="can have this name"):
            intact.export(q, tmp_path / bad)


def test_without_a_compiler_the_certificate_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_export, "find_compiler", lambda: None)
    certificate = intact.export(tiny("autoencoder"), tmp_path / "net.c")
    assert not certificate.ok and not certificate.clean and not certificate.checked
    assert "NOT CHECKED" in str(certificate) and "no C compiler" in str(certificate)
    assert (tmp_path / "net.c").is_file()


@needs_compiler
def test_other_codes_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = shared_fixed_point
    monkeypatch.setattr("intact.exporters.c.ops.shared_fixed_point", lambda r: (fixed(r)[0], fixed(r)[1] + 1))
    with pytest.raises(ExportError, match="other codes") as caught:
        intact.export(tiny("resnet8"), tmp_path / "net.c")
    assert "edge" in str(caught.value) and not list(tmp_path.iterdir())


def test_what_has_no_c_form_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(C_OPS, "mean")
    with pytest.raises(ExportError, match="without C form") as caught:
        intact.export(tiny("resnet8"), tmp_path / "net.c")
    assert "mean, integer" in str(caught.value) and not list(tmp_path.iterdir())
    monkeypatch.undo()
    volume = quantized(nn.Conv3d(2, 3, 2), torch.randn(4, 2, 3, 4, 5))
    with pytest.raises(ExportError, match=r"no C form.*5 axes"):
        intact.export(volume, tmp_path / "net.c")
    other = intact.quantize(nn.Linear(4, 2), [torch.randn(8, 4)])
    with pytest.raises(ExportError, match="computes in float"):
        intact.export(other, tmp_path / "net.c")
    rows = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("rows")}}
    program = torch.export.export(nn.Sequential(nn.Linear(4, 2)), (torch.randn(3, 5, 4),), dynamic_shapes=(rows["x"],))
    free = intact.quantize(program, [torch.randn(3, 5, 4)], target="fixed_point")
    with pytest.raises(ExportError, match="no fixed size"):
        intact.export(free, tmp_path / "net.c")
    with pytest.raises(ExportError, match=r"could not be run|failed"):
        intact.export(tiny("resnet8"), tmp_path / "net.c", compiler="no-such-compiler")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("machine, emulator", [
    ("aarch64-linux-gnu", "qemu-aarch64"), ("arm-linux-gnueabihf", "qemu-arm")])
def test_on_arm(machine: str, emulator: str, tmp_path: Path) -> None:
    compiler, launcher = shutil.which(f"{machine}-gcc"), shutil.which(emulator)
    if compiler is None or launcher is None:
        pytest.skip(f"{machine}-gcc and {emulator} (Debian: gcc-{machine}, qemu-user) are not both installed")
    program, wanted = written(tiny("ds_cnn"), tmp_path)
    binary = compile_network(compiler, tmp_path, "net", "-static")
    found = run_samples(binary, program, wanted, launcher=(launcher,))
    assert all(torch.equal(codes[k], want[k]) for want, codes in zip(wanted, found, strict=True) for k in codes)
