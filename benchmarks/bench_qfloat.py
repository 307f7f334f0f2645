"""Time of the simulated (QFloat) model against the eager float module, both in PyTorch on one thread."""

from __future__ import annotations

import argparse
from functools import partial

import torch
from _common import arguments, emit, images, interleaved, log, median, network, ratio, shape

import intact.api as intact

LIMIT, LIMIT_INTEGERS = 1.5, 2.0  # the latter for targets that multiply by fixed-point numbers
NETWORKS = ("resnet18", "mobilenet_v2", "vgg16")


def prepared(net: torch.nn.Module, x: torch.Tensor, target: str) -> torch.nn.Module:
    """A calibrated QFloat model."""
    fm = intact.capture(net, x)
    return intact.calibrate(intact.prepare(fm, intact.plan(fm, target=target)), [x], progress=False)


def hottest(model: torch.nn.Module, x: torch.Tensor, rows: int = 8) -> dict[str, float]:
    """Share of the time that each PyTorch operator takes, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as trace, torch.no_grad():
        model(x)
    events = sorted(trace.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return {e.key: e.self_cpu_time_total / total for e in events[:rows]}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--repeats", type=int, default=7)


def main() -> None:
    args = arguments(__doc__, options)
    names, sizes = (["resnet18"], [1]) if args.quick else (args.networks, args.batches)
    limit = LIMIT if args.target == "onnxruntime" else LIMIT_INTEGERS
    results: dict[str, dict[str, object]] = {}
    targets: dict[str, tuple[float, float]] = {}
    for name in names:
        net = network(name)
        simulated = prepared(net, images(4, shape(name)), args.target)
        wide = sorted(n for n, k in simulated.program.kernels.items()  # type: ignore[attr-defined]
                      if getattr(k, "carrier", torch.float32) == torch.float64)
        for size in sizes:
            x = images(size, shape(name), seed=1)
            repeats = args.repeats if size == 1 else max(3, args.repeats // 2)
            with torch.no_grad():
                seconds = interleaved({"float": partial(net, x), "qfloat": partial(simulated, x)}, repeats, warmup=2)
            found = ratio(seconds["qfloat"], seconds["float"])
            log(f"{name}, batch {size}: {found:.2f}")
            results[f"{name}/batch{size}"] = {
                "float_ms": median(seconds["float"]) * 1e3, "qfloat_ms": median(seconds["qfloat"]) * 1e3,
                "qfloat_over_float": found, "float64_layers": wide, "operators": hottest(simulated, x),
                "operators_of_float": hottest(net, x),
            }
            targets[f"{name}/batch{size}: qfloat / float"] = (found, limit)
    emit("qfloat", {"target": args.target, "networks": names, "batches": sizes, "repeats": args.repeats,
                    "clock": "process CPU time"}, results, targets)


if __name__ == "__main__":
    main()
