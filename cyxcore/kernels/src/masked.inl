/* Products of which a mask leaves a part, as the scores of attention: a stack of products, and where(mask, them, a number)
 * behind it (cyx_masks_product), in one pass. What the mask leaves out at the end of every row of a block is not multiplied.
 * With softmax behind that (cyx_masks_softmax) it is not written either, where the number is so small that its power is 0.
 *
 * On the way back softmax's gradient is between them (cyx_masks_softmax_grad). Of what the mask hides it needs only the sum
 * of its products with weights, which are zeros there: to a sum that begins at +0 they add nothing, if none is infinite or NaN.
 * So the weights are looked at, and the factors for numbers so large that a product of theirs may be. */

#ifndef MASKED_ONCE
#define MASKED_ONCE
enum {
    MASKED_BLOCKS = CYX_MOST_MASKED / 4 + 1,
    MOST_BOUNDED = 1 << 16 /* terms of a product that stays finite if each factor is less than LARGE */
};
#endif
#define LARGE (sizeof(T) == sizeof(float) ? (T)0x1p55 : (T)0x1p500)
_Static_assert(CYX_PANEL_COLUMNS % NR == 0, "what a lane keeps has room for whole panels");

typedef struct {
    const cyx_call *call;
    NAME(product) one;
    cyx_walk walk;
    const char *mask; /* of m by n */
    T other, *out;
    const T *weights; /* of softmax, whose gradient it is; or NULL */
    int64_t height, needed[MASKED_BLOCKS]; /* of each block of rows: how many columns */
    int is_softmax, packs;
    _Atomic int no_memory;
} NAME(masked);

/* Rows of a finished product, of which the first `columns` elements are there; those up to `stop` are made. */
static void NAME(mask_rows)(const NAME(masked) *all, T *c, int64_t first, int64_t rows, int64_t columns, int64_t stop) {
    int64_t n = all->one.n;
    for (int64_t r = 0; r < rows; r++) {
        const char *mask = all->mask + (first + r) * n, *hidden = memchr(mask, 0, (size_t)stop);
        T *row = c + r * n;
        if (!hidden) continue;
        int64_t at = hidden - mask;
        for (; at < columns; at++) row[at] = mask[at] ? row[at] : all->other;
        for (; at < stop; at++) row[at] = all->other;
    }
}

/* Columns [column, column + columns), of a panel, of a block of rows; the right factor is packed so far. */
static void NAME(multiply_panel)(const NAME(product) * p, cyx_notes *factor, int64_t r, int64_t rows, int64_t column, int64_t columns) {
    int64_t n = p->n, k = p->k;
    T *packed = factor->panels;
    for (; packed && factor->columns <= column; factor->columns += NR) {
        int64_t at = factor->columns;
        NAME(pack_panel)(p->b + at * (p->b_transposed ? p->b_row : 1), p->b_row, p->b_transposed, packed + at * k, k,
                         n - at < NR ? n - at : NR);
    }
    NAME(run_block)(NAME(rows_kernels), rows, columns < NR ? columns : NR, p->a + r * k, k, packed ? packed + column * k : p->b + column,
                    packed ? NR : n, p->c + r * n + column, n, k, 0, NO_ENDING);
}

static int NAME(is_bounded)(const T *x, int64_t size) {
    const V limit = SPLAT(LARGE);
    MASK beyond = (MASK)(V){0};
    for (int64_t at = 0; at < size; at += VN) {
        V next = NAME(part)(x + at, size - at, 0);
        beyond |= (MASK) ~((next < limit) & (next > -limit));
    }
    return !NAME(any_bit)(beyond);
}

/* Of one matrix: how many columns of each block of rows softmax's gradient needs. */
static void NAME(find_needed)(const NAME(masked) * all, const NAME(product) * p, cyx_notes *factor, const T *weights,
                              int64_t *needed) {
    int64_t m = p->m, n = p->n, used = all->call->zeros ? all->call->zeros->used : n;
    if (factor->bounded < 0) factor->bounded = p->k <= MOST_BOUNDED && NAME(is_bounded)(p->b, n * p->k);
    int bounded = factor->bounded && NAME(is_bounded)(p->a, m * p->k);
    for (int64_t r = 0, block = 0; r < m; r += all->height, block++) {
        int64_t rows = m - r < all->height ? m - r : all->height, from = all->needed[block];
        MASK found = (MASK)(V){0};
        for (int64_t row = r; bounded && row < r + rows; row++)
            for (int64_t at = from; at < used; at += VN) found |= (MASK)NAME(part)(weights + row * n + at, used - at, 0);
        needed[block] = bounded && !NAME(any_bit)(found) ? from : n;
    }
}

