/* Blocks of a convolution that read the canvas where it lies. Vectors start at any element, so a row of the unfolded
 * matrix need not be written anywhere: it is the canvas, seen from its own offset. The chains of fused multiply-adds
 * are those of the matmul blocks. */

/* R rows by NV vectors: c[r][column] = sum over k of weight[k][r] * image[offset[k] + column], from zero. */
static inline __attribute__((always_inline)) void NAME(seen_block)(const int R, const T *weight, const T *image,
                                                                   const int32_t *offset, T *c, int64_t c_row,
                                                                   int64_t count) {
    V sum[MR][NV];
    _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) _Pragma("GCC unroll 4") for (int w = 0; w < NV; w++)
        sum[r][w] = (V){0}, __builtin_prefetch(c + r * c_row + w * VN, 1); /* written at the end: on its way until then */
    for (int64_t k = 0; k < count; k++, weight += MR) {
        const T *row = image + offset[k];
        V column[NV];
        _Pragma("GCC unroll 4") for (int w = 0; w < NV; w++) column[w] = *(const V *)(row + w * VN);
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {
            V factor = SPLAT(weight[r]);
            _Pragma("GCC unroll 4") for (int w = 0; w < NV; w++) sum[r][w] = FMA_V(factor, column[w], sum[r][w]);
        }
    }
    _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) _Pragma("GCC unroll 4") for (int w = 0; w < NV; w++) *
        (V *)(c + r * c_row + w * VN) = sum[r][w];
}

typedef void (*NAME(seen_kernel))(const T *weight, const T *image, const int32_t *offset, T *c, int64_t c_row,
                                  int64_t count);
#define SEEN_KERNEL(R)                                                                                       \
    static void NAME(seen_##R)(const T *weight, const T *image, const int32_t *offset, T *c, int64_t c_row,  \
                               int64_t count) {                                                              \
        NAME(seen_block)(R, weight, image, offset, c, c_row, count);                                         \
    }
SEEN_KERNEL(1)
SEEN_KERNEL(2)
SEEN_KERNEL(3)
SEEN_KERNEL(4)
#if MR >= 6
SEEN_KERNEL(5)
SEEN_KERNEL(6)
#endif
#if MR >= 12
SEEN_KERNEL(7)
SEEN_KERNEL(8)
SEEN_KERNEL(9)
SEEN_KERNEL(10)
SEEN_KERNEL(11)
SEEN_KERNEL(12)
#endif
static const NAME(seen_kernel) NAME(seen_kernels)[MR] = {
    NAME(seen_1),  NAME(seen_2),  NAME(seen_3),  NAME(seen_4),
#if MR >= 6
    NAME(seen_5),  NAME(seen_6),
#endif
#if MR >= 12
    NAME(seen_7),  NAME(seen_8),  NAME(seen_9),  NAME(seen_10), NAME(seen_11), NAME(seen_12),
#endif
};

/* The weight's gradient for kernels three pixels wide: G lines of the canvas, each seen from three neighbouring
 * pixels, give 3 G rows. c[r][column] += sum over the pixels of rows by columns of line[r / 3][pixel + r % 3] *
 * g[pixel][column], the pixels in order. */
enum { NAME(TAPS) = 3, NAME(LINES) = MR / 3 };

static inline __attribute__((always_inline)) void NAME(taps_block)(const int G, const int W, const T *canvas,
                                                                   const int32_t *line, int64_t canvas_row,
                                                                   const T *g, T *c, int64_t c_row, int64_t rows,
                                                                   int64_t columns) {
    V sum[MR][NV];
    _Pragma("GCC unroll 16") for (int r = 0; r < 3 * G; r++) _Pragma("GCC unroll 4") for (int w = 0; w < W; w++)
        sum[r][w] = *(const V *)(c + r * c_row + w * VN);
    for (int64_t y = 0; y < rows; y++, canvas += canvas_row) {
        const T *from[NAME(LINES) + 1];
        _Pragma("GCC unroll 4") for (int i = 0; i < G; i++) from[i] = canvas + line[i];
        for (int64_t x = 0; x < columns; x++, g += NR) {
            /* The compiler must not carry pixels over to the next x: it has no registers left for them. */
            _Pragma("GCC unroll 4") for (int i = 0; i < G; i++) __asm__("" : "+r"(from[i]));
            V column[NV];
            _Pragma("GCC unroll 4") for (int w = 0; w < W; w++) column[w] = *(const V *)(g + w * VN);
            _Pragma("GCC unroll 16") for (int r = 0; r < 3 * G; r++) {
                V pixel = SPLAT(from[r / 3][r % 3]);
                _Pragma("GCC unroll 4") for (int w = 0; w < W; w++) sum[r][w] =
                    FMA_V(pixel, column[w], sum[r][w]);
            }
            _Pragma("GCC unroll 4") for (int i = 0; i < G; i++) from[i]++;
        }
    }
    _Pragma("GCC unroll 16") for (int r = 0; r < 3 * G; r++) _Pragma("GCC unroll 4") for (int w = 0; w < W; w++) *
        (V *)(c + r * c_row + w * VN) = sum[r][w];
}

typedef void (*NAME(taps_kernel))(const T *canvas, const int32_t *line, int64_t canvas_row, const T *g, T *c,
                                  int64_t c_row, int64_t rows, int64_t columns);
#define TAPS_KERNEL(G, W)                                                                                    \
    static void NAME(taps_##G##x##W)(const T *canvas, const int32_t *line, int64_t canvas_row, const T *g,   \
                                     T *c, int64_t c_row, int64_t rows, int64_t columns) {                   \
        NAME(taps_block)(G, W, canvas, line, canvas_row, g, c, c_row, rows, columns);                        \
    }
#if NV == 2
TAPS_KERNEL(1, 1)
TAPS_KERNEL(1, 2)
TAPS_KERNEL(2, 1)
TAPS_KERNEL(2, 2)
#if MR >= 12
TAPS_KERNEL(3, 1)
TAPS_KERNEL(3, 2)
TAPS_KERNEL(4, 1)
TAPS_KERNEL(4, 2)
#endif
static const NAME(taps_kernel) NAME(taps_kernels)[MR / 3][NV] = {
    {NAME(taps_1x1), NAME(taps_1x2)}, {NAME(taps_2x1), NAME(taps_2x2)},
#if MR >= 12
    {NAME(taps_3x1), NAME(taps_3x2)}, {NAME(taps_4x1), NAME(taps_4x2)},
#endif
};
#else
TAPS_KERNEL(1, 1)
TAPS_KERNEL(1, 2)
TAPS_KERNEL(1, 3)
TAPS_KERNEL(1, 4)
static const NAME(taps_kernel) NAME(taps_kernels)[1][NV] = {
    {NAME(taps_1x1), NAME(taps_1x2), NAME(taps_1x3), NAME(taps_1x4)}};
#endif
