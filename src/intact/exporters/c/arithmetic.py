"""The number rules of a target as C: rounding, multipliers, requantization."""

from __future__ import annotations

from dataclasses import dataclass

from intact.arithmetic import Arithmetic, BinaryRule, PoolRule, Requantize, Rounding
from intact.errors import ExportError

__all__ = ["Snippet", "arithmetic_snippets", "arithmetic_words", "check_arithmetic"]


@dataclass(frozen=True)
class Snippet:
    """A piece of C, with ``$words`` to be filled in, and the pieces that must stand before it."""

    text: str
    needs: tuple[str, ...] = ()


_SHIFT_DOWN = """
/* floor(x / 2**n). C99 leaves >> of a negative number to the implementation; this is one instruction with most. */
static int64_t shift_down(int64_t x, int32_t n)
{
    return x >= 0 ? x >> n : ~(~x >> n);
}
"""

_ROUNDED = {
    Rounding.FLOOR: """
/* x / 2**n, rounded down */
static int64_t rounded_shift(int64_t x, int32_t n)
{
    return shift_down(x, n);
}
""",
    Rounding.HALF_UP: """
/* x / 2**n, rounded to the nearest integer, ties up */
static int64_t rounded_shift(int64_t x, int32_t n)
{
    const int64_t half = ((int64_t)1 << n) >> 1;
    return shift_down(x + half, n);
}
""",
    Rounding.HALF_EVEN: """
/* x / 2**n, rounded to the nearest integer, ties to even$even_comment */
static int64_t rounded_shift(int64_t x, int32_t n$inside)
{
    const int64_t half = ((int64_t)1 << n) >> 1, below = shift_down(x, n)$plus_zero;
    return shift_down(x + half - (n > 0 && (below & 1) == 0), n);
}
""",
    Rounding.HALF_AWAY: """
/* x / 2**n, rounded to the nearest integer, ties away from zero$even_comment */
static int64_t rounded_shift(int64_t x, int32_t n$inside)
{
    const int64_t half = ((int64_t)1 << n) >> 1, below = shift_down(x, n)$plus_zero;
    return shift_down(x + half - (n > 0 && below < 0), n);
}
""",
}

_ROUNDED_TWICE = """
/* x / 2**n, rounded to the nearest integer, ties away from zero */
static int64_t rounded_away(int64_t x, int32_t n)
{
    const int64_t half = ((int64_t)1 << n) >> 1;
    return shift_down(x + half - (n > 0 && x < 0), n);
}
"""

_LIMITED = """
static int32_t limited(int64_t x, int32_t low, int32_t high)
{
    return (int32_t)(x < low ? low : x > high ? high : x);
}
"""

_REQUANTIZE = {
    Requantize.FIXED_POINT: ("""
/* an accumulator times m0 / 2**shift, rounded once, as a code */
static int32_t requantize(int32_t sum, int32_t m0, int32_t shift, int32_t zero, int32_t low, int32_t high)
{
    return limited(rounded_shift((int64_t)sum * m0, shift$inside_call) + zero, low, high);
}
""", ("rounded_shift", "limited")),
    Requantize.FIXED_POINT_TWICE: ("""
/* an accumulator times m0 / 2**shift, rounded twice: the high half of the doubled product, then the shift */
static int32_t requantize(int32_t sum, int32_t m0, int32_t shift, int32_t zero, int32_t low, int32_t high)
{
    const int32_t left = shift < 31 ? 31 - shift : 0, right = shift > 31 ? shift - 31 : 0;
    const uint32_t bits = (uint32_t)((uint64_t)sum << left); /* wraps in 32 bits */
    const int64_t x = bits > INT32_MAX ? (int64_t)bits - ((int64_t)1 << 32) : (int64_t)bits;
    const int64_t top = shift_down(x * m0 + ((int64_t)1 << 30), 31);
    return limited(rounded_away(top, right) + zero, low, high);
}
""", ("shift_down", "rounded_away", "limited")),
    Requantize.SHIFT: ("""
/* an accumulator divided by 2**shift (or multiplied, where shift is negative), rounded, as a code */
static int32_t requantize(int32_t sum, int32_t shift, int32_t zero, int32_t low, int32_t high)
{
    const int64_t x = shift < 0 ? (int64_t)sum * ((int64_t)1 << -shift) : sum;
    return limited(rounded_shift(x, shift < 0 ? 0 : shift$inside_call) + zero, low, high);
}
""", ("rounded_shift", "limited")),
}

