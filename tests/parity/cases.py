"""A vector of small networks for every operation that has an integer form: geometry, tails, operand orders."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.harness import Between, Fan

__all__ = ["CASES", "Case"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A network, the shapes of its inputs without the batch, and the canonical operations that it must run in integers.

    ``unfused``: why kernels of the plan are no kernels of the runtime; the codes are equal all the same.
    """

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    covers: frozenset[str]
    unfused: str = ""


CASES: list[Case] = []


def case(name: str, covers: str, *shapes: Shape, unfused: str = "") -> Callable[[Callable[[], nn.Module]], None]:
    def add(build: Callable[[], nn.Module]) -> None:
        CASES.append(Case(name, build, shapes, frozenset(covers.split()), unfused))

    return add


def light(name: str, covers: str, *ops: Callable[..., Tensor], shapes: tuple[Shape, ...], convs: bool = False,
          unfused: str = "") -> None:
    """Operations side by side, each between integer ones."""
    case(name, covers, *shapes, unfused=unfused)(lambda: Fan(*[Between(op, *shapes, convs=convs) for op in ops]))


MAP: Shape = (3, 9, 11)  # a feature map with odd sizes


# -- layers with weights ------------------------------------------------------------------------

case("conv1d", "conv", (6, 17))(lambda: Fan(
    nn.Conv1d(6, 5, 3), nn.Conv1d(6, 8, 5, stride=2, padding=2), nn.Conv1d(6, 16, 2, dilation=3),
    nn.Conv1d(6, 6, 3, groups=6, padding=1), nn.Conv1d(6, 9, 3, groups=3, bias=False),
    nn.Conv1d(6, 7, 5, padding="same", dilation=2), nn.Sequential(nn.Conv1d(6, 33, 1), nn.ReLU())))
case("conv2d", "conv", MAP)(lambda: Fan(
    nn.Conv2d(3, 5, 3), nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2)), nn.Conv2d(3, 16, 2, dilation=(1, 2)),
    nn.Conv2d(3, 7, (3, 5), padding="same"), nn.Conv2d(3, 1, 1), nn.Conv2d(3, 33, 3, padding=2, bias=False),
    nn.Conv2d(3, 4, (9, 11))))
case("conv2d with groups", "conv", (16, 7, 7))(lambda: Fan(
    nn.Conv2d(16, 16, 3, groups=16, padding=1), nn.Conv2d(16, 32, 3, groups=16, stride=2, padding=1),
    nn.Conv2d(16, 24, 3, groups=4), nn.Conv2d(16, 16, 5, groups=16, dilation=1, padding=2, bias=False),
    nn.Conv2d(16, 6, 1, groups=2)))
case("conv2d with an activation", "conv", MAP)(lambda: Fan(
    *[nn.Sequential(nn.Conv2d(3, 5, 3), a) for a in (nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-0.25, 0.5))]))
for _mode in ("reflect", "replicate", "circular"):
    case(f"conv2d with {_mode} padding", "conv pad", MAP)(lambda mode=_mode: Fan(
        nn.Conv2d(3, 5, 3, padding=1, padding_mode=mode), nn.Conv2d(3, 4, (2, 5), padding=(1, 2), padding_mode=mode)))
case("conv3d", "conv", (2, 4, 5, 6))(lambda: Fan(
    nn.Conv3d(2, 5, 3, padding=1), nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1)), nn.Conv3d(2, 2, 2, groups=2)))
case("conv with batch norm", "conv", MAP)(lambda: Fan(
    nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
    nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1))))
case("transposed conv1d", "conv slice reshape permute", (4, 9))(lambda: Fan(*[
    nn.Sequential(nn.ConvTranspose1d(4, 6, k, **o), nn.ReLU(), nn.Conv1d(6, 2, 1)) for k, o in (
        (2, {"stride": 2}), (3, {"stride": 2, "padding": 1, "output_padding": 1}), (4, {"stride": 3, "groups": 2}),
        (3, {"dilation": 2, "padding": 1}))]))
case("transposed conv2d", "conv slice reshape permute", (4, 5, 6))(lambda: Fan(*[
    nn.Sequential(nn.ConvTranspose2d(4, 6, k, **o), nn.Conv2d(6, 2, 1)) for k, o in (
        (2, {"stride": 2}), (4, {"stride": 2, "padding": 1}), (3, {"stride": (1, 2), "padding": 1}),
        (3, {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "bias": False}))]))
case("linear", "linear", (33,))(lambda: Fan(
    nn.Linear(33, 1), nn.Linear(33, 5, bias=False), nn.Sequential(nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, 16)),
    nn.Sequential(nn.Linear(33, 8, bias=False), nn.Hardtanh(-0.5, 1.0), nn.Linear(8, 3))))
