/* take and its kin, argmax, and the reductions and products of integers. Element types come in as macros. */
/* An array seen as [outer][n][inner] around one axis. */
typedef struct {
    int64_t outer, n, inner;
} around;

static around around_axis(const cyx_array *x, int64_t axis) {
    around a = {1, x->ndim ? x->shape[axis] : 1, 1};
    for (int d = 0; d < x->ndim; d++) {
        if (d < axis) a.outer *= x->shape[d];
        if (d > axis) a.inner *= x->shape[d];
    }
    return a;
}

/* Every index lies in [-n, n). Checked before anything is read or written through one. */
static cyx_status check_indices(const cyx_call *call, const cyx_array *indices, int64_t n) {
    const int64_t *index = indices->data;
    int64_t outside = 0;
    for (int64_t i = 0; i < indices->size; i++) outside |= (int64_t)(index[i] < -n) | (int64_t)(index[i] >= n);
    for (int64_t i = 0; outside && i < indices->size; i++)
        if (index[i] < -n || index[i] >= n)
            return cyx_fail(CYX_BAD_DATA, "%s: expected indices from %lld to %lld, got %lld at position %lld",
                            cyx_op_names[call->op], (long long)-n, (long long)n - 1, (long long)index[i],
                            (long long)(cyx_band * indices->size + i));
    return CYX_OK;
}

static inline int64_t wrapped(int64_t index, int64_t n) { return index < 0 ? index + n : index; }

typedef struct {
    int64_t from, length; /* of rows that follow each other */
} taken_run;

enum { MOST_RUNS = 16, LEAST_RUN = 8 };

typedef struct {
    const cyx_call *call;
    around a;
    int64_t count;   /* of indices */
    int64_t runs;    /* in which they come, where there are few; else 0 */
    taken_run run[MOST_RUNS];
} taking;

/* The indices of a border or of a part are long runs, which are copied at once. */
static void find_runs(taking *t) {
    const int64_t *index = t->call->in[1].data;
    int64_t runs = 0, next = -1;
    for (int64_t i = 0; i < t->count; i++) {
        int64_t at = wrapped(index[i], t->a.n);
        if (at == next)
            t->run[runs - 1].length++;
        else if (runs == MOST_RUNS || runs * LEAST_RUN > t->count)
            return;
        else
            t->run[runs++] = (taken_run){at, 1};
        next = at + 1;
    }
    if (runs * LEAST_RUN <= t->count) t->runs = runs;
}

static void take_body(void *context, int64_t begin, int64_t end) {
    const taking *t = context;
    const cyx_call *call = t->call;
    const int64_t *index = call->in[1].data;
    size_t bytes = (size_t)(t->a.inner * cyx_dtype_bytes[call->out.dtype]);
    char *to = (char *)call->out.data + (size_t)begin * bytes;
    for (int64_t row = begin; row < end;) {
        int64_t outer = row / t->count, first = row % t->count;
        int64_t stop = t->count - first < end - row ? t->count : first + end - row;
        const char *from = (const char *)call->in[0].data + (size_t)(outer * t->a.n) * bytes;
        row += stop - first;
        if (t->runs)
            for (int64_t r = 0, at = 0; r < t->runs && at < stop; at += t->run[r++].length) {
                int64_t low = at < first ? first : at, high = at + t->run[r].length;
                if (high > stop) high = stop;
                if (low >= high) continue;
                memcpy(to, from + (size_t)(t->run[r].from + low - at) * bytes, (size_t)(high - low) * bytes);
                to += (size_t)(high - low) * bytes;
            }
        else if (bytes == 4) /* a few bytes are moved faster than the call of memcpy that moves them */
            for (int64_t i = first; i < stop; i++, to += 4)
                *(uint32_t *)to = ((const uint32_t *)from)[wrapped(index[i], t->a.n)];
        else if (bytes == 8)
            for (int64_t i = first; i < stop; i++, to += 8)
                *(uint64_t *)to = ((const uint64_t *)from)[wrapped(index[i], t->a.n)];
        else
            for (int64_t i = first; i < stop; i++, to += bytes)
                memcpy(to, from + (size_t)wrapped(index[i], t->a.n) * bytes, bytes);
    }
}

