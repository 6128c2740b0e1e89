/* softmax, log_softmax, and the cross-entropy of class labels with its gradient, a row or some columns at a time; softplus. */

/* out = e**(x - shift). Whole chunks of 16, the last one padded: a row of ten costs one vector, not ten
 * scalars. */
static void NAME(exp_row)(T *out, const T *x, T shift, int64_t n) {
#if defined(EXP_ROW)
    if (sizeof(T) == sizeof(float)) {
        EXP_ROW((float *)out, (const float *)x, (float)shift, n);
        return;
    }
#endif
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        INDEPENDENT for (int j = 0; j < 16; j++) out[i + j] = NAME(exp)(x[i + j] - shift);
    if (i == n) return;
    T rest[16] = {0};
    memcpy(rest, x + i, sizeof(T) * (size_t)(n - i));
    INDEPENDENT for (int j = 0; j < 16; j++) rest[j] = NAME(exp)(rest[j] - shift);
    memcpy(out + i, rest, sizeof(T) * (size_t)(n - i));
}

/* out = e**(x - shift), each less a number of its own. */
static inline void NAME(exp_less)(T *out, const T *x, const T *shift, int64_t n) {
#if defined(EXP_LESS)
    if (sizeof(T) == sizeof(float)) {
        EXP_LESS((float *)out, (const float *)x, (const float *)shift, n);
        return;
    }
#endif
    INDEPENDENT for (int64_t i = 0; i < n; i++) out[i] = NAME(exp)(x[i] - shift[i]);
}

static void NAME(log_row)(T *x, int64_t n) {
#if defined(LOG_ROW)
    if (sizeof(T) == sizeof(float)) {
        LOG_ROW((float *)x, (const float *)x, 0, n);
        return;
    }
#endif
    INDEPENDENT for (int64_t i = 0; i < n; i++) x[i] = NAME(log)(x[i]);
}

#ifndef SOFTMAX_ONCE
#define SOFTMAX_ONCE
#define JOINED(x) x##_row
#define ROW_OF(x) JOINED(x) /* after x is what it stands for */
#define BINARY_ROWS(...) CYX_BINARY_ROWS(__VA_ARGS__)
enum {
    LOGS_AT_ONCE = 64,
    VANISHING = 1000, /* e**-1000 is 0 in any type */
    MOST_CLASSES = 48, /* of rows of logits that go side by side, one in each lane */
    FEW_TERMS = 128, /* of a sum in LANES_FOLDED lanes; more have LANES_OF_RUN: reduce.inl */
    LANES_FOLDED = 16,
    LANES_OF_RUN = 64,
    MOST_COLUMN = 8192, /* numbers of a column that goes in a lane instead of becoming a row */
    COLUMNS_NEAR = 4096, /* vectors of columns: half of the second cache, with what they are made of */
    VECTORS_ABREAST = 8, /* of columns */
    LONG_ABREAST = 4,    /* of columns of more than FEW_TERMS, whose many lanes stay in the nearest cache */
    GRADIENTS_ABREAST = 16, /* the same, of which nothing is kept near: as memory is fetched ahead */
    GRADIENTS_AHEAD = 8, /* rows that are fetched before they are read */
    GRADIENTS_NEAR = 128, /* rows that are still in the second cache when they are read again */
    MOST_TURNED = 1 << 16, /* elements */
    SOFTMAX_ROWS = 8,
    SOFTPLUS_NEAR = 512, /* elements */
    SOFTMAX_NEAR = 2048 /* elements of the rows that are made together: with what comes out they stay in the nearest cache */
};
#endif

/* Behind the last element whose power is not 0, in whole chunks of 16: a mask hides the end of most rows of attention. */
static int64_t NAME(shown)(const T *x, T greatest, int64_t n) {
    const V limit = SPLAT(greatest - VANISHING);
    for (; n % 16 == 0 && n >= 16; n -= 16) {
#if defined(NOT_LESS)
        int any = 0;
        _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += VN) any |= NOT_LESS(*(const V *)(x + n - 16 + i), limit);
        if (any) return n;
#else
        MASK near = (MASK){0};
        _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += VN) near |= (MASK) ~(*(const V *)(x + n - 16 + i) < limit);
        for (int i = 0; i < VN; i++)
            if (near[i]) return n;
#endif
    }
    return n;
}

/* lanes += e**(x - shift), `count` vectors at a time, as often as they go whole into n numbers. Returns how many numbers that
 * were. The powers go to `out`, or where they are not kept to its beginning, over each other. */
static inline __attribute__((always_inline)) int64_t NAME(add_powers)(V *lanes, T *out, const T *x, T shift, int64_t n,
                                                                      const int count, const int kept) {
    int64_t i = 0;
    for (; i + count * VN <= n; i += count * VN) {
#if defined(VECTOR_MATH)
        if (sizeof(T) == sizeof(float)) {
            _Pragma("GCC unroll 4") for (int v = 0; v < count; v++) {
                __m512 made = exp_16(_mm512_sub_ps(_mm512_loadu_ps((const float *)x + i + v * VN), ALL((float)shift)));
                if (kept) _mm512_storeu_ps((float *)out + i + v * VN, made);
                lanes[v] += (V)made;
            }
            continue;
        }
#endif
        T *made = out + (kept ? i : 0);
        NAME(exp_row)(made, x + i, shift, count * VN);
        _Pragma("GCC unroll 16") for (int v = 0; v < count; v++) lanes[v] += *(const V *)(made + v * VN);
    }
    return i;
}

