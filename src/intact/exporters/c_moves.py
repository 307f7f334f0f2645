"""Operations in C that move codes, look them up or average them. See :mod:`intact.exporters.c_kernels`."""

from __future__ import annotations

from intact.exporters.c_arithmetic import Snippet

__all__ = ["MOVE_SNIPPETS"]

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

#: name -> text and what it needs
MOVE_SNIPPETS: dict[str, Snippet] = {
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
    "clamp_${x}_$y": Snippet(_CLAMP),
}
