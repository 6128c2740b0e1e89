/* Depth-wise convolutions: groups of one channel on either side. VN channels lie in the lanes of a vector, [pixel][VN], turned as
 * they are read and written. Every output, and every sum of the weight's gradient, is the chain of fused multiply-adds of the
 * plain definition, as in conv2d.inl. */

#ifndef LANES_ONCE
#define LANES_ONCE
enum {
    PIXELS_AT_ONCE = 8, /* outputs, whose chains run beside each other */
    TAPS_AT_ONCE = 9,   /* sums of the weight's gradient, which do so there */
    LANES_BYTES = 1 << 18 /* of the canvas at work */
};
#endif

typedef struct {
    NAME(unfolding) unfolding; /* of one channel */
    const T *image; /* [image][channel][h][w] */
    const T *given; /* the weight, [channel][tap]; or the gradient of the output, [image][channel][pixel] */
    T *out;         /* [image][channel][pixel]; or the gradient of the weight */
    int64_t images, channels, out_h, out_w;
    int64_t blocks, lines; /* of VN channels; lines of outputs at once */
    _Atomic int no_memory;
} NAME(lanes);

/* What a thread works in, in one piece of memory. */
typedef struct {
    T *canvas, *pixels, *taps; /* lines of the canvas; of outputs; [tap][VN] */
    int64_t *offset;           /* of each tap on the canvas */
    int64_t count, rounded;    /* taps, and to whole TAPS_AT_ONCE */
    int64_t channel, channels; /* of a block: its first channel, and how many there are */
} NAME(lanes_block);

static inline int64_t NAME(lines_of_canvas)(const NAME(lanes) * p, int64_t lines) { /* that so many of outputs read */
    return p->unfolding.canvas_h - (p->out_h - lines) * p->unfolding.y_step;
}

static int NAME(begin_lanes)(NAME(lanes) * p, NAME(lanes_block) * b) {
    const NAME(unfolding) *u = &p->unfolding;
    b->count = u->kh * u->kw;
    int64_t taps = b->rounded = (b->count + TAPS_AT_ONCE - 1) / TAPS_AT_ONCE * TAPS_AT_ONCE;
    int64_t of_canvas = (NAME(lines_of_canvas)(p, p->lines) * u->canvas_w + PIXELS_AT_ONCE * u->x_step) * VN;
    int64_t of_pixels = (p->lines * p->out_w + PIXELS_AT_ONCE) * VN;
    b->canvas = cyx_scratch(1, sizeof(T) * (size_t)(of_canvas + of_pixels + taps * VN) + sizeof(int64_t) * (size_t)taps);
    if (!b->canvas) {
        p->no_memory = 1;
        return 0;
    }
    b->pixels = b->canvas + of_canvas, b->taps = b->pixels + of_pixels, b->offset = (int64_t *)(b->taps + taps * VN);
    for (int64_t i = 0; i < taps; i++) { /* those behind the last one are made like it, and left */
        int64_t tap = i < b->count ? i : b->count - 1;
        b->offset[i] = ((u->kh_first + tap / u->kw * u->kh_step) * u->canvas_w + u->kw_first + tap % u->kw * u->kw_step) * VN;
    }
    return 1;
}

static void NAME(choose_block)(const NAME(lanes) * p, NAME(lanes_block) * b, int64_t block) {
    b->channel = block * VN;
    b->channels = p->channels - b->channel < VN ? p->channels - b->channel : VN;
}

/* What `lines` lines of outputs from `first` on read of image n. */
static void NAME(paint_lanes)(const NAME(lanes) * p, const NAME(lanes_block) * b, int64_t n, int64_t first, int64_t lines) {
    const NAME(unfolding) *u = &p->unfolding;
    const T *image = p->image + (n * p->channels + b->channel) * u->h * u->w;
    int64_t begin = first * u->y_step, end = begin + NAME(lines_of_canvas)(p, lines);
    int64_t x = u->left < 0 ? (-u->left + u->x_spacing - 1) / u->x_spacing : 0, at = u->left + x * u->x_spacing;
    int64_t room = (u->canvas_w - at + u->x_spacing - 1) / u->x_spacing, count = u->w - x < room ? u->w - x : room;
    memset(b->canvas, 0, sizeof(T) * (size_t)((end - begin) * u->canvas_w * VN));
    for (int64_t y = 0; count > 0 && y < u->h; y++) {
        int64_t row = u->top + y * u->y_spacing;
        if (row >= begin && row < end)
            NAME(transpose)(image + y * u->w + x, u->h * u->w, b->canvas + ((row - begin) * u->canvas_w + at) * VN,
                            u->x_spacing * VN, b->channels, count);
    }
}

