/* Between products a step reads what it wrote long ago: gates that a recurrence kept, the records of its calls. A product
 * waits for its arithmetic and leaves the memory idle meanwhile, so it fetches what the calls behind it will read.
 * Nothing depends on that but time. */
#include "ahead.h"

#include <stdlib.h>
#include <string.h>

#include "elementwise.h"

enum {
    MOST_SPANS = 256,
    MOST_CALLS = 96,          /* behind a product */
    RECENT_CALLS = 40,        /* whose arrays are still there */
    MOST_BYTES = 1 << 16,     /* of an array; a larger one displaces what others need */
    TERMS_PER_LINE = 1 << 11, /* multiply-adds of a product for each line that it fetches */
};

typedef struct {
    cyx_span spans[MOST_SPANS];
    int count;
    int64_t lines, most;
} found;

static void add_span(found *f, const void *at, size_t bytes) {
    uintptr_t first = (uintptr_t)at / CYX_LINE_BYTES, end = ((uintptr_t)at + bytes + CYX_LINE_BYTES - 1) / CYX_LINE_BYTES;
    if (!bytes || f->count == MOST_SPANS) return;
    f->spans[f->count++] = (cyx_span){(const char *)(first * CYX_LINE_BYTES), (int64_t)(end - first)};
    f->lines += (int64_t)(end - first);
}

static int is_product(const cyx_call *call) {
    return call->op == CYX_OP_matmul && (call->dtype == CYX_F32 || call->dtype == CYX_F64) && !call->terms && cyx_is_one_product(call);
}

static int64_t terms_of(const cyx_call *product) {
    const cyx_array *a = &product->in[0];
    return a->ndim == 2 ? product->out.size * a->shape[product->ints[0] ? 0 : 1] : 0;
}

static int own_inputs(const cyx_call *call) { return call->in_count < CYX_INLINE_INPUTS ? call->in_count : CYX_INLINE_INPUTS; }

/* Whether one of the first `count` inputs lies there. */
static int reads(const cyx_call *call, int count, const void *data) {
    for (int i = 0; i < count; i++)
        if (call->in[i].data == data) return 1;
    return 0;
}

/* Whether one of the calls [first, place) reads or writes an array. */
static int is_recent(const cyx_call *calls, int64_t first, int64_t place, const void *data) {
    for (int64_t k = place - 1; k >= first; k--)
        if (calls[k].out.data == data || reads(&calls[k], own_inputs(&calls[k]), data)) return 1;
    return 0;
}

static void add_array(found *f, const cyx_call *calls, int64_t place, const cyx_array *x) {
    int64_t bytes = x->size * cyx_dtype_bytes[x->dtype];
    if (bytes > MOST_BYTES || is_recent(calls, place < RECENT_CALLS ? 0 : place - RECENT_CALLS, place, x->data)) return;
    add_span(f, x->data, (size_t)bytes);
}

static void add_call(found *f, const cyx_call *calls, int64_t place) {
    const cyx_call *call = &calls[place];
    size_t bytes = 0;
    const void *kept = call->kept ? cyx_group_records(call->kept, &bytes) : NULL;
    add_span(f, call, offsetof(cyx_call, own_in) + sizeof(cyx_array) * (size_t)own_inputs(call));
    add_span(f, kept, bytes);
    for (int i = 0; i < own_inputs(call); i++)
        if (!reads(call, i, call->in[i].data)) add_array(f, calls, place, &call->in[i]);
    if (!call->elided && !reads(call, own_inputs(call), call->out.data)) add_array(f, calls, place, &call->out);
}

void cyx_look_ahead(cyx_call *calls, int64_t count, int of_a_lane) {
    int64_t next = 0; /* what lies before it is found */
    for (int64_t i = 0; i < count; i++) {
        if (calls[i].stretch && !of_a_lane) {
            i += calls[i].stretch - 1;
            continue;
        }
        if (!is_product(&calls[i])) continue;
        found f = {.most = terms_of(&calls[i]) / TERMS_PER_LINE};
        int64_t own_end = i + (calls[i].group > 1 ? calls[i].group : 1);
        if (next < own_end) next = own_end;
        for (; next < count && next < i + MOST_CALLS && f.lines < f.most && !calls[next].stretch; next++)
            add_call(&f, calls, next);
        cyx_ahead *ahead = f.count ? malloc(sizeof *ahead + sizeof(cyx_span) * (size_t)f.count) : NULL;
        if (!ahead) continue;
        ahead->lines = f.lines, ahead->count = f.count;
        memcpy(ahead->spans, f.spans, sizeof(cyx_span) * (size_t)f.count);
        calls[i].ahead = ahead;
    }
}

void cyx_look_nowhere(cyx_call *calls, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        free((void *)calls[i].ahead);
        calls[i].ahead = NULL;
    }
}
