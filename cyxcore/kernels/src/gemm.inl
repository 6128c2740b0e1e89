/* matmul. Every output is one chain of fused multiply-adds over k in ascending order, starting from zero:
 * vectors lie along output columns, blocks of k go through memory without rounding, threads take different
 * outputs.
 *
 * Blocks of MR rows by NR columns are held in registers. Columns of B are packed into panels [k][NR], rows of
 * A into panels [k][MR]; both can also be read where they lie when there is too little reuse to pay for a
 * copy.
 *
 * A group of two calls is a product and the sum of it and something else, which is added when a block is done; of three, ReLU
 * of that sum; of four, a product and what a ReLU's mask leaves of it (cyx_masks_gradient). A group that goes on with another
 * product is many that add to one matrix: each is a chain of its own from zero, as it is alone. */

#ifndef GEMM_ONCE
#define GEMM_ONCE
typedef int32_t integer_f32;
typedef int64_t integer_f64;
enum {
    BLOCK_K = 512, /* terms between two times that a block of the result is in registers */
    BLOCK_M = 480,
    BLOCK_N = 2048,
    DIRECT_B_ROWS = 48,
    DIRECT_B_SIZE = 8192,
    NEAR_B_ROWS = 256,
    NEAR_B_BYTES = 1 << 19,
    DIRECT_A_COLUMNS = 512,
    TRANSPOSED_A_ROWS = 128,
    TRANSPOSED_A_COLUMNS = 32,
    TRANSPOSED_AT_ONCE = 64,
    FAR_ELEMENTS = 1 << 14, /* of a result that leaves the nearest caches before it is written to again */
    LINE = 16,
    ROWS_AHEAD = 16, /* of B, fetched while a row is packed */
    NEAR_PANELS = 1 << 16, /* elements of packed panels that stay near */
    OWN_PANELS = 1 << 14, /* of those that a task packs for itself at once */
    LEAST_PANELS = 2,
    PRODUCTS_AT_ONCE = 4,
    LEAST_OF_A_THREAD = 440000, /* multiply-adds of a product: what sharing fewer saves, meeting may cost */
    FEW_OF_A_THREAD = 200000, /* where calls are shared finely */
    ROWS_ALIKE = 4, /* threads take whole fours of rows */
    LEAST_PACKED = 16384, /* elements that a thread packs for the others */
    DOTS_AT_ONCE = 8,
    TALL_ROWS = 8, /* of blocks of three vectors, */
    WIDE = 48,     /* for products of as many columns at most */
    THIN_ROWS = 8,        /* up to which a product by a transposed matrix reads that where it lies */
    LEAST_IDLE = 16,      /* terms of all lanes: what a few columns leave idle, if turning A shall take less */
    SMALL_TAIL = 2048,    /* elements of a panel of B that is not whole, in a small product */
    NEAR_RESULT = 1 << 16, /* elements of a result to which products are added */
    APART = 16 /* elements between packed panels, so that they do not meet in the same lines of the cache */
};
_Static_assert(BLOCK_K >= CYX_BLOCK_K, "as many terms are summed up before anything is written");
#endif

#undef NR
#define NR (NV * VN)
_Static_assert(MR + APART >= VN, "transpose() writes a whole vector to the last line of a panel of A");
#define PANEL(p) ((p)->k_count * NR + APART)         /* elements from one panel of B to the next */
#define ROWS_PANEL(k_count) ((k_count) * MR + APART) /* and of A */

/* What becomes of a product when it is finished. To the element of row r and column c at[r * row + c] is added, if at is not
 * NULL; then it is ReLU of that, or taken by 1 where image[r * image_row + c] > limit and by 0 elsewhere, if image is not NULL.
 * Kernels take its address: handing over a copy, which is read as one vector and was written in parts, waits until all
 * earlier stores are done, those of the block before too. */
typedef struct {
    const T *at, *image;
    int64_t row, image_row;
    int relu;
    T limit;
    cyx_fetching far, result; /* what the block fetches meanwhile: lines from afar, the next block of the result */
} NAME(ending);
#undef NO_ENDING
#define NO_ENDING NULL

/* The same of what begins at a row and a column, field by field. */
static inline __attribute__((always_inline)) void NAME(end_at)(NAME(ending) *to, const NAME(ending) *all, int64_t r, int64_t column) {
    to->at = all->at ? all->at + r * all->row + column : NULL, to->row = all->row;
    to->image = all->image ? all->image + r * all->image_row + column : NULL, to->image_row = all->image_row;
    to->relu = all->relu, to->limit = all->limit;
}

static inline int NAME(ends)(const NAME(ending) *all) { return all->at || all->image; }

/* Rows whose sums are there, from one place to another, or in their place. ending: NULL for none. */
static void NAME(end_rows)(const T *from, int64_t from_row, T *c, int64_t c_row, int64_t rows, int64_t columns,
                           const NAME(ending) *ending) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t at = 0; at < columns; at += VN) {
            int64_t left = columns - at;
            V x = NAME(part)(from + r * from_row + at, left, 0);
            if (ending && ending->at) x += NAME(part)(ending->at + r * ending->row + at, left, 0);
            if (ending && ending->relu) x = SELECT(x < (V){0}, (V){0}, x);
            if (ending && ending->image)
                x *= SELECT(NAME(part)(ending->image + r * ending->image_row + at, left, 0) > ending->limit, (V){0} + 1, (V){0});
            NAME(put_part)(c + r * c_row + at, x, left);
        }
}

/* R rows by W vectors. A is a[r * a_row + k * a_k]; B is b[k * b_k + column]. FETCHING: with each term lines of what is
 * fetched, by a kernel of its own, as it costs registers. Many lines at once would be in the way of A and B. */
static inline __attribute__((always_inline)) void NAME(block)(const int FETCHING, const int R, const int W, const T *a,
                                                              int64_t a_row, int64_t a_k, const T *b,
                                                              int64_t b_k, T *c, int64_t c_row, int64_t count,
                                                              int add, const NAME(ending) *ending) {
    V sum[MR][NV > 3 ? NV : 3];
    _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) _Pragma("GCC unroll 4") for (int w = 0; w < W; w++)
        sum[r][w] = add ? *(const V *)(c + r * c_row + w * VN) : (V){0};
    const T *row[(MR + 2) / 3]; /* every third: the address of each is one of these and 0, 1 or 2 times a_row */
    _Pragma("GCC unroll 4") for (int i = 0; 3 * i < MR; i++) {
        row[i] = 3 * i < R ? a + 3 * i * a_row : a;
        if (!__builtin_constant_p(a_row)) __asm__("" : "+r"(row[i])); /* or each row has a register of its own */
    }
    cyx_fetching far = {(const char *)c, (const char *)c, 0}, result = far;
    if (FETCHING && ending->far.at) far = ending->far;
    if (FETCHING && ending->result.at) result = ending->result;
    for (int64_t k = 0; k < count; k++, b += b_k) {
        V column[NV > 3 ? NV : 3];
        if (FETCHING) {
            __builtin_prefetch(far.at, 0, 2), far.at += far.at == far.last ? 0 : far.step;
            for (int at = 0; at < W * (int)sizeof(V); at += CYX_LINE_BYTES) __builtin_prefetch(result.at + at, 1);
            result.at += result.at == result.last ? 0 : result.step;
        }
        _Pragma("GCC unroll 4") for (int w = 0; w < W; w++) column[w] = *(const V *)(b + w * VN);
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {
            V one = SPLAT(row[r / 3][r % 3 * a_row]);
            _Pragma("GCC unroll 4") for (int w = 0; w < W; w++) sum[r][w] = FMA_V(one, column[w], sum[r][w]);
        }
        _Pragma("GCC unroll 4") for (int i = 0; 3 * i < R; i++) row[i] += a_k;
    }
    __asm__("" : "+r"(c), "+r"(c_row)); /* or the places of all rows are computed, and kept, before the first product */
