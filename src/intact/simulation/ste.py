"""Fake quantization with straight-through gradients: the forward gives exactly the value of the nearest code.

``x + (q - x).detach()`` is not ``q`` in about two per cent of the elements, so these are autograd functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from intact.arithmetic import Rounding, round_to_int

__all__ = ["anchor", "fake_quantize", "learned_fake_quantize", "power_of_two", "relative"]


Bound = Tensor | float


def _on_grid(x: Tensor, scale: Tensor, low: Bound, high: Bound) -> tuple[Tensor, Tensor]:
    """``clamp(rint(x / s), low, high) * s`` with codes counted from the zero point, and what was not clipped."""
    steps = x / scale
    codes = torch.clamp(steps, low, high)  # type: ignore[arg-type]
    inside = codes == steps
    return round_to_int(codes, Rounding.HALF_EVEN, inplace=True).mul_(scale), inside


class _FakeQuantize(torch.autograd.Function):
    """Straight through inside the range; of every element only a flag is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Bound, high: Bound) -> Tensor:
        """Values on the grid."""
        y, inside = _on_grid(x, scale, low, high)
        ctx.save_for_backward(inside)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, None]:
        """The gradient passes where the value is inside the range."""
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grads[0], 0.0), None, None, None


class _LearnedFakeQuantize(torch.autograd.Function):
    """The same, with gradients of scale and zero point.

    Esser et al., "Learned step size quantization", ICLR 2020, eq. 3; Bhalgat et al., "LSQ+", 2020, eq. 7. The
    scale's gradient is ``rint(v) - v = (y - x) / s`` inside the range and the end code ``y / s`` outside. The output
    is kept anyway, by the operation that reads it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, offset: Tensor | None, low: Bound, high: Bound,
                factor: float, ends_only: bool) -> Tensor:
        """Values on the grid."""
        ctx.factor, ctx.ends_only = factor, ends_only
        if isinstance(low, float) and isinstance(high, float) and scale.numel() == 1:
            # numbers as bounds: what was clipped is told from x, and nothing but x and y is kept
            ctx.ends = low * float(scale), high * float(scale)
            y = round_to_int((x / scale).clamp_(low, high), Rounding.HALF_EVEN, inplace=True).mul_(scale)
            ctx.save_for_backward(x, scale, y)
            return y
        ctx.ends = None
        y, inside = _on_grid(x, scale, low, high)
        ctx.save_for_backward(x, scale, y, inside)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Scale: ``rint(v) - v`` inside and the end code outside; zero point: ``-s`` outside."""
        x, scale, y, *inside = ctx.saved_tensors
        (g,) = grads
        if ctx.ends is not None:
            gx = torch.ops.aten.hardtanh_backward.default(g, x, *ctx.ends)
        else:
            gx = torch.where(inside[0], g, 0.0)
        # (y - x) inside and y outside, summed as two dot products, which read memory and write none
        gs = _difference(g, y, gx, y if ctx.ends_only else x, scale)
        go = _reduced((g - gx) * -scale, scale) * ctx.factor if ctx.needs_input_grad[2] else None
        return gx, gs * (ctx.factor / scale), go, None, None, None, None


def _difference(a: Tensor, b: Tensor, c: Tensor, d: Tensor, like: Tensor) -> Tensor:
    """Sum of ``a * b - c * d`` over the axes that ``like`` was broadcast along."""
    if like.numel() == 1 and all(t.is_contiguous() for t in (a, b, c, d)):
        return (torch.dot(a.view(-1), b.view(-1)) - torch.dot(c.view(-1), d.view(-1))).reshape(like.shape)
    return _reduced((a * b).addcmul_(c, d, value=-1.0), like)


class _Relative(torch.autograd.Function):
    """``unit * exp(gain)``, where a step of the gain is the step that LSQ makes, relative to the scale.

    Such a scale stays positive, and a gain starts at 0 whatever the scale is: one learning rate suits every layer.
    """

    @staticmethod
    def forward(ctx: Any, gain: Tensor, unit: Tensor) -> Tensor:
        """The scale."""
        scale = unit * torch.exp(gain)
        ctx.save_for_backward(scale)
        return scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        """By the mean scale: a channel of next to no weight takes small steps, not wild ones."""
        (scale,) = ctx.saved_tensors
        return grads[0] / scale.mean(), None


