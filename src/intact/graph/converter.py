"""Walks the exported aten graph and emits canonical nodes; what depends on no input is computed once."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from intact.errors import CaptureError
from intact.graph.ir import Dim, Node
from intact.types.dims import renamed

__all__ = ["BITWISE", "HANDLERS", "Const", "Converter", "Edge", "Symbolic", "handler"]


@dataclass(frozen=True)
class Edge:
    """A value that depends on the inputs."""

    name: str


@dataclass(frozen=True, eq=False)
class Const:
    """A value that depends on parameters only; ``name`` is the user's name if it is one of theirs."""

    tensor: Tensor
    name: str | None = None


class Symbolic(str):
    """A size that depends on the inputs, such as ``"2*batch"``: no other string is one."""

    __slots__ = ()


Value = Any  # Edge | Const | Symbolic | int | float | str | None | list of these
Handler = Callable[..., Value]

#: aten overload name -> function(converter, *args, **kwargs) -> value
HANDLERS: dict[str, Handler] = {}


def handler(*targets: str) -> Callable[[Handler], Handler]:
    """Register a function for aten overloads such as ``aten.relu.default``."""

    def register(function: Handler) -> Handler:
        for target in targets:
            HANDLERS[target] = function
        return function

    return register


class Converter:
    """Collects nodes and parameters while the aten graph is walked."""

    def __init__(self, params: dict[str, Tensor], symbols: dict[str, str], aliases: dict[str, str] | None = None
                 ) -> None:
        self.params = params
        self.symbols = symbols  # torch's -> ours
        self.aliases = aliases or {}  # a name that turned out to be another's -> that one
        self.nodes: list[Node] = []
        #: edge that a dropout follows -> (probability, whether it drops whole channels)
        self.dropouts: dict[str, tuple[float, bool]] = {}
        self.path = ""
        self.leaf = False
        self.current: fx.Node | None = None
        self._names: set[str] = set()
        self._constants: dict[int, str] = {}

    # -- emitting ---------------------------------------------------------------------------

    def emit(
        self,
        op: str,
        inputs: Sequence[Value] = (),
        params: dict[str, Value] | None = None,
        *,
        dtype: str = "float32",
        **attrs: Any,
    ) -> Edge:
        """Append a node and return its edge. Constant operands become ``constant`` nodes."""
        edges = tuple(self.edge(v).name for v in inputs)
        roles = {r: self.param(v, r) for r, v in (params or {}).items() if v is not None}
        name = self.unique(op)
        self.nodes.append(Node(name, op, edges, roles, attrs, self.path, (), dtype))
        return Edge(name)

    def unique(self, op: str) -> str:
        """An edge name from the module path: the path itself for a leaf module, else path/op."""
        base = self.path if self.leaf and self.path else f"{self.path}/{op}" if self.path else op
        return self.unique_named(base)

    def edge(self, value: Value) -> Edge:
        """The value as an edge; a tensor constant becomes a node (once)."""
        if isinstance(value, Edge):
            return value
        if isinstance(value, (int, float)):
            value = Const(torch.tensor(float(value)))
        if not isinstance(value, Const):
            raise self.error("an operand is not a tensor", got=type(value).__name__)
        key = id(value.tensor)
        if key not in self._constants:
            role = self.param(value, "value")
            name = self.unique_named(role)
            dtype = str(value.tensor.dtype).removeprefix("torch.")
            self.nodes.append(
                Node(name, "constant", (), {"value": role}, {}, self.path, tuple(value.tensor.shape), dtype)
            )
            self._constants[key] = name
        return Edge(self._constants[key])

    def unique_named(self, base: str) -> str:
        """A free edge name starting with ``base``."""
        name, n = base, 1
        while name in self._names:
            n += 1
            name = f"{base}@{n}"
        self._names.add(name)
        return name

    def param(self, value: Value, role: str) -> str:
        """The name of a constant in the parameter table, stored there if it is new."""
        if isinstance(value, Edge):
            raise self.error(f"the {role} is computed from the input", fix="exclude this module")
        if not isinstance(value, Const):
            value = Const(torch.as_tensor(value))
        if value.name is not None:
            return str(value.name)
        name, n = f"{self.path}.{role}" if self.path else role, 1
        while name in self.params and self.params[name] is not value.tensor:
            n += 1
            name = f"{self.path}.{role}_{n}" if self.path else f"{role}_{n}"
        self.params[name] = value.tensor
        return name

    def error(self, what: str, *, got: object = None, fix: str | None = None) -> CaptureError:
        """A CaptureError that names the module and the aten operation."""
        target = str(self.current.target) if self.current is not None else None
        return CaptureError(what, where=f"{self.path or 'model'} ({target})", got=got, fix=fix)

    # -- looking up -------------------------------------------------------------------------

    def fake(self) -> Any:
        """The example value (fake tensor) of the node that is being converted."""
        assert self.current is not None
        return self.current.meta["val"]

    def shape_of(self, node_arg: int = 0) -> tuple[Dim, ...]:
        """Shape of the aten node's tensor operand, symbols translated."""
        assert self.current is not None
        arg = self.current.args[node_arg]
        assert isinstance(arg, fx.Node)
        return self.dims(arg.meta["val"].shape)

    def dims(self, shape: Sequence[Any]) -> tuple[Dim, ...]:
        """Ints stay; torch's symbols become ours."""
        return tuple(self.dim(d) for d in shape)

    def dim(self, value: Any) -> Dim:
        """One dimension: an int, or an expression of our symbols."""
        if isinstance(value, (int, Symbolic)):
            return value
        try:
            return Symbolic(renamed(str(value), self.symbols))
        except CaptureError as error:
            raise self.error(error.what, got=value, fix="capture with a fixed size, or exclude this module") from None

    # -- walking ----------------------------------------------------------------------------

    def resolve(self, arg: Any, env: dict[fx.Node, Value]) -> Value:
        """An fx argument as a converter value."""
        if isinstance(arg, fx.Node):
            return env[arg]
        if isinstance(arg, (list, tuple)):
            return [self.resolve(a, env) for a in arg]
        return arg

    def convert(self, node: fx.Node, env: dict[fx.Node, Value]) -> Value:
        """Canonical form of one aten call."""
        self.current = node
        self.path, self.leaf = module_of(node)
        if any(n.op == "get_attr" for n in node.all_input_nodes):
            raise self.error("control flow has no canonical form", got=str(node.target))
        args = [self.resolve(a, env) for a in node.args]
        kwargs = {k: self.resolve(v, env) for k, v in node.kwargs.items()}
        if node.target is operator.getitem:
            return args[0][args[1]]
        example = node.meta.get("val")
        if isinstance(example, (torch.SymInt, int)):
            return self.dim(example) if not isinstance(example, int) else example
        if example is None and str(node.target).startswith(("aten._assert_", "aten.sym_constrain_")):
            return args[0] if args else None  # what is asserted about sizes is kept as their limits
        if isinstance(example, torch.SymBool):
            return None
        flat = list(_flatten([args, list(kwargs.values())]))
        if not any(map(_is_dynamic, flat)):
            return self.fold(node, args, kwargs)
        target = functional(str(node.target))
        if target in HANDLERS:
            return HANDLERS[target](self, *args, **kwargs)
        return self.generic(target, args, kwargs)

    def fold(self, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """Compute a call whose operands are all constant."""
        target = node.target
        if not callable(target):
            raise self.error("not a call")
        if functional(str(target)) != str(target):  # who has read the operand before keeps what was there
            args = [Const(args[0].tensor.clone()), *args[1:]]
        with torch.no_grad():
            result = target(*_unwrap(args), **_unwrap(kwargs))
        if isinstance(result, Tensor):
            return Const(result)
        if isinstance(result, (list, tuple)):
            return [Const(r) if isinstance(r, Tensor) else r for r in result]
        return result

    def generic(self, target: str, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """Any other aten operation: kept as one float call, run by name."""
        edges: list[Value] = []
        params: dict[str, Value] = {}

        def template(value: Value) -> Any:
            if isinstance(value, Edge):
                edges.append(value)
                return {"input": len(edges) - 1}
            if isinstance(value, Const):
                params[f"arg{len(params)}"] = value
                return {"param": f"arg{len(params) - 1}"}
            if isinstance(value, list):
                return [template(v) for v in value]
            if isinstance(value, Symbolic):
                return {"dim": str(value)}
            if isinstance(value, torch.dtype):
                return {"dtype": str(value).removeprefix("torch.")}
            if value is None or isinstance(value, (int, float, str, bool)):
                return value
            raise self.error("an argument cannot be stored", got=repr(value))

        target = BITWISE.sub(r"aten.bitwise_\1.", target)  # the names that artefacts may run
        filled = [template(a) for a in args]
        options = {
            k: template(v) for k, v in kwargs.items() if k not in ("device", "layout", "pin_memory")
        }
        example = self.fake()
        if isinstance(example, (list, tuple)):
            return [
                self.emit("aten", edges, dict(params), dtype=_dtype(e), target=target, args=filled,
                          kwargs=options, index=i)
                for i, e in enumerate(example)
            ]
        return self.emit("aten", edges, params, dtype=_dtype(example), target=target, args=filled,
                         kwargs=options, index=None)


#: what ``&``, ``|`` and ``^`` are before torch decomposes them
BITWISE = re.compile(r"^aten\.__(and|or|xor)__\.")
_IN_PLACE = re.compile(r"^(aten\.[a-z0-9]\w*?[a-z0-9])_(\.\w+)$")


def functional(target: str) -> str:
    """``aten.relu_.default`` to ``aten.relu.default``; other names as they are.

    >>> functional("aten.relu_.default"), functional("aten.add.Tensor")
    ('aten.relu.default', 'aten.add.Tensor')
    """
    return _IN_PLACE.sub(r"\1\2", target)


def _dtype(example: Any) -> str:
    return str(example.dtype).removeprefix("torch.") if isinstance(example, Tensor) else "none"


def _is_dynamic(value: Value) -> bool:
    return isinstance(value, (Edge, Symbolic))


def _flatten(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def _unwrap(value: Any) -> Any:
    if isinstance(value, Const):
        return value.tensor
    if isinstance(value, list):
        return [_unwrap(v) for v in value]
    if isinstance(value, dict):
        return {k: _unwrap(v) for k, v in value.items()}
    return value


def module_of(node: fx.Node) -> tuple[str, bool]:
    """Module path of an aten node, and whether that module is one of torch's own layers."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = [v for k, v in stack.items() if not k.startswith("_empty")]
    if not entries:
        return "", False
    path, kind = entries[-1]
    text = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    leaf = text.startswith("torch.nn.modules.") and not text.startswith("torch.nn.modules.container")
    return path.split("@")[0], leaf
