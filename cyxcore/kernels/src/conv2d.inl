#ifndef CONV_ONCE
#define CONV_ONCE
enum { CANVAS_BYTES = 1 << 20, PANELS_AT_ONCE = 4, IMAGES_PER_THREAD = 4 };
#endif

/* Convolution as matmul without writing the unfolded image: where windows are one pixel apart, or can be laid so, it is read
 * where it lies (conv2d_blocks.inl), otherwise its columns are made a panel at a time, in the panel's layout, and used at
 * once. Every output is the chain of fused multiply-adds of the plain definition,
 * zeros around the image included: over (channel, kh, kw) forward, (output channel, kh, kw) for the input,
 * (image, oh, ow) for the weight. Most 3 x 3 kernels are made otherwise: winograd.inl; depth-wise ones are chains of the same
 * kind: conv2d_lanes.inl. */

/* The unfolded matrix reads a canvas: each plane of the image on a field of zeros as large as the windows
 * reach, its pixels `spacing` apart. Row (plane, kh, kw), column (y, x) is then canvas[y * y_step + kh' ][x *
 * x_step + kw' ], with kh' = kh * kh_step counted from the smallest, and no edge to look at.
 *
 * A canvas may be split into parts, so that pixels that are y_parts, x_parts apart lie next to each other: windows that were so
 * far apart are one pixel apart then. */
typedef struct {
    int64_t planes, h, w;         /* of one image, or one group of one */
    int64_t y_spacing, x_spacing; /* between its pixels on the canvas */
    int64_t top, left;            /* of its first pixel; may lie outside */
    int64_t y_parts, x_parts;
    uint64_t y_met, x_met; /* by a window, of the parts: bit by bit */
    int64_t canvas_h, canvas_w; /* of a part */
    int64_t kh, kw, y_step, x_step, kh_step, kw_step, kh_first, kw_first;
    int64_t columns_w; /* x runs over [0, columns_w) */
} NAME(unfolding);

enum { NAME(SLACK) = 4 * NV * VN }; /* elements behind a canvas or a panel that whole vectors may touch */

/* One axis: outputs at `step` apart, windows of `k` pixels `k_step` apart from `origin` on; n image pixels
 * `spacing` apart. */
#define LAY_OUT(outputs, step, k, k_step, origin, size, first, start)                                        \
    do {                                                                                                     \
        int64_t reach = ((k) - 1) * (k_step);                                                                \
        (first) = reach < 0 ? -reach : 0;                                                                    \
        (start) = (first) - (origin);                                                                        \
        (size) = ((outputs) - 1) * (step) + (reach < 0 ? -reach : reach) + 1;                                \
    } while (0)

static inline int64_t NAME(canvas_size)(const NAME(unfolding) * u) {
    return u->planes * u->y_parts * u->x_parts * u->canvas_h * u->canvas_w;
}

/* Where a pixel of the whole canvas lies. */
static inline int64_t NAME(place)(const NAME(unfolding) * u, int64_t plane, int64_t y, int64_t x) {
    if (u->y_parts == 1 && u->x_parts == 1) return (plane * u->canvas_h + y) * u->canvas_w + x;
    uint32_t row = (uint32_t)y, column = (uint32_t)x, rows = (uint32_t)u->y_parts, columns = (uint32_t)u->x_parts;
    int64_t part = (plane * rows + row % rows) * columns + column % columns;
    return (part * u->canvas_h + row / rows) * u->canvas_w + column / columns;
}

/* Splits it where windows are more than a pixel apart along lines. */
static void NAME(split_canvas)(NAME(unfolding) * u) {
    if (u->x_step == 1 || u->x_step > 64 || u->y_step > 64) return;
    for (int64_t i = 0; i < u->kh; i++) u->y_met |= (uint64_t)1 << (u->kh_first + i * u->kh_step) % u->y_step;
    for (int64_t i = 0; i < u->kw; i++) u->x_met |= (uint64_t)1 << (u->kw_first + i * u->kw_step) % u->x_step;
    u->y_parts = u->y_step, u->x_parts = u->x_step;
    u->canvas_h = (u->canvas_h + u->y_parts - 1) / u->y_parts, u->canvas_w = (u->canvas_w + u->x_parts - 1) / u->x_parts;
    u->y_step = u->x_step = 1;
}

