"""The operations in C: each a small function, written once for every pair of code types that a network needs.

``$x`` and ``$y`` are the types of operand and result (``s8``), ``$X`` and ``$Y`` their C names (``int8_t``); ``$a``
and ``$b`` those of two operands. The other ``$words`` come from the arithmetic. Inner loops over ``n & ~15u`` elements
are those that compilers vectorize, at -O2 too: they know that nothing is left over.
"""

from __future__ import annotations

from intact.exporters.c.arithmetic import Snippet

__all__ = ["KERNEL_SNIPPETS"]

_SEPARATE = """
/* the innermost loops: gcc 12 vectorizes them at -O2 if it does not inline them */
#ifdef __GNUC__
#define SEPARATE __attribute__((noinline))
#else
#define SEPARATE
#endif
"""

_CONV = """
/* A convolution, or a linear layer (a 1 x 1 convolution over its rows). Channels are last in memory. */
struct conv {
    const int8_t *weight;  /* [out_c][kernel_h][kernel_w][in_c / groups]; of depthwise2d: [kernel_h][kernel_w][out_c];
                              rows of conv2d4 and depthwise2d4 have two weights a byte, and begin with a whole one */
    const int32_t *bias;   /* [out_c], or NULL */
    $multipliers  /* [out_c]: the sum times $factor is the code, less the zero point */
    int32_t batch, in_h, in_w, in_c, out_h, out_w, out_c;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
    int32_t in_zero, out_zero, low, high;
};

static int32_t finish(const struct conv *p, int32_t sum, int32_t o)
{
    if (p->bias) {
        sum += p->bias[o];
    }
    return requantize(sum, $by_o, p->out_zero, p->low, p->high);
}
"""

_CENTRE = """
static SEPARATE void centre_$x(const $X *restrict x, int32_t n, int32_t zero, int16_t *restrict y)
{
    const uint32_t count = (uint32_t)n, full = count & ~15u;
    uint32_t i;
    for (i = 0; i != full; i++) {
        y[i] = (int16_t)(x[i] - zero);
    }
    for (; i != count; i++) {
        y[i] = (int16_t)(x[i] - zero);
    }
}
"""

_COLUMN = """
/* what one output pixel of a group reads, less the zero point: [kernel_h][kernel_w][in_c / groups]; padding is 0 */
static void column_$x(const struct conv *p, const $X *x, int32_t pixel, int32_t group, int16_t *column)
{
    const int32_t width = p->in_c / p->groups;
    const int32_t top = pixel / p->out_w * p->stride_h - p->pad_h;
    const int32_t left = pixel % p->out_w * p->stride_w - p->pad_w;
    int32_t i, j;
    for (i = 0; i < p->kernel_h; i++) {
        const int32_t row = top + i * p->dilation_h;
        for (j = 0; j < p->kernel_w; j++) {
            const int32_t col = left + j * p->dilation_w;
            if (row < 0 || row >= p->in_h || col < 0 || col >= p->in_w) {
                memset(column, 0, (uint32_t)width * sizeof *column);
            } else {
                centre_$x(x + (row * p->in_w + col) * p->in_c + group * width, width, p->in_zero, column);
            }
            column += width;
        }
    }
}
"""

_DOT = """
static SEPARATE int32_t dot(const int16_t *a, const int8_t *w, uint32_t n)
{
    const uint32_t full = n & ~15u;
    int32_t sum = 0;
    uint32_t i;
    for (i = 0; i != full; i++) {
        sum += a[i] * w[i];
    }
    for (; i != n; i++) {
        sum += a[i] * w[i];
    }
    return sum;
}

/* two columns by two rows of weights: every number that is read is used twice */
static SEPARATE void dot_2x2(const int16_t *a, const int16_t *b, const int8_t *v, const int8_t *w, uint32_t n,
                             int32_t *sum)
{
    const uint32_t full = n & ~15u;
    int32_t av = 0, aw = 0, bv = 0, bw = 0;
    uint32_t i;
    for (i = 0; i != full; i++) {
        av += a[i] * v[i];
        aw += a[i] * w[i];
        bv += b[i] * v[i];
        bw += b[i] * w[i];
    }
    for (; i != n; i++) {
        av += a[i] * v[i];
        aw += a[i] * w[i];
        bv += b[i] * v[i];
        bw += b[i] * w[i];
    }
    sum[0] = av;
    sum[1] = aw;
    sum[2] = bv;
    sum[3] = bw;
}
"""

