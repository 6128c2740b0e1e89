/* Convolution of float32 by AMX, windows one pixel apart and one group: see fast.h. Nothing is unfolded. A band of an
 * image's lines is laid on a canvas, split into terms, with zeros as far as the windows reach; pixels are counted along
 * the canvas, so that what one place of the kernel sees of the next 16 pixels is a tile of the canvas itself, some pixels
 * further on. What comes out beyond the end of a line is left out. Bands keep the canvas in the cache, however large the
 * image. Threads take different outputs; bands depend on shapes alone where they decide on an order of sums. */
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

enum { CANVAS_BYTES = 640 * 1024 }; /* of a band's canvas, where a few lines fit: beside it the cache holds weights */

typedef struct {
    const float *image; /* (images, planes, h, w) */
    int64_t images, planes, h, w;
    int64_t top, left, canvas_w; /* where its first pixel lies on the canvas of all lines; below 0: outside */
    int64_t kernel_h, kernel_w, step_h, step_w, out_h, out_w;
    int64_t rows; /* channels of what comes out */
    int64_t lines, bands, canvas; /* lines of outputs in a band, bands of an image, pixels of a band's canvas */
    int terms;
    /* of products with the weights */
    const float *given; /* the weights, of which [row][plane][place] are as far apart: */
    int64_t given_row, given_plane, given_place;
    bf16 *weight;   /* [16 rows][step][term], a step being 32 planes at one place of the kernel */
    int32_t *steps; /* where on the canvas, which is [32 planes][term][pixel], the tiles of each lie */
    float *out;     /* (images, rows, out_h, out_w) */
    /* of the weight's gradient */
    const float *g;
    int64_t image_at, band_at;
    bf16 *canvases, *gradient; /* see pair_up and line_up */
    float *sums;               /* of each task [32 rows][32 planes] */
    _Atomic int no_memory;
} convolution;

static int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

static int64_t halo(const convolution *p) { return (p->kernel_h - 1) * p->step_h; }
static int64_t places(const convolution *p) { return p->kernel_h * p->kernel_w; }

/* How far on the canvas the window sees further, at a place of the kernel. */
static int64_t shift_of(const convolution *p, int64_t place) {
    return place / p->kernel_w * p->step_h * p->canvas_w + place % p->kernel_w * p->step_w;
}

/* Pixels of so many lines of outputs, counted along the canvas. */
static int64_t span(const convolution *p, int64_t lines) { return (lines - 1) * p->canvas_w + p->out_w; }

/* Cuts the lines into bands whose canvas of `planes` stays in the cache, and at least `least` of them. */
static void cut_bands(convolution *p, int64_t planes, int64_t least) {
    int64_t line_bytes = p->canvas_w * planes * p->terms * (int64_t)sizeof(bf16);
    int64_t fit = CANVAS_BYTES / line_bytes - halo(p), fewest = halo(p) > 1 ? halo(p) : 1;
    p->lines = fit > fewest ? fit : fewest;
    if (p->lines * least > p->out_h) p->lines = (p->out_h + least - 1) / least;
    p->bands = (p->out_h + p->lines - 1) / p->lines;
    p->lines = (p->out_h + p->bands - 1) / p->bands;
    /* What whole tiles read beyond the last pixel is there too. */
    p->canvas = whole(span(p, p->lines), TILE_K) + shift_of(p, places(p) - 1);
}

/* The columns of the canvas on which the image lies, of its own columns. */
static void columns_of(const convolution *p, int64_t *begin, int64_t *end) {
    *begin = p->left < 0 ? -p->left : 0;
    *end = p->w < p->canvas_w - p->left ? p->w : p->canvas_w - p->left;
}

/* The line of the image that a line of the canvas of a band shows, or NULL: zeros. */
static const float *line_of(const convolution *p, int64_t image, int64_t plane, int64_t line) {
    int64_t y = line - p->top;
    return y < 0 || y >= p->h ? NULL : p->image + ((image * p->planes + plane) * p->h + y) * p->w;
}

