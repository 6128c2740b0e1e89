/* take and its kin, argmax, and the reductions and products of integers. Element types come in as macros. */
#include <string.h>

#include "elementwise.h"
#include "reduce_plan.h"
#include "tables.h"

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
    for (int64_t i = 0; i < indices->size; i++)
        if (index[i] < -n || index[i] >= n)
            return cyx_fail(CYX_BAD_DATA, "%s: expected indices from %lld to %lld, got %lld at position %lld",
                            cyx_op_names[call->op], (long long)-n, (long long)n - 1, (long long)index[i],
                            (long long)(cyx_band * indices->size + i));
    return CYX_OK;
}

static inline int64_t wrapped(int64_t index, int64_t n) { return index < 0 ? index + n : index; }

typedef struct {
    const cyx_call *call;
    around a;
    int64_t count; /* of indices */
} taking;

static void take_body(void *context, int64_t begin, int64_t end) {
    const taking *t = context;
    const cyx_call *call = t->call;
    const int64_t *index = call->in[1].data;
    size_t bytes = (size_t)(t->a.inner * cyx_dtype_bytes[call->out.dtype]);
    for (int64_t row = begin; row < end; row++) {
        int64_t outer = row / t->count, i = wrapped(index[row % t->count], t->a.n);
        memcpy((char *)call->out.data + (size_t)row * bytes,
               (const char *)call->in[0].data + (size_t)(outer * t->a.n + i) * bytes, bytes);
    }
}

/* ints: axis */
static cyx_status take(const cyx_call *call) {
    taking t = {call, around_axis(&call->in[0], call->ints[0]), call->in[1].size};
    cyx_status status = check_indices(call, &call->in[1], t.a.n);
    if (status != CYX_OK || !call->out.size) return status;
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
            for (int64_t r = 0; r < t->a.n; r++) memset(out + r * inner, 0, sizeof(T) * (size_t)n);          \
            for (int64_t i = 0; i < t->count; i++) {                                                         \
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

static void take_along_body(void *context, int64_t begin, int64_t end) {
    const taking *t = context;
    const cyx_call *call = t->call;
    const int64_t *index = call->in[1].data;
    int bytes = cyx_dtype_bytes[call->out.dtype];
    for (int64_t at = begin; at < end; at++) {
        int64_t outer = at / (t->count * t->a.inner), j = at % t->a.inner;
        int64_t from = (outer * t->a.n + wrapped(index[at], t->a.n)) * t->a.inner + j;
        if (bytes == 4)
            ((uint32_t *)call->out.data)[at] = ((const uint32_t *)call->in[0].data)[from];
        else if (bytes == 8)
            ((uint64_t *)call->out.data)[at] = ((const uint64_t *)call->in[0].data)[from];
        else
            ((uint8_t *)call->out.data)[at] = ((const uint8_t *)call->in[0].data)[from];
    }
}

/* ints: axis */
static cyx_status take_along(const cyx_call *call) {
    taking t = {call, around_axis(&call->in[0], call->ints[0]), around_axis(&call->in[1], call->ints[0]).n};
    cyx_status status = check_indices(call, &call->in[1], t.a.n);
    if (status == CYX_OK)
        cyx_parallel(call->out.size, cyx_grain(call->out.size, 4, CYX_LEAST_WORK), take_along_body, &t);
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

/* The first greatest element, or the first NaN. */
#define ARGMAX(T, TAG)                                                                                       \
    static void argmax_##TAG##_body(void *context, int64_t begin, int64_t end) {                             \
        const taking *t = context;                                                                           \
        int64_t inner = t->a.inner;                                                                          \
        for (int64_t o = begin; o < end; o++) {                                                              \
            const T *x = (const T *)t->call->in[0].data + o / inner * t->a.n * inner + o % inner;            \
            int64_t best = 0;                                                                                \
            for (int64_t i = 1; i < t->a.n && x[best * inner] == x[best * inner]; i++)                       \
                if (!(x[i * inner] <= x[best * inner])) best = i;                                            \
            ((int64_t *)t->call->out.data)[o] = best;                                                        \
        }                                                                                                    \
    }                                                                                                        \
    static cyx_status argmax_##TAG(const cyx_call *call) {                                                   \
        taking t = {call, around_axis(&call->in[0], call->ints[0]), 0};                                      \
        int64_t count = t.a.outer * t.a.inner;                                                               \
        cyx_parallel(count, cyx_grain(count, (double)t.a.n, CYX_LEAST_WORK), argmax_##TAG##_body, &t);       \
        return CYX_OK;                                                                                       \
    }
ARGMAX(float, f32)
ARGMAX(double, f64)
ARGMAX(int64_t, i64)
ARGMAX(int32_t, i32)
ARGMAX(uint8_t, u8)

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
                for (int64_t j = 0; j < columns; j++)                                                        \
                    for (int64_t i = 0; i < run; i++) {                                                      \
                        OUT a = out[o * columns + j], b = (OUT)x[i + j];                                     \
                        out[o * columns + j] = (OUT)(JOIN);                                                  \
                    }                                                                                        \
            }                                                                                                \
        return CYX_OK;                                                                                       \
    }
