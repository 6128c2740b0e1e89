/* Which right factors of products by AMX are packed once a run: see fast.h. A factor stays what it is between two
 * products that read it, unless a call between them writes to its memory. */
#include <stdlib.h>

#include "cyx.h"
#include "fast.h"

static int is_written(const cyx_factor *f, const cyx_call *call, int64_t lanes) {
    const char *begin = call->out.data, *end = begin + call->out.size * cyx_dtype_bytes[call->out.dtype];
    if (call->bands > 1) end += (call->bands - 1) * call->out.band_bytes + (lanes - 1) * call->out.lane_bytes;
    return begin < (const char *)(f->from + f->k * f->n) && (const char *)f->from < end;
}

/* The right factor of a product that AMX takes, and that is one matrix. */
static int describe(const cyx_call *call, cyx_factor *f) {
    const cyx_array *b = &call->in[1];
    if (!call->terms || call->op != CYX_OP_matmul || call->dtype != CYX_F32 || call->ints[0] || b->ndim != 2 ||
        b->band_bytes || b->lane_bytes || !call->out.size || !b->size)
        return 0;
    int transposed = (int)call->ints[1];
    *f = (cyx_factor){.from = b->data, .k = b->shape[transposed], .n = b->shape[!transposed], .row = b->shape[1],
                      .transposed = transposed, .terms = call->terms};
    int64_t rows = call->out.size / f->n * (call->bands > 1 ? call->bands : 1);
    return cyx_amx_pays(rows, f->n, f->k, f->terms);
}

static int same(const cyx_factor *a, const cyx_factor *b) {
    return a->from == b->from && a->k == b->k && a->n == b->n && a->transposed == b->transposed;
}

static cyx_factor *unite(cyx_factor *found, cyx_factor **all) {
    cyx_factor *kept = malloc(sizeof *kept);
    if (!kept) return NULL;
    *kept = *found, kept->all = *all, *all = kept;
    return kept;
}

void cyx_free_factors(cyx_factor *all) {
    while (all) {
        cyx_factor *next = all->all;
        free(all->tiles);
        free(all);
        all = next;
    }
}

/* Gives those that are used more than once their memory; what there is none for is packed by each product. */
static void settle(cyx_call *calls, int64_t count, cyx_factor *all, size_t *bytes) {
    for (cyx_factor *f = all; f; f = f->all) {
        size_t needed = cyx_packed_bytes(f->k, f->n, f->terms);
        if (f->uses < 2 || posix_memalign(&f->tiles, 64, needed)) f->tiles = NULL;
        if (f->tiles) *bytes += needed;
    }
    for (int64_t i = 0; i < count; i++) {
        if (calls[i].packed && !calls[i].packed->tiles) calls[i].packed = NULL;
        cyx_factor **link = &calls[i].pack;
        while (*link) {
            if ((*link)->tiles)
                link = &(*link)->next;
            else
                *link = (*link)->next;
        }
    }
}

cyx_factor *cyx_share_factors(cyx_call *calls, int64_t count, size_t *bytes) {
    cyx_factor *all = NULL;
    *bytes = 0;
    if (!cyx_amx_present()) return NULL;
    for (int64_t head = 0, end; head < count; head = end) {
        end = head + (calls[head].stretch > 1 ? calls[head].stretch : 1);
        for (int64_t i = head; i < end; i++) {
            cyx_factor found, *known = all;
            if (!describe(&calls[i], &found)) continue;
            int changes = 0; /* while the bands of a stretch take turns */
            for (int64_t j = head; j < end && end - head > 1; j++)
                changes |= is_written(&found, &calls[j], calls[head].lanes);
            if (changes) continue;
            while (known && (known->closed || !same(known, &found))) known = known->all;
            if (!known) {
                known = unite(&found, &all);
                if (!known) break;
                known->next = calls[head].pack, calls[head].pack = known;
            }
            known->uses += calls[i].bands > 1 ? calls[i].bands : 1;
            calls[i].packed = known;
        }
        for (int64_t i = head; i < end; i++)
            for (cyx_factor *f = all; f; f = f->all)
                f->closed |= is_written(f, &calls[i], calls[head].lanes);
    }
    settle(calls, count, all, bytes);
    return all;
}