/* The band of lines from y on, 32 planes of a pixel side by side. Its columns beside the image are zeros already. */
static inline __attribute__((always_inline)) void paint(const int terms, const convolution *p, int64_t image, int64_t y,
                                                        int64_t lines, bf16 *canvas) {
    int64_t begin, end, line_size = p->canvas_w * TILE_K, apart = p->canvas * TILE_K;
    columns_of(p, &begin, &end);
    for (int64_t plane = 0; plane < p->planes; plane += 32, canvas += terms * apart) {
        int64_t there = p->planes - plane;
        for (int64_t line = 0; line < lines + halo(p); line++) {
            const float *from = line_of(p, image, plane, y + line);
            bf16 *to = canvas + line * line_size;
            if (!from) {
                for (int t = 0; t < terms; t++) memset(to + t * apart, 0, sizeof(bf16) * (size_t)line_size);
                continue;
            }
            for (int64_t x = begin; x < end; x += 16) {
                __m512i pair[CYX_MOST_TERMS][16];
                __mmask16 mask = first(end - x);
                for (int r = 0; r < 16; r++) {
                    __m512i term[CYX_MOST_TERMS];
                    const float *even = from + 2 * r * p->h * p->w + x;
                    split_pairs(2 * r < there ? _mm512_maskz_loadu_ps(mask, even) : _mm512_setzero_ps(),
                                2 * r + 1 < there ? _mm512_maskz_loadu_ps(mask, even + p->h * p->w)
                                                  : _mm512_setzero_ps(),
                                terms, term);
                    UNROLLED for (int t = 0; t < terms; t++) pair[t][r] = term[t];
                }
                int64_t count = end - x < 16 ? end - x : 16;
                UNROLLED for (int t = 0; t < terms; t++) {
                    transpose_dwords(pair[t]);
                    bf16 *pixel = to + t * apart + (p->left + x) * TILE_K;
                    for (int64_t i = 0; i < count; i++) _mm512_store_si512(pixel + i * TILE_K, pair[t][i]);
                }
            }
        }
    }
}

/* Where 16 pixels in a row on the canvas belong in an image: several lines may have some of them. */
typedef struct {
    int count;
    __mmask16 mask[16];
    int64_t at[16]; /* of the first of the 16, if it were on that line */
} landing;

static landing land(const convolution *p, int64_t pixel, int64_t y, int64_t lines) {
    landing found = {0};
    for (int64_t line = pixel / p->canvas_w; line < lines && line * p->canvas_w < pixel + 16; line++) {
        int64_t begin = line * p->canvas_w - pixel, end = begin + p->out_w;
        if (begin < 0) begin = 0;
        if (end > 16) end = 16;
        if (begin >= end) continue;
        found.mask[found.count] = (__mmask16)(first(end) & ~first(begin));
        found.at[found.count++] = (y + line) * p->out_w + pixel - line * p->canvas_w;
    }
    return found;
}

/* Sums of 16 pixels by 16 rows, `from` being [pixel][32 rows], to rows of an image. */
static void put_down(const float *from, int64_t rows, const landing *where, float *to, int64_t to_row) {
    __m512i line[16];
    for (int i = 0; i < 16; i++) line[i] = _mm512_load_si512(from + i * 32);
    transpose_dwords(line);
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < where->count; i++)
            _mm512_mask_storeu_ps(to + r * to_row + where->at[i], where->mask[i], _mm512_castsi512_ps(line[r]));
}

/* out[image][row][pixel] = sum over planes and places of weight[row][plane][place] * canvas[plane][pixel + shift]. */
static inline __attribute__((always_inline)) void convolve_band(const int terms, const convolution *p, int64_t image,
                                                                int64_t y, int64_t lines, const bf16 *canvas) {
    _Alignas(64) float sums[32 * 32];
    int64_t steps = whole(p->planes, 32) / 32 * places(p), pixels = p->out_h * p->out_w, end = span(p, lines);
    for (int64_t pixel = 0; pixel < end; pixel += 32) {
        factor a = {canvas + pixel * TILE_K, 16 * TILE_K, p->canvas * TILE_K, 0, p->steps, 2 * TILE_K};
        landing where[2] = {land(p, pixel, y, lines), land(p, pixel + 16, y, lines)};
        for (int64_t r = 0; r < p->rows; r += 32) {
            factor b = packed(p->weight + r / 16 * steps * terms * TILE, steps, terms);
            tiles_of(end - pixel, p->rows - r, terms, a, b, steps, sums, 32, 0);
            for (int64_t more = 0; more < 32 && r + more < p->rows; more += 16)
                for (int half = 0; half < 2; half++)
                    put_down(sums + half * 16 * 32 + more, p->rows - r - more < 16 ? p->rows - r - more : 16,
                             &where[half], p->out + (image * p->rows + r + more) * pixels, pixels);
        }
    }
}

