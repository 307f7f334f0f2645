"""What an integer model says about itself."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import intact


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5),
                         nn.Softmax(1))


def test_print_sums_up(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    q = intact.quantize(net(), [x])
    text = str(q)
    assert "target 'onnxruntime' (version 1)" in text
    assert "100.0% of 4,608 multiply-accumulates" in text  # 4 * 36 * 27 + 144 * 5
    assert "828 bytes of codes and 0 of float parameters (3,312 in float)" in text  # 4 * 27 + 144 * 5
    assert "5 (softmax): target 'onnxruntime' has no integer kernel for softmax" in text
    assert "\n" not in repr(q)
    loaded = intact.load(intact.save(q, tmp_path / "net.intact"))
    assert str(loaded) == text and loaded.plan == q.plan
    assert q.plan.startswith("Plan for target 'onnxruntime'")


def test_print_counts_what_stays_float() -> None:
    recipe = intact.Recipe(rules=(intact.Rule(intact.path("0"), intact.FLOAT),))
    text = str(intact.quantize(net(), [torch.randn(4, 3, 8, 8)], recipe=recipe))
    assert "15.6% of" in text and "0 (conv): the recipe says float (path('0'))" in text
    assert "720 bytes of codes and 448 of float" in text


def test_a_long_list_is_cut() -> None:
    recipe = intact.Recipe(default=intact.FLOAT)
    q = intact.quantize(nn.Sequential(*[nn.Linear(2, 2) for _ in range(14)]), [torch.randn(4, 2)], recipe=recipe)
    assert "14 of 14 operations" in str(q) and "and 4 more; print(q.plan) has all" in str(q)
    assert "the recipe says float (its default)" in str(q)