_WRAPPED = """
/* the product modulo 2**64, as two's complement */
static int64_t wrapped(int64_t a, int64_t b)
{
    return (int64_t)((uint64_t)a * (uint64_t)b);
}
"""

_MATTERS = (Rounding.HALF_EVEN, Rounding.HALF_AWAY)  # the other roundings know neither parity nor sign


def check_arithmetic(arithmetic: Arithmetic, where: str) -> None:
    """Refuse number rules that need floats.

    Raises:
        ExportError: naming what is not integer arithmetic.
    """
    rules = {
        "requantize": arithmetic.integer_only, "add": arithmetic.add is BinaryRule.INTEGER,
        "mul": arithmetic.mul is BinaryRule.INTEGER, "average_pool": arithmetic.average_pool is PoolRule.SUM,
    }
    floats = [name for name, good in rules.items() if not good]
    if floats:
        raise ExportError("the target's arithmetic is not one of integers", where=where, got=", ".join(floats),
                          allowed="a target such as 'fixed_point'", fix="quantize with target='fixed_point'")


def _inside(arithmetic: Arithmetic) -> bool:
    return arithmetic.zero_inside and arithmetic.rounding in _MATTERS


def arithmetic_words(arithmetic: Arithmetic) -> dict[str, str]:
    """What the arithmetic puts in the place of ``$words`` in every piece of C."""
    inside, shift_only = _inside(arithmetic), arithmetic.requantize is Requantize.SHIFT
    return {
        "inside": ", int32_t zero" if inside else "", "inside_call": ", zero" if inside else "",
        "inside_p": ", p->out_zero" if inside else "", "plus_zero": " + zero" if inside else "",
        "no_zero": ", 0" if inside else "",
        "even_comment": " once the zero point is added" if inside else "",
        "by": "p->shift" if shift_only else "p->m0, p->shift",
        "by_o": "p->shift[o]" if shift_only else "p->m0[o], p->shift[o]",
        "by_k": "p->shift[k]" if shift_only else "p->m0[k], p->shift[k]",
        "multiplier": "int32_t shift;" if shift_only else "int32_t m0, shift;",
        "multipliers": "const int8_t *shift;" if shift_only else "const int32_t *m0;\n    const int8_t *shift;",
        # 1 / n is no power of two: averages always have a factor m0
        "average": "requantize_fixed" if shift_only else "requantize",
        "factor": "2**-shift" if shift_only else "m0 / 2**shift",
    }


def arithmetic_snippets(arithmetic: Arithmetic) -> dict[str, Snippet]:
    """The functions of an arithmetic, by name."""
    text, needs = _REQUANTIZE[arithmetic.requantize]
    fixed, fixed_needs = _REQUANTIZE[Requantize.FIXED_POINT]
    wide = text.replace("requantize(int32_t sum", "requantize_wide(int64_t sum").replace(
        "(int64_t)sum * m0", "wrapped(sum, m0)").replace(
        "(int64_t)sum * ((int64_t)1 << -shift)", "wrapped(sum, (int64_t)1 << -shift)").replace(
        "(int64_t)sum * ((int64_t)1 << left)", "wrapped(sum, (int64_t)1 << left)")
    return {
        "shift_down": Snippet(_SHIFT_DOWN),
        "limited": Snippet(_LIMITED),
        "rounded_away": Snippet(_ROUNDED_TWICE, ("shift_down",)),
        "rounded_shift": Snippet(_ROUNDED[arithmetic.rounding], ("shift_down",)),
        "requantize": Snippet(text, needs),
        "requantize_fixed": Snippet(fixed.replace("requantize(", "requantize_fixed("), fixed_needs),
        "wrapped": Snippet(_WRAPPED),
        "requantize_wide": Snippet(wide, (*needs, "wrapped")),
    }
