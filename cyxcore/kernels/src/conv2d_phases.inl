/* The input's gradient where windows are several pixels apart, which also is a transposed convolution: the pixels of one phase, those
 * `stride` apart, meet the same taps of the kernel, and no others. So each phase is a product of its own, with these taps alone, of a
 * canvas without zeros between its pixels; the phases are then laid between each other. Every chain is that of the plain definition
 * without the zeros. */

#ifndef PHASES_ONCE
#define PHASES_ONCE
enum { PHASES_BYTES = 1 << 17 /* of the phases at work */, WHOLE_BYTES = 1 << 18 /* of those of all channels */ };
#endif

typedef struct {
    int64_t k;       /* taps, of all planes */
    T *weight;       /* packed: [group][rows / MR][k][MR] */
    int32_t *offset; /* of each row of the unfolded matrix on the canvas */
} NAME(phase);

typedef struct {
    NAME(image_product) product; /* what all phases have in common; columns_w, and height, are those of each: some of the last lie
                                    behind the image */
    NAME(phase) *phases; /* [stride][stride] */
    int64_t stride[2], padding[2], dilation[2], height, out_h, out_w;
    int64_t lines, line_blocks, row_blocks; /* of a phase: in a task; tasks of an image and group */
} NAME(phased);

/* Whether the first pixel of a phase, along one axis, meets a tap, and at which pixel of g. */
static inline int NAME(meets)(const NAME(phased) * p, int axis, int64_t phase, int64_t tap, int64_t *pixel) {
    int64_t at = phase + p->padding[axis] - tap * p->dilation[axis];
    *pixel = at / p->stride[axis];
    return at % p->stride[axis] == 0;
}

/* Along one axis: where g's first pixel lies on the canvas, and how long that is, so that every phase of `size` finds what it
 * reads. */
static void NAME(fit_canvas)(const NAME(phased) * p, int axis, int64_t taps, int64_t size, int64_t *start, int64_t *length) {
    int64_t first = INT64_MAX, last = INT64_MIN, pixel;
    for (int64_t phase = 0; phase < p->stride[axis]; phase++)
        for (int64_t tap = 0; tap < taps; tap++)
            if (NAME(meets)(p, axis, phase, tap, &pixel))
                first = pixel < first ? pixel : first, last = pixel > last ? pixel : last;
    *start = -first, *length = last - first + size;
}

/* The taps of a phase, in the order of the kernel. weight: (O, C / groups, KH, KW). */
static void NAME(fill_phase)(const NAME(phased) * p, int64_t y, int64_t x, const T *weight) {
    const NAME(unfolding) *u = &p->product.unfolding;
    NAME(phase) *phase = &p->phases[y * p->stride[1] + x];
    int64_t rows = p->product.rows, area = u->kh * u->kw, k = 0, pixel_y, pixel_x;
    for (int64_t plane = 0; plane < u->planes; plane++)
        for (int64_t tap = 0; tap < area; tap++) {
            if (!NAME(meets)(p, 0, y, tap / u->kw, &pixel_y) || !NAME(meets)(p, 1, x, tap % u->kw, &pixel_x)) continue;
            phase->offset[k] = (int32_t)((plane * u->canvas_h + u->top + pixel_y) * u->canvas_w + u->left + pixel_x);
            for (int64_t g = 0; g < p->product.groups; g++)
                for (int64_t c = 0; c < rows; c++)
                    phase->weight[((g * p->row_blocks + c / MR) * phase->k + k) * MR + c % MR] =
                        weight[((g * u->planes + plane) * rows + c) * area + tap];
            k++;
        }
}

/* One line out of those of its phases, which lie `apart` from each other. */
static void NAME(lay_between)(const T *from, int64_t apart, int64_t step, T *to, int64_t n) {
    const T *second = from + apart;
    if (step == 1)
        memcpy(to, from, sizeof(T) * (size_t)n);
    else if (step == 2) {
        INDEPENDENT for (int64_t i = 0; i < n / 2; i++) to[2 * i] = from[i], to[2 * i + 1] = second[i];
        if (n % 2) to[n - 1] = from[n / 2];
    } else
        for (int64_t x = 0; x < step; x++, from += apart)
            for (int64_t i = 0; x + i * step < n; i++) to[x + i * step] = from[i];
}

