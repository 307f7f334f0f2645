"""Weight-only layers against the float layer: one Linear, by its size, the rows of its input and its dtype."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from _common import arguments, emit, interleaved, log, median, ratio
from torch import nn

import intact

SIZES = {"384x1536": (384, 1536), "768x3072": (768, 3072), "4096x4096": (4096, 4096)}
LIMIT = 1.0


def layers(columns: int, rows: int) -> dict[str, tuple[nn.Module, torch.dtype]]:
    """A float layer and what it becomes, with the dtype of their inputs."""
    float32 = nn.Linear(columns, rows).eval()
    bfloat16 = nn.Linear(columns, rows).to(torch.bfloat16).eval()
    small = {"int4": lambda net: intact.quantize_weights(net, group=64),
             "int8": lambda net: intact.quantize_weights(net, {nn.Linear: 8}),
             "float16": lambda net: intact.quantize_dynamic(net, dtype=torch.float16)}
    return {"float32": (float32, torch.float32), "bfloat16": (bfloat16, torch.bfloat16),
            **{f"{name}, float32": (make(nn.Sequential(float32)), torch.float32) for name, make in small.items()},
            "int4, bfloat16": (small["int4"](nn.Sequential(bfloat16)), torch.bfloat16)}


def measured(size: str, batches: list[int], repeats: int) -> dict[str, Any]:
    """Times and ratios of one size."""
    torch.manual_seed(0)
    nets, found = layers(*SIZES[size]), {}
    for batch in batches:
        x = torch.randn(batch, SIZES[size][0])
        with torch.inference_mode():
            seconds = interleaved({k: partial(net, x.to(dtype)) for k, (net, dtype) in nets.items()}, repeats, warmup=2)
        over = {k: ratio(v, seconds[str(nets[k][1]).removeprefix("torch.")]) for k, v in seconds.items() if "," in k}
        found[f"rows{batch}"] = {"us": {k: median(v) * 1e6 for k, v in seconds.items()}, "over_float": over}
        log(f"{size}, {batch} rows, over the float layer of the same dtype: " + ", ".join(
            f"{k} {v:.2f}" for k, v in over.items()))
    return found


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4, 16, 128])
    parser.add_argument("--repeats", type=int, default=15)


def main() -> None:
    args = arguments(__doc__, options)
    sizes, batches, repeats = (["384x1536"], [1, 16], 3) if args.quick else (args.sizes, args.batches, args.repeats)
    results = {size: measured(size, batches, repeats) for size in sizes}
    targets = {f"{size}/{rows}: int4 / float, bfloat16": (found["over_float"]["int4, bfloat16"], LIMIT)
               for size, by_rows in results.items() for rows, found in by_rows.items() if rows in ("rows1", "rows4")}
    emit("weights", {"sizes": sizes, "batches": batches, "repeats": repeats, "clock": "process CPU time"}, results,
         targets)


if __name__ == "__main__":
    main()