/* One image onto a canvas that is split and zero. */
static void NAME(paint_parts)(const NAME(unfolding) * u, const T *image, T *canvas) {
    for (int64_t y0 = 0; y0 < u->h && y0 < u->y_parts; y0++)
        for (int64_t x0 = 0; x0 < u->w && x0 < u->x_parts; x0++) {
            int64_t row = (u->top + y0) / u->y_parts, column = (u->left + x0) / u->x_parts;
            int64_t y_part = (u->top + y0) % u->y_parts, x_part = (u->left + x0) % u->x_parts;
            int64_t lines = (u->h - y0 + u->y_parts - 1) / u->y_parts, count = (u->w - x0 + u->x_parts - 1) / u->x_parts;
            if (!(u->y_met >> y_part & u->x_met >> x_part & 1)) continue;
            if (lines > u->canvas_h - row) lines = u->canvas_h - row;
            if (count > u->canvas_w - column) count = u->canvas_w - column;
            for (int64_t plane = 0; plane < u->planes; plane++)
                for (int64_t i = 0; i < lines; i++) {
                    int64_t part = (plane * u->y_parts + y_part) * u->x_parts + x_part;
                    const T *restrict from = image + (plane * u->h + y0 + i * u->y_parts) * u->w + x0;
                    T *restrict to = canvas + (part * u->canvas_h + row + i) * u->canvas_w + column;
                    if (u->x_parts == 2) /* by vectors */
                        for (int64_t x = 0; x < count; x++) to[x] = from[2 * x];
                    else
                        for (int64_t x = 0; x < count; x++) to[x] = from[u->x_parts * x];
                }
        }
}

/* One image onto its canvas. */
static void NAME(paint)(const NAME(unfolding) * u, const T *image, T *canvas) {
    memset(canvas, 0, sizeof(T) * (size_t)NAME(canvas_size)(u));
    if (u->x_parts > 1) {
        NAME(paint_parts)(u, image, canvas);
        return;
    }
    for (int64_t plane = 0; plane < u->planes; plane++)
        for (int64_t y = 0; y < u->h; y++) {
            int64_t row = u->top + y * u->y_spacing;
            if (row < 0 || row >= u->canvas_h) continue;
            const T *from = image + (plane * u->h + y) * u->w;
            T *to = canvas + (plane * u->canvas_h + row) * u->canvas_w;
            int64_t x = u->left < 0 ? (-u->left + u->x_spacing - 1) / u->x_spacing : 0,
                    at = u->left + x * u->x_spacing;
            if (u->x_spacing == 1 && at < u->canvas_w && x < u->w) {
                int64_t count = u->w - x < u->canvas_w - at ? u->w - x : u->canvas_w - at;
                memcpy(to + at, from + x, sizeof(T) * (size_t)count);
                continue;
            }
            for (; x < u->w && at < u->canvas_w; x++, at += u->x_spacing) to[at] = from[x];
        }
}

typedef struct {
    NAME(unfolding) unfolding;
    const T *image;
    T *canvas;
} NAME(painting);

static void NAME(paint_body)(void *context, int64_t begin, int64_t end) {
    const NAME(painting) *p = context;
    const NAME(unfolding) *u = &p->unfolding;
    for (int64_t i = begin; i < end; i++)
        NAME(paint)(u, p->image + i * u->planes * u->h * u->w, p->canvas + i * NAME(canvas_size)(u));
}

static void NAME(paint_all)(const NAME(unfolding) * u, const T *image, T *canvas, int64_t count) {
    NAME(painting) p = {*u, image, canvas};
    cyx_parallel(count, cyx_grain(count, (double)NAME(canvas_size)(u), 50000), NAME(paint_body), &p);
}

/* Depth-wise convolutions go another way, channels in lanes: conv2d_lanes.inl. */
static inline int NAME(fits_lanes)(const NAME(unfolding) * u, int64_t rows, int64_t groups) {
    return u->planes == 1 && rows == 1 && groups > 1 && groups >= VN / 4;
}
static cyx_status NAME(run_lanes)(const NAME(unfolding) * u, const T *image, const T *given, T *out, int64_t images, int64_t channels,
                                  int64_t out_h, int64_t out_w, int of_weight);

/* How many images (or groups of them) to unfold at once: their canvases should stay in cache. */
static int64_t NAME(canvases_at_once)(const NAME(unfolding) * u, int64_t count) {
    int64_t fit = CANVAS_BYTES / ((int64_t)sizeof(T) * NAME(canvas_size)(u) + 1);
    return fit < 1 ? 1 : fit < count ? fit : count;
}

/* Columns [first, first + columns) of rows [k0, k0 + k_count): row k at to + (k - k0) * to_row. Writes up to
 * SLACK elements behind each row's end, before the next row; the caller has room for that behind the last
 * one. offset: of each row on the canvas, if not those of all taps of all planes. */
static void NAME(unfold)(const NAME(unfolding) * u, const T *canvas, const int32_t *offset, int64_t k0, int64_t k_count,
                         int64_t first, int64_t columns, T *to, int64_t to_row) {
    int64_t kw = k0 % u->kw, kh = k0 / u->kw % u->kh, plane = k0 / u->kw / u->kh;
    const int64_t first_x = first % u->columns_w, first_row = first / u->columns_w * u->y_step * u->canvas_w;
    const int64_t x_step = u->x_step, next_row = u->y_step * u->canvas_w;
    for (int64_t k = 0; k < k_count; k++, to += to_row) {
        int64_t y = u->kh_first + kh * u->kh_step, x0 = u->kw_first + kw * u->kw_step;
        const T *row = canvas + (offset ? offset[k0 + k] : NAME(place)(u, plane, y, x0)) + first_row;
        for (int64_t done = 0, x = first_x; done < columns; x = 0, row += next_row) {
            int64_t run = u->columns_w - x < columns - done ? u->columns_w - x : columns - done;
            const T *from = row + x * x_step;
            if (x_step == 1)
                for (int64_t i = 0; i < run; i += VN) *(V *)(to + done + i) = *(const V *)(from + i);
            else
                for (int64_t i = 0; i < run; i++) to[done + i] = from[i * x_step];
            done += run;
        }
        if (++kw == u->kw) {
            kw = 0;
            if (++kh == u->kh) kh = 0, plane++;
        }
    }
}

