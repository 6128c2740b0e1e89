/* matmul of float32 by AMX: see fast.h. Blocks of k are packed as tiles, the right factor once, the left one by each task;
 * threads take different outputs, so that how many there are never shows in a result. */
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

enum { BLOCK_K = 256, BLOCK_M = 128, BLOCK_N = 1024 };

typedef struct {
    const float *a, *b;
    float *c;
    int64_t m, n, k, a_row, b_row; /* leading dimensions as stored; c is m by n, contiguous */
    int a_transposed, b_transposed, terms;
    /* of the current block */
    int64_t n0, n_count, k0, k_count, steps, m_block, n_block;
    bf16 *panels; /* [16 columns][step][term] tiles of B */
    _Atomic int no_memory;
} product;

static inline __attribute__((always_inline)) void pack_b(const int terms, const product *p, int64_t begin,
                                                         int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
        int64_t column = p->n0 + panel * 16, columns = p->n0 + p->n_count - column;
        bf16 *to = p->panels + panel * p->steps * terms * TILE;
        if (columns > 16) columns = 16;
        for (int64_t s = 0; s < p->steps; s++, to += terms * TILE) {
            int64_t k = p->k0 + s * TILE_K, count = p->k0 + p->k_count - k;
            if (count > TILE_K) count = TILE_K;
            if (p->b_transposed)
                make_tile(p->b + column * p->b_row + k, p->b_row, columns, count, 1, 1, terms, to);
            else
                make_tile(p->b + k * p->b_row + column, p->b_row, count, columns, 0, 0, terms, to);
        }
    }
}

static void pack_b_body(void *context, int64_t begin, int64_t end) {
    const product *p = context;
    OF_TERMS(p->terms, pack_b, p, begin, end);
}

static inline __attribute__((always_inline)) void pack_a(const int terms, const product *p, int64_t m0, int64_t rows,
                                                         bf16 *to) {
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t s = 0; s < p->steps; s++, to += terms * TILE) {
            int64_t k = p->k0 + s * TILE_K, count = p->k0 + p->k_count - k, own = rows - r < 16 ? rows - r : 16;
            if (count > TILE_K) count = TILE_K;
            if (p->a_transposed)
                make_tile(p->a + k * p->a_row + m0 + r, p->a_row, count, own, 0, 1, terms, to);
            else
                make_tile(p->a + (m0 + r) * p->a_row + k, p->a_row, own, count, 1, 0, terms, to);
        }
}

static inline __attribute__((always_inline)) void sum_task(const int terms, const product *p, int64_t task,
                                                           bf16 *packed) {
    int64_t groups = (p->n_count + p->n_block - 1) / p->n_block;
    int64_t m0 = task / groups * p->m_block, begin = task % groups * p->n_block;
    int64_t rows = p->m - m0 < p->m_block ? p->m - m0 : p->m_block;
    int64_t stop = begin + p->n_block < p->n_count ? begin + p->n_block : p->n_count;
    int64_t apart = p->steps * terms * TILE;
    pack_a(terms, p, m0, rows, packed);
    for (int64_t r = 0; r < rows; r += 32)
        for (int64_t column = begin; column < stop; column += 32)
            sum_block(terms, packed + r / 16 * apart, p->panels + column / 16 * apart, apart, p->steps,
                      p->c + (m0 + r) * p->n + p->n0 + column, p->n, rows - r < 32 ? rows - r : 32,
                      stop - column < 32 ? stop - column : 32, p->k0 > 0);
}

static void product_body(void *context, int64_t begin, int64_t end) {
    product *p = context;
    int64_t tiles = (p->m_block + 15) / 16 * p->steps * p->terms;
    bf16 *packed = cyx_scratch(1, sizeof(bf16) * (size_t)(tiles * TILE));
    if (!packed) {
        p->no_memory = 1;
        return;
    }
    tiles_begin();
    for (int64_t task = begin; task < end; task++) OF_TERMS(p->terms, sum_task, p, task, packed);
    tiles_end();
}

/* How a block is cut into tasks: by rows, and where there are too few of them also by columns. */
static void cut_product(product *p) {
    int64_t threads = cyx_threads(), share = (p->m + threads - 1) / threads;
    p->m_block = share < BLOCK_M ? (share + 31) / 32 * 32 : BLOCK_M;
    p->n_block = (p->n_count + 31) / 32 * 32;
    int64_t tasks = (p->m + p->m_block - 1) / p->m_block;
    if (tasks < threads) p->n_block = ((p->n_block / 32 + threads - 1) / threads) * 32;
}

static cyx_status multiply(product *p) {
    for (p->n0 = 0; p->n0 < p->n; p->n0 += BLOCK_N)
        for (p->k0 = 0; p->k0 < p->k; p->k0 += BLOCK_K) {
            p->n_count = p->n - p->n0 < BLOCK_N ? p->n - p->n0 : BLOCK_N;
            p->k_count = p->k - p->k0 < BLOCK_K ? p->k - p->k0 : BLOCK_K;
            p->steps = (p->k_count + TILE_K - 1) / TILE_K;
            int64_t panels = (p->n_count + 15) / 16;
            p->panels = cyx_scratch(0, sizeof(bf16) * (size_t)(panels * p->steps * p->terms * TILE));
            if (!p->panels) return CYX_NO_MEMORY;
            cut_product(p);
            cyx_parallel(panels, cyx_grain(panels, (double)(16 * p->k_count), 50000), pack_b_body, p);
            int64_t tasks = (p->m + p->m_block - 1) / p->m_block * ((p->n_count + p->n_block - 1) / p->n_block);
            cyx_parallel(tasks, 1, product_body, p);
            if (p->no_memory) return CYX_NO_MEMORY;
        }
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

/* ints: transpose_a, transpose_b. CYX_NO_KERNEL: too small to pay. */
cyx_status cyx_amx_matmul(const cyx_call *call) {
    const cyx_array *a = &call->in[0], *b = &call->in[1], *out = &call->out;
    int64_t m = out->shape[out->ndim - 2], n = out->shape[out->ndim - 1];
    int64_t k = a->shape[a->ndim - (call->ints[0] ? 2 : 1)];
    product p = {.a = a->data,
                 .b = b->data,
                 .c = out->data,
                 .m = m,
                 .n = n,
                 .k = k,
                 .a_row = call->ints[0] ? m : k,
                 .b_row = call->ints[1] ? k : n,
                 .a_transposed = (int)call->ints[0],
                 .b_transposed = (int)call->ints[1],
                 .terms = call->terms};
    cyx_array stacks[2] = {stack_of(a), stack_of(b)}, results = stack_of(out);
    if (!out->size || !k) return CYX_NO_KERNEL;
    int tall = stacks[1].size == 1 && stacks[0].size == results.size && !p.a_transposed;
    if (tall) p.m *= results.size;
    /* A band is decided on as the whole would be: how many there are may depend on the number of threads. */
    int is_band = tall && call->bands > 1 && !b->band_bytes && !b->lane_bytes;
    if (!cyx_amx_pays(is_band ? p.m * call->bands : p.m, p.n, p.k, p.terms)) return CYX_NO_KERNEL;
    if (tall) return multiply(&p);
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
