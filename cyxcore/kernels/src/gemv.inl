/* One row times a matrix: bound by how fast the matrix comes from memory, so it is read once, where it lies.
 *
 * Each output stays one chain over k in ascending order, with outputs across a vector. Of a transposed matrix (the
 * weights of a linear layer) VN rows are read side by side and VN x VN elements turned in registers. */

#ifndef GEMV_ONCE
#define GEMV_ONCE
enum { ROWS_AT_ONCE = 8, VECTORS_NEAR = 256, FEW_ROWS = 4, CROWDED_BYTES = 1024, GEMV_LEAST_WORK = 100000 };
enum { FAR_MATRIX = 1 << 19, FAR_AHEAD = 1 << 16 }; /* bytes: of a matrix that no near cache holds, and how far ahead it is fetched */
#endif

typedef struct {
    const T *a, *b;
    T *c;
    int64_t m, n, k;
    int fetches; /* whether rows of b are fetched ahead, in the order in which they lie: VN rows side by side are no stream to the
                    processor where they are short */
} NAME(row_product);

/* VN elements of each of VN rows, turned: lane i of x[j] is row[i][at + j]. */
static inline __attribute__((always_inline)) void NAME(load_turned)(V *x, const T *const *row, int64_t at) {
#if defined(LOAD_TURNED)
    LOAD_TURNED(x, row, at)
#else
    _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) x[i] = *(const V *)(row[i] + at);
    NAME(turn)(x);
#endif
}

/* R rows of a by G times VN rows of b; of the last VN `count` are there. */
static inline __attribute__((always_inline)) void NAME(rows_by_vectors)(const int R, const int G, int64_t count,
                                                                        const NAME(row_product) * p, const T *a,
                                                                        T *c, int64_t first) {
    int64_t at = 0, k = p->k, next = VN * k; /* from a row to that of the next vector */
    const T *row[VN];
    for (int64_t i = 0; i < VN; i++) row[i] = p->b + (first + (G > 1 || i < count ? i : count - 1)) * k;
    V sum[FEW_ROWS][2];
    _Pragma("GCC unroll 4") for (int r = 0; r < R; r++) _Pragma("GCC unroll 2") for (int g = 0; g < G; g++) sum[r][g] = (V){0};
    for (; at + VN <= k; at += VN)
        _Pragma("GCC unroll 2") for (int g = 0; g < G; g++) {
            V x[VN];
            if (G == 1 && p->fetches && a == p->a)
                _Pragma("GCC unroll 16") for (int i = 0; i < VN; i += CYX_LINE_BYTES / (int)sizeof(V))
                    __builtin_prefetch(CYX_BEYOND(p->b, FAR_AHEAD / (int64_t)sizeof(T) + first * k + (at + i) * VN), 0, 2);
            NAME(load_turned)(x, row, at + g * next);
            _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) _Pragma("GCC unroll 4") for (int r = 0; r < R; r++)
                sum[r][g] = FMA_V(SPLAT(a[r * k + at + i]), x[i], sum[r][g]);
        }
    for (; at < k; at++)
        _Pragma("GCC unroll 2") for (int g = 0; g < G; g++) {
            V x;
            for (int i = 0; i < VN; i++) x[i] = row[i][at + g * next];
            _Pragma("GCC unroll 4") for (int r = 0; r < R; r++) sum[r][g] = FMA_V(SPLAT(a[r * k + at]), x, sum[r][g]);
        }
    _Pragma("GCC unroll 4") for (int r = 0; r < R; r++) _Pragma("GCC unroll 2") for (int g = 0; g < G; g++)
        NAME(put_part)(c + r * p->n + first + g * VN, sum[r][g], g == G - 1 ? count : VN);
}

/* Outputs [VN * begin, VN * end) of each row: dot products of rows of a with rows of b (n, k). One row waits for each sum
 * before the next, so that two vectors of it are made side by side, but of rows whose lines meet in one place of the cache,
 * which does not hold as many, and where memory is what it waits for. */
