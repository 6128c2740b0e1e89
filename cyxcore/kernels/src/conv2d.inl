/* Convolution as matmul without writing the unfolded image: its columns are made a panel at a time, in the panel's
 * layout, and used at once. Every output is the chain of fused multiply-adds of the plain definition, zeros of the padding
 * included: over (channel, kh, kw) forward, (output channel, kh, kw) for the input, (image, oh, ow) for the weight. */

/* Which pixel of `image` (sources, h, w) stands at row (source, kh, kw), column (y, x) of the unfolded matrix:
 * (y * y_step + y_origin + kh * kh_step) / divisor, where that is whole and inside. */
typedef struct {
    int64_t h, w, kh, kw, columns_w; /* columns_w: x runs over [0, columns_w) */
    int64_t y_step, x_step, y_origin, x_origin, kh_step, kw_step, y_divisor, x_divisor;
} NAME(unfolding);

/* `count` neighbours of one row of the unfolded matrix, all of one y, from column x on. */
static inline void NAME(unfold_run)(const NAME(unfolding) * u, const T *row, int64_t kw, int64_t x, int64_t count, T *to) {
    int64_t at = x * u->x_step + u->x_origin + kw * u->kw_step;
    if (u->x_step == 1 && u->x_divisor == 1) {
        int64_t before = at < 0 ? (-at < count ? -at : count) : 0;
        int64_t inside = u->w - at < count ? u->w - at : count;
        if (inside < before) inside = before;
        for (int64_t i = 0; i < before; i++) to[i] = 0;
        for (int64_t i = before; i < inside; i++) to[i] = row[at + i];
        for (int64_t i = inside; i < count; i++) to[i] = 0;
        return;
    }
    for (int64_t i = 0; i < count; i++, at += u->x_step) {
        int64_t from = u->x_divisor == 1 ? at : at % u->x_divisor ? -1 : at / u->x_divisor;
        to[i] = from >= 0 && from < u->w ? row[from] : 0;
    }
}

/* Columns [first, first + columns) of rows [k0, k0 + k_count): row k at to + (k - k0) * to_row. */
static void NAME(unfold)(const NAME(unfolding) * u, const T *image, int64_t k0, int64_t k_count, int64_t first,
                         int64_t columns, T *to, int64_t to_row) {
    int64_t kw = k0 % u->kw, kh = k0 / u->kw % u->kh, source = k0 / u->kw / u->kh;
    int64_t first_y = first / u->columns_w, first_x = first % u->columns_w;
    for (int64_t k = 0; k < k_count; k++, to += to_row) {
        const T *plane = image + source * u->h * u->w;
        int64_t y = first_y, x = first_x;
        for (int64_t done = 0; done < columns; y++, x = 0) {
            int64_t run = u->columns_w - x < columns - done ? u->columns_w - x : columns - done;
            int64_t at = y * u->y_step + u->y_origin + kh * u->kh_step;
            int64_t row = u->y_divisor == 1 ? at : at % u->y_divisor ? -1 : at / u->y_divisor;
            if (row >= 0 && row < u->h) NAME(unfold_run)(u, plane + row * u->w, kw, x, run, to + done);
            else memset(to + done, 0, sizeof(T) * (size_t)run);
            done += run;
        }
        if (++kw == u->kw) {
            kw = 0;
            if (++kh == u->kh) kh = 0, source++;
        }
    }
}

/* out[n, g * rows + r, pixel] = sum over k of weight[g][r, k] * unfolded(image[n, g])[k, pixel] */
typedef struct {
    NAME(unfolding) unfolding;
    const T *image;
    T *out;
    const T *weight; /* packed: [group][rows / MR][k][MR] */
    int64_t groups, rows, k, sources, pixels, panels;
    _Atomic int no_memory;
} NAME(image_product);

/* One task: one panel of NR pixels of one group of one image. */
static void NAME(image_product_body)(void *context, int64_t begin, int64_t end) {
    NAME(image_product) *p = context;
    int64_t padded_rows = (p->rows + MR - 1) / MR * MR;
    T *panel = cyx_scratch(1, sizeof(T) * NR * BLOCK_K);
    if (!panel) {
        p->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        int64_t first = task % p->panels * NR, group = task / p->panels % p->groups;
        int64_t columns = p->pixels - first < NR ? p->pixels - first : NR;
        const T *image = p->image + task / p->panels * p->sources * p->unfolding.h * p->unfolding.w;
        const T *weight = p->weight + group * padded_rows * p->k;
        T *out = p->out + task / p->panels * p->rows * p->pixels + first;
        for (int64_t k0 = 0; k0 < p->k; k0 += BLOCK_K) {
            int64_t k_count = p->k - k0 < BLOCK_K ? p->k - k0 : BLOCK_K;
            if (columns % VN) memset(panel, 0, sizeof(T) * (size_t)(NR * k_count));
            NAME(unfold)(&p->unfolding, image, k0, k_count, first, columns, panel, NR);
            for (int64_t r = 0; r < p->rows; r += MR)
                NAME(run_block)(NAME(packed_kernels), p->rows - r < MR ? p->rows - r : MR, columns, weight + r * p->k + k0 * MR,
                                MR, panel, NR, out + r * p->pixels, p->pixels, k_count, k0 > 0);
        }
    }
}

