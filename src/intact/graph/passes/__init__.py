"""Transformations of the float graph, each checked numerically where it is applied."""

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
    "transform",
]

#: in this order: batch norms disappear, activations are folded, transposed convolutions become plain ones
DEFAULT_PASSES: tuple[Pass, ...] = (FoldBatchNorm(), StandaloneBatchNorm(), FuseActivation(), EqualizeChannels(),
                                   TransposedConv(), OrderOperands())
