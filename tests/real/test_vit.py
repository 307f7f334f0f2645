"""A small vision transformer, trained here on CIFAR-10: what the default static recipe costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import intact

from ..zoo.vit import AttentionKind, ViT
from .data import cifar10_test, cifar10_train, requires_shared

pytestmark = [pytest.mark.real, pytest.mark.slow, requires_shared]

EPOCHS, BATCH = 6, 64


def trained(kind: AttentionKind) -> nn.Module:
    """AdamW with one cycle of the learning rate; images are mirrored and moved by up to four pixels."""
    torch.manual_seed(0)
    images, labels = cifar10_train()
    net = ViT(num_classes=10, size=32, patch=4, dim=96, depth=4, heads=4, attention=kind)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.2)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            dx, dy = torch.randint(0, 9, (2,)).tolist()
            x = F.pad(images[index], (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
            x = x.flip(3) if torch.rand(()) < 0.5 else x
            loss = F.cross_entropy(net(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def top1(net: object, images: Tensor, labels: Tensor) -> float:
    right = [net(x).argmax(1) == y for x, y in zip(images.split(500), labels.split(500), strict=True)]  # type: ignore[operator]
    return 100 * float(torch.cat(right).float().mean())


@pytest.mark.parametrize("kind", [AttentionKind.SDPA])
def test_the_default_recipe_loses_a_point_at_most(kind: AttentionKind) -> None:
    torch.set_num_threads(1)
    net = trained(kind)
    q = intact.quantize(net, list(cifar10_train(slice(0, 512 * 39, 39))[0].split(64)))
    coverage = q.info["coverage"]
    assert coverage["integer_macs"] == coverage["macs"]
    data = cifar10_test()
    plain, found = top1(net, *data), top1(q, *data)
    print(f"{kind.value}: float {plain:.2f}, static int8 {found:.2f} of 10,000 test images")
    assert plain > 50 and found >= plain - 1
