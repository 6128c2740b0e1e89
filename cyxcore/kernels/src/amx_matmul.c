/* matmul of float32 by AMX: see fast.h. Of both factors pieces of k are packed as tiles: one factor, the held one, in
 * blocks that stay in the cache, the other as it passes by, 32 rows or columns at a time, which threads take in turn.
 * Every sum runs over k in the same order, however blocks are cut: neither they nor threads ever show in a result. */
#include "fast.h"

#ifdef CYX_COMPILED_AMX
#include "amx.h"
#include "shape.h"
#if defined(__clang__)
#pragma clang attribute push(                                                                                          \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#endif
#include "amx_tiles.inl"

enum { MOST_K = 512, HELD_BYTES = 800 * 1024, ALONG = 32, ACROSS = 128, PANEL = 64 };

static int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct {
    const float *a, *b;
    const bf16 *tiles; /* of all of B, if they are made already: [16 columns][step][term] */
    float *c;
    int64_t m, n, k, a_row, b_row; /* leading dimensions as stored; c is m by n, contiguous */
    int a_transposed, b_transposed, terms;
    int adds; /* to the sums that are in c, instead of beginning them */
    /* of the current block */
    int holds_a;
    int64_t piece; /* rows or columns of the other one at a time */
    int64_t from, count, k0, k_count, steps; /* rows of A or columns of B that are held */
    bf16 *held;                              /* [16 of them][step][term] */
    _Atomic int no_memory;
} product;

/* Whether k runs across the lines of a factor as it lies in memory. */
static int lies_across(const product *p, int of_a) { return of_a ? p->a_transposed : !p->b_transposed; }

/* The tiles of some rows of A, or columns of B, in the order in which they lie in memory. */
static inline __attribute__((always_inline)) void pack(const int terms, const product *p, int of_a, int64_t at,
                                                       int64_t count, bf16 *to) {
    const float *from = of_a ? p->a : p->b;
    int64_t row = of_a ? p->a_row : p->b_row, apart = p->steps * terms * TILE;
    if (!lies_across(p, of_a)) {
        for (int64_t i = 0; i < count; i += 16, to += apart)
            for (int64_t s = 0; s < p->steps; s++) {
                int64_t k = s * TILE_K, there = smaller(p->k_count - k, TILE_K), lines = smaller(count - i, 16);
                const float *tile = from + (at + i) * row + p->k0 + k;
                if (of_a)
                    make_tile(tile, row, lines, there, 1, 0, terms, to + s * terms * TILE);
                else
                    make_tile(tile, row, lines, there, 1, 1, terms, to + s * terms * TILE);
            }
        return;
    }
    for (int64_t s = 0; s < p->steps; s++)
        for (int64_t i = 0; i < count; i += 16) {
            int64_t k = s * TILE_K, there = smaller(p->k_count - k, TILE_K), columns = smaller(count - i, 16);
            const float *tile = from + (p->k0 + k) * row + at + i;
            if (of_a)
                make_tile(tile, row, there, columns, 0, 1, terms, to + i / 16 * apart + s * terms * TILE);
            else
                make_tile(tile, row, there, columns, 0, 0, terms, to + i / 16 * apart + s * terms * TILE);
        }
}

static void hold_body(void *context, int64_t begin, int64_t end) {
    const product *p = context;
    for (int64_t panel = begin; panel < end; panel++)
        OF_TERMS(p->terms, pack, p, p->holds_a, p->from + panel * PANEL, smaller(p->count - panel * PANEL, PANEL),
                 p->held + panel * PANEL / 16 * p->steps * p->terms * TILE);
}

/* A piece of the passing factor, with all that is held. */
static inline __attribute__((always_inline)) void pass(const int terms, const product *p, int64_t piece, bf16 *passing) {
    int64_t at = piece * p->piece, there = smaller((p->holds_a ? p->n : p->m) - at, p->piece);
    int64_t apart = p->steps * terms * TILE;
    int goes_on = p->adds || p->k0 > 0;
    factor begin = packed(passing, p->steps, terms);
    if (p->tiles) {
        begin = packed(p->tiles, whole(p->k, TILE_K) / TILE_K, terms);
        begin.at += at / 16 * begin.next + p->k0 / TILE_K * begin.step;
    } else {
        pack(terms, p, !p->holds_a, at, there, passing);
    }
    for (int64_t i = 0; i < p->count; i += 32)
        for (int64_t j = 0; j < there; j += 32) {
            factor held = packed(p->held + i / 16 * apart, p->steps, terms);
            factor other = begin;
            other.at += j / 16 * begin.next;
            int64_t of_held = smaller(p->count - i, 32), of_other = smaller(there - j, 32);
            if (p->holds_a)
                sum_block(terms, held, other, p->steps, p->c + (p->from + i) * p->n + at + j, p->n, of_held, of_other,
                          goes_on);
            else
                sum_block(terms, other, held, p->steps, p->c + (at + j) * p->n + p->from + i, p->n, of_other, of_held,
                          goes_on);
        }
}

static void pass_body(void *context, int64_t begin, int64_t end) {
    product *p = context;
    bf16 *passing = cyx_scratch(1, sizeof(bf16) * (size_t)(p->piece / 16 * p->steps * p->terms * TILE));
    if (!passing) {
        p->no_memory = 1;
        return;
    }
    tiles_begin();
    for (int64_t piece = begin; piece < end; piece++) OF_TERMS(p->terms, pass, p, piece, passing);
    tiles_end();
}