/* One task: a band of one image. */
static void convolve_body(void *context, int64_t begin, int64_t end) {
    convolution *p = context;
    size_t bytes = sizeof(bf16) * (size_t)(whole(p->planes, 32) * p->terms * p->canvas);
    bf16 *canvas = cyx_scratch(1, bytes);
    if (!canvas) {
        p->no_memory = 1;
        return;
    }
    memset(canvas, 0, bytes);
    tiles_begin();
    for (int64_t task = begin; task < end; task++) {
        int64_t image = task / p->bands, y = task % p->bands * p->lines;
        int64_t lines = p->out_h - y < p->lines ? p->out_h - y : p->lines;
        OF_TERMS(p->terms, paint, p, image, y, lines, canvas);
        OF_TERMS(p->terms, convolve_band, p, image, y, lines, canvas);
    }
    tiles_end();
}

static void pack_weight_body(void *context, int64_t begin, int64_t end) {
    const convolution *p = context;
    _Alignas(64) float tile[TILE_K * 16];
    for (int64_t panel = begin; panel < end; panel++) {
        int64_t r = panel * 16, rows = p->rows - r < 16 ? p->rows - r : 16, blocks = whole(p->planes, 32) / 32;
        bf16 *to = p->weight + panel * blocks * places(p) * p->terms * TILE;
        for (int64_t plane = 0; plane < p->planes; plane += 32)
            for (int64_t place = 0; place < places(p); place++, to += p->terms * TILE) {
                int64_t planes = p->planes - plane < 32 ? p->planes - plane : 32;
                const float *from = p->given + r * p->given_row + plane * p->given_plane + place * p->given_place;
                for (int64_t k = 0; k < planes; k++)
                    for (int64_t n = 0; n < rows; n++)
                        tile[k * 16 + n] = from[n * p->given_row + k * p->given_plane];
                OF_TERMS(p->terms, pack_across, tile, 16, planes, rows, to);
            }
    }
}

/* Rough cycles of products of tiles, of splitting what is painted and of laying down what comes out, against those of
 * the exact kernel. */
static int pays(const convolution *p, const int64_t *ints) {
    static const double products[CYX_MOST_TERMS + 1] = {0, 1, 3, 6};
    if (ints[0] != 1 || ints[1] != 1 || ints[6] != 1 || !p->planes || p->out_w > 1 << 20) return 0;
    double pixels = (double)whole(span(p, p->out_h), 16), planes = (double)whole(p->planes, 32);
    double rows = (double)whole(p->rows, 16), here = (double)places(p);
    double painted = (double)((p->out_h + halo(p)) * p->canvas_w) * planes;
    double fast = products[p->terms] * pixels * rows * planes * here / 420 + 0.5 * p->terms * painted + 0.5 * pixels * rows;
    double exact = (double)(p->out_h * p->out_w * p->rows * p->planes) * here / 24;
    return p->rows >= 8 && fast * 1.1 + 2000 < exact;
}

/* ints: of the convolution's attributes; the kernel's shape is that of the weights. */
static convolution laid_out(const cyx_call *call, const cyx_array *image, const cyx_array *weight, int64_t rows,
                            int64_t out_h, int64_t out_w) {
    const int64_t *i = call->ints;
    convolution p = {.image = image->data, .images = image->shape[0], .planes = image->shape[1], .h = image->shape[2],
                     .w = image->shape[3], .kernel_h = weight->shape[2], .kernel_w = weight->shape[3], .step_h = i[4],
                     .step_w = i[5], .rows = rows, .out_h = out_h, .out_w = out_w, .top = i[2], .left = i[3],
                     .terms = call->terms};
    p.canvas_w = out_w + (p.kernel_w - 1) * p.step_w;
    return p;
}

static cyx_status convolve(convolution *p) {
    int64_t blocks = whole(p->planes, 32) / 32, panels = whole(p->rows, 16) / 16, steps = blocks * places(p);
    int64_t least = p->images < 2 * cyx_threads() && cyx_threads() > 1 ? (2 * cyx_threads() + p->images - 1) / p->images : 1;
    cut_bands(p, blocks * 32, least);
    if (blocks * 32 * p->terms * p->canvas > INT32_MAX) return CYX_NO_KERNEL;
    size_t tiles = sizeof(bf16) * (size_t)(panels * steps * p->terms * TILE);
    p->weight = cyx_scratch(0, tiles + sizeof(int32_t) * (size_t)steps);
    if (!p->weight) return CYX_NO_MEMORY;
    p->steps = (int32_t *)((char *)p->weight + tiles);
    for (int64_t s = 0; s < steps; s++)
        p->steps[s] =
            (int32_t)((s / places(p) * p->terms * p->canvas + shift_of(p, s % places(p))) * TILE_K);
    cyx_parallel(panels, cyx_grain(panels, (double)(steps * TILE), 50000), pack_weight_body, p);
    cyx_parallel(p->images * p->bands, 1, convolve_body, p);
    return p->no_memory ? CYX_NO_MEMORY : CYX_OK;
}

