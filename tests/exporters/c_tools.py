"""Networks in C, compiled with the sanitizers and every warning, and run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import intact
from intact.exporters.c.compiler import compile_network, find_compiler, read_trace, run_samples
from intact.exporters.c.export import sample_codes
from intact.exporters.c.file import header, source, vector_program
from intact.exporters.c.program import CProgram, build_program

__all__ = ["SANITIZED", "STRICT", "differences", "needs_compiler", "needs_gcc", "written"]

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed; its sanitizers are used")
STRICT = ("-Wconversion", "-Wshadow", "-Wpedantic", "-Wstrict-prototypes", "-Wvla")
SANITIZED = ("-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")


def written(q: intact.QModel, folder: Path, data: object = None, stem: str = "net") -> tuple[CProgram, list[dict]]:
    """The files of a network, without any check, and the codes of all its edges for some samples."""
    program = build_program(q, stem)
    wanted = [q.program.codes_from(s, integer=True) for s in sample_codes(q, data)]
    (folder / f"{stem}.c").write_text(source(program, stem))
    (folder / f"{stem}.h").write_text(header(program, stem))
    (folder / f"{stem}_test.c").write_text(vector_program(program, stem, wanted[-2:], wanted[-2:]))
    return program, wanted


def differences(q: intact.QModel, folder: Path, data: object = None, flags: tuple[str, ...] = SANITIZED,
                compiler: str = "gcc") -> list[str]:
    """Edges whose codes are others in C, in a build with sanitizers."""
    program, wanted = written(q, folder, data)
    binary = compile_network(compiler, folder, "net", *STRICT, *flags, "-DNET_TRACE")
    (folder / "trace").unlink(missing_ok=True)
    outputs = run_samples(binary, program, wanted)
    found = read_trace(folder, program, len(wanted))
    bad = [name for want, codes in zip(wanted, found, strict=True) for name in codes
           if not torch.equal(codes[name], want[name])]
    bad += [f"output {name}" for want, codes in zip(wanted, outputs, strict=True) for name in codes
            if not torch.equal(codes[name], want[name])]
    return bad