/* Channels from `channel` on, and their lines that come of the phases' lines from `first` on. */
static void NAME(lay_lines)(const NAME(phased) * p, const T *made, int64_t apart, int64_t channels, int64_t channel, int64_t first,
                            int64_t lines) {
    int64_t width = p->product.unfolding.columns_w, step = p->stride[0];
    for (int64_t r = 0; r < channels; r++)
        for (int64_t y = first * step; y < (first + lines) * step && y < p->out_h; y++)
            NAME(lay_between)(made + y % step * p->stride[1] * apart + (r * lines + y / step - first) * width, apart, p->stride[1],
                              p->product.out + ((channel + r) * p->out_h + y) * p->out_w, p->out_w);
}

/* One task: some channels and lines of one group of one image, in all phases. */
static void NAME(phases_body)(void *context, int64_t begin, int64_t end) {
    NAME(phased) *p = context;
    const NAME(unfolding) *u = &p->product.unfolding;
    int64_t count = p->stride[0] * p->stride[1], size = NAME(canvas_size)(u) + NAME(SLACK), pixels = p->lines * u->columns_w;
    int64_t apart = MR * pixels, painted = -1;
    T *canvas = cyx_scratch(1, sizeof(T) * (size_t)(size + count * apart)), *made = canvas + size;
    if (!canvas) {
        p->product.no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        int64_t block = task % p->row_blocks, first = task / p->row_blocks % p->line_blocks * p->lines;
        int64_t pair = task / p->row_blocks / p->line_blocks, channel = pair * p->product.rows + block * MR;
        int64_t lines = p->height - first < p->lines ? p->height - first : p->lines;
        NAME(image_product) part = p->product;
        part.rows = part.rows - block * MR < MR ? part.rows - block * MR : MR, part.pixels = lines * u->columns_w;
        NAME(cut_panels)(&part);
        if (pair != painted) NAME(paint)(u, p->product.image + pair * u->planes * u->h * u->w, canvas);
        painted = pair;
        for (int64_t i = 0; i < count; i++) {
            const NAME(phase) *phase = &p->phases[i];
            part.k = phase->k, part.offset = phase->offset;
            if (!phase->k) memset(made + i * apart, 0, sizeof(T) * (size_t)(part.rows * part.pixels));
            else
                NAME(make_seen)(&part, canvas + first * u->canvas_w,
                                phase->weight + (pair % part.groups * p->row_blocks + block) * MR * phase->k, made + i * apart, 0,
                                part.panels);
        }
        NAME(lay_lines)(p, made, apart, part.rows, channel, first, lines);
    }
}

/* One task where columns are written out: all channels and lines of one group of one image, so that this is done once. */
static void NAME(whole_phases_body)(void *context, int64_t begin, int64_t end) {
    NAME(phased) *p = context;
    NAME(image_product) part = p->product;
    int64_t count = p->stride[0] * p->stride[1], size = NAME(canvas_size)(&part.unfolding) + NAME(SLACK);
    int64_t apart = part.rows * part.pixels, unfolded = NR * CYX_BLOCK_K + NAME(SLACK);
    T *panel = cyx_scratch(1, sizeof(T) * (size_t)(unfolded + size + count * apart)), *canvas = panel + unfolded, *made = canvas + size;
    if (!panel) {
        p->product.no_memory = 1;
        return;
    }
    for (int64_t pair = begin; pair < end; pair++) {
        NAME(paint)(&part.unfolding, part.image + pair * part.unfolding.planes * part.unfolding.h * part.unfolding.w, canvas);
        for (int64_t i = 0; i < count; i++) {
            const NAME(phase) *phase = &p->phases[i];
            part.k = phase->k, part.offset = phase->offset;
            if (!phase->k) memset(made + i * apart, 0, sizeof(T) * (size_t)apart);
            NAME(make_unfolded)(&part, canvas, phase->weight + pair % part.groups * p->row_blocks * MR * phase->k, made + i * apart, 0,
                                (part.pixels + NR - 1) / NR, panel);
        }
        NAME(lay_lines)(p, made, apart, part.rows, pair * part.rows, 0, p->height);
    }
}

