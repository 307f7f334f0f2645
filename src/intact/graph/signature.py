"""How a model is called: the names and structure of its inputs, kept so that a saved model needs no class."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from intact.errors import CalibrationError, IntactError
from intact.graph.ir import Graph, Node
from intact.types.dims import BATCH, Sizes, resolve_dim, solve, symbols_of

__all__ = ["Parameters", "Signature", "check_finite", "check_inputs", "collect", "has_edges", "samples_in",
           "split_batch"]


@dataclass(frozen=True)
class Signature:
    """Parameters of ``forward`` that were captured, in order, each with a template of input edges."""

    names: tuple[str, ...]
    templates: tuple[Mapping[str, Any], ...]

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Input edge name to tensor. Positional inputs that are None stand for what was None in the capture.

        Raises:
            IntactError: if inputs are missing, unknown or of another structure.
        """
        if len(args) > len(self.names):
            args = [a for a in args if a is not None]
        if len(args) > len(self.names):
            raise IntactError("too many inputs", got=len(args), allowed=", ".join(self.names))
        given = dict(zip(self.names, args, strict=False))
        for key, value in kwargs.items():
            if key not in self.names or key in given:
                raise IntactError("unknown or repeated input", got=key, allowed=", ".join(self.names))
            given[key] = value
        missing = [n for n in self.names if n not in given]
        if missing:
            raise IntactError("inputs are missing", got=missing, allowed=", ".join(self.names))
        found: dict[str, Tensor] = {}
        for name, template in zip(self.names, self.templates, strict=True):
            collect(template, given[name], name, found)
        return found


def collect(template: Mapping[str, Any], value: Any, where: str, found: dict[str, Tensor]) -> None:
    """Add the tensors of one argument to ``found``, by edge name.

    Raises:
        IntactError: if the argument has another structure than the template.
    """
    kind = template["kind"]
    if kind == "edge":
        if not isinstance(value, Tensor):
            keys = f" with keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
            raise IntactError("an input is not a tensor", where=where, got=type(value).__name__ + keys,
                              fix=f"give a batch that is a dict the key {where!r}" if keys else None)
        found[template["name"]] = value
    elif kind in ("tuple", "list"):
        if not isinstance(value, (tuple, list)) or len(value) != len(template["items"]):
            raise IntactError("an input has another structure", where=where, got=type(value).__name__,
                              allowed=f"{kind} of {len(template['items'])}")
        for i, (item, part) in enumerate(zip(template["items"], value, strict=True)):
            collect(item, part, f"{where}[{i}]", found)
    elif kind == "dict":
        given = {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}
        for key, item in template["items"].items():
            if key not in given and has_edges(item):
                raise IntactError("an input has another structure", where=where, allowed=f"key {key!r}",
                                  got=sorted(given) if isinstance(value, Mapping) else type(value).__name__)
            collect(item, given.get(key), f"{where}[{key!r}]", found)


def has_edges(template: Mapping[str, Any]) -> bool:
    """Whether any tensor is in it."""
    items = template.get("items", ())
    return template["kind"] == "edge" or any(
        has_edges(t) for t in (items.values() if isinstance(items, Mapping) else items))


def check_inputs(graph: Graph, inputs: Mapping[str, Tensor]) -> Sizes:
    """What the symbols of dynamic shapes are, after every input's shape and dtype were found right.

    Raises:
        IntactError: naming the input, what it got, and what is allowed.
    """
    sizes: dict[str, int] = {}
    for node in graph.inputs:
        x = inputs[node.name]
        want = getattr(torch, node.dtype)
        if x.dtype != want:
            raise IntactError("an input has the wrong dtype", where=node.name, got=x.dtype, allowed=want,
                              fix=f"convert it with .to({want})")
        if x.ndim != len(node.shape):
            raise _shape_error(node, x)
        for axis, (size, dim) in enumerate(zip(x.shape, node.shape, strict=True)):
            if isinstance(dim, str) and dim not in sizes:
                found = solve(dim, size)
                if found is None:
                    raise _shape_error(node, x, axis)
                sizes.setdefault(*found)
            if resolve_dim(dim, sizes) != size:
                raise _shape_error(node, x, axis)
        if x.numel() == 0:
            raise IntactError("an input is empty", where=node.name, got=tuple(x.shape),
                              fix="leave out batches of zero samples")
        _check_limits(node, x, sizes)
    sizes.setdefault(BATCH, 1)
    return sizes


def _check_limits(node: Node, x: Tensor, sizes: Sizes) -> None:
    for name, (low, high) in node.attrs.get("limits", {}).items():
        if sizes[name] < low or (high is not None and sizes[name] > high):
            raise IntactError(f"a {name} is out of range", where=node.name, got=f"{tuple(x.shape)}: {sizes[name]}",
                              allowed=f"{low} to {high}" if high is not None else f"{low} and more",
                              fix="cut or pad the input; this range is what the model itself allows")


