"""Channel split, depthwise convolution and channel shuffle."""

import torch
from torch import Tensor, nn


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` groups (Zhang et al., "ShuffleNet", CVPR 2018)."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """One half of the channels passes through; with stride 2 both halves are filtered."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = channels // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                *_depthwise(in_channels, stride), *_pointwise(in_channels, half)
            )
        self.branch2 = nn.Sequential(
            *_pointwise(in_channels if stride > 1 else half, half),
            *_depthwise(half, stride),
            *_pointwise(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 (Ma et al., "Practical Guidelines", ECCV 2018).

    Args:
        num_classes: number of logits.
        channels: even channel counts of the three stages.
        stem: channels of the first convolution.
        last_channels: channels before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        channels: tuple[int, int, int] = (116, 232, 464),
        stem: int = 24,
        last_channels: int = 1024,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stage2 = _stage(stem, channels[0], units=4)
        self.stage3 = _stage(channels[0], channels[1], units=8)
        self.stage4 = _stage(channels[1], channels[2], units=4)
        self.conv5 = nn.Sequential(*_pointwise(channels[2], last_channels))
        self.fc = nn.Linear(last_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.maxpool(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        x = self.conv5(x)
        x = x.mean([2, 3])
        x = self.fc(x)
        return x


def _stage(in_channels: int, channels: int, units: int) -> nn.Sequential:
    first = ShuffleUnit(in_channels, channels, stride=2)
    return nn.Sequential(first, *(ShuffleUnit(channels, channels, 1) for _ in range(1, units)))


def _depthwise(channels: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return conv, nn.BatchNorm2d(channels)


def _pointwise(in_channels: int, channels: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
