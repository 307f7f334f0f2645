"""Peak memory of calibration above that of a float pass, for 10 and for 1,000 batches: it must not grow.

Each measurement is a process of its own. The data is made batch by batch, so that nothing else can accumulate.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch
from _common import ROOT, arguments, emit, images, log, network, peak_rss

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
    """Print the peaks of one process: before, after a float pass over the data, after the calibration."""
    net = network(name)
    first = images(BATCH, SIZE)
    qfloat = None
    if observer != "float":
        fm = intact.capture(net, first)
        plan = intact.plan(fm, recipe=Recipe(default=Quant(activation_observer=observer)))
        qfloat = intact.prepare(fm, plan)
    gc.collect()
    found = {"ready": peak_rss()}
    with torch.no_grad():
        for x in stream(batches):
            net(x)
    found["float"] = peak_rss()
    if qfloat is not None:
        intact.calibrate(qfloat, stream(batches), progress=False)
        found["calibrated"] = peak_rss()
    print(json.dumps(found))


def measured(name: str, observer: str, batches: int, repeats: int) -> dict[str, float]:
    """Smallest peaks over fresh processes: a peak is only ever raised by what does not belong to it."""
    runs: list[dict[str, float]] = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--network", name, "--worker", observer, str(batches)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        runs.append(json.loads(out.strip().splitlines()[-1]))
    return {k: min(r[k] for r in runs) / MIB for k in runs[0]}


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
        found = {f"batches_{k}": {f"{kind}_mib": v for kind, v in p.items()} for k, p in (("few", peaks[few]),
                                                                                       ("many", peaks[many]))}
        above = {n: p["calibrated"] - p["float"] for n, p in peaks.items()}
        results[observer] = {**found, "above_float_mib": {"few": above[few], "many": above[many]},
                             "peak_ratio": peaks[many]["calibrated"] / peaks[few]["calibrated"]}
        log(f"{observer}: {results[observer]}")
        targets[f"{observer}: peak of {many} batches / peak of {few}"] = (results[observer]["peak_ratio"], LIMIT)
        # what calibration needs above the float pass; half a MiB is the allocator's grain
        targets[f"{observer}: above float, {many} batches / {few}"] = (
            (above[many] + 0.5) / (above[few] + 0.5), LIMIT)
    emit("memory", {"network": args.network, "input": list(SIZE), "batch": BATCH, "batches": [few, many],
                    "repeats": args.repeats}, results, targets)


if __name__ == "__main__":
    main()