/* The sum, in the order of sum_block16() or sum_block64(), of e**(x - shift) of n numbers. */
#define SUM_POWERS(WIDTH)                                                                                    \
    static inline __attribute__((always_inline)) T NAME(sum_powers##WIDTH)(T *out, const T *x, T shift,      \
                                                                           int64_t n, const int kept) {      \
        enum { VECTORS = WIDTH / VN };                                                                       \
        V lanes[VECTORS];                                                                                    \
        for (int v = 0; v < VECTORS; v++) lanes[v] = (V){0};                                                 \
        int64_t i = NAME(add_powers)(lanes, out, x, shift, n, VECTORS, kept);                                \
        if (i < n) {                                                                                         \
            T *made = out + (kept ? i : 0);                                                                  \
            NAME(exp_row)(made, x + i, shift, n - i);                                                        \
            _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++) lanes[v] +=                           \
                NAME(part)(made + v * VN, n - i - v * VN, 0);                                                \
        }                                                                                                    \
        _Pragma("GCC unroll 8") for (int half = VECTORS / 2; half; half /= 2)                                \
            _Pragma("GCC unroll 16") for (int v = 0; v < half; v++) lanes[v] += lanes[v + half];             \
        return NAME(sum_lanes)(lanes[0]);                                                                    \
    }
SUM_POWERS(16)
SUM_POWERS(64)

/* The same in the order of sum_run() of a row of n numbers, of which the first `shown` count. */
static inline __attribute__((always_inline)) T NAME(sum_powers)(T *out, const T *x, T shift, int64_t n, int64_t shown,
                                                               const int kept) {
    if (n <= FEW_TERMS) return NAME(sum_powers16)(out, x, shift, shown, kept);
    T tree[TREE_DEPTH];
    int height = 0;
    for (int64_t i = 0, count = 0; i < shown; i += RUN_BLOCK, count++) {
        int64_t left = shown - i < RUN_BLOCK ? shown - i : RUN_BLOCK;
        height = NAME(sum_push)(tree, height, count, NAME(sum_powers64)(out + (kept ? i : 0), x + i, shift, left, kept));
    }
    return height ? NAME(sum_finish)(tree, height) : 0;
}

/* Rows that follow each other, a stage of all before the next stage: within one, each stage waits for the one before. */
static inline __attribute__((always_inline)) void NAME(softmax_of)(T *out, const T *x, int64_t n, int64_t rows,
                                                                   const T *greatest, int64_t *shown) {
    T sum[SOFTMAX_ROWS];
    for (int64_t r = 0; r < rows; r++) {
        sum[r] = NAME(sum_powers)(out + r * n, x + r * n, greatest[r], n, shown[r], 1);
        for (int64_t i = shown[r]; i < n; i += VN) NAME(put_part)(out + r * n + i, (V){0}, n - i);
    }
    for (int64_t r = 0; r < rows; r++) {
        T *row = out + r * n, share = 1 / sum[r];
        if (!(sum[r] > 0)) shown[r] = n; /* there is NaN in it, and then in all of the row */
        for (int64_t i = 0; i < shown[r]; i += VN)
            NAME(put_part)(row + i, NAME(part)(row + i, shown[r] - i, 0) * share, shown[r] - i);
    }
}

static void NAME(softmax_rows)(T *out, const T *x, int64_t n, int64_t rows) {
    T greatest[SOFTMAX_ROWS];
    int64_t shown[SOFTMAX_ROWS];
    for (int64_t r = 0; r < rows; r++) greatest[r] = NAME(max_run)(x + r * n, n);
    for (int64_t r = 0; r < rows; r++) shown[r] = NAME(shown)(x + r * n, greatest[r], n);
    NAME(softmax_of)(out, x, n, rows, greatest, shown);
}

/* The same of rows of which the first `columns` elements are there, and all others are to be `other`. Returns behind how many
 * columns all of them is +0. */
static int64_t NAME(softmax_hiding)(T *out, T *x, int64_t n, int64_t rows, int64_t columns, T other) {
    T greatest[SOFTMAX_ROWS];
    int64_t shown[SOFTMAX_ROWS], used = 0;
    for (int64_t r = 0; r < rows; r++) greatest[r] = columns ? NAME(max_run)(x + r * n, columns) : other;
    for (int64_t r = 0; r < rows; r++) {
        T *row = x + r * n;
        int64_t there = columns;
        if (columns < n && !(other < greatest[r] - VANISHING)) { /* it counts, or there is NaN */
            for (int64_t at = columns; at < n; at++) row[at] = other;
            there = n, greatest[r] = NAME(max_run)(row, n);
        }
        shown[r] = NAME(shown)(row, greatest[r], there);
    }
    NAME(softmax_of)(out, x, n, rows, greatest, shown);
    for (int64_t r = 0; r < rows; r++) used = shown[r] > used ? shown[r] : used;
    return used;
}

static int64_t NAME(softmax_together)(int64_t n) { return SOFTMAX_NEAR / n < SOFTMAX_ROWS ? SOFTMAX_NEAR / n : SOFTMAX_ROWS; }

static void NAME(softmax_row)(T *out, const T *x, int64_t n) { NAME(softmax_rows)(out, x, n, 1); }

static void NAME(log_softmax_row)(T *out, const T *x, int64_t n) {
    T work[LANES_OF_RUN], greatest = NAME(max_run)(x, n);
    T log_sum = NAME(log)(NAME(sum_powers)(work, x, greatest, n, n, 0));
    INDEPENDENT for (int64_t i = 0; i < n; i++) out[i] = (x[i] - greatest) - log_sum;
}

