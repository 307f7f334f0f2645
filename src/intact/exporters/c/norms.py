"""Softmax, layer norm and bilinear interpolation in C. See :mod:`intact.exporters.c.kernels`."""

from __future__ import annotations

from intact.exporters.c.arithmetic import Snippet

__all__ = ["NORM_SNIPPETS"]

_SOFTMAX = """
/* Probabilities along one axis: powers of e from two tables, and a division. size and step are of the other axes. */
struct softmax {
    int32_t size[AXES], step[AXES];
    int32_t length, along;
    const int32_t *coarse, *fine;  /* exp of -256 steps each, and of -1 step each */
    int32_t steps, out_zero, low, high;
};

/* e to the power of minus so many steps of the operand's scale */
static int64_t power(const struct softmax *p, int32_t below)
{
    return ((int64_t)p->coarse[below / 256] * p->fine[below % 256] + 16384) / 32768;
}
"""

_SOFTMAX_XY = """
static void softmax_${x}_$y(const struct softmax *p, const $X *x, $Y *y)
{
    int32_t at[AXES] = {0}, i;
    do {
        const $X *from = x + place(at, p->step);
        $Y *to = y + place(at, p->step);
        int32_t most = from[0];
        int64_t total = 0;
        for (i = 1; i < p->length; i++) {
            most = from[i * p->along] > most ? from[i * p->along] : most;
        }
        for (i = 0; i < p->length; i++) {
            total += power(p, most - from[i * p->along]);
        }
        for (i = 0; i < p->length; i++) {
            const int64_t part = power(p, most - from[i * p->along]) * p->steps;
            to[i * p->along] = ($Y)limited((part + total / 2) / total + p->out_zero, p->low, p->high);
        }
    } while (next(at, p->size, AXES));
}
"""

_MASKED = """
/* The same where masks take scores out: a score counts where its mask is not `hidden`. */
struct masked_softmax {
    struct softmax softmax;
    int32_t mask_step[AXES], mask_along, hidden;
};
"""

_MASKED_XY = """
static void masked_softmax_${x}_$y(const struct masked_softmax *q, const $X *x, const int8_t *mask, $Y *y)
{
    const struct softmax *p = &q->softmax;
    int32_t at[AXES] = {0}, i;
    do {
        const $X *from = x + place(at, p->step);
        const int8_t *off = mask + place(at, q->mask_step);
        $Y *to = y + place(at, p->step);
        int32_t most = INT32_MIN;
        int64_t total = 0;
        for (i = 0; i < p->length; i++) {
            if (off[i * q->mask_along] != q->hidden && from[i * p->along] > most) {
                most = from[i * p->along];
            }
        }
        for (i = 0; i < p->length; i++) {
            if (off[i * q->mask_along] != q->hidden) {
                total += power(p, most - from[i * p->along]);
            }
        }
        for (i = 0; i < p->length; i++) {
            int64_t part = 0;
            if (off[i * q->mask_along] != q->hidden) {
                part = (power(p, most - from[i * p->along]) * p->steps + total / 2) / total;
            }
            to[i * p->along] = ($Y)limited(part + p->out_zero, p->low, p->high);
        }
    } while (next(at, p->size, AXES));
}
"""

_HIDE = """
/* Marks what a mask hides in one that stands for several masks. */
struct hide {
    int32_t size[AXES], step[AXES];
    int32_t hidden, first;
};

static void hide(const struct hide *p, const int8_t *mask, int8_t *all)
{
    int32_t at[AXES] = {0};
    do {
        const int32_t found = mask[place(at, p->step)] == p->hidden;
        *all = (int8_t)(found || (!p->first && *all));
        all++;
    } while (next(at, p->size, AXES));
}
"""

_LAYER_NORM = """
/* Rows less their mean, over their standard deviation, times weight, plus bias. */
struct layer_norm {
    const int16_t *weight;  /* [count], or NULL */
    const int32_t *bias;    /* [count], or NULL */
    int64_t epsilon;        /* added to count**2 times the variance */
    int32_t rows, count, bits;  /* bits behind the point of a normalized value */
    $multiplier
    int32_t out_zero, low, high;
};

/* the largest integer whose square is at most x */
static uint64_t square_root(uint64_t x)
{
    uint64_t root = 0, bit = (uint64_t)1 << 62;
    for (; bit > 0; bit >>= 2) {
        if (x >= root + bit) {
            x -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return root;
}
"""