case("linear over more axes", "linear", (5, 3, 16))(lambda: Fan(
    nn.Linear(16, 7), nn.Sequential(nn.Linear(16, 9), nn.ReLU6(), nn.Linear(9, 4, bias=False))))


# -- products of activations --------------------------------------------------------------------


class Attention(nn.Module):
    """Scaled dot products of four kinds."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        mask = torch.zeros(5, 7).masked_fill_(torch.ones(5, 7).triu(3) > 0, -math.inf)
        return [F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
                F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.5)]


case("attention", "matmul permute", (2, 5, 8), (2, 7, 8), (2, 7, 8))(Attention)


class Normalized(nn.Module):
    """Layer norms with and without factors, and a softmax whose result is read in integers."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(12), nn.LayerNorm(12, bias=False),
                                    nn.LayerNorm((5, 12), elementwise_affine=False, eps=0.1)])
        for norm in self.norms[:2]:
            nn.init.normal_(norm.weight)
        nn.init.normal_(self.norms[0].bias)
        self.linears = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norms, self.linears, strict=False):
            x = linear(norm(x))
        return self.linears[3](torch.softmax(x, 1) * torch.softmax(x, 2))


case("layer norm and softmax", "layer_norm softmax", (5, 12))(Normalized)


class Probabilities(nn.Module):
    """Softmax over each axis, read in integers."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linears[1](torch.softmax(self.linears[0](x), 1))
        y: Tensor = self.linears[2](torch.softmax(x, 2))
        return y


case("softmax", "softmax linear", (5, 12))(Probabilities)


class Products(nn.Module):
    """Matrix products whose codes something reads, and whose accumulators something reads."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.ModuleList(nn.Linear(n, 2) for n in (4, 4, 3, 17))
        self.register_buffer("left", torch.randn(6, 17))

    def forward(self, a: Tensor, b: Tensor) -> list[Tensor]:
        flat_a, flat_b = a[:, 0], b[:, 0]
        ys = [a @ b, torch.bmm(flat_a, flat_b), flat_b.transpose(1, 2) @ flat_a.transpose(1, 2), a @ b @ self.left[:4]]
        return [f(F.relu(y)) for f, y in zip(self.after, ys, strict=True)] + [b.transpose(-1, -2) @ a.transpose(-1, -2)]


case("matrix products", "matmul permute", (2, 3, 17), (2, 17, 4))(Products)
light("matrix product by a constant on the left", "matmul", lambda x: torch.ones(4, 9) @ x, shapes=(MAP,))


# -- two operands -------------------------------------------------------------------------------

_ADDS = (lambda a, b: a + b, lambda a, b: b + a, lambda a, b: F.relu(a + b), lambda a, b: torch.add(a, b, alpha=2),
         lambda a, b: F.relu6(a.clone().add_(b)))
_MULS = (lambda a, b: a * b, lambda a, b: b * a, lambda a, b: F.relu(b * a), lambda a, b: a.clone().mul_(b))
_SUBS = (lambda a, b: a - b, lambda a, b: b - a)
for _what, _other in (("same shape", MAP), ("channels", (3, 1, 1)), ("rows", (1, 9, 1)), ("last axis", (1, 1, 11)),
                      ("one value", (1, 1, 1))):
    light(f"add, {_what}", "add", *_ADDS, shapes=(MAP, _other))
    light(f"mul, {_what}", "mul", *_MULS, shapes=(MAP, _other))
light("sub", "sub", *_SUBS, shapes=(MAP, (3, 1, 1)))
for _what, _other in (("same shape", MAP), ("channels", (3, 1, 1)), ("last axis", (3, 9, 1))):
    light(f"add between convolutions, {_what}", "conv add", *_ADDS, shapes=(MAP, _other), convs=True)
    light(f"mul between convolutions, {_what}", "conv mul", *_MULS, shapes=(MAP, _other), convs=True)
light("sub between convolutions", "conv sub", *_SUBS, shapes=(MAP, MAP), convs=True)
light("both broadcast", "mul sub", lambda a, b: a + b, lambda a, b: b + a, lambda a, b: a * b, lambda a, b: a - b,
      shapes=((3, 9, 1), (3, 1, 11)))


class Constants(nn.Module):
    """A parameter as an operand, on either side, of each rank."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.ParameterList([torch.randn(11), torch.randn(3, 1, 1), torch.randn(1, 3, 9, 11)])

    def forward(self, x: Tensor) -> Tensor:
        for c in self.c:
            x = c + x
            x = x * c
            x = c - x
        return x


case("constant operands", "add mul sub", MAP)(lambda: nn.Sequential(Constants(), nn.Linear(11, 2)))


class Residual(nn.Module):
    """``x += f(x)``, and a sum that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu_()
        y += self.b(y)
        z = F.relu(y)
        y *= self.b(z)
        y: Tensor = self.c(z + y)
        return y