/* One task: a block of channels of an image. */
static void NAME(lanes_body)(void *context, int64_t begin, int64_t end) {
    NAME(lanes) *p = context;
    const NAME(unfolding) *u = &p->unfolding;
    NAME(lanes_block) b;
    if (!NAME(begin_lanes)(p, &b)) return;
    for (int64_t task = begin; task < end; task++) {
        int64_t n = task / p->blocks, pixels = p->out_h * p->out_w;
        NAME(choose_block)(p, &b, task % p->blocks);
        NAME(transpose_columns)(p->given + b.channel * b.count, b.count, b.taps, VN, b.channels, 0, b.count);
        for (int64_t first = 0; first < p->out_h; first += p->lines) {
            int64_t lines = p->out_h - first < p->lines ? p->out_h - first : p->lines;
            NAME(paint_lanes)(p, &b, n, first, lines);
            for (int64_t line = 0; line < lines; line++)
                for (int64_t at = 0; at < p->out_w; at += PIXELS_AT_ONCE) {
                    const T *from = b.canvas + (line * u->y_step * u->canvas_w + at * u->x_step) * VN;
                    V sum[PIXELS_AT_ONCE] = {0};
                    for (int64_t tap = 0; tap < b.count; tap++) {
                        V factor = *(const V *)(b.taps + tap * VN);
                        const T *pixel = from + b.offset[tap];
                        _Pragma("GCC unroll 8") for (int i = 0; i < PIXELS_AT_ONCE; i++, pixel += u->x_step * VN)
                            sum[i] = FMA_V(factor, *(const V *)pixel, sum[i]);
                    }
                    T *to = b.pixels + (line * p->out_w + at) * VN;
                    _Pragma("GCC unroll 8") for (int i = 0; i < PIXELS_AT_ONCE; i++) *(V *)(to + i * VN) = sum[i];
                }
            NAME(put_turned)(b.pixels, VN, p->out + (n * p->channels + b.channel) * pixels + first * p->out_w, pixels,
                             lines * p->out_w, b.channels);
        }
    }
}

/* One task: a block of channels, through all images in order. */
static void NAME(lanes_weight_body)(void *context, int64_t begin, int64_t end) {
    NAME(lanes) *p = context;
    const NAME(unfolding) *u = &p->unfolding;
    NAME(lanes_block) b;
    if (!NAME(begin_lanes)(p, &b)) return;
    for (int64_t block = begin; block < end; block++) {
        NAME(choose_block)(p, &b, block);
        memset(b.taps, 0, sizeof(T) * (size_t)(b.rounded * VN));
        for (int64_t step = 0, lines; step < p->images * p->out_h; step += lines) {
            int64_t n = step / p->out_h, first = step % p->out_h, pixels = p->out_h * p->out_w;
            lines = p->out_h - first < p->lines ? p->out_h - first : p->lines;
            NAME(paint_lanes)(p, &b, n, first, lines);
            NAME(transpose)(p->given + (n * p->channels + b.channel) * pixels + first * p->out_w, pixels, b.pixels, VN, b.channels,
                            lines * p->out_w);
            for (int64_t tap = 0; tap < b.count; tap += TAPS_AT_ONCE) {
                V sum[TAPS_AT_ONCE];
                T *sums = b.taps + tap * VN;
                const int64_t *offset = b.offset + tap;
                const T *g = b.pixels;
                _Pragma("GCC unroll 9") for (int i = 0; i < TAPS_AT_ONCE; i++) sum[i] = *(const V *)(sums + i * VN);
                for (int64_t line = 0; line < lines; line++) {
                    const T *from = b.canvas + line * u->y_step * u->canvas_w * VN;
                    for (int64_t x = 0; x < p->out_w; x++, from += u->x_step * VN, g += VN) {
                        V factor = *(const V *)g;
                        _Pragma("GCC unroll 9") for (int i = 0; i < TAPS_AT_ONCE; i++)
                            sum[i] = FMA_V(*(const V *)(from + offset[i]), factor, sum[i]);
                    }
                }
                _Pragma("GCC unroll 9") for (int i = 0; i < TAPS_AT_ONCE; i++) *(V *)(sums + i * VN) = sum[i];
            }
        }
        NAME(put_turned)(b.taps, VN, p->out + b.channel * b.count, b.count, b.count, b.channels);
    }
}

/* given: the weight, which makes out of the image; or, of_weight, the gradient of what comes out, which makes that of the weight. */
static cyx_status NAME(run_lanes)(const NAME(unfolding) * u, const T *image, const T *given, T *out, int64_t images, int64_t channels,
                                  int64_t out_h, int64_t out_w, int of_weight) {
    NAME(lanes)
    p = {.unfolding = *u, .image = image, .given = given, .out = out, .images = images, .channels = channels, .out_h = out_h, .out_w = out_w};
    p.blocks = (p.channels + VN - 1) / VN, p.lines = 1;
    while (p.lines < p.out_h && NAME(lines_of_canvas)(&p, p.lines + 1) * u->canvas_w * VN * (int64_t)sizeof(T) <= LANES_BYTES)
        p.lines++;
    int64_t tasks = of_weight ? p.blocks : p.images * p.blocks;
    double work = (double)(p.out_h * p.out_w * VN) * (double)(u->kh * u->kw * (of_weight ? images : 1)) / 8.0;
    cyx_parallel(tasks, cyx_grain(tasks, work, 100000), of_weight ? NAME(lanes_weight_body) : NAME(lanes_body), &p);
    return p.no_memory ? CYX_NO_MEMORY : CYX_OK;
}
