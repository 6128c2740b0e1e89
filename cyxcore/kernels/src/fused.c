/* Element-wise calls made together. Every kernel of elementwise.h is a loop over a range of its output, so a group of
 * them can be run over one tile after another: each tile is read, changed by every call and written while it is in
 * the cache, and a result that only the group itself reads never leaves it. Each element goes through the same
 * operations in the same order as in separate calls. */
#include "elementwise.h"

/* A product, and the sum of it and something that is as large or one row of it, are a group too: gemm.inl. */
static int overlap(const cyx_array *a, const cyx_array *b) {
    const char *first = a->data, *second = b->data;
    return first < second + b->size * cyx_dtype_bytes[b->dtype] && second < first + a->size * cyx_dtype_bytes[a->dtype];
}

int cyx_adds_to_product(const cyx_call *calls) {
    const cyx_call *product = calls, *sum = calls + 1;
    if (product->op != CYX_OP_matmul || sum->op != CYX_OP_add || product->dtype != sum->dtype) return 0;
    if ((product->dtype != CYX_F32 && product->dtype != CYX_F64) || product->terms) return 0; /* those are not exact */
    int second = sum->in[0].data != product->out.data;
    const cyx_array *made = &sum->in[second], *other = &sum->in[!second], *out = &sum->out;
    if (made->data != product->out.data || !out->size || made->size != product->out.size || out->size != made->size)
        return 0;
    int64_t n = product->out.shape[product->out.ndim - 1];
    int one_row = other->ndim && other->size == n && other->shape[other->ndim - 1] == n &&
                  out->shape[out->ndim - 1] == n;
    if (!product->in[0].size || (other->size != out->size && !one_row)) return 0;
    /* It is written while the operands are read. */
    return !overlap(out, &product->in[0]) && !overlap(out, &product->in[1]) && !overlap(out, other) &&
           !overlap(other, &product->out);
}

enum { TILE = 1024 }; /* elements; eight tiles of float32 take 32 kB of the first-level cache */

__thread cyx_loop *cyx_asked;

typedef struct {
    const cyx_call *calls;
    int count;
    cyx_loop loops[CYX_MAX_GROUP];
    int made_by[CYX_MAX_GROUP][CYX_INLINE_INPUTS]; /* which elided call of the group an input comes from, or -1 */
    int tile[CYX_MAX_GROUP];                       /* where an elided call leaves its output */
    int tiles, element_bytes;
    _Atomic int no_memory;
} group;

static void ask(const cyx_call *call, const cyx_table table, cyx_loop *loop) {
    loop->body = NULL;
    cyx_asked = loop;
    table[call->op][call->dtype](call);
    cyx_asked = NULL;
}

int cyx_fusible(const cyx_call *call, const cyx_table table) {
    cyx_call nothing = *call; /* a kernel of another kind, which runs instead of answering, has nothing to do */
    cyx_loop loop;
    if (call->in_count > CYX_INLINE_INPUTS || !table[call->op][call->dtype]) return 0;
    nothing.in = nothing.own_in;
    nothing.out.size = 0;
    ask(&nothing, table, &loop);
    return loop.body != NULL;
}

/* What a loop looks at, and no more: for small arrays a group costs what it copies. */
static void copy_array(cyx_array *own, const cyx_array *from) {
    own->data = from->data, own->size = from->size, own->dtype = from->dtype;
}

static void copy_call(cyx_call *own, const cyx_call *from) {
    own->op = from->op, own->dtype = from->dtype, own->in_count = from->in_count, own->elided = from->elided;
    own->in = own->own_in;
    copy_array(&own->out, &from->out);
    for (int i = 0; i < from->in_count; i++) copy_array(&own->in[i], &from->in[i]);
}

static void copy_rows(cyx_rows *own, const cyx_rows *from) {
    if (from->walk.ndim != 1) {
        *own = *from;
        return;
    }
    own->walk.ndim = 1, own->walk.shape[0] = from->walk.shape[0];
    for (int k = 0; k < CYX_WALK_INPUTS; k++) own->walk.stride[k][0] = from->walk.stride[k][0];
    for (int i = 0; i < CYX_LOOP_CONSTANTS; i++) own->constants[i] = from->constants[i];
}

