"""The host's C compiler: build the files of a network, and run them on samples."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intact.errors import ExportError
from intact.exporters.c.file import unpacked
from intact.exporters.c.program import CProgram, Port

__all__ = ["FLAGS", "compile_network", "compiler_version", "find_compiler", "read_trace", "run_samples"]

#: what the files must compile with, without a warning
FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror")
_DTYPES: dict[str, np.dtype[Any]] = {"s8": np.dtype("int8"), "u8": np.dtype("uint8"), "s16": np.dtype("int16")}
_SECONDS = 600


def find_compiler() -> str | None:
    """The first of ``gcc``, ``cc`` and ``clang`` that is installed."""
    return next((found for name in ("gcc", "cc", "clang") if (found := shutil.which(name))), None)


def compiler_version(compiler: str) -> str:
    """First line of what it says about itself."""
    return _run([compiler, "--version"], Path.cwd()).splitlines()[0]


def compile_network(compiler: str, folder: Path, stem: str, *flags: str, output: str = "program") -> Path:
    """Compile ``<stem>.c`` with ``<stem>_test.c``.

    Raises:
        ExportError: with the compiler's first message.
    """
    _run([compiler, *FLAGS, *flags, f"./{stem}.c", f"./{stem}_test.c", "-o", f"./{output}"], folder)
    return folder / output


def run_samples(
    binary: Path, program: CProgram, samples: Sequence[Mapping[str, Tensor]], *, launcher: Sequence[str] = ()
) -> list[dict[str, Tensor]]:
    """Output codes by edge, of every sample, computed by the compiled network.

    Args:
        binary: the compiled test program.
        program: the network.
        samples: input codes by edge.
        launcher: what starts the binary, such as an emulator.
    """
    folder = binary.parent
    (folder / "in.bin").write_bytes(b"".join(_bytes(p, s[p.edge]) for s in samples for p in program.inputs))
    _run([*launcher, str(binary), "in.bin", "out.bin"], folder)
    data, found, start = (folder / "out.bin").read_bytes(), [], 0
    for _ in samples:
        codes = {}
        for p in program.outputs:
            size = p.size * _DTYPES[p.ctype].itemsize
            array = np.frombuffer(data[start : start + size], _DTYPES[p.ctype])
            codes[p.edge] = torch.from_numpy(array.copy()).reshape(p.shape)
            start += size
        found.append(codes)
    return found


def read_trace(folder: Path, program: CProgram, samples: int) -> list[dict[str, Tensor]]:
    """Codes of every edge, of every sample, that a traced program left in its folder."""
    edges, start, found = program.traced, 0, []
    data = (folder / "trace").read_bytes() if edges else b""
    for _ in range(samples):
        codes: dict[str, Tensor] = {}
        for number, (edge, stored) in enumerate(edges):
            head = np.frombuffer(data[start : start + 8], np.int32)
            size = stored.size * _DTYPES[stored.ctype].itemsize
            if list(head) != [number, size]:
                raise ExportError("the traced program left out an edge", where=edge, got=list(head))
            array = np.frombuffer(data[start + 8 : start + 8 + size], _DTYPES[stored.ctype])
            codes[edge] = unpacked(stored, torch.from_numpy(array.copy()))
            start += 8 + size
        found.append(codes)
    return found


def _bytes(port: Port, codes: Tensor) -> bytes:
    return bytes(codes.contiguous().numpy().astype(_DTYPES[port.ctype]).tobytes())


def _run(command: Sequence[str], folder: Path) -> str:
    try:
        done = subprocess.run(list(command), cwd=folder, capture_output=True, text=True, errors="replace",
                              timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError("a program could not be run", where=command[0], got=str(error)[:300],
                          fix="name a compiler of this machine, whose programs run here (compiler=)") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ExportError("a program failed", where=" ".join(command)[:200],
                          got=said[:1000] or f"exit status {done.returncode}")
    return done.stdout
