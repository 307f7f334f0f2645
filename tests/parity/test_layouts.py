"""Float operations behind convolutions: the last bits of their sums depend on the order of values in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import intact
from tests.parity.harness import differing


class Normed(nn.Module):
    """Convolutions, whose kernels leave their results in one order or another, and norms in float."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 8, 3)
        self.n, self.m = nn.GroupNorm(1, 32), nn.GroupNorm(4, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.m(self.b(self.n(self.a(x)))))
        return y


def test_the_order_in_memory_is_the_same_in_the_simulation_and_in_integers() -> None:
    torch.manual_seed(0)
    fm = intact.capture(Normed().eval(), torch.randn(8, 3, 32, 32))
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [torch.randn(8, 3, 32, 32)])
    q = intact.convert(qfloat)
    for _ in range(6):
        assert differing(qfloat, q, {"x": torch.randn(16, 3, 32, 32)}) == []
