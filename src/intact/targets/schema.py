"""A target: a frozen, versioned value that describes one runtime at one optimisation level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from intact.arithmetic import Arithmetic, SoftmaxRule
from intact.arithmetic.softmax import softmax_output
from intact.graph import Graph, Node
from intact.types import INT8, INT16, QParams, QType

__all__ = ["EXACT_FLOAT", "OpRule", "Output", "Target"]

#: what runs instead of an integer kernel that does not take so many bits
EXACT_FLOAT = "exact float operations"

#: why a node cannot run in integers on the target; None if it can
Check = Callable[[Node, Graph], str | None]


def _always(node: Node, graph: Graph) -> str | None:
    return None


class Output(Enum):
    """Which encodings the output of an integer kernel may have."""

    FREE = "free"  # its own parameters
    SHARED = "shared"  # those of the operand: codes are only moved
    FREE_OR_ACCUMULATOR = "free_or_accumulator"  # the int32 accumulator, where only float operations read it


@dataclass(frozen=True)
class OpRule:
    """How one canonical operation runs on the target.

    Args:
        kernel: what the runtime calls its integer kernel; "" if codes are only moved.
        output: encodings of the output.
        check: a reason to refuse this node, or None.
        fixed: parameters that the runtime prescribes for the output, by its bits.
        macs: the operation's cost is multiply-accumulates, so it is quantized for its own sake.
        kernel_bits: codes that the kernel takes at most; the exporter writes wider ones with exact float operations.
    """

    kernel: str
    output: Output = Output.FREE
    check: Check = _always
    fixed: Mapping[int, QParams] = field(default_factory=dict)
    macs: bool = False
    kernel_bits: int = 16


@dataclass(frozen=True)
class Target:
    """One runtime.

    Args:
        name: as the user gives it.
        version: of this description; part of artefacts.
        arithmetic: the number rules of its kernels.
        rules: canonical operation to rule; an operation without a rule stays in float.
        weight_bits, activation_bits: widths whose codes the kernels can run on (narrower codes run in the
            8-bit kernels, in the range that their width gives them).
        signed_activations: codes of activations are signed (else from 0).
        symmetric_activations: their zero point is fixed: 0 if they are signed.
        symmetric_from: with so many bits and more, activations are symmetric in any case.
        float_operations: whether operations without integer kernel may run in float; if not, a model that has one is
            refused, and outputs have codes of their own.
        per_channel: whether weights may have a scale per output channel.
        asymmetric_weights: whether weights may have a zero point.
        exported: float operations (canonical, or torch's names) that its exporter can write; None without exporter.
        signed_from: with so many bits and more, activations are signed in any case.
    """

    name: str
    version: int
    arithmetic: Arithmetic
    rules: Mapping[str, OpRule]
    weight_bits: tuple[int, ...] = tuple(range(2, 9))
    activation_bits: tuple[int, ...] = tuple(range(2, 9))
    signed_activations: bool = False
    symmetric_activations: bool = False
    symmetric_from: int = 32
    float_operations: bool = True
    per_channel: bool = True
    asymmetric_weights: bool = False
    exported: frozenset[str] | None = None
    signed_from: int = 32

    def activation_type(self, bits: int) -> QType:
        """The encoding of activations with so many bits."""
        return QType(bits, signed=self.signed_activations or bits >= self.signed_from)

    def prescribed(self, op: str, bits: int) -> QParams | None:
        """The encoding that the output of an operation must have with so many bits, if any.

        What the runtime prescribes; else, for a softmax in integers, that of :func:`softmax_output`; LiteRT's kernels
        have one for codes of 8 bits, in which narrower operands run too, and one for 16.
        """
        if op not in self.rules or bits in self.rules[op].fixed or op != "softmax":
            return self.rules[op].fixed.get(bits) if op in self.rules else None
        if bits not in self.activation_bits:
            return None
        if self.arithmetic.softmax is not SoftmaxRule.TABLES:
            return QParams.per_tensor(2.0**-8, -128, INT8) if bits <= 8 else QParams.per_tensor(2.0**-15, 0, INT16)
        symmetric = self.symmetric_activations or bits >= self.symmetric_from
        return softmax_output(bits, self.activation_type(bits).signed, symmetric)