/* `count` <= VN columns of a matrix of n rows, `inner` apart, as rows of memory, `pitch` apart; and back. */
static inline __attribute__((always_inline)) void NAME(columns_to_rows)(T *to, int64_t pitch, const T *x, int64_t n,
                                                                        int64_t inner, int64_t count) {
    for (int64_t at = 0; at < n; at += VN) {
        V square[VN];
        _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) square[i] =
            at + i < n ? NAME(part)(x + (at + i) * inner, count, 0) : (V){0};
        NAME(turn)(square);
        _Pragma("GCC unroll 16") for (int r = 0; r < VN; r++)
            if (r < count) NAME(put_part)(to + r * pitch + at, square[r], n - at);
    }
}

static inline __attribute__((always_inline)) void NAME(rows_to_columns)(T *to, int64_t inner, const T *x, int64_t n,
                                                                        int64_t pitch, int64_t count) {
    for (int64_t at = 0; at < n; at += VN) {
        V square[VN];
        _Pragma("GCC unroll 16") for (int r = 0; r < VN; r++) square[r] =
            r < count ? NAME(part)(x + r * pitch + at, n - at, 0) : (V){0};
        NAME(turn)(square);
        _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++)
            if (at + i < n) NAME(put_part)(to + (at + i) * inner, square[i], count);
    }
}

/* Columns go in lanes: `vectors` of them abreast, n below each other. With the bits of rows. */

/* The greatest of each of `count` columns of memory, `inner` apart: a NaN may be passed over, which makes NaN of all of its
 * column anyway. made: where they are copied to, or NULL. */
static inline __attribute__((always_inline)) void NAME(load_columns)(V *made, V *greatest, const T *x, int64_t n,
                                                                     int64_t inner, int64_t count, int64_t vectors) {
    V most[VECTORS_ABREAST];
    for (int64_t i = 0; i < n; i++)
        _Pragma("GCC unroll 8") for (int64_t v = 0; v < vectors; v++) {
            V next = NAME(part)(x + i * inner + v * VN, count - v * VN, 0);
            if (made) made[i * vectors + v] = next;
            most[v] = i ? GREATER(most[v], next) : next;
        }
    for (int64_t v = 0; v < vectors; v++) greatest[v] = most[v];
}

/* sum_push() and sum_finish() of vectors. */
static inline __attribute__((always_inline)) int64_t NAME(push_sums)(V *tree, int64_t height, int64_t blocks, const V *sums,
                                                                     int64_t vectors) {
    for (int64_t v = 0; v < vectors; v++) tree[height * vectors + v] = sums[v];
    for (; blocks & 1; blocks >>= 1, height--)
        for (int64_t v = 0; v < vectors; v++) tree[(height - 1) * vectors + v] += tree[height * vectors + v];
    return height + 1;
}
static inline __attribute__((always_inline)) void NAME(finish_sums_of_columns)(V *sums, V *tree, int64_t height, int64_t vectors) {
    for (; height > 1; height--)
        for (int64_t v = 0; v < vectors; v++) tree[(height - 2) * vectors + v] += tree[(height - 1) * vectors + v];
    for (int64_t v = 0; v < vectors; v++) sums[v] = tree[v];
}

/* Columns read and write a few lines of each row, which the processor does not expect: they are fetched while it computes. */
static inline __attribute__((always_inline)) void NAME(fetch)(const T *x, int64_t at, int64_t vectors,
                                                              const int for_writing) {
    for (int64_t v = 0; v < vectors; v++, at += VN)
        if (for_writing)
            __builtin_prefetch(CYX_BEYOND(x, at), 1, 3);
        else
            __builtin_prefetch(CYX_BEYOND(x, at), 0, 3);
}

/* e**(x - shift) of a row of columns. */
static inline __attribute__((always_inline)) void NAME(exp_columns)(V *made, const T *x, const V *shift, int64_t vectors) {
#if defined(EXP_VECTOR)
    if (sizeof(T) == sizeof(float)) {
        _Pragma("GCC unroll 16") for (int64_t v = 0; v < vectors; v++) made[v] = (V)EXP_VECTOR(*(const V *)(x + v * VN) - shift[v]);
        return;
    }
#endif
    NAME(exp_less)((T *)made, x, (const T *)shift, vectors * VN);
}

/* The sums of e**(x - shift) of columns whose rows are `pitch` numbers apart. kept: where the powers go, row by row, which may
 * be x; or NULL. next, out: where the columns that come next lie and where the result will, `inner` numbers from row to row; or
 * NULL. */