/* ints: axis */
static cyx_status take(const cyx_call *call) {
    taking t = {call, around_axis(&call->in[0], call->ints[0]), call->in[1].size};
    cyx_status status = check_indices(call, &call->in[1], t.a.n);
    if (status != CYX_OK || !call->out.size) return status;
    find_runs(&t);
    int64_t rows = t.a.outer * t.count;
    cyx_parallel(rows, cyx_grain(rows, (double)t.a.inner, CYX_LEAST_WORK), take_body, &t);
    return CYX_OK;
}

/* Adds rows of g where they came from, in the order of the indices. Threads take columns. */
#define TAKE_GRAD(T, TAG)                                                                                    \
    static void take_grad_##TAG##_body(void *context, int64_t begin, int64_t end) {                          \
        const taking *t = context;                                                                           \
        const int64_t *index = t->call->in[1].data;                                                          \
        int64_t inner = t->a.inner;                                                                          \
        for (int64_t at = begin; at < end;) {                                                                \
            int64_t outer = at / inner, first = at % inner,                                                  \
                    n = inner - first < end - at ? inner - first : end - at;                                 \
            T *out = (T *)t->call->out.data + outer * t->a.n * inner + first;                                \
            const T *g = (const T *)t->call->in[0].data + outer * t->count * inner + first;                  \
            if (n == inner) memset(out, 0, sizeof(T) * (size_t)(t->a.n * inner));                            \
            else                                                                                             \
                for (int64_t r = 0; r < t->a.n; r++) memset(out + r * inner, 0, sizeof(T) * (size_t)n);      \
            if (inner == 1)                                                                                  \
                for (int64_t i = 0; i < t->count; i++) out[wrapped(index[i], t->a.n)] += g[i];               \
            else for (int64_t i = 0; i < t->count; i++) {                                                    \
                T *row = out + wrapped(index[i], t->a.n) * inner;                                            \
                INDEPENDENT for (int64_t j = 0; j < n; j++) row[j] += g[i * inner + j];                      \
            }                                                                                                \
            at += n;                                                                                         \
        }                                                                                                    \
    }                                                                                                        \
    static cyx_status take_grad_##TAG(const cyx_call *call) {                                                \
        taking t = {call, around_axis(&call->out, call->ints[0]), call->in[1].size};                         \
        cyx_status status = check_indices(call, &call->in[1], t.a.n);                                        \
        if (status != CYX_OK) return status;                                                                 \
        int64_t columns = t.a.outer * t.a.inner;                                                             \
        int64_t grain = cyx_grain(columns, (double)(t.count + t.a.n), 100000);                               \
        cyx_parallel(columns, grain < 16 ? 16 : grain, take_grad_##TAG##_body, &t);                          \
        return CYX_OK;                                                                                       \
    }
TAKE_GRAD(float, f32)
TAKE_GRAD(double, f64)

/* Row after row of `inner` outputs, of which there are count for each of outer. */
#define TAKE_ALONG(T)                                                                                        \
    static void take_along_##T(void *context, int64_t begin, int64_t end) {                                  \
        const taking *t = context;                                                                           \
        const int64_t *index = t->call->in[1].data;                                                          \
        T *out = t->call->out.data;                                                                          \
        int64_t inner = t->a.inner, run = inner == 1 ? t->count : inner; /* outputs of which one row is read */ \
        for (int64_t at = begin; at < end;) {                                                                \
            int64_t first = at % run, n = run - first < end - at ? run - first : end - at;                   \
            const T *from = (const T *)t->call->in[0].data + at / (t->count * inner) * t->a.n * inner;       \
            if (inner == 1)                                                                                  \
                for (int64_t i = at; i < at + n; i++) out[i] = from[wrapped(index[i], t->a.n)];              \
            else                                                                                             \
                for (int64_t i = at; i < at + n; i++)                                                        \
                    out[i] = from[wrapped(index[i], t->a.n) * inner + first + i - at];                       \
            at += n;                                                                                         \
        }                                                                                                    \
    }
TAKE_ALONG(uint8_t)
TAKE_ALONG(uint32_t)
TAKE_ALONG(uint64_t)

/* ints: axis */
static cyx_status take_along(const cyx_call *call) {
    taking t = {call, around_axis(&call->in[0], call->ints[0]), around_axis(&call->in[1], call->ints[0]).n};
    cyx_status status = check_indices(call, &call->in[1], t.a.n);
    int bytes = cyx_dtype_bytes[call->out.dtype];
    if (status == CYX_OK && call->out.size)
        cyx_parallel(call->out.size, cyx_grain(call->out.size, 4, CYX_LEAST_WORK),
                     bytes == 8 ? take_along_uint64_t : bytes == 4 ? take_along_uint32_t : take_along_uint8_t, &t);
    return status;
}

