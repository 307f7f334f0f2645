"""The user's wish: ordered rules that say where and how, apart from each other."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from intact.errors import PlanError
from intact.graph import MAC_OPS, Graph, Node
from intact.observers import OBSERVERS
from intact.types import Granularity, PerChannel

__all__ = ["FLOAT", "Float", "How", "Quant", "Recipe", "Rule", "Where", "first", "last", "match_rules", "op", "path"]


#: names less alike than this are not what the user meant
_NEAR = 0.5


@dataclass(frozen=True)
class Where:
    """A set of nodes. Combine with ``&``, ``|`` and ``~``."""

    text: str
    contains: Callable[[Node, Graph], bool] = field(compare=False, repr=False)
    pattern: str | None = None
    names: tuple[str, ...] = ()

    def __and__(self, other: Where) -> Where:
        return Where(f"({self.text} & {other.text})", lambda n, g: self.contains(n, g) and other.contains(n, g),
                     self.pattern or other.pattern, self.names + other.names)

    def __or__(self, other: Where) -> Where:
        return Where(f"({self.text} | {other.text})", lambda n, g: self.contains(n, g) or other.contains(n, g),
                     self.pattern or other.pattern, self.names + other.names)

    def __invert__(self) -> Where:
        return Where(f"~{self.text}", lambda n, g: not self.contains(n, g))


def path(pattern: str) -> Where:
    """Nodes of a module, or of any module inside it, by glob on the module path.

    >>> path("layer4").text
    "path('layer4')"
    """

    def contains(node: Node, graph: Graph) -> bool:
        parts = node.path.split(".") if node.path else []
        parents = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return any(fnmatch.fnmatchcase(p, pattern) for p in (*parents, node.name))

    return Where(f"path({pattern!r})", contains, pattern)


def op(*names: str) -> Where:
    """Nodes of canonical operations.

    >>> op("conv", "linear").text
    "op('conv', 'linear')"
    """
    return Where(f"op({', '.join(map(repr, names))})", lambda n, g: n.op in names, names=names)


def first(count: int = 1) -> Where:
    """The first layers with multiply-accumulates, in the order of execution.

    >>> (first() | last()).text
    '(first(1) | last(1))'
    """
    return Where(f"first({count})", lambda n, g: n.name in _layers(g)[:count])


def last(count: int = 1) -> Where:
    """The last layers with multiply-accumulates, in the order of execution.

    >>> (~last(2)).text
    '~last(2)'
    """
    return Where(f"last({count})", lambda n, g: n.name in _layers(g)[-count:])


def _layers(graph: Graph) -> list[str]:
    return [n.name for n in graph if n.op in MAC_OPS]


@dataclass(frozen=True)
class Float:
    """Leave the nodes in float; the plan says why if a reason is given."""

    reason: str = ""

    def __str__(self) -> str:
        return "float"


FLOAT = Float()

#: what moves the parameters of codes while a QFloat model is trained
EDGE_QUANTIZERS = ("observed", "lsq", "lsq+", "tqt", "pact", "dorefa", "gathered")
WEIGHT_QUANTIZERS = ("observed", "lsq", "lsq+", "tqt", "dorefa", "passive")

_PER_CHANNEL = PerChannel(0)


@dataclass(frozen=True)
class Quant:
    """How nodes are quantized.

    Args:
        weight_bits, activation_bits: 2 to 16; what the target cannot run is refused by the plan. Both 32: float.
        weight_granularity: :class:`PerChannel` (of the output channels) or :class:`PerTensor`.
        weight_symmetric: zero point 0 for weights.
        activation_symmetric: zero point in the middle for activations.
        weight_observer: ``"minmax"``, ``"mse"``, or ``"auto"``: minmax at 8 bits and more, where clipping weights
            costs more than it saves (measured on ResNet-20: 37.5 against 36.9 dB), mse below.
        activation_observer: a registered observer: ``"mse"``, ``"minmax"``, ``"percentile"``, ``"entropy"``,
            ``"moving_average"``; or ``"auto"``: mse, but minmax for what linear layers and matrix products read in a
            model with attention (measured on MiniLM: a mean cosine of 0.997 against 0.993).
        bias_correction: let the integer bias take up the mean of what rounding the weights does to the output
            (Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019). Part of
            calibration; :func:`intact.correct_bias` is a step of its own, for what all else does to the means.
        weight_quantizer, activation_quantizer: what moves the parameters in training: ``"observed"`` (ranges follow
            the data), ``"lsq"``, ``"lsq+"`` (zero point as well), ``"tqt"`` (powers of two), ``"pact"``
            (activations only), ``"dorefa"``; ``"gathered"`` (activations only: one search over all that was seen) and
            ``"passive"`` (weights only: the scale of the start) do not move with each batch.

        output_bits: of what the nodes give, instead of what their readers want: ``Rule(op("add"), Quant(8, 8,
            output_bits=2))`` adds at 8 bits in a network whose layers read 2.

    Activation settings hold for what the nodes read; of readers that disagree, the one with more bits wins.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    weight_granularity: Granularity = _PER_CHANNEL
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    weight_observer: Literal["auto", "minmax", "mse"] = "auto"
    activation_observer: str = "auto"
    bias_correction: bool = True
    weight_quantizer: str = "observed"
    activation_quantizer: str = "observed"
    output_bits: int | None = None

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            bits = getattr(self, name)
            if bits == 1:
                raise PlanError("binary networks are not affine codes", where=name, got=1, allowed="2 to 16, or 32",
                                fix="take 2 bits, or leave the layer in float")
            if not isinstance(bits, int) or not (2 <= bits <= 16 or bits == 32):
                raise PlanError(f"{name} is out of range", got=bits, allowed="2 to 16, or 32 (float)")
        if self.output_bits is not None and not 2 <= self.output_bits <= 16:
            raise PlanError("output_bits is out of range", got=self.output_bits, allowed="2 to 16, or None")
        if (self.weight_bits == 32) != (self.activation_bits == 32):
            raise PlanError("weights and activations are either both codes or both float",
                            got=f"W{self.weight_bits}A{self.activation_bits}", fix="take 2 to 16 bits for both")
        for name, allowed in (("weight_quantizer", WEIGHT_QUANTIZERS), ("activation_quantizer", EDGE_QUANTIZERS)):
            if getattr(self, name) not in allowed:
                near = difflib.get_close_matches(str(getattr(self, name)), allowed, n=1, cutoff=0.3)
                raise PlanError(f"unknown {name}", got=getattr(self, name), allowed=", ".join(allowed),
                                fix=f"did you mean {near[0]!r}?" if near else None)
        if self.weight_observer not in ("auto", "minmax", "mse"):
            raise PlanError("unknown weight observer", got=self.weight_observer, allowed="auto, minmax, mse")
        if self.activation_observer != "auto" and self.activation_observer not in OBSERVERS:
            near = difflib.get_close_matches(self.activation_observer, OBSERVERS, n=1, cutoff=0.3)
            raise PlanError("unknown activation observer", got=self.activation_observer,
                            allowed=", ".join(["auto", *OBSERVERS]), fix=f"did you mean {near[0]!r}?" if near else None)

    def __str__(self) -> str:
        return f"W{self.weight_bits}A{self.activation_bits}"