case("residual in place", "conv add mul", MAP)(Residual)


# -- joining ------------------------------------------------------------------------------------

light("cat of two and three", "concat", lambda a, b: torch.cat([a, b], 1), lambda a, b: torch.cat([b, a, b], 3),
      lambda a, b: torch.cat([a, 300 * b, b], 2), lambda a, b: torch.stack([a, b], 2), shapes=(MAP, MAP))
light("cat between convolutions", "conv concat", lambda a, b: torch.cat([a, b], 1),
      lambda a, b: torch.cat([F.relu(a), b, a, 0.01 * b, a], 1), lambda a, b: torch.cat([a, b], 2), shapes=(MAP, MAP),
      convs=True)
light("stack of four", "concat", lambda a: torch.stack([*a.unbind(1), a[:, 0]], 1), shapes=(MAP,))


# -- pools and means ----------------------------------------------------------------------------

_MAX = (nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 2, ceil_mode=True), nn.MaxPool2d((2, 3), 1, dilation=2))
light("max pool", "max_pool", *_MAX, shapes=(MAP,))
light("max pool between convolutions", "conv max_pool", *_MAX, shapes=(MAP,), convs=True)
light("max pool 1-d", "max_pool", nn.MaxPool1d(2), nn.MaxPool1d(3, 2, 1, ceil_mode=True), shapes=((3, 12),))
_AVG = (nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(2, 2, ceil_mode=True), nn.AvgPool2d((2, 3), 1), nn.AvgPool2d(3, 2, 1, True, False))
light("average pool", "avg_pool", *_AVG, shapes=(MAP,))
light("average pool between convolutions", "conv avg_pool", *_AVG, shapes=(MAP,), convs=True)
light("pools over whole windows", "avg_pool max_pool", nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d((2, 3), 1),
      nn.AdaptiveAvgPool2d((3, 11)), nn.AvgPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1),
      nn.MaxPool2d(2, 2, ceil_mode=True), lambda x: F.relu6(F.avg_pool2d(x, 2)), shapes=(MAP,), convs=True)
light("average pool 1-d over whole windows", "avg_pool", nn.AvgPool1d(2), nn.AvgPool1d(3, 2, 1), shapes=((3, 12),))
light("average pool 1-d", "avg_pool", nn.AvgPool1d(2), nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False),
      shapes=((3, 12),))
light("adaptive average pool", "avg_pool mean matmul permute", nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 4)),
      nn.AdaptiveAvgPool2d((5, 7)), nn.AvgPool2d((9, 12)), shapes=((3, 9, 12),))
light("mean", "mean", lambda x: x.mean((2, 3)), lambda x: x.mean((2, 3), keepdim=True), lambda x: x.mean(1),
      lambda x: x.mean((1, 2)), lambda x: x.mean(-1, keepdim=True), lambda x: x.mean((1, 3)), shapes=(MAP,))
light("mean between convolutions", "conv mean", lambda x: x.mean((2, 3), keepdim=True),
      lambda x: x.mean(2, keepdim=True), lambda x: x * x.mean((2, 3), keepdim=True), shapes=(MAP,), convs=True)
light("mean of tokens", "mean", lambda x: x.mean(1), shapes=((7, 8),))


# -- functions of one value ---------------------------------------------------------------------

_POSITIVE = lambda f: lambda x: f(x.abs() + 0.5)  # noqa: E731
_UNARY: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "relu": (F.relu, lambda x: x.clone().relu_()),
    "clamp": (F.relu6, F.hardtanh, lambda x: x.clamp(0.25, 1.5), lambda x: x.clamp(min=-0.5),
              lambda x: x.clamp(max=-0.2), lambda x: x.clone().clamp_(-0.7, 0.3)),
    "leaky_relu": (F.leaky_relu, nn.LeakyReLU(0.1), nn.PReLU(init=0.3)), "elu": (F.elu, nn.ELU(0.7)),
    "hardswish": (F.hardswish,), "hardsigmoid": (F.hardsigmoid,), "sigmoid": (torch.sigmoid,), "silu": (F.silu,),
    "gelu": (F.gelu, nn.GELU("tanh")), "tanh": (torch.tanh,), "mish": (F.mish,), "softplus": (F.softplus,),
    "scaled_elu": (F.selu, nn.CELU(0.5)), "scaled_softplus": (nn.Softplus(2.0, 10.0),), "log_sigmoid": (F.logsigmoid,),
    "hardshrink": (nn.Hardshrink(0.3),), "softshrink": (nn.Softshrink(0.3),), "tanhshrink": (F.tanhshrink,),
    "softsign": (F.softsign,), "threshold": (nn.Threshold(0.1, -0.5),),
    "exp": (torch.exp,), "log": (_POSITIVE(torch.log),), "sqrt": (_POSITIVE(torch.sqrt),),
    "rsqrt": (_POSITIVE(torch.rsqrt),), "reciprocal": (_POSITIVE(torch.reciprocal),), "abs": (torch.abs,),
    "neg": (torch.neg,), "sin": (torch.sin,), "cos": (torch.cos,), "erf": (torch.erf,),
    "add_scalar": (lambda x: x + 0.7, lambda x: 1 - x, lambda x: x - 3),
    "mul_scalar": (lambda x: x * 0.7, lambda x: x / 3),
    "pow_scalar": (lambda x: x**3, lambda x: x.abs() ** 0.5), "mul": (lambda x: x**2,),
}
for _name, _ops in _UNARY.items():
    light(_name, _name, *_ops, shapes=((3, 9, 19),))
