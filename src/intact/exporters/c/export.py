"""QModel -> C99 of integers, and the proof that a compiler makes our codes of it."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intact.arithmetic import (
    BinaryRule,
    FunctionRule,
    MatMulRule,
    MeanRule,
    PoolRule,
    Requantize,
    ResizeRule,
    SoftmaxRule,
)
from intact.engine import QModel
from intact.errors import ExportError
from intact.exporters.c.compiler import compile_network, compiler_version, find_compiler, read_trace, run_samples
from intact.exporters.c.file import header, source, vector_program
from intact.exporters.c.program import CProgram, build_program
from intact.exporters.certificate import Certificate, example_inputs, named_inputs
from intact.exporters.files import check_path
from intact.graph.free import free_symbols
from intact.graph.signature import check_finite, check_inputs
from intact.types import QParams
from intact.types.dims import BATCH

__all__ = ["export_c", "sample_codes"]

_CHECKED = 16  # samples, if the user gives none
_VECTORS = 2  # that stand in the test program


def export_c(q: QModel, path: str | Path, *, data: Any = None, compiler: str | None = None) -> Certificate:
    """Write a C99 file of integer arithmetic, after it was compiled, run and gave the codes of ``q``.

    Beside ``net.c`` stand ``net.h``, ``net_test.c`` (a program with vectors) and ``net.c.certificate.json``. Batch 1:
    ``net_run`` takes the codes of one sample. All memory is static, and its size is in the header.

    Args:
        q: an integer model for a target of integers only, such as ``fixed_point``.
        path: the C file.
        data: a batch to compare on, as for calibration; by default the calibration samples that the model kept (the
            first 16), or random ones. Two samples of random codes are added.
        compiler: the command of a C compiler; by default gcc, cc or clang. Without any, the files are written
            unchecked, and the certificate says so.

    Raises:
        ExportError: before anything is written: an operation without C form, codes that differ, an unwritable path.
    """
    target = Path(path)
    _check(q, target)
    stem, program = target.stem, build_program(q, target.stem)
    samples = sample_codes(q, data)
    wanted = [_codes(q, s) for s in samples]
    files = {f"{stem}.c": source(program, stem), f"{stem}.h": header(program, stem),
             f"{stem}_test.c": vector_program(program, stem, wanted[-_VECTORS:], wanted[-_VECTORS:])}
    compiler = compiler or find_compiler()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".intact-") as name:
        folder = Path(name).resolve()  # programs are run from there
        for file, text in files.items():
            (folder / file).write_text(text)
        certificate = _certify(program, folder, stem, compiler, wanted)
        files[f"{target.name}.certificate.json"] = certificate.to_json() + "\n"
        (folder / f"{target.name}.certificate.json").write_text(files[f"{target.name}.certificate.json"])
        if certificate.codes_differ or certificate.outputs_differ:
            raise ExportError("the compiled network gives other codes", where=certificate.first_difference,
                              got=f"{certificate.codes_differ} of {certificate.codes_compared} codes differ",
                              fix="nothing was written; report this model")
        for file in sorted(files):
            os.replace(folder / file, target.parent / file)
    return certificate


#: rules for sums, products, averages, means, interpolation, softmax and products of matrices
_NUMBERS = (BinaryRule.INTEGER, BinaryRule.INTEGER, PoolRule.SUM, MeanRule.SUM, ResizeRule.PRODUCTS, SoftmaxRule.TABLES,
            MatMulRule.ACCUMULATOR)


def _check(q: QModel, path: Path) -> None:
    check_path(path)
    if not isinstance(q, QModel):
        raise ExportError("export takes an integer model", got=type(q).__name__, fix="call intact.quantize first")
    if path.suffix != ".c" or any(c in '"\\' or not c.isprintable() for c in path.name) or path.stem.startswith("-"):
        raise ExportError("no C file can have this name", where=str(path), got=path.name,
                          allowed="*.c without quotes and backslashes", fix="choose a name such as net.c")
    if free := free_symbols(q.graph):
        raise ExportError("an axis has no fixed size", where=", ".join(free), got="a size that is known in the call",
                          allowed="a free batch, which is 1 in C", fix="capture with fixed sizes")
    numbers = q.target.arithmetic
    if q.target.float_operations or not numbers.integer_only:
        raise ExportError("the model was made for a target that computes in float", got=q.target.name,
                          allowed="targets of integers only, such as fixed_point",
                          fix="quantize with target='fixed_point'")
    rules = (numbers.add, numbers.mul, numbers.average_pool, numbers.mean, numbers.resize, numbers.softmax,
             numbers.matmul)
    other = numbers.functions is FunctionRule.LITERT or numbers.requantize is Requantize.FIXED_POINT_16
    if rules != _NUMBERS or other:
        raise ExportError("the model was made for a target whose number rules have no C form", got=q.target.name,
                          allowed="targets such as fixed_point", fix="quantize with target='fixed_point'")


def sample_codes(q: QModel, data: Any = None) -> list[dict[str, Tensor]]:
    """Inputs of single samples: those given, or kept, or random; and two of random codes."""
    inputs = example_inputs(q) if data is None else named_inputs(q, data)
    size = check_inputs(q.graph, inputs).get(BATCH, 1)
    check_finite(inputs, q.qparams)
    batched = {n.name for n in q.graph.inputs if n.shape and n.shape[0] == BATCH}
    count = (size if data is not None else min(size, _CHECKED)) if batched else 1
    found = [{k: v[i : i + 1] if k in batched else v for k, v in inputs.items()} for i in range(count)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        found.append({k: _random(v, q.qparams.get(k), generator) for k, v in found[0].items()})
    return found


def _random(like: Tensor, q: QParams | None, generator: torch.Generator) -> Tensor:
    if q is None:
        return like
    if like.dtype == torch.bool:  # a mask
        return torch.randint(0, 2, like.shape, generator=generator) == 1
    codes = torch.randint(q.qtype.qmin, q.qtype.qmax + 1, like.shape, generator=generator)
    return ((codes - q.zero_point) * q.scale).to(like.dtype)


def _codes(q: QModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return q.program.codes_from(inputs, integer=True)


def _certify(program: CProgram, folder: Path, stem: str, compiler: str | None,
             wanted: list[dict[str, Tensor]]) -> Certificate:
    """Compile, run the vectors, compare the outputs of the program itself and every edge of its traced twin."""
    planned = dict(sorted(Counter(b.op for b in program.builder.q.bindings.values()).items()))
    memory = {"arena": program.arena, "largest live set": program.live, "weights": program.builder.weight_bytes,
              "constants": program.builder.constant_bytes}
    blank = Certificate("no C compiler was found: not compiled, not run", len(wanted), 0, 0, 0, None, 0, 0, 0, 0, 0.0,
                        planned, {}, (), 1.0, checked=False, memory=memory)
    if compiler is None:
        return blank
    binary = compile_network(compiler, folder, stem)
    traced = compile_network(compiler, folder, stem, f"-D{program.prefix.upper()}_TRACE", output="traced")
    outputs = run_samples(binary, program, wanted)
    run_samples(traced, program, wanted)
    edges = read_trace(folder, program, len(wanted))
    compared, differ, first = _differing(wanted, edges)
    total, wrong, output = _differing(wanted, outputs)
    return replace(blank, runtime=f"{compiler_version(compiler)}, -std=c99 -O2", edges=len(program.traced),
                   codes_compared=compared, codes_differ=differ, first_difference=first or output,
                   outputs_compared=total, outputs_differ=wrong, kernels_actual=planned, checked=True)


def _differing(wanted: list[dict[str, Tensor]], found: list[dict[str, Tensor]]) -> tuple[int, int, str | None]:
    """Codes compared, codes that differ, and the first edge with one."""
    compared, differ, first = 0, 0, None
    for want, codes in zip(wanted, found, strict=True):
        for edge, values in codes.items():
            wrong = int((values.to(torch.int64) != want[edge].to(torch.int64)).sum())
            compared, differ = compared + values.numel(), differ + wrong
            first = first or (f"edge '{edge}'" if wrong else None)
    return compared, differ, first
