"""In-place operations: views, names and constants that are overwritten later mean what they mean in the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import intact

Result = Tensor | tuple[Tensor, ...]


def view_between(y: Tensor, x: Tensor) -> Result:
    y.relu_()
    v = y.view(-1, 2, 4)
    y.add_(1)
    return v.sum(1), y


def view_of_the_result(y: Tensor, x: Tensor) -> Result:
    v = y.relu_().view(-1, 2, 4)
    y.mul_(2.0)
    return v.sum(1) + y[:, :4]


def several_names(y: Tensor, x: Tensor) -> Result:
    z = y.relu_()
    y.mul_(2.0)
    w = z.add_(1)
    return z + y + w


def dropout_beside(y: Tensor, x: Tensor) -> Result:
    v = F.alpha_dropout(y, 0.5, False)
    y = y + 1
    return v, y.relu_()


def view_before(y: Tensor, x: Tensor) -> Result:
    v = y[:, 1]
    y.masked_fill_(x > 0, 0.5)
    return v, y


def same_device(y: Tensor, x: Tensor) -> Result:
    v = y.to("cpu")
    y.relu_()
    return v, y


def constant_that_grows(y: Tensor, x: Tensor) -> Result:
    m = torch.zeros(8)
    a = y + m
    m.add_(1)
    b = y + m
    m.mul_(3)
    return a, b, x + m


def constant_range(y: Tensor, x: Tensor) -> Result:
    m = torch.arange(8.0)
    a = y + m
    m.mul_(2)
    return a, y * m


def wider_operand(y: Tensor, x: Tensor) -> Result:
    y.add_(x.double())
    return y


def narrow_result(y: Tensor, x: Tensor) -> Result:
    h = y.half()
    h.add_(x)
    return h.float()


def output_argument(y: Tensor, x: Tensor) -> Result:
    with torch.no_grad():
        y = y * 1
        z = y * 2
        torch.atan2(x, y, out=z)
    return z, y


def empty_then_filled(y: Tensor, x: Tensor) -> Result:
    out = torch.empty(x.shape[0], 8)
    out[:, :4] = x[:, :4]
    out[:, 4:] = y[:, 4:]
    return out + torch.empty_like(x).fill_(0.5)


def scattered(y: Tensor, x: Tensor) -> Result:
    v = y.t()
    y.scatter_add_(1, x.argsort(1), x)
    y.index_put_((torch.tensor([0, 0]), torch.tensor([1, 2])), torch.tensor([9.0, 8.0]))
    return y, v.sum(0)


def logic(y: Tensor, x: Tensor) -> Result:
    m = (x > 0) & (y > 0)
    m |= y > 1
    return m.float(), torch.where(m ^ (x > 0), x, y)


PROGRAMS = [view_between, view_of_the_result, several_names, dropout_beside, view_before, same_device,
            constant_that_grows, constant_range, wider_operand, narrow_result, output_argument, empty_then_filled,
            scattered, logic]


class Around(nn.Module):
    def __init__(self, program: Callable[[Tensor, Tensor], Result]) -> None:
        super().__init__()
        self.linear, self.program = nn.Linear(8, 8), program

    def forward(self, x: Tensor) -> Result:
        return self.program(self.linear(x), x)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_is_captured_as_it_runs(program: Callable[[Tensor, Tensor], Result]) -> None:
    torch.manual_seed(0)
    net = Around(program).eval()
    fm = intact.capture(net, torch.randn(8, 8))
    x = torch.randn(5, 8)
    with torch.no_grad():
        wanted, got = net(x), fm(x)
    wanted, got = ((v,) if isinstance(v, Tensor) else v for v in (wanted, got))
    assert len(wanted) == len(got)
    for w, g in zip(wanted, got, strict=True):
        assert w.dtype == g.dtype and torch.allclose(w, g, atol=1e-6)
