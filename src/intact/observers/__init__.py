"""Observers: streaming, mergeable statistics of a tensor that yield scale and zero point."""

from __future__ import annotations

from intact.observers.base import Observer
from intact.observers.density import Density
from intact.observers.easyquant import EasyQuant
from intact.observers.entropy import Entropy
from intact.observers.histogram import Histogram
from intact.observers.histogram_observer import HistogramObserver
from intact.observers.minmax import MinMax
from intact.observers.moving_average import MovingAverage
from intact.observers.mse import Mse, best_range, expected_error
from intact.observers.percentile import Percentile
from intact.observers.ranges import affine_parameters, next_power_of_two, range_to_qparams, saturates
from intact.observers.registry import OBSERVERS, make_observer, register_observer
from intact.observers.weights import weight_qparams

__all__ = [
    "OBSERVERS",
    "Density",
    "EasyQuant",
    "Entropy",
    "Histogram",
    "HistogramObserver",
    "MinMax",
    "MovingAverage",
    "Mse",
    "Observer",
    "Percentile",
    "affine_parameters",
    "best_range",
    "expected_error",
    "make_observer",
    "next_power_of_two",
    "range_to_qparams",
    "register_observer",
    "saturates",
    "weight_qparams",
]
