"""Networks to quantize: ordinary PyTorch modules, small for tests and full-size for benchmarks.

entry = ZOO["resnet18"]
model = entry.build()
y = model(entry.example(batch=2))
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._init import build_seeded, smooth_noise
from .autoencoder import Autoencoder
from .densenet import DenseNet
from .detector import Detector, DetectorDict, DetectorFCOS
from .efficientnet import EfficientNetB0
from .googlenet import GoogLeNet
from .keyword import DSCNN
from .mobilenet import MobileNetV2, MobileNetV3Large
from .nin import NIN
from .resnet import ResNet18, ResNet20
from .shufflenet import ShuffleNetV2
from .squeezenet import SqueezeNet
from .unet import UNet
from .vgg import VGG16
from .vit import AttentionKind, ViT

__all__ = ["ZOO", "ZooEntry"]


@dataclass(frozen=True)
class ZooEntry:
    """A network of the zoo.

    Attributes:
        name: key in `ZOO`.
        build: makes the small version, in evaluation mode, with the same weights every time.
        input_shape: shape of one input of the small version, without the batch dimension.
        full: makes the full-size version in the same manner.
        full_input_shape: shape of one input of the full-size version.
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    full: Callable[[], nn.Module] | None = None
    full_input_shape: tuple[int, ...] | None = None

    def example(self, batch: int, seed: int = 0) -> Tensor:
        """Draw inputs for the small version, without touching the global random state.

        Args:
            batch: number of inputs.
            seed: equal seeds give equal inputs.

        Returns:
            A float32 tensor of shape `(batch, *input_shape)` and about unit variance.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return smooth_noise(batch, self.input_shape)


def _entry(
    name: str,
    small: Callable[[], nn.Module],
    input_shape: tuple[int, ...],
    full: Callable[[], nn.Module],
    full_input_shape: tuple[int, ...],
) -> ZooEntry:
    return ZooEntry(
        name,
        lambda: build_seeded(small, input_shape),
        input_shape,
        lambda: build_seeded(full, full_input_shape),
        full_input_shape,
    )


_CIFAR = (3, 32, 32)
_SMALL = (3, 64, 64)
_IMAGENET = (3, 224, 224)


def _vit(name: str, attention: AttentionKind) -> ZooEntry:
    return _entry(
        name,
        lambda: ViT(10, size=32, patch=8, dim=48, depth=2, heads=3, attention=attention),
        _CIFAR,
        lambda: ViT(attention=attention),
        _IMAGENET,
    )


_ENTRIES = (
    _entry("resnet18", lambda: ResNet18(10, width=8), _SMALL, ResNet18, _IMAGENET),
    _entry("resnet20", lambda: ResNet20(width=8), _CIFAR, ResNet20, _CIFAR),
    _entry("vgg16", lambda: VGG16(10, width=8, hidden=64, pool=2), _SMALL, VGG16, _IMAGENET),
    _entry(
        "vgg16_bn",
        lambda: VGG16(10, batch_norm=True, width=8, hidden=64, pool=2),
        _SMALL,
        lambda: VGG16(batch_norm=True),
        _IMAGENET,
    ),
    _entry("nin", lambda: NIN(width=24), _CIFAR, NIN, _CIFAR),
    _entry(
        "mobilenet_v2",
        lambda: MobileNetV2(10, width_mult=0.25, last_channels=128),
        _SMALL,
        MobileNetV2,
        _IMAGENET,
    ),
    _entry(
        "mobilenet_v3_large",
        lambda: MobileNetV3Large(10, width_mult=0.25, hidden=128),
        _SMALL,
        MobileNetV3Large,
        _IMAGENET,
    ),
    _entry(
        "efficientnet_b0",
        lambda: EfficientNetB0(10, width_mult=0.25),
        _SMALL,
        EfficientNetB0,
        _IMAGENET,
    ),
    _entry(
        "densenet121",
        lambda: DenseNet(10, growth=8, layers=(2, 3, 3, 2), stem=16),
        _SMALL,
        DenseNet,
        _IMAGENET,
    ),
    _entry("googlenet", lambda: GoogLeNet(10, width_mult=0.125), _SMALL, GoogLeNet, _IMAGENET),
    _entry("squeezenet1_1", lambda: SqueezeNet(10, width=16), _SMALL, SqueezeNet, (3, 227, 227)),
    _entry(
        "shufflenet_v2",
        lambda: ShuffleNetV2(10, channels=(16, 32, 64), stem=8, last_channels=64),
        _SMALL,
        ShuffleNetV2,
        _IMAGENET,
    ),
    _entry("unet", lambda: UNet(width=8), _CIFAR, UNet, (3, 256, 256)),
    _entry(
        "unet_bilinear",
        lambda: UNet(width=8, bilinear=True),
        _CIFAR,
        lambda: UNet(bilinear=True),
        (3, 256, 256),
    ),
    _entry("detector", lambda: Detector(3, width=8), _SMALL, Detector, (3, 640, 640)),
    _entry(
        "detector_fcos",
        lambda: DetectorFCOS(3, width=8, size=64),
        _SMALL,
        DetectorFCOS,
        (3, 640, 640),
    ),
    _entry("detector_dict", lambda: DetectorDict(3, width=8), _SMALL, DetectorDict, (3, 640, 640)),
    _entry("keyword", lambda: DSCNN(features=10, width=24, blocks=3), (10, 49), DSCNN, (40, 98)),
    _entry("autoencoder", lambda: Autoencoder(64, hidden=32, depth=2), (64,), Autoencoder, (640,)),
    _vit("vit_softmax", AttentionKind.SOFTMAX),
    _vit("vit_sdpa", AttentionKind.SDPA),
    _vit("vit_multihead", AttentionKind.MULTIHEAD),
)

ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in _ENTRIES}
