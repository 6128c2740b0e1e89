/* Along an axis, what waits for what was before it or goes where an index says.
 *
 * The gradient of taking along an axis: each term of a column goes to the place that its index names, and those of one place are
 * added in blocks of `terms` of the column, whose sums meet in pairs: as in a sum over the column of one-hot vectors, whose zeros
 * change nothing. */
#include <string.h>

#include "cyx.h"
#include "elementwise.h"
#include "pool.h"

enum { MOST_LEVELS = 64 };

typedef struct {
    const void *g;
    const int64_t *index;
    void *out;
    int64_t taken, size, terms;
    int64_t inner; /* how far apart the elements of a column lie */
    int from_zero;
    _Atomic int no_memory;
} along;

static inline int64_t place_of(int64_t index, int64_t size) { return index < 0 ? index + size : index; }

/* How high above two blocks the pair is in which their sums meet. */
static inline int meeting(int64_t one, int64_t other) { return 64 - __builtin_clzll((uint64_t)(one ^ other)); }

/* Of a column: `block` has for each place the block in which it was met first, counted from 1, and 0 before; of a place that is met
 * in several blocks it has SEVERAL and which of those places it is. `start` and `order` are of these alone: where in the order of
 * places the terms of each begin, and the terms. */
#define SEVERAL 0x80000000u
#define ALONG(T, TAG)                                                                                        \
    /* Sums where a place has terms in one block; how many have them in several, and wait for theirs. */     \
    static uint32_t one_block_each_##TAG(const along *w, const T *g, const int64_t *index, T *out, uint32_t *block) { \
        uint32_t number = 1, several = 0;                                                                    \
        memset(block, 0, sizeof *block * (size_t)w->size);                                                   \
        for (int64_t at = 0; at < w->size; at++) out[at * w->inner] = 0;                                     \
        for (int64_t first = 0; first < w->taken; first += w->terms, number++) {                             \
            int64_t end = w->taken - first < w->terms ? w->taken : first + w->terms;                         \
            for (int64_t i = first; i < end; i++) {                                                          \
                int64_t at = place_of(index[i * w->inner], w->size);                                         \
                if (!block[at]) block[at] = number;                                                          \
                if (block[at] == number) out[at * w->inner] += g[i * w->inner];                              \
                else if (block[at] < SEVERAL) block[at] = SEVERAL + several++;                               \
            }                                                                                                \
        }                                                                                                    \
        return several;                                                                                      \
    }                                                                                                        \
    static T in_blocks_##TAG(const along *w, const T *g, const uint32_t *order, int64_t count) {             \
        T sums[MOST_LEVELS];                                                                                 \
        int64_t blocks[MOST_LEVELS];                                                                         \
        int kept = 0;                                                                                        \
        for (int64_t i = 0; i < count;) {                                                                    \
            int64_t block = (int64_t)(order[i] / (uint32_t)w->terms), end = (block + 1) * w->terms; /* of 32 bits: fast */ \
            T sum = 0;                                                                                       \
            for (; i < count && order[i] < end; i++) sum += g[order[i] * w->inner];                          \
            while (kept > 1 && meeting(blocks[kept - 2], blocks[kept - 1]) < meeting(blocks[kept - 1], block)) \
                kept--, sums[kept - 1] += sums[kept];                                                        \
            sums[kept] = sum, blocks[kept++] = block;                                                        \
        }                                                                                                    \
        while (kept > 1) kept--, sums[kept - 1] += sums[kept];                                               \
        return sums[0];                                                                                      \
    }                                                                                                        \
    static void blocks_in_pairs_##TAG(const along *w, const T *g, const int64_t *index, T *out, const uint32_t *block, \
                                      uint32_t several, uint32_t *start, uint32_t *order) {                  \
        memset(start, 0, sizeof *start * ((size_t)several + 1));                                             \
        for (int64_t i = 0; i < w->taken; i++) {                                                             \
            uint32_t which = block[place_of(index[i * w->inner], w->size)];                                  \
            if (which >= SEVERAL) start[which - SEVERAL + 1]++;                                              \
        }                                                                                                    \
        for (uint32_t k = 0; k < several; k++) start[k + 1] += start[k];                                     \
        for (int64_t i = 0; i < w->taken; i++) {                                                             \
            uint32_t which = block[place_of(index[i * w->inner], w->size)];                                  \
            if (which >= SEVERAL) order[start[which - SEVERAL]++] = (uint32_t)i;                             \
        }                                                                                                    \
        for (uint32_t k = 0, first = 0; k < several; first = start[k++]) /* each is now where it ends */     \
            out[place_of(index[order[first] * w->inner], w->size) * w->inner] =                              \
                in_blocks_##TAG(w, g, order + first, start[k] - first);                                      \
    }                                                                                                        \
    /* A sum that does not begin with zero is -0 where nothing but -0 is added. */                           \
    static void keep_sign_##TAG(const along *w, const T *g, const int64_t *index, T *out) {                  \
        int64_t at = place_of(index[0], w->size);                                                            \
        for (int64_t i = 0; i < w->taken; i++) {                                                             \
            T one = g[i * w->inner];                                                                         \
            if (one != 0 || !__builtin_signbit(one) || place_of(index[i * w->inner], w->size) != at) return; \
        }                                                                                                    \
        out[at * w->inner] = -(T)0;                                                                          \
    }                                                                                                        \
    static void along_##TAG##_body(void *context, int64_t begin, int64_t end) {                              \
        along *w = context;                                                                                  \
        int64_t most = w->size < w->taken ? w->size : w->taken;                                              \
        uint32_t *block = cyx_scratch(1, sizeof *block * (size_t)(w->size + most + 1 + w->taken));           \
        uint32_t *start = block + w->size;                                                                   \
        if (!block) {                                                                                        \
            w->no_memory = 1;                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t column = begin; column < end; column++) {                                               \
            int64_t outer = column / w->inner * w->inner, within = column % w->inner;                        \
            const T *g = (const T *)w->g + outer * w->taken + within;                                        \
            const int64_t *index = w->index + outer * w->taken + within;                                     \
            T *out = (T *)w->out + outer * w->size + within;                                                 \
            uint32_t several = one_block_each_##TAG(w, g, index, out, block);                                \
            if (several) blocks_in_pairs_##TAG(w, g, index, out, block, several, start, start + most + 1);   \
            if (!w->from_zero && w->taken) keep_sign_##TAG(w, g, index, out);                                \
        }                                                                                                    \
    }
