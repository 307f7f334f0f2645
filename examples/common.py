"""What the examples share: options, images, a plain training loop for float networks, and accuracy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options of every example; ``defaults`` of a full run."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--small", action="store_true", help="seconds: handwritten digits and a narrow network")
    p.add_argument("--data", default=os.environ.get("INTACT_DATA"), metavar="FOLDER",
                   help="with cifar10_train*.npz and cifar10_test.npz; default: $INTACT_DATA")
    p.add_argument("--out", type=Path, default=Path("build/examples"), metavar="FOLDER", help="where files are written")
    p.add_argument("--images", type=int, default=None, help="take only so many training images")
    p.add_argument("--seed", type=int, default=0)
    for name, value in defaults.items():
        p.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return p


@dataclass(frozen=True)
class Images:
    """Normalised images (N, 3, size, size) and labels (N,), for training and for testing."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def calibration(self, samples: int = 512, batch: int = 64) -> list[Tensor]:
        """Batches of training images, spread over all of them (files are often sorted by class)."""
        return list(self.train[:: max(1, len(self.train) // samples)][:samples].split(batch))

    def batches(self, batch: int = 128, augment: bool = True) -> Batches:
        """Shuffled training batches, cropped and flipped at random."""
        return Batches(self.train, self.train_labels, batch, augment)

    def tests(self, batch: int = 500) -> list[tuple[Tensor, Tensor]]:
        """Test batches."""
        return list(zip(self.test.split(batch), self.test_labels.split(batch), strict=True))


class Batches:
    """What a DataLoader would do: shuffle, shift by up to 4 pixels (zeros come in), flip; drop the last odd batch."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int, augment: bool) -> None:
        self.images, self.labels, self.batch, self.augment = images, labels, batch, augment

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.images)).split(self.batch)[: len(self)]:
            x = self.images[rows]
            yield (_augmented(x) if self.augment else x), self.labels[rows]


def _augmented(x: Tensor, pad: int = 4) -> Tensor:
    n, _, height, width = x.shape
    x = F.pad(x, [pad] * 4).permute(0, 2, 3, 1)
    rows = torch.randint(2 * pad + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(2 * pad + 1, (n, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns, columns.flip(1))
    return x[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def load_images(args: argparse.Namespace, size: int = 32) -> Images:
    """CIFAR-10 from the data folder; with ``--small``, scikit-learn's digits, enlarged, in three equal channels."""
    if args.small:
        return _digits(size, args.images)
    folder = data_folder(args)
    found = sorted(folder.glob("cifar10_train*.npz"))
    if not found or not (folder / "cifar10_test.npz").is_file():
        raise SystemExit(f"{folder} has no cifar10_train*.npz and cifar10_test.npz (arrays 'images', uint8 NHWC, and "
                         "'labels'; see examples/README.md), or run with --small")
    step = 1 if args.images is None else max(1, len(_arrays(found[0])[1]) // args.images)
    return Images(*_cifar(found[0], step), *_cifar(folder / "cifar10_test.npz", 1))


def data_folder(args: argparse.Namespace) -> Path:
    """The folder of real data."""
    if not args.data or not Path(args.data).is_dir():
        raise SystemExit(f"A full run needs real data: --data FOLDER or INTACT_DATA=FOLDER (got {args.data!r}); see "
                         "examples/README.md. --small needs none.")
    return Path(args.data)


def _arrays(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


def _cifar(file: Path, step: int) -> tuple[Tensor, Tensor]:
    images, labels = _arrays(file)
    x = torch.from_numpy(images[::step]).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    return x.contiguous(), torch.from_numpy(labels[::step].astype(np.int64))


def _digits(size: int, images: int | None) -> Images:
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images).float().unsqueeze(1) / 8 - 1
    x = F.interpolate(x, size=(size, size)).expand(-1, 3, -1, -1).contiguous()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order[:300], order[300 : 300 + (images or 768)]
    y = torch.from_numpy(raw.target).long()
    return Images(x[train], y[train], x[test], y[test])


def train_float(net: nn.Module, batches: Batches, epochs: int, lr: float = 3e-3) -> nn.Module:
    """A float network, trained with AdamW over one cycle of learning rates; in evaluation mode after."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=5e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * len(batches))
    net.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for x, y in batches:
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            total += loss.item()
        print(f"  float epoch {epoch}/{epochs}: loss {total / len(batches):.3f}", flush=True)
    return net.eval()


def accuracy(model: Callable[[Tensor], Tensor], tests: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Share of images whose largest output is that of their label."""
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in tests)
    return right / sum(len(y) for _, y in tests)


def runtime(path: Path) -> Callable[[Tensor], Tensor]:
    """An exported file in ONNX Runtime, as a function of images."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def codes_that_differ(qfloat: Any, q: Any, tests: Sequence[tuple[Tensor, Tensor]]) -> tuple[int, int]:
    """How many codes of the QFloat and the Q model differ, at every edge, and how many were compared."""
    differ = compared = 0
    for x, _ in tests:
        mine = q.codes(x)
        for name, codes in qfloat.codes(x).items():
            differ += int((codes != mine[name]).sum())
            compared += codes.numel()
    return differ, compared
