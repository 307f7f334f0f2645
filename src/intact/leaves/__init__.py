"""Layers of an eager model as codes: dynamic and weight-only quantization without data."""

from intact.leaves import operations  # noqa: F401  (it registers them)
from intact.leaves.artifact import has_leaves, load_leaves, save_leaves
from intact.leaves.how import Dynamic, Float16, LeafHow, WeightOnly
from intact.leaves.observer import Observer
from intact.leaves.stubs import DeQuantStub, QuantStub
from intact.leaves.swap import quantize_dynamic, quantize_weights

__all__ = [
    "DeQuantStub",
    "Dynamic",
    "Float16",
    "LeafHow",
    "Observer",
    "QuantStub",
    "WeightOnly",
    "has_leaves",
    "load_leaves",
    "quantize_dynamic",
    "quantize_weights",
    "save_leaves",
]