/* out[n, g * rows + r, pixel] = sum over k of weight[g][r, k] * unfolded(image[n, g])[k, pixel] */
typedef struct {
    NAME(unfolding) unfolding;
    const T *image;
    const T *canvas; /* of all images, where threads share them; NULL: each paints those that it reads */
    T *out;
    const T *weight; /* packed: [group][rows / MR][k][MR] */
    const int32_t *offset; /* of each row of the unfolded matrix on the canvas; NULL where that is too large */
    int in_place;          /* it is read where it lies; else rows are written out */
    int64_t groups, rows, k, pixels, panels;
    int64_t parts, panels_of_part; /* tasks of an image and group */
    int64_t line_panels; /* panels of one line of output pixels, or 0: panels run over whole lines of the canvas */
    _Atomic int no_memory;
} NAME(image_product);

/* R rows of NR columns onto the output, where the columns are pixels of it: `first` is that of the first column on
 * lines of canvas_w pixels, of which columns_w are the output's. */
static void NAME(keep_pixels)(const NAME(image_product) * p, const T *block, int64_t rows, int64_t first, T *out) {
    int64_t width = p->unfolding.canvas_w, kept = p->unfolding.columns_w, lines = p->pixels / kept;
    for (int64_t y = first / width, column = -(first % width); column < NR && y < lines; y++, column += width) {
        int64_t begin = column < 0 ? 0 : column, end = column + kept < NR ? column + kept : NR;
        for (int64_t r = 0; begin < end && r < rows; r++)
            NAME(copy)(out + r * p->pixels + y * kept + begin - column, block + r * NR + begin, end - begin);
    }
}

/* Panels [begin, end) of a group of an image, a few at a time, so that a block of weights is read for all of them. */
static void NAME(make_seen)(const NAME(image_product) * p, const T *canvas, const T *weight, T *result, int64_t begin,
                            int64_t end) {
    const NAME(unfolding) *u = &p->unfolding;
    for (int64_t panel = begin; panel < end; panel += PANELS_AT_ONCE) {
        int64_t stop = panel + PANELS_AT_ONCE < end ? panel + PANELS_AT_ONCE : end;
        for (int64_t r = 0; r < p->rows; r += MR) {
            int64_t rows = p->rows - r < MR ? p->rows - r : MR;
            T *out = result + r * p->pixels, block[MR * NR];
            for (int64_t at = panel; at < stop; at++) {
                int64_t x = p->line_panels ? at % p->line_panels * NR : at * NR;
                int64_t y = p->line_panels ? at / p->line_panels : 0, columns = u->columns_w - x;
                const T *image = canvas + y * u->y_step * u->canvas_w + x;
                T *own = out + y * u->columns_w + x;
                if (p->line_panels && columns >= NR) {
                    NAME(seen_kernels)[rows - 1](weight + r * p->k, image, p->offset, own, p->pixels, p->k);
                    continue;
                }
                NAME(seen_kernels)[rows - 1](weight + r * p->k, image, p->offset, block, NR, p->k);
                if (!p->line_panels) NAME(keep_pixels)(p, block, rows, x, out);
                for (int64_t i = 0; p->line_panels && i < rows; i++)
                    NAME(copy)(own + i * p->pixels, block + i * NR, columns);
            }
        }
    }
}

/* How the pixels of a canvas that is read where it lies are cut into panels. */
static void NAME(cut_panels)(NAME(image_product) * p) {
    const NAME(unfolding) *u = &p->unfolding;
    int64_t lines = p->pixels / u->columns_w, line_panels = (u->columns_w + NR - 1) / NR;
    int64_t flat = ((lines - 1) * u->canvas_w + u->columns_w + NR - 1) / NR;
    p->line_panels = u->y_step != 1 || lines * line_panels <= flat ? line_panels : 0;
    p->panels = p->line_panels ? lines * line_panels : flat;
}

/* Whether it is: not where so many columns are between its lines that writing out those of the output takes less. */
static int NAME(is_read_in_place)(const NAME(image_product) * p) {
    enum { WRITTEN_OUT = 7 }; /* rows of a product take the time of a vector that is copied */
    const NAME(unfolding) *u = &p->unfolding;
    if (u->x_step != 1 || NAME(canvas_size)(u) > INT32_MAX) return 0;
    int64_t copies = p->pixels / u->columns_w * ((u->columns_w + VN - 1) / VN), vectors = (p->pixels + VN - 1) / VN;
    return p->panels * NV * p->rows <= vectors * p->rows + copies * WRITTEN_OUT;
}