/* ints: stride (2), padding (2), dilation (2), groups */
cyx_status cyx_amx_conv2d(const cyx_call *call) {
    const cyx_array *x = &call->in[0], *w = &call->in[1], *y = &call->out;
    convolution p = laid_out(call, x, w, w->shape[0], y->shape[2], y->shape[3]);
    if (!y->size || !x->size || !w->size || !pays(&p, call->ints)) return CYX_NO_KERNEL;
    p.given = w->data, p.out = y->data;
    p.given_row = p.planes * places(&p), p.given_plane = places(&p), p.given_place = 1;
    return convolve(&p);
}

/* The input's gradient is a convolution of g with the kernels turned round. */
cyx_status cyx_amx_conv2d_grad_input(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *w = &call->in[1], *x = &call->out;
    convolution p = laid_out(call, g, w, w->shape[1], x->shape[2], x->shape[3]);
    p.top = halo(&p) - p.top, p.left = (p.kernel_w - 1) * p.step_w - p.left;
    if (!x->size || !g->size || !w->size || !pays(&p, call->ints)) return CYX_NO_KERNEL;
    p.out = x->data;
    p.given = (const float *)w->data + places(&p) - 1;
    p.given_row = places(&p), p.given_plane = p.rows * places(&p), p.given_place = -1;
    return convolve(&p);
}

/* Lines are too short for memcpy. */
static void copy_line(float *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i += 16)
        _mm512_mask_storeu_ps(to + i, first(count - i), _mm512_maskz_loadu_ps(first(count - i), from + i));
}

/* Lines of 16 planes of x as the canvas has them, or of 16 rows of g: one [pixel] after the other, zeros beside them. */
static void spread(const convolution *p, int64_t length, const float *from, int64_t count, int64_t from_apart,
                   int64_t line, int64_t lines, int64_t height, int64_t width, int64_t begin, int64_t end, float *to) {
    memset(to, 0, sizeof(float) * (size_t)(16 * length));
    for (int64_t r = 0; r < count; r++)
        for (int64_t i = 0; i < lines; i++)
            if (line + i >= 0 && line + i < height)
                copy_line(to + r * length + i * p->canvas_w + (begin > 0 ? begin : 0),
                          from + r * from_apart + (line + i) * width + (begin < 0 ? -begin : 0),
                          end - (begin > 0 ? begin : 0));
}

/* The band's lines of x as tiles of the right factor, in which pixels along the canvas are k: [16 planes][odd][term] of
 * [2 pixels][16 planes], once the pairs that begin with an even pixel, and once those that begin with an odd one. */
static inline __attribute__((always_inline)) void pair_up(const int terms, const convolution *p, int64_t panel,
                                                          float *lines) {
    int64_t plane = panel * 16, line = p->band_at * p->lines - p->top, apart = p->canvas * 16, begin, end;
    columns_of(p, &begin, &end);
    spread(p, p->canvas, p->image + (p->image_at * p->planes + plane) * p->h * p->w,
           p->planes - plane < 16 ? p->planes - plane : 16, p->h * p->w, line, p->lines + halo(p), p->h, p->w, p->left,
           p->left + end, lines);
    bf16 *even = p->canvases + panel * 2 * terms * apart, *odd = even + terms * apart;
    for (int64_t pixel = 0; pixel < p->canvas; pixel += TILE_K) {
        bf16 tile[CYX_MOST_TERMS * TILE] __attribute__((aligned(64)));
        make_tile(lines + pixel, p->canvas, 16, TILE_K, 1, 1, terms, tile);
        for (int t = 0; t < terms; t++)
            for (int r = 0; r < 16; r++)
                _mm512_store_si512(even + t * apart + pixel * 16 + r * TILE_K, _mm512_load_si512(tile + t * TILE + r * TILE_K));
    }
    for (int t = 0; t < terms; t++)
        for (int64_t pair = 0; pair < p->canvas / 2; pair++) {
            const bf16 *at = even + t * apart + pair * TILE_K;
            __m512i next = pair + 1 < p->canvas / 2 ? _mm512_load_si512(at + TILE_K) : _mm512_setzero_si512();
            _mm512_store_si512(odd + t * apart + pair * TILE_K,
                               _mm512_or_si512(_mm512_srli_epi32(_mm512_load_si512(at), 16),
                                               _mm512_slli_epi32(next, 16)));
        }
}

