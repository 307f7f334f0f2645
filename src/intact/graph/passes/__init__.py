"""Transformations of the float graph, each checked numerically where it is applied."""

from collections.abc import Mapping, Sequence

from intact.graph.passes.base import Pass, transform
from intact.graph.passes.equalize import EqualizeChannels
from intact.graph.passes.fold_batch_norm import FoldBatchNorm, split_sources
from intact.graph.passes.fuse_activation import FuseActivation
from intact.graph.passes.join_rms_norm import JoinRMSNorm
from intact.graph.passes.order_operands import OrderOperands
from intact.graph.passes.smooth_channels import SmoothChannels
from intact.graph.passes.split_group_norm import SplitGroupNorm
from intact.graph.passes.split_layer_norm import SplitLayerNorm
from intact.graph.passes.split_prelu import SplitPReLU
from intact.graph.passes.split_rms_norm import SplitRMSNorm
from intact.graph.passes.standalone_batch_norm import StandaloneBatchNorm
from intact.graph.passes.transposed_conv import TransposedConv

__all__ = [
    "DEFAULT_PASSES",
    "EqualizeChannels",
    "FoldBatchNorm",
    "FuseActivation",
    "JoinRMSNorm",
    "OrderOperands",
    "Pass",
    "SmoothChannels",
    "SplitGroupNorm",
    "SplitLayerNorm",
    "SplitPReLU",
    "SplitRMSNorm",
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


def repeated_passes(
    equalization: Mapping[str, Sequence[int]], smoothing: Mapping[str, Mapping[str, Sequence[int]]] | None = None
) -> tuple[Pass, ...]:
    """The default passes, with the equalization and the smoothing of an earlier run if there were any."""
    at = next(i for i, p in enumerate(DEFAULT_PASSES) if p.name == "fuse_activation") + 1
    equalize = (EqualizeChannels(steps=equalization),) if equalization else ()
    return (*DEFAULT_PASSES[:at], *equalize, *DEFAULT_PASSES[at:], *([SmoothChannels(smoothing)] if smoothing else []))
