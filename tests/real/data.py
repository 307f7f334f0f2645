"""Trained networks and real data, read from the folder `../shared/data` beside the repository."""

import functools
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ..zoo.resnet import ResNet20
from ..zoo.squeezenet import SqueezeNet

__all__ = [
    "cifar10_test",
    "cifar10_train",
    "imagenet_sample",
    "requires_shared",
    "resnet20",
    "squeezenet",
]

_SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
_ALL = slice(None)
_CIFAR_MEAN = (0.485, 0.456, 0.406)
_CIFAR_STD = (0.229, 0.224, 0.225)
_IMAGENET_MEAN_BGR = (104.0, 117.0, 123.0)

requires_shared = pytest.mark.skipif(
    not _SHARED.is_dir(),
    reason="needs trained weights and images in ../shared/data, relative to the repository root",
)


def cifar10_test(rows: slice = _ALL) -> tuple[Tensor, Tensor]:
    """Load test images of CIFAR-10.

    Args:
        rows: which of the 10,000 images. They are sorted by class, so that a fair part of them
            needs a step: `slice(None, None, 10)`.

    Returns:
        Normalised images, float32 of shape `(n, 3, 32, 32)`, and labels, int64 of shape `(n,)`.
    """
    return _cifar10("cifar10_test.npz", rows)


def cifar10_train(rows: slice = _ALL) -> tuple[Tensor, Tensor]:
    """Load training images of CIFAR-10, for calibration.

    Args:
        rows: which of the 20,000 images. They are sorted by class, so that a fair part of them
            needs a step: `slice(0, 512 * 39, 39)` is 512 images, about 51 of each class.

    Returns:
        Normalised images, float32 of shape `(n, 3, 32, 32)`, and labels, int64 of shape `(n,)`.
    """
    return _cifar10("cifar10_train20k.npz", rows)


def imagenet_sample(rows: slice = _ALL) -> tuple[Tensor, Tensor]:
    """Load images of the ImageNet sample, one for each class.

    Args:
        rows: which of the 1,000 images.

    Returns:
        BGR images from 0 to 255 minus the mean, float32 of shape `(n, 3, 227, 227)`, and labels,
        int64 of shape `(n,)`.
    """
    arrays = _arrays("imagenet_sample_227_jpeg.npz")
    data, offsets = arrays["bytes"], arrays["offsets"]
    indices = range(*rows.indices(len(offsets) - 1))
    images = torch.empty(len(indices), 3, 227, 227)
    for image, i in zip(images, indices, strict=True):
        image.copy_(_decode_bgr(data[offsets[i] : offsets[i + 1]].tobytes()))
    images -= torch.tensor(_IMAGENET_MEAN_BGR).view(3, 1, 1)
    return images, torch.from_numpy(arrays["labels"][rows].astype(np.int64))


def resnet20() -> ResNet20:
    """Load ResNet-20 trained on CIFAR-10, in evaluation mode."""
    model = ResNet20()
    model.load_state_dict(load_file(_SHARED / "resnet20_cifar10.safetensors"))
    return model.eval()


def squeezenet() -> SqueezeNet:
    """Load SqueezeNet 1.1 trained on ImageNet, in evaluation mode, as float32."""
    model = SqueezeNet()
    # `load_state_dict` casts the float16 weights to the dtype of the parameters.
    model.load_state_dict(load_file(_SHARED / "squeezenet1_1_imagenet.safetensors"))
    return model.eval()


def _cifar10(name: str, rows: slice) -> tuple[Tensor, Tensor]:
    arrays = _arrays(name)
    images = torch.from_numpy(arrays["images"][rows]).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(_CIFAR_MEAN).view(3, 1, 1)
    std = torch.tensor(_CIFAR_STD).view(3, 1, 1)
    labels = torch.from_numpy(arrays["labels"][rows].astype(np.int64))
    return ((images - mean) / std).contiguous(), labels


@functools.cache
def _arrays(name: str) -> dict[str, npt.NDArray[np.generic]]:
    with np.load(_SHARED / name, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _decode_bgr(jpeg: bytes) -> Tensor:
    """Decode an image to float32 of shape `(3, height, width)`, channels blue, green, red."""
    with Image.open(io.BytesIO(jpeg)) as image:
        rgb = np.array(image.convert("RGB"))
    return torch.from_numpy(rgb).flip(-1).permute(2, 0, 1).float()
