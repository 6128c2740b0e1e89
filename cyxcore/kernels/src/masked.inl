/* Products of which a mask leaves a part, as the scores of attention: a stack of products, and where(mask, them, a number)
 * behind it (cyx_masks_product), in one pass. What the mask leaves out at the end of every row of a block is not multiplied.
 *
 * On the way back softmax's gradient is between them (cyx_masks_softmax_grad). Of what the mask hides it needs only the sum
 * of its products with weights, which are zeros there: to a sum they add nothing, if no product is infinite or NaN. So the
 * weights are looked at, and the factors for numbers so large that a product of theirs may be; a sum that comes to zero, whose
 * sign may be another, is made of all. */

#ifndef MASKED_ONCE
#define MASKED_ONCE
enum {
    MASKED_BLOCKS = CYX_MOST_MASKED / 4 + 1,
    MOST_BOUNDED = 1 << 16 /* terms of a product that stays finite if each factor is less than LARGE */
};
#endif
#define LARGE (sizeof(T) == sizeof(float) ? (T)0x1p55 : (T)0x1p500)

typedef struct {
    const cyx_call *call;
    NAME(product) one;
    cyx_walk walk;
    const char *mask; /* of m by n */
    T other, *out;
    const T *weights; /* of softmax, whose gradient it is; or NULL */
    int64_t height, needed[MASKED_BLOCKS]; /* of each block of rows: how many columns */
    int packs;
    _Atomic int no_memory;
} NAME(masked);

/* The columns of the right factor of one product that are packed so far, or where it lies. */
typedef struct {
    const NAME(product) * p;
    T *packed;
    int64_t columns;
} NAME(right_factor);

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

/* Columns [column, column + columns), of a panel, of a block of rows. */
static void NAME(multiply_panel)(NAME(right_factor) * right, int64_t r, int64_t rows, int64_t column, int64_t columns) {
    const NAME(product) *p = right->p;
    int64_t n = p->n, k = p->k;
    for (; right->packed && right->columns <= column; right->columns += NR)
        NAME(pack_panel)(p->b + right->columns * (p->b_transposed ? p->b_row : 1), p->b_row, p->b_transposed,
                         right->packed + right->columns * k, k, n - right->columns < NR ? n - right->columns : NR);
    NAME(run_block)(NAME(rows_kernels), rows, columns < NR ? columns : NR, p->a + r * k, k,
                    right->packed ? right->packed + column * k : p->b + column, right->packed ? NR : n, p->c + r * n + column, n, k, 0,
                    NO_ENDING);
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
static void NAME(find_needed)(const NAME(masked) * all, const NAME(product) * p, const T *weights, int64_t *needed) {
    int64_t m = p->m, n = p->n, least = n;
    for (int64_t r = 0, block = 0; r < m; r += all->height, block++)
        if (all->needed[block] < least) least = all->needed[block];
    int bounded = least < n && p->k <= MOST_BOUNDED && NAME(is_bounded)(p->a, m * p->k) &&
                  NAME(is_bounded)(p->b + least * p->k, (n - least) * p->k);
    for (int64_t r = 0, block = 0; r < m; r += all->height, block++) {
        int64_t rows = m - r < all->height ? m - r : all->height, from = all->needed[block];
        MASK found = (MASK)(V){0};
        for (int64_t row = r; bounded && row < r + rows; row++)
            for (int64_t at = from; at < n; at += VN) found |= (MASK)NAME(part)(weights + row * n + at, n - at, 0);
        needed[block] = bounded && !NAME(any_bit)(found) ? from : n;
    }
}

/* Rows of softmax's gradient from that of its result. Returns how many columns there are of it. */
static int64_t NAME(softmax_grad_rows)(NAME(right_factor) * right, T *out, const T *weights, int64_t r, int64_t rows, int64_t columns) {
    int64_t n = right->p->n;
    const T *g = right->p->c + r * n, *y = weights + r * n;
    T sums[MR];
    int unsure = 0;
    for (int64_t i = 0; i < rows; i++) {
        sums[i] = NAME(sum_products)(g + i * n, y + i * n, n, columns);
        unsure |= columns < n && sums[i] == 0 && NAME(minus_zero_in)(g + i * n, columns);
    }
    if (unsure) {
        for (int64_t column = columns / NR * NR; column < n; column += NR) NAME(multiply_panel)(right, r, rows, column, n - column);
        for (int64_t i = 0; i < rows; i++) sums[i] = NAME(sum_products)(g + i * n, y + i * n, n, n);
        columns = n;
    }
    for (int64_t i = 0; i < rows; i++) NAME(less_share)(out + (r + i) * n, g + i * n, y + i * n, sums[i], columns);
    return columns;
}

static void NAME(masked_body)(void *context, int64_t begin, int64_t end) {
    NAME(masked) *all = context;
    int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS], last = all->walk.ndim - 1, own[MASKED_BLOCKS];
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
        T *out = all->out + i * m * n;
        const T *weights = all->weights ? all->weights + i * m * n : NULL;
        const int64_t *needed = all->needed;
        if (weights) NAME(find_needed)(all, &p, weights, own), needed = own;
        NAME(right_factor) right = {&p, packed, 0};
        for (int64_t column = 0; column < n; column += NR)
            for (int64_t r = 0, block = 0; r < m; r += all->height, block++)
                if (needed[block] > column)
                    NAME(multiply_panel)(&right, r, m - r < all->height ? m - r : all->height, column, needed[block] - column);
        for (int64_t r = 0, block = 0; r < m; r += all->height, block++) {
            int64_t rows = m - r < all->height ? m - r : all->height, columns = needed[block];
            if (weights) columns = NAME(softmax_grad_rows)(&right, out, weights, r, rows, columns);
            NAME(mask_rows)(all, out + r * n, r, rows, columns);
        }
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

/* masked: the call behind the product, or behind softmax's gradient. */
static cyx_status NAME(masked_product)(const cyx_call *call, const cyx_call *masked) {
    const cyx_array *a = &call->in[0], *b = &call->in[1], *out = &masked->out;
    int64_t m = out->shape[out->ndim - 2], n = out->shape[out->ndim - 1], k = a->shape[a->ndim - 1];
    int64_t heights = (m + MR - 1) / MR;
    const cyx_call *back = masked == call + 2 ? call + 1 : NULL;
    NAME(masked)
    all = {.call = call,
           .one = {.a = a->data, .b = b->data, .c = back ? call->out.data : out->data, .m = m, .n = n, .k = k, .a_row = k,
                   .b_row = call->ints[1] ? k : n, .b_transposed = (int)call->ints[1]},
           .mask = masked->in[0].data,
           .other = *(const T *)masked->in[2].data,
           .out = out->data,
           .weights = back ? back->in[1].data : NULL,
           .height = (m + heights - 1) / heights,
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
