/* Rows normalised, a few at a time, which stay in the nearest cache through all passes over them: (x - mean) / sqrt(var + eps),
 * times a weight, plus a bias; and the gradients of that. Each number goes through the operations of the compositions in
 * cyxcore/functional/norms.py and of their gradients, in their order, and sums are the trees of reduce.inl: the bits are those
 * of the operations one by one. */

#ifndef NORMS_ONCE
#define NORMS_ONCE
enum {
    NORM_BYTES = 16384,      /* of the rows that go together, of one array: half of the nearest cache */
    NORM_BACK_BYTES = 8192,  /* the same where there are three arrays */
    NORM_WORK = 8,           /* operations for each number */
    NORM_ABREAST = LANES > 8 ? 2 : 1, /* rows side by side, so that what belongs to columns is loaded once for them */
    UNITS_OF_A_THREAD = 4    /* of rows whose sums meet at the end */
};
#define LANE_ITSELF(j, h) (j)
/* Two halves of vectors meet, h lanes apart; what was in x[i] is then in the lanes whose number has no bit h, what was in
 * x[i + h] in the others. */
#define MEET(x, h)                                                                                           \
    _Pragma("GCC unroll 8") for (int i = 0; i < (h); i++) {                                                  \
        V a = (x)[i], b = (x)[i + (h)];                                                                      \
        (x)[i] = TWO_VECTORS(a, b, EACH_LANE(LOW_LANE, h)) + TWO_VECTORS(a, b, EACH_LANE(HIGH_LANE, h));     \
    }
#endif

typedef struct {
    const T *x, *g, *weight, *before; /* g: the gradient of the result; weight: of each column, or NULL; before: or NULL */
    T *out;
    T mean, scale, slope; /* slope: by which x - mean goes into the gradient */
    T factor;             /* the one weight of the row, where it has not one for each column; 1 where it has none */
    int64_t ahead;        /* how far on the next rows are, which come from memory while work is on these */
} NAME(norm_row);

/* The first n lanes, and 0 in the others. */
static inline __attribute__((always_inline)) V NAME(kept)(V v, int64_t n) {
    MASK place = {EACH_LANE(LANE_ITSELF, 0)};
    return (V)((MASK)v & (place < (MASK){0} + (int)n));
}

/* What the sums are of: from element i on, of which there are `left`. */
static inline __attribute__((always_inline)) V NAME(norm_x)(NAME(norm_row) row, int64_t i, int64_t left) {
    return NAME(part)(row.x + i, left, 0);
}
static inline __attribute__((always_inline)) V NAME(norm_centred)(NAME(norm_row) row, int64_t i, int64_t left) {
    return NAME(part)(row.x + i, left, 0) - SPLAT(row.mean);
}
static inline __attribute__((always_inline)) V NAME(norm_square)(NAME(norm_row) row, int64_t i, int64_t left) {
    V centred = NAME(norm_centred)(row, i, left);
    return centred * centred;
}
static inline __attribute__((always_inline)) V NAME(norm_square_ahead)(NAME(norm_row) row, int64_t i, int64_t left) {
    __builtin_prefetch(CYX_BEYOND(row.x, i + row.ahead), 0, 2);
    return NAME(norm_square)(row, i, left);
}
/* The gradient of what was normalised: that of the result times the weights. */
static inline __attribute__((always_inline)) V NAME(norm_given)(NAME(norm_row) row, int64_t i, int64_t left) {
    return NAME(part)(row.g + i, left, 0) * (row.weight ? NAME(part)(row.weight + i, left, 0) : SPLAT(row.factor));
}
static inline __attribute__((always_inline)) V NAME(norm_slope)(NAME(norm_row) row, int64_t i, int64_t left) {
    __builtin_prefetch(CYX_BEYOND(row.x, i + row.ahead), 0, 2);
    return NAME(norm_given)(row, i, left) * NAME(norm_centred)(row, i, left);
}
/* The gradient but for the part that goes through the mean; it is left in `out`. */
static inline __attribute__((always_inline)) V NAME(norm_gradient)(NAME(norm_row) row, int64_t i, int64_t left) {
    __builtin_prefetch(CYX_BEYOND(row.g, i + row.ahead), 0, 2);
    V made = NAME(norm_given)(row, i, left) * SPLAT(row.scale) + SPLAT(row.slope) * NAME(norm_centred)(row, i, left);
    NAME(put_part)(row.out + i, made, left);
    return made;
}

