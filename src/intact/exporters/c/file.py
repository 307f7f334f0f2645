"""The three files of a network in C: the source, its header, and a test with vectors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from intact.arithmetic import Arithmetic
from intact.exporters.c.builder import CTYPES, Axes, CBuilder, wrapped
from intact.exporters.c.layout import Stored
from intact.exporters.c.names import comment
from intact.exporters.c.program import CProgram, Port
from intact.types import QParams

__all__ = ["header", "source", "unpacked", "vector_program"]


def source(program: CProgram, stem: str) -> str:
    """The C file."""
    b, prefix = program.builder, program.prefix
    upper = prefix.upper()
    parts = [
        f"/* {comment(stem)}.c: an integer network, written by Intact. {_rules(b.q.target.arithmetic)}\n"
        "   Integers only, no allocation. Not reentrant: the arena is static. */",
        f'#include <stdint.h>\n#include <string.h>\n\n#include "{stem}.h"',
    ]
    if any("AXES" in text for text in b.functions.values()):
        parts.append(f"#define AXES {b.axes} /* of the tensors that are walked through element by element */")
    parts.append(_arena(program, upper))
    parts.append(f"#ifdef {upper}_TRACE\n#define EDGE(number, codes, bytes) {prefix}_trace(number, codes, bytes)\n"
                 "#else\n#define EDGE(number, codes, bytes) ((void)(codes))\n#endif")
    parts += b.functions.values()
    parts += [_struct(b, *b.structs[int(d.split()[1])]) if d.startswith("@") else d for d in b.declarations]
    parts.append(_run(program, prefix))
    return "\n\n".join(p for p in parts if p) + "\n"


def _rules(a: Arithmetic) -> str:
    inside = ", the zero point inside the rounding" if a.zero_inside else ""
    return f"Arithmetic: {a.requantize.value}, rounding {a.rounding.value}{inside}."


def _arena(program: CProgram, upper: str) -> str:
    b = program.builder
    used = sorted({b.buffers[k].ctype for k in program.offsets} | {
        b.buffers[k].ctype for k, root in program.roots.items() if root in program.offsets})
    if not used:
        return ""
    size = f"{upper}_ARENA_BYTES"
    members = [f"    {CTYPES[t]} {t}[({size} + {w - 1}) / {w}];" for t in used for w in [2 if t == "s16" else 1]]
    return (f"/* every tensor between input and output has its place here while it lives */\n#ifndef {upper}_ARENA\n"
            f"#define {upper}_ARENA /* such as __attribute__((section(\".fast\"))) */\n#endif\n"
            "static union {\n" + "\n".join(members) + f"\n}} arena {upper}_ARENA;")


def _struct(b: CBuilder, kind: str, name: str, fields: Mapping[str, object]) -> str:
    body = wrapped(", ".join(f".{k} = {_value(b, v)}" for k, v in fields.items()))
    return f"static const struct {kind} {name} = {{\n{body}\n}};"


def _value(b: CBuilder, value: object) -> str:
    if isinstance(value, Axes):
        filled = [*[value.front] * (b.axes - len(value.values)), *value.values]
        return "{" + ", ".join(map(str, filled)) + "}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f".{k} = {_value(b, v)}" for k, v in value.items()) + "}"
    return str(value)


def _run(program: CProgram, prefix: str) -> str:
    b = program.builder
    lines = [f"{_prototype(program, prefix)}", "{"]
    lines += [f"    (void){p.name};" for p in program.inputs if not _mentioned(program, p.name)]
    edge, node = 0, ""
    for step in b.steps:
        if step.node != node:
            node = step.node
            lines += ["", f"    /* {b.describe(b.q.graph[node])} */"]
        if step.remark:
            lines.append(f"    /* - {comment(step.remark)} */")
        if step.text:
            lines.append(f"    {_placed(program, step.text)}")
        if step.edge is not None:
            stored = b.stored[step.edge]
            size = f"{stored.size} * sizeof(int16_t)" if stored.ctype == "s16" else str(stored.size)
            lines.append(f"    EDGE({edge}, {_pointer(program, stored.buffer)}, {size});")
            edge += 1
    return "\n".join([*lines, "}"])


def _mentioned(program: CProgram, name: str) -> bool:
    b = program.builder
    return any(b.buffers[k].where == name for s in b.steps for k in s.buffers)


def _placed(program: CProgram, text: str) -> str:
    def pointer(found: re.Match[str]) -> str:
        return _pointer(program, int(found[1]), int(found[2] or 0))

    return re.sub(r"@(\d+)(?:\+(\d+))?@", pointer, text)


def _pointer(program: CProgram, number: int, start: int = 0) -> str:
    buffer = program.builder.buffers[number]
    if buffer.where != "arena":
        return f"{buffer.where} + {start}" if start else buffer.where
    offset = program.offsets[program.roots[number]]
    place = offset // (2 if buffer.ctype == "s16" else 1) + start
    return f"arena.{buffer.ctype} + {place}" if place else f"arena.{buffer.ctype}"


def _prototype(program: CProgram, prefix: str) -> str:
    parameters = [f"const {CTYPES[p.ctype]} *{p.name}" for p in program.inputs]
    parameters += [f"{CTYPES[p.ctype]} *{p.name}" for p in program.outputs]
    return f"void {prefix}_run({', '.join(parameters) or 'void'})"


# -- header -------------------------------------------------------------------------------------


def header(program: CProgram, stem: str) -> str:
    """What the application includes."""
    b, prefix = program.builder, program.prefix
    upper = prefix.upper()
    ports = [(kind, p, b.q.qparams[p.edge]) for kind, some in (("input", program.inputs), ("output", program.outputs))
             for p in some]
    notes = [f"   {kind} '{comment(p.title)}': {CTYPES[p.ctype]} {p.name}[{p.size}], shape {p.shape}, {q.qtype}, scale "
             f"{_decimal(q)}, zero point {int(q.zero_point)}" for kind, p, q in ports]
    macros = [f"#define {upper}_ARENA_BYTES {program.arena} /* static memory; {program.live} are alive at once */"]
    for _, p, q in ports:
        name = f"{upper}_{p.name.upper()}"
        macros += [f"#define {name}_SIZE {p.size}", f"#define {name}_ZERO_POINT ({int(q.zero_point)})",
                   f"#define {name}_SCALE {_decimal(q)}f"]
    return "\n".join([
        f"/* {comment(stem)}.h: an integer network, written by Intact. {_rules(b.q.target.arithmetic)}", "",
        f"   {prefix}_run takes and gives codes: a code stands for (code - zero point) * scale.", *notes, "",
        "   Inputs and outputs must not overlap. Call it from one thread at a time. */",
        f"#ifndef {upper}_H", f"#define {upper}_H", "", "#include <stdint.h>", "", *macros, "",
        "#ifdef __cplusplus", 'extern "C" {', "#endif", "", f"{_prototype(program, prefix)};", "",
        f"#ifdef {upper}_TRACE",
        "/* yours to define: it sees the codes of every layer as they lie in memory, as soon as they are complete */",
        f"void {prefix}_trace(int32_t edge, const void *codes, uint32_t bytes);", "#endif", "",
        "#ifdef __cplusplus", "}", "#endif", "", "#endif", ""])


def _decimal(q: QParams) -> str:
    text = f"{float(q.scale):.9g}"
    return text if re.search(r"[.e]", text) else f"{text}.0"


# -- test ---------------------------------------------------------------------------------------


_TEST = r"""
static int32_t failures(void)
{
    int32_t i, bad = 0;
    for (i = 0; i < SAMPLES; i++) {
        @RUN_VECTOR@
@COMPARE@
    }
    return bad;
}

