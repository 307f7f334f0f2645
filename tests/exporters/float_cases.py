"""Float operations that a model may have between its layers: each must have an ONNX form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EXACT", "LAYERS", "ROUNDED"]

Op = Callable[[Tensor], Tensor]


def _mask(x: Tensor) -> Tensor:
    return x > 0.1


def _scattered(x: Tensor) -> Tensor:
    return torch.select_scatter(x, x[:, 1] * 2, 1, 2)


#: operations that compare, move or round: the runtime gives the very same numbers
EXACT: dict[str, Op] = {
    "amax": lambda x: x.amax(1, keepdim=True), "amin": lambda x: x.amin((2, 3)), "max": lambda x: x.max(1).values,
    "max keepdim": lambda x: x.max(2, keepdim=True).values, "min": lambda x: x.min(3)[0],
    "max index": lambda x: x.max(1)[1],
    "amax of all": lambda x: x - x.amax(), "max of all": lambda x: x - x.max(), "min of all": lambda x: x - x.min(),
    "argmax": lambda x: x.argmax(1), "argmin": lambda x: x.argmin(2, keepdim=True),
    "argmax flat": lambda x: x.flatten(1).argmax(1, keepdim=True),
    "argmax plus": lambda x: x.argmax(1) * 3 + 1, "argmax times": lambda x: x.argmax(1) * 0.5 + x[:, 0],
    "argmax of a difference": lambda x: 5 - x.argmax(1), "argmax halves": lambda x: x.argmax(1) / 2,
    "gt": _mask, "lt": lambda x: x < x.flip(1), "ge": lambda x: x >= 0, "le": lambda x: x <= x[:, :1],
    "eq": lambda x: x == x.flip(2), "ne": lambda x: x != 0.0, "eq int": lambda x: x.argmax(1) == 2,
    "where": lambda x: torch.where(x > 0, x, x * 0.5), "where scalar": lambda x: torch.where(x > 0, x, 0.25),
    "where scalars": lambda x: torch.where(x > 0, 1.0, -1.0),
    "logical": lambda x: (x > 0.3).logical_or(x < -0.2).logical_and(x > -1).logical_xor(x > 1),
    "bitwise": lambda x: ~((x > 0.3) | (x < -0.2)) & (x > -1), "bitwise xor": lambda x: (x > 0) ^ (x > 1),
    "logical not": lambda x: (x > 0).logical_not(), "logical not of floats": lambda x: x.logical_not(),
    "logical and of floats": lambda x: x.logical_and(x - 1),
    "bitwise of integers": lambda x: (x.argmax(1) & 1) | (~x.argmin(1) & 6),
    "masked fill": lambda x: x.masked_fill(x > 0.2, -1.0),
    "masked fill of a copy": lambda x: x.clone().masked_fill_(_mask(x), 3),
    "masked fill by tensor": lambda x: x.masked_fill(_mask(x), x.amax()),
    "any": lambda x: _mask(x).any(1), "all": lambda x: (x < 1).all(2, keepdim=True),
    "any of floats": lambda x: F.relu(x).any(3),
    "zeros like": lambda x: torch.zeros_like(x[:, :1]) + x, "ones like": lambda x: torch.ones_like(x) - x,
    "full like": lambda x: torch.full_like(x, 0.5) + x,
    "new zeros": lambda x: torch.cat([x, x.new_zeros(x.shape)], 1),
    "new ones": lambda x: x.new_ones(x.shape) + x, "new full": lambda x: x.new_full(x.shape, 2.5) * x,
    "zeros": lambda x: torch.zeros(x.shape[0], 4, 6, 6) + x,
    "full": lambda x: torch.full((x.shape[0], 4, 1, 1), 1.5) * x,
    "fill": lambda x: x.clone().fill_(2.0) + x, "zero": lambda x: x.clone().zero_() + x,
    "floor": lambda x: x.floor(), "ceil": lambda x: x.ceil(), "round": lambda x: (x * 2).round(),
    "trunc": lambda x: x.trunc(),
    "frac": lambda x: x.frac(), "sign": lambda x: x.sign(), "floor divide": lambda x: x // 0.25,
    "remainder": lambda x: x % 0.75,
    "fmod": lambda x: torch.fmod(x, 0.75), "div floor": lambda x: torch.div(x, 0.5, rounding_mode="floor"),
    "div trunc": lambda x: torch.div(x, 0.5, rounding_mode="trunc"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2), "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "select scatter": _scattered, "slice scatter": lambda x: torch.slice_scatter(x, x[:, :2] * 2, 1, 1, 3),
    "topk": lambda x: x.topk(3, 1).values, "smallest": lambda x: x.flatten(1).topk(5, 1, largest=False).values,
    "sort": lambda x: x.sort(2).values, "sort descending": lambda x: torch.sort(x, 1, descending=True)[0],
    "argsort": lambda x: torch.argsort(x[:, :, 0, 0] + torch.arange(4) * 1e-3, 1),
    "clamp of integers": lambda x: x.argmax(1).clamp(1, 2), "clamp of integers by a size":
        lambda x: x.argmax(1).clamp(max=x.shape[2] - 4), "clamp by a size": lambda x: x.clamp(max=x.shape[0] - 1),
    "flip of the batch": lambda x: x.flip(0, 1), "repeat by a size": lambda x: x[:1].repeat(x.shape[0], 1, 1, 1),
    "outer": lambda x: torch.outer(x[:, 0, 0, 0], x[0, 0, 0]), "range of floats":
        lambda x: x + torch.arange(0.0, float(x.shape[3]), 1.0),
    "triangle by a size": lambda x: x.tril(x.shape[0] - 3),
    "smaller of two": lambda x: torch.min(x, x.flip(1)), "larger of two":
        lambda x: torch.max(x.argmax(1), x.argmin(1)), "type_as": lambda x: x.argmax(1).type_as(x) + x[:, 0],
    "an empty list of parts": lambda x: torch.cat([torch.tensor([]), x, x], 1),
    "clamp by tensors": lambda x: torch.clamp(x, x.flip(1) - 1, x.flip(2) + 1),
    "clamp low": lambda x: torch.clamp(x, min=x.flip(1)),
    "expand as": lambda x: x[:, :1].expand_as(x), "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "tile": lambda x: x.tile((1, 1, 2, 1)),
    "repeat a rank": lambda x: x[:, 0].repeat(1, 1, 1).unsqueeze(1),
    "repeat interleave": lambda x: x.repeat_interleave(2, 3),
    "roll": lambda x: x.roll(1, 2), "roll two": lambda x: x.roll((1, -2), (2, 3)), "flip": lambda x: x.flip((2, 3)),
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "index select": lambda x: x.index_select(1, x[0, :, 0, 0].argsort()),
    "index": lambda x: torch.arange(6.0)[x.argmax(2)], "one hot": lambda x: F.one_hot(x.argmax(1), 4),
    "tril": lambda x: x.tril(), "triu": lambda x: x.triu(1), "isnan": lambda x: x.isnan(),
    "isinf": lambda x: x.isinf(),
    "isfinite": lambda x: x.isfinite(), "square": lambda x: x.square(), "diff": lambda x: x[:, 1:] - x[:, :-1],
    "hardshrink": lambda x: F.hardshrink(x, 0.3), "softshrink": lambda x: F.softshrink(x, 0.3),
    "threshold": lambda x: F.threshold(x, 0.1, -2.0), "unfold": lambda x: x.unfold(2, 3, 1)[..., 0],
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 1),
    "adaptive max pool 2": lambda x: F.adaptive_max_pool2d(x, 2),
    "max pool indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "to int": lambda x: (x * 4).to(torch.int64), "bool to float": lambda x: _mask(x).float() * x,
    "sum of a mask": lambda x: _mask(x).sum(1),
    "count nonzero": lambda x: torch.count_nonzero(_mask(x), 1),
}

#: operations that compute: the runtime's last bit may differ
ROUNDED: dict[str, Op] = {
    "var": lambda x: x.var(1), "var biased": lambda x: x.var((2, 3), unbiased=False, keepdim=True),
    "var correction": lambda x: x.var(2, correction=2), "std": lambda x: x.std((2, 3)),
    "std of all": lambda x: x / x.std(),
    "var mean": lambda x: torch.var_mean(x, 1)[0] + torch.var_mean(x, 1)[1],
    "std mean": lambda x: torch.std_mean(x, 1)[0],
    "cumsum": lambda x: x.cumsum(2), "cumsum of a mask": lambda x: _mask(x).cumsum(1),
    "vector norm": lambda x: torch.linalg.vector_norm(x, dim=1), "norm": lambda x: x.norm(dim=1, keepdim=True),
    "norm 1": lambda x: x.norm(p=1, dim=(2, 3)),
    "norm inf": lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1),
    "norm of all": lambda x: x / x.norm(), "norm 3": lambda x: torch.linalg.vector_norm(x, 3, dim=1),
    "normalize": lambda x: F.normalize(x, dim=1), "glu": lambda x: F.glu(x, 1),
    "log softmax": lambda x: F.log_softmax(x, 1),
    "logsumexp": lambda x: torch.logsumexp(x, 1), "prod": lambda x: x.prod(1), "mean of all": lambda x: x - x.mean(),
    "addmm of weights": lambda x: torch.addmm(torch.ones(3), x.flatten(1), torch.ones(144, 3), beta=0.5, alpha=0.1),
    "baddbmm": lambda x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2], beta=0.5, alpha=2.0),
    "bmm": lambda x: torch.bmm(x[:, 0], x[:, 1]),
    "mv": lambda x: torch.mv(x.flatten(1), torch.arange(144.0)).unsqueeze(1),
    "einsum": lambda x: torch.einsum("nchw,ncvw->nhv", x, x),
    "outer": lambda x: x[:, 0, 0, :, None] * x[:, 0, 0, None, :],
    "cosine": lambda x: F.cosine_similarity(x, x.flip(1), 1),
    "pow": lambda x: x.abs() ** (x.flip(1).abs() + 1), "scalar to the power": lambda x: 2.0**x,
    "log1p": lambda x: torch.log1p(x.abs()),
    "expm1": lambda x: torch.expm1(x), "log2": lambda x: torch.log2(x.abs() + 1),
    "log10": lambda x: torch.log10(x.abs() + 1),
    "exp2": lambda x: torch.exp2(x), "tan": lambda x: torch.tan(x * 0.1), "atan": torch.atan,
    "asin": lambda x: torch.asin(torch.tanh(x)),
    "acos": lambda x: torch.acos(torch.tanh(x) * 0.9), "sinh": torch.sinh, "cosh": torch.cosh, "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.5),
    "softsign": F.softsign, "tanhshrink": F.tanhshrink, "log sigmoid": F.logsigmoid,
    "softmin": lambda x: F.softmin(x, 1),
    "softplus": lambda x: F.softplus(x, beta=2.0, threshold=10.0),
    "relu6 of sums": lambda x: F.relu6(x + x.cumsum(1)),
    "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.flip(1), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5),
    "grid sample": lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False),
    "rms norm": lambda x: F.rms_norm(x, (6,)),
    "unbiased moments": lambda x: (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 1e-5).sqrt(),
    "softmax in float": lambda x: torch.softmax(x.flatten(2), -1, dtype=torch.float32),
}


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(6, 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x[:, 0], x[:, 1])
        return y


class _Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Embedding(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.argmax(1))
        return y


#: layers with parameters
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "instance norm": lambda: nn.InstanceNorm2d(4), "affine instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "instance norm 1-d": lambda: nn.Sequential(nn.Flatten(2), nn.InstanceNorm1d(4, affine=True)),
    "group norm": lambda: nn.GroupNorm(2, 4), "plain group norm": lambda: nn.GroupNorm(2, 4, affine=False),
    "group norm of one group": lambda: nn.GroupNorm(1, 4), "layer norm": lambda: nn.LayerNorm(6),
    "layer norm over three axes": lambda: nn.LayerNorm((4, 6, 6)),
    "batch norm": lambda: nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4)),
    "prelu": lambda: nn.PReLU(4), "bilinear": _Bilinear, "embedding": _Embedding,
    "rms norm": lambda: nn.RMSNorm((4, 6, 6)),
    "local response norm": lambda: nn.LocalResponseNorm(3), "lp pool": lambda: nn.LPPool2d(2, 2),
    "bilinear to a size that float32 factors miss": lambda: nn.Upsample((5, 8), mode="bilinear"),
    "bicubic": lambda: nn.Upsample(scale_factor=2, mode="bicubic"), "glu": lambda: nn.GLU(1),
    "softmax2d": nn.Softmax2d,
    "average pool that sticks out": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average pool that would start in the padding": lambda: nn.AvgPool2d(2, 3, 1, ceil_mode=True), "rrelu": nn.RReLU,
}
