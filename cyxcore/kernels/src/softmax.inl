/* softmax, log_softmax, and the cross-entropy of class labels with its gradient, a row at a time. */

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
enum {
    LOGS_AT_ONCE = 64,
    VANISHING = 1000, /* e**-1000 is 0 in any type */
    MOST_CLASSES = 48, /* of rows of logits that go side by side, one in each lane */
    LANES_FOLDED = 16, /* of a sum of as few terms: reduce.inl */
    FEW_TERMS = 128,
    MOST_POWERS = 256,   /* vectors that columns of FEW_TERMS are made in */
    VECTORS_ABREAST = 4, /* of columns */
    MOST_TURNED = 1 << 16, /* elements */
    SOFTMAX_ROWS = 8,
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

/* Rows that follow each other, a stage of all before the next stage: within one, each stage waits for the one before. */
static void NAME(softmax_rows)(T *out, const T *x, int64_t n, int64_t rows) {
    T greatest[SOFTMAX_ROWS], sum[SOFTMAX_ROWS];
    int64_t shown[SOFTMAX_ROWS];
    for (int64_t r = 0; r < rows; r++) greatest[r] = NAME(max_run)(x + r * n, n);
    for (int64_t r = 0; r < rows; r++) shown[r] = NAME(shown)(x + r * n, greatest[r], n);
    for (int64_t r = 0; r < rows; r++) {
        NAME(exp_row)(out + r * n, x + r * n, greatest[r], shown[r]);
        for (int64_t i = shown[r]; i < n; i += VN) NAME(put_part)(out + r * n + i, (V){0}, n - i);
    }
    for (int64_t r = 0; r < rows; r++) sum[r] = NAME(sum_run)(out + r * n, n);
    for (int64_t r = 0; r < rows; r++) {
        T *row = out + r * n;
        if (!(sum[r] > 0)) shown[r] = n; /* there is NaN in it, and then in all of the row */
        for (int64_t i = 0; i < shown[r]; i += VN)
            NAME(put_part)(row + i, NAME(part)(row + i, shown[r] - i, 0) / sum[r], shown[r] - i);
    }
}

static void NAME(softmax_row)(T *out, const T *x, int64_t n, T *work) {
    (void)work;
    NAME(softmax_rows)(out, x, n, 1);
}

static void NAME(log_softmax_row)(T *out, const T *x, int64_t n, T *work) {
    T greatest = NAME(max_run)(x, n);
    NAME(exp_row)(work, x, greatest, n);
    T log_sum = NAME(log)(NAME(sum_run)(work, n));
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

/* The sum, or the greatest, in each lane, of n <= 128 vectors in the order of sum_run() and max_run(); what these put in the
 * place of terms that are not there changes nothing. */
#define FOLD_VECTORS(x, n, JOIN_V)                                                                           \
    V folded[LANES_FOLDED];                                                                                  \
    int64_t left = (n) < LANES_FOLDED ? (n) : LANES_FOLDED;                                                  \
    for (int64_t i = 0; i < left; i++) folded[i] = (x)[i];                                                   \
    for (int64_t i = left; i < (n); i++) folded[i % LANES_FOLDED] = JOIN_V(folded[i % LANES_FOLDED], (x)[i]); \
    for (int64_t half = LANES_FOLDED / 2; half; half /= 2)                                                   \
        for (int64_t i = 0; i < half && i + half < left; i++) folded[i] = JOIN_V(folded[i], folded[i + half]); \
    return folded[0]
static inline V NAME(sum_vectors)(const V *x, int64_t n) { FOLD_VECTORS(x, n, ADD_V); }
static inline V NAME(max_vectors)(const V *x, int64_t n) { FOLD_VECTORS(x, n, MAX_V); }

/* `count` columns of n <= FEW_TERMS numbers, `inner` apart, in the lanes of some vectors: with the bits of rows. */
static void NAME(softmax_columns)(T *out, const T *x, int64_t n, int64_t inner, int64_t count, int logarithm) {
    V powers[MOST_POWERS], greatest[VECTORS_ABREAST], of_all[VECTORS_ABREAST];
    int64_t vectors = (count + VN - 1) / VN;
    for (int64_t i = 0; i < n; i++)
        for (int64_t v = 0; v < vectors; v++) powers[v * n + i] = NAME(part)(x + i * inner + v * VN, count - v * VN, 0);
    for (int64_t v = 0; v < vectors; v++) {
        greatest[v] = NAME(max_vectors)(powers + v * n, n);
        for (int64_t i = 0; i < n; i++) powers[v * n + i] = powers[v * n + i] - greatest[v];
    }
    NAME(exp_row)((T *)powers, (const T *)powers, 0, vectors * n * VN);
    for (int64_t v = 0; v < vectors; v++) {
        of_all[v] = NAME(sum_vectors)(powers + v * n, n);
    }
    if (logarithm) NAME(log_row)((T *)of_all, vectors * VN);
    for (int64_t i = 0; i < n; i++)
        for (int64_t v = 0; v < vectors; v++) {
            int64_t at = i * inner + v * VN, left = count - v * VN;
            V made = logarithm ? (NAME(part)(x + at, left, 0) - greatest[v]) - of_all[v] : powers[v * n + i] / of_all[v];
            NAME(put_part)(out + at, made, left);
        }
}

typedef struct {
    const cyx_call *call;
    void (*row)(T *out, const T *x, int64_t n, T *work);
    int64_t n, inner; /* length of a row, distance between its elements */
    _Atomic int no_memory;
} NAME(rows);

static void NAME(softmax_body)(void *context, int64_t begin, int64_t end) {
    NAME(rows) *rows = context;
    int64_t n = rows->n, inner = rows->inner;
    int logarithm = rows->row == NAME(log_softmax_row);
    /* Columns at a time: in lanes, or turned into rows, which are not a power of two apart. */
    int64_t pitch = n + VN, turned = MOST_TURNED / pitch < 1 ? 1 : MOST_TURNED / pitch < VN ? MOST_TURNED / pitch : VN;
    int64_t abreast = MOST_POWERS / n < VECTORS_ABREAST ? MOST_POWERS / n : VECTORS_ABREAST;
    T *work = cyx_scratch(1, sizeof(T) * (size_t)(inner == 1 ? n : n + turned * pitch));
    if (!work) {
        rows->no_memory = 1;
        return;
    }
    T *out = rows->call->out.data;
    const T *x = rows->call->in[0].data;
    int64_t together = SOFTMAX_NEAR / n < SOFTMAX_ROWS ? SOFTMAX_NEAR / n : SOFTMAX_ROWS, r = begin;
    if (inner == 1) {
        if (!logarithm)
            for (; together > 1 && r < end; r += together)
                NAME(softmax_rows)(out + r * n, x + r * n, n, end - r < together ? end - r : together);
        for (; r < end; r++) rows->row(out + r * n, x + r * n, n, work);
        return;
    }
    for (int64_t count; r < end; r += count) {
        int64_t column = r % inner, at = r / inner * n * inner + column;
        count = inner - column < end - r ? inner - column : end - r;
        if (n <= FEW_TERMS && count >= VN / 2) {
            count = count < abreast * VN ? count : abreast * VN;
            NAME(softmax_columns)(out + at, x + at, n, inner, count, logarithm);
            continue;
        }
        T *turn = work + n;
        count = count < turned ? count : turned;
        NAME(columns_to_rows)(turn, pitch, x + at, n, inner, count);
        for (int64_t c = 0; c < count; c++) rows->row(turn + c * pitch, turn + c * pitch, n, work);
        NAME(rows_to_columns)(out + at, inner, turn, n, pitch, count);
    }
}

/* ints: axis */
static cyx_status NAME(run_softmax)(const cyx_call *call, void (*row)(T *, const T *, int64_t, T *)) {
    const cyx_array *x = &call->in[0];
    if (!x->size) return CYX_OK;
    NAME(rows) rows = {.call = call, .row = row, .n = x->ndim ? x->shape[call->ints[0]] : 1, .inner = 1};
    for (int d = (int)call->ints[0] + 1; d < x->ndim; d++) rows.inner *= x->shape[d];
    int64_t count = x->size / rows.n;
    cyx_parallel(count, cyx_grain(count, 12.0 * (double)rows.n, 100000), NAME(softmax_body), &rows);
    return rows.no_memory ? CYX_NO_MEMORY : CYX_OK;
}

static cyx_status NAME(softmax)(const cyx_call *call) { return NAME(run_softmax)(call, NAME(softmax_row)); }
static cyx_status NAME(log_softmax)(const cyx_call *call) {
    return NAME(run_softmax)(call, NAME(log_softmax_row));
}

/* Of VN rows of logits each e**(x - the greatest), as columns, and their sums. Returns the greatest of each row. */
static V NAME(powers_in_lanes)(V *powers, V *sums, const T *x, int64_t n) {
    NAME(rows_to_columns)((T *)powers, VN, x, n, n, VN);
    V greatest = NAME(max_vectors)(powers, n);
    for (int64_t i = 0; i < n; i++) powers[i] = powers[i] - greatest;
    NAME(exp_row)((T *)powers, (const T *)powers, 0, n * VN);
    *sums = NAME(sum_vectors)(powers, n);
    return greatest;
}

/* One loss per row: log(sum(e**(x - max))) - (x[label] - max). The logarithms of many rows at once. */
static void NAME(loss_body)(void *context, int64_t begin, int64_t end) {
    NAME(rows) *rows = context;
    const int64_t *labels = rows->call->in[1].data;
    T *work = cyx_scratch(1, sizeof(T) * (size_t)rows->n), sums[LOGS_AT_ONCE], of_label[LOGS_AT_ONCE];
    if (!work) {
        rows->no_memory = 1;
        return;
    }
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
            NAME(exp_row)(work, x, greatest, rows->n);
            sums[r] = NAME(sum_run)(work, rows->n), of_label[r] = x[labels[first + r]] - greatest;
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
    int64_t r = begin;
    for (; rows->n <= MOST_CLASSES && r + VN <= end; r += VN) {
        V made[MOST_CLASSES], sum, g = *(const V *)(gradients + r);
        NAME(powers_in_lanes)(made, &sum, logits + r * rows->n, rows->n);
        for (int64_t i = 0; i < rows->n; i++) made[i] = made[i] / sum;
        for (int64_t i = 0; i < VN; i++) made[labels[r + i]][i] -= 1;
        for (int64_t i = 0; i < rows->n; i++) made[i] = made[i] * g;
        NAME(columns_to_rows)(results + r * rows->n, rows->n, (const T *)made, rows->n, VN, VN);
    }
    for (; r < end; r++) {
        const T *x = logits + r * rows->n;
        T *out = results + r * rows->n, g = gradients[r];
        NAME(exp_row)(out, x, NAME(max_run)(x, rows->n), rows->n);
        T sum = NAME(sum_run)(out, rows->n);
        T of_label = (out[labels[r]] / sum - 1) * g;
        for (int64_t i = 0; i < rows->n; i += VN)
            NAME(put_part)(out + i, NAME(part)(out + i, rows->n - i, 0) / sum * g, rows->n - i);
        out[labels[r]] = of_label;
    }
}

static cyx_status NAME(run_loss)(const cyx_call *call, const cyx_array *logits, const cyx_array *labels,
                                 cyx_body body) {
    int64_t n = logits->shape[1];
    const int64_t *label = labels->data;
    for (int64_t i = 0; i < labels->size; i++)
        if (label[i] < 0 || label[i] >= n)
            return cyx_fail(CYX_BAD_DATA, "%s: expected labels from 0 to %lld, got %lld in row %lld",
                            cyx_op_names[call->op], (long long)n - 1, (long long)label[i],
                            (long long)(cyx_band * labels->size + i));
    NAME(rows) rows = {.call = call, .n = n};
    cyx_parallel(labels->size, cyx_grain(labels->size, 12.0 * (double)n, 100000), body, &rows);
    return rows.no_memory ? CYX_NO_MEMORY : CYX_OK;
}

static cyx_status NAME(cross_entropy)(const cyx_call *call) {
    return NAME(run_loss)(call, &call->in[0], &call->in[1], NAME(loss_body));
}
static cyx_status NAME(cross_entropy_grad)(const cyx_call *call) {
    return NAME(run_loss)(call, &call->in[1], &call->in[2], NAME(loss_grad_body));
}

static void NAME(fill_softmax)(cyx_table table) {
    table[CYX_OP_softmax][DTYPE] = NAME(softmax), table[CYX_OP_log_softmax][DTYPE] = NAME(log_softmax);
    table[CYX_OP_cross_entropy][DTYPE] = NAME(cross_entropy);
    table[CYX_OP_cross_entropy_grad][DTYPE] = NAME(cross_entropy_grad);
}
