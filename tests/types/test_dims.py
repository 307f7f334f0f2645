"""Expressions of sizes: what they are worth, how they are written, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intact.errors import CaptureError
from intact.types.dims import fit, is_dim, line, ratio, renamed, resolve_dim, solve, symbols_of

EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "b"]) | st.integers(0, 99).map(str),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner)
    | st.builds("({}//{})".format, inner, st.integers(1, 9)), max_leaves=6)
VALUES = st.fixed_dictionaries({"a": st.integers(1, 500), "b": st.integers(1, 500)})


@given(EXPRESSIONS, VALUES)
def test_an_expression_is_worth_what_python_says(text: str, sizes: dict[str, int]) -> None:
    assert resolve_dim(text, sizes) == worth_by_hand(text, sizes)


def worth_by_hand(text: str, sizes: dict[str, int]) -> int:
    """Innermost parentheses first."""
    while "(" in text:
        end = text.index(")")
        start = text.rindex("(", 0, end)
        left, op, right = text[start + 1 : end].replace("//", " // ").split()
        x, y = (sizes[v] if v in sizes else int(v) for v in (left, right))
        value = {"+": x + y, "-": x - y, "*": x * y}[op] if op != "//" else x // y
        text = f"{text[:start]}{value}{text[end + 1 :]}"
    return sizes[text] if text in sizes else int(text)


@given(EXPRESSIONS, VALUES)
def test_a_renamed_expression_is_worth_the_same(text: str, sizes: dict[str, int]) -> None:
    other = renamed(text, {"a": "length", "b": "batch"})
    assert resolve_dim(other, {"length": sizes["a"], "batch": sizes["b"]}) == resolve_dim(text, sizes)
    assert len(other) <= len(text) + 10 * (text.count("a") + text.count("b"))


@given(st.integers(1, 9), st.integers(-9, 9), st.integers(1, 500))
def test_a_line_is_solved(step: int, base: int, value: int) -> None:
    dim = f"{step}*n + {base}" if base >= 0 else f"{step}*n - {-base}"
    size = resolve_dim(dim, {"n": value})
    assert solve(dim, size) == ("n", value)
    assert line(dim) == ("n", step, base)
    if step > 1:
        assert solve(dim, size + 1) is None


@given(EXPRESSIONS, st.lists(VALUES, min_size=2, max_size=5))
def test_what_fits_has_the_values(text: str, points: list[dict[str, int]]) -> None:
    values = [resolve_dim(text, p) for p in points]
    found = fit(values, points, [text])
    assert found is not None or not symbols_of(text)
    assert found is None or [resolve_dim(found, p) for p in points] == values


NONE = ["", "a/2", "a//0", "a//b", "a.b", "f(a)", "a b", "(a", "a)", "+", "a**9", "2a", "a[0]", "é", "a,b", "1.5*a",
        "__import__('os')", "a" * 300, "a if b else a"]


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_expression(text: str) -> None:
    assert not is_dim(text)
    with pytest.raises(CaptureError):
        resolve_dim(text, {"a": 1, "b": 2})


def test_an_unknown_symbol_is_refused() -> None:
    with pytest.raises(CaptureError, match="depends on the input"):
        resolve_dim("length + 1", {"batch": 2})


def test_a_ratio_that_depends_on_parity_is_none() -> None:
    assert ratio("2*((n - 1)//2 + 1)", "(n - 1)//2 + 1") == 2.0
    assert ratio("n", "(n - 1)//2 + 1") is None