ALONG(float, f32)
ALONG(double, f64)

/* ints: axis, size, terms, from_zero */
cyx_status cyx_take_along_grad(const cyx_call *call) {
    const cyx_array *g = &call->in[0];
    int64_t columns = 1, axis = call->ints[0];
    along work = {.g = g->data, .index = call->in[1].data, .out = call->out.data, .taken = g->shape[axis], .size = call->ints[1],
                  .terms = call->ints[2] >> 31 ? (int64_t)1 << 31 : call->ints[2], .inner = 1, .from_zero = call->ints[3] != 0};
    for (int d = 0; d < g->ndim; d++) {
        if (d > axis) work.inner *= g->shape[d];
        if (d != axis) columns *= g->shape[d];
    }
    for (int64_t i = 0; i < g->size; i++)
        if (work.index[i] < -work.size || work.index[i] >= work.size)
            return cyx_fail(CYX_BAD_DATA, "take_along_grad: expected indices from %lld to %lld, got %lld at position %lld",
                            (long long)-work.size, (long long)work.size - 1, (long long)work.index[i], (long long)i);
    cyx_parallel(columns, cyx_grain(columns, (double)(work.taken + work.size), CYX_LEAST_WORK),
                 call->dtype == CYX_F32 ? along_f32_body : along_f64_body, &work);
    return work.no_memory ? cyx_fail(CYX_NO_MEMORY, "take_along_grad: no memory left for scratch space") : CYX_OK;
}

/* The lines along an axis of a call: `n` elements each, `inner` apart; the first of line number i is at line_of(w, i). */
typedef struct {
    const cyx_call *call;
    int64_t n, inner, count;
} lines;

static lines lines_of(const cyx_call *call, int64_t axis) {
    const cyx_array *x = &call->in[0];
    lines w = {call, x->ndim ? x->shape[axis] : 1, 1, 0};
    for (int d = (int)axis + 1; d < x->ndim; d++) w.inner *= x->shape[d];
    w.count = w.n ? x->size / w.n : 0;
    return w;
}

static inline int64_t line_of(const lines *w, int64_t line) { return line / w->inner * w->inner * w->n + line % w->inner; }

/* How many lines from `line` on, `most` and before `end`, lie beside each other, and how far apart. */
static inline int64_t lines_beside(const lines *w, int64_t line, int64_t end, int64_t most, int64_t *between) {
    int64_t left = w->inner == 1 || end - line < w->inner - line % w->inner ? end - line : w->inner - line % w->inner;
    *between = w->inner == 1 ? w->n : 1;
    return left < most ? left : most;
}

