"""Small networks, and a calibrated QFloat model of one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import intact
from intact import QFloatModel, Quant, Recipe, Schedule

PAIRS = [("observed", "observed"), ("lsq", "lsq"), ("lsq+", "lsq+"), ("tqt", "tqt"), ("pact", "dorefa"),
         ("dorefa", "dorefa")]


def convolutional(seed: int = 0) -> nn.Module:
    """Convolutions with and without bias, grouped, batch norms, two activations, a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )


class Dense(nn.Module):
    """Batch norms that no convolution precedes alone, as in DenseNet, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.grow = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow(torch.relu(self.norm(x)))], 1)
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def data(samples: int = 48, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images whose class is told by the mean of a channel."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (samples,), generator=generator)
    x = torch.randn(samples, 3, 6, 6, generator=generator)
    x[:, 0] += y.reshape(-1, 1, 1).float() - 1.5
    return x, y


def prepared(
    net: nn.Module | None = None, bits: int = 4, edges: str = "lsq", weights: str = "lsq", calibrated: bool = True,
    schedule: Schedule | None = None, **quant: object,
) -> QFloatModel:
    """A QFloat model."""
    x, _ = data()
    how = Quant(bits, bits, weight_quantizer=weights, activation_quantizer=edges, **quant)  # type: ignore[arg-type]
    fm = intact.capture(net or convolutional(), x)
    qfloat = intact.prepare(fm, intact.plan(fm, recipe=Recipe(default=how)), schedule=schedule)
    return intact.calibrate(qfloat, [x]) if calibrated else qfloat


def steps(
    model: nn.Module, count: int, lr: float = 0.05, optimizer: torch.optim.Optimizer | None = None
) -> list[float]:
    """Train on all the data; losses."""
    x, y = data()
    opt = optimizer or torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    losses = []
    for _ in range(count):
        loss = nn.functional.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses


def same_codes(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """The same edges with the same codes."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
