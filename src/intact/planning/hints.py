"""What layers say about themselves, as wishes: after the recipe's rules, before its default."""

from __future__ import annotations

from intact.graph import MAC_OPS, FloatModel, Hint
from intact.planning.recipe import Float, How, Quant
from intact.types import PerChannel, PerTensor

__all__ = ["hints_by_node", "how_of"]


def hints_by_node(model: FloatModel) -> dict[str, Hint]:
    """The hint of each layer with multiply-accumulates that has one."""
    return {n.name: model.hints[n.path] for n in model.graph if n.op in MAC_OPS and n.path in model.hints}


def how_of(hint: Hint) -> How:
    """A hint as the recipe would say it.

    >>> print(how_of(Hint(8, 32, True, True, True)))
    float
    """
    if 32 in (hint.weight_bits, hint.activation_bits):
        return Float(f"the layer says W{hint.weight_bits}A{hint.activation_bits}: an integer layer needs codes of both")
    return Quant(
        weight_bits=hint.weight_bits,
        activation_bits=hint.activation_bits,
        weight_granularity=PerChannel(0) if hint.per_channel else PerTensor(),
        weight_symmetric=hint.weight_symmetric,
        activation_symmetric=hint.activation_symmetric,
        weight_observer="minmax",
        activation_observer="moving_average",
        bias_correction=False,
        weight_quantizer="observed" if hint.weight_scale is None else "passive",
    )