/* Where the best of a line so far is, the last of equals; a NaN is better than all numbers. */
enum { BEST_COLUMNS = 64 };
#define CUMULATIVE_PLACE(T, TAG, NAME, BETTER)                                                               \
    static void NAME##_##TAG##_body(void *context, int64_t begin, int64_t end) {                             \
        const lines *w = context;                                                                            \
        int64_t between, count, inner = w->inner;                                                            \
        for (int64_t line = begin; line < end; line += count) {                                              \
            count = lines_beside(w, line, end, inner == 1 ? 1 : BEST_COLUMNS, &between);                     \
            int64_t first = line_of(w, line), place[BEST_COLUMNS] = {0};                                     \
            const T *x = (const T *)w->call->in[0].data + first;                                             \
            int64_t *out = (int64_t *)w->call->out.data + first;                                             \
            T best[BEST_COLUMNS];                                                                            \
            if (inner == 1) {                                                                                \
                T most = x[0];                                                                               \
                for (int64_t i = 0, at = 0; i < w->n; i++) {                                                 \
                    if ((x[i] BETTER most) | (x[i] != x[i])) most = x[i], at = i;                            \
                    out[i] = at;                                                                             \
                }                                                                                            \
                continue;                                                                                    \
            }                                                                                                \
            memcpy(best, x, sizeof(T) * (size_t)count);                                                      \
            for (int64_t i = 0; i < w->n; i++, x += inner, out += inner)                                     \
                for (int64_t j = 0; j < count; j++) {                                                        \
                    int takes = (x[j] BETTER best[j]) | (x[j] != x[j]);                                      \
                    best[j] = takes ? x[j] : best[j];                                                        \
                    out[j] = place[j] = takes ? i : place[j];                                                \
                }                                                                                            \
        }                                                                                                    \
    }
#define CUMULATIVE_PLACES(T, TAG)                                                                            \
    CUMULATIVE_PLACE(T, TAG, greatest, >=)                                                                   \
    CUMULATIVE_PLACE(T, TAG, least, <=)
CUMULATIVE_PLACES(float, f32)
CUMULATIVE_PLACES(double, f64)
CUMULATIVE_PLACES(int64_t, i64)
CUMULATIVE_PLACES(int32_t, i32)
CUMULATIVE_PLACES(uint8_t, u8)

/* ints: axis */
cyx_status cyx_cumulative_place(const cyx_call *call) {
    static const cyx_body greatest[] = {greatest_f32_body, greatest_f64_body, greatest_i64_body,
                                        greatest_i32_body, greatest_u8_body,  greatest_u8_body};
    static const cyx_body least[] = {least_f32_body, least_f64_body, least_i64_body, least_i32_body, least_u8_body, least_u8_body};
    lines work = lines_of(call, call->ints[0]);
    cyx_parallel(work.count, cyx_grain(work.count, 2.0 * (double)work.n, CYX_LEAST_WORK),
                 (call->op == CYX_OP_cumulative_argmax ? greatest : least)[call->dtype], &work);
    return CYX_OK;
}

/* y = t + f y', y' being what the line came to before, in float64; a factor of 0 takes nothing along, of infinities too. A line waits
 * for each of its results: several are made side by side. */