/* any number of samples, from a file of input codes to one of output codes */
static int batch(const char *from, const char *to)
{
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    int good = in && out;
    while (good@READ@) {
        @RUN_BATCH@
        good = @WRITE@;
    }
    good = good && feof(in);
    if (in) {
        fclose(in);
    }
    if (out) {
        good = fclose(out) == 0 && good;
    }
    return good ? 0 : 1;
}

int main(int argc, char **argv)
{
    int32_t bad;
    if (argc == 3) {
        return batch(argv[1], argv[2]);
    }
    bad = failures();
    printf("%ld of %ld codes differ\n", (long)bad, (long)SAMPLES * (@TOTAL@));
    return bad != 0;
}
"""

_TRACE = r"""
#ifdef @UPPER@_TRACE
/* number, length and codes of every edge, to the file "trace" */
void @PREFIX@_trace(int32_t edge, const void *codes, uint32_t bytes)
{
    static FILE *file;
    if (!file) {
        file = fopen("trace", "wb");
    }
    if (file) {
        fwrite(&edge, sizeof edge, 1, file);
        fwrite(&bytes, sizeof bytes, 1, file);
        fwrite(codes, 1, bytes, file);
    }
}
#endif
"""


def vector_program(program: CProgram, stem: str, inputs: Sequence[Mapping[str, Tensor]],
                 outputs: Sequence[Mapping[str, Tensor]]) -> str:
    """A program that returns 0 if the network gives the expected codes, and runs files of samples.

    Args:
        program: the network.
        stem: of the file names.
        inputs: codes by edge, one mapping a sample.
        outputs: likewise.
    """
    prefix = program.prefix
    declared = [f"#define SAMPLES {len(inputs)}"]
    for p in program.inputs:
        declared += [_vectors(f"in_{p.name}", p, inputs), f"static {CTYPES[p.ctype]} read_{p.name}[{p.size}];"]
    for p in program.outputs:
        declared += [_vectors(f"want_{p.name}", p, outputs), f"static {CTYPES[p.ctype]} got_{p.name}[{p.size}];"]
    got = [f"got_{p.name}" for p in program.outputs]
    compare = [f"        for (int32_t k = 0; k < {p.size}; k++) {{\n"
               f"            bad += got_{p.name}[k] != want_{p.name}[i][k];\n        }}" for p in program.outputs]
    reads = [f"\n           && fread(read_{p.name}, sizeof read_{p.name}, 1, in) == 1" for p in program.inputs]
    words = {
        "RUN_VECTOR": f"{prefix}_run({', '.join([*(f'in_{p.name}[i]' for p in program.inputs), *got])});",
        "RUN_BATCH": f"{prefix}_run({', '.join([*(f'read_{p.name}' for p in program.inputs), *got])});",
        "COMPARE": "\n".join(compare),
        "READ": "".join(reads) or " && 0",
        "WRITE": "\n            && ".join(f"fwrite({g}, sizeof {g}, 1, out) == 1" for g in got),
        "TOTAL": " + ".join(str(p.size) for p in program.outputs), "PREFIX": prefix, "UPPER": prefix.upper(),
    }
    about = (f"/* {comment(stem)}_test.c: samples with the codes that they must give. Without arguments it returns\n"
             "   0 if they do; with two, it runs a file of input codes, sample by sample, and writes the output codes\n"
             "   to the other. */")
    text = "\n".join([about, "#include <stdio.h>", "", f'#include "{stem}.h"', "", *declared]) + _TRACE + _TEST
    return re.sub(r"@([A-Z_]+)@", lambda found: words[found[1]], text)


def _vectors(name: str, port: Port, samples: Sequence[Mapping[str, Tensor]]) -> str:
    rows = [wrapped("{" + ", ".join(map(str, s[port.edge].flatten().to(torch.int64).tolist())) + "}") for s in samples]
    return f"static const {CTYPES[port.ctype]} {name}[SAMPLES][{port.size}] = {{\n" + ",\n".join(rows) + "\n};"


def unpacked(stored: Stored, codes: Tensor) -> Tensor:
    """Codes as they lie in memory, in the model's own order of axes."""
    physical = codes.reshape([stored.shape[a] for a in stored.order])
    return physical.permute([stored.order.index(a) for a in range(len(stored.shape))])
