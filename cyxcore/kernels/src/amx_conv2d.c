/* Convolution of float32 by AMX, windows one pixel apart and one group: see fast.h. An image is laid on a canvas of
 * zeros as large as the windows reach, split into terms there, once. A row of the unfolded matrix is the canvas seen
 * from an offset of its own: tiles are made of such rows. Threads take different outputs, and images are summed up in
 * their order. */
#include "fast.h"

#ifdef CYX_COMPILED_AMX
#include "amx.h"
#if defined(__clang__)
#pragma clang attribute push(                                                                                          \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#endif
#include "amx_tiles.inl"

typedef struct {
    const float *image; /* (images, planes, h, w) */
    int64_t images, planes, h, w;
    int64_t top, left, canvas_h, canvas_w; /* where its first pixel lies on the canvas; below 0: outside */
    int64_t kernel_h, kernel_w, step_h, step_w, out_h, out_w;
    int64_t rows, k, steps; /* of the weights as a matrix (rows, k), k = planes x kernel, in tiles of 32 */
    int32_t *place; /* of each row of the unfolded matrix on the canvas; of those that are none, the zeros behind it */
    int terms;
    /* of products with the weights */
    bf16 *weight; /* [16 rows][step][term] */
    float *out;   /* (images, rows, out_h, out_w) */
    int64_t bands;
    /* of the weight's gradient */
    const float *g;
    float *sums;
    bf16 *canvas, *gradient; /* [16 rows][step][term], of one image */
    _Atomic int no_memory;
} convolution;

/* Elements of the canvas of one term: its planes, and zeros behind them for rows that are none, and for what tiles read
 * beyond an edge. */
static int64_t canvas_size(const convolution *p) {
    return ((p->planes * p->canvas_h + p->out_h) * p->canvas_w + 95) / 32 * 32;
}

static size_t canvas_bytes(const convolution *p) { return sizeof(bf16) * (size_t)(p->terms * canvas_size(p)); }

static inline __attribute__((always_inline)) void paint(const int terms, const convolution *p, int64_t image,
                                                        bf16 *canvas) {
    memset(canvas, 0, canvas_bytes(p));
    int64_t begin = p->left < 0 ? -p->left : 0, end = p->w < p->canvas_w - p->left ? p->w : p->canvas_w - p->left;
    for (int64_t plane = 0; plane < p->planes; plane++)
        for (int64_t y = 0; y < p->h; y++) {
            int64_t row = p->top + y;
            if (row < 0 || row >= p->canvas_h) continue;
            const float *from = p->image + ((image * p->planes + plane) * p->h + y) * p->w;
            bf16 *to = canvas + (plane * p->canvas_h + row) * p->canvas_w + p->left;
            for (int64_t x = begin; x < end; x += 16) {
                __mmask16 mask = first(end - x);
                __m512i term[CYX_MOST_TERMS];
                split_row(_mm512_maskz_loadu_ps(mask, from + x), _mm512_setzero_ps(), terms, term);
                for (int t = 0; t < terms; t++)
                    _mm512_mask_storeu_epi16(to + t * canvas_size(p) + x, mask, term[t]);
            }
        }
}

/* The tiles of 32 rows of the unfolded matrix by 16 pixels, pairs of rows side by side. */
static inline __attribute__((always_inline)) void see_pairs(const int terms, const convolution *p, const bf16 *canvas,
                                                            const int32_t *place, bf16 *to) {
    for (int t = 0; t < terms; t++, canvas += canvas_size(p), to += TILE)
        for (int r = 0; r < 16; r++) {
            __m256i even = _mm256_loadu_si256((const __m256i *)(canvas + place[2 * r]));
            __m256i odd = _mm256_loadu_si256((const __m256i *)(canvas + place[2 * r + 1]));
            _mm512_store_si512(to + r * TILE_K, alternating(_mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1)));
        }
}

/* Those of 16 rows by 32 pixels, of which `columns` are there: pairs of pixels side by side, rows as columns. */
static inline __attribute__((always_inline)) void see_lines(const int terms, const convolution *p, const bf16 *canvas,
                                                            const int32_t *place, int64_t columns, bf16 *to) {
    __mmask32 mask = columns >= 32 ? 0xffffffff : (1u << columns) - 1;
    for (int t = 0; t < terms; t++, canvas += canvas_size(p), to += TILE) {
        __m512i line[16];
        for (int r = 0; r < 16; r++) line[r] = _mm512_maskz_loadu_epi16(mask, canvas + place[r]);
        transpose_dwords(line);
        for (int r = 0; r < 16; r++) _mm512_store_si512(to + r * TILE_K, line[r]);
    }
}