static inline __attribute__((always_inline)) void NAME(sum_powers_of_columns)(V *sums, const T *x, int64_t pitch, V *kept,
                                                                              const V *shift, int64_t n, int64_t vectors,
                                                                              const T *next, const T *out, int64_t inner) {
    const int64_t width = n <= FEW_TERMS ? LANES_FOLDED : LANES_OF_RUN;
    V lanes[LANES_OF_RUN * LONG_ABREAST], tree[TREE_DEPTH * LONG_ABREAST];
    int64_t height = 0;
    for (int64_t first = 0, blocks = 0; first < n; first += RUN_BLOCK, blocks++) {
        int64_t count = n - first < RUN_BLOCK ? n - first : RUN_BLOCK, left = count < width ? count : width;
        for (int64_t i = 0; i < count; i++) {
            const T *row = x + (first + i) * pitch;
            V made[VECTORS_ABREAST], *lane = lanes + i % width * vectors;
            NAME(exp_columns)(made, row, shift, vectors);
            if (next) NAME(fetch)(next, (first + i) * inner, vectors, 0);
            if (out) NAME(fetch)(out, (first + i) * inner, vectors, 1);
            _Pragma("GCC unroll 8") for (int64_t v = 0; kept && v < vectors; v++) kept[(first + i) * vectors + v] = made[v];
            if (i < width)
                _Pragma("GCC unroll 8") for (int64_t v = 0; v < vectors; v++) lane[v] = made[v];
            else
                _Pragma("GCC unroll 8") for (int64_t v = 0; v < vectors; v++) lane[v] += made[v];
        }
        for (int64_t half = width / 2; half; half /= 2)
            for (int64_t i = 0; i < half && i + half < left; i++)
                for (int64_t v = 0; v < vectors; v++) lanes[i * vectors + v] += lanes[(i + half) * vectors + v];
        height = NAME(push_sums)(tree, height, blocks, lanes, vectors);
    }
    NAME(finish_sums_of_columns)(sums, tree, height, vectors);
}

/* How many vectors of columns go abreast. */
static int64_t NAME(abreast)(int64_t n) {
    int64_t most = n <= FEW_TERMS ? VECTORS_ABREAST : LONG_ABREAST;
    return COLUMNS_NEAR / n < 1 ? 1 : COLUMNS_NEAR / n < most ? COLUMNS_NEAR / n : most;
}

/* full: all vectors are whole; then those of a logarithm are read where they lie. */
static inline __attribute__((always_inline)) void NAME(softmax_of_columns)(T *out, const T *x, int64_t n, int64_t inner,
                                                                           int64_t count, V *made, int64_t vectors,
                                                                           const int full, const int logarithm) {
    V greatest[VECTORS_ABREAST], of_all[VECTORS_ABREAST];
    const int lie = full && logarithm;
    if (full) count = vectors * VN;
    NAME(load_columns)(lie ? NULL : made, greatest, x, n, inner, count, vectors);
    NAME(sum_powers_of_columns)(of_all, lie ? x : (const T *)made, lie ? inner : vectors * VN, logarithm ? NULL : made, greatest, n,
                                vectors, x + count, out, inner);
    if (logarithm)
        NAME(log_row)((T *)of_all, vectors * VN);
    else
        for (int64_t v = 0; v < vectors; v++) of_all[v] = 1 / of_all[v];
    for (int64_t i = 0; i < n; i++)
        _Pragma("GCC unroll 8") for (int64_t v = 0; v < vectors; v++) {
            V one = lie ? *(const V *)(x + i * inner + v * VN) : made[i * vectors + v];
            NAME(put_part)(out + i * inner + v * VN, logarithm ? (one - greatest[v]) - of_all[v] : one * of_all[v],
                           count - v * VN);
        }
}

static void NAME(softmax_columns)(T *out, const T *x, int64_t n, int64_t inner, int64_t count, V *made, int logarithm) {
    if (count == VECTORS_ABREAST * VN && logarithm)
        NAME(softmax_of_columns)(out, x, n, inner, count, made, VECTORS_ABREAST, 1, 1);
    else if (count == VECTORS_ABREAST * VN)
        NAME(softmax_of_columns)(out, x, n, inner, count, made, VECTORS_ABREAST, 1, 0);
    else
        NAME(softmax_of_columns)(out, x, n, inner, count, made, (count + VN - 1) / VN, 0, logarithm);
}

typedef struct {
    const cyx_call *call;
    void (*row)(T *out, const T *x, int64_t n);
    int64_t n, inner; /* length of a row, distance between its elements */
    _Atomic int no_memory;
} NAME(rows);

static void NAME(softmax_body)(void *context, int64_t begin, int64_t end) {
    NAME(rows) *rows = context;
    int64_t n = rows->n, inner = rows->inner, r = begin;
    T *out = rows->call->out.data;
    const T *x = rows->call->in[0].data;
    int logarithm = rows->row == NAME(log_softmax_row);
    if (inner == 1) {
        int64_t together = NAME(softmax_together)(n);
        if (!logarithm)
            for (; together > 1 && r < end; r += together)
                NAME(softmax_rows)(out + r * n, x + r * n, n, end - r < together ? end - r : together);
        for (; r < end; r++) rows->row(out + r * n, x + r * n, n);
        return;
    }
    /* Columns at a time: in lanes, or turned into rows, which are not a power of two apart. */
    int64_t pitch = n + VN, turned = MOST_TURNED / pitch < 1 ? 1 : MOST_TURNED / pitch < VN ? MOST_TURNED / pitch : VN;
    int64_t abreast = n <= MOST_COLUMN ? NAME(abreast)(n) : 0, of_lanes = abreast * VN * n, of_rows = turned * pitch;
    T *work = cyx_scratch(1, sizeof(T) * (size_t)(of_lanes > of_rows ? of_lanes : of_rows));
    if (!work) {
        rows->no_memory = 1;
        return;
    }
    for (int64_t count; r < end; r += count) {
        int64_t column = r % inner, at = r / inner * n * inner + column;
        count = inner - column < end - r ? inner - column : end - r;
        if (abreast && count >= VN / 2) {
            count = count < abreast * VN ? count : abreast * VN;
            NAME(softmax_columns)(out + at, x + at, n, inner, count, (V *)work, logarithm);
            continue;
        }
        count = count < turned ? count : turned;
        NAME(columns_to_rows)(work, pitch, x + at, n, inner, count);
        for (int64_t c = 0; c < count; c++) rows->row(work + c * pitch, work + c * pitch, n);
        NAME(rows_to_columns)(out + at, inner, work, n, pitch, count);
    }
}