/* ints: stride (2), padding (2), dilation (2), groups. CYX_NO_KERNEL: of a canvas that is too large for offsets. */
static cyx_status NAME(run_phases)(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *w = &call->in[1], *x = &call->out;
    const int64_t *i = call->ints;
    int64_t groups = i[6], rows = w->shape[1], area = w->shape[2] * w->shape[3], width = (x->shape[3] + i[1] - 1) / i[1];
    NAME(phased) p = {.stride = {i[0], i[1]}, .padding = {i[2], i[3]}, .dilation = {i[4], i[5]},
                      .height = (x->shape[2] + i[0] - 1) / i[0], .out_h = x->shape[2], .out_w = x->shape[3],
                      .row_blocks = (rows + MR - 1) / MR,
                      .product = {.image = g->data, .out = x->data, .groups = groups, .rows = rows}};
    NAME(unfolding) *u = &p.product.unfolding;
    *u = (NAME(unfolding)){.planes = w->shape[0] / groups, .h = g->shape[2], .w = g->shape[3], .y_spacing = 1, .x_spacing = 1,
                           .y_parts = 1, .x_parts = 1, .kh = w->shape[2], .kw = w->shape[3], .y_step = 1, .x_step = 1, .columns_w = width};
    NAME(fit_canvas)(&p, 0, u->kh, p.height, &u->top, &u->canvas_h);
    NAME(fit_canvas)(&p, 1, u->kw, width, &u->left, &u->canvas_w);
    if (NAME(canvas_size)(u) > INT32_MAX) return CYX_NO_KERNEL;
    int64_t count = i[0] * i[1], k = u->planes * area, weights = (groups * p.row_blocks * MR * k + 7) / 8 * 8;
    T *packed = cyx_scratch(0, sizeof(T) * (size_t)weights + sizeof(int32_t) * (size_t)k + sizeof(NAME(phase)) * (size_t)count);
    if (!packed) return CYX_NO_MEMORY;
    p.phases = (NAME(phase) *)(packed + weights);
    int32_t *offset = (int32_t *)(p.phases + count);
    for (int64_t at = 0; at < count; at++) {
        int64_t of_y = 0, of_x = 0, pixel;
        for (int64_t tap = 0; tap < u->kh; tap++) of_y += NAME(meets)(&p, 0, at / i[1], tap, &pixel);
        for (int64_t tap = 0; tap < u->kw; tap++) of_x += NAME(meets)(&p, 1, at % i[1], tap, &pixel);
        p.phases[at] = (NAME(phase)){.k = u->planes * of_y * of_x, .weight = packed, .offset = offset};
        packed += groups * p.row_blocks * MR * p.phases[at].k, offset += p.phases[at].k;
        NAME(fill_phase)(&p, at / i[1], at % i[1], w->data);
    }
    int64_t pairs = x->shape[0] * groups, least = IMAGES_PER_THREAD * (int64_t)cyx_threads();
    p.product.pixels = p.height * width;
    NAME(cut_panels)(&p.product);
    int is_small = (int64_t)sizeof(T) * count * rows * p.product.pixels <= WHOLE_BYTES && (cyx_threads() == 1 || pairs >= least);
    if (is_small && !NAME(is_read_in_place)(&p.product)) {
        cyx_parallel(pairs, cyx_grain(pairs, (double)(rows * k) * (double)p.product.pixels / 8.0, 100000), NAME(whole_phases_body), &p);
        return p.product.no_memory ? CYX_NO_MEMORY : CYX_OK;
    }
    int64_t of_line = (int64_t)sizeof(T) * MR * count * width;
    p.lines = PHASES_BYTES / of_line < 1 ? 1 : PHASES_BYTES / of_line < p.height ? PHASES_BYTES / of_line : p.height;
    while (cyx_threads() > 1 && p.lines > 1 && pairs * p.row_blocks * ((p.height + p.lines - 1) / p.lines) < least)
        p.lines = (p.lines + 1) / 2;
    p.line_blocks = (p.height + p.lines - 1) / p.lines;
    int64_t tasks = pairs * p.row_blocks * p.line_blocks;
    double work = (double)(MR * k) * (double)(p.lines * width) / 8.0;
    cyx_parallel(tasks, cyx_grain(tasks, work, 100000), NAME(phases_body), &p);
    return p.product.no_memory ? CYX_NO_MEMORY : CYX_OK;
}