/* The sum of one of these over [begin, end) of a row in the lanes of a vector, which NAME(sum_lanes) would fold. */
#define NORM_BLOCK(WHAT, WIDTH)                                                                              \
    static inline __attribute__((always_inline)) V NAME(WHAT##_block##WIDTH)(const NAME(norm_row) * at,      \
                                                                             int64_t begin, int64_t end) {   \
        enum { VECTORS = WIDTH / VN };                                                                       \
        NAME(norm_row) row = *at;                                                                            \
        V lanes[VECTORS];                                                                                    \
        _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++) lanes[v] = (V){0};                        \
        int64_t i = begin;                                                                                   \
        for (; i + WIDTH <= end; i += WIDTH) _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++)      \
                lanes[v] = lanes[v] + NAME(WHAT)(row, i + v * VN, VN);                                       \
        if (i < end) _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++) {                            \
                int64_t left = end - i - v * VN;                                                             \
                V next = NAME(WHAT)(row, i + v * VN, left);                                                  \
                lanes[v] = lanes[v] + (left < VN ? NAME(kept)(next, left) : next);                           \
            }                                                                                                \
        _Pragma("GCC unroll 8") for (int half = VECTORS / 2; half; half /= 2)                                \
            _Pragma("GCC unroll 16") for (int v = 0; v < half; v++) lanes[v] = lanes[v] + lanes[v + half];   \
        return lanes[0];                                                                                     \
    }

