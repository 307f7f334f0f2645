"""Speed and size of exported C: the file of `intact.export` against plain reference loops, batch 1, gcc -O2.

The reference is what TensorFlow Lite Micro's reference kernels do (`reference_integer_ops::ConvPerChannel` and
`DepthwiseConvPerChannel`): nested loops over pixel, output channel, tap and input channel, offsets computed and the
border tested for every element, one multiply-accumulate each. Both files have the same weights, the same layout of
tensors and the same requantization; they are compiled with the same flags and give the same codes.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments, emit, images, interleaved, log, median, network, ratio, shape

import intact.api as intact
from intact.exporters.c.compiler import compiler_version, find_compiler
from intact.exporters.c.file import header, source
from intact.exporters.c.program import build_program

NETWORKS = ("resnet20", "keyword", "autoencoder", "mobilenet_v2")
SPEED_LIMIT, FLASH_LIMIT, ARENA_LIMIT = 1.0, 1.2, 1.1

CONV = """
static int32_t offset(int32_t c, int32_t row, int32_t col, int32_t width, int32_t channels)
{
    return (row * width + col) * channels + c;
}

static void conv2d_s8_s8(const struct conv *p, const int8_t *x, int8_t *y, int16_t *unused)
{
    const int32_t per = p->in_c / p->groups, outs = p->out_c / p->groups;
    int32_t row, col, o, i, j, c;
    (void)unused;
    for (row = 0; row < p->out_h; row++) {
        for (col = 0; col < p->out_w; col++) {
            for (o = 0; o < p->out_c; o++) {
                const int32_t top = row * p->stride_h - p->pad_h, left = col * p->stride_w - p->pad_w;
                int32_t sum = 0;
                for (i = 0; i < p->kernel_h; i++) {
                    for (j = 0; j < p->kernel_w; j++) {
                        const int32_t in_row = top + i * p->dilation_h, in_col = left + j * p->dilation_w;
                        if (in_row < 0 || in_row >= p->in_h || in_col < 0 || in_col >= p->in_w) {
                            continue;
                        }
                        for (c = 0; c < per; c++) {
                            const int32_t code = x[offset(c + o / outs * per, in_row, in_col, p->in_w, p->in_c)];
                            const int32_t weight = p->weight[((o * p->kernel_h + i) * p->kernel_w + j) * per + c];
                            sum += weight * (code - p->in_zero);
                        }
                    }
                }
                y[offset(o, row, col, p->out_w, p->out_c)] = (int8_t)finish(p, sum, o);
            }
        }
    }
}
"""

DEPTHWISE = """
static void depthwise2d_s8_s8(const struct conv *p, const int8_t *x, int8_t *y)
{
    int32_t row, col, i, j, c;
    for (row = 0; row < p->out_h; row++) {
        for (col = 0; col < p->out_w; col++) {
            for (c = 0; c < p->in_c; c++) {
                const int32_t top = row * p->stride_h - p->pad_h, left = col * p->stride_w - p->pad_w;
                int32_t sum = 0;
                for (i = 0; i < p->kernel_h; i++) {
                    for (j = 0; j < p->kernel_w; j++) {
                        const int32_t in_row = top + i * p->dilation_h, in_col = left + j * p->dilation_w;
                        if (in_row < 0 || in_row >= p->in_h || in_col < 0 || in_col >= p->in_w) {
                            continue;
                        }
                        sum += p->weight[(i * p->kernel_w + j) * p->in_c + c]
                            * (x[(in_row * p->in_w + in_col) * p->in_c + c] - p->in_zero);
                    }
                }
                y[(row * p->out_w + col) * p->out_c + c] = (int8_t)finish(p, sum, c);
            }
        }
    }
}
"""


class _Library:
    """A network in a shared library, and buffers for one sample."""

    def __init__(self, folder: Path, compiler: str, q: intact.QModel, stem: str, *, plain: bool) -> None:
        self.program = build_program(q, stem)
        if plain:
            functions = self.program.builder.functions
            for name, text in (("conv2d_s8_s8", CONV), ("depthwise2d_s8_s8", DEPTHWISE)):
                if name in functions:
                    functions[name] = text
            for name in ("centre_s8", "column_s8", "dot", "channels_s8", "tap_s8", "separate"):
                functions.pop(name, None)
        (folder / f"{stem}.c").write_text(source(self.program, stem))
        (folder / f"{stem}.h").write_text(header(self.program, stem))
        library = folder / f"{stem}.so"
        subprocess.run([compiler, "-std=c99", "-O2", "-fPIC", "-shared", str(folder / f"{stem}.c"), "-o", str(library)],
                       check=True)
        self.size = _flash(library)
        self._run = getattr(ctypes.CDLL(str(library)), f"{stem}_run")
        rng = np.random.default_rng(0)
        (given,), (made,) = self.program.inputs, self.program.outputs
        self.input, self.output = rng.integers(-128, 128, given.size, np.int8), np.zeros(made.size, np.int8)

    def __call__(self) -> None:
        self._run(self.input.ctypes.data_as(ctypes.c_void_p), self.output.ctypes.data_as(ctypes.c_void_p))


def _flash(library: Path) -> int:
    """Bytes of code and constants, as `size` counts them (with the few of a shared library's own)."""
    text, data = subprocess.run(["size", str(library)], capture_output=True, text=True,
                                check=True).stdout.splitlines()[1].split()[:2]
    return int(text) + int(data)


def measure(name: str, compiler: str, turns: int) -> dict[str, Any]:
    q = intact.quantize(network(name), [images(8, shape(name))], target="fixed_point")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        ours, plain = (_Library(folder, compiler, q, stem, plain=stem == "plain") for stem in ("net", "plain"))
        times = interleaved({"ours": ours, "plain": plain}, turns)
        assert np.array_equal(ours.output, plain.output)
    program, weights = ours.program, ours.program.builder.weight_bytes
    return {
        "ours_ms": 1e3 * median(times["ours"]), "plain_ms": 1e3 * median(times["plain"]),
        "ours_over_plain": ratio(times["ours"], times["plain"]), "weights_bytes": weights,
        "constants_over_weights": program.builder.constant_bytes / weights, "flash_over_weights": ours.size / weights,
        "arena_bytes": program.arena, "arena_over_live": program.arena / program.live,
    }


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--networks", nargs="*", default=None)

    args = arguments(__doc__, options)
    compiler = find_compiler()
    if compiler is None:
        raise SystemExit("there is no C compiler")
    names = args.networks or (NETWORKS[1:3] if args.quick else NETWORKS)
    results = {}
    for name in names:
        log(name)
        results[name] = measure(name, compiler, 5 if args.quick else 31)
    worst = {k: max(r[k] for r in results.values()) for k in ("ours_over_plain", "arena_over_live")}
    targets = {"ours_over_plain": (worst["ours_over_plain"], SPEED_LIMIT),
               "arena_over_live": (worst["arena_over_live"], ARENA_LIMIT)}
    if "resnet20" in results:
        targets["resnet20_constants_over_weights"] = (results["resnet20"]["constants_over_weights"], FLASH_LIMIT)
    settings = {"compiler": compiler_version(compiler), "flags": "-std=c99 -O2", "networks": list(names)}
    emit("c", settings, results, targets)


if __name__ == "__main__":
    main()