light("functions between convolutions", "conv relu clamp leaky_relu hardswish sigmoid silu gelu", F.hardswish, F.silu,
      F.gelu, F.leaky_relu, lambda x: F.relu(x) + x, lambda x: F.relu6(x) * x,
      lambda x: x * torch.sigmoid(x.mean((2, 3), True)), shapes=(MAP,), convs=True)


# -- moves --------------------------------------------------------------------------------------

light("reshape", "reshape permute", lambda x: x.flatten(1), lambda x: x.permute(0, 2, 3, 1),
      lambda x: x.transpose(1, 3), lambda x: x.reshape(-1, 11), lambda x: x[:, :1].squeeze(1), lambda x: x.unsqueeze(2),
      lambda x: x.flatten(1, 2).mT, lambda x: x.unflatten(1, (1, 3)), shapes=(MAP,))
light("slice", "slice index_select", lambda x: x[:, 1:], lambda x: x[:, :, ::2, 1:9:3], lambda x: x[..., 4],
      lambda x: x.chunk(2, 3)[1], lambda x: x.split([2, 7], 2)[0], lambda x: x.select(2, -1), lambda x: x.flip(3),
      lambda x: x.roll(2, 3), lambda x: x[:, [2, 0]], lambda x: x.narrow(2, 3, 4), shapes=(MAP,))
light("expand", "expand", lambda x: x.expand(-1, 3, -1, 5), lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4),
      shapes=((3, 9, 1),))
light("pad", "pad", nn.ZeroPad2d((1, 2, 0, 3)), lambda x: F.pad(x, (1, 1), value=0.4), nn.ReflectionPad2d(2),
      nn.ReplicationPad2d((1, 0, 2, 0)), nn.CircularPad2d(1), shapes=(MAP,))
light("pad between convolutions", "conv pad", nn.ZeroPad2d((1, 2, 0, 3)), lambda x: F.pad(x, (0, 0, 1, 1), value=-0.4),
      nn.ReflectionPad2d(2), nn.ReplicationPad2d((1, 0, 2, 0)), nn.CircularPad2d(1), shapes=(MAP,), convs=True)
light("nearest interpolation", "interpolate_nearest", nn.Upsample(scale_factor=2), nn.Upsample((13, 12)),
      lambda x: F.interpolate(x, scale_factor=0.5), lambda x: F.interpolate(x, size=(9, 22)), shapes=(MAP,))
light("nearest interpolation between convolutions", "conv interpolate_nearest", nn.Upsample(scale_factor=2),
      nn.Upsample((13, 12)), shapes=(MAP,), convs=True)
light("nearest interpolation 1-d", "interpolate_nearest", nn.Upsample(scale_factor=3), nn.Upsample(17),
      shapes=((3, 11),))
_BILINEAR = (nn.UpsamplingBilinear2d(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear"),
             nn.Upsample((18, 11), mode="bilinear"), nn.Upsample((5, 16), mode="bilinear", align_corners=True),
             nn.Upsample((1, 1), mode="bilinear"), nn.Upsample((12, 22), mode="bilinear"))
light("bilinear interpolation", "interpolate", *_BILINEAR, shapes=(MAP,))
light("bilinear interpolation between convolutions", "conv interpolate", *_BILINEAR, shapes=(MAP,), convs=True)
light("channel shuffle", "conv reshape permute", nn.ChannelShuffle(2), nn.PixelShuffle(2),
      lambda x: x.reshape(-1, 2, 2, 5, 5).transpose(1, 2).reshape(-1, 4, 5, 5), shapes=((4, 5, 5),), convs=True)