static cyx_status NAME(run_image_product)(NAME(image_product) * p, int64_t images) {
    p->panels = (p->pixels + NR - 1) / NR;
    int64_t tasks = images * p->groups * p->panels;
    if (!p->k) memset(p->out, 0, sizeof(T) * (size_t)(images * p->groups * p->rows * p->pixels));
    else if (p->rows) cyx_parallel(tasks, cyx_grain(tasks, (double)(p->rows * p->k * NR) / 8.0, 100000), NAME(image_product_body), p);
    return p->no_memory ? CYX_NO_MEMORY : CYX_OK;
}

/* ints: stride (2), padding (2), dilation (2), groups */
static cyx_status NAME(conv2d)(const cyx_call *call) {
    const cyx_array *x = &call->in[0], *w = &call->in[1], *y = &call->out;
    const int64_t *i = call->ints;
    if (!y->size) return CYX_OK;
    NAME(image_product) p = {
        .unfolding = {.h = x->shape[2], .w = x->shape[3], .kh = w->shape[2], .kw = w->shape[3], .columns_w = y->shape[3],
                      .y_step = i[0], .x_step = i[1], .y_origin = -i[2], .x_origin = -i[3], .kh_step = i[4], .kw_step = i[5],
                      .y_divisor = 1, .x_divisor = 1},
        .image = x->data, .out = y->data, .groups = i[6], .rows = w->shape[0] / i[6], .sources = w->shape[1],
        .k = w->shape[1] * w->shape[2] * w->shape[3], .pixels = y->shape[2] * y->shape[3]};
    int64_t padded_rows = (p.rows + MR - 1) / MR * MR;
    T *packed = cyx_scratch(0, sizeof(T) * (size_t)(p.groups * padded_rows * p.k));
    if (!packed) return CYX_NO_MEMORY;
    for (int64_t g = 0; g < p.groups; g++)
        for (int64_t r = 0; r < p.rows; r += MR)
            NAME(transpose)((const T *)w->data + (g * p.rows + r) * p.k, p.k, packed + (g * padded_rows + r) * p.k, MR,
                            p.rows - r < MR ? p.rows - r : MR, p.k);
    p.weight = packed;
    return NAME(run_image_product)(&p, x->shape[0]);
}

/* The same product with the roles turned round: rows are input channels, k runs over (output channel, kh, kw), and a
 * pixel of the input meets the pixels of the output whose window held it. */
static cyx_status NAME(conv2d_grad_input)(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *w = &call->in[1], *x = &call->out;
    const int64_t *i = call->ints;
    if (!x->size) return CYX_OK;
    int64_t area = w->shape[2] * w->shape[3], outputs = w->shape[0] / i[6];
    NAME(image_product) p = {
        .unfolding = {.h = g->shape[2], .w = g->shape[3], .kh = w->shape[2], .kw = w->shape[3], .columns_w = x->shape[3],
                      .y_step = 1, .x_step = 1, .y_origin = i[2], .x_origin = i[3], .kh_step = -i[4], .kw_step = -i[5],
                      .y_divisor = i[0], .x_divisor = i[1]},
        .image = g->data, .out = x->data, .groups = i[6], .rows = w->shape[1], .sources = outputs, .k = outputs * area,
        .pixels = x->shape[2] * x->shape[3]};
    int64_t padded_rows = (p.rows + MR - 1) / MR * MR;
    T *packed = cyx_scratch(0, sizeof(T) * (size_t)(p.groups * padded_rows * p.k + 1));
    if (!packed) return CYX_NO_MEMORY;
    const T *from = w->data;
    for (int64_t group = 0; group < p.groups; group++)
        for (int64_t o = 0; o < outputs; o++)
            for (int64_t c = 0; c < p.rows; c++)
                for (int64_t a = 0; a < area; a++)
                    packed[group * padded_rows * p.k + c / MR * MR * p.k + (o * area + a) * MR + c % MR] = *from++;
    p.weight = packed;
    return NAME(run_image_product)(&p, x->shape[0]);
}

/* The weight's gradient, transposed: rows are (channel, kh, kw) of the unfolded image as they come, columns are output
 * channels of g turned into panels [pixel][NR]. */
typedef struct {
    NAME(unfolding) unfolding;
    const T *x, *g;
    T *out, *panels; /* of one group: [image][channel panel][pixel][NR] */
    int64_t images, groups, group, channels, k, outputs, pixels, output_panels, rows_per_task;
    _Atomic int no_memory;
} NAME(weight_product);