class _Anchor(torch.autograd.Function):
    """The first tensor; the others get zero gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *others: Tensor) -> Tensor:
        """A view of the value."""
        ctx.save_for_backward(*others)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, ...]:
        """Zeros for parameters that took no part."""
        return (grads[0], *[torch.zeros_like(t) for t in ctx.saved_tensors])


def _reduced(value: Tensor, like: Tensor) -> Tensor:
    """Sum over the axes that ``like`` was broadcast along."""
    return value.sum().reshape(like.shape) if like.numel() == 1 else value.sum_to_size(like.shape)


class _PowerOfTwo(torch.autograd.Function):
    """``2 ** ceil(log2)`` with the gradient of ``2 ** log2`` at the rounded exponent."""

    @staticmethod
    def forward(ctx: Any, log2: Tensor) -> Tensor:
        """Powers of two, exact in float32."""
        value = torch.exp2(-round_to_int(-log2.detach(), Rounding.FLOOR))
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        """``ds/dlog2 = s * ln 2`` (Jain et al., "Trained quantization thresholds", MLSys 2020, eq. 6)."""
        (value,) = ctx.saved_tensors
        return grads[0] * value * 0.6931471805599453  # type: ignore[no-any-return]


def fake_quantize(x: Tensor, scale: Tensor, low: Bound, high: Bound) -> Tensor:
    """``x`` on the grid ``scale * {low .. high}``, gradient straight through inside it.

    Args:
        x: any shape.
        scale: positive, broadcastable to ``x``.
        low: lowest code minus the zero point (an integer).
        high: highest code minus the zero point.

    >>> x = torch.tensor([0.2, 0.7, 9.0], requires_grad=True)
    >>> y = fake_quantize(x, torch.tensor(0.5), 0, 3)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 0.5, 1.5], [1.0, 1.0, 0.0])
    """
    y: Tensor = _FakeQuantize.apply(x.to(torch.float32), scale, low, high)  # type: ignore[no-untyped-call]
    return y.to(x.dtype)


def learned_fake_quantize(
    x: Tensor, scale: Tensor, low: Bound, high: Bound, factor: float = 1.0,
    offset: Tensor | None = None, ends_only: bool = False,
) -> Tensor:
    """:func:`fake_quantize` with gradients for the scale, and for the zero point if ``offset`` is given.

    Args:
        x: any shape.
        scale: positive, broadcastable to ``x``; gets a gradient.
        low: lowest code minus the (rounded) zero point.
        high: highest code minus the zero point.
        factor: multiplies the gradients of scale and offset.
        offset: the zero point before rounding; only its gradient is used.
        ends_only: only clipped values move the scale (Choi et al., "PACT", 2018, eq. 3).

    >>> s = torch.tensor(0.5, requires_grad=True)
    >>> learned_fake_quantize(torch.tensor([0.2, 9.0]), s, 0, 3).sum().backward()
    >>> round(s.grad.item(), 4)
    2.6
    """
    values = x.to(torch.float32)
    y: Tensor = _LearnedFakeQuantize.apply(  # type: ignore[no-untyped-call]
        values, scale, offset, low, high, factor, ends_only)
    return y.to(x.dtype)


def anchor(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """``value``, through which parameters that took no part get zero gradients (parallel training waits for each)."""
    if not parameters:
        return value
    result: Tensor = _Anchor.apply(value, *parameters)  # type: ignore[no-untyped-call]
    return result


def relative(gain: Tensor, unit: Tensor) -> Tensor:
    """A learned scale: ``unit * exp(gain)`` with gradients relative to the scale.

    >>> relative(torch.tensor(0.0), torch.tensor(0.25))
    tensor(0.2500)
    """
    value: Tensor = _Relative.apply(gain, unit)  # type: ignore[no-untyped-call]
    return value


def power_of_two(log2: Tensor) -> Tensor:
    """The smallest power of two that is at least ``2 ** log2``.

    >>> power_of_two(torch.tensor([-1.5, 2.0]))
    tensor([0.5000, 4.0000])
    """
    value: Tensor = _PowerOfTwo.apply(log2)  # type: ignore[no-untyped-call]
    return value
