"""Training of QFloat models: a plain loop with distillation, and what watches over it."""

from intact.training.distill import Distill
from intact.training.loop import Epoch, History, parameter_groups, train
from intact.training.statistics import reestimate_batch_norm

__all__ = ["Distill", "Epoch", "History", "parameter_groups", "reestimate_batch_norm", "train"]