static void NAME(pack_gradient_body)(void *context, int64_t begin, int64_t end) {
    NAME(weight_product) *p = context;
    for (int64_t task = begin; task < end; task++) {
        int64_t first = task % p->output_panels * NR, count = p->outputs - first < NR ? p->outputs - first : NR;
        int64_t channel = (task / p->output_panels * p->groups + p->group) * p->outputs + first;
        NAME(pack_panel)(p->g + channel * p->pixels, p->pixels, 1, p->panels + task * p->pixels * NR, p->pixels, count);
    }
}

/* One task: rows_per_task rows by all output channels, over every image and pixel in order. */
static void NAME(weight_product_body)(void *context, int64_t begin, int64_t end) {
    NAME(weight_product) *p = context;
    int64_t width = p->output_panels * NR;
    T *unfolded = cyx_scratch(1, sizeof(T) * (size_t)(p->rows_per_task * (BLOCK_K + width)));
    if (!unfolded) {
        p->no_memory = 1;
        return;
    }
    T *sums = unfolded + p->rows_per_task * BLOCK_K;
    for (int64_t task = begin; task < end; task++) {
        int64_t k0 = task * p->rows_per_task, rows = p->k - k0 < p->rows_per_task ? p->k - k0 : p->rows_per_task;
        memset(sums, 0, sizeof(T) * (size_t)(rows * width));
        for (int64_t n = 0; n < p->images; n++) {
            const T *image = p->x + (n * p->groups + p->group) * p->channels * p->unfolding.h * p->unfolding.w;
            for (int64_t pixel = 0; pixel < p->pixels; pixel += BLOCK_K) {
                int64_t count = p->pixels - pixel < BLOCK_K ? p->pixels - pixel : BLOCK_K;
                NAME(unfold)(&p->unfolding, image, k0, rows, pixel, count, unfolded, BLOCK_K);
                for (int64_t column = 0; column < p->output_panels; column++) {
                    const T *panel = p->panels + ((n * p->output_panels + column) * p->pixels + pixel) * NR;
                    int64_t columns = p->outputs - column * NR < NR ? (p->outputs - column * NR + VN - 1) / VN * VN : NR;
                    for (int64_t r = 0; r < rows; r += MR)
                        NAME(run_block)(NAME(rows_kernels), rows - r < MR ? rows - r : MR, columns, unfolded + r * BLOCK_K, BLOCK_K,
                                        panel, NR, sums + r * width + column * NR, width, count, 1);
                }
            }
        }
        NAME(transpose)(sums, width, p->out + p->group * p->outputs * p->k + k0, p->k, rows, p->outputs);
    }
}

static cyx_status NAME(conv2d_grad_weight)(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *x = &call->in[1], *w = &call->out;
    const int64_t *i = call->ints;
    if (!w->size) return CYX_OK;
    NAME(weight_product) p = {
        .unfolding = {.h = x->shape[2], .w = x->shape[3], .kh = w->shape[2], .kw = w->shape[3], .columns_w = g->shape[3],
                      .y_step = i[0], .x_step = i[1], .y_origin = -i[2], .x_origin = -i[3], .kh_step = i[4], .kw_step = i[5],
                      .y_divisor = 1, .x_divisor = 1},
        .x = x->data, .g = g->data, .out = w->data, .images = x->shape[0], .groups = i[6], .channels = w->shape[1],
        .k = w->shape[1] * w->shape[2] * w->shape[3], .outputs = w->shape[0] / i[6], .pixels = g->shape[2] * g->shape[3]};
    p.output_panels = (p.outputs + NR - 1) / NR;
    if (!g->size || !x->size) {
        memset(w->data, 0, sizeof(T) * (size_t)w->size);
        return CYX_OK;
    }
    int64_t tasks = p.images * p.output_panels;
    p.panels = cyx_scratch(0, sizeof(T) * (size_t)(tasks * p.pixels * NR));
    if (!p.panels) return CYX_NO_MEMORY;
    int64_t share = (p.k + 2 * cyx_threads() - 1) / (2 * cyx_threads());
    p.rows_per_task = share < 4 * MR ? share : 4 * MR;
    for (p.group = 0; p.group < p.groups && !p.no_memory; p.group++) {
        cyx_parallel(tasks, cyx_grain(tasks, (double)(p.pixels * NR), 100000), NAME(pack_gradient_body), &p);
        int64_t blocks = (p.k + p.rows_per_task - 1) / p.rows_per_task;
        double work = (double)(p.rows_per_task * p.outputs) * (double)(p.images * p.pixels) / 8.0;
        cyx_parallel(blocks, cyx_grain(blocks, work, 100000), NAME(weight_product_body), &p);
    }
    return p.no_memory ? CYX_NO_MEMORY : CYX_OK;
}

static void NAME(fill_conv2d)(cyx_table table) {
    table[CYX_OP_conv2d][DTYPE] = NAME(conv2d), table[CYX_OP_conv2d_grad_input][DTYPE] = NAME(conv2d_grad_input);
    table[CYX_OP_conv2d_grad_weight][DTYPE] = NAME(conv2d_grad_weight);
}