#define ALL_SUMS _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) _Pragma("GCC unroll 4") for (int w = 0; w < W; w++)
    if (ending && ending->at) ALL_SUMS sum[r][w] += *(const V *)(ending->at + r * ending->row + w * VN);
    if (ending && ending->relu) ALL_SUMS sum[r][w] = SELECT(sum[r][w] < (V){0}, (V){0}, sum[r][w]);
    if (ending && ending->image) {
        const V limit = SPLAT(ending->limit), one = (V){0} + 1;
        ALL_SUMS sum[r][w] *= SELECT(*(const V *)(ending->image + r * ending->image_row + w * VN) > limit, one, (V){0});
    }
#undef ALL_SUMS
    _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) _Pragma("GCC unroll 4") for (int w = 0; w < W; w++) *
        (V *)(c + r * c_row + w * VN) = sum[r][w];
}

typedef void (*NAME(block_kernel))(const T *a, int64_t a_stride, const T *b, int64_t b_k, T *c, int64_t c_row,
                                   int64_t count, int add, const NAME(ending) *ending);

/* Two of each size: rows next to each other (packed or transposed A), and k next to each other (A as it
 * lies). */
#define BLOCK_KERNEL_OF(KIND, FETCHING, R, W)                                                                \
    static void NAME(packed_##KIND##R##x##W)(const T *a, int64_t a_k, const T *b, int64_t b_k, T *c,         \
                                             int64_t c_row, int64_t count, int add, const NAME(ending) *ending) {     \
        NAME(block)(FETCHING, R, W, a, 1, a_k, b, b_k, c, c_row, count, add, ending);                          \
    }                                                                                                        \
    static void NAME(rows_##KIND##R##x##W)(const T *a, int64_t a_row, const T *b, int64_t b_k, T *c,         \
                                           int64_t c_row, int64_t count, int add, const NAME(ending) *ending) {       \
        NAME(block)(FETCHING, R, W, a, a_row, 1, b, b_k, c, c_row, count, add, ending);                        \
    }
#define BLOCK_KERNEL(R, W) BLOCK_KERNEL_OF(, 0, R, W)
#define FETCHING_KERNEL(R, W) BLOCK_KERNEL_OF(fetching_, 1, R, W)
#if NV == 4
#define FOR_WIDTHS(X, R) X(R, 1) X(R, 2) X(R, 3) X(R, 4)
#define WIDTHS(KIND, R) {NAME(KIND##R##x1), NAME(KIND##R##x2), NAME(KIND##R##x3), NAME(KIND##R##x4)}
#else
#define FOR_WIDTHS(X, R) X(R, 1) X(R, 2)
#define WIDTHS(KIND, R) {NAME(KIND##R##x1), NAME(KIND##R##x2)}
#endif
FOR_WIDTHS(BLOCK_KERNEL, 1)
FOR_WIDTHS(BLOCK_KERNEL, 2)
FOR_WIDTHS(BLOCK_KERNEL, 3)
FOR_WIDTHS(BLOCK_KERNEL, 4)
#if MR >= 6
FOR_WIDTHS(BLOCK_KERNEL, 5)
FOR_WIDTHS(BLOCK_KERNEL, 6)
#endif
#if MR >= 12
FOR_WIDTHS(BLOCK_KERNEL, 7)
FOR_WIDTHS(BLOCK_KERNEL, 8)
FOR_WIDTHS(BLOCK_KERNEL, 9)
FOR_WIDTHS(BLOCK_KERNEL, 10)
FOR_WIDTHS(BLOCK_KERNEL, 11)
FOR_WIDTHS(BLOCK_KERNEL, 12)
#endif
#if MR >= 12
BLOCK_KERNEL(8, 3)
#define HEIGHTS(K)                                                                                           \
    {WIDTHS(K, 1), WIDTHS(K, 2), WIDTHS(K, 3), WIDTHS(K, 4),  WIDTHS(K, 5),  WIDTHS(K, 6),                   \
     WIDTHS(K, 7), WIDTHS(K, 8), WIDTHS(K, 9), WIDTHS(K, 10), WIDTHS(K, 11), WIDTHS(K, 12)}
#elif MR >= 6
#define HEIGHTS(K) {WIDTHS(K, 1), WIDTHS(K, 2), WIDTHS(K, 3), WIDTHS(K, 4), WIDTHS(K, 5), WIDTHS(K, 6)}
#else
#define HEIGHTS(K) {WIDTHS(K, 1), WIDTHS(K, 2), WIDTHS(K, 3), WIDTHS(K, 4)}
#endif
static const NAME(block_kernel) NAME(packed_kernels)[MR][NV] = HEIGHTS(packed_);
static const NAME(block_kernel) NAME(rows_kernels)[MR][NV] = HEIGHTS(rows_);

