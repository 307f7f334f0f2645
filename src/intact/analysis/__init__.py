"""What quantization did to a model: accuracy, error of every layer, and what to do about it."""

from intact.analysis.compare import compare_models
from intact.analysis.metrics import Accuracy, Agreement, Cosine, Mean, Sqnr, sqnr_db
from intact.analysis.report import (
    Error,
    Finding,
    Latency,
    Metric,
    Output,
    Problem,
    Report,
    Site,
    Sizes,
)
from intact.analysis.saturation import PairSaturation, SaturatingLayer, saturating_pairs
from intact.analysis.statistics import Row, Statistics, tensor_statistics

__all__ = [
    "Accuracy",
    "Agreement",
    "Cosine",
    "Error",
    "Finding",
    "Latency",
    "Mean",
    "Metric",
    "Output",
    "PairSaturation",
    "Problem",
    "Report",
    "Row",
    "SaturatingLayer",
    "Site",
    "Sizes",
    "Sqnr",
    "Statistics",
    "compare_models",
    "saturating_pairs",
    "sqnr_db",
    "tensor_statistics",
]
