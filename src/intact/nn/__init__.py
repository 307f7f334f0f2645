"""Layers that quantize themselves, for networks that are built by hand from them and trained in eager mode."""

from intact.nn.layers import QuantConv2d, QuantLinear
from intact.nn.settings import Settings
from intact.nn.trackers import AveragedRange, GlobalRange

__all__ = ["AveragedRange", "GlobalRange", "QuantConv2d", "QuantLinear", "Settings"]