/* Of blocks that are more than half as tall as they can be, whole: products of many rows are cut into no others. */
#if MR >= 12
FETCHING_KERNEL(7, 2)
FETCHING_KERNEL(8, 2)
FETCHING_KERNEL(9, 2)
FETCHING_KERNEL(10, 2)
FETCHING_KERNEL(11, 2)
FETCHING_KERNEL(12, 2)
#define FETCHING(K, rows)                                                                                         \
    ((rows) == 12   ? NAME(K##12x2)                                                                               \
     : (rows) == 11 ? NAME(K##11x2)                                                                               \
     : (rows) == 10 ? NAME(K##10x2)                                                                               \
     : (rows) == 9  ? NAME(K##9x2)                                                                                \
     : (rows) == 8  ? NAME(K##8x2)                                                                                \
     : (rows) == 7  ? NAME(K##7x2)                                                                                \
                    : NULL)
#elif MR >= 6
FETCHING_KERNEL(5, 2)
FETCHING_KERNEL(6, 2)
#define FETCHING(K, rows) ((rows) == 6 ? NAME(K##6x2) : (rows) == 5 ? NAME(K##5x2) : NULL)
#else
#define FETCHING(K, rows) NULL
#endif
static NAME(block_kernel) NAME(fetching_kernel)(int packed, int64_t rows) {
    return packed ? FETCHING(packed_fetching_, rows) : FETCHING(rows_fetching_, rows);
}
#undef FETCHING

/* One block whose `columns` <= NR need not fill its vectors: b must be readable up to the vector's end, c
 * need not. */
static inline void NAME(run_block)(const NAME(block_kernel) kernels[MR][NV], int64_t rows, int64_t columns,
                                   const T *a, int64_t a_stride, const T *b, int64_t b_k, T *c, int64_t c_row,
                                   int64_t count, int add, const NAME(ending) *ending) {
    int64_t vectors = (columns + VN - 1) / VN;
    NAME(block_kernel) kernel = kernels[rows - 1][vectors - 1];
    if (columns == vectors * VN) {
        kernel(a, a_stride, b, b_k, c, c_row, count, add, ending);
        return;
    }
    T own[MR * NR];
    for (int64_t r = 0; add && r < rows; r++) {
        memset(own + r * NR, 0, sizeof(T) * NR);
        memcpy(own + r * NR, c + r * c_row, sizeof(T) * (size_t)columns);
    }
    kernel(a, a_stride, b, b_k, own, NR, count, add, NO_ENDING);
    NAME(end_rows)(own, NR, c, c_row, rows, columns, ending);
}

typedef T NAME(four) __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (NAME(four_index)){__VA_ARGS__})
typedef NAME(integer) NAME(four_index) __attribute__((vector_size(4 * sizeof(T))));
#endif

/* to[c * to_row + r] = from[r * from_row + c], for columns [begin, end). */
static void NAME(transpose_columns)(const T *from, int64_t from_row, T *to, int64_t to_row, int64_t rows,
                                    int64_t begin, int64_t end) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        int64_t c = begin;
        const T *f0 = from + r * from_row, *f1 = f0 + from_row, *f2 = f1 + from_row, *f3 = f2 + from_row;
        for (; c + 4 <= end; c += 4) {
            T *t = to + c * to_row + r;
            NAME(four)
            a = *(const NAME(four) *)(f0 + c),
            b = *(const NAME(four) *)(f1 + c), d = *(const NAME(four) *)(f2 + c),
            e = *(const NAME(four) *)(f3 + c);
            NAME(four) ab_low = SHUFFLE(a, b, 0, 4, 1, 5), ab_high = SHUFFLE(a, b, 2, 6, 3, 7);
            NAME(four) de_low = SHUFFLE(d, e, 0, 4, 1, 5), de_high = SHUFFLE(d, e, 2, 6, 3, 7);
            *(NAME(four) *)t = SHUFFLE(ab_low, de_low, 0, 1, 4, 5);
            *(NAME(four) *)(t + to_row) = SHUFFLE(ab_low, de_low, 2, 3, 6, 7);
            *(NAME(four) *)(t + 2 * to_row) = SHUFFLE(ab_high, de_high, 0, 1, 4, 5);
            *(NAME(four) *)(t + 3 * to_row) = SHUFFLE(ab_high, de_high, 2, 3, 6, 7);
        }
        for (; c < end; c++) {
            T *t = to + c * to_row + r;
            t[0] = f0[c], t[1] = f1[c], t[2] = f2[c], t[3] = f3[c];
        }
    }
    for (; r < rows; r++)
        for (int64_t c = begin; c < end; c++) to[c * to_row + r] = from[r * from_row + c];
}

/* VN columns of at most VN rows, turned in registers: whole lines of the cache are read, and whole vectors written. Rows
 * that are not there become zero. */
static inline void NAME(transpose_square)(const T *from, int64_t from_row, T *to, int64_t to_row, int64_t rows) {
    V x[VN];
    if (rows == VN) {
        const T *row[VN];
        _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) row[i] = from + i * from_row;
        NAME(load_turned)(x, row, 0);
    } else {
        _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) x[i] = i < rows ? *(const V *)(from + i * from_row) : (V){0};
        NAME(turn)(x);
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) *(V *)(to + i * to_row) = x[i];
}

/* A few columns at a time: what they become stays in the cache until all rows are in it. Lines of `to` shorter
 * than a vector are written beyond their end, the last one too, and then overwritten by the next. Of what becomes panels of
 * B the next columns are fetched meanwhile: it comes from far, and short pieces of many pages nobody foresees. */
static void NAME(transpose)(const T *from, int64_t from_row, T *to, int64_t to_row, int64_t rows,
                            int64_t columns) {
    for (int64_t c = 0; c < columns; c += TRANSPOSED_AT_ONCE) {
        int64_t end = columns - c < TRANSPOSED_AT_ONCE ? columns : c + TRANSPOSED_AT_ONCE;
        int64_t whole = c + (end - c) / VN * VN;
        int64_t r = 0;
        for (int64_t row = 0; to_row == NR && row < rows; row++)
            for (int64_t at = end; at < end + TRANSPOSED_AT_ONCE && at < columns; at += LINE)
                __builtin_prefetch(from + row * from_row + at, 0, 2);
        for (; r < rows && (!r || r + VN <= to_row); r += VN)
            for (int64_t at = c; at < whole; at += VN)
                NAME(transpose_square)(from + r * from_row + at, from_row, to + at * to_row + r, to_row,
                                       rows - r < VN ? rows - r : VN);
        if (r < rows) NAME(transpose_columns)(from + r * from_row, from_row, to + r, to_row, rows - r, c, whole);
        if (whole < end) NAME(transpose_columns)(from, from_row, to, to_row, rows, whole, end);
    }
}

/* Rows [k, k + count) of `columns` columns of B, from b, as a panel [count][NR]; missing columns become zero.
 */
static void NAME(pack_panel)(const T *b, int64_t b_row, int transposed, T *panel, int64_t count,
                             int64_t columns) {
    if (columns < NR) memset(panel, 0, sizeof(T) * (size_t)(count * NR));
    if (transposed) {
        NAME(transpose)(b, b_row, panel, NR, columns, count);
        return;
    }
    if (columns == NR)
        for (int64_t k = 0; k < count; k++) memcpy(panel + k * NR, b + k * b_row, sizeof(T) * NR);
    else
        for (int64_t k = 0; k < count; k++)
            memcpy(panel + k * NR, b + k * b_row, sizeof(T) * (size_t)columns);
}

typedef struct {
    const T *a, *b;
    T *c;
    int64_t m, n, k, a_row, b_row; /* leading dimensions as stored; c is m by n, contiguous */
    int a_transposed, b_transposed;
    const T *const *lines; /* of a transposed A whose lines do not lie one behind the other; or NULL */
    int64_t lines_from;    /* how many elements of each come before those of A */
    NAME(ending) ending;
    const int64_t *used; /* behind so many of its columns A is +0; NULL: that must be looked for */
    int adds;  /* to the chains that are in c, instead of beginning them */
    /* of the current block */
    int64_t n0, n_count, k0, k_count, m_block, n_block;
    const T *panels; /* packed B, or NULL where it is read directly; then `last` holds a panel that is not whole;
                        else what is packed here lies at `last` */
    T *last;
    const T *packed; /* all of B: see pack_all; or NULL */
    int64_t panels_at_once; /* 0, or how many panels are packed by whom they are for, who uses them while they are near */
    cyx_looking looking; /* of a product that one thread makes */
    _Atomic int no_memory;
} NAME(product);

/* Panels [begin, end) of the current block of B, one behind the other. */
static void NAME(pack_b)(const NAME(product) * p, T *to, int64_t begin, int64_t end) {
    int64_t first = begin;
    if (!p->b_transposed) { /* row by row: a panel at a time would touch as many pages as it has rows */
        int64_t whole = p->n_count / NR < end ? p->n_count / NR : end;
        const T *b = p->b + p->k0 * p->b_row + p->n0;
        for (int64_t k = 0; k < p->k_count; k++)
            for (int64_t panel = begin; panel < whole; panel++) {
                const T *line = b + k * p->b_row + panel * NR;
                for (int64_t at = 0; at < NR; at += LINE) __builtin_prefetch(CYX_BEYOND(line, ROWS_AHEAD * p->b_row + at), 0, 2);
                memcpy(to + (panel - begin) * PANEL(p) + k * NR, line, sizeof(T) * NR);
            }
        if (whole > begin) first = whole;
    }
    for (int64_t panel = first; panel < end; panel++) {
        int64_t column = p->n0 + panel * NR, left = p->n0 + p->n_count - column;
        const T *b = p->b + (p->b_transposed ? column * p->b_row + p->k0 : p->k0 * p->b_row + column);
        NAME(pack_panel)(b, p->b_row, p->b_transposed, to + (panel - begin) * PANEL(p), p->k_count,
                         left < NR ? left : NR);
    }
}

static void NAME(pack_b_body)(void *context, int64_t begin, int64_t end) {
    NAME(product) *p = context;
    NAME(pack_b)(p, p->last + begin * PANEL(p), begin, end);
}

/* `rows` columns of a transposed A as panels [k][MR]. Line by line as it lies: a panel at a time would wait for memory at
 * every line. Where there is more behind a panel's columns, they are moved as whole vectors: what is too much of one line
 * is overwritten by the next. lines: where each line lies, if not one behind the other;
 * of them the first `column` elements are left out. */
static void NAME(pack_rows)(const T *from, int64_t a_row, const T *const *lines, int64_t column, T *packed,
                            int64_t k_count, int64_t rows) {
    int64_t whole = rows / MR, panel = ROWS_PANEL(k_count), vectors = (MR + VN - 1) / VN;
    int64_t swift = rows < vectors * VN ? 0 : (rows - vectors * VN) / MR + 1;
    if (swift > whole) swift = whole;
    for (int64_t k = 0; k < k_count; k++) {
        const T *a = lines ? lines[k] + column : from + k * a_row;
        T *to = packed + k * MR;
        for (int64_t i = 0; i < swift; i++)
            _Pragma("GCC unroll 4") for (int64_t v = 0; v < vectors; v++)
                *(V *)(to + i * panel + v * VN) = *(const V *)(a + i * MR + v * VN);
        for (int64_t i = swift; i < whole; i++) memcpy(to + i * panel, a + i * MR, sizeof(T) * MR);
        if (whole * MR < rows)
            memcpy(to + whole * panel, a + whole * MR, sizeof(T) * (size_t)(rows - whole * MR));
    }
}

/* What a thread that packs B for itself needs next, to be fetched by `blocks` blocks: the panels from column `stop`
 * on, or behind its last one, which ends at `end`, those from `first` on of the next block of k. */
static cyx_rectangle NAME(next_panels)(const NAME(product) * p, int64_t first, int64_t stop, int64_t end,
                                       int64_t blocks) {
    int64_t column = stop < end ? stop : first, k0 = stop < end ? p->k0 : p->k0 + p->k_count;
    int64_t columns = end - column, terms = p->k - k0 < BLOCK_K ? p->k - k0 : BLOCK_K;
    if (columns > p->panels_at_once * NR) columns = p->panels_at_once * NR;
    if (terms <= 0) return (cyx_rectangle){0};
    int64_t rows = p->b_transposed ? columns : terms, in_row = p->b_transposed ? terms : columns;
    const T *b = p->b_transposed ? p->b + (p->n0 + column) * p->b_row + k0 : p->b + k0 * p->b_row + p->n0 + column;
    return cyx_rectangle_of(b, rows, p->b_row * (int64_t)sizeof(T), in_row * (int64_t)sizeof(T), blocks);
}

/* The rows of c's block behind the one of `height` rows at row r, perhaps at the top of the next panel. at: NULL where
 * that is not whole. columns: how many there are from this panel on. */
static inline cyx_fetching NAME(next_block)(const T *c, int64_t c_row, int64_t r, int64_t rows, int64_t height,
                                            int64_t columns) {
    r += height;
    if (r >= rows) r = 0, c += NR, columns -= NR;
    if (columns < NR) return (cyx_fetching){NULL, NULL, 0};
    const T *last = c + (r + height < rows ? r + height - 1 : rows - 1) * c_row;
    return (cyx_fetching){(const char *)(c + r * c_row), (const char *)last, c_row * (int64_t)sizeof(T)};
}

/* One task: rows [m0, m0 + m_block) by a group of panels. */
static void NAME(product_body)(void *context, int64_t begin, int64_t end) {
    NAME(product) *p = context;
    int64_t groups = (p->n_count + p->n_block - 1) / p->n_block;
    int pack_a = p->lines ? 1 : p->a_transposed ? p->m > TRANSPOSED_A_ROWS && p->n_count > TRANSPOSED_A_COLUMNS
                                 : p->n_count > DIRECT_A_COLUMNS;
    static const NAME(ending) nothing;
    int far = p->m * p->n >= FAR_ELEMENTS; /* the next block of c is fetched while one is computed */
    int64_t of_a = pack_a ? (p->m_block / MR + 1) * ROWS_PANEL(p->k_count) : 0, packed_m0 = -1;
    int64_t of_b = p->panels_at_once * PANEL(p), step = of_b ? p->panels_at_once : 1;
    T *packed = of_a + of_b ? cyx_scratch(1, sizeof(T) * (size_t)(of_a + of_b)) : NULL, *own_b = packed + of_a;
    if (of_a + of_b && !packed) {
        p->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task += step) {
        int64_t m0 = task / groups * p->m_block, first = task % groups * p->n_block;
        int64_t rows = p->m - m0 < p->m_block ? p->m - m0 : p->m_block;
        int64_t stop = first + (end - task < step ? end - task : step) * p->n_block;
        if (stop > p->n_count) stop = p->n_count;
        const T *a = p->a + (p->a_transposed ? p->k0 * p->a_row + m0 : m0 * p->a_row + p->k0);
        int fresh_a = pack_a && m0 != packed_m0; /* the columns of one block of rows follow each other */
        packed_m0 = m0;
        if (fresh_a && p->a_transposed)
            NAME(pack_rows)(a, p->a_row, p->lines ? p->lines + p->k0 : NULL, p->lines_from + m0, packed, p->k_count, rows);
        for (int64_t r = 0; fresh_a && !p->a_transposed && r < rows; r += MR)
            NAME(transpose)(a + r * p->a_row, p->a_row, packed + r / MR * ROWS_PANEL(p->k_count), MR,
                            rows - r < MR ? rows - r : MR, p->k_count);
        /* Where nothing packs rows by MR, blocks are alike: one of few rows waits for what it reads of B. */
        int64_t heights = (rows + MR - 1) / MR, height = pack_a ? MR : (rows + heights - 1) / heights;
        const T *panels = p->panels;
        cyx_rectangle next_b = {0};
        if (of_b) {
            NAME(pack_b)(p, own_b, first / NR, (stop + NR - 1) / NR);
            panels = own_b - first / NR * PANEL(p);
            int64_t last = end * NR < p->n_count ? end * NR : p->n_count;
            next_b = NAME(next_panels)(p, begin * NR, stop, last, heights * ((stop - first + NR - 1) / NR));
        }
        for (int64_t column = first; column < stop; column += NR) {
            int64_t columns = stop - column < NR ? stop - column : NR;
            const T *b =
                panels ? panels + column / NR * PANEL(p) : p->b + p->k0 * p->b_row + p->n0 + column;
            int64_t b_k = panels ? NR : p->b_row;
            if (!panels && columns % VN) b = p->last, b_k = NR;
            T *c = p->c + m0 * p->n + p->n0 + column;
            int goes_on = p->adds || p->k0 > 0, done = p->k0 + p->k_count == p->k;
            for (int64_t r = 0; r < rows; r += height) {
                int64_t count = rows - r < height ? rows - r : height;
                const T *own_a = pack_a ? packed + r / MR * ROWS_PANEL(p->k_count) : a + (p->a_transposed ? r : r * p->a_row);
                int packed_rows = pack_a || p->a_transposed;
                int64_t a_stride = pack_a ? MR : p->a_row;
                NAME(ending) ending;
                NAME(end_at)(&ending, done ? &p->ending : &nothing, m0 + r, p->n0 + column);
                ending.far = ending.result = (cyx_fetching){NULL, NULL, 0};
                NAME(block_kernel) kernel = columns == NR ? NAME(fetching_kernel)(packed_rows, count) : NULL;
                if (far) ending.result = NAME(next_block)(c, p->n, r, rows, height, stop - column);
                if (kernel) ending.far = cyx_fetch_rectangle(&next_b, p->k_count);
                if (kernel && !ending.far.at) ending.far = cyx_fetch_ahead(&p->looking, p->k_count);
                if (!ending.far.at && (MR < 12 || !ending.result.at)) kernel = NULL;
                if (!kernel) cyx_fetch_at_once(&ending.result, sizeof(T) * NR);
                if (kernel)
                    kernel(own_a, a_stride, b, b_k, c + r * p->n, p->n, p->k_count, goes_on, &ending);
                else
                    NAME(run_block)(packed_rows ? NAME(packed_kernels) : NAME(rows_kernels), count, columns, own_a, a_stride,
                                    b, b_k, c + r * p->n, p->n, p->k_count, goes_on, &ending);
            }
        }
    }
}

/* How many threads share a product of these sizes. */
static int64_t NAME(threads_for)(int64_t m, int64_t n, int64_t k) {
    int64_t threads = cyx_threads();
    if (threads == 1) return 1;
    double most = (double)m * (double)((n + VN - 1) / VN * VN) * (double)k /
                  (cyx_shares_finely ? FEW_OF_A_THREAD : LEAST_OF_A_THREAD);
    return most >= (double)threads ? threads : most >= 2 ? (int64_t)most : 1;
}

/* How many threads take part in the current block. */
static int64_t NAME(threads_of)(const NAME(product) * p) { return NAME(threads_for)(p->m, p->n_count, p->k_count); }

/* How one (n, k) block is cut into tasks: by rows while there are enough of them, else by columns, so that each thread reads a
 * part of B only. Fewer rows are enough where A is transposed: a thread then makes the rows of a weight's gradient that it
 * updates, and multiplies by in the next step. To write where another thread reads costs more than to read it. */
static void NAME(cut_product)(NAME(product) * p) {
    int64_t threads = NAME(threads_of)(p);
    p->m_block = BLOCK_M / MR * MR;
    p->n_block = (p->n_count + NR - 1) / NR * NR;
    if (threads == 1) return;
    if (p->m >= (p->a_transposed ? 2 : 4) * MR * threads || p->n_count < NR * threads) {
        int64_t blocks = ((p->m + BLOCK_M - 1) / BLOCK_M + threads - 1) / threads * threads;
        p->m_block = ((p->m + blocks - 1) / blocks + ROWS_ALIKE - 1) / ROWS_ALIKE * ROWS_ALIKE;
        return;
    }
    int64_t panels = p->n_block / NR;
    p->n_block = (panels + threads - 1) / threads * NR;
}

/* All of B, block of k by block of k, the panels of one behind the other: how many elements lie before row k0. */
static int64_t NAME(packed_before)(int64_t n, int64_t k0) {
    return (n + NR - 1) / NR * (k0 * NR + (k0 + BLOCK_K - 1) / BLOCK_K * APART);
}

static void NAME(pack_all)(const cyx_call *call, void *packed) {
    const cyx_array *b = &call->in[1];
    int transposed = (int)call->ints[1];
    int64_t k = b->shape[transposed], n = b->shape[!transposed];
    NAME(product) p = {.b = b->data, .n = n, .n_count = n, .k = k, .b_row = transposed ? k : n, .b_transposed = transposed};
    for (; p.k0 < k; p.k0 += BLOCK_K) {
        p.k_count = k - p.k0 < BLOCK_K ? k - p.k0 : BLOCK_K;
        NAME(pack_b)(&p, (T *)packed + NAME(packed_before)(n, p.k0), 0, (n + NR - 1) / NR);
    }
}

/* Whether tasks, of one panel each, pack B by themselves, a few of them at a time, where one block holds all rows and each
 * panel is used by one thread only: then no packed panel leaves the cache before it is used. All threads pack A. */
static int NAME(tasks_pack)(NAME(product) * p) {
    int64_t threads = NAME(threads_of)(p), panels = (p->n_count + NR - 1) / NR, near = OWN_PANELS / (NR * p->k_count);
    int64_t at_once = near > LEAST_PANELS ? near : LEAST_PANELS, share = (panels + threads - 1) / threads;
    int64_t times = (share + at_once - 1) / at_once, tasks = times * threads;
    p->panels_at_once = 0;
    if (p->m > BLOCK_M / MR * MR || (threads > 1 && p->m > p->n_count)) return 0;
    if (tasks < 2 || tasks * LEAST_PANELS > 2 * panels) return 0;
    p->panels_at_once = (share + times - 1) / times;
    p->m_block = BLOCK_M / MR * MR, p->n_block = NR;
    return 1;
}

static cyx_status NAME(multiply)(NAME(product) * p);

static void NAME(rows_apart_body)(void *context, int64_t begin, int64_t end) {
    NAME(product) *p = context, own = *p;
    own.m = end - begin, own.lines_from = begin;
    own.a += begin, own.c += begin * p->n;
    NAME(end_at)(&own.ending, &p->ending, begin, 0);
    if (NAME(multiply)(&own) != CYX_OK) p->no_memory = 1;
}

/* Where threads share many rows of a transposed A and B is small, each makes its rows from the first term to the last and packs B
 * for itself: meeting at every block of terms, and reading panels that another core has just written, takes longer. 0: not so. */
static int NAME(multiply_rows_apart)(NAME(product) * p) {
    int64_t threads = cyx_threads(), terms = p->k < BLOCK_K ? p->k : BLOCK_K, rows = (p->m + threads - 1) / threads;
    if (threads == 1 || p->packed || !p->a_transposed || NAME(threads_for)(p->m, p->n, terms) < threads) return 0;
    if (rows < 4 * MR || p->n * terms > NEAR_PANELS) return 0;
    p->looking.ahead = NULL;
    cyx_parallel(p->m, (rows + ROWS_ALIKE - 1) / ROWS_ALIKE * ROWS_ALIKE, NAME(rows_apart_body), p);
    return 1;
}

static cyx_status NAME(multiply)(NAME(product) * p) {
    if (!p->m || !p->n) return CYX_OK;
    if (!p->k) {
        memset(p->c, 0, sizeof(T) * (size_t)(p->m * p->n));
        return CYX_OK;
    }
    if (NAME(multiply_rows_apart)(p)) return p->no_memory ? CYX_NO_MEMORY : CYX_OK;
    int direct_b = !p->packed && !p->b_transposed && (p->m <= DIRECT_B_ROWS || p->k * p->n <= DIRECT_B_SIZE ||
                                        (p->m <= NEAR_B_ROWS && p->k * p->n * (int64_t)sizeof(T) <= NEAR_B_BYTES));
    for (p->n0 = 0; p->n0 < p->n; p->n0 += BLOCK_N)
        for (p->k0 = 0; p->k0 < p->k; p->k0 += BLOCK_K) {
            p->n_count = p->n - p->n0 < BLOCK_N ? p->n - p->n0 : BLOCK_N;
            p->k_count = p->k - p->k0 < BLOCK_K ? p->k - p->k0 : BLOCK_K;
            int64_t panels = (p->n_count + NR - 1) / NR, whole = p->n_count / NR * NR;
            NAME(cut_product)(p);
            int own_b = !direct_b && !p->packed && NAME(tasks_pack)(p);
            T *memory = cyx_scratch(0, sizeof(T) * (size_t)(PANEL(p) * (direct_b || own_b || p->packed ? 1 : panels)));
            if (!memory) return CYX_NO_MEMORY;
            p->panels = p->packed ? p->packed + NAME(packed_before)(p->n, p->k0) : direct_b || own_b ? NULL : memory;
            p->last = memory;
            if (direct_b && (p->n_count - whole) % VN)
                NAME(pack_panel)(p->b + p->k0 * p->b_row + p->n0 + whole, p->b_row, 0, memory, p->k_count,
                                 p->n_count - whole);
            if (p->panels == memory)
                cyx_parallel(panels, cyx_grain(panels, (double)(NR * p->k_count), LEAST_PACKED), NAME(pack_b_body),
                             p);
            int64_t tasks =
                (p->m + p->m_block - 1) / p->m_block * ((p->n_count + p->n_block - 1) / p->n_block);
            int64_t threads = NAME(threads_of)(p), share = (tasks + threads - 1) / threads;
            if (threads > 1) p->looking.ahead = NULL;
            cyx_parallel(tasks, own_b || threads == 1 ? share : 1, NAME(product_body), p);
            if (p->no_memory) return CYX_NO_MEMORY;
        }
    return CYX_OK;
}

/* A product for which there is nothing to decide: the one thread it has reads both factors where they lie, in the
 * blocks of product_body(). What multiply() asks takes as long as 8 x 8 of it. 0: it is not as small. */
static int NAME(multiply_small)(const NAME(product) * p) {
    int64_t m = p->m, n = p->n, k = p->k, whole = n / NR * NR, tail = (n - whole) % VN ? k * NR : 0;
    if (p->packed || p->lines || !k || k > BLOCK_K || n > DIRECT_A_COLUMNS) return 0;
    if (p->b_transposed ? k * n > DIRECT_B_SIZE : tail > SMALL_TAIL) return 0;
    if (m * n >= FAR_ELEMENTS || (m > DIRECT_B_ROWS && k * n > DIRECT_B_SIZE)) return 0;
    if (p->a_transposed && m > TRANSPOSED_A_ROWS) return 0;
    if (NAME(threads_for)(m, n, k) > 1) return 0;
    uint32_t heights = (uint32_t)(m + MR - 1) / MR;
    int64_t height = ((uint32_t)m + heights - 1) / heights, a_step = p->a_transposed ? 1 : p->a_row;
#if MR >= 12
    if (m % TALL_ROWS == 0 && n > VN) height = TALL_ROWS; /* as fast as MR, and with registers left for what becomes of a block */
    if (!p->b_transposed && n % (3 * VN) == 0 && n <= WIDE && m % TALL_ROWS == 0) { /* as many sums, and no block with one vector alone */
        for (int64_t column = 0; column < n; column += 3 * VN)
            for (int64_t r = 0; r < m; r += TALL_ROWS) {
                NAME(ending) ending;
                NAME(end_at)(&ending, &p->ending, r, column);
                (p->a_transposed ? NAME(packed_8x3) : NAME(rows_8x3))(p->a + r * a_step, p->a_row, p->b + column, p->b_row,
                                                                      p->c + r * n + column, n, k, 0, &ending);
            }
        return 1;
    }
#endif
    T last[SMALL_TAIL], *panel = p->b_transposed ? cyx_scratch(0, sizeof(T) * (size_t)(k * NR)) : last;
    if (!panel) return 0;
    for (int64_t column = 0; column < n; column += NR) {
        int64_t columns = n - column < NR ? n - column : NR;
        int packed = p->b_transposed || (tail && column == whole);
        if (packed)
            NAME(pack_panel)(p->b + column * (p->b_transposed ? k : 1), p->b_row, p->b_transposed, panel, k, columns);
        const NAME(block_kernel)(*kernels)[NV] = p->a_transposed ? NAME(packed_kernels) : NAME(rows_kernels);
        NAME(block_kernel) kernel = columns % VN ? NULL : kernels[height - 1][columns / VN - 1];
        const T *b = packed ? panel : p->b + column;
        int64_t b_k = packed ? NR : p->b_row, r = 0;
        NAME(ending) ending;
        NAME(end_at)(&ending, &p->ending, 0, column);
        for (; kernel && r + height <= m; r += height) {
            kernel(p->a + r * a_step, p->a_row, b, b_k, p->c + r * n + column, n, k, 0, &ending);
            if (ending.at) ending.at += height * ending.row;
            if (ending.image) ending.image += height * ending.image_row;
        }
        for (; r < m; r += height) {
            NAME(end_at)(&ending, &p->ending, r, column);
            NAME(run_block)(kernels, m - r < height ? m - r : height, columns, p->a + r * a_step, p->a_row, b, b_k,
                            p->c + r * n + column, n, k, 0, &ending);
        }
    }
    return 1;
}

/* A small product of fewer columns than a vector has lanes: the rows of the turned B take the place of the first factor, and those
 * of A, which are turned for it, lie in the lanes; so does what comes out, until it is turned back. The sums are the same, and no
 * lane is idle. 0: it is not one. */
static int NAME(multiply_few_columns)(const NAME(product) * p) {
    int64_t m = p->m, n = p->n, k = p->k;
    if (p->packed || p->lines || p->a_transposed || !p->b_transposed || n < 2 || n > MR) return 0;
    if ((VN - n) * k < LEAST_IDLE * VN || k > BLOCK_K || m % NR || m * k > DIRECT_B_SIZE) return 0;
    if (NAME(threads_for)(m, n, k) > 1) return 0;
    T *panel = cyx_scratch(0, sizeof(T) * (size_t)(k * NR));
    if (!panel) return 0;
    T sums[MR * NR], rows[VN * VN];
    for (int64_t first = 0; first < m; first += NR) {
        NAME(pack_panel)(p->a + first * k, k, 1, panel, k, NR);
        NAME(rows_kernels)[n - 1][NV - 1](p->b, k, panel, NR, sums, NR, k, 0, NO_ENDING);
        for (int64_t r = 0; r < NR; r += VN) {
            NAME(ending) ending;
            NAME(end_at)(&ending, &p->ending, first + r, 0);
            NAME(transpose_square)(sums + r, NR, rows, VN, n);
            NAME(end_rows)(rows, VN, p->c + (first + r) * n, n, VN, n, &ending);
        }
    }
    return 1;
}

/* A product of so few rows or columns that it is bound by how fast the other factor comes: gemv.inl. 0: it is not. */
static int NAME(multiply_thin)(const NAME(product) * p) {
    int64_t m = p->m, n = p->n, k = p->k;
    if (p->packed || p->lines || p->ending.at == p->c) return 0;
    if (m == 1 && n == 1) p->c[0] = NAME(dot)(p->a, p->b, k);
    else if (n == 1 && (!p->a_transposed || m >= VN)) /* the same numbers as of the transposed product */
        NAME(multiply_rows)(p->b, p->a, p->c, 1, m, k, !p->a_transposed);
    else if (m == 1 && (p->b_transposed || n >= VN)) NAME(multiply_rows)(p->a, p->b, p->c, 1, n, k, p->b_transposed);
    else if (m <= THIN_ROWS && m > 1 && n > 1 && p->b_transposed && !p->a_transposed)
        NAME(multiply_rows)(p->a, p->b, p->c, m, n, k, 1);
    else return 0;
    if (NAME(ends)(&p->ending)) NAME(end_rows)(p->c, n, p->c, n, m, n, &p->ending);
    return 1;
}

typedef struct {
    const cyx_call *call;
    NAME(product) one;
    cyx_walk walk; /* of the leading dimensions; strides count matrices */
    _Atomic int status;
} NAME(batch);

static int NAME(multiply_triangular)(const NAME(product) * p);   /* triangular.inl */
static int NAME(multiply_used_columns)(const NAME(product) * p); /* the same */

static void NAME(batch_body)(void *context, int64_t begin, int64_t end) {
    NAME(batch) *batch = context;
    int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS], last = batch->walk.ndim - 1;
    for (int64_t i = begin; i < end; i++) {
        NAME(product) p = batch->one;
        cyx_walk_seek(&batch->walk, 2, i, coordinate, offset);
        p.a += (offset[0] + coordinate[last] * batch->walk.stride[0][last]) * p.m * p.k;
        p.b += (offset[1] + coordinate[last] * batch->walk.stride[1][last]) * p.k * p.n;
        p.c += i * p.m * p.n;
        NAME(end_at)(&p.ending, &batch->one.ending, i * p.m, 0);
        int done = NAME(multiply_thin)(&p) || NAME(multiply_triangular)(&p) || NAME(multiply_small)(&p);
        cyx_status status = done ? CYX_OK : NAME(multiply)(&p);
        if (status != CYX_OK) batch->status = status;
    }
}