How = Quant | Float


@dataclass(frozen=True)
class Rule:
    """Where, and how."""

    where: Where
    how: How

    def __str__(self) -> str:
        return f"{self.where.text} -> {self.how}"


@dataclass(frozen=True)
class Recipe:
    """Ordered rules, of which the first that matches a node wins, and what holds for the other nodes.

    Args:
        rules: each must match at least one node.
        default: for nodes that no rule matches.
        quantized_outputs: give the model's outputs codes of their own (for integer outputs in the exported
            model); by default the last layer's accumulator is returned without that loss.

    >>> print(Recipe(rules=(Rule(path("head"), FLOAT),)).rules[0])
    path('head') -> float
    """

    rules: Sequence[Rule] = ()
    default: How = Quant()
    quantized_outputs: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rules, (tuple, list)) or not all(isinstance(r, Rule) for r in self.rules):
            raise PlanError("rules is not a sequence of rules", got=type(self.rules).__name__,
                            allowed="a tuple or list of Rule", fix="write rules=(rule,), with the comma")


def _float_at_32(how: How) -> How:
    return FLOAT if isinstance(how, Quant) and how.weight_bits == 32 else how


def match_rules(
    recipe: Recipe, graph: Graph, folded: Mapping[str, str] = MappingProxyType({}),
    hints: Mapping[str, How] = MappingProxyType({}),
) -> dict[str, How]:
    """How each node is to be treated.

    Args:
        recipe: the rules.
        graph: whose nodes they are for.
        folded: module paths of which nothing is left, and where they went, for messages.
        hints: by node, what its layer says itself; a rule comes before it, the default after it.

    Raises:
        PlanError: for a rule that matches nothing; names the nearest module paths or operations.
    """
    hits, wins = [0] * len(recipe.rules), [0] * len(recipe.rules)
    chosen: dict[str, How] = {}
    for node in graph:
        for i, rule in enumerate(recipe.rules):
            if rule.where.contains(node, graph):
                hits[i] += 1
                wins[i] += node.name not in chosen
                chosen.setdefault(node.name, _float_at_32(rule.how))
        chosen.setdefault(node.name, hints.get(node.name, _float_at_32(recipe.default)))
    for rule, count, won in zip(recipe.rules, hits, wins, strict=True):
        if count and not won:
            raise PlanError("a rule never applies", where=str(rule),
                            got="every node that it matches is taken by an earlier rule",
                            fix="put the narrower rule first, or remove it")
        if not count:
            raise _unmatched(rule, graph, folded)
    return chosen


def _unmatched(rule: Rule, graph: Graph, folded: Mapping[str, str]) -> PlanError:
    """What the user may have meant."""
    where = rule.where
    gone = [p for p in folded if where.contains(Node(p, "", path=p), graph)]
    if gone:
        homes = ", ".join(repr(p) for p in dict.fromkeys(folded[p] for p in gone[:3]))
        return PlanError("a rule matches nothing", where=str(rule), got=f"{', '.join(map(repr, gone[:3]))}, folded "
                         f"into {homes}", fix=f"name {homes}")
    words = [where.pattern] if where.pattern else list(where.names)
    there = sorted({n.path for n in graph if n.path} if where.pattern else {n.op for n in graph} - {"input"})
    near = list(dict.fromkeys(n for w in words for n in difflib.get_close_matches(w, there, n=3, cutoff=_NEAR)))
    return PlanError(
        "a rule matches nothing", where=str(rule),
        allowed=f"nearest: {', '.join(near)}" if near else f"the model has {', '.join(there[:8])}"
                                                           f"{', ...' if len(there) > 8 else ''}",
        fix=f"did you mean {near[0]!r}?" if near else "correct the rule, or remove it")
