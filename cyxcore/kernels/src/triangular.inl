/* Products one factor of which is zero above its diagonal, as attention's that looks at no later position is. What those
 * zeros multiply is left out, where that changes no bit: sums are chains from +0, to which a zero times a finite number
 * adds nothing; only a chain that has come to -0, as tiny negative products do, may turn to +0 behind, and is then made
 * whole. So the zeros are looked for, and the other factor for what is not finite: a few percent of what is left out. */

#ifndef TRIANGULAR_ONCE
#define TRIANGULAR_ONCE
enum {
    LEAST_TRIANGLE = 64,   /* rows */
    MOST_TRIANGLE = 1024,
    TRIANGLE_PANELS = 8,   /* of a transposed left factor, packed at once */
    LEAST_LEFT_OUT = 64    /* columns of a block of rows */
};
#endif

static inline int NAME(any_bit)(MASK bits) {
    NAME(integer) any = 0;
    for (int i = 0; i < VN; i++) any |= bits[i];
    return any != 0;
}

/* Whether of `size` rows, each of as many, all from the column on are +0 with which the next `height` rows begin. */
static int NAME(is_triangular)(const T *a, int64_t size, int64_t height) {
    const V zero = {0};
    T last[VN];
    for (int64_t r = 0; r + height < size; r += height) {
        MASK bits = (MASK)zero;
        int64_t first = r + height, whole = first + (size - first) / VN * VN;
        for (int64_t row = r; row < first; row++) {
            const T *x = a + row * size;
            for (int64_t at = first; at < whole; at += VN) bits |= *(const MASK *)(x + at);
            if (whole == size) continue;
            memset(last, 0, sizeof last);
            memcpy(last, x + whole, sizeof(T) * (size_t)(size - whole));
            bits |= *(const MASK *)last;
        }
        if (NAME(any_bit)(bits)) return 0;
    }
    return 1;
}

static int NAME(is_finite)(const T *x, int64_t size) {
    const V zero = {0};
    V found[4] = {zero, zero, zero, zero}; /* 0 times what is not finite is NaN */
    int64_t at = 0;
    for (; at + 4 * VN <= size; at += 4 * VN)
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) found[i] = FMA_V(*(const V *)(x + at + i * VN), zero, found[i]);
    T rest = 0;
    for (; at < size; at++) rest += x[at] * 0;
    V all = (found[0] + found[1]) + (found[2] + found[3]);
    for (int i = 0; i < VN; i++) rest += all[i];
    return rest == 0;
}

static int NAME(has_minus_zero)(const T *c, int64_t c_row, int64_t rows, int64_t columns) {
    const V zero = {0};
    MASK found = (MASK)zero;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t column = 0; column < columns; column += VN)
            found |= (MASK)(*(const MASK *)(c + r * c_row + column) == (MASK)(-zero));
    return NAME(any_bit)(found);
}

/* The right factor is triangular: of a panel of columns the terms before its first are left out. */
static int NAME(multiply_right_triangular)(const NAME(product) * p) {
    if (!NAME(is_triangular)(p->b, p->n, NR) || !NAME(is_finite)(p->a, p->m * p->k)) return 0;
    int64_t heights = (p->m + MR - 1) / MR, height = (p->m + heights - 1) / heights;
    int64_t a_step = p->a_transposed ? 1 : p->a_row, a_k = p->a_transposed ? p->a_row : 1;
    for (int64_t column = 0; column < p->n; column += NR)
        for (int64_t r = 0; r < p->m; r += height)
            NAME(run_block)(p->a_transposed ? NAME(packed_kernels) : NAME(rows_kernels),
                            p->m - r < height ? p->m - r : height, p->n - column < NR ? p->n - column : NR,
                            p->a + r * a_step + column * a_k, p->a_row, p->b + column * p->b_row + column, p->b_row,
                            p->c + r * p->n + column, p->n, p->k - column, 0, NO_ENDING);
    return 1;
}

/* The left factor is triangular: of a block of rows the terms behind its last one are left out; where the factor is
 * transposed, those before its first. */
