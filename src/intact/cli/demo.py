"""The main job on real data, without a download: scikit-learn's handwritten digits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from intact.api import compare, export, quantize, save
from intact.engine import QModel
from intact.errors import ExportError, IntactError

__all__ = ["coverage", "run_demo"]

_BATCH = 64
_TEST = 360  # of 1,797 images


class _DigitNet(nn.Module):
    """A small residual network for 8x8 images of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(1, 32, 1)
        self.inner = nn.Sequential(_conv_bn(32, 32, 1), nn.ReLU(), _conv_bn(32, 32, 1))
        self.down = _conv_bn(32, 64, 2)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 10) of images (N, 1, 8, 8) with values in [0, 1]."""
        x = self.relu(self.stem(x))
        x = self.relu(self.inner(x) + x)
        x = self.relu(self.down(x))
        scores: Tensor = self.head(self.pool(x).flatten(1))
        return scores


@dataclass(frozen=True)
class _Digits:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,), shuffled and split."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def run_demo(out: Path, epochs: int, say: Callable[[str], None]) -> None:
    """Train, quantize, export, certify, compare; write the files into a folder.

    Args:
        out: the folder; made if it does not exist.
        epochs: of training.
        say: is given every paragraph of the account.

    Raises:
        IntactError: if scikit-learn is missing, the folder cannot be made, or the runtime gives other codes.
    """
    digits = _digits()
    _make(out)
    with _one_thread():
        say(f"1. Train a small CNN on {len(digits.train):,} images of handwritten digits ({epochs} epochs, one thread)")
        start = time.perf_counter()
        net = _trained(digits, epochs)
        right = _accuracy(net(digits.test), digits.test_labels)
        say(f"   {right:.2%} of {_TEST} held-out images right, after {time.perf_counter() - start:.1f} s\n")

        say("2. intact.quantize(net, training images)")
        start = time.perf_counter()
        q = quantize(net, digits.train.split(_BATCH))
        say(f"{_indented(coverage(q))}\n   took {time.perf_counter() - start:.1f} s\n")

        file = out / "digits.onnx"
        say(f"3. intact.export(q, {str(file)!r}), held against onnxruntime on all held-out images")
        certificate = export(q, file, data=q.signature.bind((digits.test,), {}))
        save(q, out / "digits.intact")
        say(f"{_indented(str(certificate))}\n")

        say("4. intact.compare(net, q, held-out images)")
        report = compare(net, q, list(zip(digits.test.split(_BATCH), digits.test_labels.split(_BATCH), strict=True)))
        (out / "report.json").write_text(report.to_json() + "\n")
        say(f"{_indented(str(report))}\n")

        say("5. Run the exported file in onnxruntime on the held-out images")
        say(f"   {certificate.codes_differ} of {certificate.codes_compared:,} codes differ")
        say(_indented(_in_runtime(file, net, q, digits)))
    say(f"\nWrote {', '.join(str(p) for p in sorted(out.iterdir()) if p.name.startswith(('digits.', 'report.')))}")


def coverage(q: QModel) -> str:
    """What of a model runs in integers, what stays in float and why, and the notes of its making."""
    c = q.info["coverage"]
    shares = [f"{part / whole:.1%} of {whole:,} {what}" if whole else f"no {what}" for part, whole, what in (
        (c["integer_macs"], c["macs"], "multiply-accumulates"),
        (c["integer_weight_bytes"], c["weight_bytes"], "weight bytes"))]
    rejected, notes = q.info["rejections"], q.info["notes"]
    lines = [f"Integer model for target '{q.target.name}'", f"  integers: {', '.join(shares)}",
             f"  in float ({len(rejected)}):" + ("" if rejected else " nothing")]
    lines += [f"    {path or name} ({op}): {reason}" for name, path, op, reason in rejected]
    lines += [f"  note: {path + ': ' if path else ''}{text}" for path, text in notes]
    return "\n".join(lines)


def _digits() -> _Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise IntactError("the demo needs scikit-learn, for its data", got=str(error),
                          fix="pip install 'intact[demo]'") from None
    raw = load_digits()
    images = torch.from_numpy(raw.images).to(torch.float32).unsqueeze(1) / 16
    labels = torch.from_numpy(raw.target).to(torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:_TEST], order[_TEST:]
    return _Digits(images[train], labels[train], images[test], labels[test])


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".intact").touch()
        (out / ".intact").unlink()
    except OSError as error:
        raise ExportError("the output folder cannot be written", where=str(out), got=error.strerror,
                          fix="choose another with --out") from None


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread and a fixed seed inside: the same network each time; the caller's settings after."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


def _conv_bn(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels))


def _trained(digits: _Digits, epochs: int) -> nn.Module:
    net = _DigitNet()
    steps = epochs * -(-len(digits.train) // _BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.train)).split(_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(digits.train[rows]), digits.train_labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).float().mean())


def _in_runtime(file: Path, net: nn.Module, q: QModel, digits: _Digits) -> str:
    """The written file, run as a user would run it, held against both models."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: digits.test.numpy()})
    found, ours, floats = torch.from_numpy(scores), q(digits.test), net(digits.test)
    differ = int((found != ours).sum())
    same = int((found.argmax(1) == floats.argmax(1)).sum())
    return (f"{differ} of {ours.numel():,} output values differ from q(images)\n"
            f"same class on {same} of {_TEST} images as the float network; "
            f"{_accuracy(found, digits.test_labels):.2%} right")


def _indented(text: str) -> str:
    return "\n".join(f"   {line}".rstrip() for line in text.splitlines())