/* What becomes of a block of rows whose first `columns` are there. Returns behind how many columns it may be +0 only. */
static int64_t NAME(finish_rows)(const NAME(masked) *all, T *c, T *out, const T *weights, int64_t r, int64_t rows, int64_t columns) {
    int64_t n = all->one.n, used = 0;
    c += r * n, out += r * n;
    if (all->is_softmax) {
        NAME(mask_rows)(all, c, r, rows, columns, columns);
        int64_t together = NAME(softmax_together)(n) > 1 ? NAME(softmax_together)(n) : 1;
        for (int64_t i = 0; i < rows; i += together) {
            int64_t count = rows - i < together ? rows - i : together;
            int64_t own = NAME(softmax_hiding)(out + i * n, c + i * n, n, count, columns, all->other);
            used = own > used ? own : used;
        }
        return used;
    }
    for (int64_t i = 0; weights && i < rows; i++) {
        const T *g = c + i * n, *y = weights + (r + i) * n;
        NAME(less_share)(out + i * n, g, y, NAME(sum_products)(g, y, n, columns), columns);
    }
    NAME(mask_rows)(all, out, r, rows, columns, n);
    return all->other == 0 && !signbit(all->other) ? columns : n;
}

static void NAME(masked_body)(void *context, int64_t begin, int64_t end) {
    NAME(masked) *all = context;
    int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS], last = all->walk.ndim - 1, own[MASKED_BLOCKS];
    int64_t m = all->one.m, n = all->one.n, k = all->one.k;
    cyx_notes *notes = all->call->notes, here = {0}, *factor = notes && notes->panels ? notes : &here;
    if (all->packs && factor == &here && !(here.panels = cyx_scratch(0, sizeof(T) * (size_t)((n + NR - 1) / NR * NR * k)))) {
        all->no_memory = 1;
        return;
    }
    for (int64_t i = begin; i < end; i++) {
        NAME(product) p = all->one;
        cyx_walk_seek(&all->walk, 2, i, coordinate, offset);
        p.a += (offset[0] + coordinate[last] * all->walk.stride[0][last]) * m * k;
        p.b += (offset[1] + coordinate[last] * all->walk.stride[1][last]) * k * n;
        p.c += i * m * n;
        if (factor->of != p.b) factor->of = p.b, factor->columns = 0, factor->bounded = -1;
        const T *weights = all->weights ? all->weights + i * m * n : NULL;
        const int64_t *needed = all->needed;
        if (weights) NAME(find_needed)(all, &p, factor, weights, own), needed = own;
        for (int64_t column = 0; column < n; column += NR)
            for (int64_t r = 0, block = 0; r < m; r += all->height, block++)
                if (needed[block] > column)
                    NAME(multiply_panel)(&p, factor, r, m - r < all->height ? m - r : all->height, column, needed[block] - column);
        int64_t used = 0;
        for (int64_t r = 0, block = 0; r < m; r += all->height, block++) {
            int64_t rows = m - r < all->height ? m - r : all->height;
            int64_t of_block = NAME(finish_rows)(all, p.c, all->out + i * m * n, weights, r, rows, needed[block]);
            used = of_block > used ? of_block : used;
        }
        if (notes) notes->used = used; /* a lane's call makes one matrix */
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
    const cyx_call *end = call + call->group - 1, *back = call[1].op == CYX_OP_softmax_grad ? call + 1 : NULL;
    const cyx_call *masked = end->op == CYX_OP_where ? end : call + 1;
    const cyx_array *a = &call->in[0], *b = &call->in[1], *out = &end->out;
    int64_t m = out->shape[out->ndim - 2], n = out->shape[out->ndim - 1], k = a->shape[a->ndim - 1];
    int64_t heights = (m + MR - 1) / MR;
    NAME(masked)
    all = {.call = call,
           .one = {.a = a->data, .b = b->data, .c = call->group > 2 ? call->out.data : out->data, .m = m, .n = n, .k = k,
                   .a_row = k, .b_row = call->ints[1] ? k : n, .b_transposed = (int)call->ints[1]},
           .mask = masked->in[0].data,
           .other = *(const T *)masked->in[2].data,
           .out = out->data,
           .weights = back ? back->in[1].data : NULL,
           .height = (m + heights - 1) / heights,
           .is_softmax = masked != end,
           .packs = call->ints[1] || n % VN || k * n > DIRECT_B_SIZE};
    for (int64_t r = 0, block = 0; r < m; r += all.height, block++) {
        int64_t rows = m - r < all.height ? m - r : all.height, needed = 0;
        for (const char *mask = all.mask + r * n; rows--; mask += n) needed = NAME(last_shown)(mask, n, needed);
        needed = (needed + VN - 1) / VN * VN;
        all.needed[block] = needed < n ? needed : n;
    }
    cyx_array stacks[2] = {NAME(stack_of)(a), NAME(stack_of)(b)}, results = NAME(stack_of)(out);
    all.walk = cyx_broadcast_walk(&results, stacks, 2);
    cyx_parallel(results.size, cyx_grain(results.size, (double)m * (double)n * (double)k / 8.0, 20000), NAME(masked_body),
                 &all);
    return all.no_memory ? CYX_NO_MEMORY : CYX_OK;
}
#undef LARGE
