"""The networks of the zoo run, are healthy, are reproducible and can be exported."""

import pytest
import torch
from torch import Tensor, nn

from . import ZOO, ZooEntry
from .autoencoder import Autoencoder
from .densenet import DenseNet
from .detector import Detector, DetectorDict, DetectorFCOS
from .efficientnet import EfficientNetB0
from .googlenet import GoogLeNet
from .mobilenet import MobileNetV2, MobileNetV3Large
from .nin import NIN
from .resnet import ResNet18, ResNet20
from .shufflenet import ShuffleNetV2
from .squeezenet import SqueezeNet
from .vgg import VGG16
from .vit import AttentionKind, ViT

every_entry = pytest.mark.parametrize("entry", ZOO.values(), ids=list(ZOO))


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        y = model(x)
    return list(y.values()) if isinstance(y, dict) else [y]


@every_entry
@pytest.mark.parametrize("batch", [1, 3])
def test_runs_with_finite_outputs(entry: ZooEntry, batch: int) -> None:
    model = entry.build()
    assert not model.training
    for y in _outputs(model, entry.example(batch)):
        assert y.shape[0] == batch
        assert y.isfinite().all()


@every_entry
def test_outputs_are_healthy_and_depend_on_the_input(entry: ZooEntry) -> None:
    for y in _outputs(entry.build(), entry.example(16)):
        assert 0.03 < y.std() < 300
        assert y.std(dim=0).mean() > 0.05 * y.std()


@every_entry
def test_samples_of_a_batch_are_independent(entry: ZooEntry) -> None:
    model, x = entry.build(), entry.example(3)
    for whole, first in zip(_outputs(model, x), _outputs(model, x[:1]), strict=True):
        torch.testing.assert_close(whole[:1], first, rtol=1e-3, atol=1e-3)


@every_entry
def test_build_is_deterministic_and_leaves_the_random_state(entry: ZooEntry) -> None:
    state = torch.get_rng_state()
    first, second = entry.build().state_dict(), entry.build().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_entry
def test_batch_norms_are_far_from_the_identity(entry: ZooEntry) -> None:
    for module in entry.build().modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            mean, var = module.get_buffer("running_mean"), module.get_buffer("running_var")
            assert mean.abs().max() > 0.02
            assert 0.5 <= var.min() < var.max() <= 1.5


@every_entry
def test_exports_with_a_dynamic_batch(entry: ZooEntry) -> None:
    model = entry.build()
    program = torch.export.export(
        model, (entry.example(2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    x = entry.example(5)
    for exported, eager in zip(_outputs(program.module(), x), _outputs(model, x), strict=True):
        torch.testing.assert_close(exported, eager, rtol=1e-3, atol=1e-3)


# The counts of the common implementations; the autoencoder without batch-norm statistics.
@pytest.mark.parametrize(
    ("network", "arguments", "expected"),
    [
        (ResNet18, {}, 11_689_512),
        (ResNet20, {}, 269_722),
        (VGG16, {}, 138_357_544),
        (VGG16, {"batch_norm": True}, 138_365_992),
        (NIN, {}, 966_986),
        (MobileNetV2, {}, 3_504_872),
        (MobileNetV3Large, {}, 5_483_032),
        (EfficientNetB0, {}, 5_288_548),
        (DenseNet, {}, 7_978_856),
        (GoogLeNet, {}, 6_624_904),
        (SqueezeNet, {}, 1_235_496),
        (ShuffleNetV2, {}, 2_278_604),
        (Autoencoder, {}, 267_928),
        (ViT, {"attention": AttentionKind.SOFTMAX}, 5_717_416),
        (ViT, {"attention": AttentionKind.SDPA}, 5_717_416),
        (ViT, {"attention": AttentionKind.MULTIHEAD}, 5_717_416),
    ],
)
def test_full_size_parameter_counts(
    network: type[nn.Module], arguments: dict[str, object], expected: int
) -> None:
    with torch.device("meta"):
        model = network(**arguments)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("name", ["detector", "detector_fcos", "detector_dict"])
def test_detectors_use_both_ranges(name: str) -> None:
    entry = ZOO[name]
    model = entry.build()
    assert isinstance(model, (Detector, DetectorFCOS, DetectorDict))
    with torch.no_grad():
        y = model(entry.example(4))
    if isinstance(y, dict):
        boxes, scores = y["boxes"], y["scores"]
    else:
        boxes, scores = y.split([4, 3], dim=2 if name == "detector_fcos" else 1)
    assert boxes.min() >= 0
    assert 320 < boxes.max() <= 640
    assert scores.min() >= 0
    assert 0.5 < scores.max() <= 1
