"""Softmax of codes, in integers; only for targets that have no floats."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from intact.arithmetic.softmax import exp_bits, exp_tables, softmax_codes
from intact.kernels.base import Binding, Kernel, kernel, to_carrier
from intact.types.dims import Sizes

__all__ = ["SoftmaxKernel"]


@kernel("softmax")
class SoftmaxKernel(Kernel):
    """Tables of powers of e of the operand's scale, their sum, one division for every output."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def tables(self, count: int) -> tuple[Tensor, Tensor]:
        """For ``count`` operands of one sum (see :func:`intact.arithmetic.softmax.exp_tables`)."""
        if count not in self._tables:
            (q,) = self.binding.inputs
            self._tables[count] = exp_tables(float(q.scale), q.qtype.bits, exp_bits(count))
        return self._tables[count]

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes of the probabilities."""
        (x,), axis = xs, self.binding.attrs["axis"]
        if not x.numel():
            return x.clone()
        high, low = (t.to(x.device) for t in self.tables(x.shape[axis]))
        codes = softmax_codes(x.long(), axis, (high, low), self.binding.output)
        return to_carrier(codes.float(), x, self.binding)