/* Dot products of rows with rows of as many: each is one chain, so that several are made side by side. */
static void NAME(dots_body)(void *context, int64_t begin, int64_t end) {
    const NAME(batch) *batch = context;
    int64_t k = batch->one.k, row = begin;
    for (; row + DOTS_AT_ONCE <= end; row += DOTS_AT_ONCE) {
        const T *a = batch->one.a + row * k, *b = batch->one.b + row * k;
        V sum[DOTS_AT_ONCE];
        _Pragma("GCC unroll 8") for (int i = 0; i < DOTS_AT_ONCE; i++) sum[i] = (V){0};
        for (int64_t at = 0; at < k; at++)
            _Pragma("GCC unroll 8") for (int i = 0; i < DOTS_AT_ONCE; i++)
                sum[i] = FMA_V(SPLAT(a[i * k + at]), SPLAT(b[i * k + at]), sum[i]);
        for (int i = 0; i < DOTS_AT_ONCE; i++) batch->one.c[row + i] = sum[i][0];
    }
    for (; row < end; row++) batch->one.c[row] = NAME(dot)(batch->one.a + row * k, batch->one.b + row * k, k);
}

/* Matrices of one row each, so many of which in a row meet the same right factor, are one matrix: queries of a group of heads read
 * their keys once. Returns how many they are. */
