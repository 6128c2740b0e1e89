/* One row times a matrix: bound by how fast the matrix comes from memory, so it is read once, where it lies.
 *
 * Each output stays one chain over k in ascending order, with outputs across a vector. Of a transposed matrix (the
 * weights of a linear layer) VN rows are read side by side and VN x VN elements turned in registers. */

#ifndef GEMV_ONCE
#define GEMV_ONCE
#define LOW_LANE(j, h) ((j) & (h) ? VN + (j) - (h) : (j))
#define HIGH_LANE(j, h) ((j) & (h) ? VN + (j) : (j) + (h))
/* Of each 2h x 2h square the two h x h squares off the diagonal change places. */
#define EXCHANGE(x, h)                                                                                       \
    _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) if (!(i & (h))) {                                  \
        V a = x[i], b = x[i + (h)];                                                                          \
        x[i] = TWO_VECTORS(a, b, EACH_LANE(LOW_LANE, h));                                                    \
        x[i + (h)] = TWO_VECTORS(a, b, EACH_LANE(HIGH_LANE, h));                                             \
    }
enum { ROWS_AT_ONCE = 8, VECTORS_NEAR = 256, GEMV_LEAST_WORK = 100000 };
#endif

typedef struct {
    const T *a, *b;
    T *c;
    int64_t n, k;
} NAME(row_product);

/* Outputs [VN * begin, VN * end): dot products of a with rows of b (n, k). */
static void NAME(row_by_rows)(void *context, int64_t begin, int64_t end) {
    const NAME(row_product) *p = context;
    for (int64_t first = begin * VN; first < end * VN && first < p->n; first += VN) {
        int64_t count = p->n - first < VN ? p->n - first : VN, at = 0;
        const T *row[VN];
        for (int64_t i = 0; i < VN; i++) row[i] = p->b + (first + (i < count ? i : count - 1)) * p->k;
        V sum = {0};
        for (; at + VN <= p->k; at += VN) {
            V x[VN];
            _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) x[i] = *(const V *)(row[i] + at);
            EXCHANGE(x, 1)
#if VN > 2
            EXCHANGE(x, 2)
#endif
#if VN > 4
            EXCHANGE(x, 4)
#endif
#if VN > 8
            EXCHANGE(x, 8)
#endif
            _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) sum = FMA_V(SPLAT(p->a[at + i]), x[i], sum);
        }
        for (; at < p->k; at++) {
            V x;
            for (int i = 0; i < VN; i++) x[i] = row[i][at];
            sum = FMA_V(SPLAT(p->a[at]), x, sum);
        }
        memcpy(p->c + first, &sum, sizeof(T) * (size_t)count);
    }
}

/* Outputs [VN * begin, VN * end) of a times b (k, n), n being a multiple of VN: some rows of b at a time, each from left
 * to right, with the outputs in the nearest cache. */
static void NAME(row_by_columns)(void *context, int64_t begin, int64_t end) {
    const NAME(row_product) *p = context;
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

static void NAME(multiply_row)(const T *a, const T *b, T *c, int64_t n, int64_t k, int b_transposed) {
    NAME(row_product) p = {.a = a, .b = b, .c = c, .n = n, .k = k};
    int64_t vectors = (n + VN - 1) / VN, grain = cyx_grain(vectors, (double)(VN * k), GEMV_LEAST_WORK);
    cyx_parallel(vectors, grain, b_transposed ? NAME(row_by_rows) : NAME(row_by_columns), &p);
}
