/* A reduction as alternating kept and reduced dimensions, size-1 dimensions gone and neighbours of one kind
 * merged. */
#ifndef CYX_REDUCE_PLAN_H
#define CYX_REDUCE_PLAN_H

#include "cyx.h"

typedef struct {
    int kept_count, reduced_count; /* dimensions outside the innermost one */
    int64_t kept[CYX_MAX_NDIM], kept_stride[CYX_MAX_NDIM];
    int64_t reduced[CYX_MAX_NDIM], reduced_stride[CYX_MAX_NDIM];
    int64_t inner; /* length of the innermost, contiguous dimension */
    int inner_is_reduced;
    int64_t outputs;     /* product of kept */
    int64_t terms;       /* product of reduced */
    int64_t total_terms; /* elements behind one output */
} cyx_reduce_plan;

/* ints of a reduction call: number of axes, axes..., keepdims. */
static inline cyx_reduce_plan cyx_plan_reduction(const cyx_call *call) {
    const cyx_array *x = &call->in[0];
    int64_t shape[CYX_MAX_NDIM];
    int is_reduced[CYX_MAX_NDIM], ndim = 0;
    for (int d = 0; d < x->ndim; d++) {
        int reduced = 0;
        for (int64_t a = 0; a < call->ints[0]; a++) reduced |= call->ints[1 + a] == d;
        if (x->shape[d] == 1) continue;
        if (ndim && is_reduced[ndim - 1] == reduced) {
            shape[ndim - 1] *= x->shape[d];
        } else {
            shape[ndim] = x->shape[d];
            is_reduced[ndim++] = reduced;
        }
    }
    if (!ndim) shape[0] = 1, is_reduced[0] = 1, ndim = 1;
    cyx_reduce_plan plan = {
        .inner = shape[ndim - 1], .inner_is_reduced = is_reduced[ndim - 1], .outputs = 1, .terms = 1};
    int64_t stride = plan.inner;
    for (int d = ndim - 2; d >= 0; d--) { /* innermost first */
        if (is_reduced[d]) {
            plan.reduced[plan.reduced_count] = shape[d];
            plan.reduced_stride[plan.reduced_count++] = stride;
            plan.terms *= shape[d];
        } else {
            plan.kept[plan.kept_count] = shape[d];
            plan.kept_stride[plan.kept_count++] = stride;
            plan.outputs *= shape[d];
        }
        stride *= shape[d];
    }
    plan.total_terms = plan.inner_is_reduced ? plan.terms * plan.inner : plan.terms;
    return plan;
}

static inline int64_t cyx_offset_of(int64_t index, int count, const int64_t *shape, const int64_t *stride) {
    if (count <= 1) return count ? index * stride[0] : 0;
    int64_t offset = 0;
    for (int d = 0; d < count; d++) {
        offset += index % shape[d] * stride[d];
        index /= shape[d];
    }
    return offset;
}

#endif
