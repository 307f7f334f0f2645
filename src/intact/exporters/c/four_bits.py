"""Weights of at most 4 bits, two a byte in flash: how they are packed, and the C that reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from intact.exporters.c.arithmetic import Snippet

__all__ = ["FOUR_BIT_SNIPPETS", "FOUR_BIT_WORDS", "WHOLE_BYTE_WORDS", "packed_halves", "packed_neighbours"]

#: ``$words`` of layers with a weight a byte
WHOLE_BYTE_WORDS = {"four": "", "row": "length", "tap_row": "p->in_c", "lane": "c", "weight_k": "weight[k]",
                    "halves": "separate"}
#: and with two; a lane is the first of 16
FOUR_BIT_WORDS = {"four": "4", "row": "(length + 1) / 2", "tap_row": "((p->in_c + 1) / 2)", "lane": "c / 2",
                  "weight_k": "(k % 2 ? high_half(weight[k / 2]) : low_half(weight[k / 2]))", "halves": "halves"}


def _bytes(low: Tensor, high: Tensor) -> Tensor:
    return ((low & 15 | (high & 15) << 4) ^ 128) - 128  # as signed numbers of 8 bits


def packed_halves(rows: Tensor) -> Tensor:
    """The first half of every row in the low bits, the rest in the high ones: both are read in order.

    Args:
        rows: integers from -8 to 7, shape (rows, length).

    Returns:
        Signed bytes, shape (rows, (length + 1) // 2).

    >>> packed_halves(torch.tensor([[1, 2, 3]]))
    tensor([[49,  2]])
    """
    rows = rows.to(torch.int64)
    half = (rows.shape[1] + 1) // 2
    high = torch.zeros(len(rows), half, dtype=torch.int64)
    high[:, : rows.shape[1] - half] = rows[:, half:]
    return _bytes(rows[:, :half], high)


def packed_neighbours(rows: Tensor) -> Tensor:
    """Two neighbours of a row in a byte, the first one in the low bits.

    Args:
        rows: integers from -8 to 7, shape (rows, length).

    Returns:
        Signed bytes, shape (rows, (length + 1) // 2).

    >>> packed_neighbours(torch.tensor([[1, 2, -3]]))
    tensor([[33, 13]])
    """
    rows = torch.nn.functional.pad(rows.to(torch.int64), (0, rows.shape[1] % 2))
    return _bytes(rows[:, 0::2], rows[:, 1::2])


_HALVES = """
/* two signed numbers of 4 bits in a byte; of 16 bits, as what they are multiplied with: compilers see that */
static int16_t low_half(int8_t w)
{
    return (int16_t)((((uint8_t)w & 15) ^ 8) - 8);
}

static int16_t high_half(int8_t w)
{
    return (int16_t)((((uint8_t)w >> 4) ^ 8) - 8);
}
"""

_DOT4 = """
/* weights of 4 bits: the first half of a row in the low bits of its bytes, the rest in the high ones; a sum for each */
static SEPARATE int32_t dot4(const int16_t *a, const int8_t *w, uint32_t n)
{
    const uint32_t both = n / 2, full = both & ~15u;
    const int16_t *b = a + (n - both);
    int32_t low = 0, high = 0;
    uint32_t i;
    for (i = 0; i != full; i++) {
        low += a[i] * low_half(w[i]);
        high += b[i] * high_half(w[i]);
    }
    for (; i != both; i++) {
        low += a[i] * low_half(w[i]);
        high += b[i] * high_half(w[i]);
    }
    return n % 2 ? low + high + a[both] * low_half(w[both]) : low + high;
}

/* two columns by two rows of weights: every number that is read is used twice */
static SEPARATE void dot4_2x2(const int16_t *a, const int16_t *b, const int8_t *v, const int8_t *w, uint32_t n,
                              int32_t *sum)
{
    const uint32_t both = n / 2, full = both & ~15u;
    const int16_t *c = a + (n - both), *d = b + (n - both);
    int32_t av0 = 0, aw0 = 0, bv0 = 0, bw0 = 0, av1 = 0, aw1 = 0, bv1 = 0, bw1 = 0;
    uint32_t i;
    for (i = 0; i != full; i++) {
        const int16_t v0 = low_half(v[i]), v1 = high_half(v[i]), w0 = low_half(w[i]), w1 = high_half(w[i]);
        av0 += a[i] * v0;
        aw0 += a[i] * w0;
        bv0 += b[i] * v0;
        bw0 += b[i] * w0;
        av1 += c[i] * v1;
        aw1 += c[i] * w1;
        bv1 += d[i] * v1;
        bw1 += d[i] * w1;
    }
    for (; i != both; i++) {
        const int16_t v0 = low_half(v[i]), v1 = high_half(v[i]), w0 = low_half(w[i]), w1 = high_half(w[i]);
        av0 += a[i] * v0;
        aw0 += a[i] * w0;
        bv0 += b[i] * v0;
        bw0 += b[i] * w0;
        av1 += c[i] * v1;
        aw1 += c[i] * w1;
        bv1 += d[i] * v1;
        bw1 += d[i] * w1;
    }
    if (n % 2) {
        av0 += a[both] * low_half(v[both]);
        aw0 += a[both] * low_half(w[both]);
        bv0 += b[both] * low_half(v[both]);
        bw0 += b[both] * low_half(w[both]);
    }
    sum[0] = av0 + av1;
    sum[1] = aw0 + aw1;
    sum[2] = bv0 + bv1;
    sum[3] = bw0 + bw1;
}
"""

#: name -> text and what it needs
FOUR_BIT_SNIPPETS = {"halves": Snippet(_HALVES), "dot4": Snippet(_DOT4, ("separate", "halves"))}
