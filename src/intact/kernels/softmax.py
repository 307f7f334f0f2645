"""Softmax of codes, in integers; only for targets that have no floats."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from intact.arithmetic import SoftmaxRule
from intact.arithmetic.litert_softmax import (
    fixed_exps,
    fixed_softmax,
    float_exps,
    float_softmax,
    wide_exps,
    wide_softmax,
)
from intact.arithmetic.softmax import exp_bits, exp_tables, softmax_codes
from intact.errors import PlanError
from intact.kernels.base import Binding, Kernel, kernel, to_carrier
from intact.types.dims import Sizes

__all__ = ["SoftmaxKernel"]


@kernel("softmax")
class SoftmaxKernel(Kernel):
    """Tables of powers of e of the operand's scale, their sum, one division for every output.

    Further operands are masks: codes that equal ``hidden[i]`` take their score out.
    """

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
        self.rule = binding.arithmetic.softmax
        if self.rule is not SoftmaxRule.TABLES:
            q = binding.inputs[0]
            self.wide = self.rule is SoftmaxRule.TFLITE and q.qtype.bits == 16
            given = float(binding.output.scale), int(binding.output.zero_point)
            if given != ((2.0**-15, 0) if self.wide else (2.0**-8, -128)) or (q.qtype.bits > 8 and not self.wide):
                raise PlanError("this softmax takes 8 bits and gives 1/256 from -128 up, or 16 bits and 1/32768 from 0",
                                where=binding.where, got=f"{q.qtype}, {float(binding.output.scale):g}")
            makes = fixed_exps if self.rule is SoftmaxRule.TFLITE else float_exps
            self.exps = (wide_exps if self.wide else makes)(q.scale)

    def tables(self, count: int) -> tuple[Tensor, Tensor]:
        """For ``count`` operands of one sum (see :func:`intact.arithmetic.softmax.exp_tables`)."""
        if count not in self._tables:
            q = self.binding.inputs[0]
            self._tables[count] = exp_tables(float(q.scale), q.qtype.bits, exp_bits(count))
        return self._tables[count]

    def _hidden(self, xs: Sequence[Tensor]) -> Tensor | None:
        """What the masks hide, of the operand's shape; None without masks."""
        hidden = None
        for mask, code in zip(xs[1:], self.binding.attrs.get("hidden", ()), strict=True):
            found = (mask == code).expand(xs[0].shape)
            hidden = found if hidden is None else hidden | found
        return hidden

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes of the probabilities."""
        x, axis = xs[0], self.binding.attrs["axis"]
        if not x.numel():
            return x.clone()
        if self.rule is not SoftmaxRule.TABLES:
            softmax = fixed_softmax if self.rule is SoftmaxRule.TFLITE else float_softmax
            softmax = wide_softmax if self.wide else softmax
            found = softmax(x.long().movedim(axis, -1), self.exps).movedim(-1, axis)
            return to_carrier(found.float(), x, self.binding)
        high, low = (t.to(x.device) for t in self.tables(x.shape[axis]))
        codes = softmax_codes(x.long(), axis, (high, low), self.binding.output, self._hidden(xs))
        return to_carrier(codes.float(), x, self.binding)