#define INTEGER_REDUCTIONS(T, TAG, LEAST, GREATEST)                                                          \
    INTEGER_REDUCE(sum_##TAG##_to_i64, T, int64_t, 0, (uint64_t)a + (uint64_t)b)                             \
    INTEGER_REDUCE(sum_##TAG##_to_i32, T, int32_t, 0, (uint32_t)a + (uint32_t)b)                             \
    INTEGER_REDUCE(sum_##TAG##_to_u8, T, uint8_t, 0, (uint32_t)a + (uint32_t)b)                              \
    INTEGER_REDUCE(sum_##TAG##_to_bool, T, uint8_t, 0, a || b)                                               \
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

void cyx_fill_indexing(cyx_table table) {
    for (int dtype = CYX_F32; dtype <= CYX_U8; dtype++)
        table[CYX_OP_take][dtype] = take, table[CYX_OP_take_along][dtype] = take_along;
    table[CYX_OP_take_grad][CYX_F32] = take_grad_f32, table[CYX_OP_take_grad][CYX_F64] = take_grad_f64;
    table[CYX_OP_one_hot][CYX_I64] = one_hot;
    table[CYX_OP_argmax][CYX_F32] = argmax_f32, table[CYX_OP_argmax][CYX_F64] = argmax_f64;
    table[CYX_OP_argmax][CYX_I64] = argmax_i64, table[CYX_OP_argmax][CYX_I32] = argmax_i32;
    table[CYX_OP_argmax][CYX_BOOL] = argmax_u8, table[CYX_OP_argmax][CYX_U8] = argmax_u8;
    table[CYX_OP_sum][CYX_I64] = sum_i64, table[CYX_OP_sum][CYX_I32] = sum_i32;
    table[CYX_OP_sum][CYX_BOOL] = sum_u8, table[CYX_OP_sum][CYX_U8] = sum_u8;
    table[CYX_OP_max][CYX_I64] = max_i64, table[CYX_OP_max][CYX_I32] = max_i32,
    table[CYX_OP_max][CYX_U8] = max_u8;
    table[CYX_OP_min][CYX_I64] = min_i64, table[CYX_OP_min][CYX_I32] = min_i32,
    table[CYX_OP_min][CYX_U8] = min_u8;
    table[CYX_OP_max][CYX_BOOL] = max_u8, table[CYX_OP_min][CYX_BOOL] = min_u8;
    table[CYX_OP_matmul][CYX_I64] = matmul_i64, table[CYX_OP_matmul][CYX_I32] = matmul_i32;
    table[CYX_OP_matmul][CYX_U8] = matmul_u8;
}