static void NAME(fill_offsets)(const NAME(unfolding) * u, int32_t *offset) {
    for (int64_t plane = 0; plane < u->planes; plane++)
        for (int64_t kh = 0; kh < u->kh; kh++)
            for (int64_t kw = 0; kw < u->kw; kw++)
                *offset++ = (int32_t)NAME(place)(u, plane, u->kh_first + kh * u->kh_step, u->kw_first + kw * u->kw_step);
}

/* The same from columns that are written out, a panel at a time. */
static void NAME(make_unfolded)(const NAME(image_product) * p, const T *canvas, const T *weight, T *result, int64_t begin,
                                int64_t end, T *panel) {
    for (int64_t first = begin * NR; first < end * NR; first += NR) {
        int64_t columns = p->pixels - first < NR ? p->pixels - first : NR;
        for (int64_t k0 = 0; k0 < p->k; k0 += CYX_BLOCK_K) {
            int64_t k_count = p->k - k0 < CYX_BLOCK_K ? p->k - k0 : CYX_BLOCK_K;
            NAME(unfold)(&p->unfolding, canvas, p->offset, k0, k_count, first, columns, panel, NR);
            for (int64_t r = 0; r < p->rows; r += MR)
                NAME(run_block)(NAME(packed_kernels), p->rows - r < MR ? p->rows - r : MR, columns,
                                weight + r * p->k + k0 * MR, MR, panel, NR, result + r * p->pixels + first, p->pixels,
                                k_count, k0 > 0, NO_ENDING);
        }
    }
}

/* One task: a part of one group of one image. */
static void NAME(image_product_body)(void *context, int64_t begin, int64_t end) {
    NAME(image_product) *p = context;
    const NAME(unfolding) *u = &p->unfolding;
    int64_t size = NAME(canvas_size)(u), padded_rows = (p->rows + MR - 1) / MR * MR, painted = -1;
    T *panel = cyx_scratch(1, sizeof(T) * (size_t)(NR * CYX_BLOCK_K + (p->canvas ? 0 : size) + NAME(SLACK)));
    T *own = panel + NR * CYX_BLOCK_K;
    if (!panel) {
        p->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        int64_t pair = task / p->parts, first = task % p->parts * p->panels_of_part;
        int64_t stop = first + p->panels_of_part < p->panels ? first + p->panels_of_part : p->panels;
        if (!p->canvas && pair != painted) NAME(paint)(u, p->image + pair * u->planes * u->h * u->w, own);
        painted = pair;
        const T *canvas = p->canvas ? p->canvas + pair * size : own;
        const T *weight = p->weight + pair % p->groups * padded_rows * p->k;
        T *out = p->out + pair * p->rows * p->pixels;
        if (p->in_place)
            NAME(make_seen)(p, canvas, weight, out, first, stop);
        else
            NAME(make_unfolded)(p, canvas, weight, out, first, stop, panel);
    }
}

/* Whole images are tasks where there are enough of them; otherwise threads share each, some at a time. `packed` follows the
 * canvases in one piece of memory; fill_weight writes it. */
static cyx_status
NAME(run_image_product)(NAME(image_product) * p, const T *image, int64_t images, const T *weight,
                        void (*fill_weight)(const NAME(image_product) * p, const T *weight, T *packed)) {
    const NAME(unfolding) *u = &p->unfolding;
    if (NAME(fits_lanes)(u, p->rows, p->groups))
        return NAME(run_lanes)(u, image, weight, p->out, images, p->groups, p->pixels / u->columns_w, u->columns_w, 0);
    int64_t pairs = images * p->groups, tasks = IMAGES_PER_THREAD * (int64_t)cyx_threads(), at_once = pairs, canvases = 0;
    int64_t weights = p->groups * ((p->rows + MR - 1) / MR * MR) * p->k;
    int shared = cyx_threads() > 1 && pairs < tasks;
    if (shared) {
        at_once = (NAME(canvases_at_once)(u, pairs) + p->groups - 1) / p->groups * p->groups; /* whole images */
        canvases = at_once * NAME(canvas_size)(u) + NAME(SLACK);
    }
    T *canvas = cyx_scratch(0, sizeof(T) * (size_t)(canvases + weights) + sizeof(int32_t) * (size_t)p->k),
      *packed = canvas + canvases;
    if (!canvas) return CYX_NO_MEMORY;
    fill_weight(p, weight, packed);
    p->weight = packed;
    p->canvas = shared ? canvas : NULL;
    NAME(cut_panels)(p);
    p->in_place = NAME(is_read_in_place)(p);
    if (!p->in_place) p->panels = (p->pixels + NR - 1) / NR;
    if (NAME(canvas_size)(u) <= INT32_MAX) {
        int32_t *offset = (int32_t *)(packed + weights);
        NAME(fill_offsets)(u, offset);
        p->offset = offset;
    }
    int64_t parts = shared ? (tasks + at_once - 1) / at_once : 1, least = p->in_place ? PANELS_AT_ONCE : 1;
    p->panels_of_part = ((p->panels + parts - 1) / parts + least - 1) / least * least;
    p->parts = (p->panels + p->panels_of_part - 1) / p->panels_of_part;
    T *out = p->out;
    for (int64_t first = 0; first < pairs; first += at_once) {
        int64_t count = pairs - first < at_once ? pairs - first : at_once;
        p->image = image + first * u->planes * u->h * u->w;
        p->out = out + first * p->rows * p->pixels;
        if (shared) NAME(paint_all)(u, p->image, canvas, count);
        double work = (double)(p->rows * p->k) * (double)(NR * p->panels_of_part) / 8.0;
        cyx_parallel(count * p->parts, cyx_grain(count * p->parts, work, 100000), NAME(image_product_body), p);
        if (p->no_memory) return CYX_NO_MEMORY;
    }
    return CYX_OK;
}

