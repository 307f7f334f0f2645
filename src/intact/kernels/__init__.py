"""Integer operations on codes, each written once and run in two carriers."""

from intact.kernels import concat, conv, elementwise, matmul, passive, pool, resize  # noqa: F401  (they register)
from intact.kernels.base import KERNELS, Binding, Kernel, kernel
from intact.kernels.functions import UNARY_OPS
from intact.kernels.passive import MOVES

__all__ = ["KERNELS", "MOVES", "UNARY_OPS", "Binding", "Kernel", "kernel"]
