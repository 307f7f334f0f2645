"""Operations in C that pool, average, move codes or look them up. See :mod:`intact.exporters.c.kernels`."""

from __future__ import annotations

from intact.exporters.c.arithmetic import Snippet

__all__ = ["MOVE_SNIPPETS"]

_POOL = """
/* Windows over rows and columns; channels are last in memory. */
struct pool {
    int32_t batch, in_h, in_w, channels, out_h, out_w;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};
"""

_MAX_POOL = """
static void max_pool_$x(const struct pool *p, const $X *x, $X *y)
{
    int32_t n, row, col, i, j, c;
    for (n = 0; n < p->batch; n++) {
        for (row = 0; row < p->out_h; row++) {
            for (col = 0; col < p->out_w; col++) {
                int32_t empty = 1;
                for (i = 0; i < p->kernel_h; i++) {
                    const int32_t from_row = row * p->stride_h - p->pad_h + i * p->dilation_h;
                    for (j = 0; j < p->kernel_w; j++) {
                        const int32_t from_col = col * p->stride_w - p->pad_w + j * p->dilation_w;
                        const $X *from;
                        if (from_row < 0 || from_row >= p->in_h || from_col < 0 || from_col >= p->in_w) {
                            continue;
                        }
                        from = x + (from_row * p->in_w + from_col) * p->channels;
                        for (c = 0; c < p->channels; c++) {
                            y[c] = empty || from[c] > y[c] ? from[c] : y[c];
                        }
                        empty = 0;
                    }
                }
                y += p->channels;
            }
        }
        x += p->in_h * p->in_w * p->channels;
    }
}
"""

_AVERAGE_POOL = """
/* An average over windows: the sum of n elements times the multiplier for n. */
struct average {
    struct pool pool;
    const int32_t *counts;  /* numbers of elements that occur; each has a multiplier */
    const int32_t *m0;
    const int8_t *shift;
    int32_t count_padding, in_zero, out_zero, low, high;
};
"""

_AVERAGE_POOL_XY = """
static void average_pool_${x}_$y(const struct average *p, const $X *x, $Y *y)
{
    const struct pool *q = &p->pool;
    int32_t n, row, col, i, j, c;
    for (n = 0; n < q->batch; n++) {
        for (row = 0; row < q->out_h; row++) {
            for (col = 0; col < q->out_w; col++) {
                const int32_t top = row * q->stride_h - q->pad_h, left = col * q->stride_w - q->pad_w;
                const int32_t end_h = q->in_h + q->pad_h, end_w = q->in_w + q->pad_w;
                const int32_t past_h = top + q->kernel_h, past_w = left + q->kernel_w;
                const int32_t i0 = top < 0 ? 0 : top, i1 = past_h < q->in_h ? past_h : q->in_h;
                const int32_t j0 = left < 0 ? 0 : left, j1 = past_w < q->in_w ? past_w : q->in_w;
                int32_t count = (i1 - i0) * (j1 - j0), k = 0;
                if (p->count_padding) {
                    count = ((past_h < end_h ? past_h : end_h) - top) * ((past_w < end_w ? past_w : end_w) - left);
                }
                while (p->counts[k] != count) {
                    k++;
                }
                for (c = 0; c < q->channels; c++) {
                    int32_t sum = 0;
                    for (i = i0; i < i1; i++) {
                        for (j = j0; j < j1; j++) {
                            sum += x[(i * q->in_w + j) * q->channels + c] - p->in_zero;
                        }
                    }
                    y[c] = ($Y)$average(sum, p->m0[k], p->shift[k], p->out_zero, p->low, p->high);
                }
                y += q->channels;
            }
        }
        x += q->in_h * q->in_w * q->channels;
    }
}
"""

_WALK = """
/* where an element of a tensor with these steps lies */
static int32_t place(const int32_t *at, const int32_t *step)
{
    int32_t i, sum = 0;
    for (i = 0; i < AXES; i++) {
        sum += at[i] * step[i];
    }
    return sum;
}

/* the next position along the first axes; 0 after the last one */
static int next(int32_t *at, const int32_t *size, int32_t axes)
{
    while (axes-- > 0) {
        if (++at[axes] < size[axes]) {
            return 1;
        }
        at[axes] = 0;
    }
    return 0;
}
"""

_MEAN = """
/* A mean over some axes: the sum times m0 / 2**shift. */
struct mean {
    int32_t size[AXES], step[AXES];       /* of the axes that stay */
    int32_t sum_size[AXES], sum_step[AXES];  /* of those that are averaged */
    int32_t m0, shift;
    int32_t in_zero, out_zero, low, high;
};
"""

_MEAN_XY = """
static void mean_${x}_$y(const struct mean *p, const $X *x, $Y *y)
{
    int32_t at[AXES] = {0};
    do {
        const $X *from = x + place(at, p->step);
        int32_t over[AXES] = {0}, sum = 0;
        do {
            sum += from[place(over, p->sum_step)] - p->in_zero;
        } while (next(over, p->sum_size, AXES));
        *y++ = ($Y)$average(sum, p->m0, p->shift, p->out_zero, p->low, p->high);
    } while (next(at, p->size, AXES));
}
"""