/* w (O, C / groups, KH, KW) as it lies: rows are output channels. */
static void NAME(fill_weight)(const NAME(image_product) * p, const T *weight, T *packed) {
    int64_t padded_rows = (p->rows + MR - 1) / MR * MR;
    for (int64_t g = 0; g < p->groups; g++)
        for (int64_t r = 0; r < p->rows; r += MR)
            NAME(transpose)(weight + (g * p->rows + r) * p->k, p->k, packed + (g * padded_rows + r) * p->k,
                            MR, p->rows - r < MR ? p->rows - r : MR, p->k);
}

/* The same with the roles turned round: rows are input channels, k runs over (output channel, kh, kw). */
static void NAME(fill_weight_turned)(const NAME(image_product) * p, const T *weight, T *packed) {
    int64_t padded_rows = (p->rows + MR - 1) / MR * MR, area = p->unfolding.kh * p->unfolding.kw;
    for (int64_t group = 0; group < p->groups; group++)
        for (int64_t o = 0; o < p->unfolding.planes; o++)
            for (int64_t c = 0; c < p->rows; c++)
                for (int64_t a = 0; a < area; a++)
                    packed[group * padded_rows * p->k + c / MR * MR * p->k + (o * area + a) * MR + c % MR] =
                        *weight++;
}

/* How a convolution's forward pass, and its weight's gradient, unfold x. ints: stride (2), padding (2),
 * dilation (2), groups */
static NAME(unfolding)
    NAME(unfold_input)(const int64_t *i, const cyx_array *x, const cyx_array *w, const cyx_array *y) {
    NAME(unfolding)
    u = {.planes = w->shape[1],
         .h = x->shape[2],
         .w = x->shape[3],
         .y_spacing = 1,
         .x_spacing = 1,
         .y_parts = 1,
         .x_parts = 1,
         .kh = w->shape[2],
         .kw = w->shape[3],
         .y_step = i[0],
         .x_step = i[1],
         .kh_step = i[4],
         .kw_step = i[5],
         .columns_w = y->shape[3]};
    LAY_OUT(y->shape[2], i[0], u.kh, i[4], -i[2], u.canvas_h, u.kh_first, u.top);
    LAY_OUT(y->shape[3], i[1], u.kw, i[5], -i[3], u.canvas_w, u.kw_first, u.left);
    return u;
}

/* Where the kernel is as large as the image, so that each image meets it once: then images are rows of a matrix. */
static int NAME(is_whole)(const int64_t *i, const cyx_array *x, const cyx_array *w, const cyx_array *y) {
    return i[6] == 1 && y->shape[2] == 1 && y->shape[3] == 1 && !i[2] && !i[3] && w->shape[2] == x->shape[2] &&
           w->shape[3] == x->shape[3] && w->size;
}

/* c (m, n) = a times b, each of them transposed or not. */
static cyx_status NAME(multiply_images)(const T *a, int a_transposed, const T *b, int b_transposed, T *c, int64_t m, int64_t n,
                                        int64_t k) {
    NAME(product) p = {.a = a, .b = b, .c = c, .m = m, .n = n, .k = k, .a_row = a_transposed ? m : k, .b_row = b_transposed ? k : n,
                       .a_transposed = a_transposed, .b_transposed = b_transposed};
    int done = m > 1 && n > 1 ? NAME(multiply_few_columns)(&p) || NAME(multiply_small)(&p) : NAME(multiply_thin)(&p);
    return done ? CYX_OK : NAME(multiply)(&p);
}

static cyx_status NAME(conv2d)(const cyx_call *call) {
    const cyx_array *x = &call->in[0], *w = &call->in[1], *y = &call->out;
    if (!y->size) return CYX_OK;
    if (NAME(is_whole)(call->ints, x, w, y))
        return NAME(multiply_images)(x->data, 0, w->data, 1, y->data, x->shape[0], w->shape[0], x->size / x->shape[0]);
    NAME(image_product)
    p = {.unfolding = NAME(unfold_input)(call->ints, x, w, y),
         .out = y->data,
         .groups = call->ints[6],
         .rows = w->shape[0] / call->ints[6],
         .k = w->shape[1] * w->shape[2] * w->shape[3],
         .pixels = y->shape[2] * y->shape[3]};
    if (!p.k) {
        memset(y->data, 0, sizeof(T) * (size_t)y->size);
        return CYX_OK;
    }
    if (!NAME(fits_lanes)(&p.unfolding, p.rows, p.groups)) NAME(split_canvas)(&p.unfolding);
    return NAME(run_image_product)(&p, x->data, x->shape[0], w->data, NAME(fill_weight));
}

