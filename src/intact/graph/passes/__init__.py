"""Transformations of the float graph, each checked numerically where it is applied."""

from collections.abc import Mapping, Sequence

from intact.graph.passes.base import Pass, transform
from intact.graph.passes.equalize import EqualizeChannels
from intact.graph.passes.fold_batch_norm import FoldBatchNorm, split_sources
from intact.graph.passes.fuse_activation import FuseActivation
from intact.graph.passes.order_operands import OrderOperands
from intact.graph.passes.standalone_batch_norm import StandaloneBatchNorm
from intact.graph.passes.transposed_conv import TransposedConv

__all__ = [
    "DEFAULT_PASSES",
    "EqualizeChannels",
    "FoldBatchNorm",
    "FuseActivation",
    "OrderOperands",
    "Pass",
    "StandaloneBatchNorm",
    "TransposedConv",
    "repeated_passes",
    "split_sources",
    "transform",
]

#: in this order: batch norms disappear, activations are folded, transposed convolutions become plain ones
DEFAULT_PASSES: tuple[Pass, ...] = (
    FoldBatchNorm(), StandaloneBatchNorm(), FuseActivation(), TransposedConv(), OrderOperands(),
)


def repeated_passes(equalization: Mapping[str, Sequence[int]]) -> tuple[Pass, ...]:
    """The default passes, with the equalization of an earlier run if there was one."""
    if not equalization:
        return DEFAULT_PASSES
    at = next(i for i, p in enumerate(DEFAULT_PASSES) if p.name == "fuse_activation") + 1
    return (*DEFAULT_PASSES[:at], EqualizeChannels(steps=equalization), *DEFAULT_PASSES[at:])
