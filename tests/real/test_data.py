"""The trained networks reach their float accuracy on the real data."""

import pytest
import torch
from torch import Tensor, nn

from .data import (
    cifar10_test,
    cifar10_train,
    imagenet_sample,
    requires_shared,
    resnet20,
    squeezenet,
)

pytestmark = [pytest.mark.real, requires_shared]


def _correct(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in images.split(100)])
    return int((logits.argmax(1) == labels).sum())


def test_cifar10_is_normalised() -> None:
    images, labels = cifar10_train(slice(0, 512 * 39, 39))
    assert images.shape == (512, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.mean().abs() < 0.2
    assert labels.bincount().min() >= 50


def test_imagenet_sample_has_one_image_per_class() -> None:
    images, labels = imagenet_sample(slice(0, 1000, 250))
    assert images.shape == (4, 3, 227, 227)
    assert labels.tolist() == [0, 250, 500, 750]
    assert images.min() >= -123
    assert images.max() <= 255 - 104


# Counted on all images, the figures are 8,765 of 10,000 and 626 of 1,000; these are parts of them.
# Float sums depend on the processor, so that an image on the border of two classes may change.
def test_resnet20_float_accuracy() -> None:
    assert abs(_correct(resnet20(), *cifar10_test(slice(None, None, 10))) - 861) <= 1


def test_squeezenet_float_accuracy() -> None:
    model = squeezenet()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert abs(_correct(model, *imagenet_sample(slice(0, 1000, 10))) - 64) <= 1
