"""Dynamic int8 in ONNX Runtime: the file that Intact writes, and what ``quantize_dynamic`` of ONNX Runtime makes.

Encoders of the size of BERT-base and of MiniLM (random weights), 128 tokens, batches of 1 and of 16, one thread with
the default optimisations. ONNX Runtime's tool is given the float file that Intact writes; all take turns.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from _common import arguments, emit, interleaved, log, median, ratio
from tests.zoo.bert import Encoder, MaskKind, tokens

import intact.api as intact
from intact import quantize_dynamic, quantize_weights
from intact.exporters import Certificate, float_onnx
from intact.exporters.runtime import open_session, optimised_nodes
from intact.leaves import Dynamic
from intact.types import PerChannel, PerTensor

LENGTH, VOCABULARY = 128, 30522
MODELS = {"bert_base": {"dim": 768, "depth": 12, "heads": 12}, "minilm": {"dim": 384, "depth": 6, "heads": 12}}
SIZE_LIMIT, SPEED_LIMIT = 0.28, 1.0
PER_TENSOR = Dynamic(PerChannel(0), PerTensor())


def runtime_dynamic(source: Path, target: Path, per_channel: bool) -> None:
    """ONNX Runtime's own tool, with int8 weights."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize_with_runtime
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.disable(logging.WARNING)
    ready = source.with_suffix(".ready.onnx")
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    quantize_with_runtime(str(ready), str(target), per_channel=per_channel, weight_type=QuantType.QInt8)
    logging.disable(logging.NOTSET)


def exported(net: torch.nn.Module, example: dict[str, torch.Tensor], folder: Path) -> dict[str, Certificate]:
    """Files of Intact, by name."""
    types = {torch.nn.Linear: PER_TENSOR, torch.nn.Embedding: torch.qint8}
    models = {"intact_per_token": quantize_dynamic(net), "intact_per_tensor": quantize_dynamic(net, types),
              "intact_int4": quantize_weights(net, group=32)}
    found = {}
    for name, model in models.items():
        found[name] = intact.export(model, folder / f"{name}.onnx", example_inputs=example)
        log(f"  {name}\n{found[name]}")
    return found


def measure(sizes: dict[str, int], folder: Path, batches: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """One model."""
    torch.manual_seed(0)
    net = Encoder(MaskKind.ADDED_WHERE, VOCABULARY, LENGTH, **sizes).eval()
    example = tokens(2, length=LENGTH, vocabulary=VOCABULARY)
    certificates = exported(net, example, folder)
    float_onnx(intact.capture(net, example), folder / "float.onnx")
    for name, per_channel in (("onnxruntime", False), ("onnxruntime_per_channel", True)):
        runtime_dynamic(folder / "float.onnx", folder / f"{name}.onnx", per_channel)
    names = ["float", "onnxruntime", "onnxruntime_per_channel", *certificates]
    paths = {n: folder / f"{n}.onnx" for n in names}
    result: dict[str, Any] = {"bytes_over_float": {
        n: p.stat().st_size / paths["float"].stat().st_size for n, p in paths.items()}}
    result["integers_differ"] = {n: c.codes_differ for n, c in certificates.items()}
    result["integers_compared"] = {n: c.codes_compared for n, c in certificates.items()}
    result["nodes"] = {n: dict(sorted(Counter(x.op_type for x in optimised_nodes(p)).items()))
                       for n, p in paths.items()}
    sessions = {n: open_session(p, threads=1) for n, p in paths.items()}
    for batch in batches:
        feed = {k: v.numpy() for k, v in tokens(batch, 1, LENGTH, VOCABULARY).items()}
        times = interleaved({n: lambda s=s, feed=feed: s.run(None, feed) for n, s in sessions.items()}, repeats)
        result[f"batch_{batch}"] = {
            "ms": {n: median(t) * 1e3 for n, t in times.items()},
            "over_onnxruntime": {n: ratio(t, times["onnxruntime"]) for n, t in times.items()}}
        log(f"  batch {batch}: {result[f'batch_{batch}']}")
    return result


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))

    options = arguments(__doc__, add)
    models = ["minilm"] if options.quick else options.models
    batches, repeats = ((1,), 5) if options.quick else ((1, 16), 15)
    results: dict[str, Any] = {}
    targets: dict[str, tuple[float, float]] = {}
    for name in models:
        log(name)
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(MODELS[name], Path(folder), batches, repeats)
        for kind in ("intact_per_tensor", "intact_per_token"):
            targets[f"{name}.{kind}.bytes_over_float"] = (results[name]["bytes_over_float"][kind], SIZE_LIMIT)
            for batch in batches:
                over = results[name][f"batch_{batch}"]["over_onnxruntime"][kind]
                targets[f"{name}.{kind}.batch_{batch}.over_onnxruntime"] = (over, SPEED_LIMIT)
    emit("dynamic_onnx", {"length": LENGTH, "batches": batches, "repeats": repeats}, results, targets)


if __name__ == "__main__":
    main()
