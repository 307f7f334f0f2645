"""Intact: quantize PyTorch models; what you evaluate is what you ship, bit for bit.

>>> import torch, intact
>>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> q = intact.quantize(net, [torch.randn(32, 8)])
>>> q(torch.randn(5, 8)).shape
torch.Size([5, 4])
"""

from intact import nn
from intact.analysis import Report, Statistics
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
    smooth,
    statistics,
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
from intact.qat import (
    QConfig,
    calibration_qconfig,
    disable_fake_quant,
    disable_observer,
    disable_quantize,
    easyquant_qconfig,
    ema_fakequant_qconfig,
    ema_lowbit_fakequant_qconfig,
    enable_fake_quant,
    enable_observer,
    lsq_qconfig,
    min_max_fakequant_qconfig,
    passive_qconfig,
    quantize_qat,
    reset_qconfig,
    sync_ema_fakequant_qconfig,
    tqt_qconfig,
)
from intact.simulation import QFloatModel, Schedule
from intact.targets import Target, load_target, register_target
from intact.training import Distill, parameter_groups, reestimate_batch_norm, train
from intact.types import (
    PerChannel,
    PerTensor,
    QType,
    qint4,
    qint8,
    qint8_narrow,
    qint32,
    qtype,
    quint4,
    quint8,
)

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
    "QConfig",
    "QFloatModel",
    "QModel",
    "QType",
    "Quant",
    "QuantStub",
    "Recipe",
    "Report",
    "Rule",
    "Schedule",
    "Statistics",
    "Target",
    "TrainingError",
    "calibrate",
    "calibration_qconfig",
    "capture",
    "compare",
    "convert",
    "correct_bias",
    "disable_fake_quant",
    "disable_observer",
    "disable_quantize",
    "easyquant_qconfig",
    "ema_fakequant_qconfig",
    "ema_lowbit_fakequant_qconfig",
    "enable_fake_quant",
    "enable_observer",
    "export",
    "first",
    "last",
    "load",
    "load_target",
    "lsq_qconfig",
    "min_max_fakequant_qconfig",
    "nn",
    "op",
    "parameter_groups",
    "passive_qconfig",
    "path",
    "plan",
    "prepare",
    "qint4",
    "qint8",
    "qint8_narrow",
    "qint32",
    "qtype",
    "quantize",
    "quantize_dynamic",
    "quantize_qat",
    "quantize_weights",
    "quint4",
    "quint8",
    "reestimate_batch_norm",
    "register_observer",
    "register_target",
    "reset_qconfig",
    "save",
    "smooth",
    "statistics",
    "sync_ema_fakequant_qconfig",
    "tqt_qconfig",
    "train",
]