#include "conv2d_phases.inl"

/* A pixel of the input meets the pixels of the output whose window held it: g on a canvas, its pixels
 * `stride` apart. */
static cyx_status NAME(conv2d_grad_input)(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *w = &call->in[1], *x = &call->out;
    const int64_t *i = call->ints;
    if (!x->size) return CYX_OK;
    if (!g->size) {
        memset(x->data, 0, sizeof(T) * (size_t)x->size);
        return CYX_OK;
    }
    if (NAME(is_whole)(i, x, w, g))
        return NAME(multiply_images)(g->data, 0, w->data, 0, x->data, x->shape[0], x->size / x->shape[0], w->shape[0]);
    NAME(unfolding)
    u = {.planes = w->shape[0] / i[6],
         .h = g->shape[2],
         .w = g->shape[3],
         .y_spacing = i[0],
         .x_spacing = i[1],
         .y_parts = 1,
         .x_parts = 1,
         .kh = w->shape[2],
         .kw = w->shape[3],
         .y_step = 1,
         .x_step = 1,
         .kh_step = -i[4],
         .kw_step = -i[5],
         .columns_w = x->shape[3]};
    LAY_OUT(x->shape[2], 1, u.kh, -i[4], i[2], u.canvas_h, u.kh_first, u.top);
    LAY_OUT(x->shape[3], 1, u.kw, -i[5], i[3], u.canvas_w, u.kw_first, u.left);
    if ((i[0] > 1 || i[1] > 1) && !NAME(fits_lanes)(&u, w->shape[1], i[6])) {
        cyx_status status = NAME(run_phases)(call);
        if (status != CYX_NO_KERNEL) return status;
    }
    NAME(image_product)
    p = {.unfolding = u,
         .out = x->data,
         .groups = i[6],
         .rows = w->shape[1],
         .k = u.planes * u.kh * u.kw,
         .pixels = x->shape[2] * x->shape[3]};
    return NAME(run_image_product)(&p, g->data, x->shape[0], w->data, NAME(fill_weight_turned));
}

/* The weight's gradient, transposed: rows are (channel, kh, kw) of the unfolded image as they come, columns are output channels
 * of g turned into panels [pixel][NR]. It is made in blocks of channels by outputs, each by a thread of its own: to read what
 * another core has just written costs more than to paint and pack it twice. */
typedef struct {
    NAME(unfolding) unfolding; /* of a whole group */
    const T *x, *g;
    T *gradient;
    int64_t images, groups, outputs, pixels;
    int64_t rows, columns, row_blocks, column_blocks; /* of a block, but for the last ones; blocks of a group */
    int by_taps;
    _Atomic int no_memory;
} NAME(weight_product);

/* One of those blocks, and the images at work. Sums are kept across them, in the order of the images. */
typedef struct {
    NAME(unfolding) unfolding;
    const T *x, *g; /* of its first plane and column in the first image */
    int64_t x_apart, g_apart; /* from image to image */
    int64_t images, first, k, outputs, pixels, width; /* rows [first, first + k) of those of its planes */
    const int32_t *offset; /* of each row of the unfolded matrix on the canvas; NULL where that is too large */
    T *canvas, *panels, *sums, *unfolded; /* [image][canvas]; [image][panel][pixel][NR]; [k][width]; [4 * MR][CYX_BLOCK_K] */
} NAME(weight_block);

/* Where the kernel is three neighbouring pixels wide: the rows are read where they lie. */
static void NAME(add_taps)(const NAME(weight_block) * b) {
    const NAME(unfolding) *u = &b->unfolding;
    for (int64_t n = 0; n < b->images; n++)
        for (int64_t r = 0; r < b->k; r += 3 * NAME(LINES)) {
            int64_t lines = (b->k - r) / 3 < NAME(LINES) ? (b->k - r) / 3 : NAME(LINES);
            int32_t line[NAME(LINES)];
            for (int64_t i = 0; i < lines; i++) {
                int64_t kh = ((b->first + r) / 3 + i) % u->kh, plane = ((b->first + r) / 3 + i) / u->kh;
                line[i] = (int32_t)((plane * u->canvas_h + u->kh_first + kh * u->kh_step) * u->canvas_w);
            }
            for (int64_t column = 0; column < b->width; column += NR) {
                int64_t vectors = b->outputs - column < NR ? (b->outputs - column + VN - 1) / VN : NV;
                NAME(taps_kernels)[lines - 1][vectors - 1](
                    b->canvas + n * NAME(canvas_size)(u), line, u->y_step * u->canvas_w,
                    b->panels + (n * b->width + column) * b->pixels, b->sums + r * b->width + column, b->width,
                    b->pixels / u->columns_w, u->columns_w);
            }
        }
}