/* The same lines of g as tiles of the left factor, with zeros where a line has no more. */
static inline __attribute__((always_inline)) void line_up(const int terms, const convolution *p, int64_t panel,
                                                          float *lines) {
    int64_t y = p->band_at * p->lines, length = whole(span(p, p->lines), TILE_K), row = panel * 16;
    int64_t rows = p->rows - row < 16 ? p->rows - row : 16;
    spread(p, length, p->g + (p->image_at * p->rows + row) * p->out_h * p->out_w, rows, p->out_h * p->out_w, y, p->lines,
           p->out_h, p->out_w, 0, p->out_w, lines);
    bf16 *to = p->gradient + row * length * terms;
    for (int64_t pixel = 0; pixel < length; pixel += TILE_K, to += terms * TILE)
        make_tile(lines + pixel, length, 16, TILE_K, 1, 0, terms, to);
}

/* One task: 16 planes of x, or 16 rows of g. */
static void prepare_body(void *context, int64_t begin, int64_t end) {
    convolution *p = context;
    int64_t panels = whole(p->planes, 16) / 16;
    float *lines = cyx_scratch(1, sizeof(float) * (size_t)(16 * p->canvas));
    if (!lines) {
        p->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        if (task < panels)
            OF_TERMS(p->terms, pair_up, p, task, lines);
        else
            OF_TERMS(p->terms, line_up, p, task - panels, lines);
    }
}

/* sums[row][plane] += sum over pixels of g[row][pixel] * x[plane][pixel + shift]: 32 rows, 32 planes, a place. */
static inline __attribute__((always_inline)) void sum_place(const int terms, const convolution *p, int64_t task) {
    int64_t place = task % places(p), pair = task / places(p), pairs = whole(p->planes, 32) / 32;
    int64_t row = pair / pairs * 32, plane = pair % pairs * 32, height = whole(p->rows, 16), width = whole(p->planes, 16);
    int64_t shift = shift_of(p, place), apart = p->canvas * 16;
    int64_t length = whole(span(p, p->lines), TILE_K);
    factor a = packed(p->gradient + row * length * terms, length / TILE_K, terms);
    factor b = {p->canvases + (plane / 16 * 2 + shift % 2) * terms * apart + shift / 2 * TILE_K, 2 * terms * apart, apart,
                TILE, NULL, 2 * TILE_K};
    tiles_of(height - row, width - plane, terms, a, b, length / TILE_K,
             p->sums + task * 32 * 32, 32, 1);
}

static void sum_places_body(void *context, int64_t begin, int64_t end) {
    const convolution *p = context;
    tiles_begin();
    for (int64_t task = begin; task < end; task++) OF_TERMS(p->terms, sum_place, p, task);
    tiles_end();
}

/* ints: those of conv2d, then weight_shape, counted */
cyx_status cyx_amx_conv2d_grad_weight(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *x = &call->in[1], *w = &call->out;
    convolution p = laid_out(call, x, w, w->shape[0], g->shape[2], g->shape[3]);
    if (!w->size || !g->size || !x->size || !pays(&p, call->ints)) return CYX_NO_KERNEL;
    int64_t planes = whole(p.planes, 16), rows = whole(p.rows, 16);
    cut_bands(&p, 2 * planes + rows, 1);
    p.canvas = whole(p.canvas + 1, TILE_K);
    size_t canvases = sizeof(bf16) * (size_t)(planes * 2 * p.terms * p.canvas);
    size_t gradient = sizeof(bf16) * (size_t)(rows * p.terms * whole(span(&p, p.lines), TILE_K));
    int64_t pairs = whole(p.planes, 32) / 32, tasks = places(&p) * pairs * (whole(p.rows, 32) / 32);
    size_t sums = sizeof(float) * (size_t)(tasks * 32 * 32);
    p.canvases = cyx_scratch(0, canvases + gradient + sums);
    if (!p.canvases) return CYX_NO_MEMORY;
    p.gradient = p.canvases + canvases / sizeof(bf16);
    p.sums = (float *)((char *)p.gradient + gradient);
    p.g = g->data;
    memset(p.sums, 0, sums);
    for (p.image_at = 0; p.image_at < p.images; p.image_at++)
        for (p.band_at = 0; p.band_at < p.bands; p.band_at++) {
            cyx_parallel((planes + rows) / 16, 1, prepare_body, &p);
            cyx_parallel(tasks, 1, sum_places_body, &p);
            if (p.no_memory) return CYX_NO_MEMORY;
        }
    for (int64_t r = 0; r < p.rows; r++)
        for (int64_t plane = 0; plane < p.planes; plane++)
            for (int64_t place = 0; place < places(&p); place++)
                ((float *)w->data)[(r * p.planes + plane) * places(&p) + place] =
                    p.sums[(((r / 32 * pairs + plane / 32) * places(&p) + place) * 32 + r % 32) * 32 + plane % 32];
    return CYX_OK;
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