static void group_body(void *context, int64_t begin, int64_t end) {
    group *g = context;
    cyx_call own[CYX_MAX_GROUP];
    cyx_rows rows[CYX_MAX_GROUP];
    int64_t tile_bytes = (int64_t)TILE * g->element_bytes;
    char *tiles = cyx_scratch(1, (size_t)(g->tiles * tile_bytes + 1));
    if (!tiles) {
        g->no_memory = 1;
        return;
    }
    for (int k = 0; k < g->count; k++) {
        copy_call(&own[k], &g->calls[k]);
        copy_rows(&rows[k], &g->loops[k].rows);
        rows[k].call = &own[k];
    }
    for (int64_t at = begin; at < end; at += TILE) {
        int64_t stop = end - at < TILE ? end : at + TILE;
        for (int k = 0; k < g->count; k++) {
            /* Loops count from the start of the whole array: element `at` is the tile's first. */
            if (own[k].elided)
                own[k].out.data = tiles + g->tile[k] * tile_bytes - at * cyx_dtype_bytes[own[k].out.dtype];
            for (int i = 0; i < own[k].in_count; i++)
                if (g->made_by[k][i] >= 0) own[k].in[i].data = own[g->made_by[k][i]].out.data;
            g->loops[k].body(&rows[k], at, stop);
        }
    }
}

/* A tile for every elided call, taken again after its last reader: the fewer, the nearer they stay. */
static void share_tiles(group *g) {
    int last[CYX_MAX_GROUP], taken[CYX_MAX_GROUP] = {0};
    for (int k = 0; k < g->count; k++) last[k] = k;
    for (int k = 0; k < g->count; k++)
        for (int i = 0; i < g->calls[k].in_count; i++)
            if (g->made_by[k][i] >= 0) last[g->made_by[k][i]] = k;
    for (int k = 0; k < g->count; k++) {
        if (g->calls[k].elided) {
            int tile = 0, bytes = cyx_dtype_bytes[g->calls[k].out.dtype];
            while (taken[tile]) tile++;
            taken[tile] = 1;
            g->tile[k] = tile;
            if (tile >= g->tiles) g->tiles = tile + 1;
            if (bytes > g->element_bytes) g->element_bytes = bytes;
        }
        for (int made = 0; made <= k; made++) /* only now: nothing is written over what the same call reads */
            if (g->calls[made].elided && last[made] == k) taken[g->tile[made]] = 0;
    }
}

cyx_status cyx_run_group(const cyx_call *calls, const cyx_table table) {
    if (calls->op == CYX_OP_matmul) return table[calls->op][calls->dtype](calls);
    group g; /* not set to zero as a whole: that is the larger part of a small group's work */
    g.calls = calls, g.count = calls->group, g.tiles = 0, g.element_bytes = 0, g.no_memory = 0;
    double work = 0;
    for (int k = 0; k < g.count; k++) {
        ask(&calls[k], table, &g.loops[k]);
        work += calls[k].work;
        for (int i = 0; i < calls[k].in_count; i++) {
            g.made_by[k][i] = -1;
            for (int earlier = 0; earlier < k; earlier++)
                if (calls[earlier].out.data == calls[k].in[i].data)
                    g.made_by[k][i] = calls[earlier].elided ? earlier : -1;
        }
    }
    share_tiles(&g);
    int64_t size = calls->out.size;
    if (!size) return CYX_OK;
    if (work < CYX_LEAST_WORK)
        group_body(&g, 0, size);
    else
        cyx_parallel(size, (cyx_grain(size, work / (double)size, CYX_LEAST_WORK) + TILE - 1) / TILE * TILE, group_body,
                     &g);
    return g.no_memory ? CYX_NO_MEMORY : CYX_OK;
}