/* ints: axis */
static cyx_status NAME(run_softmax)(const cyx_call *call, void (*row)(T *, const T *, int64_t), cyx_body body) {
    const cyx_array *x = &call->in[0];
    if (!x->size) return CYX_OK;
    NAME(rows) rows = {.call = call, .row = row, .n = x->ndim ? x->shape[call->ints[0]] : 1, .inner = 1};
    for (int d = (int)call->ints[0] + 1; d < x->ndim; d++) rows.inner *= x->shape[d];
    int64_t count = x->size / rows.n;
    cyx_parallel(count, cyx_grain(count, 12.0 * (double)rows.n, 100000), body, &rows);
    return rows.no_memory ? CYX_NO_MEMORY : CYX_OK;
}

/* The sum of g y of a row of n numbers, of which the first `count` are added: the bits of all, where the others come to zeros,
 * as sums begin at +0. */
static T NAME(sum_products)(const T *g, const T *y, int64_t n, int64_t count) {
    T products[RUN_BLOCK], tree[TREE_DEPTH];
    int height = 0;
    for (int64_t first = 0, blocks = 0; first < count; first += RUN_BLOCK, blocks++) {
        int64_t left = count - first < RUN_BLOCK ? count - first : RUN_BLOCK;
        for (int64_t i = 0; i < left; i += VN)
            NAME(put_part)(products + i, NAME(part)(g + first + i, left - i, 0) * NAME(part)(y + first + i, left - i, 0), left - i);
        T sum = n <= FEW_TERMS ? NAME(sum_block16)(products, left) : NAME(sum_block64)(products, left);
        height = NAME(sum_push)(tree, height, blocks, sum);
    }
    return height ? NAME(sum_finish)(tree, height) : 0;
}

static void NAME(less_share)(T *out, const T *g, const T *y, T sum, int64_t n) {
    for (int64_t i = 0; i < n; i += VN)
        NAME(put_part)(out + i, NAME(part)(y + i, n - i, 0) * (NAME(part)(g + i, n - i, 0) - sum), n - i);
}

/* The gradient of softmax y from that of its result, y (g - the sum of g y), and of log_softmax, g - e**y (the sum of g): as
 * the operations one by one make it. */
static void NAME(softmax_grad_row)(T *out, const T *g, const T *y, int64_t n) {
    NAME(less_share)(out, g, y, NAME(sum_products)(g, y, n, n), n);
}

static void NAME(log_softmax_grad_row)(T *out, const T *g, const T *y, int64_t n) {
    T powers[RUN_BLOCK], sum = NAME(sum_run)(g, n);
    for (int64_t first = 0; first < n; first += RUN_BLOCK) {
        int64_t count = n - first < RUN_BLOCK ? n - first : RUN_BLOCK;
        NAME(exp_row)(powers, y + first, 0, count);
        for (int64_t i = 0; i < count; i += VN)
            NAME(put_part)(out + first + i,
                           NAME(part)(g + first + i, count - i, 0) - NAME(part)(powers + i, count - i, 0) * sum, count - i);
    }
}

/* Of `count` columns of n numbers, `inner` apart. full: all vectors are whole. */
static inline __attribute__((always_inline)) void NAME(softmax_grad_of_columns)(T *out, const T *g, const T *y, int64_t n,
                                                                                int64_t inner, int64_t count, int64_t vectors,
                                                                                const int full, const int logarithm) {
    V sums[GRADIENTS_ABREAST], tree[TREE_DEPTH * GRADIENTS_ABREAST], powers[GRADIENTS_ABREAST];
    const V zeros[GRADIENTS_ABREAST] = {{0}};
    int64_t height = 0;
    if (full) count = vectors * VN;
    for (int64_t first = 0, blocks = 0; first < n; first += BLOCK_ROWS, blocks++) {
        for (int64_t i = first; i < n && i < first + BLOCK_ROWS; i++) {
            int64_t ahead = i + GRADIENTS_AHEAD;
            if (ahead < n) NAME(fetch)(g, ahead * inner, vectors, 0);
            if (ahead < n && !logarithm) NAME(fetch)(y, ahead * inner, vectors, 0);
            if (ahead >= n && ahead < 2 * n) NAME(fetch)(out, (ahead - n) * inner, vectors, 1);
            _Pragma("GCC unroll 16") for (int64_t v = 0; v < vectors; v++) {
                int64_t at = i * inner + v * VN, left = count - v * VN;
                V term = NAME(part)(g + at, left, 0);
                if (!logarithm) term *= NAME(part)(y + at, left, 0);
                if (i == first)
                    sums[v] = term;
                else
                    sums[v] += term;
            }
        }
        height = NAME(push_sums)(tree, height, blocks, sums, vectors);
    }
    NAME(finish_sums_of_columns)(sums, tree, height, vectors);
    for (int64_t i = 0; i < n; i++) {
        int64_t ahead = i + GRADIENTS_AHEAD, at_ahead = ahead < n ? ahead * inner : (ahead - n) % n * inner + count;
        if (ahead >= n || n > GRADIENTS_NEAR) NAME(fetch)(g, at_ahead, vectors, 0), NAME(fetch)(y, at_ahead, vectors, 0);
        if (ahead < n) NAME(fetch)(out, at_ahead, vectors, 1);
        if (logarithm && full)
            NAME(exp_columns)(powers, y + i * inner, zeros, vectors);
        else if (logarithm)
            NAME(exp_row)((T *)powers, y + i * inner, 0, count);
        _Pragma("GCC unroll 16") for (int64_t v = 0; v < vectors; v++) {
            int64_t at = i * inner + v * VN, left = count - v * VN;
            V one = NAME(part)(g + at, left, 0);
            if (logarithm)
                one = one - powers[v] * sums[v];
            else
                one = NAME(part)(y + at, left, 0) * (one - sums[v]);
            NAME(put_part)(out + at, one, left);
        }
    }
}

