"""The four networks of MLPerf Tiny, in our own words: sizes and layers as in Banbury et al., 2021."""

from __future__ import annotations

from torch import Tensor, nn

from tests.zoo._init import build_seeded
from tests.zoo.autoencoder import Autoencoder

__all__ = ["TINY"]


def _conv(a: int, b: int, kernel: int | tuple[int, int], stride: int | tuple[int, int] = 1,
          padding: int | tuple[int, int] = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(a, b, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU())


class _Block(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.one = _conv(a, b, 3, stride)
        self.two = nn.Sequential(nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b))
        self.skip = nn.Identity() if a == b else nn.Conv2d(a, b, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.relu(self.two(self.one(x)) + self.skip(x))
        return y


def resnet8() -> nn.Module:
    """Image classification, 3 x 32 x 32."""
    return nn.Sequential(_conv(3, 16, 3), _Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2),
                         nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))


def mobilenet_v1() -> nn.Module:
    """Visual wake words, 3 x 96 x 96, width 0.25."""
    layers, a = [_conv(3, 8, 3, 2)], 8
    for b, stride in [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]:
        layers += [_conv(a, a, 3, stride, groups=a), _conv(a, b, 1, padding=0)]
        a = b
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2))


def ds_cnn() -> nn.Module:
    """Keyword spotting, 1 x 49 x 10."""
    layers: list[nn.Module] = [_conv(1, 64, (10, 4), 2, (5, 1))]
    for _ in range(4):
        layers += [_conv(64, 64, 3, groups=64), _conv(64, 64, 1, padding=0)]
    return nn.Sequential(*layers, nn.Dropout(0.4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


#: name -> how it is made (in evaluation mode, the same weights every time), shape of an input
TINY = {
    name: (lambda make=make, shape=shape: build_seeded(make, shape), shape)
    for name, make, shape in (("resnet8", resnet8, (3, 32, 32)), ("mobilenet_v1", mobilenet_v1, (3, 96, 96)),
                              ("ds_cnn", ds_cnn, (1, 49, 10)), ("autoencoder", Autoencoder, (640,)))
}
