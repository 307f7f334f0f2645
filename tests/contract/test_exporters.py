"""What every exporter must do: the file that it wrote, loaded by its runtime, gives what the integer model gives.

A new exporter needs a line in RUNNERS: how its files are run.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

import intact
from intact.api import EXPORTERS
from intact.errors import ExportError
from intact.graph.capture import capture_program
from tests.zoo import ZOO

Arrays = dict[str, np.ndarray]


def run_onnx(file: Path, inputs: Arrays) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file)
    assert [x.name for x in session.get_inputs()] == list(inputs)
    found: list[np.ndarray] = session.run(None, inputs)
    return found


def run_litert(file: Path, inputs: Arrays) -> list[np.ndarray]:
    """One sample after the other, where the file takes one."""
    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    rows, results = interpreter.get_input_details(), interpreter.get_output_details()
    assert [r["name"] for r in rows] == list(inputs)
    step = int(rows[0]["shape"][0])
    found = []
    for i in range(0, len(next(iter(inputs.values()))), step):
        for row in rows:
            interpreter.set_tensor(row["index"], inputs[row["name"]][i: i + step])
        interpreter.invoke()
        found.append([interpreter.get_tensor(r["index"]) for r in results])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


_PORT = re.compile(r"(input|output) '.*': (\w+) \w+\[\d+\], shape \((.*)\), \w+, scale (\S+), zero point (\S+)$", re.M)


def run_c(file: Path, inputs: Arrays) -> list[np.ndarray]:
    """As the header says: codes in, codes out, one sample (or one fixed batch) at a time."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    binary, test = file.with_suffix(""), file.with_name(f"{file.stem}_test.c")
    subprocess.run(["gcc", "-std=c99", "-O2", str(file), str(test), "-o", str(binary)], check=True)
    assert subprocess.run([binary], check=False).returncode == 0
    ports = _PORT.findall(file.with_suffix(".h").read_text())
    shapes = [tuple(int(n) for n in p[2].split(",") if n.strip()) for p in ports]
    assert sum(p[0] == "input" for p in ports) == len(inputs)
    samples = next(iter(inputs.values())).shape[0] // shapes[0][0]
    parts = []
    for i in range(samples):
        for x, (_, ctype, _, scale, zero), shape in zip(inputs.values(), ports, shapes, strict=False):
            values = x[i * shape[0] : (i + 1) * shape[0]] / np.float32(scale)
            codes = np.floor(values.astype(np.float64) + 0.5) + int(zero)  # ties up, as the target rounds
            parts.append(codes.clip(*((-128, 127) if ctype == "int8_t" else (0, 255))).astype(ctype.removesuffix("_t")))
    (file.parent / "in").write_bytes(b"".join(np.ascontiguousarray(p).tobytes() for p in parts))
    subprocess.run([binary, file.parent / "in", file.parent / "out"], check=True)
    data, found = (file.parent / "out").read_bytes(), []
    for _ in range(samples):
        made = []
        for (_, ctype, _, scale, zero), shape in list(zip(ports, shapes, strict=True))[len(inputs) :]:
            codes = np.frombuffer(data, ctype.removesuffix("_t"), math.prod(shape)).reshape(shape)
            data = data[codes.nbytes :]
            made.append((codes.astype(np.float32) - np.float32(zero)) * np.float32(scale))
        found.append(made)
    return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]


#: format -> the outputs of a file, in order, for named inputs
RUNNERS: dict[str, Callable[[Path, Arrays], list[np.ndarray]]] = {"onnx": run_onnx, "c": run_c, "tflite": run_litert}
#: format -> the target whose models it takes
TARGETS = {"onnx": "onnxruntime", "c": "fixed_point", "tflite": "litert"}
#: without softmax and layer norm, whose last bit may differ between torch and a runtime
SMALL = [e.name for e in ZOO.values() if math.prod(e.input_shape) <= 3 * 32 * 32 and "vit" not in e.name]


class TwoInputs(nn.Module):
    """Two inputs, one output read again, in a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(5, 8)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, object]:
        y = torch.relu(self.a(left) + self.b(right))
        return {"first": y, "rest": [self.a(left), (y.flip(1),)]}


@functools.cache
def quantized(name: str, target: str) -> tuple[intact.QModel, tuple[Tensor, ...]]:
    if name == "two inputs":
        xs: tuple[Tensor, ...] = (torch.randn(9, 6), torch.randn(9, 5))
        return intact.quantize(TwoInputs(), [xs], target=target), xs
    if name == "fixed batch":
        x = torch.randn(9, 6)
        program = torch.export.export(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (x,))
        return intact.quantize(capture_program(program), [x], target=target), (x,)
    x = ZOO[name].example(9)
    return intact.quantize(ZOO[name].build(), [x], target=target), (x,)


def flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for item in items for t in flat(item)]  # type: ignore[attr-defined]


def test_every_exporter_can_be_run() -> None:
    assert set(RUNNERS) == set(EXPORTERS)


@pytest.mark.parametrize("name", [*SMALL, "two inputs", "fixed batch"])
@pytest.mark.parametrize("kind", sorted(EXPORTERS))
def test_the_file_gives_what_the_integer_model_gives(kind: str, name: str, tmp_path: Path) -> None:
    q, xs = quantized(name, TARGETS[kind])
    path = tmp_path / f"net.{kind}"
    certificate = intact.export(q, path)
    assert isinstance(certificate, intact.Certificate)
    assert certificate.ok and certificate.codes_compared > 0
    assert any(p.suffix == ".json" for p in tmp_path.iterdir())  # the certificate stands beside the file
    for batch in (9,) if name == "fixed batch" else (1, 3, 9):
        part = [x[:batch] * 1.5 for x in xs]
        inputs = {n.name: x.numpy() for n, x in zip(q.graph.inputs, part, strict=True)}
        found = RUNNERS[kind](path, inputs)
        want = flat(q(*part))
        assert len(found) == len(want)
        assert all(torch.equal(torch.from_numpy(a), b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("kind", sorted(EXPORTERS))
def test_the_same_file_twice(kind: str, tmp_path: Path) -> None:
    q, _ = quantized("two inputs", TARGETS[kind])
    files = [tmp_path / n / f"net.{kind}" for n in "ab"]
    for file in files:
        file.parent.mkdir()
        intact.export(q, file)
    assert files[0].read_bytes() == files[1].read_bytes()


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if x.sum() > 0 else x


@pytest.mark.parametrize("kind", sorted(EXPORTERS))
def test_what_is_refused_leaves_no_file(kind: str, tmp_path: Path) -> None:
    q = intact.quantize(nn.Sequential(nn.Linear(4, 4), Branch(), nn.Linear(4, 2)), [torch.randn(4, 4)])
    with pytest.raises(ExportError):
        intact.export(q, tmp_path / f"net.{kind}")
    simulated = intact.quantize(nn.Linear(4, 4), [torch.randn(4, 4)], target="reference")
    with pytest.raises(ExportError):
        intact.export(simulated, tmp_path / f"net.{kind}")
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown export format") as caught:
        intact.export(quantized("two inputs", "onnxruntime")[0], tmp_path / "net.unknown")
    assert all(kind in str(caught.value) for kind in EXPORTERS)
