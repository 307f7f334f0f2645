"""Plain stacks of 3x3 convolutions with a large classifier."""

from torch import Tensor, nn

_POOL = 0
# Channels in units of the width; configuration "D" of the paper.
_VGG16 = (1, 1, _POOL, 2, 2, _POOL, 4, 4, 4, _POOL, 8, 8, 8, _POOL, 8, 8, 8, _POOL)


class VGG16(nn.Module):
    """VGG-16 (Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015).

    Args:
        num_classes: number of logits.
        batch_norm: put a batch norm after each convolution, which keeps its bias.
        width: channels of the first stage.
        hidden: features of the two hidden layers of the classifier.
        pool: height and width of the feature map that the classifier reads.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        batch_norm: bool = False,
        width: int = 64,
        hidden: int = 4096,
        pool: int = 7,
    ) -> None:
        super().__init__()
        self.features = _features(width, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((pool, pool))
        self.classifier = nn.Sequential(
            nn.Linear(8 * width * pool * pool, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        x = self.classifier(x)
        return x


def _features(width: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    in_channels = 3
    for factor in _VGG16:
        if factor == _POOL:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        channels = factor * width
        layers.append(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(channels))
        layers.append(nn.ReLU(inplace=True))
        in_channels = channels
    return nn.Sequential(*layers)
