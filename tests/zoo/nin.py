"""Network in network: 1x1 convolutions between spatial ones, no linear layer."""

from torch import Tensor, nn


class NIN(nn.Module):
    """NIN for CIFAR-10 (Lin et al., "Network In Network", ICLR 2014).

    Args:
        num_classes: number of logits.
        width: channels of the widest layers.
        size: height and width of the input, a multiple of 4.
    """

    def __init__(self, num_classes: int = 10, width: int = 192, size: int = 32) -> None:
        super().__init__()
        self.num_classes = num_classes
        narrow, middle = width // 2, 5 * width // 6
        self.classifier = nn.Sequential(
            *_conv(3, width, 5),
            *_conv(width, middle, 1),
            *_conv(middle, narrow, 1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            nn.Dropout(0.5),
            *_conv(narrow, width, 5),
            *_conv(width, width, 1),
            *_conv(width, width, 1),
            nn.AvgPool2d(kernel_size=3, stride=2, padding=1),
            nn.Dropout(0.5),
            *_conv(width, width, 3),
            *_conv(width, width, 1),
            *_conv(width, num_classes, 1),
            nn.AvgPool2d(kernel_size=size // 4, stride=1, padding=0),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(x)
        x = x.view(x.size(0), self.num_classes)
        return x


def _conv(in_channels: int, channels: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, stride=1, padding=kernel // 2)
    return conv, nn.ReLU(inplace=True)