def check_finite(inputs: Mapping[str, Tensor], coded: Container[str]) -> None:
    """Refuse what no code stands for.

    Args:
        inputs: by edge name.
        coded: edges that have codes; what only float operations read may be anything.

    Raises:
        IntactError: naming the first that holds what is no number.
    """
    for name, x in inputs.items():
        if name in coded and x.is_floating_point() and x.numel():
            low, high = torch.aminmax(x.detach())
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise IntactError("an input is not finite", where=name, got=f"{int((~torch.isfinite(x)).sum())} values",
                                  fix="mend the data")


def samples_in(graph: Graph, sizes: Sizes) -> int:
    """How many samples a batch holds: where no size is free, the first size of all inputs and outputs, if it is one.

    Args:
        graph: of the model.
        sizes: what :func:`check_inputs` found.
    """
    ends = [*graph.inputs, *(graph[name] for name in graph.outputs)]
    if any(BATCH in symbols_of(d) for node in ends for d in node.shape):
        return sizes[BATCH]
    first = {resolve_dim(node.shape[0], sizes) if node.shape else 1 for node in ends}
    return first.pop() if len(first) == 1 else 1


def _shape_error(node: Node, x: Tensor, axis: int | None = None) -> IntactError:
    fixed = axis is not None and axis > 0 and isinstance(node.shape[axis], int)
    return IntactError("an input has the wrong shape", where=node.name, got=tuple(x.shape),
                       allowed="(" + ", ".join(map(str, node.shape)) + ")",
                       fix=f"to leave axis {axis} free, capture with dynamic={{{node.name!r}: {{{axis}: 'a name'}}}}"
                       if fixed else None)


@dataclass(frozen=True)
class Parameters:
    """What a ``forward`` takes.

    Args:
        names: of its parameters, without ``*xs`` and ``**kw``.
        required: those without a default that can be given by position.
        many: it takes any number of positional inputs (``*xs``).
        free: it takes inputs of any name (``**kw``).
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    many: bool = False
    free: bool = False

    @staticmethod
    def of(model: nn.Module) -> Parameters:
        """Those of a module.

        >>> Parameters.of(torch.nn.Linear(3, 2)).required
        ('input',)
        """
        found = inspect.signature(model.forward).parameters.values()
        named = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return Parameters(
            tuple(p.name for p in named),
            tuple(p.name for p in named if p.default is p.empty and p.kind is not p.KEYWORD_ONLY),
            any(p.kind is p.VAR_POSITIONAL for p in found), any(p.kind is p.VAR_KEYWORD for p in found))

    def split(self, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs in a batch: of a dict those with a parameter's name, of a tuple as many as are required.

        Raises:
            CalibrationError: if it holds no inputs.
        """
        first = item[0] if isinstance(item, (tuple, list)) and item else item
        if isinstance(first, Mapping):
            if self.free:
                return (), {str(k): v for k, v in first.items()}
            if any(n in first for n in self.names):
                return split_batch(first, self.names)
        if self.many and isinstance(item, (tuple, list)):
            return tuple(item), {}
        return split_batch(item, self.required or self.names[:1])


    def spare(self, item: Any) -> tuple[str, ...]:
        """Optional parameters that could be meant by what :meth:`split` leaves of a tuple: labels, most often.

        >>> Parameters(("x", "mask"), ("x",)).spare((torch.zeros(1), torch.zeros(1)))
        ('mask',)
        """
        if self.many or not isinstance(item, (tuple, list)) or not item or isinstance(item[0], Mapping):
            return ()
        return self.names[len(self.required or self.names[:1]) : len(item)]


def split_batch(item: Any, names: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs in one item of a data loader, as positional and keyword arguments.

    A tensor is the first input. A tuple or list holds the inputs first (what follows, such as labels, is
    ignored). A mapping is taken by the names of ``forward``, other keys are ignored; without any of the names it is
    an input itself.

    Raises:
        CalibrationError: if the item holds no inputs.

    >>> split_batch((torch.zeros(2), "label"), ["x"])
    ((tensor([0., 0.]),), {})
    """
    if isinstance(item, Tensor):
        return (item,), {}
    first = item[0] if isinstance(item, (tuple, list)) and item else item
    if isinstance(first, Mapping):
        known = {n: first[n] for n in names if n in first}
        if known:
            return (), known
        if first is item:
            if len(names) > 1:
                raise CalibrationError("a batch has none of the model's inputs", got=sorted(map(str, item)),
                                       allowed=", ".join(names))
            return (item,), {}
    if isinstance(item, (tuple, list)):
        if not item:
            raise CalibrationError("a batch is an empty tuple", got="()", fix="yield tensors, tuples or dicts")
        return tuple(item[: len(names)]), {}
    raise CalibrationError("a batch is neither tensor, tuple nor mapping", got=type(item).__name__,
                           fix="yield tensors, tuples (inputs first) or dicts of tensors")
