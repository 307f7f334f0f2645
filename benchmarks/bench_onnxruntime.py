"""Speed and size in ONNX Runtime: the exported Intact model, ONNX Runtime's own quantize_static, and float.

All three start from the same float graph (the one that Intact captured), run on one thread with the default
optimisations, and take turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from _common import arguments, emit, images, interleaved, log, median, network, ratio, shape

import intact.api as intact
from intact.exporters import float_onnx
from intact.exporters.runtime import open_session, optimised_nodes

SPEED = ("resnet18", "mobilenet_v2", "vgg16")
SIZES = ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "squeezenet1_1", "resnet20")
SIZE_LIMIT, SPEED_LIMIT = 0.28, 1.0


class _Reader:
    """Calibration data in the form that quantize_static asks for."""

    def __init__(self, name: str, data: list[np.ndarray]) -> None:
        self._items: Iterator[dict[str, np.ndarray]] = iter([{name: x} for x in data])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


def quantize_with_runtime(source: Path, target: Path, data: list[np.ndarray]) -> None:
    """ONNX Runtime's static quantization as its documentation describes it: pre-process, then QDQ."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.disable(logging.WARNING)
    ready = source.with_suffix(".ready.onnx")
    # symbolic shape inference wants an import that is not needed for these graphs; shapes come from ONNX itself
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    name = onnx.load(str(source), load_external_data=False).graph.input[0].name
    quantize_static(str(ready), str(target), _Reader(name, data), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    logging.disable(logging.NOTSET)


def kernels(path: Path) -> dict[str, int]:
    """Node counts of the optimised graph, by operator."""
    return dict(sorted(Counter(n.op_type for n in optimised_nodes(path)).items()))


def spent(path: Path, name: str, runs: int = 20) -> dict[str, float]:
    """Milliseconds of one run by operator, as ONNX Runtime's own profiler sees them (median over runs)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = 1, 3, True
    options.profile_file_prefix = str(path.with_suffix(".profile"))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images(1, shape(name), seed=1).numpy()}
    for _ in range(runs):
        session.run(None, feed)
    trace = Path(session.end_profiling())
    by_node: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(trace.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_node.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1e3)
    trace.unlink()
    total: Counter[str] = Counter()
    for (kind, _), durations in by_node.items():
        total[kind] += median(durations)  # type: ignore[assignment]
    return dict(total.most_common())


def make(name: str, folder: Path, *, rival: bool) -> dict[str, Path]:
    """The files of one network."""
    net, size = network(name), shape(name)
    data = list(images(8, size).split(2))
    q = intact.quantize(net, data, progress=False)
    files = {"float": folder / f"{name}.float.onnx", "intact": folder / f"{name}.intact.onnx"}
    float_onnx(intact.capture(net, data[0]), files["float"])
    certificate = intact.export(q, files["intact"])
    log(f"{name}: {certificate.codes_differ} of {certificate.codes_compared} codes differ")
    if rival:
        files["runtime"] = folder / f"{name}.runtime.onnx"
        quantize_with_runtime(files["float"], files["runtime"], [x.numpy() for x in data])
    return files


def race(files: dict[str, Path], name: str, repeats: int) -> dict[str, Any]:
    """Times of all models, in turns."""
    x = images(1, shape(name), seed=1).numpy()
    sessions = {kind: open_session(path, threads=1) for kind, path in files.items()}
    feed = {next(iter(sessions.values())).get_inputs()[0].name: x}
    seconds = interleaved({k: (lambda s=s: s.run(None, feed)) for k, s in sessions.items()}, repeats, warmup=5)
    found: dict[str, Any] = {f"{k}_ms": median(v) * 1e3 for k, v in seconds.items()}
    found |= {f"{k}_best_ms": min(v) * 1e3 for k, v in seconds.items()}
    found["intact_over_float"] = ratio(seconds["intact"], seconds["float"])
    if "runtime" in seconds:
        found["intact_over_runtime"] = ratio(seconds["intact"], seconds["runtime"])
        found["runtime_over_float"] = ratio(seconds["runtime"], seconds["float"])
    return found


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--speed", nargs="*", default=list(SPEED), help="networks to time")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), help="networks to weigh")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="folder to leave the files in")


def main() -> None:
    args = arguments(__doc__, options)
    speed, sizes, repeats = args.speed, args.sizes, args.repeats
    if args.quick:
        speed, sizes, repeats = ["resnet18"], ["resnet20"], 15
    results: dict[str, Any] = {}
    targets: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys([*speed, *sizes]):
            torch.manual_seed(0)
            files = make(name, folder, rival=name in speed)
            found: dict[str, Any] = {f"{k}_bytes": p.stat().st_size for k, p in files.items()}
            if name in speed:
                found |= race(files, name, repeats)
                found["operators_ms"] = {k: spent(p, name) for k, p in files.items()}
                found["nodes"] = {k: kernels(p) for k, p in files.items()}
                targets[f"{name}: intact / runtime, time"] = (found["intact_over_runtime"], SPEED_LIMIT)
            if name in sizes:
                found["intact_bytes_over_float"] = found["intact_bytes"] / found["float_bytes"]
                targets[f"{name}: intact / float, bytes"] = (found["intact_bytes_over_float"], SIZE_LIMIT)
            log(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items() if isinstance(v, float)))
            results[name] = found
    emit("onnxruntime", {"speed": speed, "sizes": sizes, "repeats": repeats, "batch": 1, "threads": 1,
                         "clock": "process CPU time"}, results, targets)


if __name__ == "__main__":
    main()
