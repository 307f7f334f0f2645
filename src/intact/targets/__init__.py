"""Runtimes as values: which operations run in integers, with which encodings and which arithmetic."""

from intact.targets.catalog import BUILT_IN, TARGETS, register_target
from intact.targets.codec import describe, load_target, parse_target, target_to_toml
from intact.targets.find import TargetLike, get_target
from intact.targets.schema import EXACT_FLOAT, OpRule, Output, Target

__all__ = ["BUILT_IN", "EXACT_FLOAT", "TARGETS", "OpRule", "Output", "Target", "TargetLike", "describe", "get_target",
           "load_target", "parse_target", "register_target", "target_to_toml"]