static cyx_status multiply(product *p) {
    p->holds_a = p->m <= p->n || p->tiles;
    p->piece = !p->tiles && lies_across(p, !p->holds_a) ? ACROSS : ALONG;
    int64_t all = p->holds_a ? p->m : p->n, pieces = whole(p->holds_a ? p->n : p->m, p->piece) / p->piece;
    int64_t k_block = smaller(whole(p->k, TILE_K), MOST_K);
    int64_t fit = HELD_BYTES / (int64_t)sizeof(bf16) / p->terms / k_block / 32 * 32; /* whole tiles, two by two */
    int64_t blocks = whole(all, fit) / fit, held = whole((all + blocks - 1) / blocks, 32);
    p->held = cyx_scratch(0, sizeof(bf16) * (size_t)(held * k_block * p->terms));
    if (!p->held) return CYX_NO_MEMORY;
    for (p->from = 0; p->from < all; p->from += held)
        for (p->k0 = 0; p->k0 < p->k; p->k0 += k_block) {
            p->count = smaller(all - p->from, held), p->k_count = smaller(p->k - p->k0, k_block);
            p->steps = whole(p->k_count, TILE_K) / TILE_K;
            int64_t panels = whole(p->count, PANEL) / PANEL;
            cyx_parallel(panels, cyx_grain(panels, (double)(PANEL * p->k_count), 50000), hold_body, p);
            cyx_parallel(pieces, cyx_grain(pieces, (double)(p->count * p->k_count), 20000), pass_body, p);
            if (p->no_memory) return CYX_NO_MEMORY;
        }
    return CYX_OK;
}

/* All of B as tiles. */
static void pack_b(product p, bf16 *tiles) {
    p.held = tiles, p.count = p.n, p.k_count = p.k, p.steps = whole(p.k, TILE_K) / TILE_K;
    int64_t panels = whole(p.n, PANEL) / PANEL;
    cyx_parallel(panels, cyx_grain(panels, (double)(PANEL * p.k), 50000), hold_body, &p);
}

cyx_status cyx_amx_pack(cyx_factor *first) {
    for (cyx_factor *f = first; f; f = f->next)
        pack_b((product){.b = f->from, .k = f->k, .n = f->n, .b_row = f->row, .b_transposed = f->transposed, .terms = f->terms},
               f->tiles);
    return CYX_OK;
}

typedef struct {
    product one;
    cyx_walk walk; /* of the leading dimensions; strides count matrices */
    _Atomic int status;
} batch;

static void batch_body(void *context, int64_t begin, int64_t end) {
    batch *all = context;
    int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS], last = all->walk.ndim - 1;
    for (int64_t i = begin; i < end; i++) {
        product p = all->one;
        cyx_walk_seek(&all->walk, 2, i, coordinate, offset);
        p.a += (offset[0] + coordinate[last] * all->walk.stride[0][last]) * p.m * p.k;
        p.b += (offset[1] + coordinate[last] * all->walk.stride[1][last]) * p.k * p.n;
        p.c += i * p.m * p.n;
        cyx_status status = multiply(&p);
        if (status != CYX_OK) all->status = status;
    }
}

/* The leading dimensions of a matrix stack, counted in matrices. */
static cyx_array stack_of(const cyx_array *x) {
    cyx_array stack = *x;
    stack.ndim -= 2;
    stack.size = 1;
    for (int d = 0; d < stack.ndim; d++) stack.size *= stack.shape[d];
    return stack;
}

/* ints: transpose_a, transpose_b */
cyx_status cyx_amx_matmul(const cyx_call *call) {
    const cyx_array *a = &call->in[0], *b = &call->in[1], *out = &call->out;
    int64_t m = out->shape[out->ndim - 2], n = out->shape[out->ndim - 1];
    int64_t k = a->shape[a->ndim - (call->ints[0] ? 2 : 1)];
    product p = {.a = a->data,
                 .b = b->data,
                 .tiles = call->packed ? call->packed->tiles : NULL,
                 .c = out->data,
                 .m = m,
                 .n = n,
                 .k = k,
                 .a_row = call->ints[0] ? m : k,
                 .b_row = call->ints[1] ? k : n,
                 .a_transposed = (int)call->ints[0],
                 .b_transposed = (int)call->ints[1],
                 .terms = call->terms,
                 .adds = call->adding && (call->goes_on || cyx_band % call->adds)};
    cyx_array stacks[2] = {stack_of(a), stack_of(b)}, results = stack_of(out);
    if (call->notes && call->notes->panels) {
        if (call->notes->of != p.b) pack_b(p, call->notes->panels);
        call->notes->of = p.b, p.tiles = call->notes->panels;
    }
    if (cyx_is_tall(call)) {
        p.m *= results.size;
        return multiply(&p);
    }
    batch all = {.one = p, .walk = cyx_broadcast_walk(&results, stacks, 2)};
    int64_t grain = cyx_grain(results.size, (double)m * (double)n * (double)k / 32.0, 20000);
    if (results.size < 2 * cyx_threads())
        batch_body(&all, 0, results.size);
    else
        cyx_parallel(results.size, grain, batch_body, &all);
    return (cyx_status)all.status;
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
