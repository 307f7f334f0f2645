"""Keyword spotting on one-dimensional feature sequences."""

import torch.nn.functional as F
from torch import Tensor, nn


class SeparableConv1d(nn.Module):
    """Depthwise and pointwise convolution, each with batch norm and ReLU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        padding = kernel // 2
        self.depthwise = nn.Conv1d(
            channels, channels, kernel, padding=padding, groups=channels, bias=False
        )
        self.bn1 = nn.BatchNorm1d(channels)
        self.pointwise = nn.Conv1d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)))
        x = F.relu(self.bn2(self.pointwise(x)))
        return x


class DSCNN(nn.Module):
    """DS-CNN (Zhang et al., "Hello Edge", 2017), convolved along time.

    Args:
        num_classes: number of keywords.
        features: cepstral coefficients per frame, the channels of the input.
        width: channels of the convolutions.
        blocks: number of separable convolutions.
    """

    def __init__(
        self, num_classes: int = 12, features: int = 40, width: int = 276, blocks: int = 5
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, width, 9, stride=2, padding=4, bias=False)
        self.bn = nn.BatchNorm1d(width)
        self.blocks = nn.ModuleList(SeparableConv1d(width, 9) for _ in range(blocks))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        x = F.adaptive_avg_pool1d(x, 1).squeeze(-1)
        x = self.fc(self.dropout(x))
        return x
