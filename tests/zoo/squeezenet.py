"""Fire modules: squeeze to few channels, expand in two parallel convolutions."""

import torch
from torch import Tensor, nn


class Fire(nn.Module):
    """A 1x1 convolution that squeezes, then a 1x1 and a 3x3 one side by side."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, kernel_size=1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, kernel_size=1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, kernel_size=3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        one = self.expand1x1_activation(self.expand1x1(x))
        three = self.expand3x3_activation(self.expand3x3(x))
        return torch.cat([one, three], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al., "AlexNet-level accuracy with 50x fewer parameters", 2016).

    Args:
        num_classes: number of logits.
        width: channels of the first convolution, a multiple of 4.
    """

    def __init__(self, num_classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        unit = width // 4
        self.features = nn.Sequential(
            nn.Conv2d(3, width, kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(width, unit, width),
            Fire(2 * width, unit, width),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(2 * width, 2 * unit, 2 * width),
            Fire(4 * width, 2 * unit, 2 * width),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(4 * width, 3 * unit, 3 * width),
            Fire(6 * width, 3 * unit, 3 * width),
            Fire(6 * width, 4 * unit, 4 * width),
            Fire(8 * width, 4 * unit, 4 * width),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5),
            nn.Conv2d(8 * width, num_classes, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d((1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.classifier(x)
        return torch.flatten(x, 1)