_LAYER_NORM_XY = """
static void layer_norm_${x}_$y(const struct layer_norm *p, const $X *x, $Y *y)
{
    int32_t row, i;
    for (row = 0; row < p->rows; row++) {
        int64_t total = 0, squares = 0;
        int32_t room = p->bits;
        uint64_t wide, root;
        for (i = 0; i < p->count; i++) {
            total += x[i];
            squares += (int32_t)x[i] * x[i];
        }
        wide = (uint64_t)(p->count * squares - total * total + p->epsilon);
        for (; wide < (uint64_t)1 << 60; wide <<= 2) {
            room++;
        }
        root = square_root(wide);
        for (i = 0; i < p->count; i++) {
            const int64_t apart = (int64_t)p->count * x[i] - total;
            const uint64_t size = ((uint64_t)(apart < 0 ? -apart : apart) << room) + (root >> 1);
            int32_t sum = (int32_t)(size / root);
            if (apart < 0) {
                sum = -sum;
            }
            if (p->weight) {
                sum *= p->weight[i];
            }
            if (p->bias) {
                sum += p->bias[i];
            }
            *y++ = ($Y)requantize(sum, $by, p->out_zero, p->low, p->high);
        }
        x += p->count;
    }
}
"""

_BILINEAR = """
/* Interpolation between two rows and two columns, whose parts add up to `one` on each axis. */
struct bilinear {
    const int32_t *row, *next_row, *row_part;  /* [out_h]; row_part is the part of the next row */
    const int32_t *col, *next_col, *col_part;  /* [out_w] */
    int32_t batch, in_h, in_w, channels, out_h, out_w, one;
    $multiplier
    int32_t in_zero, out_zero, low, high;
};
"""

_BILINEAR_XY = """
static void bilinear_${x}_$y(const struct bilinear *p, const $X *x, $Y *y)
{
    int32_t n, row, col, c;
    for (n = 0; n < p->batch; n++) {
        for (row = 0; row < p->out_h; row++) {
            const $X *upper = x + p->row[row] * p->in_w * p->channels;
            const $X *lower = x + p->next_row[row] * p->in_w * p->channels;
            const int32_t below = p->row_part[row], above = p->one - below;
            for (col = 0; col < p->out_w; col++) {
                const int32_t a = p->col[col] * p->channels, b = p->next_col[col] * p->channels;
                const int32_t after = p->col_part[col], before = p->one - after;
                for (c = 0; c < p->channels; c++) {
                    const int32_t left = (upper[a + c] - p->in_zero) * above + (lower[a + c] - p->in_zero) * below;
                    const int32_t right = (upper[b + c] - p->in_zero) * above + (lower[b + c] - p->in_zero) * below;
                    *y++ = ($Y)requantize(left * before + right * after, $by, p->out_zero, p->low, p->high);
                }
            }
        }
        x += p->in_h * p->in_w * p->channels;
    }
}
"""

#: name -> text and what it needs
NORM_SNIPPETS: dict[str, Snippet] = {
    "softmax": Snippet(_SOFTMAX, ("walk", "limited")),
    "softmax_${x}_$y": Snippet(_SOFTMAX_XY, ("softmax",)),
    "masked_softmax": Snippet(_MASKED, ("softmax",)),
    "masked_softmax_${x}_$y": Snippet(_MASKED_XY, ("masked_softmax",)),
    "hide": Snippet(_HIDE, ("walk",)),
    "layer_norm": Snippet(_LAYER_NORM, ("requantize",)),
    "layer_norm_${x}_$y": Snippet(_LAYER_NORM_XY, ("layer_norm",)),
    "bilinear": Snippet(_BILINEAR, ("requantize",)),
    "bilinear_${x}_$y": Snippet(_BILINEAR_XY, ("bilinear",)),
}