/* ints: depth */
static cyx_status one_hot(const cyx_call *call) {
    int64_t depth = call->ints[0];
    cyx_status status = check_indices(call, &call->in[0], depth);
    if (status != CYX_OK) return status;
    memset(call->out.data, 0, sizeof(float) * (size_t)call->out.size);
    for (int64_t i = 0; i < call->in[0].size; i++)
        ((float *)call->out.data)[i * depth + wrapped(((const int64_t *)call->in[0].data)[i], depth)] = 1.0f;
    return CYX_OK;
}

/* The first greatest element, or the first NaN. Along contiguous memory the greatest of each block is found first, in
 * lanes, and then its place in the block that has the greatest of all (of floats in reduce.inl); across rows, many columns
 * side by side. */
enum { ARGMAX_LANES = 64, ARGMAX_BLOCK = 1024, ARGMAX_COLUMNS = 256 };
#define ARGMAX_OF_INTEGERS(T, TAG)                                                                           \
    static int64_t argmax_run_##TAG(const T *x, int64_t n) {                                                 \
        int64_t block = 0;                                                                                   \
        T best = x[0];                                                                                       \
        for (int64_t first = 0; first < n; first += ARGMAX_BLOCK) {                                          \
            int64_t count = n - first < ARGMAX_BLOCK ? n - first : ARGMAX_BLOCK, i = 0;                      \
            T lanes[ARGMAX_LANES];                                                                           \
            for (int j = 0; j < ARGMAX_LANES; j++) lanes[j] = x[first];                                      \
            for (; i + ARGMAX_LANES <= count; i += ARGMAX_LANES)                                             \
                INDEPENDENT for (int j = 0; j < ARGMAX_LANES; j++) {                                         \
                    T value = x[first + i + j];                                                              \
                    lanes[j] = value > lanes[j] ? value : lanes[j];                                          \
                }                                                                                            \
            for (; i < count; i++) lanes[0] = x[first + i] > lanes[0] ? x[first + i] : lanes[0];             \
            for (int j = 0; j < ARGMAX_LANES; j++)                                                           \
                if (lanes[j] > best) best = lanes[j], block = first;                                         \
        }                                                                                                    \
        while (x[block] != best) block++;                                                                    \
        return block;                                                                                        \
    }
ARGMAX_OF_INTEGERS(int64_t, i64)
ARGMAX_OF_INTEGERS(int32_t, i32)
ARGMAX_OF_INTEGERS(uint8_t, u8)
static int64_t argmax_run_f32(const float *x, int64_t n);
static int64_t argmax_run_f64(const double *x, int64_t n);

#define ARGMAX(T, PLACE, TAG)                                                                                \
    static void argmax_##TAG##_body(void *context, int64_t begin, int64_t end) {                             \
        const taking *t = context;                                                                           \
        const T *in = t->call->in[0].data;                                                                   \
        int64_t *out = t->call->out.data, inner = t->a.inner, n = t->a.n;                                    \
        for (int64_t o = begin; inner == 1 && o < end; o++) out[o] = argmax_run_##TAG(in + o * n, n);        \
        for (int64_t o = begin; inner > 1 && o < end;) {                                                     \
            int64_t first = o % inner, count = inner - first < end - o ? inner - first : end - o;            \
            if (count > ARGMAX_COLUMNS) count = ARGMAX_COLUMNS;                                              \
            const T *x = in + o / inner * n * inner + first;                                                 \
            T best[ARGMAX_COLUMNS];                                                                          \
            PLACE place[ARGMAX_COLUMNS];                                                                     \
            for (int64_t j = 0; j < count; j++) best[j] = x[j], place[j] = 0;                                \
            for (int64_t i = 1; i < n; i++)                                                                  \
                INDEPENDENT for (int64_t j = 0; j < count; j++) {                                            \
                    T value = x[i * inner + j], before = best[j];                                            \
                    int stays = (value <= before) | (before != before);                                      \
                    best[j] = stays ? before : value;                                                        \
                    place[j] = stays ? place[j] : (PLACE)i;                                                  \
                }                                                                                            \
            for (int64_t j = 0; j < count; j++) out[o + j] = (int64_t)place[j];                              \
            o += count;                                                                                      \
        }                                                                                                    \
    }                                                                                                        \
    static cyx_status argmax_##TAG(const cyx_call *call) {                                                   \
        taking t = {call, around_axis(&call->in[0], call->ints[0]), 0};                                      \
        int64_t count = t.a.outer * t.a.inner;                                                               \
        cyx_parallel(count, cyx_grain(count, (double)t.a.n, CYX_LEAST_WORK), argmax_##TAG##_body, &t);       \
        return CYX_OK;                                                                                       \
    }