enum { LINES_ABREAST = 8 };
#define RECURRENCE(T, TAG)                                                                                   \
    static inline __attribute__((always_inline)) void recurrence_##TAG##_lines(                              \
        const T *t, const T *f, T *out, int64_t n, int64_t step, int64_t count, int64_t between) {           \
        double y[LINES_ABREAST];                                                                             \
        for (int64_t r = 0; r < count; r++) y[r] = t[r * between], out[r * between] = (T)y[r];               \
        for (int64_t i = 1; i < n; i++) {                                                                    \
            t += step, f += step, out += step;                                                               \
            for (int64_t r = 0; r < count; r++) {                                                            \
                double factor = f[r * between], carried = factor * y[r];                                     \
                y[r] = t[r * between] + (factor == 0.0 ? 0.0 : carried);                                     \
                out[r * between] = (T)y[r];                                                                  \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
    static void recurrence_##TAG##_body(void *context, int64_t begin, int64_t end) {                         \
        const lines *w = context;                                                                            \
        int backwards = w->call->ints[1] != 0;                                                               \
        int64_t between, count, step = backwards ? -w->inner : w->inner;                                     \
        for (int64_t line = begin; line < end; line += count) {                                              \
            count = lines_beside(w, line, end, LINES_ABREAST, &between);                                     \
            int64_t first = line_of(w, line) + (backwards ? (w->n - 1) * w->inner : 0);                      \
            const T *t = (const T *)w->call->in[0].data + first;                                             \
            /* Backwards the factor is that of the place where the line comes from. */                       \
            const T *f = (const T *)w->call->in[1].data + first - (backwards ? step : 0);                    \
            T *out = (T *)w->call->out.data + first;                                                         \
            if (count == LINES_ABREAST)                                                                      \
                recurrence_##TAG##_lines(t, f, out, w->n, step, LINES_ABREAST, between);                     \
            else                                                                                             \
                recurrence_##TAG##_lines(t, f, out, w->n, step, count, between);                             \
        }                                                                                                    \
    }
RECURRENCE(float, f32)
RECURRENCE(double, f64)

/* ints: axis, backwards */
cyx_status cyx_linear_recurrence(const cyx_call *call) {
    lines work = lines_of(call, call->ints[0]);
    cyx_parallel(work.count, cyx_grain(work.count, 4.0 * (double)work.n, CYX_LEAST_WORK),
                 call->dtype == CYX_F32 ? recurrence_f32_body : recurrence_f64_body, &work);
    return CYX_OK;
}

/* Rows put at places of another array's first axis, or combined with what is there, in the order of the places. */
typedef enum { FOLD_NONE, FOLD_ADD, FOLD_MUL, FOLD_MIN, FOLD_MAX } fold;

typedef struct {
    const cyx_call *call;
    int64_t inner;
} scattering;

/* Single numbers apart from rows, of which the loop within is longer than what it does for one. */
#define FOLDED(T, EXPRESSION)                                                                                \
    if (w->inner == 1)                                                                                       \
        for (int64_t k = 0; k < places->size; k++) {                                                         \
            T *to = out + place_of(index[k], x->shape[0]), a = *to, b = rows[k];                             \
            *to = (T)(EXPRESSION);                                                                           \
        }                                                                                                    \
    else                                                                                                     \
        for (int64_t k = 0; k < places->size; k++) {                                                         \
            T *to = out + place_of(index[k], x->shape[0]) * w->inner;                                        \
            const T *from = rows + k * w->inner;                                                             \
            for (int64_t j = begin; j < end; j++) {                                                          \
                T a = to[j], b = from[j];                                                                    \
                to[j] = (T)(EXPRESSION);                                                                     \
            }                                                                                                \
        }                                                                                                    \
    break
/* a NaN is greater and less than all numbers. U: in which sums and products wrap around. */
#define SCATTER(T, U, TAG, PLUS, TIMES)                                                                      \
    static void scatter_##TAG##_body(void *context, int64_t begin, int64_t end) {                            \
        const scattering *w = context;                                                                       \
        const cyx_array *x = &w->call->in[0], *places = &w->call->in[1];                                     \
        const int64_t *index = places->data;                                                                 \
        const T *rows = w->call->in[2].data;                                                                 \
        T *out = w->call->out.data;                                                                          \
        switch ((fold)w->call->ints[0]) {                                                                    \
        case FOLD_NONE: FOLDED(T, ((void)a, b));                                                             \
        case FOLD_ADD: FOLDED(T, (U)a PLUS(U)b);                                                             \
        case FOLD_MUL: FOLDED(T, (U)a TIMES(U)b);                                                            \
        case FOLD_MIN: FOLDED(T, (a <= b) | (a != a) ? a : b);                                               \
        default: FOLDED(T, (a >= b) | (a != a) ? a : b);                                                     \
        }                                                                                                    \
    }
SCATTER(float, float, f32, +, *)
SCATTER(double, double, f64, +, *)
SCATTER(int64_t, uint64_t, i64, +, *)
SCATTER(int32_t, uint32_t, i32, +, *)
SCATTER(uint8_t, uint32_t, u8, +, *)
SCATTER(uint8_t, uint8_t, bool, |, &)

/* ints: reduction */
cyx_status cyx_scatter(const cyx_call *call) {
    static const cyx_body bodies[] = {scatter_f32_body, scatter_f64_body,  scatter_i64_body,
                                      scatter_i32_body, scatter_bool_body, scatter_u8_body};
    const cyx_array *x = &call->in[0], *places = &call->in[1];
    const int64_t *index = places->data;
    for (int64_t k = 0; k < places->size; k++)
        if (index[k] < -x->shape[0] || index[k] >= x->shape[0])
            return cyx_fail(CYX_BAD_DATA, "scatter: expected places from %lld to %lld, got %lld at position %lld",
                            (long long)-x->shape[0], (long long)x->shape[0] - 1, (long long)index[k], (long long)k);
    if (call->out.data != x->data && x->size) memcpy(call->out.data, x->data, (size_t)(x->size * cyx_dtype_bytes[x->dtype]));
    scattering work = {call, x->shape[0] ? x->size / x->shape[0] : 0};
    cyx_parallel(work.inner, cyx_grain(work.inner, (double)places->size, CYX_LEAST_WORK), bodies[call->dtype], &work);
    return CYX_OK;
}
