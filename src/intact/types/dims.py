"""Sizes that are known when a model is called: an int, or an expression of named symbols such as ``length + 1``."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from intact.errors import CaptureError

__all__ = ["BATCH", "Dim", "Sizes", "fit", "is_dim", "line", "ratio", "renamed", "resolve_dim", "resolve_shape",
           "solve", "symbols_of", "tree_of"]

Dim = int | str
#: the value of every symbol in one call
Sizes = Mapping[str, int]
#: the symbol of the batch axis
BATCH = "batch"

_LONGEST = 200  # characters of an expression
_TOKEN = re.compile(r"\s*(\d{1,9}|[A-Za-z_]\w{0,62}|\*\*|//|[-+*()])", re.ASCII)
_APPLY: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv}
#: an expression as (operator, left, right)
Tree = int | str | tuple[str, "Tree", "Tree"]


def resolve_dim(dim: Dim, sizes: Sizes) -> int:
    """The size of a dimension in a call.

    Args:
        dim: an int, or sums, products and whole quotients (by an int) of ints and symbols.
        sizes: the value of each symbol.

    Raises:
        CaptureError: if it is no such expression, or has another symbol.

    >>> resolve_dim("4*batch", {"batch": 3}), resolve_dim("(length - 1)//2 + 1", {"length": 8}), resolve_dim(7, {})
    (12, 4, 7)
    """
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return sizes[dim]
    try:
        return _value(tree_of(dim), sizes)
    except KeyError as error:
        raise _error(dim) from error


def resolve_shape(shape: Sequence[Dim], sizes: Sizes) -> list[int]:
    """All dimensions of a shape in a call."""
    return [resolve_dim(d, sizes) for d in shape]


def symbols_of(dim: Dim) -> frozenset[str]:
    """The symbols in a dimension.

    >>> sorted(symbols_of("batch*length")), sorted(symbols_of(4))
    (['batch', 'length'], [])
    """
    return frozenset() if isinstance(dim, int) else _symbols(tree_of(dim))


def is_dim(text: object) -> bool:
    """Whether this is an expression that :func:`resolve_dim` understands.

    >>> is_dim("2*batch"), is_dim("batch/2"), is_dim(3)
    (True, False, False)
    """
    try:
        return isinstance(text, str) and bool(symbols_of(text))
    except CaptureError:
        return False


def renamed(text: str, names: Mapping[str, str]) -> str:
    """An expression with other symbols, without parentheses that say nothing.

    Raises:
        CaptureError: if it is no such expression, or has a symbol that is not among ``names``.

    >>> renamed("(((s16 - 5)//2)) + 1", {"s16": "length"})
    '(length - 5)//2 + 1'
    """
    unknown = symbols_of(text) - names.keys()
    if unknown:
        raise _error(text)
    return _text(_renamed(tree_of(text), names))


def solve(dim: Dim, size: int) -> tuple[str, int] | None:
    """The symbol of a dimension ``k*symbol + c`` and the value that gives it a size; None if there is none.

    >>> solve("8*height", 64), solve("8*height", 65), solve(3, 3)
    (('height', 8), None, None)
    """
    found = line(dim)
    if found is None:
        return None
    name, step, base = found
    return None if step != 1 and (size - base) % step else (name, (size - base) // step)


def line(dim: Dim) -> tuple[str, int, int] | None:
    """A dimension ``k*symbol + c`` as (symbol, k, c); None if it is none.

    >>> line("2*batch + 1"), line("batch*length")
    (('batch', 2, 1), None)
    """
    if isinstance(dim, int):
        return None
    if dim.isidentifier():
        return dim, 1, 0
    names = symbols_of(dim)
    if len(names) != 1:
        return None
    (name,) = names
    values = [resolve_dim(dim, {name: n}) for n in range(1, 66)]  # // by more than 64 is taken for a constant
    step = values[1] - values[0]
    straight = step > 0 and all(b - a == step for a, b in itertools.pairwise(values))
    return (name, step, values[0] - step) if straight else None


def fit(values: Sequence[int], points: Sequence[Sizes], known: Iterable[str] = ()) -> Dim | None:
    """The dimension that has these values at these points; None if there is no simple one.

    Args:
        values: one for each point.
        points: what the symbols are.
        known: expressions to try after ints and ``k*symbol + c``.

    >>> points = [{"batch": 2, "length": 8}, {"batch": 3, "length": 9}, {"batch": 2, "length": 11}]
    >>> fit([9, 10, 12], points), fit([16, 27, 22], points, ["batch*length"])
    ('length + 1', 'batch*length')
    """
    if len(set(values)) == 1:
        return values[0]
    lines = (_through(values, points, name) for name in points[0])
    straight = next((text for text in lines if text is not None), None)
    return straight or next((text for text in known if _holds(text, values, points)), None)


def _through(values: Sequence[int], points: Sequence[Sizes], name: str) -> str | None:
    """``k*name + c`` if that is what the values are."""
    first = points[0][name]
    step, rest = next((divmod(v - values[0], p[name] - first) for v, p in zip(values, points, strict=True)
                       if p[name] != first), (0, 0))
    base = values[0] - step * first
    if rest or step <= 0 or any(step * p[name] + base != v for v, p in zip(values, points, strict=True)):
        return None
    slope = name if step == 1 else f"{step}*{name}"
    return slope if not base else f"{slope} {'+' if base > 0 else '-'} {abs(base)}"


def _holds(text: str, values: Sequence[int], points: Sequence[Sizes]) -> bool:
    return symbols_of(text) <= points[0].keys() and all(
        resolve_dim(text, p) == v for v, p in zip(values, points, strict=True))


def ratio(dim: Dim, of: Dim) -> float | None:
    """How many times a dimension is another, whatever the symbols are; None if that depends on them.

    >>> ratio("2*(height//2)", "height//2"), ratio("height", "height//2"), ratio(6, 4)
    (2.0, None, 1.5)
    """
    names = sorted(symbols_of(dim) | symbols_of(of))
    points = [{name: 64 + step * (2 * i + 3) for i, name in enumerate(names)} for step in range(9)]
    found = {(resolve_dim(dim, p) / resolve_dim(of, p)) for p in points}
    return found.pop() if len(found) == 1 else None


def _error(text: str) -> CaptureError:
    return CaptureError("a dimension depends on the input in a way that is not supported", got=text[:_LONGEST],
                        allowed='an int, or sums, products and whole quotients, such as "2*batch" or "length + 1"')


@lru_cache(maxsize=4096)
def tree_of(text: str) -> Tree:
    """An expression as (operator, left, right).

    Raises:
        CaptureError: if it is none.

    >>> tree_of("2*batch")
    ('*', 2, 'batch')
    """
    tokens = _TOKEN.findall(text) if len(text) <= _LONGEST else []
    if not tokens or "".join(tokens) != "".join(text.split()):
        raise _error(text)
    tree, rest = _sum(tokens, text)
    if rest:
        raise _error(text)
    return tree


def _sum(tokens: list[str], text: str) -> tuple[Tree, list[str]]:
    left, tokens = _product(tokens, text)
    while tokens and tokens[0] in ("+", "-"):
        right, rest = _product(tokens[1:], text)
        left, tokens = (tokens[0], left, right), rest
    return left, tokens


def _product(tokens: list[str], text: str) -> tuple[Tree, list[str]]:
    left, tokens = _factor(tokens, text)
    while tokens and tokens[0] in ("*", "//"):
        right, rest = _factor(tokens[1:], text)
        if tokens[0] == "//" and not (isinstance(right, int) and right > 0):
            raise _error(text)
        left, tokens = (tokens[0], left, right), rest
    return left, tokens


def _factor(tokens: list[str], text: str) -> tuple[Tree, list[str]]:
    if not tokens or tokens[0] in ("+", "*", "//", "**", ")"):
        raise _error(text)
    first, rest = tokens[0], tokens[1:]
    found: Tree
    if first == "-":
        found, rest = _factor(rest, text)
        return ("-", 0, found), rest
    if first == "(":
        found, rest = _sum(rest, text)
        if rest[:1] != [")"]:
            raise _error(text)
        rest = rest[1:]
    else:
        found = int(first) if first.isdigit() else first
    if rest[:1] == ["**"]:
        if rest[1:2] not in (["2"], ["3"]):
            raise _error(text)
        base = found
        for _ in range(int(rest[1]) - 1):
            found = ("*", found, base)
        rest = rest[2:]
    return found, rest


def _value(tree: Tree, sizes: Sizes) -> int:
    if isinstance(tree, tuple):
        return _APPLY[tree[0]](_value(tree[1], sizes), _value(tree[2], sizes))
    return sizes[tree] if isinstance(tree, str) else tree


def _symbols(tree: Tree) -> frozenset[str]:
    if isinstance(tree, tuple):
        return _symbols(tree[1]) | _symbols(tree[2])
    return frozenset({tree} if isinstance(tree, str) else ())


def _renamed(tree: Tree, names: Mapping[str, str]) -> Tree:
    if isinstance(tree, tuple):
        return tree[0], _renamed(tree[1], names), _renamed(tree[2], names)
    return tree_of(names[tree]) if isinstance(tree, str) else tree


def _text(tree: Tree, inside: str = "") -> str:
    """The expression in writing; ``inside`` is the operator whose operand it is ("right" for a right operand)."""
    if not isinstance(tree, tuple):
        return str(tree)
    op, left, right = tree
    sums = op in ("+", "-")
    first = "" if (op, left) == ("-", 0) else _text(left, "+" if sums else "*")
    text = f"{first} {op} {_text(right, '-' if op == '-' else '+')}" if sums else \
        f"{first}{op}{_text(right, 'right')}"
    loose = sums and inside in ("*", "-", "right")
    return f"({text.strip()})" if loose or (not sums and inside == "right") else text.strip()
