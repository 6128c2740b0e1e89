/* Products of which a mask leaves a part, as the scores of attention: a stack of products, and where(mask, them, a number)
 * behind it (cyx_masks_product), in one pass. What the mask leaves out at the end of every row of a block is not multiplied. */

#ifndef MASKED_ONCE
#define MASKED_ONCE
enum { MASKED_BLOCKS = CYX_MOST_MASKED / 4 + 1 };
#endif

typedef struct {
    const cyx_call *call;
    NAME(product) one;
    cyx_walk walk;
    const char *mask; /* of m by n */
    T other;
    int64_t height, needed[MASKED_BLOCKS], most; /* of each block of rows: how many columns; and at most */
    int packs;
    _Atomic int no_memory;
} NAME(masked);

/* Rows of a finished product, of which the first `columns` elements are there. */
static void NAME(mask_rows)(const NAME(masked) * all, T *c, int64_t first, int64_t rows, int64_t columns) {
    int64_t n = all->one.n;
    for (int64_t r = 0; r < rows; r++) {
        const char *mask = all->mask + (first + r) * n, *hidden = memchr(mask, 0, (size_t)n);
        T *row = c + r * n;
        if (!hidden) continue;
        int64_t at = hidden - mask;
        for (; at < columns; at++) row[at] = mask[at] ? row[at] : all->other;
        for (; at < n; at++) row[at] = all->other;
    }
}

static void NAME(masked_body)(void *context, int64_t begin, int64_t end) {
    NAME(masked) *all = context;
    int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS], last = all->walk.ndim - 1;
    int64_t m = all->one.m, n = all->one.n, k = all->one.k;
    T *packed = all->packs ? cyx_scratch(0, sizeof(T) * (size_t)((n + NR - 1) / NR * NR * k)) : NULL;
    if (all->packs && !packed) {
        all->no_memory = 1;
        return;
    }
    for (int64_t i = begin; i < end; i++) {
        NAME(product) p = all->one;
        cyx_walk_seek(&all->walk, 2, i, coordinate, offset);
        p.a += (offset[0] + coordinate[last] * all->walk.stride[0][last]) * m * k;
        p.b += (offset[1] + coordinate[last] * all->walk.stride[1][last]) * k * n;
        p.c += i * m * n;
        for (int64_t column = 0; packed && column < all->most; column += NR)
            NAME(pack_panel)(p.b + column * (p.b_transposed ? p.b_row : 1), p.b_row, p.b_transposed, packed + column * k, k,
                             n - column < NR ? n - column : NR);
        for (int64_t column = 0; column < all->most; column += NR)
            for (int64_t r = 0, block = 0; r < m; r += all->height, block++) {
                int64_t columns = all->needed[block] - column < NR ? all->needed[block] - column : NR;
                if (columns > 0)
                    NAME(run_block)(NAME(rows_kernels), m - r < all->height ? m - r : all->height, columns, p.a + r * k, k,
                                    packed ? packed + column * k : p.b + column, packed ? NR : n, p.c + r * n + column, n, k,
                                    0, NO_ENDING);
            }
        for (int64_t r = 0, block = 0; r < m; r += all->height, block++)
            NAME(mask_rows)(all, p.c + r * n, r, m - r < all->height ? m - r : all->height, all->needed[block]);
    }
}

/* Behind the last element that the mask shows, or at least `least`. */
static int64_t NAME(last_shown)(const char *mask, int64_t n, int64_t least) {
    while (n > least) {
        uint64_t eight = 1;
        if (n - least >= 8) memcpy(&eight, mask + n - 8, 8);
        if (eight && mask[n - 1]) return n;
        n -= eight ? 1 : 8;
    }
    return least;
}

static cyx_status NAME(masked_product)(const cyx_call *call) {
    const cyx_array *a = &call->in[0], *b = &call->in[1], *out = &call[1].out;
    int64_t m = out->shape[out->ndim - 2], n = out->shape[out->ndim - 1], k = a->shape[a->ndim - 1];
    int64_t heights = (m + MR - 1) / MR;
    NAME(masked)
    all = {.call = call,
           .one = {.a = a->data, .b = b->data, .c = out->data, .m = m, .n = n, .k = k, .a_row = k,
                   .b_row = call->ints[1] ? k : n, .b_transposed = (int)call->ints[1]},
           .mask = call[1].in[0].data,
           .other = *(const T *)call[1].in[2].data,
           .height = (m + heights - 1) / heights,
           .packs = call->ints[1] || n % VN || k * n > DIRECT_B_SIZE};
    for (int64_t r = 0, block = 0; r < m; r += all.height, block++) {
        int64_t rows = m - r < all.height ? m - r : all.height, needed = 0;
        for (const char *mask = all.mask + r * n; rows--; mask += n) needed = NAME(last_shown)(mask, n, needed);
        needed = (needed + VN - 1) / VN * VN;
        all.needed[block] = needed < n ? needed : n;
        if (all.needed[block] > all.most) all.most = all.needed[block];
    }
    cyx_array stacks[2] = {NAME(stack_of)(a), NAME(stack_of)(b)}, results = NAME(stack_of)(out);
    all.walk = cyx_broadcast_walk(&results, stacks, 2);
    cyx_parallel(results.size, cyx_grain(results.size, (double)m * (double)n * (double)k / 8.0, 20000), NAME(masked_body),
                 &all);
    return all.no_memory ? CYX_NO_MEMORY : CYX_OK;
}
