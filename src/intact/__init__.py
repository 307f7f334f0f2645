"""Intact: quantize PyTorch models; what you evaluate is what you ship, bit for bit.

>>> import torch, intact
>>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> q = intact.quantize(net, [torch.randn(32, 8)])
>>> q(torch.randn(5, 8)).shape
torch.Size([5, 4])
"""

from intact.analysis import Report
from intact.api import (
    calibrate,
    capture,
    compare,
    convert,
    correct_bias,
    export,
    load,
    plan,
    prepare,
    quantize,
    save,
)
from intact.engine import QModel
from intact.errors import (
    ArtifactError,
    CalibrationError,
    CaptureError,
    ExportError,
    IntactError,
    NonFiniteError,
    PlanError,
    TrainingError,
)
from intact.exporters import Certificate
from intact.graph import FloatModel
from intact.leaves import DeQuantStub, Observer, QuantStub, quantize_dynamic, quantize_weights
from intact.observers import register_observer
from intact.planning import FLOAT, Plan, Quant, Recipe, Rule, first, last, op, path
from intact.simulation import QFloatModel, Schedule
from intact.targets import Target, register_target
from intact.training import Distill, parameter_groups, reestimate_batch_norm, train
from intact.types import PerChannel, PerTensor

__version__ = "0.1.0"

__all__ = [
    "FLOAT",
    "ArtifactError",
    "CalibrationError",
    "CaptureError",
    "Certificate",
    "DeQuantStub",
    "Distill",
    "ExportError",
    "FloatModel",
    "IntactError",
    "NonFiniteError",
    "Observer",
    "PerChannel",
    "PerTensor",
    "Plan",
    "PlanError",
    "QFloatModel",
    "QModel",
    "Quant",
    "QuantStub",
    "Recipe",
    "Report",
    "Rule",
    "Schedule",
    "Target",
    "TrainingError",
    "calibrate",
    "capture",
    "compare",
    "convert",
    "correct_bias",
    "export",
    "first",
    "last",
    "load",
    "op",
    "parameter_groups",
    "path",
    "plan",
    "prepare",
    "quantize",
    "quantize_dynamic",
    "quantize_weights",
    "reestimate_batch_norm",
    "register_observer",
    "register_target",
    "save",
    "train",
]