_COPY = """
/* Elements moved from some places to others; a step of 0 repeats. */
struct copy {
    int32_t size[AXES], from[AXES], to[AXES];
};
"""

_COPY_X = """
static void copy_$x(const struct copy *p, const $X *x, $X *y)
{
    const int32_t from = p->from[AXES - 1], to = p->to[AXES - 1], count = p->size[AXES - 1];
    int32_t at[AXES] = {0}, i;
    do {
        const $X *source = x + place(at, p->from);
        $X *target = y + place(at, p->to);
        if (from == 1 && to == 1) {
            memcpy(target, source, (uint32_t)count * sizeof *x);
        } else {
            for (i = 0; i < count; i++) {
                target[i * to] = source[i * from];
            }
        }
    } while (next(at, p->size, AXES - 1));
}
"""

_RESCALE = """
/* Elements moved, and brought to another scale: times $factor. */
struct rescale {
    struct copy copy;
    $multiplier
    int32_t in_zero, out_zero, low, high;
};
"""

_RESCALE_XY = """
static void rescale_${x}_$y(const struct rescale *p, const $X *x, $Y *y)
{
    int32_t at[AXES] = {0};
    do {
        const int32_t code = x[place(at, p->copy.from)] - p->in_zero;
        y[place(at, p->copy.to)] = ($Y)requantize(code, $by, p->out_zero, p->low, p->high);
    } while (next(at, p->copy.size, AXES));
}
"""

_GATHER = """
/* Elements picked along each axis: by an index, or all where that is NULL. */
struct gather {
    int32_t size[AXES], step[AXES];
    const int32_t *index[AXES];
};
"""

_GATHER_X = """
static void gather_$x(const struct gather *p, const $X *x, $X *y)
{
    int32_t at[AXES] = {0}, from[AXES], i;
    do {
        for (i = 0; i < AXES; i++) {
            from[i] = p->index[i] ? p->index[i][at[i]] : at[i];
        }
        *y++ = x[place(from, p->step)];
    } while (next(at, p->size, AXES));
}
"""

_FILL = """
static void fill_$x($X *x, int32_t n, int32_t value)
{
    int32_t i;
    for (i = 0; i < n; i++) {
        x[i] = ($X)value;
    }
}
"""

_TABLE = """
/* a function of one code: its result for every code from the lowest up */
static void table_${x}_$y(const $Y *table, int32_t lowest, const $X *x, $Y *y, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++) {
        y[i] = table[x[i] - lowest];
    }
}
"""

_CLAMP = """
/* codes moved by an offset, within limits */
static void clamp_${x}_$y(int32_t offset, int32_t low, int32_t high, const $X *x, $Y *y, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++) {
        const int32_t code = x[i] + offset;
        y[i] = ($Y)(code < low ? low : code > high ? high : code);
    }
}
"""

_CURVE = """
/* straight lines between knots, which are 2**step codes apart and have 8 bits behind the point */
static void curve_${x}_$y(const int32_t *knots, int32_t step, int32_t lowest, int32_t low, int32_t high, const $X *x,
                          $Y *y, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++) {
        const int32_t index = x[i] - lowest, rest = index & ((1 << step) - 1);
        const int64_t left = knots[index >> step], right = knots[(index >> step) + 1];
        const int64_t sum = left * ((int64_t)1 << step) + (right - left) * rest;
        y[i] = ($Y)limited(rounded_shift(sum, step + 8$no_zero), low, high);
    }
}
"""

#: name -> text and what it needs
MOVE_SNIPPETS: dict[str, Snippet] = {
    "pool": Snippet(_POOL),
    "max_pool_$x": Snippet(_MAX_POOL, ("pool",)),
    "average": Snippet(_AVERAGE_POOL, ("pool", "$average")),
    "average_pool_${x}_$y": Snippet(_AVERAGE_POOL_XY, ("average",)),
    "walk": Snippet(_WALK),
    "mean": Snippet(_MEAN, ("walk", "$average")),
    "mean_${x}_$y": Snippet(_MEAN_XY, ("mean",)),
    "copy": Snippet(_COPY, ("walk",)),
    "copy_$x": Snippet(_COPY_X, ("copy",)),
    "rescale": Snippet(_RESCALE, ("copy", "requantize")),
    "rescale_${x}_$y": Snippet(_RESCALE_XY, ("rescale",)),
    "gather": Snippet(_GATHER, ("walk",)),
    "gather_$x": Snippet(_GATHER_X, ("gather",)),
    "fill_$x": Snippet(_FILL),
    "table_${x}_$y": Snippet(_TABLE),
    "curve_${x}_$y": Snippet(_CURVE, ("rounded_shift", "limited")),
    "clamp_${x}_$y": Snippet(_CLAMP),
}
