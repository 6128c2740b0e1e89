/* Walking arrays whose dimensions were merged as far as possible. */
#ifndef CYX_SHAPE_H
#define CYX_SHAPE_H

#include <string.h>

#include "cyx.h"

enum { CYX_WALK_INPUTS = 4 };

/* An iteration space and the element stride of each input in it (0 where that input is broadcast). The last
 * dimension is the inner loop. */
typedef struct {
    int ndim;
    int64_t shape[CYX_MAX_NDIM];
    int64_t stride[CYX_WALK_INPUTS][CYX_MAX_NDIM];
} cyx_walk;

/* The space of `out` with `count` inputs broadcast into it by NumPy's rules. Neighbouring dimensions that all
 * inputs cross with one stride become one. Cannot fail: cyx_prepare saw that the shapes fit. */
static inline cyx_walk cyx_broadcast_walk(const cyx_array *out, const cyx_array *in, int count) {
    int64_t stride[CYX_WALK_INPUTS][CYX_MAX_NDIM];
    for (int k = 0; k < count; k++) {
        int64_t step = 1;
        for (int d = out->ndim - 1; d >= 0; d--) {
            int own = d - (out->ndim - in[k].ndim);
            int64_t extent = own >= 0 ? in[k].shape[own] : 1;
            stride[k][d] = extent == 1 ? 0 : step;
            step *= extent;
        }
    }
    cyx_walk walk = {.ndim = 0};
    for (int d = 0; d < out->ndim; d++) {
        if (out->shape[d] == 1) continue;
        int last = walk.ndim - 1, merge = walk.ndim > 0;
        for (int k = 0; merge && k < count; k++) merge = walk.stride[k][last] == stride[k][d] * out->shape[d];
        if (!merge) walk.shape[last = walk.ndim++] = 1;
        walk.shape[last] *= out->shape[d];
        for (int k = 0; k < count; k++) walk.stride[k][last] = stride[k][d];
    }
    if (walk.ndim == 0) {
        walk.ndim = 1;
        walk.shape[0] = 1;
        for (int k = 0; k < count; k++) walk.stride[k][0] = out->size == 1 && in[k].size == 1 ? 1 : 0;
    }
    return walk;
}

/* Where the flat index `at` of the walk lies: coordinates and, per input, the offset of its inner row's
 * start. */
static inline void cyx_walk_seek(const cyx_walk *walk, int count, int64_t at, int64_t *coordinate,
                                 int64_t *offset) {
    for (int k = 0; k < count; k++) offset[k] = 0;
    for (int d = walk->ndim - 1; d >= 0; d--) {
        coordinate[d] = at % walk->shape[d];
        at /= walk->shape[d];
        for (int k = 0; k < count; k++)
            if (d < walk->ndim - 1) offset[k] += coordinate[d] * walk->stride[k][d];
    }
}

/* Moves to the start of the next inner row. */
static inline void cyx_walk_next_row(const cyx_walk *walk, int count, int64_t *coordinate, int64_t *offset) {
    coordinate[walk->ndim - 1] = 0;
    for (int d = walk->ndim - 2; d >= 0; d--) {
        for (int k = 0; k < count; k++) offset[k] += walk->stride[k][d];
        if (++coordinate[d] < walk->shape[d]) return;
        for (int k = 0; k < count; k++) offset[k] -= walk->shape[d] * walk->stride[k][d];
        coordinate[d] = 0;
    }
}

#endif