static void NAME(softmax_grad_columns)(T *out, const T *g, const T *y, int64_t n, int64_t inner, int64_t count, int logarithm) {
    if (count == GRADIENTS_ABREAST * VN && logarithm)
        NAME(softmax_grad_of_columns)(out, g, y, n, inner, count, GRADIENTS_ABREAST, 1, 1);
    else if (count == GRADIENTS_ABREAST * VN)
        NAME(softmax_grad_of_columns)(out, g, y, n, inner, count, GRADIENTS_ABREAST, 1, 0);
    else
        NAME(softmax_grad_of_columns)(out, g, y, n, inner, count, (count + VN - 1) / VN, 0, logarithm);
}

static void NAME(softmax_grad_body)(void *context, int64_t begin, int64_t end) {
    NAME(rows) *rows = context;
    int logarithm = rows->call->op == CYX_OP_log_softmax_grad;
    const T *g = rows->call->in[0].data, *y = rows->call->in[1].data;
    T *out = rows->call->out.data;
    int64_t n = rows->n, inner = rows->inner, most = GRADIENTS_ABREAST * VN;
    for (int64_t r = begin, count = 1; r < end; r += count) {
        int64_t column = r % inner, at = r / inner * n * inner + column;
        if (inner > 1) {
            count = inner - column < end - r ? inner - column : end - r;
            count = count < most ? count : most;
            NAME(softmax_grad_columns)(out + at, g + at, y + at, n, inner, count, logarithm);
        } else if (logarithm) {
            NAME(log_softmax_grad_row)(out + at, g + at, y + at, n);
        } else {
            NAME(softmax_grad_row)(out + at, g + at, y + at, n);
        }
    }
}

/* Of VN rows of logits each e**(x - the greatest), as columns, and their sums. Returns the greatest of each row. */
static V NAME(powers_in_lanes)(V *powers, V *sums, const T *x, int64_t n) {
    NAME(rows_to_columns)((T *)powers, VN, x, n, n, VN);
    V greatest = powers[0];
    for (int64_t i = 1; i < n; i++) greatest = GREATER(greatest, powers[i]);
    NAME(sum_powers_of_columns)(sums, (const T *)powers, VN, powers, &greatest, n, 1, NULL, NULL, 0);
    return greatest;
}

/* One loss per row: log(sum(e**(x - max))) - (x[label] - max). The logarithms of many rows at once. */
static void NAME(loss_body)(void *context, int64_t begin, int64_t end) {
    NAME(rows) *rows = context;
    const int64_t *labels = rows->call->in[1].data;
    T work[LANES_OF_RUN], sums[LOGS_AT_ONCE], of_label[LOGS_AT_ONCE];
    for (int64_t first = begin; first < end; first += LOGS_AT_ONCE) {
        int64_t count = end - first < LOGS_AT_ONCE ? end - first : LOGS_AT_ONCE, r = 0;
        const T *logits = (const T *)rows->call->in[0].data + first * rows->n;
        for (; rows->n <= MOST_CLASSES && r + VN <= count; r += VN) {
            V powers[MOST_CLASSES], sum, greatest = NAME(powers_in_lanes)(powers, &sum, logits + r * rows->n, rows->n);
            *(V *)(sums + r) = sum;
            for (int64_t i = r; i < r + VN; i++) of_label[i] = logits[i * rows->n + labels[first + i]] - greatest[i - r];
        }
        for (; r < count; r++) {
            const T *x = logits + r * rows->n;
            T greatest = NAME(max_run)(x, rows->n);
            sums[r] = NAME(sum_powers)(work, x, greatest, rows->n, rows->n, 0), of_label[r] = x[labels[first + r]] - greatest;
        }
        for (int64_t r = count; r < LOGS_AT_ONCE; r++) sums[r] = 1, of_label[r] = 0;
        NAME(log_row)(sums, LOGS_AT_ONCE);
        for (int64_t r = 0; r < LOGS_AT_ONCE; r++) sums[r] -= of_label[r];
        memcpy((T *)rows->call->out.data + first, sums, sizeof(T) * (size_t)count);
    }
}

/* (softmax(x) - one_hot(label)) * g, row by row. */
static void NAME(loss_grad_body)(void *context, int64_t begin, int64_t end) {
    NAME(rows) *rows = context;
    const int64_t *labels = rows->call->in[2].data;
    const T *logits = rows->call->in[1].data, *gradients = rows->call->in[0].data;
    T *results = rows->call->out.data;
    int64_t r = begin, n = rows->n;
    for (; n <= MOST_CLASSES && r + VN <= end; r += VN) {
        V made[MOST_CLASSES], sum, g = *(const V *)(gradients + r);
        NAME(powers_in_lanes)(made, &sum, logits + r * n, n);
        V share = 1 / sum;
        for (int64_t i = 0; i < n; i++) made[i] = made[i] * share;
        for (int64_t i = 0; i < VN; i++) made[labels[r + i]][i] -= 1;
        for (int64_t i = 0; i < n; i++) made[i] = made[i] * g;
        NAME(columns_to_rows)(results + r * n, n, (const T *)made, n, VN, VN);
    }
    for (; r < end; r++) {
        const T *x = logits + r * n;
        T *out = results + r * n, g = gradients[r];
        T share = 1 / NAME(sum_powers)(out, x, NAME(max_run)(x, n), n, n, 1);
        T of_label = (out[labels[r]] * share - 1) * g;
        for (int64_t i = 0; i < n; i += VN) NAME(put_part)(out + i, NAME(part)(out + i, n - i, 0) * share * g, n - i);
        out[labels[r]] = of_label;
    }
}

