"""Character models on Shakespeare: what dynamic int8 costs in nats a character."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import intact

from .data import requires_shared

pytestmark = [pytest.mark.real, pytest.mark.slow, requires_shared]

TEXT = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare.txt"
STEPS, LENGTH, BATCH = 400, 64, 32


class Characters(nn.Module):
    """The next character from those before."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], symbols: int, size: int = 256) -> None:
        super().__init__()
        self.table, self.memory = nn.Embedding(symbols, 64), kind(64, size)
        self.head = nn.Linear(size, symbols)

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.memory(self.table(index))[0])


def text() -> tuple[Tensor, int]:
    characters = TEXT.read_text("utf-8")
    symbols = sorted(set(characters))
    place = {c: i for i, c in enumerate(symbols)}
    return torch.tensor([place[c] for c in characters]), len(symbols)


def trained(kind: type[nn.LSTM] | type[nn.GRU], data: Tensor, symbols: int) -> nn.Module:
    torch.manual_seed(0)
    net = Characters(kind, symbols)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    offsets = torch.arange(LENGTH + 1)[:, None]
    for _ in range(STEPS):
        batch = data[torch.randint(len(data) - LENGTH - 1, (BATCH,)) + offsets]
        loss = F.cross_entropy(net(batch[:-1]).flatten(0, 1), batch[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def nats(net: nn.Module, data: Tensor) -> float:
    """Mean cross-entropy over 32 long stretches."""
    stretches = data[: len(data) // 32 * 32].view(32, -1).t()[:513]
    return float(F.cross_entropy(net(stretches[:-1]).flatten(0, 1), stretches[1:].flatten()))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_int8_costs_two_hundredths_of_a_nat_at_most(kind: type[nn.LSTM] | type[nn.GRU]) -> None:
    torch.set_num_threads(1)
    data, symbols = text()
    held = len(data) // 10
    net = trained(kind, data[:-held], symbols)
    plain = nats(net, data[-held:])
    assert plain < 2.0  # it has learned: a uniform guess is 4.2, single characters by frequency 3.3
    lost = nats(intact.quantize_dynamic(net), data[-held:]) - plain
    print(f"{kind.__name__}: {plain:.4f} nats in float32, {lost:+.5f} with int8")
    assert lost <= 0.02