_CONV2D = """
/* the channels of a group for two columns; y and z are the same pixel where a and b are the same column */
static void channels${four}_$y(const struct conv *p, int32_t group, const int16_t *a, const int16_t *b, int32_t length,
                        $Y *y, $Y *z)
{
    const int32_t count = p->out_c / p->groups, last = (group + 1) * count, row = $row;
    int32_t o = group * count, sum[4];
    for (; o + 1 < last && a != b; o += 2) {
        const int8_t *weight = p->weight + o * row;
        dot${four}_2x2(a, b, weight, weight + row, (uint32_t)length, sum);
        y[o] = ($Y)finish(p, sum[0], o);
        y[o + 1] = ($Y)finish(p, sum[1], o + 1);
        z[o] = ($Y)finish(p, sum[2], o);
        z[o + 1] = ($Y)finish(p, sum[3], o + 1);
    }
    for (; o < last; o++) {
        const int8_t *weight = p->weight + o * row;
        y[o] = ($Y)finish(p, dot${four}(a, weight, (uint32_t)length), o);
        if (a != b) {
            z[o] = ($Y)finish(p, dot${four}(b, weight, (uint32_t)length), o);
        }
    }
}
"""

_CONV2D_XY = """
static void conv2d${four}_${x}_$y(const struct conv *p, const $X *x, $Y *y, int16_t *columns)
{
    const int32_t pixels = p->out_h * p->out_w, length = p->kernel_h * p->kernel_w * (p->in_c / p->groups);
    int32_t n, group, pixel;
    for (n = 0; n < p->batch; n++) {
        for (group = 0; group < p->groups; group++) {
            for (pixel = 0; pixel < pixels; pixel += 2) {
                const int32_t second = pixel + 1 < pixels;
                int16_t *other = columns + second * length;
                column_$x(p, x, pixel, group, columns);
                if (second) {
                    column_$x(p, x, pixel + 1, group, other);
                }
                channels${four}_$y(p, group, columns, other, length, y + pixel * p->out_c,
                                   y + (pixel + second) * p->out_c);
            }
        }
        x += p->in_h * p->in_w * p->in_c;
        y += pixels * p->out_c;
    }
}
"""

_LANES = """
/* one tap of 16 channels, or fewer */
static SEPARATE void tap${four}_$x(const $X *x, const int8_t *weight, int32_t zero, int32_t lanes,
                                   int32_t *restrict sum)
{
    int32_t k;
    if (lanes == 16) {
        for (k = 0; k < 16; k++) {
            sum[k] += (x[k] - zero) * $weight_k;
        }
    } else {
        for (k = 0; k < lanes; k++) {
            sum[k] += (x[k] - zero) * $weight_k;
        }
    }
}
"""

_DEPTHWISE = """
/* every channel for itself, 16 of them at a time */
static void depthwise2d${four}_${x}_$y(const struct conv *p, const $X *x, $Y *y)
{
    const int32_t pixels = p->out_h * p->out_w, length = $tap_row;
    int32_t n, pixel, c, i, j, k, sum[16];
    for (n = 0; n < p->batch; n++) {
        for (pixel = 0; pixel < pixels; pixel++) {
            const int32_t top = pixel / p->out_w * p->stride_h - p->pad_h;
            const int32_t left = pixel % p->out_w * p->stride_w - p->pad_w;
            for (c = 0; c < p->in_c; c += 16) {
                const int32_t lanes = p->in_c - c < 16 ? p->in_c - c : 16;
                memset(sum, 0, sizeof sum);
                for (i = 0; i < p->kernel_h; i++) {
                    const int32_t row = top + i * p->dilation_h;
                    for (j = 0; j < p->kernel_w; j++) {
                        const int32_t col = left + j * p->dilation_w;
                        if (row >= 0 && row < p->in_h && col >= 0 && col < p->in_w) {
                            tap${four}_$x(x + (row * p->in_w + col) * p->in_c + c,
                                   p->weight + (i * p->kernel_w + j) * length + $lane, p->in_zero, lanes, sum);
                        }
                    }
                }
                for (k = 0; k < lanes; k++) {
                    y[c + k] = ($Y)finish(p, sum[k], c + k);
                }
            }
            y += p->out_c;
        }
        x += p->in_h * p->in_w * p->in_c;
    }
}
"""

_ADD = """
/* A sum of two tensors, each times a multiplier: (a * a_m0 + b * b_m0) / 2**shift. */
struct add {
    int32_t size[AXES], a[AXES], b[AXES];
    int32_t a_zero, b_zero, a_m0, b_m0, shift, out_zero, low, high;
};
"""