static void NAME(row_by_rows)(void *context, int64_t begin, int64_t end) {
    const NAME(row_product) *p = context;
    int64_t stop = end * VN < p->n ? end * VN : p->n, first = begin * VN;
    int crowded = p->k * (int64_t)sizeof(T) % CROWDED_BYTES == 0;
    for (; p->m == 1 && !crowded && !p->fetches && first + 2 * VN <= stop; first += 2 * VN) NAME(rows_by_vectors)(1, 2, VN, p, p->a, p->c, first);
    for (; first < stop; first += VN) {
        int64_t count = stop - first < VN ? stop - first : VN;
        for (int64_t r = 0; r < p->m; r += FEW_ROWS) {
            const T *a = p->a + r * p->k;
            T *c = p->c + r * p->n;
            if (p->m - r == 1) NAME(rows_by_vectors)(1, 1, count, p, a, c, first);
            else if (p->m - r == 2) NAME(rows_by_vectors)(2, 1, count, p, a, c, first);
            else if (p->m - r == 3) NAME(rows_by_vectors)(3, 1, count, p, a, c, first);
            else NAME(rows_by_vectors)(4, 1, count, p, a, c, first);
        }
    }
}

/* Outputs [VN * begin, VN * end) of a times b (k, n): some rows of b at a time, each from left to right, with the outputs
 * in the nearest cache. The last, which are no whole vector, by themselves. */
static void NAME(row_by_columns)(void *context, int64_t begin, int64_t end) {
    const NAME(row_product) *p = context;
    int64_t whole = p->n / VN;
    if (end > whole) {
        V sum = {0};
        const T *b = p->b + whole * VN;
        for (int64_t k = 0; k < p->k; k++, b += p->n) sum = FMA_V(SPLAT(p->a[k]), NAME(part)(b, p->n - whole * VN, 0), sum);
        NAME(put_part)(p->c + whole * VN, sum, p->n - whole * VN);
        end = whole;
    }
    for (int64_t first = begin; first < end; first += VECTORS_NEAR) {
        int64_t stop = first + VECTORS_NEAR < end ? first + VECTORS_NEAR : end, k = 0;
        const T *b = p->b;
        memset(p->c + first * VN, 0, sizeof(T) * (size_t)((stop - first) * VN));
        for (; k + ROWS_AT_ONCE <= p->k; k += ROWS_AT_ONCE, b += ROWS_AT_ONCE * p->n)
            for (int64_t at = first * VN; at < stop * VN; at += VN) {
                V sum = *(const V *)(p->c + at);
                _Pragma("GCC unroll 8") for (int i = 0; i < ROWS_AT_ONCE; i++) sum =
                    FMA_V(SPLAT(p->a[k + i]), *(const V *)(b + i * p->n + at), sum);
                *(V *)(p->c + at) = sum;
            }
        for (; k < p->k; k++, b += p->n)
            for (int64_t at = first * VN; at < stop * VN; at += VN)
                *(V *)(p->c + at) = FMA_V(SPLAT(p->a[k]), *(const V *)(b + at), *(const V *)(p->c + at));
    }
}

/* c (m, n) = a (m, k) times b: (k, n), where m is 1, or transposed (n, k). */
static void NAME(multiply_rows)(const T *a, const T *b, T *c, int64_t m, int64_t n, int64_t k, int b_transposed) {
    NAME(row_product) p = {.a = a, .b = b, .c = c, .m = m, .n = n, .k = k, .fetches = n * k * (int64_t)sizeof(T) >= FAR_MATRIX};
    int64_t vectors = (n + VN - 1) / VN, grain = cyx_grain(vectors, (double)(VN * k * m), GEMV_LEAST_WORK);
    cyx_parallel(vectors, grain, b_transposed ? NAME(row_by_rows) : NAME(row_by_columns), &p);
}

/* One number. */
static T NAME(dot)(const T *a, const T *b, int64_t k) {
    V sum = {0};
    for (int64_t at = 0; at < k; at++) sum = FMA_V(SPLAT(a[at]), SPLAT(b[at]), sum);
    return sum[0];
}
