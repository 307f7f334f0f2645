"""Biases that take up the systematic error which quantization leaves behind each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from intact.algorithms.bias_correction_core import systematic_error
from intact.arithmetic import dequantize
from intact.errors import CalibrationError
from intact.graph import Node
from intact.graph.float_model import last_uses, run_node
from intact.graph.signature import check_inputs
from intact.kernels import KERNELS, Binding
from intact.kernels.base import activation_codes
from intact.simulation import QFloatModel
from intact.simulation.program import State

__all__ = ["correct_bias"]


def correct_bias(qfloat: QFloatModel, inputs: Mapping[str, Tensor]) -> QFloatModel:
    """Run the float and the simulated model side by side and correct each layer's bias as it is passed.

    Rounding is without bias, but what follows it is not: the maximum of noisy values is too large, a ReLU of noise
    around zero is too large, clipped tails are too small. These errors add up from layer to layer. Each layer is
    corrected with the layers before it corrected already, at positions where its output can be represented
    (Nagel et al., "A white paper on neural network quantization", 2021, empirical bias correction; here shrunk by
    the standard error of the estimate).

    Args:
        qfloat: a calibrated model; corrected in place.
        inputs: named inputs, a few dozen samples.

    Returns:
        The same model.

    Raises:
        CalibrationError: if the model is not calibrated.

    >>> import torch
    >>> from intact.calibration import calibrate
    >>> from intact.graph import capture
    >>> from intact.planning import plan
    >>> from intact.simulation import prepare
    >>> x = torch.randn(16, 3)
    >>> fm = capture(torch.nn.Linear(3, 2), x)
    >>> correct_bias(calibrate(prepare(fm, plan(fm)), [x]), {"input": x}).calibrated
    True
    """
    if not isinstance(qfloat, QFloatModel):
        raise CalibrationError("bias correction takes a calibrated model", got=type(qfloat).__name__)
    walker = _Walker(qfloat, inputs)
    with torch.no_grad():
        for node in qfloat.plan.graph:
            walker.step(node)
    qfloat.shift_biases(walker.shifts)
    return qfloat


class _Walker:
    """Both models, node by node."""

    def __init__(self, qfloat: QFloatModel, inputs: Mapping[str, Tensor]) -> None:
        self.model = qfloat.float_model
        self.sizes = check_inputs(self.model.graph, inputs)
        self.inputs = inputs
        self.kernels = dict(qfloat.program.kernels)
        self.state = State(qfloat.program, False, None)
        self.in_float = qfloat.program.in_float
        self.floats: dict[str, Tensor] = {}
        self.shifts: dict[str, Tensor] = {}
        self.dying = last_uses(self.model.graph)
        self.weights = qfloat.plan.weights

    def step(self, node: Node) -> None:
        """Run a node in both models, correct it, let go of what nothing reads any more."""
        state, name = self.state, node.name
        if node.op == "input":
            self.floats[name] = state.floats[name] = self.inputs[name]
        else:
            self.floats[name] = run_node(self.model, node, [self.floats[i] for i in node.inputs], self.sizes)
            if name in self.kernels:
                self._integer(node)
            else:
                values = [state.float_of(i) for i in node.inputs]
                state.floats[name] = self.in_float(node, values, self.sizes)
        for dead in self.dying.get(name, ()):
            state.free(dead)
            self.floats.pop(dead, None)

    def _integer(self, node: Node) -> None:
        xs = [self.state.codes_of(i) for i in node.inputs]
        codes = self.kernels[node.name]([x.clone() for x in xs], self.sizes)
        binding = self.kernels[node.name].binding
        wanted = "weight" in node.params and self.weights[node.params["weight"]].bias_correction
        if wanted and binding.bias is not None and binding.weight is not None:
            shift = self._error(node, codes, binding)
            self.shifts[node.name] = shift
            moved = (shift / (binding.inputs[0].scale * binding.weight.qparams.scale).to(torch.float64))
            limit = 2.0**30
            bias = (binding.bias.to(torch.float64) - moved).clamp(-limit, limit).to(torch.int32)
            self.kernels[node.name] = KERNELS[node.op](replace(binding, bias=bias))
            codes = self.kernels[node.name](xs, self.sizes)
        self.state.store(node.name, codes)

    def _error(self, node: Node, codes: Tensor, binding: Binding) -> Tensor:
        """Systematic error per channel, at positions whose float value lies within the range of the codes."""
        exact, found = self.floats[node.name], dequantize(codes, binding.output)
        axis = exact.ndim - 1 if node.op == "linear" else 1
        counted = torch.ones_like(exact, dtype=torch.bool)
        if not binding.is_accumulator:
            ends = torch.tensor([float(c) for c in activation_codes(binding)])
            low, high = dequantize(ends, binding.output).tolist()
            counted = (exact > low) & (exact < high)
        return systematic_error(found - exact, counted, axis)