_ADD_XY = """
static void add_${a}_${b}_$y(const struct add *p, const $A *a, const $B *b, $Y *y)
{
    const int32_t a_step = p->a[AXES - 1], b_step = p->b[AXES - 1], count = p->size[AXES - 1];
    int32_t at[AXES] = {0}, i;
    do {
        const $A *from_a = a + place(at, p->a);
        const $B *from_b = b + place(at, p->b);
        for (i = 0; i < count; i++) {
            const int64_t left = (int64_t)(from_a[i * a_step] - p->a_zero) * p->a_m0;
            const int64_t right = (int64_t)(from_b[i * b_step] - p->b_zero) * p->b_m0;
            const int64_t sum = rounded_shift(left + right, p->shift$inside_p) + p->out_zero;
            *y++ = ($Y)limited(sum, p->low, p->high);
        }
    } while (next(at, p->size, AXES - 1));
}
"""

_MUL = """
/* A product of two tensors, times $factor. */
struct mul {
    int32_t size[AXES], a[AXES], b[AXES];
    $multiplier
    int32_t a_zero, b_zero, out_zero, low, high;
};
"""

_MUL_XY = """
static void mul_${a}_${b}_$y(const struct mul *p, const $A *a, const $B *b, $Y *y)
{
    const int32_t a_step = p->a[AXES - 1], b_step = p->b[AXES - 1], count = p->size[AXES - 1];
    int32_t at[AXES] = {0}, i;
    do {
        const $A *from_a = a + place(at, p->a);
        const $B *from_b = b + place(at, p->b);
        for (i = 0; i < count; i++) {
            const int32_t product = (from_a[i * a_step] - p->a_zero) * (from_b[i * b_step] - p->b_zero);
            *y++ = ($Y)requantize(product, $by, p->out_zero, p->low, p->high);
        }
    } while (next(at, p->size, AXES - 1));
}
"""

_MATMUL = """
/* Products of matrices: a is [rows][length], b [columns][length] in memory; size and steps are of the batch. */
struct matmul {
    int32_t size[AXES], a[AXES], b[AXES];
    int32_t rows, columns, length;
    $multiplier
    int32_t a_zero, b_zero, out_zero, low, high;
};
"""

_MATMUL_XY = """
static void matmul${wide}_${a}_${b}_$y(const struct matmul *p, const $A *a, const $B *b, $Y *y)
{
    int32_t at[AXES] = {0}, row, col, i;
    do {
        for (row = 0; row < p->rows; row++) {
            for (col = 0; col < p->columns; col++) {
                const $A *left = a + place(at, p->a) + row * p->length;
                const $B *right = b + place(at, p->b) + col * p->length;
                $SUM sum = 0;
                for (i = 0; i < p->length; i++) {
                    sum += ($SUM)(left[i] - p->a_zero) * (right[i] - p->b_zero);
                }
                *y++ = ($Y)$requantize(sum, $by, p->out_zero, p->low, p->high);
            }
        }
    } while (next(at, p->size, AXES));
}
"""

#: name -> text and what it needs; names and needs hold the same ``$x``, ``$y`` as the text
KERNEL_SNIPPETS: dict[str, Snippet] = {
    "conv": Snippet(_CONV, ("requantize",)),
    "separate": Snippet(_SEPARATE),
    "centre_$x": Snippet(_CENTRE, ("separate",)),
    "column_$x": Snippet(_COLUMN, ("conv", "centre_$x")),
    "dot": Snippet(_DOT, ("separate",)),
    "channels${four}_$y": Snippet(_CONV2D, ("conv", "dot${four}")),
    "conv2d${four}_${x}_$y": Snippet(_CONV2D_XY, ("column_$x", "channels${four}_$y")),
    "tap${four}_$x": Snippet(_LANES, ("separate", "$halves")),
    "depthwise2d${four}_${x}_$y": Snippet(_DEPTHWISE, ("conv", "tap${four}_$x")),
    "add": Snippet(_ADD, ("walk", "rounded_shift", "limited")),
    "add_${a}_${b}_$y": Snippet(_ADD_XY, ("add",)),
    "mul": Snippet(_MUL, ("walk", "requantize")),
    "mul_${a}_${b}_$y": Snippet(_MUL_XY, ("mul",)),
    "matmul": Snippet(_MATMUL, ("walk",)),
    "matmul${wide}_${a}_${b}_$y": Snippet(_MATMUL_XY, ("matmul", "$requantize")),
}