static int64_t NAME(rows_together)(NAME(product) * p, cyx_walk *walk) {
    int last = walk->ndim - 1;
    if (p->m > 1 || p->a_transposed || walk->stride[0][last] != 1 || walk->stride[1][last]) return 1;
    p->m = walk->shape[last];
    walk->shape[last] = 1;
    for (int d = 0; d < last; d++) walk->stride[0][d] /= p->m;
    return p->m;
}

/* The leading dimensions of a matrix stack, counted in matrices. */
static cyx_array NAME(stack_of)(const cyx_array *x) {
    cyx_array stack = *x;
    stack.ndim -= 2;
    stack.size = 1;
    for (int d = 0; d < stack.ndim; d++) stack.size *= stack.shape[d];
    return stack;
}

/* What the calls behind a product in its group make of it: what is added is as large, or one row for all rows. */
static NAME(ending) NAME(ending_of)(const cyx_call *product, int64_t n) {
    NAME(ending) ending = {0};
    if (product->group == CYX_MASKED_GROUP && product[1].op == CYX_OP_greater) {
        ending.image = product[1].in[0].data, ending.image_row = n, ending.limit = *(const T *)product[1].in[1].data;
    } else if (product->group == 2 || product->group == CYX_RELU_GROUP) {
        const cyx_array *other = &product[1].in[product[1].in[0].data == product->out.data];
        ending.at = other->data, ending.row = other->size == product->out.size ? n : 0;
        ending.relu = product->group == CYX_RELU_GROUP;
    }
    return ending;
}

