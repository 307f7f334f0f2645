"""Peak memory of calibration above that of a float pass, for 10 and for 1,000 batches: it must not grow.

Each measurement is a process of its own. The data is made batch by batch, so that nothing else can accumulate.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch
from _common import ROOT, arguments, emit, images, log, median, network, peak_rss, reset_peak, small_pages

import intact.api as intact
from intact.observers import OBSERVERS
from intact.planning import Quant, Recipe

LIMIT, SIZE, BATCH = 1.05, (3, 64, 64), 4
MIB = 2.0**20


def stream(batches: int) -> Iterator[torch.Tensor]:
    """Batches that are made when they are asked for, of growing range, so that histograms have to widen."""
    for number in range(batches):
        yield images(BATCH, SIZE, seed=number) * (1.0 + number / batches)


def worker(name: str, observer: str, batches: int) -> None:
    """Print the peaks of one process: of a float pass over the data, of the calibration loop, and of all of it."""
    small_pages()
    net = network(name)
    first = images(BATCH, SIZE)
    fm = intact.capture(net, first)
    plan = intact.plan(fm, recipe=Recipe(default=Quant(activation_observer=observer)))
    qfloat = intact.prepare(fm, plan)
    del fm
    found = {}

    def until_the_end() -> Iterator[torch.Tensor]:
        yield from stream(batches)
        found["loop"] = peak_rss()

    with torch.no_grad():
        net(first)  # kernels are compiled on first use
        gc.collect()
        reset_peak()
        for x in stream(batches):
            net(x)
        found["float"] = peak_rss()
    gc.collect()
    reset_peak()
    intact.calibrate(qfloat, until_the_end(), progress=False)
    found["calibrate"] = peak_rss()
    print(json.dumps(found))


def measured(name: str, observer: str, batches: int, repeats: int) -> dict[str, float]:
    """Medians over fresh processes, in MiB."""
    # memory that is freed goes back at once, so that the peak is what was really held
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    runs: list[dict[str, float]] = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--network", name, "--worker", observer, str(batches)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=env)
        runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return {k: median([r[k] for r in runs]) / MIB for k in sorted(runs[0])}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--observers", nargs="*", choices=sorted(OBSERVERS), default=sorted(OBSERVERS))
    parser.add_argument("--batches", nargs=2, type=int, default=[10, 1000], metavar=("FEW", "MANY"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--worker", nargs=2, metavar=("OBSERVER", "BATCHES"), help=argparse.SUPPRESS)


def main() -> None:
    args = arguments(__doc__, options)
    if args.worker:
        return worker(args.network, args.worker[0], int(args.worker[1]))
    few, many = (5, 50) if args.quick else args.batches
    observers = ["mse"] if args.quick else args.observers
    results: dict[str, Any] = {}
    targets: dict[str, tuple[float, float]] = {}
    for observer in observers:
        peaks = {n: measured(args.network, observer, n, args.repeats) for n in (few, many)}
        above = {n: p["calibrate"] - p["float"] for n, p in peaks.items()}
        loop = {n: p["loop"] - p["float"] for n, p in peaks.items()}
        results[observer] = {
            "few": {f"{k}_peak_mib": v for k, v in peaks[few].items()},
            "many": {f"{k}_peak_mib": v for k, v in peaks[many].items()},
            "above_float_mib": {"few": above[few], "many": above[many]},
            "loop_above_float_mib": {"few": loop[few], "many": loop[many]},
        }
        log(f"{observer}: {results[observer]}")
        targets[f"{observer}: above float, {many} batches / {few}"] = (above[many] / above[few], LIMIT)
        targets[f"{observer}: peak, {many} batches / {few}"] = (
            peaks[many]["calibrate"] / peaks[few]["calibrate"], LIMIT)
    emit("memory", {"network": args.network, "input": list(SIZE), "batch": BATCH, "batches": [few, many],
                    "repeats": args.repeats}, results, targets)


if __name__ == "__main__":
    main()
