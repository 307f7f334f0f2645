"""Compound-scaled inverted residuals with SiLU and sigmoid gates."""

import torch
from torch import Tensor, nn

from .mobilenet import make_divisible

# Expansion, kernel, stride, channels and blocks of each stage: table 1 of the paper.
_B0_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class SqueezeExcitation(nn.Module):
    """Scale each channel by a sigmoid gate (Hu et al., "Squeeze-and-Excitation", CVPR 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.SiLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        scale = self.fc2(self.act(self.fc1(scale)))
        return x * torch.sigmoid(scale)


class DropPath(nn.Module):
    """Drop whole samples of a branch in training (Huang et al., "Stochastic Depth", ECCV 2016)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.empty(x.shape[0], 1, 1, 1, device=x.device).bernoulli_(1.0 - self.p)
        return x * keep / (1.0 - self.p)


class MBConv(nn.Module):
    """Inverted residual with squeeze-and-excitation."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expand: int, drop: float
    ) -> None:
        super().__init__()
        hidden = in_channels * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers.append(_conv_bn_silu(in_channels, hidden, 1))
        layers += [
            _conv_bn_silu(hidden, hidden, kernel, stride, groups=hidden),
            SqueezeExcitation(hidden, max(1, in_channels // 4)),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        ]
        self.block = nn.Sequential(*layers)
        self.drop_path = DropPath(drop)
        self.skip = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        if self.skip:
            out = self.drop_path(out)
            out += x
        return out


class EfficientNetB0(nn.Module):
    """EfficientNet-B0 (Tan and Le, "Rethinking Model Scaling", ICML 2019).

    Args:
        num_classes: number of logits.
        width_mult: multiplier of all channel counts.
    """

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0) -> None:
        super().__init__()
        in_channels = make_divisible(32 * width_mult)
        layers: list[nn.Module] = [_conv_bn_silu(3, in_channels, 3, stride=2)]
        for expand, kernel, stride, base, blocks in _B0_STAGES:
            channels = make_divisible(base * width_mult)
            for i in range(blocks):
                step = stride if i == 0 else 1
                layers.append(MBConv(in_channels, channels, kernel, step, expand, drop=0.1))
                in_channels = channels
        layers.append(_conv_bn_silu(in_channels, 4 * in_channels, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.2, inplace=True), nn.Linear(4 * in_channels, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.avgpool(x).flatten(1)
        x = self.classifier(x)
        return x


def _conv_bn_silu(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.SiLU(inplace=True),
    )
