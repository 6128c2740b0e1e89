/* The gradient of taking along rows: each term goes to the place that its index names, and those of one place are added in
 * blocks of `terms` of the row, whose sums meet in pairs: as in a sum over the row of one-hot vectors, whose zeros change
 * nothing. */
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
    int from_zero;
    _Atomic int no_memory;
} along;

static inline int64_t place_of(int64_t index, int64_t size) { return index < 0 ? index + size : index; }

/* How high above two blocks the pair is in which their sums meet. */
static inline int meeting(int64_t one, int64_t other) { return 64 - __builtin_clzll((uint64_t)(one ^ other)); }

/* Of a row: `block` has for each place the block in which it was met first, counted from 1, and 0 before; `start` and `order`
 * are used where a place is met in several blocks only: then terms are put in the order of their places. */
#define ALONG(T, TAG)                                                                                        \
    /* 0: some place has terms in several blocks, and this is not their sum. */                              \
    static int one_block_each_##TAG(const along *w, const T *g, const int64_t *index, T *out, uint32_t *block) { \
        memset(out, 0, sizeof(T) * (size_t)w->size);                                                         \
        memset(block, 0, sizeof *block * (size_t)w->size);                                                   \
        uint32_t number = 1;                                                                                 \
        for (int64_t first = 0; first < w->taken; first += w->terms, number++) {                             \
            int64_t end = w->taken - first < w->terms ? w->taken : first + w->terms;                         \
            for (int64_t i = first; i < end; i++) {                                                          \
                int64_t at = place_of(index[i], w->size);                                                    \
                if (block[at] && block[at] != number) return 0;                                              \
                block[at] = number, out[at] += g[i];                                                         \
            }                                                                                                \
        }                                                                                                    \
        return 1;                                                                                            \
    }                                                                                                        \
    static T in_blocks_##TAG(const T *g, const uint32_t *order, int64_t count, int64_t terms) {              \
        T sums[MOST_LEVELS];                                                                                 \
        int64_t blocks[MOST_LEVELS];                                                                         \
        int kept = 0;                                                                                        \
        for (int64_t i = 0; i < count;) {                                                                    \
            int64_t block = order[i] / terms, end = (block + 1) * terms;                                     \
            T sum = 0;                                                                                       \
            for (; i < count && order[i] < end; i++) sum += g[order[i]];                                     \
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
        for (int64_t i = 0; i < w->taken; i++) start[place_of(index[i], w->size) + 1]++;                     \
        for (int64_t at = 0; at < w->size; at++) start[at + 1] += start[at];                                 \
        for (int64_t i = 0; i < w->taken; i++) order[start[place_of(index[i], w->size)]++] = (uint32_t)i;    \
        for (int64_t at = 0, first = 0; at < w->size; first = start[at++]) /* each is now where it ends */   \
            out[at] = in_blocks_##TAG(g, order + first, start[at] - first, w->terms);                        \
    }                                                                                                        \
    /* A sum that does not begin with zero is -0 where nothing but -0 is added. */                           \
    static void keep_sign_##TAG(const along *w, const T *g, const int64_t *index, T *out) {                  \
        int64_t at = place_of(index[0], w->size);                                                            \
        for (int64_t i = 0; i < w->taken; i++)                                                               \
            if (g[i] != 0 || !__builtin_signbit(g[i]) || place_of(index[i], w->size) != at) return;          \
        out[at] = -(T)0;                                                                                     \
    }                                                                                                        \
    static void along_##TAG##_body(void *context, int64_t begin, int64_t end) {                              \
        along *w = context;                                                                                  \
        uint32_t *start = cyx_scratch(1, sizeof *start * (size_t)(w->size + 1 + w->taken));                  \
        if (!start) {                                                                                        \
            w->no_memory = 1;                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t row = begin; row < end; row++) {                                                        \
            const T *g = (const T *)w->g + row * w->taken;                                                   \
            const int64_t *index = w->index + row * w->taken;                                                \
            T *out = (T *)w->out + row * w->size;                                                            \
            if (!one_block_each_##TAG(w, g, index, out, start))                                              \
                blocks_in_pairs_##TAG(w, g, index, out, start, start + w->size + 1);                         \
            if (!w->from_zero && w->taken) keep_sign_##TAG(w, g, index, out);                                \
        }                                                                                                    \
    }
ALONG(float, f32)
ALONG(double, f64)

cyx_status cyx_sum_along(const void *g, const int64_t *index, int dtype, int64_t rows, int64_t taken, int64_t size, int64_t terms,
                         int from_zero, void *out) {
    if ((taken | size) >> 32) return cyx_fail(CYX_BAD_DATA, "take_along_grad: expected at most 2**32 places");
    along work = {g, index, out, taken, size, terms, from_zero, 0};
    for (int64_t i = 0; i < rows * taken; i++)
        if (index[i] < -size || index[i] >= size)
            return cyx_fail(CYX_BAD_DATA, "take_along_grad: index %lld is outside of %lld places", (long long)index[i], (long long)size);
    uint64_t saved = cyx_float_mode_set();
    cyx_parallel(rows, cyx_grain(rows, (double)(taken + size), CYX_LEAST_WORK),
                 dtype == CYX_F32 ? along_f32_body : along_f64_body, &work);
    cyx_float_mode_restore(saved);
    return work.no_memory ? cyx_fail(CYX_NO_MEMORY, "take_along_grad: no memory left for scratch space") : CYX_OK;
}
