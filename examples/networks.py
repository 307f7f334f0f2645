"""The networks of the examples: ordinary modules, nothing in them knows of quantization."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_POOL = 0
#: channels of VGG-16 in units of the width (configuration "D")
_VGG16 = (1, 1, _POOL, 2, 2, _POOL, 4, 4, 4, _POOL, 8, 8, 8, _POOL, 8, 8, 8, _POOL)


class VGG16(nn.Module):
    """VGG-16 with batch norm for 32x32 images (Simonyan and Zisserman, ICLR 2015); ``width`` is 64 in the paper."""

    def __init__(self, classes: int = 10, width: int = 64, hidden: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for factor in _VGG16:
            if factor == _POOL:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += _conv_bn_relu(channels, factor * width, 3)
                channels = factor * width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class NIN(nn.Module):
    """Network in network with batch norm (Lin et al., ICLR 2014); ``width`` is 192 in the paper."""

    def __init__(self, classes: int = 10, width: int = 192, dropout: float = 0.5) -> None:
        super().__init__()
        middle, narrow = 5 * width // 6, width // 2
        self.classifier = nn.Sequential(
            *_conv_bn_relu(3, width, 5), *_conv_bn_relu(width, middle, 1), *_conv_bn_relu(middle, narrow, 1),
            nn.MaxPool2d(3, stride=2, padding=1), nn.Dropout(dropout),
            *_conv_bn_relu(narrow, width, 5), *_conv_bn_relu(width, width, 1), *_conv_bn_relu(width, width, 1),
            nn.AvgPool2d(3, stride=2, padding=1), nn.Dropout(dropout),
            *_conv_bn_relu(width, width, 3), *_conv_bn_relu(width, width, 1), *_conv_bn_relu(width, classes, 1),
            nn.AdaptiveAvgPool2d(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x).flatten(1)


class ResNet18(nn.Module):
    """ResNet-18 (He et al., CVPR 2016) with a 3x3 stem for 32x32 images; ``width`` is 64 in the paper."""

    def __init__(self, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(_Projected(width, width, 1), _Projected(width, width, 1))
        self.layer2 = nn.Sequential(_Projected(width, 2 * width, 2), _Projected(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(_Projected(2 * width, 4 * width, 2), _Projected(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(_Projected(4 * width, 8 * width, 2), _Projected(8 * width, 8 * width, 1))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 (He et al., section 4.2): 16 channels, 3 blocks in each of 3 stages, shortcuts "A"."""

    def __init__(self, classes: int = 10, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks, 1)
        self.layer2 = self._stage(width, 2 * width, blocks, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        rest = (_Block(channels, channels, 1) for _ in range(1, blocks))
        return nn.Sequential(_Block(inputs, channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.size(3)).flatten(1))


def _conv_bn_relu(inputs: int, channels: int, kernel: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, channels, kernel, padding=kernel // 2)
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


class _Block(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut strides and pads channels with zeros."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.pad = stride, (channels - inputs) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class _Projected(_Block):
    """The same with a 1x1 convolution in the shortcut where the shape changes."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__(inputs, channels, stride)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != channels:
            conv = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def shortcut(self, x: Tensor) -> Tensor:
        return self.downsample(x)