/* The same of logits (N, C, inner): both, as columns. */
static void NAME(loss_of_columns)(void *context, int64_t begin, int64_t end) {
    NAME(rows) *rows = context;
    int gradient = rows->call->op == CYX_OP_cross_entropy_grad;
    const int64_t *labels = rows->call->in[1 + gradient].data;
    const T *logits = rows->call->in[gradient].data, *gradients = rows->call->in[0].data;
    T *results = rows->call->out.data;
    int64_t n = rows->n, inner = rows->inner, abreast = NAME(abreast)(n);
    V *made = cyx_scratch(1, sizeof(V) * (size_t)(n * abreast));
    if (!made) {
        rows->no_memory = 1;
        return;
    }
    for (int64_t r = begin, count; r < end; r += count) {
        int64_t column = r % inner, at = r / inner * n * inner + column;
        count = inner - column < end - r ? inner - column : end - r;
        count = count < abreast * VN ? count : abreast * VN;
        int64_t vectors = (count + VN - 1) / VN;
        V greatest[VECTORS_ABREAST], sums[VECTORS_ABREAST];
        NAME(load_columns)(made, greatest, logits + at, n, inner, count, vectors);
        NAME(sum_powers_of_columns)(sums, (const T *)made, vectors * VN, gradient ? made : NULL, greatest, n, vectors,
                                    logits + at + count, gradient ? results + at : NULL, inner);
        const T *of_labels = (const T *)made, *const most = (const T *)greatest, *of_all = (const T *)sums;
        if (!gradient) {
            NAME(log_row)((T *)sums, vectors * VN);
            for (int64_t i = 0; i < count; i++)
                results[r + i] = of_all[i] - (of_labels[labels[r + i] * vectors * VN + i] - most[i]);
            continue;
        }
        for (int64_t v = 0; v < vectors; v++) sums[v] = 1 / sums[v];
        for (int64_t i = 0; i < n; i++)
            for (int64_t v = 0; v < vectors; v++)
                NAME(put_part)(results + at + i * inner + v * VN,
                               made[i * vectors + v] * sums[v] * NAME(part)(gradients + r + v * VN, count - v * VN, 0),
                               count - v * VN);
        for (int64_t i = 0; i < count; i++)
            results[at + labels[r + i] * inner + i] =
                (of_labels[labels[r + i] * vectors * VN + i] * of_all[i] - 1) * gradients[r + i];
    }
}

static cyx_status NAME(run_loss)(const cyx_call *call, const cyx_array *logits, const cyx_array *labels,
                                 cyx_body body) {
    int64_t n = logits->shape[1], inner = 1;
    const int64_t *label = labels->data;
    int wrong = 0;
    for (int64_t i = 0; i < labels->size; i++) wrong |= (uint64_t)label[i] >= (uint64_t)n;
    for (int64_t i = 0; wrong && i < labels->size; i++)
        if (label[i] < 0 || label[i] >= n)
            return cyx_fail(CYX_BAD_DATA, "%s: expected labels from 0 to %lld, got %lld in row %lld",
                            cyx_op_names[call->op], (long long)n - 1, (long long)label[i],
                            (long long)(cyx_band * labels->size + i));
    for (int d = 2; d < logits->ndim; d++) inner *= logits->shape[d];
    NAME(rows) rows = {.call = call, .n = n, .inner = inner};
    cyx_parallel(labels->size, cyx_grain(labels->size, 12.0 * (double)n, 100000),
                 inner > 1 ? NAME(loss_of_columns) : body, &rows);
    return rows.no_memory ? CYX_NO_MEMORY : CYX_OK;
}

static cyx_status NAME(cross_entropy)(const cyx_call *call) {
    return NAME(run_loss)(call, &call->in[0], &call->in[1], NAME(loss_body));
}
static cyx_status NAME(cross_entropy_grad)(const cyx_call *call) {
    return NAME(run_loss)(call, &call->in[1], &call->in[2], NAME(loss_grad_body));
}

static cyx_status NAME(softmax)(const cyx_call *call) {
    return NAME(run_softmax)(call, NAME(softmax_row), NAME(softmax_body));
}
static cyx_status NAME(log_softmax)(const cyx_call *call) {
    return NAME(run_softmax)(call, NAME(log_softmax_row), NAME(softmax_body));
}
static cyx_status NAME(softmax_grad)(const cyx_call *call) {
    return NAME(run_softmax)(call, NULL, NAME(softmax_grad_body));
}

/* max(x, 0) + log(1 + p) with p = e**-|x|, which is log(1 + e**x) without overflow, and its gradient, of so many numbers at a
 * time that what is made of them stays in the nearest cache. What 1 + p loses of p to rounding, all of it where x is far below
 * 0, is added to the logarithm by the slope 1 / (1 + p) of that, for which 1 - p / 2 will do: where they differ it is little. */
