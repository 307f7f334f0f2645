"""Float operations between layers: the float file against torch, and the integer model against its own file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.exporters import float_onnx
from intact.exporters.runtime import run_model
from tests.exporters.float_cases import EXACT, LAYERS, ROUNDED


class Between(nn.Module):
    """A convolution, operations of any kind side by side, and a layer after each."""

    def __init__(self, ops: Sequence[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.before, self.layers = nn.Conv2d(3, 4, 3), nn.ModuleList(op for op in ops if isinstance(op, nn.Module))
        self.ops, self.after = ops, nn.ModuleList()
        for op in ops:
            y = op(self.before(torch.zeros(2, 3, 8, 8)))
            self.after.append(nn.Conv2d(y.shape[1], 3, 1) if y.ndim == 4 else nn.Linear(y.flatten(1).shape[1], 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        found, x = [], self.before(x)
        for op, after in zip(self.ops, self.after, strict=True):
            y = op(x)
            z = y.to(torch.float32)
            found += [after(z if y.ndim == 4 else z.flatten(1)), y]
        return found


def groups() -> Iterator[tuple[str, ...]]:
    """Some operations at a time: most of the time goes into captures and sessions."""
    for table in (EXACT, ROUNDED, LAYERS):
        names = list(table)
        yield from (tuple(names[i:i + 8]) for i in range(0, len(names), 8))


@pytest.mark.parametrize("names", list(groups()), ids=lambda g: f"{g[0]} to {g[-1]}")
def test_exported(names: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = Between([EXACT.get(n) or ROUNDED.get(n) or LAYERS[n]() for n in names]).eval()
    x = torch.randn(5, 3, 8, 8)
    certificate = intact.export(intact.quantize(net, [x], progress=False), tmp_path / "net.onnx")
    assert certificate.ok
    if names[0] in EXACT:
        assert (certificate.outputs_differ, certificate.float_codes_differ) == (0, 0)
    else:
        assert certificate.outputs_largest_difference <= 0.05  # a step or two after a value between two codes
    path = float_onnx(intact.capture(net, x), tmp_path / "float.onnx")
    for i, (ours, theirs) in enumerate(zip(net(x), run_model(path, {"x": x.numpy()}), strict=True)):
        assert torch.from_numpy(theirs).dtype == ours.dtype, names[i // 2]
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-4, msg=names[i // 2])
