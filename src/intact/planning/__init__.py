"""What will be quantized, how, and why the rest is not: decided before any data is read."""

from intact.planning.lower import lowered
from intact.planning.macs import macs_of
from intact.planning.plan import Decision, Plan, Rejection, WeightSpec
from intact.planning.planner import plan
from intact.planning.recipe import FLOAT, Quant, Recipe, Rule, first, last, op, path

__all__ = ["FLOAT", "Decision", "Plan", "Quant", "Recipe", "Rejection", "Rule", "WeightSpec", "first", "last",
           "lowered", "macs_of", "op", "path", "plan"]