typedef struct {
    const cyx_call *calls;
    int64_t m, n, k, rows_at_once;
    int a_transposed;
    _Atomic int no_memory;
} NAME(many);

/* A few products at a time: a block of the result stays in the cache until all of them are added to it. */
static void NAME(many_body)(void *context, int64_t begin, int64_t end) {
    NAME(many) *many = context;
    int64_t m = many->m, n = many->n, k = many->k, of_a = (many->rows_at_once / MR + 1) * ROWS_PANEL(k);
    T *packed = many->a_transposed ? cyx_scratch(1, sizeof(T) * (size_t)(PRODUCTS_AT_ONCE * of_a)) : NULL;
    if (many->a_transposed && !packed) {
        many->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        int64_t m0 = task * many->rows_at_once, rows = m - m0 < many->rows_at_once ? m - m0 : many->rows_at_once;
        T *c = (T *)many->calls[1].out.data + m0 * n;
        for (int32_t first = 0; first < many->calls->group; first += 2 * PRODUCTS_AT_ONCE) {
            const cyx_call *products = many->calls + first;
            int32_t left = (many->calls->group - first) / 2, count = left < PRODUCTS_AT_ONCE ? left : PRODUCTS_AT_ONCE;
            for (int32_t i = 0; packed && i < count; i++)
                NAME(pack_rows)((const T *)products[2 * i].in[0].data + m0, m, NULL, 0, packed + i * of_a, k, rows);
            for (int64_t column = 0; column < n; column += NR)
                for (int64_t r = 0; r < rows; r += MR)
                    for (int32_t i = 0; i < count; i++) {
                        const T *a = packed ? packed + i * of_a + r / MR * ROWS_PANEL(k)
                                            : (const T *)products[2 * i].in[0].data + (m0 + r) * k;
                        T *block = c + r * n + column;
                        NAME(run_block)(packed ? NAME(packed_kernels) : NAME(rows_kernels), rows - r < MR ? rows - r : MR,
                                        n - column < NR ? n - column : NR, a, packed ? MR : k,
                                        (const T *)products[2 * i].in[1].data + column, n, block, n, k, 0,
                                        &(NAME(ending)){.at = block, .row = n});
                    }
        }
    }
}

