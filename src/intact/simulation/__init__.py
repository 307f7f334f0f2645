"""QFloat: the simulated model, which runs the deployed kernels on float carriers."""

from intact.simulation.prepare import prepare
from intact.simulation.program import Program
from intact.simulation.qfloat import QFloatModel
from intact.simulation.schedule import Schedule

__all__ = ["Program", "QFloatModel", "Schedule", "prepare"]
