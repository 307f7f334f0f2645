"""Integer operations on codes, each written once and run in two carriers."""

from intact.kernels import (  # noqa: F401  (they register)
    concat,
    conv,
    elementwise,
    layer_norm,
    matmul,
    passive,
    pool,
    resize,
    softmax,
)
from intact.kernels.base import KERNELS, Binding, Kernel, kernel, operand_scale
from intact.kernels.functions import UNARY_OPS
from intact.kernels.passive import MOVES

__all__ = ["KERNELS", "MOVES", "UNARY_OPS", "Binding", "Kernel", "kernel", "operand_scale"]