static cyx_status NAME(add_products)(const cyx_call *calls, int64_t m, int64_t n, int64_t k) {
    NAME(many) many = {.calls = calls, .m = m, .n = n, .k = k, .a_transposed = (int)calls->ints[0]};
    int64_t near = (NEAR_RESULT + n - 1) / n, fair = (m + cyx_threads() - 1) / cyx_threads();
    many.rows_at_once = near < fair ? (near + MR - 1) / MR * MR : (fair + ROWS_ALIKE - 1) / ROWS_ALIKE * ROWS_ALIKE;
    cyx_parallel((m + many.rows_at_once - 1) / many.rows_at_once, 1, NAME(many_body), &many);
    return many.no_memory ? CYX_NO_MEMORY : CYX_OK;
}

static cyx_status NAME(masked_product)(const cyx_call *call); /* masked.inl */

/* ints: transpose_a, transpose_b */
static cyx_status NAME(matmul)(const cyx_call *call) {
    int32_t last = !cyx_asked && call->group > 1 ? call[call->group - 1].op : CYX_OP_matmul;
    if (last == CYX_OP_where || last == CYX_OP_softmax) return NAME(masked_product)(call);
    const cyx_array *a = &call->in[0], *b = &call->in[1], *out = &call->out;
    int64_t m = out->shape[out->ndim - 2], n = out->shape[out->ndim - 1];
    int64_t k = a->shape[a->ndim - (call->ints[0] ? 2 : 1)];
    int one = cyx_is_one_product(call);
    NAME(product)
    p = {.a = a->data,
         .b = b->data,
         .c = one && call->group ? call[call->group - 1].out.data : out->data,
         .ending = NAME(ending_of)(call, n),
         .packed = call->panels,
         .m = m,
         .n = n,
         .k = k,
         .a_row = call->ints[0] ? m : k,
         .b_row = call->ints[1] ? k : n,
         .a_transposed = (int)call->ints[0],
         .lines = (const T *const *)call->lines,
         .looking = {.ahead = call->ahead},
         .b_transposed = (int)call->ints[1],
         .used = call->zeros ? &call->zeros->used : NULL,
         .adds = call->adding && (call->goes_on || cyx_band % call->adds)};
    if (call->blocks && !cyx_asked && NAME(multiply_used_columns)(&p)) return CYX_OK;
    if (call->adding) return NAME(multiply)(&p);
    if (!cyx_asked && a->ndim == 2 && b->ndim == 2 && m > 1 && n > 1 && one &&
        (NAME(multiply_few_columns)(&p) || NAME(multiply_small)(&p)))
        return CYX_OK;
    cyx_array stacks[2] = {NAME(stack_of)(a), NAME(stack_of)(b)}, results = NAME(stack_of)(out);
    if (cyx_asked) { /* what a stretch may pack for all of its bands */
        if (b->ndim != 2 || n > BLOCK_N || n < NR || !k) return CYX_OK;
        cyx_asked->pack = NAME(pack_all);
        cyx_asked->packed_bytes = (int64_t)sizeof(T) * NAME(packed_before)(n, k);
        return CYX_OK;
    }
    if (!out->size) return CYX_OK;
    if (!one) return NAME(add_products)(call, m, n, k);
    cyx_walk walk = cyx_broadcast_walk(&results, stacks, 2);
    int64_t matrices = results.size / NAME(rows_together)(&p, &walk);
    if (matrices == 1 && NAME(multiply_thin)(&p)) return CYX_OK;
    if (stacks[1].size == 1 && stacks[0].size == results.size && !p.a_transposed) {
        p.m = m * results.size; /* one tall matrix: no output's chain of sums changes */
        return NAME(multiply)(&p);
    }
    NAME(batch) batch = {.call = call, .one = p, .walk = walk};
    if (m == 1 && n == 1 && !NAME(ends)(&p.ending) && stacks[0].size == results.size && stacks[1].size == results.size) {
        cyx_parallel(results.size, cyx_grain(results.size, (double)k, CYX_LEAST_WORK), NAME(dots_body), &batch);
        return CYX_OK;
    }
    int64_t grain = cyx_grain(matrices, (double)p.m * (double)n * (double)k / 8.0, 20000);
    if (matrices < 2 * cyx_threads())
        NAME(batch_body)(&batch, 0, matrices);
    else
        cyx_parallel(matrices, grain, NAME(batch_body), &batch);
    return (cyx_status)batch.status;
}

static void NAME(fill_gemm)(cyx_table table) { table[CYX_OP_matmul][DTYPE] = NAME(matmul); }
