/* The gradient of taking along an axis: each term of a column goes to the place that its index names, and those of one place are
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

/* Of a column: `block` has for each place the block in which it was met first, counted from 1, and 0 before; `start` and
 * `order` are used where a place is met in several blocks only: then terms are put in the order of their places. */
#define ALONG(T, TAG)                                                                                        \
    /* 0: some place has terms in several blocks, and this is not their sum. */                              \
    static int one_block_each_##TAG(const along *w, const T *g, const int64_t *index, T *out, uint32_t *block) { \
        uint32_t number = 1;                                                                                 \
        memset(block, 0, sizeof *block * (size_t)w->size);                                                   \
        for (int64_t at = 0; at < w->size; at++) out[at * w->inner] = 0;                                     \
        for (int64_t first = 0; first < w->taken; first += w->terms, number++) {                             \
            int64_t end = w->taken - first < w->terms ? w->taken : first + w->terms;                         \
            for (int64_t i = first; i < end; i++) {                                                          \
                int64_t at = place_of(index[i * w->inner], w->size);                                         \
                if (block[at] && block[at] != number) return 0;                                              \
                block[at] = number, out[at * w->inner] += g[i * w->inner];                                   \
            }                                                                                                \
        }                                                                                                    \
        return 1;                                                                                            \
    }                                                                                                        \
    static T in_blocks_##TAG(const along *w, const T *g, const uint32_t *order, int64_t count) {             \
        T sums[MOST_LEVELS];                                                                                 \
        int64_t blocks[MOST_LEVELS];                                                                         \
        int kept = 0;                                                                                        \
        for (int64_t i = 0; i < count;) {                                                                    \
            int64_t block = order[i] / w->terms, end = (block + 1) * w->terms;                               \
            T sum = 0;                                                                                       \
            for (; i < count && order[i] < end; i++) sum += g[order[i] * w->inner];                          \
            while (kept > 1 && meeting(blocks[kept - 2], blocks[kept - 1]) < meeting(blocks[kept - 1], block)) \
                kept--, sums[kept - 1] += sums[kept];                                                        \
            sums[kept] = sum, blocks[kept++] = block;                                                        \
        }                                                                                                    \
        while (kept > 1) kept--, sums[kept - 1] += sums[kept];                                               \
        return kept ? sums[0] : (T)0;                                                                        \
    }                                                                                                        \
    static void blocks_in_pairs_##TAG(const along *w, const T *g, const int64_t *index, T *out, uint32_t *start, \
                                      uint32_t *order) {                                                     \
        memset(start, 0, sizeof *start * (size_t)(w->size + 1));                                             \
        for (int64_t i = 0; i < w->taken; i++) start[place_of(index[i * w->inner], w->size) + 1]++;          \
        for (int64_t at = 0; at < w->size; at++) start[at + 1] += start[at];                                 \
        for (int64_t i = 0; i < w->taken; i++)                                                               \
            order[start[place_of(index[i * w->inner], w->size)]++] = (uint32_t)i;                            \
        for (int64_t at = 0, first = 0; at < w->size; first = start[at++]) /* each is now where it ends */   \
            out[at * w->inner] = in_blocks_##TAG(w, g, order + first, start[at] - first);                    \
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
        uint32_t *start = cyx_scratch(1, sizeof *start * (size_t)(w->size + 1 + w->taken));                  \
        if (!start) {                                                                                        \
            w->no_memory = 1;                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t column = begin; column < end; column++) {                                               \
            int64_t outer = column / w->inner * w->inner, within = column % w->inner;                        \
            const T *g = (const T *)w->g + outer * w->taken + within;                                        \
            const int64_t *index = w->index + outer * w->taken + within;                                     \
            T *out = (T *)w->out + outer * w->size + within;                                                 \
            if (!one_block_each_##TAG(w, g, index, out, start))                                              \
                blocks_in_pairs_##TAG(w, g, index, out, start, start + w->size + 1);                         \
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
                  .terms = call->ints[2], .inner = 1, .from_zero = call->ints[3] != 0};
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
