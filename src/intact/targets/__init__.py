"""Runtimes as values: which operations run in integers, with which encodings and which arithmetic."""

from intact.targets.catalog import TARGETS, get_target, register_target
from intact.targets.schema import OpRule, Output, Target

__all__ = ["TARGETS", "OpRule", "Output", "Target", "get_target", "register_target"]
