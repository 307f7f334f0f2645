"""An encoder and a decoder with skip connections, for segmentation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    """Twice a 3x3 convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Double the resolution, halve the channels, join the skip connection, convolve."""

    def __init__(self, in_channels: int, channels: int, bilinear: bool) -> None:
        super().__init__()
        self.bilinear = bilinear
        if bilinear:
            self.up: nn.Module = nn.Conv2d(in_channels, channels, 1)
        else:
            self.up = nn.ConvTranspose2d(in_channels, channels, kernel_size=2, stride=2)
        self.conv = DoubleConv(2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.bilinear:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = self.up(x)
        x = torch.cat([skip, x], dim=1)
        x = self.conv(x)
        return x


class UNet(nn.Module):
    """U-Net with padded convolutions (Ronneberger et al., MICCAI 2015).

    Args:
        num_classes: channels of the output, one logit per class and pixel.
        in_channels: channels of the input.
        width: channels at the full resolution.
        bilinear: upsample by interpolation instead of transposed convolutions.
    """

    def __init__(
        self,
        num_classes: int = 2,
        in_channels: int = 3,
        width: int = 32,
        bilinear: bool = False,
    ) -> None:
        super().__init__()
        self.inc = DoubleConv(in_channels, width)
        self.down1 = DoubleConv(width, 2 * width)
        self.down2 = DoubleConv(2 * width, 4 * width)
        self.down3 = DoubleConv(4 * width, 8 * width)
        self.pool = nn.MaxPool2d(2)
        self.up1 = Up(8 * width, 4 * width, bilinear)
        self.up2 = Up(4 * width, 2 * width, bilinear)
        self.up3 = Up(2 * width, width, bilinear)
        self.outc = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(self.pool(x1))
        x3 = self.down2(self.pool(x2))
        x4 = self.down3(self.pool(x3))
        x = self.up1(x4, x3)
        x = self.up2(x, x2)
        x = self.up3(x, x1)
        x = self.outc(x)
        return x