static void fill_places(const convolution *p) {
    int32_t *place = p->place;
    for (int64_t plane = 0; plane < p->planes; plane++)
        for (int64_t kh = 0; kh < p->kernel_h; kh++)
            for (int64_t kw = 0; kw < p->kernel_w; kw++)
                *place++ =
                    (int32_t)((plane * p->canvas_h + kh * p->step_h) * p->canvas_w + kw * p->step_w);
    while (place < p->place + p->steps * TILE_K) *place++ = (int32_t)(p->planes * p->canvas_h * p->canvas_w);
}

static size_t place_bytes(const convolution *p) { return sizeof(int32_t) * (size_t)(p->steps * TILE_K); }


/* out[image][row][pixel] = sum over k of weight[row][k] * canvas[place[k] + pixel], for a band of lines. */
static inline __attribute__((always_inline)) void convolve_band(const int terms, const convolution *p, int64_t image,
                                                                int64_t y_begin, int64_t y_end, const bf16 *canvas,
                                                                bf16 *panels) {
    int64_t pixels = p->out_h * p->out_w, apart = p->steps * terms * TILE;
    for (int64_t y = y_begin; y < y_end; y++)
        for (int64_t x = 0; x < p->out_w; x += 32) {
            int64_t columns = p->out_w - x < 32 ? p->out_w - x : 32;
            for (int64_t panel = 0; panel * 16 < columns; panel++)
                for (int64_t s = 0; s < p->steps; s++)
                    see_pairs(terms, p, canvas + y * p->canvas_w + x + panel * 16, p->place + s * TILE_K,
                              panels + panel * apart + s * terms * TILE);
            for (int64_t r = 0; r < p->rows; r += 32)
                sum_block(terms, p->weight + r / 16 * apart, panels, apart, p->steps,
                          p->out + (image * p->rows + r) * pixels + y * p->out_w + x, pixels,
                          p->rows - r < 32 ? p->rows - r : 32, columns, 0);
        }
}

/* One task: a band of lines of one image. */
static void convolve_body(void *context, int64_t begin, int64_t end) {
    convolution *p = context;
    size_t panels = sizeof(bf16) * (size_t)(2 * p->steps * p->terms * TILE);
    bf16 *memory = cyx_scratch(1, panels + canvas_bytes(p));
    if (!memory) {
        p->no_memory = 1;
        return;
    }
    bf16 *canvas = memory + panels / sizeof(bf16);
    int64_t lines = (p->out_h + p->bands - 1) / p->bands, painted = -1;
    tiles_begin();
    for (int64_t task = begin; task < end; task++) {
        int64_t image = task / p->bands, first = task % p->bands * lines;
        int64_t stop = first + lines < p->out_h ? first + lines : p->out_h;
        if (image != painted) OF_TERMS(p->terms, paint, p, image, canvas);
        painted = image;
        OF_TERMS(p->terms, convolve_band, p, image, first, stop, canvas, memory);
    }
    tiles_end();
}

static inline __attribute__((always_inline)) void pack_weight(const int terms, const convolution *p,
                                                              const float *weight) {
    bf16 *to = p->weight;
    for (int64_t r = 0; r < p->rows; r += 16)
        for (int64_t s = 0; s < p->steps; s++, to += terms * TILE)
            make_tile(weight + r * p->k + s * TILE_K, p->k, p->rows - r < 16 ? p->rows - r : 16,
                      p->k - s * TILE_K < TILE_K ? p->k - s * TILE_K : TILE_K, 1, 0, terms, to);
}

/* Whether the matrix unit is for these windows, and pays: it works on whole tiles of each line's pixels. */
static int pays(const convolution *p, const int64_t *i) {
    int64_t columns = (p->out_w + 15) / 16 * 16;
    if (i[0] != 1 || i[1] != 1 || i[6] != 1 || !p->k || canvas_size(p) > INT32_MAX || columns > 2 * p->out_w) return 0;
    return p->rows >= 16 && p->k >= TILE_K && cyx_amx_pays(p->rows, p->out_h * columns, p->k, p->terms);
}

