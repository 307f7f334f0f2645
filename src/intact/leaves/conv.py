"""Convolutions on codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intact.arithmetic import quantize_rows, quantize_tensor, tensor_range
from intact.errors import IntactError
from intact.kernels.integer import conv_int
from intact.leaves.base import Leaf, MakeWeight, constant
from intact.leaves.how import Dynamic, LeafHow
from intact.leaves.recording import call, recording
from intact.leaves.weight import QWeight
from intact.types import PerGroup, PerToken

__all__ = ["QConv", "convolve"]


class QConv(Leaf):
    """``nn.Conv1d`` and ``nn.Conv2d``; what is a token for a Linear is a sample here.

    >>> import torch, intact
    >>> q = intact.quantize_dynamic(torch.nn.Conv1d(2, 3, 3), {torch.nn.Conv1d})
    >>> q(torch.randn(1, 2, 8)).shape
    torch.Size([1, 3, 6])
    """

    bias: Tensor | None

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, qweight: QWeight, how: LeafHow) -> None:
        super().__init__()
        self.how, self.axes = how, len(conv.kernel_size)
        self.stride, self.dilation, self.groups = tuple(conv.stride), tuple(conv.dilation), conv.groups
        self.padding_mode, self.kernel_size = conv.padding_mode, tuple(conv.kernel_size)
        self.pads = _pads(conv)
        self.qweight = qweight
        self.register_parameter("bias", constant(conv.bias))

    @classmethod
    def from_float(cls, module: nn.Module, how: LeafHow, make: MakeWeight) -> Self:
        """The leaf in the place of a convolution."""
        conv = cast("nn.Conv1d | nn.Conv2d", module)
        return cls(conv, make(conv.weight, "weight"), how)

    @staticmethod
    def refusal(module: nn.Module, how: LeafHow) -> str | None:
        """Integer products of groups of a kernel are not added up."""
        grouped = isinstance(how, Dynamic) and isinstance(how.weight, PerGroup)
        return "a convolution has no dynamic int8 form with weights per group" if grouped else None

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for, made anew."""
        return self.qweight.real()

    def forward(self, input: Tensor) -> Tensor:
        """The convolution, of a batch or of one sample without a batch axis."""
        single, channels = input.ndim == self.axes + 1, self.qweight.shape[1] * self.groups
        batch = input.unsqueeze(0) if single else input
        if batch.ndim != self.axes + 2 or batch.shape[1] != channels or not batch.is_floating_point():
            raise IntactError("the input does not fit the layer", where="QConv",
                              got=f"{input.dtype}, {tuple(input.shape)}",
                              allowed=f"real numbers, {channels} channels, {self.axes} axes behind them")
        batch = batch.to(torch.float32)
        if any(self.pads):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            batch = F.pad(batch, self.pads, mode=mode)
        y = convolve(batch, self.qweight, self.bias, self.stride, self.dilation, self.groups).to(input.dtype)
        return y[0] if single else y

    def extra_repr(self) -> str:
        """Sizes and encoding."""
        out, per = self.qweight.shape[:2]
        return f"{per * self.groups}, {out}, kernel_size={self.kernel_size}, {self.how}"


def convolve(
    x: Tensor, weight: QWeight, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """The convolution of a padded batch, float32 (batch, channels, *spatial), with the codes of a kernel."""
    if recording():
        result: Tensor = call("leaf_conv", weight, x, bias, shape=list(weight.shape), stride=list(stride),
                              dilation=list(dilation), groups=groups)
        return result
    bias = None if bias is None else bias.to(torch.float32)
    if isinstance(weight.how, Dynamic):
        return _integer(x, weight, bias, stride, dilation, groups)
    function = F.conv1d if x.ndim == 3 else F.conv2d
    return function(x, weight.dequantize(), bias, stride, 0, dilation, groups)


@torch.no_grad()
def _integer(
    x: Tensor, weight: QWeight, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """As :func:`intact.leaves.product.product` does it, with samples in the place of rows."""
    assert isinstance(weight.how, Dynamic)
    none, channel, derived = (0,) * (x.ndim - 2), (1, -1, *[1] * (x.ndim - 2)), weight.derived()
    scale = derived.row_scale.reshape(channel)
    if isinstance(weight.how.activation, PerToken):
        rows = x.flatten(1)
        codes, step, low = quantize_rows(rows)
        codes = codes[:, : rows.shape[1]].reshape(x.shape)
        acc = conv_int(codes, weight.codes, 0, stride, none, none, dilation, groups)
        column = (-1, *[1] * (x.ndim - 1))
        y = acc.to(torch.float32).mul_(scale).mul_(step.reshape(column))
        base = low.reshape(column) * derived.offsets.reshape(channel)
        return y.add_(base if bias is None else base.add_(bias.reshape(channel)))
    step, zero = tensor_range(x)
    codes, origin = quantize_tensor(x, step, zero), int(zero.nan_to_num())
    acc = conv_int(codes, weight.codes, origin, stride, none, none, dilation, groups)
    y = acc.to(torch.float32).mul_(step * scale)
    return y if bias is None else y.add_(bias.reshape(channel))


def _pads(conv: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """Elements before and after each axis, last axis first, as ``F.pad`` takes them."""
    found: list[int] = []
    for i in reversed(range(len(conv.kernel_size))):
        if isinstance(conv.padding, str):
            whole = conv.dilation[i] * (conv.kernel_size[i] - 1) if conv.padding == "same" else 0
            found += [whole // 2, whole - whole // 2]
        else:
            found += [conv.padding[i], conv.padding[i]]
    return tuple(found)