/* Otherwise some rows at a time are written out, for as many pixels as the panels stay near. */
static void NAME(add_unfolded)(const NAME(weight_block) * b) {
    for (int64_t step = 0, count; step < b->images * b->pixels; step += count) {
        int64_t n = step / b->pixels, pixel = step % b->pixels;
        count = b->pixels - pixel < CYX_BLOCK_K ? b->pixels - pixel : CYX_BLOCK_K;
        for (int64_t k0 = 0; k0 < b->k; k0 += 4 * MR) {
            int64_t rows = b->k - k0 < 4 * MR ? b->k - k0 : 4 * MR;
            NAME(unfold)(&b->unfolding, b->canvas + n * NAME(canvas_size)(&b->unfolding), b->offset, b->first + k0, rows, pixel,
                         count, b->unfolded, CYX_BLOCK_K);
            for (int64_t column = 0; column < b->width; column += NR) {
                const T *panel = b->panels + ((n * b->width + column) * b->pixels + pixel * NR);
                int64_t columns = b->outputs - column < NR ? (b->outputs - column + VN - 1) / VN * VN : NR;
                for (int64_t r = 0; r < rows; r += MR)
                    NAME(run_block)(NAME(rows_kernels), rows - r < MR ? rows - r : MR, columns, b->unfolded + r * CYX_BLOCK_K,
                                    CYX_BLOCK_K, panel, NR, b->sums + (k0 + r) * b->width + column, b->width, count, 1, NO_ENDING);
            }
        }
    }
}

/* Images from `first` on: painted, and the panels of their gradient packed. Of columns that are not there nobody reads the
 * sums: what lies in them may stay. */
static void NAME(prepare_images)(const NAME(weight_block) * b, int64_t first) {
    for (int64_t n = 0; n < b->images; n++) {
        NAME(paint)(&b->unfolding, b->x + (first + n) * b->x_apart, b->canvas + n * NAME(canvas_size)(&b->unfolding));
        for (int64_t column = 0; column < b->outputs; column += NR)
            NAME(transpose)(b->g + (first + n) * b->g_apart + column * b->pixels, b->pixels,
                            b->panels + (n * b->width + column) * b->pixels, NR,
                            b->outputs - column < NR ? b->outputs - column : NR, b->pixels);
    }
}

/* to[column * to_row + row], row by row of `from`, and nothing beside it: other threads write there. */
static void NAME(put_turned)(const T *from, int64_t from_row, T *to, int64_t to_row, int64_t rows, int64_t columns) {
    int64_t whole = rows / VN * VN;
    if (whole) NAME(transpose)(from, from_row, to, to_row, whole, columns);
    NAME(transpose_columns)(from + whole * from_row, from_row, to + whole, to_row, rows - whole, 0, columns);
}

/* One task: a block of a group. */
static void NAME(weight_product_body)(void *context, int64_t begin, int64_t end) {
    NAME(weight_product) *p = context;
    const NAME(unfolding) *whole = &p->unfolding;
    int64_t taps = whole->kh * whole->kw, of_plane = whole->h * whole->w, k = whole->planes * taps;
    for (int64_t task = begin; task < end; task++) {
        int64_t block = task % (p->row_blocks * p->column_blocks), group = task / (p->row_blocks * p->column_blocks);
        int64_t row = block / p->column_blocks * p->rows, column = block % p->column_blocks * p->columns;
        int64_t rows = k - row < p->rows ? k - row : p->rows, plane = row / taps;
        NAME(weight_block)
        b = {.unfolding = *whole,
             .x = p->x + (group * whole->planes + plane) * of_plane,
             .g = p->g + (group * p->outputs + column) * p->pixels,
             .x_apart = p->groups * whole->planes * of_plane,
             .g_apart = p->groups * p->outputs * p->pixels,
             .first = row - plane * taps,
             .k = rows,
             .outputs = p->outputs - column < p->columns ? p->outputs - column : p->columns,
             .pixels = p->pixels};
        b.unfolding.planes = (row + rows + taps - 1) / taps - plane, b.width = (b.outputs + NR - 1) / NR * NR;
        int64_t of_canvas = NAME(canvas_size)(&b.unfolding), of_panels = b.width * b.pixels;
        int64_t fit = CANVAS_BYTES / ((int64_t)sizeof(T) * (of_canvas + of_panels)), at_once = fit < 1 ? 1 : fit;
        if (at_once > p->images) at_once = p->images;
        int64_t canvases = at_once * of_canvas, panels = at_once * of_panels, unfolded = 4 * MR * CYX_BLOCK_K + NAME(SLACK);
        int64_t before = b.k * b.width + panels + unfolded + canvases + NAME(SLACK);
        b.sums = cyx_scratch(1, sizeof(T) * (size_t)before + sizeof(int32_t) * (size_t)(b.unfolding.planes * taps));
        if (!b.sums) {
            p->no_memory = 1;
            return;
        }
        /* The canvas comes last: of the others each begins with a line of the cache. */
        b.panels = b.sums + b.k * b.width, b.unfolded = b.panels + panels, b.canvas = b.unfolded + unfolded;
        if (!p->by_taps && of_canvas <= INT32_MAX) {
            NAME(fill_offsets)(&b.unfolding, (int32_t *)(b.sums + before));
            b.offset = (const int32_t *)(b.sums + before);
        }
        memset(b.sums, 0, sizeof(T) * (size_t)(b.k * b.width));
        for (int64_t first = 0; first < p->images; first += b.images) {
            b.images = p->images - first < at_once ? p->images - first : at_once;
            NAME(prepare_images)(&b, first);
            if (p->by_taps)
                NAME(add_taps)(&b);
            else
                NAME(add_unfolded)(&b);
        }
        NAME(put_turned)(b.sums, b.width, p->gradient + (group * p->outputs + column) * k + row, k, rows, b.outputs);
    }
}