static void lay_out(convolution *p) {
    p->canvas_h = p->out_h + (p->kernel_h - 1) * p->step_h;
    p->canvas_w = p->out_w + (p->kernel_w - 1) * p->step_w;
    p->k = p->planes * p->kernel_h * p->kernel_w;
    p->steps = (p->k + TILE_K - 1) / TILE_K;
}

/* turned: the weights' axes are exchanged, (k's planes, rows, kernel), and their kernels read backwards. */
static cyx_status convolve(convolution *p, const float *weight, int turned) {
    int64_t tiles = (p->rows + 15) / 16 * p->steps * p->terms, area = p->kernel_h * p->kernel_w;
    size_t packed = sizeof(bf16) * (size_t)(tiles * TILE), own = turned ? sizeof(float) * (size_t)(p->rows * p->k) : 0;
    p->weight = cyx_scratch(0, packed + own + place_bytes(p));
    if (!p->weight) return CYX_NO_MEMORY;
    float *as_rows = (float *)((char *)p->weight + packed);
    p->place = (int32_t *)((char *)as_rows + own);
    fill_places(p);
    for (int64_t o = 0; turned && o < p->planes; o++)
        for (int64_t c = 0; c < p->rows; c++)
            for (int64_t a = 0; a < area; a++)
                as_rows[(c * p->planes + o) * area + area - 1 - a] = weight[(o * p->rows + c) * area + a];
    OF_TERMS(p->terms, pack_weight, p, turned ? as_rows : weight);
    p->bands = (2 * cyx_threads() + p->images - 1) / p->images;
    if (cyx_threads() == 1 || p->bands < 1) p->bands = 1;
    if (p->bands > p->out_h) p->bands = p->out_h;
    int64_t lines = (p->out_h + p->bands - 1) / p->bands;
    p->bands = (p->out_h + lines - 1) / lines;
    cyx_parallel(p->images * p->bands, 1, convolve_body, p);
    return p->no_memory ? CYX_NO_MEMORY : CYX_OK;
}

/* ints: stride (2), padding (2), dilation (2), groups */
cyx_status cyx_amx_conv2d(const cyx_call *call) {
    const cyx_array *x = &call->in[0], *w = &call->in[1], *y = &call->out;
    const int64_t *i = call->ints;
    convolution p = {.image = x->data, .images = x->shape[0], .planes = x->shape[1], .h = x->shape[2], .w = x->shape[3],
                     .top = i[2], .left = i[3], .kernel_h = w->shape[2], .kernel_w = w->shape[3],
                     .step_h = i[4], .step_w = i[5], .out_h = y->shape[2], .out_w = y->shape[3],
                     .rows = w->shape[0], .terms = call->terms, .out = y->data};
    lay_out(&p);
    if (!y->size || !pays(&p, i)) return CYX_NO_KERNEL;
    return convolve(&p, w->data, 0);
}

/* The input's gradient is a convolution of g with the kernels turned round. */
cyx_status cyx_amx_conv2d_grad_input(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *w = &call->in[1], *x = &call->out;
    const int64_t *i = call->ints;
    convolution p = {.image = g->data, .images = g->shape[0], .planes = g->shape[1], .h = g->shape[2], .w = g->shape[3],
                     .top = (w->shape[2] - 1) * i[4] - i[2], .left = (w->shape[3] - 1) * i[5] - i[3],
                     .kernel_h = w->shape[2], .kernel_w = w->shape[3], .step_h = i[4], .step_w = i[5],
                     .out_h = x->shape[2], .out_w = x->shape[3], .rows = w->shape[1], .terms = call->terms,
                     .out = x->data};
    lay_out(&p);
    if (!x->size || !g->size || !pays(&p, i)) return CYX_NO_KERNEL;
    return convolve(&p, w->data, 1);
}

static int64_t line_steps(const convolution *p) { return (p->out_w + TILE_K - 1) / TILE_K; }

/* g of one image as tiles: rows are output channels, k runs along the lines of pixels. */
static inline __attribute__((always_inline)) void pack_gradient(const int terms, const convolution *p, int64_t begin,
                                                                int64_t end) {
    int64_t pixels = p->out_h * p->out_w, steps = p->out_h * line_steps(p);
    for (int64_t panel = begin; panel < end; panel++) {
        bf16 *to = p->gradient + panel * steps * terms * TILE;
        for (int64_t y = 0; y < p->out_h; y++)
            for (int64_t x = 0; x < p->out_w; x += TILE_K, to += terms * TILE)
                make_tile(p->g + panel * 16 * pixels + y * p->out_w + x, pixels,
                          p->rows - panel * 16 < 16 ? p->rows - panel * 16 : 16,
                          p->out_w - x < TILE_K ? p->out_w - x : TILE_K, 1, 0, terms, to);
    }
}