static void NAME(softplus_body)(void *context, int64_t begin, int64_t end) {
    const cyx_call *call = ((const cyx_rows *)context)->call;
    for (int64_t at = begin; at < end; at += SOFTPLUS_NEAR) {
        T made[SOFTPLUS_NEAR], rest[SOFTPLUS_NEAR], *out = (T *)call->out.data + at;
        const T *x = (const T *)call->in[0].data + at;
        int64_t n = end - at < SOFTPLUS_NEAR ? end - at : SOFTPLUS_NEAR;
        INDEPENDENT for (int64_t i = 0; i < n; i++) made[i] = x[i] > 0 ? -x[i] : x[i];
        NAME(exp_row)(made, made, 0, n);
        INDEPENDENT for (int64_t i = 0; i < n; i++) {
            T power = made[i], whole = power + 1;
            rest[i] = (power - (whole - 1)) * (1 - power * (T)0.5);
            made[i] = whole;
        }
        NAME(log_row)(made, n);
        INDEPENDENT for (int64_t i = 0; i < n; i++) out[i] = (x[i] < 0 ? 0 : x[i]) + (made[i] + rest[i]);
    }
}

static inline __attribute__((always_inline)) void NAME(softplus_grad_loop)(T *out, const T *g, int64_t sg, const T *x,
                                                                           int64_t sx, int64_t n) {
    for (int64_t at = 0; at < n; at += SOFTPLUS_NEAR) {
        T made[SOFTPLUS_NEAR];
        int64_t count = n - at < SOFTPLUS_NEAR ? n - at : SOFTPLUS_NEAR;
        INDEPENDENT for (int64_t i = 0; i < count; i++) {
            T one = x[(at + i) * sx];
            made[i] = one > 0 ? -one : one;
        }
        NAME(exp_row)(made, made, 0, count);
        INDEPENDENT for (int64_t i = 0; i < count; i++) {
            T one = x[(at + i) * sx], upstream = g[(at + i) * sg], through = upstream / (made[i] + 1) * made[i];
            out[at + i] = (one > 0 ? -through : through) + upstream * (one > 0 ? (T)1 : (T)0);
        }
    }
}
static void ROW_OF(NAME(softplus_grad))(T *out, const T *g, int64_t sg, const T *x, int64_t sx, int64_t n) {
    if (sg && sx)
        NAME(softplus_grad_loop)(out, g, 1, x, 1, n);
    else if (sx)
        NAME(softplus_grad_loop)(out, g, 0, x, 1, n);
    else
        NAME(softplus_grad_loop)(out, g, sg, x, 0, n);
}
BINARY_ROWS(NAME(softplus_grad), T, T)

/* log(e**x + e**y): the greater of them and softplus of minus what lies between. */
static inline __attribute__((always_inline)) void NAME(logaddexp_loop)(T *out, const T *x, int64_t sx, const T *y,
                                                                       int64_t sy, int64_t n) {
    for (int64_t at = 0; at < n; at += SOFTPLUS_NEAR) {
        T made[SOFTPLUS_NEAR], rest[SOFTPLUS_NEAR];
        int64_t count = n - at < SOFTPLUS_NEAR ? n - at : SOFTPLUS_NEAR;
        INDEPENDENT for (int64_t i = 0; i < count; i++) {
            T one = x[(at + i) * sx], other = y[(at + i) * sy], away = one - other;
            made[i] = one == other ? 0 : away > 0 ? -away : away; /* of two infinities, too */
        }
        NAME(exp_row)(made, made, 0, count);
        INDEPENDENT for (int64_t i = 0; i < count; i++) {
            T power = made[i], whole = power + 1;
            rest[i] = (power - (whole - 1)) * (1 - power * (T)0.5);
            made[i] = whole;
        }
        NAME(log_row)(made, count);
        INDEPENDENT for (int64_t i = 0; i < count; i++) {
            T one = x[(at + i) * sx], other = y[(at + i) * sy];
            out[at + i] = (one > other ? one : other) + (made[i] + rest[i]);
        }
    }
}
static void ROW_OF(NAME(logaddexp))(T *out, const T *x, int64_t sx, const T *y, int64_t sy, int64_t n) {
    if (sx && sy)
        NAME(logaddexp_loop)(out, x, 1, y, 1, n);
    else if (sx)
        NAME(logaddexp_loop)(out, x, 1, y, 0, n);
    else
        NAME(logaddexp_loop)(out, x, 0, y, sy, n);
}
BINARY_ROWS(NAME(logaddexp), T, T)
static cyx_status NAME(softplus)(const cyx_call *call) { return cyx_run_rows(call, NAME(softplus_body)); }

static void NAME(fill_softmax)(cyx_table table) {
    table[CYX_OP_softplus][DTYPE] = NAME(softplus), table[CYX_OP_softplus_grad][DTYPE] = NAME(softplus_grad);
    table[CYX_OP_logaddexp][DTYPE] = NAME(logaddexp);
    table[CYX_OP_softmax_grad][DTYPE] = table[CYX_OP_log_softmax_grad][DTYPE] = NAME(softmax_grad);
    table[CYX_OP_softmax][DTYPE] = NAME(softmax), table[CYX_OP_log_softmax][DTYPE] = NAME(log_softmax);
    table[CYX_OP_cross_entropy][DTYPE] = NAME(cross_entropy);
    table[CYX_OP_cross_entropy_grad][DTYPE] = NAME(cross_entropy_grad);
}