/* Cuts rows and outputs so that the threads are through soonest. For each pixel a block takes the time of its products, of
 * PER_CHANNEL of them for each plane that it paints and each output that it packs, and of some for each row that it writes out.
 * Returns how many blocks a thread takes at once. */
static int64_t NAME(cut_weight)(NAME(weight_product) * p) {
    enum { PER_CHANNEL = 16, PER_ROW = 4, PER_ROW_APART = 16, LEAST_WORK = 100000 };
    int64_t taps = p->unfolding.kh * p->unfolding.kw, k = p->unfolding.planes * taps, least = INT64_MAX;
    double work = (double)(p->groups * k * p->outputs) * (double)(p->images * p->pixels) / 8.0 / LEAST_WORK;
    int64_t threads = work < 1 ? 1 : work < cyx_threads() ? (int64_t)work : cyx_threads();
    int64_t height = p->by_taps ? 3 * NAME(LINES) : MR, heights = (k + height - 1) / height, vectors = (p->outputs + VN - 1) / VN;
    int64_t per_row = p->by_taps ? 0 : p->unfolding.x_step == 1 ? PER_ROW : PER_ROW_APART;
    for (int64_t m = 1; m <= heights && m <= 2 * threads; m++)
        for (int64_t n = 1; n <= vectors && n <= 2 * threads; n++) {
            int64_t rows = (heights + m - 1) / m * height, columns = (vectors + n - 1) / n * VN;
            int64_t turns = (p->groups * m * n + threads - 1) / threads;
            int64_t cost = turns * (rows * (columns + per_row) + PER_CHANNEL * ((rows + taps - 1) / taps + columns));
            if (cost >= least) continue;
            least = cost;
            p->rows = rows, p->row_blocks = (k + rows - 1) / rows;
            p->columns = columns, p->column_blocks = (p->outputs + columns - 1) / columns;
        }
    int64_t blocks = p->groups * p->row_blocks * p->column_blocks;
    return threads == 1 ? blocks : cyx_grain(blocks, work * LEAST_WORK / (double)blocks, LEAST_WORK);
}

static cyx_status NAME(conv2d_grad_weight)(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *x = &call->in[1], *w = &call->out;
    if (!w->size) return CYX_OK;
    if (!g->size || !x->size) {
        memset(w->data, 0, sizeof(T) * (size_t)w->size);
        return CYX_OK;
    }
    if (NAME(is_whole)(call->ints, x, w, g))
        return NAME(multiply_images)(g->data, 1, x->data, 0, w->data, w->shape[0], x->size / x->shape[0], x->shape[0]);
    NAME(weight_product)
    p = {.unfolding = NAME(unfold_input)(call->ints, x, w, g),
         .x = x->data,
         .g = g->data,
         .gradient = w->data,
         .images = x->shape[0],
         .groups = call->ints[6],
         .outputs = w->shape[0] / call->ints[6],
         .pixels = g->shape[2] * g->shape[3]};
    const NAME(unfolding) *u = &p.unfolding;
    if (NAME(fits_lanes)(u, p.outputs, p.groups))
        return NAME(run_lanes)(u, p.x, p.g, p.gradient, p.images, p.groups, g->shape[2], g->shape[3], 1);
    p.by_taps = u->kw == 3 && u->kw_step == 1 && u->x_step == 1 && NAME(canvas_size)(u) <= INT32_MAX;
    if (!p.by_taps) NAME(split_canvas)(&p.unfolding);
    int64_t grain = NAME(cut_weight)(&p);
    cyx_parallel(p.groups * p.row_blocks * p.column_blocks, grain, NAME(weight_product_body), &p);
    return p.no_memory ? CYX_NO_MEMORY : CYX_OK;
}

static void NAME(fill_conv2d)(cyx_table table) {
    table[CYX_OP_conv2d][DTYPE] = NAME(conv2d),
    table[CYX_OP_conv2d_grad_input][DTYPE] = NAME(conv2d_grad_input);
    table[CYX_OP_conv2d_grad_weight][DTYPE] = NAME(conv2d_grad_weight);
}