ARGMAX(float, uint32_t, f32)
ARGMAX(double, uint64_t, f64)
ARGMAX(int64_t, uint64_t, i64)
ARGMAX(int32_t, uint32_t, i32)
ARGMAX(uint8_t, uint32_t, u8)

/* Sums, or products, of all elements of a line up to each one, in order. A line waits for each of its sums: several lie side by
 * side. */
enum { LINES_AT_ONCE = 8, LINE_COLUMNS = 2048 };
#define CUMULATIVE(NAME, T, U, OPERATOR)                                                                     \
    static void NAME##_rows(T *out, const T *x, int64_t n, int64_t rows) {                                   \
        T sums[LINES_AT_ONCE];                                                                               \
        if (!n) return;                                                                                      \
        for (int64_t r = 0; r < rows; r++) out[r * n] = sums[r] = x[r * n];                                  \
        if (rows == LINES_AT_ONCE)                                                                           \
            for (int64_t i = 1; i < n; i++)                                                                  \
                for (int64_t r = 0; r < LINES_AT_ONCE; r++)                                                  \
                    out[r * n + i] = sums[r] = (T)((U)sums[r] OPERATOR(U)x[r * n + i]);                      \
        else                                                                                                 \
            for (int64_t r = 0; r < rows; r++)                                                               \
                for (int64_t i = 1; i < n; i++)                                                              \
                    out[r * n + i] = sums[r] = (T)((U)sums[r] OPERATOR(U)x[r * n + i]);                      \
    }                                                                                                        \
    static void NAME##_body(void *context, int64_t begin, int64_t end) {                                     \
        const taking *t = context;                                                                           \
        const T *in = t->call->in[0].data;                                                                   \
        T *out = t->call->out.data;                                                                          \
        int64_t inner = t->a.inner, n = t->a.n;                                                              \
        for (int64_t line = begin; line < end;) {                                                            \
            int64_t most = inner == 1 ? LINES_AT_ONCE : LINE_COLUMNS, first = line % inner;                  \
            int64_t left = inner == 1 || end - line < inner - first ? end - line : inner - first;            \
            int64_t count = left < most ? left : most, at = line / inner * n * inner + first;                \
            if (inner == 1)                                                                                  \
                NAME##_rows(out + line * n, in + line * n, n, count);                                        \
            for (int64_t i = 0; inner > 1 && i < n; i++, at += inner) {                                      \
                const T *x = in + at, *before = out + at - inner;                                            \
                T *to = out + at;                                                                            \
                if (!i) memcpy(to, x, sizeof(T) * (size_t)count);                                            \
                else INDEPENDENT for (int64_t j = 0; j < count; j++) to[j] = (T)((U)before[j] OPERATOR(U)x[j]); \
            }                                                                                                \
            line += count;                                                                                   \
        }                                                                                                    \
    }                                                                                                        \
    static cyx_status NAME(const cyx_call *call) {                                                           \
        taking t = {call, around_axis(&call->in[0], call->ints[0]), 0};                                      \
        int64_t count = t.a.outer * t.a.inner;                                                               \
        if (call->out.size)                                                                                  \
            cyx_parallel(count, cyx_grain(count, (double)t.a.n, CYX_LEAST_WORK), NAME##_body, &t);           \
        return CYX_OK;                                                                                       \
    }
#define CUMULATIVES(T, U, TAG) CUMULATIVE(cumulative_sum_##TAG, T, U, +) CUMULATIVE(cumulative_prod_##TAG, T, U, *)
CUMULATIVES(float, float, f32)
CUMULATIVES(double, double, f64)
CUMULATIVES(int64_t, uint64_t, i64)
CUMULATIVES(int32_t, uint32_t, i32)

/* Reductions of integers: any order gives the same. The result type is that of the output. */
#define INTEGER_REDUCE(NAME, IN, OUT, START, JOIN)                                                           \
    static cyx_status NAME(const cyx_call *call) {                                                           \
        cyx_reduce_plan p = cyx_plan_reduction(call);                                                        \
        OUT *out = call->out.data;                                                                           \
        int64_t columns = p.inner_is_reduced ? 1 : p.inner, run = p.inner_is_reduced ? p.inner : 1;          \
        for (int64_t i = 0; i < call->out.size; i++) out[i] = (START);                                       \
        for (int64_t o = 0; o < p.outputs && call->in[0].size; o++)                                          \
            for (int64_t t = 0; t < p.terms; t++) {                                                          \
                const IN *x = (const IN *)call->in[0].data +                                                 \
                              cyx_offset_of(o, p.kept_count, p.kept, p.kept_stride) +                        \
                              cyx_offset_of(t, p.reduced_count, p.reduced, p.reduced_stride);                \
                OUT *to = out + o * columns, whole = to[0];                                                  \
                if (p.inner_is_reduced) {                                                                    \
                    for (int64_t i = 0; i < run; i++) {                                                      \
                        OUT a = whole, b = (OUT)x[i];                                                        \
                        whole = (OUT)(JOIN);                                                                 \
                    }                                                                                        \
                    to[0] = whole;                                                                           \
                    continue;                                                                                \
                }                                                                                            \
                INDEPENDENT for (int64_t j = 0; j < columns; j++) {                                          \
                    OUT a = to[j], b = (OUT)x[j];                                                            \
                    to[j] = (OUT)(JOIN);                                                                     \
                }                                                                                            \
            }                                                                                                \
        return CYX_OK;                                                                                       \
    }
#define INTEGER_REDUCTIONS(T, TAG, LEAST, GREATEST)                                                          \
    INTEGER_REDUCE(sum_##TAG##_to_i64, T, int64_t, 0, (uint64_t)a + (uint64_t)b)                             \
    INTEGER_REDUCE(sum_##TAG##_to_i32, T, int32_t, 0, (uint32_t)a + (uint32_t)b)                             \
    INTEGER_REDUCE(sum_##TAG##_to_u8, T, uint8_t, 0, (uint32_t)a + (uint32_t)b)                              \
    INTEGER_REDUCE(sum_##TAG##_to_bool, T, uint8_t, 0, a || b)                                               \
    INTEGER_REDUCE(prod_##TAG, T, T, 1, (uint64_t)a *(uint64_t)b)                                            \
    INTEGER_REDUCE(max_##TAG, T, T, LEAST, a > b ? a : b)                                                    \
    INTEGER_REDUCE(min_##TAG, T, T, GREATEST, a < b ? a : b)                                                 \
    static cyx_status sum_##TAG(const cyx_call *call) {                                                      \
        int to = call->out.dtype;                                                                            \
        if (to == CYX_I64) return sum_##TAG##_to_i64(call);                                                  \
        if (to == CYX_I32) return sum_##TAG##_to_i32(call);                                                  \
        return to == CYX_BOOL ? sum_##TAG##_to_bool(call) : sum_##TAG##_to_u8(call);                         \
    }
INTEGER_REDUCTIONS(int64_t, i64, INT64_MIN, INT64_MAX)
INTEGER_REDUCTIONS(int32_t, i32, INT32_MIN, INT32_MAX)
INTEGER_REDUCTIONS(uint8_t, u8, 0, UINT8_MAX)
INTEGER_REDUCE(all_bool, uint8_t, uint8_t, 1, a &b)
INTEGER_REDUCE(any_bool, uint8_t, uint8_t, 0, a | b)

/* ints: transpose_a, transpose_b. Plain loops: integers are for exactness here, not for speed. */
#define INTEGER_MATMUL(T, U, TAG)                                                                            \
    static cyx_status matmul_##TAG(const cyx_call *call) {                                                   \
        cyx_array a = call->in[0], b = call->in[1], out = call->out;                                         \
        if (!out.size) return CYX_OK;                                                                        \
        int64_t m = out.shape[out.ndim - 2], n = out.shape[out.ndim - 1];                                    \
        int64_t k = a.shape[a.ndim - (call->ints[0] ? 2 : 1)];                                               \
        a.ndim -= 2, b.ndim -= 2, out.ndim -= 2;                                                             \
        cyx_array stacks[2] = {a, b};                                                                        \
        cyx_walk walk = cyx_broadcast_walk(&out, stacks, 2);                                                 \
        int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS], last = walk.ndim - 1;                     \
        for (int64_t s = 0; s < out.size / (m * n); s++) {                                                   \
            cyx_walk_seek(&walk, 2, s, coordinate, offset);                                                  \
            const T *x = (const T *)a.data + (offset[0] + coordinate[last] * walk.stride[0][last]) * m * k;  \
            const T *y = (const T *)b.data + (offset[1] + coordinate[last] * walk.stride[1][last]) * k * n;  \
            for (int64_t i = 0; i < m; i++)                                                                  \
                for (int64_t j = 0; j < n; j++) {                                                            \
                    U total = 0;                                                                             \
                    for (int64_t q = 0; q < k; q++)                                                          \
                        total += (U)x[call->ints[0] ? q * m + i : i * k + q] *                               \
                                 (U)y[call->ints[1] ? j * k + q : q * n + j];                                \
                    ((T *)out.data)[(s * m + i) * n + j] = (T)total;                                         \
                }                                                                                            \
        }                                                                                                    \
        return CYX_OK;                                                                                       \
    }
INTEGER_MATMUL(int64_t, uint64_t, i64)
INTEGER_MATMUL(int32_t, uint32_t, i32)
INTEGER_MATMUL(uint8_t, uint32_t, u8)

static void fill_indexing(cyx_table table) {
    for (int dtype = CYX_F32; dtype <= CYX_U8; dtype++) {
        table[CYX_OP_take][dtype] = take, table[CYX_OP_take_along][dtype] = take_along;
        table[CYX_OP_cumulative_argmax][dtype] = table[CYX_OP_cumulative_argmin][dtype] = cyx_cumulative_place;
        table[CYX_OP_scatter][dtype] = cyx_scatter;
    }
    table[CYX_OP_take_grad][CYX_F32] = take_grad_f32, table[CYX_OP_take_grad][CYX_F64] = take_grad_f64;
    table[CYX_OP_take_along_grad][CYX_F32] = table[CYX_OP_take_along_grad][CYX_F64] = cyx_take_along_grad;
    table[CYX_OP_recurrence][CYX_F32] = table[CYX_OP_recurrence][CYX_F64] = cyx_linear_recurrence;
    table[CYX_OP_one_hot][CYX_I64] = one_hot;
    table[CYX_OP_argmax][CYX_F32] = argmax_f32, table[CYX_OP_argmax][CYX_F64] = argmax_f64;
    table[CYX_OP_argmax][CYX_I64] = argmax_i64, table[CYX_OP_argmax][CYX_I32] = argmax_i32;
    table[CYX_OP_argmax][CYX_BOOL] = argmax_u8, table[CYX_OP_argmax][CYX_U8] = argmax_u8;
    table[CYX_OP_cumulative_sum][CYX_F32] = cumulative_sum_f32, table[CYX_OP_cumulative_sum][CYX_F64] = cumulative_sum_f64;
    table[CYX_OP_cumulative_sum][CYX_I64] = cumulative_sum_i64, table[CYX_OP_cumulative_sum][CYX_I32] = cumulative_sum_i32;
    table[CYX_OP_cumulative_prod][CYX_F32] = cumulative_prod_f32, table[CYX_OP_cumulative_prod][CYX_F64] = cumulative_prod_f64;
    table[CYX_OP_cumulative_prod][CYX_I64] = cumulative_prod_i64, table[CYX_OP_cumulative_prod][CYX_I32] = cumulative_prod_i32;
    table[CYX_OP_sum][CYX_I64] = sum_i64, table[CYX_OP_sum][CYX_I32] = sum_i32;
    table[CYX_OP_sum][CYX_BOOL] = sum_u8, table[CYX_OP_sum][CYX_U8] = sum_u8;
    table[CYX_OP_max][CYX_I64] = max_i64, table[CYX_OP_max][CYX_I32] = max_i32,
    table[CYX_OP_max][CYX_U8] = max_u8;
    table[CYX_OP_min][CYX_I64] = min_i64, table[CYX_OP_min][CYX_I32] = min_i32,
    table[CYX_OP_min][CYX_U8] = min_u8;
    table[CYX_OP_prod][CYX_I64] = prod_i64, table[CYX_OP_prod][CYX_I32] = prod_i32;
    table[CYX_OP_prod][CYX_U8] = prod_u8;
    table[CYX_OP_all][CYX_BOOL] = all_bool, table[CYX_OP_any][CYX_BOOL] = any_bool;
    table[CYX_OP_max][CYX_BOOL] = max_u8, table[CYX_OP_min][CYX_BOOL] = min_u8;
    table[CYX_OP_matmul][CYX_I64] = matmul_i64, table[CYX_OP_matmul][CYX_I32] = matmul_i32;
    table[CYX_OP_matmul][CYX_U8] = matmul_u8;
}
