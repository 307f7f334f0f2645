"""Dynamic int8 against PyTorch's own ``quantize_dynamic`` and against float: encoders, LSTM and GRU, on one thread."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _common import arguments, emit, interleaved, log, median, ratio
from torch import nn
from torch.ao.quantization import quantize_dynamic  # only here: what we are compared with

import intact

LIMIT = 1.0
TOKENS = 128


class Layer(nn.Module):
    """A layer of BERT, its projections apart, as Hugging Face has them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.output(y))
        return self.norm2(x + self.narrow(nn.functional.gelu(self.wide(x))))


def encoder(width: int, heads: int, layers: int) -> nn.Module:
    """Layers of BERT with random weights."""
    return nn.Sequential(*(Layer(width, heads) for _ in range(layers))).eval()


class First(nn.Module):
    """The outputs of a recurrent layer, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


#: model, and the shape of its input for a batch
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[int, ...]]]] = {
    "bert-base": (partial(encoder, 768, 12, 12), lambda b: (b, TOKENS, 768)),
    "minilm-l6": (partial(encoder, 384, 12, 6), lambda b: (b, TOKENS, 384)),
    "lstm-256": (lambda: First(nn.LSTM(256, 256)).eval(), lambda b: (TOKENS, b, 256)),
    "lstm-512x2": (lambda: First(nn.LSTM(512, 512, 2)).eval(), lambda b: (TOKENS, b, 512)),
    "gru-256": (lambda: First(nn.GRU(256, 256)).eval(), lambda b: (TOKENS, b, 256)),
}


def measured(name: str, batch: int, repeats: int) -> dict[str, Any]:
    """Times and ratios of one model and batch."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    net, x = make(), torch.randn(shape(batch))
    models = {"float": net, "torch": quantize_dynamic(net, {nn.Linear, nn.LSTM, nn.GRU}, dtype=torch.qint8),
              "intact": intact.quantize_dynamic(net),
              "intact_per_tensor": intact.quantize_dynamic(net, {"activation": "per_tensor"})}
    with torch.inference_mode():
        wanted = net(x)
        error = {k: float((m(x) - wanted).std() / wanted.std()) for k, m in models.items() if k != "float"}
        seconds = interleaved({k: partial(m, x) for k, m in models.items()}, repeats, warmup=2)
    return {"ms": {k: median(v) * 1e3 for k, v in seconds.items()}, "error": error,
            "intact_over_torch": ratio(seconds["intact"], seconds["torch"]),
            "per_tensor_over_torch": ratio(seconds["intact_per_tensor"], seconds["torch"]),
            "float_over_intact": ratio(seconds["float"], seconds["intact"]),
            "float_over_torch": ratio(seconds["float"], seconds["torch"])}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--repeats", type=int, default=15)


def main() -> None:
    args = arguments(__doc__, options)
    cases, batches, repeats = (["minilm-l6", "lstm-256"], [1], 3) if args.quick else (
        args.cases, args.batches, args.repeats)
    results: dict[str, Any] = {}
    targets: dict[str, tuple[float, float]] = {}
    for name in cases:
        for batch in batches:
            heavy = name == "bert-base" and batch > 4
            found = results[f"{name}/batch{batch}"] = measured(name, batch, max(3, repeats // 3) if heavy else repeats)
            targets[f"{name}/batch{batch}: intact / torch"] = (found["intact_over_torch"], LIMIT)
            log(f"{name}, batch {batch}: " + ", ".join(
                f"{k} {v:.2f}" for k, v in found.items() if isinstance(v, float)))
    emit("dynamic", {"cases": cases, "batches": batches, "repeats": repeats, "tokens": TOKENS,
                     "clock": "process CPU time"}, results, targets)


if __name__ == "__main__":
    main()
