"""Transformations of the float graph, each checked numerically where it is applied."""

from collections.abc import Mapping, Sequence

from intact.graph.passes.base import Pass, transform
from intact.graph.passes.equalize import EqualizeChannels
from intact.graph.passes.fold_batch_norm import FoldBatchNorm
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
    "transform",
]

#: in this order: batch norms disappear, activations are folded, transposed convolutions become plain ones
DEFAULT_PASSES: tuple[Pass, ...] = (
    FoldBatchNorm(), StandaloneBatchNorm(), FuseActivation(), EqualizeChannels(), TransposedConv(), OrderOperands(),
)


def repeated_passes(equalization: Mapping[str, Sequence[int]]) -> tuple[Pass, ...]:
    """The default passes, with the equalization of an earlier run instead of a new one."""
    return tuple(EqualizeChannels(steps=equalization) if p.name == "equalize_channels" else p for p in DEFAULT_PASSES)