static int NAME(multiply_left_triangular)(const NAME(product) * p) {
    int64_t size = p->m, n = p->n;
    int pack_a = p->a_transposed && size > TRANSPOSED_A_ROWS;
    int64_t heights = (size + MR - 1) / MR, height = pack_a ? MR : (size + heights - 1) / heights;
    if (!NAME(is_triangular)(p->a, size, height) || !NAME(is_finite)(p->b, size * n)) return 0;
    T *panels = p->b_transposed ? cyx_scratch(0, sizeof(T) * (size_t)((n + NR - 1) / NR * NR * size)) : NULL;
    int64_t at_once = pack_a ? TRIANGLE_PANELS * MR : size;
    T *packed = pack_a ? cyx_scratch(1, sizeof(T) * (size_t)((TRIANGLE_PANELS + 1) * ROWS_PANEL(size))) : NULL;
    if ((p->b_transposed && !panels) || (pack_a && !packed)) return 0;
    for (int64_t column = 0; panels && column < n; column += NR)
        NAME(pack_panel)(p->b + column * p->b_row, p->b_row, 1, panels + column * size, size, n - column < NR ? n - column : NR);
    int64_t b_k = panels ? NR : p->b_row;
    for (int64_t some = 0; some < size; some += at_once) {
        int64_t stop = size - some < at_once ? size : some + at_once, left = size - some;
        if (pack_a) NAME(pack_rows)(p->a + some * size + some, size, NULL, 0, packed, left, stop - some);
        for (int64_t column = 0; column < n; column += NR) {
            int64_t columns = n - column < NR ? n - column : NR;
            const T *b = panels ? panels + column * size : p->b + column;
            for (int64_t r = some; r < stop; r += height) {
                int64_t rows = stop - r < height ? stop - r : height;
                T *c = p->c + r * n + column;
                if (p->a_transposed) {
                    const T *a = pack_a ? packed + (r - some) / MR * ROWS_PANEL(left) + (r - some) * MR : p->a + r * size + r;
                    NAME(run_block)(NAME(packed_kernels), rows, columns, a, pack_a ? MR : size, b + r * b_k, b_k, c, n,
                                    size - r, 0, NO_ENDING);
                    continue;
                }
                NAME(run_block)(NAME(rows_kernels), rows, columns, p->a + r * size, size, b, b_k, c, n, r + rows, 0, NO_ENDING);
                if (NAME(has_minus_zero)(c, n, rows, columns))
                    NAME(run_block)(NAME(rows_kernels), rows, columns, p->a + r * size, size, b, b_k, c, n, size, 0, NO_ENDING);
            }
        }
    }
    return 1;
}

/* 0: it is none, or too large or too small. */
static int NAME(multiply_triangular)(const NAME(product) * p) {
    int64_t size = p->k;
    int is_left = p->m == size && p->n % VN == 0, is_right = p->n == size && !p->b_transposed;
    if (size < LEAST_TRIANGLE || size > MOST_TRIANGLE || p->packed || p->lines || NAME(ends)(&p->ending) || size % VN) return 0;
    if (NAME(threads_for)(p->m, p->n, size) > 1) return 0;
    if (p->m * p->n * (int64_t)sizeof(T) > NEAR_B_BYTES) return 0;
    if (is_left && NAME(multiply_left_triangular)(p)) return 1;
    return is_right && NAME(multiply_right_triangular)(p);
}

/* The same of a block of rows, as of long sequences (rowblocks.py), in all of which zeros lie behind some column. */

/* Behind the last column in which a row has something other than +0, or a few more. */
static int64_t NAME(columns_used)(const T *a, int64_t rows, int64_t columns) {
    int64_t used = 0, whole = columns / VN * VN;
    NAME(integer) bits;
    for (int64_t r = 0; r < rows && used < columns; r++) {
        const T *row = a + r * columns;
        for (int64_t at = whole; at < columns; at++) {
            memcpy(&bits, row + at, sizeof bits);
            if (bits) return columns;
        }
        MASK found = (MASK)(V){0};
        for (int64_t at = used; at < whole; at += VN) found |= *(const MASK *)(row + at);
        if (!NAME(any_bit)(found)) continue;
        for (used = whole; !NAME(any_bit)(*(const MASK *)(row + used - VN));) used -= VN;
    }
    return used;
}

static int NAME(minus_zero_in)(const T *x, int64_t size) {
    int64_t whole = size / VN * VN;
    if (NAME(has_minus_zero)(x, 0, 1, whole)) return 1;
    for (; whole < size; whole++)
        if (x[whole] == 0 && signbit(x[whole])) return 1;
    return 0;
}

/* 0: nothing is left out, and nothing is made. */
static int NAME(multiply_used_columns)(const NAME(product) * p) {
    int64_t rows = p->a_transposed ? p->k : p->m, columns = p->a_transposed ? p->m : p->k;
    if (p->b_transposed || columns < 2 * LEAST_LEFT_OUT || NAME(ends)(&p->ending)) return 0;
    int64_t used = p->used ? *p->used : NAME(columns_used)(p->a, rows, columns), left_out = columns - used;
    if (left_out < LEAST_LEFT_OUT) return 0;
    NAME(product) own = *p;
    own.packed = NULL; /* that is in blocks of all terms */
    if (!p->a_transposed) {
        if (!NAME(is_finite)(p->b + used * p->n, left_out * p->n)) return 0;
        own.k = used;
        return NAME(multiply)(&own) == CYX_OK && !NAME(minus_zero_in)(p->c, p->m * p->n);
    }
    T *rest = p->c + used * p->n; /* rows to which only zeros would be added */
    if (!NAME(is_finite)(p->b, p->k * p->n) || (p->adds && NAME(minus_zero_in)(rest, left_out * p->n))) return 0;
    if (!p->adds) memset(rest, 0, sizeof(T) * (size_t)(left_out * p->n));
    own.m = used;
    return NAME(multiply)(&own) == CYX_OK;
}