static void pack_gradient_body(void *context, int64_t begin, int64_t end) {
    const convolution *p = context;
    OF_TERMS(p->terms, pack_gradient, p, begin, end);
}

/* sums[row][k] += sum over the pixels of one image of g[row][pixel] * canvas[place[k] + pixel], for 32 k. */
static inline __attribute__((always_inline)) void sum_taps(const int terms, const convolution *p, int64_t first,
                                                           bf16 *panels) {
    int64_t steps = p->out_h * line_steps(p), apart = steps * terms * TILE, width = (p->k + 15) / 16 * 16;
    int64_t taps = p->k - first < 32 ? p->k - first : 32;
    for (int64_t panel = 0; panel * 16 < taps; panel++) {
        bf16 *to = panels + panel * apart;
        for (int64_t y = 0; y < p->out_h; y++)
            for (int64_t x = 0; x < p->out_w; x += TILE_K, to += terms * TILE)
                see_lines(terms, p, p->canvas + y * p->canvas_w + x, p->place + first + panel * 16, p->out_w - x, to);
    }
    for (int64_t r = 0; r < p->rows; r += 32)
        sum_block(terms, p->gradient + r / 16 * apart, panels, apart, steps, p->sums + r * width + first, width,
                  p->rows - r < 32 ? p->rows - r : 32, taps, 1);
}

static void sum_taps_body(void *context, int64_t begin, int64_t end) {
    convolution *p = context;
    bf16 *panels = cyx_scratch(1, sizeof(bf16) * (size_t)(2 * p->out_h * line_steps(p) * p->terms * TILE));
    if (!panels) {
        p->no_memory = 1;
        return;
    }
    tiles_begin();
    for (int64_t task = begin; task < end; task++) OF_TERMS(p->terms, sum_taps, p, task * 32, panels);
    tiles_end();
}

/* ints: those of conv2d, then weight_shape, counted */
cyx_status cyx_amx_conv2d_grad_weight(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *x = &call->in[1], *w = &call->out;
    const int64_t *i = call->ints;
    convolution p = {.image = x->data, .images = x->shape[0], .planes = x->shape[1], .h = x->shape[2], .w = x->shape[3],
                     .top = i[2], .left = i[3], .kernel_h = w->shape[2], .kernel_w = w->shape[3],
                     .step_h = i[4], .step_w = i[5], .out_h = g->shape[2], .out_w = g->shape[3],
                     .rows = w->shape[0], .terms = call->terms};
    lay_out(&p);
    /* The image's tiles are made anew for every 32 taps, and used by these rows only. */
    if (!w->size || !g->size || !x->size || p.rows < 32 * p.terms || !pays(&p, i)) return CYX_NO_KERNEL;
    int64_t panels = (p.rows + 15) / 16, width = (p.k + 15) / 16 * 16;
    size_t tiles = sizeof(bf16) * (size_t)(panels * p.out_h * line_steps(&p) * p.terms * TILE);
    size_t sums = sizeof(float) * (size_t)(p.rows * width), canvas = canvas_bytes(&p);
    p.gradient = cyx_scratch(0, tiles + canvas + sums + place_bytes(&p));
    if (!p.gradient) return CYX_NO_MEMORY;
    p.canvas = p.gradient + tiles / sizeof(bf16);
    p.sums = (float *)((char *)p.canvas + canvas);
    p.place = (int32_t *)((char *)p.sums + sums);
    fill_places(&p);
    memset(p.sums, 0, sums);
    for (int64_t n = 0; n < p.images; n++) {
        OF_TERMS(p.terms, paint, &p, n, p.canvas);
        p.g = (const float *)g->data + n * p.rows * p.out_h * p.out_w;
        cyx_parallel(panels, 1, pack_gradient_body, &p);
        cyx_parallel((p.k + 31) / 32, 1, sum_taps_body, &p);
        if (p.no_memory) return CYX_NO_MEMORY;
    }
    for (int64_t r = 0; r < p.rows; r++)
        memcpy((float *)w->data + r * p.k, p.sums + r * width, sizeof(float) * (size_t)p.k);
    return CYX_OK;
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
