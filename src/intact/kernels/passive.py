"""Operations that move codes and change none. They work on values of any dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intact.arithmetic import quantize
from intact.kernels.base import Binding, Kernel, kernel
from intact.types.dims import Sizes, resolve_dim, resolve_shape

__all__ = ["MOVES", "PassiveKernel", "max_pool"]

Attrs = Mapping[str, Any]


def _slice(x: Tensor, a: Attrs, sizes: Sizes) -> Tensor:
    index: list[slice] = [slice(None)] * x.ndim
    index[a["axis"]] = slice(resolve_dim(a["start"], sizes), resolve_dim(a["end"], sizes), a["step"])
    return x[tuple(index)]


def max_pool(x: Tensor, a: Attrs, sizes: Sizes) -> Tensor:
    """Maximum over windows; padding never wins."""
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(a["kernel"]) - 1]
    # torch pools small integers through float32, which holds each of them exactly
    y = x if x.is_floating_point() else x.to(torch.float32)
    y = pool(y, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])
    return y.to(x.dtype)


def _nearest(x: Tensor, a: Attrs, sizes: Sizes) -> Tensor:
    """Index arithmetic of torch's nearest mode: floor(i * (in / out)) in float32."""
    for i, (source, size) in enumerate(zip(x.shape[2:], resolve_shape(a["size"], sizes), strict=True)):
        if source == size:
            continue
        ratio = torch.tensor(source / size, dtype=torch.float32)
        index = (torch.arange(size, dtype=torch.float32) * ratio).floor().to(torch.int64).clamp_(max=source - 1)
        x = torch.index_select(x, 2 + i, index.to(x.device))
    return x


def _index_select(x: Tensor, a: Attrs, sizes: Sizes) -> Tensor:
    return torch.index_select(x, a["axis"], torch.tensor(a["indices"], device=x.device))


#: operation -> function(x, attrs, sizes)
MOVES: dict[str, Callable[[Tensor, Attrs, Sizes], Tensor]] = {
    "reshape": lambda x, a, s: x.reshape(resolve_shape(a["shape"], s)),
    "permute": lambda x, a, s: x.permute(a["axes"]),
    "expand": lambda x, a, s: x.expand(resolve_shape(a["shape"], s)),
    "slice": _slice,
    "max_pool": max_pool,
    "index_select": _index_select,
    "interpolate_nearest": _nearest,
}


@kernel(*MOVES)
class PassiveKernel(Kernel):
    """Codes out are codes in, elsewhere."""

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Moved codes."""
        return MOVES[self.binding.op](xs[0], self.binding.attrs, sizes)


@kernel("pad")
class PadKernel(Kernel):
    """Padding with a constant's code, or with mirrored or repeated codes."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        value = torch.tensor(float(binding.attrs["value"]))
        self.value = int(quantize(value, binding.inputs[0], binding.arithmetic))

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Padded codes."""
        (x,), a = xs, self.binding.attrs
        if a["mode"] == "constant":
            return F.pad(x, a["pads"], value=self.value)
        y = x if x.is_floating_point() else x.to(torch.float32)
        return F.pad(y, a["pads"], mode=a["mode"]).to(x.dtype)