#define NORM_SUM(WHAT)                                                                                       \
    NORM_BLOCK(WHAT, 16)                                                                                     \
    NORM_BLOCK(WHAT, 64)                                                                                     \
    static inline __attribute__((always_inline)) V NAME(WHAT##_lanes)(const NAME(norm_row) * row, int64_t n) { \
        if (n <= FEW_TERMS) return NAME(WHAT##_block16)(row, 0, n);                                          \
        if (n <= RUN_BLOCK) return NAME(WHAT##_block64)(row, 0, n);                                          \
        T tree[TREE_DEPTH];                                                                                  \
        int height = 0;                                                                                      \
        for (int64_t i = 0, count = 0; i < n; i += RUN_BLOCK, count++)                                       \
            height = NAME(sum_push)(tree, height, count,                                                     \
                                    NAME(sum_lanes)(NAME(WHAT##_block64)(row, i, n - i < RUN_BLOCK ? n : i + RUN_BLOCK))); \
        return (V){NAME(sum_finish)(tree, height)};                                                          \
    }                                                                                                        \
    static void NAME(WHAT##_sums)(const NAME(norm_row) * rows, int64_t count, int64_t n, V *sums) {          \
        for (int64_t r = 0; r < count; r++) sums[r] = NAME(WHAT##_lanes)(rows + r, n);                       \
    }
NORM_SUM(norm_x)
NORM_SUM(norm_square)
NORM_SUM(norm_square_ahead)
NORM_SUM(norm_slope)
NORM_SUM(norm_gradient)

/* The sums of `count` rows, of what their lanes hold, in as many lanes; folded as sum_lanes() does. */
static inline V NAME(norm_folded)(V *lanes, int64_t count) {
    if (count > 4) {
        /* Without a branch for each it would be a memset, which takes as long as a row. */
        _Pragma("GCC unroll 16") for (int r = 0; r < VN; r++) if (r >= count) lanes[r] = (V){0};
#if VN > 8
        MEET(lanes, 8)
#endif
#if VN > 4
        MEET(lanes, 4)
#endif
    } else {
        _Pragma("GCC unroll 4") for (int r = 0; r < (VN < 4 ? VN : 4); r++) {
            if (r >= count) lanes[r] = (V){0};
            if (VN > 8) FOLD_LANES(lanes[r], VN > 8 ? 8 : 1, ADD_V)
            if (VN > 4) FOLD_LANES(lanes[r], VN > 4 ? 4 : 1, ADD_V)
        }
    }
#if VN > 2
    MEET(lanes, 2)
#endif
    MEET(lanes, 1)
    return lanes[0];
}

/* Of each row. */
typedef struct {
    T mean[VN], std[VN], scale[VN];
} NAME(norm_stats);

static inline void NAME(norm_scales)(NAME(norm_stats) * stats, V var, double eps) {
    V with = var + SPLAT((T)eps);
    INDEPENDENT for (int r = 0; r < VN; r++)
        stats->std[r] = sizeof(T) == sizeof(float) ? (T)__builtin_sqrtf((float)with[r]) : (T)__builtin_sqrt((double)with[r]);
    INDEPENDENT for (int r = 0; r < VN; r++) stats->scale[r] = 1 / stats->std[r];
}

static inline int64_t NAME(norm_together)(int64_t n, int64_t bytes) {
    int64_t count = VN;
    while (count > 1 && count * n * (int64_t)sizeof(T) > bytes) count /= 2;
    return count;
}

/* Some rows, side by side, normalised and weighed column by column. */
static inline __attribute__((always_inline)) void NAME(norm_apply)(const NAME(norm_row) * at, const int rows, const cyx_norm *norm,
                                                                   const int weighed, const int shifted) {
    NAME(norm_row) row[NORM_ABREAST];
    const T *weight = norm->weight, *bias = norm->bias;
    int64_t i = 0, n = norm->n;
    for (int r = 0; r < rows; r++) row[r] = at[r];
#define NORM_APPLY(left)                                                                                     \
    {                                                                                                        \
        V factor, shift;                                                                                     \
        if (weighed) factor = NAME(part)(weight + i, left, 0);                                               \
        if (shifted) shift = NAME(part)(bias + i, left, 0);                                                  \
        _Pragma("GCC unroll 2") for (int r = 0; r < rows; r++) {                                             \
            V made = NAME(norm_centred)(row[r], i, left) * SPLAT(row[r].scale);                              \
            if (weighed) made = made * factor;                                                               \
            if (shifted) made = made + shift;                                                                \
            NAME(put_part)(row[r].out + i, made, left);                                                      \
        }                                                                                                    \
    }
    _Pragma("GCC unroll 2") for (; i + VN <= n; i += VN) NORM_APPLY(VN)
    if (i < n) NORM_APPLY(n - i)
#undef NORM_APPLY
}

#define NORM_WRITE(weighed, shifted)                                                                         \
    for (; r + NORM_ABREAST <= count; r += NORM_ABREAST)                                                     \
        NAME(norm_apply)(rows + r, NORM_ABREAST, norm, weighed, shifted);                                    \
    for (; r < count; r++) NAME(norm_apply)(rows + r, 1, norm, weighed, shifted);

static __attribute__((noinline)) void NAME(norm_write)(const NAME(norm_row) * rows, int64_t count, const cyx_norm *norm) {
    int64_t r = 0;
    if (norm->weight && norm->bias) {
        NORM_WRITE(1, 1)
    } else if (norm->weight) {
        NORM_WRITE(1, 0)
    } else if (norm->bias) {
        NORM_WRITE(0, 1)
    } else {
        NORM_WRITE(0, 0)
    }
}

/* A run of one row with one number each as its weight and its bias: first up to where lines of the cache begin. */
static inline void NAME(norm_apply_run)(NAME(norm_row) row, V weight, V bias, int64_t begin, int64_t end) {
#define NORM_RUN(left) NAME(put_part)(row.out + i, NAME(norm_centred)(row, i, left) * SPLAT(row.scale) * weight + bias, left)
    int64_t i = begin, head = (int64_t)(-(uintptr_t)(row.out + begin) / sizeof(T) % VN);
    if (head) {
        if (head > end - begin) head = end - begin;
        NORM_RUN(head);
        i += head;
    }
    _Pragma("GCC unroll 4") for (; i + VN <= end; i += VN) NORM_RUN(VN);
    if (i < end) NORM_RUN(end - i);
#undef NORM_RUN
}

/* Row r, whose runs have one weight each. A weight that is not there is 1, a bias -0: neither changes a bit. */
static __attribute__((noinline)) void NAME(norm_write_runs)(const cyx_norm *norm, const NAME(norm_row) * row, int64_t r) {
    const T *weight = norm->weight, *bias = norm->bias;
    int64_t inner = norm->inner, runs = norm->n / inner, c = r % (norm->channels / runs) * runs;
    for (int64_t k = 0; k < runs; k++, c++)
        NAME(norm_apply_run)(*row, SPLAT(weight ? weight[c] : 1), SPLAT(bias ? bias[c] : (T)-0.0), k * inner, (k + 1) * inner);
}

static void NAME(norm_body)(void *context, int64_t begin, int64_t end) {
    const cyx_norm *norm = context;
    int64_t n = norm->n, together = NAME(norm_together)(n, NORM_BYTES);
    NAME(norm_row) rows[VN];
    NAME(norm_stats) stats = {{0}, {0}, {0}};
    V lanes[VN], terms = SPLAT((T)n);
    for (int64_t first = begin, count; first < end; first += count) {
        count = end - first < together ? end - first : together;
        for (int64_t r = 0; r < count; r++) {
            rows[r].x = (const T *)norm->x + (first + r) * n, rows[r].out = (T *)norm->out + (first + r) * n;
            rows[r].mean = 0, rows[r].ahead = together * n;
        }
        if (norm->mean) {
            NAME(norm_x_sums)(rows, count, n, lanes);
            *(V *)stats.mean = NAME(norm_folded)(lanes, count) / terms;
            for (int64_t r = 0; r < count; r++) rows[r].mean = stats.mean[r];
            NAME(put_part)((T *)norm->mean + first, *(V *)stats.mean, count);
        }
        if (norm->mean)
            NAME(norm_square_ahead_sums)(rows, count, n, lanes);
        else /* the one pass of squares waits for memory anyway */
            NAME(norm_square_sums)(rows, count, n, lanes);
        V var = NAME(norm_folded)(lanes, count) / terms;
        NAME(put_part)((T *)norm->var + first, var, count);
        NAME(norm_scales)(&stats, var, norm->eps);
        for (int64_t r = 0; r < count; r++) rows[r].scale = stats.scale[r];
        if (norm->inner && (norm->weight || norm->bias))
            for (int64_t r = 0; r < count; r++) NAME(norm_write_runs)(norm, &rows[r], first + r);
        else
            NAME(norm_write)(rows, count, norm);
    }
}

/* The gradient of a row, of whose runs each has a weight, times these, to `out`. */
static void NAME(norm_weigh)(const cyx_norm *norm, NAME(norm_row) row, int64_t r) {
    int64_t inner = norm->inner, runs = norm->n / inner, c = r % (norm->channels / runs) * runs;
    for (int64_t k = 0; k < runs; k++, c++, row.g += inner, row.out += inner) {
        V weight = SPLAT(((const T *)norm->weight)[c]);
        for (int64_t i = 0; i < inner; i += VN) {
            __builtin_prefetch(CYX_BEYOND(row.g, i + row.ahead), 0, 2);
            NAME(put_part)(row.out + i, NAME(part)(row.g + i, inner - i, 0) * weight, inner - i);
        }
    }
}

/* What is left of the gradient, behind NAME(norm_gradient): the part that goes through the mean, which is one number. */
static inline void NAME(norm_finish)(const NAME(norm_row) * row, V through_mean, int64_t n, int before_first) {
    T *out = row->out;
    const T *before = row->before;
    if (!before) {
        int64_t i = 0;
        _Pragma("GCC unroll 4") for (; i + VN <= n; i += VN) {
            __builtin_prefetch(CYX_BEYOND(out, i + row->ahead), 1, 2);
            *(V *)(out + i) = *(V *)(out + i) + through_mean;
        }
        if (i < n) NAME(put_part)(out + i, NAME(part)(out + i, n - i, 0) + through_mean, n - i);
    } else if (before_first)
        for (int64_t i = 0; i < n; i += VN)
            NAME(put_part)(out + i, NAME(part)(before + i, n - i, 0) + NAME(part)(out + i, n - i, 0) + through_mean, n - i);
    else
        for (int64_t i = 0; i < n; i += VN)
            NAME(put_part)(out + i, NAME(part)(before + i, n - i, 0) + (NAME(part)(out + i, n - i, 0) + through_mean), n - i);
}

/* The gradient of a row from whose numbers no mean was taken. */
static inline void NAME(norm_uncentred)(const NAME(norm_row) * at, int64_t n) {
    NAME(norm_row) row = *at;
    for (int64_t i = 0; i < n; i += VN) {
        V made = NAME(norm_given)(row, i, n - i) * SPLAT(row.scale);
        if (row.before) made = NAME(part)(row.before + i, n - i, 0) + made;
        NAME(put_part)(row.out + i, made + SPLAT(row.slope) * NAME(part)(row.x + i, n - i, 0), n - i);
    }
}

/* Sums of columns begin where vectors do. */
static inline int64_t NAME(norm_pitch)(int64_t n) { return (n + VN - 1) / VN * VN; }

/* Of some rows side by side: what the slopes are sums of, and to the sums of columns what the rows add, of the gradient times
 * what was normalised, and of the gradient. One pass for the three: it is the one that waits for memory. */
static inline __attribute__((always_inline)) void NAME(norm_slopes_part)(const NAME(norm_row) * row, const int rows,
                                                                         T *weighed, T *sums, int64_t i, int64_t left,
                                                                         V *lanes, const int apart) {
    V weight = rows > 1 || row->weight ? NAME(part)(row->weight + i, left, 0) : SPLAT((T)1);
    V of_weight = NAME(part)(weighed + i, left, 0), of_bias = NAME(part)(sums + i, left, 0);
    _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {
        __builtin_prefetch(CYX_BEYOND(row[r].x, i + row[r].ahead), 0, 2);
        V g = NAME(part)(row[r].g + i, left, 0), centred = NAME(norm_centred)(row[r], i, left);
        IN_VECTOR_REGISTER(g);
        V next = g * weight * centred;
        of_weight = of_weight + g * (centred * SPLAT(row[r].scale)), of_bias = of_bias + g;
        lanes[r * apart] = lanes[r * apart] + (left < VN ? NAME(kept)(next, left) : next);
    }
    NAME(put_part)(weighed + i, of_weight, left);
    NAME(put_part)(sums + i, of_bias, left);
}

static inline __attribute__((always_inline)) void NAME(norm_slopes_block)(const NAME(norm_row) * at, const int rows,
                                                                          const int width, T *weighed, T *sums,
                                                                          int64_t begin, int64_t end, V *found) {
    enum { MOST = 64 / VN };
    NAME(norm_row) row[NORM_ABREAST];
    V lanes[NORM_ABREAST * MOST];
    const int vectors = width / VN;
    for (int r = 0; r < rows; r++) row[r] = at[r];
    _Pragma("GCC unroll 32") for (int v = 0; v < NORM_ABREAST * MOST; v++) lanes[v] = (V){0};
    int64_t i = begin;
    for (; i + width <= end; i += width) _Pragma("GCC unroll 16") for (int v = 0; v < vectors; v++)
            NAME(norm_slopes_part)(row, rows, weighed, sums, i + v * VN, VN, lanes + v, MOST);
    if (i < end) _Pragma("GCC unroll 16") for (int v = 0; v < vectors; v++) {
            int64_t left = end - i - v * VN;
            if (left > 0) NAME(norm_slopes_part)(row, rows, weighed, sums, i + v * VN, left, lanes + v, MOST);
        }
    for (int r = 0; r < rows; r++) {
        _Pragma("GCC unroll 8") for (int half = vectors / 2; half; half /= 2)
            _Pragma("GCC unroll 16") for (int v = r * MOST; v < r * MOST + half; v++) lanes[v] = lanes[v] + lanes[v + half];
        found[r] = lanes[r * MOST];
    }
}

/* The same of whole rows. found: the slopes, as NAME(norm_slope_sums) leaves them. */
static inline __attribute__((always_inline)) void NAME(norm_slopes_rows)(const NAME(norm_row) * at, const int rows,
                                                                         int64_t n, T *weighed, T *sums, V *found) {
    if (n <= FEW_TERMS) {
        NAME(norm_slopes_block)(at, rows, 16, weighed, sums, 0, n, found);
    } else if (n <= RUN_BLOCK) {
        NAME(norm_slopes_block)(at, rows, 64, weighed, sums, 0, n, found);
    } else {
        T tree[NORM_ABREAST][TREE_DEPTH];
        int height[NORM_ABREAST] = {0};
        for (int64_t i = 0, count = 0; i < n; i += RUN_BLOCK, count++) {
            NAME(norm_slopes_block)(at, rows, 64, weighed, sums, i, n - i < RUN_BLOCK ? n : i + RUN_BLOCK, found);
            for (int r = 0; r < rows; r++)
                height[r] = NAME(sum_push)(tree[r], height[r], count, NAME(sum_lanes)(found[r]));
        }
        for (int r = 0; r < rows; r++) found[r] = (V){NAME(sum_finish)(tree[r], height[r])};
    }
}

/* from: the rows are the first of their columns. */
static __attribute__((noinline)) void NAME(norm_slopes)(const NAME(norm_row) * rows, int64_t count, int64_t n, T *both,
                                                        int from, V *found) {
    int64_t r = 0, pitch = NAME(norm_pitch)(n);
    for (int64_t i = 0; from && i < 2 * pitch; i += VN) *(V *)(both + i) = SPLAT((T)-0.0); /* which leaves a sum its sign */
    for (; rows->weight && r + NORM_ABREAST <= count; r += NORM_ABREAST)
        NAME(norm_slopes_rows)(rows + r, NORM_ABREAST, n, both, both + pitch, found + r);
    for (; r < count; r++) NAME(norm_slopes_rows)(rows + r, 1, n, both, both + pitch, found + r);
}

/* What elements [i, i + left) of a run add to its sums: of the gradient times what was normalised, of the gradient, and what the
 * slope is the sum of. */
static inline __attribute__((always_inline)) void NAME(norm_run_part)(NAME(norm_row) row, int64_t i, int64_t left, V *weighed,
                                                                      V *sum, V *slope) {
    V g = NAME(part)(row.g + i, left, 0), centred = NAME(norm_centred)(row, i, left);
    IN_VECTOR_REGISTER(g);
    V first = g * (centred * SPLAT(row.scale)), third = g * SPLAT(row.factor) * centred;
    __builtin_prefetch(CYX_BEYOND(row.x, i + row.ahead), 0, 2);
    if (left < VN) first = NAME(kept)(first, left), third = NAME(kept)(third, left);
    *weighed = *weighed + first, *sum = *sum + g, *slope = *slope + third;
}

/* Of every `width` elements the first `abreast` vectors: what their lanes add up to. The last part has a loop of its own: with it
 * in theirs, sums would go through memory. */
static inline __attribute__((always_inline)) void NAME(norm_run_sweep)(NAME(norm_row) row, const int width, const int abreast,
                                                                       int64_t begin, int64_t end, V *weighed, V *sum, V *slope) {
    enum { MOST = 4 };
    V lanes[3][MOST];
    for (int k = 0; k < 3; k++) _Pragma("GCC unroll 4") for (int v = 0; v < MOST; v++) lanes[k][v] = (V){0};
    int64_t i = begin;
    for (; i + width <= end; i += width) _Pragma("GCC unroll 4") for (int v = 0; v < abreast; v++)
            NAME(norm_run_part)(row, i + v * VN, VN, &lanes[0][v], &lanes[1][v], &lanes[2][v]);
    if (i < end) _Pragma("GCC unroll 4") for (int v = 0; v < abreast; v++) {
            int64_t left = end - i - v * VN;
            if (left > 0) NAME(norm_run_part)(row, i + v * VN, left, &lanes[0][v], &lanes[1][v], &lanes[2][v]);
        }
    _Pragma("GCC unroll 4") for (int v = 0; v < abreast; v++)
        weighed[v] = lanes[0][v], sum[v] = lanes[1][v], slope[v] = lanes[2][v];
}

/* The three of a run, each in the lanes of a vector: by sweeps over as many of the vectors as have their sums in registers. */
static inline __attribute__((always_inline)) void NAME(norm_run_block)(NAME(norm_row) row, const int width,
                                                                       int64_t begin, int64_t end, V *found) {
    enum { MOST = 64 / VN };
    V lanes[3][MOST];
    const int vectors = width / VN, abreast = vectors < 4 ? vectors : 4;
    for (int v = 0; v < vectors; v += abreast)
        NAME(norm_run_sweep)(row, width, abreast, begin + v * VN, end, lanes[0] + v, lanes[1] + v, lanes[2] + v);
    for (int k = 0; k < 3; k++) {
        _Pragma("GCC unroll 8") for (int half = vectors / 2; half; half /= 2)
            _Pragma("GCC unroll 16") for (int v = 0; v < half; v++) lanes[k][v] = lanes[k][v] + lanes[k][v + half];
        found[k] = lanes[k][0];
    }
}

static inline __attribute__((always_inline)) void NAME(norm_run_sums)(NAME(norm_row) row, int64_t n, V *found) {
    if (n <= FEW_TERMS) {
        NAME(norm_run_block)(row, 16, 0, n, found);
    } else if (n <= RUN_BLOCK) {
        NAME(norm_run_block)(row, 64, 0, n, found);
    } else {
        T tree[3][TREE_DEPTH];
        int height[3] = {0};
        for (int64_t i = 0, count = 0; i < n; i += RUN_BLOCK, count++) {
            NAME(norm_run_block)(row, 64, i, n - i < RUN_BLOCK ? n : i + RUN_BLOCK, found);
            for (int k = 0; k < 3; k++) height[k] = NAME(sum_push)(tree[k], height[k], count, NAME(sum_lanes)(found[k]));
        }
        for (int k = 0; k < 3; k++) found[k] = (V){NAME(sum_finish)(tree[k], height[k])};
    }
}

/* The sums of each run of some rows, of the first two, to their places in `partial`, and the third to `slopes`, in lanes, where
 * a row is one run. */
static void NAME(norm_add_runs)(const cyx_norm *norm, const NAME(norm_row) * rows, int64_t first, int64_t count, V *slopes) {
    int64_t inner = norm->inner, runs = norm->n / inner, run = 0;
    T *to = (T *)norm->partial + first * runs;
    V weighed[VN], sums[VN], found[3];
    NAME(norm_row) row = *rows;
    for (int64_t k = 0, all = count * runs; k < all;) {
        int64_t together = all - k < VN ? all - k : VN;
        for (int64_t j = 0; j < together; j++, k++) {
            NAME(norm_run_sums)(row, inner, found);
            weighed[j] = found[0], sums[j] = found[1];
            if (runs == 1) slopes[k] = found[2];
            if (++run < runs)
                row.g += inner, row.x += inner;
            else if (k + 1 < all)
                row = *++rows, run = 0;
        }
        NAME(put_part)(to, NAME(norm_folded)(weighed, together), together);
        NAME(put_part)(to + norm->rows * runs, NAME(norm_folded)(sums, together), together);
        to += together;
    }
}

/* The gradients of rows [begin, end); those of the weights are added up in `tree`, where it is not NULL, as reduce_tile()
 * does: the rows are a subtree. */
static void NAME(norm_back_rows)(const cyx_norm *norm, int64_t begin, int64_t end, T *tree) {
    int64_t n = norm->n, together = NAME(norm_together)(n, NORM_BACK_BYTES), blocks = 0, height = 0, both = 2 * NAME(norm_pitch)(n);
    int one_run = norm->inner == n;
    if (together > BLOCK_ROWS) together = BLOCK_ROWS;
    NAME(norm_row) rows[VN];
    NAME(norm_stats) stats = {{0}, {0}, {0}};
    V lanes[VN], terms = SPLAT((T)n);
    for (int64_t first = begin, count; first < end; first += count) {
        count = end - first < together ? end - first : together;
        if (norm->mean) *(V *)stats.mean = NAME(part)((const T *)norm->mean + first, count, 0);
        NAME(norm_scales)(&stats, NAME(part)((const T *)norm->var + first, count, 0), norm->eps);
        for (int64_t r = 0; r < count; r++) {
            NAME(norm_row) *row = &rows[r];
            int64_t at = (first + r) * n;
            row->x = (const T *)norm->x + at, row->g = (const T *)norm->g + at, row->out = (T *)norm->out + at;
            row->before = norm->before ? (const T *)norm->before + at : NULL;
            row->ahead = together * n, row->mean = stats.mean[r], row->scale = stats.scale[r];
            row->weight = norm->inner ? NULL : norm->weight;
            row->factor = norm->weight && one_run ? ((const T *)norm->weight)[(first + r) % norm->channels] : 1;
        }
        if (tree) {
            int64_t done = first - begin;
            NAME(norm_slopes)(rows, count, n, tree + height * both, done % BLOCK_ROWS == 0, lanes);
            if ((done + count) % BLOCK_ROWS == 0 || first + count == end) {
                for (int64_t carry = blocks++; carry & 1; carry >>= 1, height--)
                    NAME(sum_columns)(tree + (height - 1) * both, tree + height * both, both);
                height++;
            }
        } else if (norm->partial) {
            NAME(norm_add_runs)(norm, rows, first, count, lanes);
        }
        if (!norm->out) continue;
        if (norm->weight && norm->inner && !one_run)
            for (int64_t r = 0; r < count; r++) NAME(norm_weigh)(norm, rows[r], first + r), rows[r].g = rows[r].out;
        if (!tree && !(norm->partial && one_run)) NAME(norm_slope_sums)(rows, count, n, lanes);
        V std = *(V *)stats.std, slope = NAME(norm_folded)(lanes, count);
        slope = -(slope / std * *(V *)stats.scale) * SPLAT((T)0.5) / std / terms * SPLAT((T)2);
        for (int64_t r = 0; r < count; r++) {
            rows[r].slope = slope[r];
            if (!norm->mean) NAME(norm_uncentred)(&rows[r], n);
        }
        if (!norm->mean) continue;
        NAME(norm_gradient_sums)(rows, count, n, lanes);
        V through_mean = -NAME(norm_folded)(lanes, count) / terms;
        for (int64_t r = 0; r < count; r++) NAME(norm_finish)(&rows[r], SPLAT(through_mean[r]), n, norm->before_first);
    }
    if (tree)
        while (--height > 0) NAME(sum_columns)(tree + (height - 1) * both, tree + height * both, both);
}

static void NAME(norm_back_body)(void *context, int64_t begin, int64_t end) {
    NAME(norm_back_rows)(context, begin, end, NULL);
}

/* Units of rows, each with sums of columns. */
static void NAME(norm_back_units)(void *context, int64_t begin, int64_t end) {
    cyx_norm *norm = context;
    int64_t both = 2 * NAME(norm_pitch)(norm->n), levels = 2;
    for (int64_t rows = BLOCK_ROWS; rows < norm->unit; rows *= 2) levels++;
    T *tree = cyx_scratch(1, sizeof(T) * (size_t)(both * levels));
    if (!tree) {
        norm->no_memory = 1;
        return;
    }
    for (int64_t u = begin; u < end; u++) {
        int64_t first = u * norm->unit, last = norm->rows - first < norm->unit ? norm->rows : first + norm->unit;
        NAME(norm_back_rows)(norm, first, last, tree);
        memcpy((T *)norm->partial + u * both, tree, sizeof(T) * (size_t)both);
    }
}

static cyx_status NAME(norm_by_columns)(cyx_norm *norm) {
    int64_t n = norm->n, both = 2 * NAME(norm_pitch)(n), least = cyx_threads() > 1 ? UNITS_OF_A_THREAD * cyx_threads() : 1;
    for (norm->unit = BLOCK_ROWS; norm->unit * least < norm->rows; norm->unit *= 2) {}
    int64_t units = (norm->rows + norm->unit - 1) / norm->unit;
    T *partial = norm->partial = cyx_scratch(0, sizeof(T) * (size_t)(both * units));
    if (!partial) return CYX_NO_MEMORY;
    cyx_parallel(units, 1, NAME(norm_back_units), norm);
    if (norm->no_memory) return CYX_NO_MEMORY;
    int64_t height = 0;
    for (int64_t u = 0; u < units; u++) {
        if (u != height) memcpy(partial + height * both, partial + u * both, sizeof(T) * (size_t)both);
        for (int64_t carry = u; carry & 1; carry >>= 1, height--)
            NAME(sum_columns)(partial + (height - 1) * both, partial + height * both, both);
        height++;
    }
    while (--height > 0) NAME(sum_columns)(partial + (height - 1) * both, partial + height * both, both);
    if (norm->of_weight) memcpy(norm->of_weight, partial, sizeof(T) * (size_t)n);
    if (norm->of_bias) memcpy(norm->of_bias, partial + both / 2, sizeof(T) * (size_t)n);
    return CYX_OK;
}

static void NAME(norm_join_runs)(const cyx_norm *norm, const T *runs, T *out) {
    int64_t channels = norm->channels, images = norm->rows * norm->n / norm->inner / channels;
    T tree[TREE_DEPTH];
    for (int64_t c = 0; out && c < channels; c++) {
        int height = 0;
        for (int64_t i = 0; i < images; i++) height = NAME(sum_push)(tree, height, i, runs[i * channels + c]);
        out[c] = NAME(sum_finish)(tree, height);
    }
}

/* Runs of channels, each less a number, times another one, plus a third. */
static void NAME(norm_given_body)(void *context, int64_t begin, int64_t end) {
    const cyx_norm *norm = context;
    const T *bias = norm->bias, *mean = norm->mean, *scale = norm->var;
    int64_t n = norm->n;
    T *weighed = norm->partial, *sums = weighed ? weighed + norm->rows : NULL;
    for (int64_t r = begin, c = begin % norm->channels; r < end; r++, c = c + 1 < norm->channels ? c + 1 : 0) {
        NAME(norm_row) row = {.x = (const T *)norm->x + r * n, .mean = mean[c], .scale = scale[c], .factor = 1};
        if (norm->out) row.out = (T *)norm->out + r * n;
        if (!norm->g) {
            NAME(norm_apply_run)(row, SPLAT((T)1), SPLAT(bias ? bias[c] : (T)-0.0), 0, n);
            continue;
        }
        row.g = (const T *)norm->g + r * n;
        if (weighed) weighed[r] = NAME(sum_lanes)(NAME(norm_slope_lanes)(&row, n)), sums[r] = NAME(sum_run)(row.g, n);
        if (!norm->out) continue;
        const T *before = norm->before ? (const T *)norm->before + r * n : NULL;
        for (int64_t i = 0; i < n; i += VN) {
            V made = NAME(part)(row.g + i, n - i, 0) * SPLAT(row.scale);
            if (before) made = NAME(part)(before + i, n - i, 0) + made;
            NAME(put_part)(row.out + i, made, n - i);
        }
    }
}

static cyx_status NAME(norm_there)(cyx_norm *norm) {
    norm->partial = NULL;
    cyx_parallel(norm->rows, cyx_grain(norm->rows, NORM_WORK * (double)norm->n, CYX_LEAST_WORK),
                 norm->given ? NAME(norm_given_body) : NAME(norm_body), norm);
    return CYX_OK;
}

static cyx_status NAME(norm_back)(cyx_norm *norm) {
    int adds = norm->of_weight || norm->of_bias;
    norm->partial = NULL;
    if (adds && !norm->inner) return NAME(norm_by_columns)(norm);
    int64_t runs = adds ? norm->rows * norm->n / norm->inner : 0;
    if (adds && !(norm->partial = cyx_scratch(0, sizeof(T) * (size_t)(2 * runs)))) return CYX_NO_MEMORY;
    cyx_parallel(norm->rows, cyx_grain(norm->rows, NORM_WORK * (double)norm->n, CYX_LEAST_WORK),
                 norm->given ? NAME(norm_given_body) : NAME(norm_back_body), norm);
    if (!adds) return CYX_OK;
    NAME(norm_join_runs)(norm, norm->partial, norm->of_weight);
    NAME(norm_join_runs)(norm, (const T *)norm->partial + runs, norm->of_bias);
    return CYX_OK;
}
