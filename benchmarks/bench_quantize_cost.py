"""CPU time of intact.quantize against one eager float pass over the same data.

The budget is 1.3 float passes and 3 s that do not depend on the data. Quantization of two amounts of data gives
the cost of a sample and the fixed cost; the stages, run one by one, say where each of them goes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from typing import Any
from unittest import mock

import torch
from _common import arguments, emit, images, interleaved, log, median, network, ratio, shape, timed

import intact.api as intact
from intact import graph as _graph
from intact.calibration.collect import Collector
from intact.observers import OBSERVERS
from intact.planning import Quant, Recipe
from intact.simulation import QFloatModel

FIXED_BUDGET_S, RATIO_LIMIT, BATCH = 3.0, 1.3, 16


def float_pass(net: torch.nn.Module, data: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for x in data:
            net(x)


#: what quantize calls, by stage: an attribute of an object; those that a version lacks are left out
STAGES: tuple[tuple[str, Any, str], ...] = (
    ("export", _graph, "capture"), ("passes", intact, "transform"), ("plan", intact, "plan"),
    ("prepare", intact, "prepare"), ("calibrate", intact, "calibrate"), ("freeze", QFloatModel, "freeze"),
    ("observe", Collector, "__call__"), ("correct_bias", intact, "correct_bias"), ("convert", intact, "convert"),
)


def stages(net: torch.nn.Module, data: list[torch.Tensor], recipe: Recipe) -> dict[str, float]:
    """CPU seconds of the stages within one call of quantize."""
    spent: dict[str, float] = {}

    def clocked(name: str, function: Any) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with timed(spent, name):
                return function(*args, **kwargs)

        return run

    with contextlib.ExitStack() as stack, timed(spent, "total"):
        for name, holder, attribute in STAGES:
            if hasattr(holder, attribute):
                patch = mock.patch.object(holder, attribute, clocked(name, getattr(holder, attribute)))
                stack.enter_context(patch)
        intact.quantize(net, data, recipe=recipe, progress=False)
    once = ("export", "passes", "plan", "prepare", "freeze", "correct_bias", "convert")
    found = {f"fixed.{k}": spent[k] for k in once if k in spent}
    found["samples.observers"] = spent["observe"]
    found["samples.float_graph"] = spent["calibrate"] - spent["freeze"] - spent["observe"]
    found["other"] = spent["total"] - sum(found.values())
    return found


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--observers", nargs="*", choices=sorted(OBSERVERS), help="default: the default recipe only")


def main() -> None:
    args = arguments(__doc__, options)
    count, repeats = (32, 1) if args.quick else (args.images, args.repeats)
    few = max(BATCH, count // 4)
    net, size = network(args.network), shape(args.network)
    data = list(images(count, size).split(BATCH))
    part = data[: few // BATCH]
    count, few = sum(map(len, data)), sum(map(len, part))
    results: dict[str, dict[str, object]] = {}
    targets: dict[str, tuple[float, float]] = {}
    for observer in args.observers or ["default"]:
        recipe = Recipe() if observer == "default" else Recipe(default=Quant(activation_observer=observer))
        seconds = interleaved({
            "float": lambda: float_pass(net, data),
            "quantize": lambda recipe=recipe: intact.quantize(net, data, recipe=recipe, progress=False),
            "quantize_few": lambda recipe=recipe: intact.quantize(net, part, recipe=recipe, progress=False),
        }, repeats, warmup=0 if args.quick else 1)
        log(f"{observer}: {seconds}")
        broken = [stages(net, data, recipe) for _ in range(repeats)]
        flt, whole, less = (median(seconds[k]) for k in ("float", "quantize", "quantize_few"))
        slope = (whole - less) / (count - few)
        parts = {k: median([b[k] for b in broken]) for k in broken[0]}
        above = ratio([max(0.0, q - FIXED_BUDGET_S) for q in seconds["quantize"]], seconds["float"])
        results[observer] = {
            "float_pass_s": flt, "quantize_s": whole,
            "quantize_over_float": ratio(seconds["quantize"], seconds["float"]),
            "per_sample_over_float": slope * count / flt, "fixed_s": whole - slope * count, "stages_s": parts,
            "stages_fixed_s": sum(v for k, v in parts.items() if k.startswith("fixed.")),
            "observers_over_graph": ratio([b["samples.observers"] for b in broken],
                                          [b["samples.float_graph"] for b in broken]),
            "all_s": seconds,
        }
        targets[f"{observer}: (quantize - {FIXED_BUDGET_S:g} s) / float"] = (above, RATIO_LIMIT)
    emit("quantize_cost", {"network": args.network, "input": list(size), "images": count, "batch": BATCH,
                           "repeats": repeats, "clock": "process CPU time"}, results, targets)


if __name__ == "__main__":
    main()
