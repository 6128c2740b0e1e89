/* Pooling over (N, C, H, W): windows never leave the image for max, and count as zeros outside it for avg. */

/* ints: kernel (2), stride (2), padding (2), and for avg_pool2d_grad the count and input shape */
typedef struct {
    const cyx_call *call;
    int64_t h, w, out_h, out_w; /* of the image and of the pooled image */
    int64_t kh, kw, sh, sw, ph, pw;
} pooling;

static pooling pooling_of(const cyx_call *call, const cyx_array *image, const cyx_array *pooled) {
    const int64_t *i = call->ints;
    return (pooling){call,
                     image->shape[2],
                     image->shape[3],
                     pooled->shape[2],
                     pooled->shape[3],
                     i[0],
                     i[1],
                     i[2],
                     i[3],
                     i[4],
                     i[5]};
}

typedef struct {
    int64_t top, bottom, left, right; /* the part of a window inside the image */
} window;

static inline window window_at(const pooling *p, int64_t oh, int64_t ow) {
    int64_t top = oh * p->sh - p->ph, left = ow * p->sw - p->pw, bottom = top + p->kh, right = left + p->kw;
    return (window){top < 0 ? 0 : top, bottom > p->h ? p->h : bottom, left < 0 ? 0 : left,
                    right > p->w ? p->w : right};
}

/* Threads take whole planes: everything that meets lies in one. */
static cyx_status run_pooling(const cyx_call *call, const cyx_array *image, const cyx_array *pooled,
                              cyx_body body) {
    pooling p = pooling_of(call, image, pooled);
    int64_t planes = image->shape[0] * image->shape[1];
    double work = (double)(p.out_h * p.out_w * p.kh * p.kw + p.h * p.w);
    cyx_parallel(planes, cyx_grain(planes, work, CYX_LEAST_WORK), body, &p);
    return CYX_OK;
}

/* keep ? a : b without a branch, which random data would mispredict half of the time. */
#define CHOOSE(T, TAG, BITS)                                                                                 \
    static inline __attribute__((always_inline)) T choose_##TAG(int keep, T a, T b) {                        \
        BITS mask = (BITS)0 - (BITS)keep;                                                                    \
        return TAG##_of_bits((bits_of_##TAG(a) & mask) | (bits_of_##TAG(b) & ~mask));                        \
    }

CHOOSE(float, f32, uint32_t)
CHOOSE(double, f64, uint64_t)

/* A vector of windows at once, where it fits into what there is to read and to write; returns how many, or 0. It may
 * be more than the row has: what is written behind its end are the next outputs, which are written again later.
 */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define POOL_VECTORS
#endif
#endif
#ifdef POOL_VECTORS
#define PLACES_4(o) o, o + 2, o + 4, o + 6
#define PLACES_8(o) PLACES_4(o), PLACES_4(o + 8)
#define PLACES_16(o) PLACES_8(o), PLACES_8(o + 16)
#define PLACES_OF(lanes, o) PLACES_##lanes(o)
#define EVERY_SECOND(lanes, o) PLACES_OF(lanes, o)

static inline vf32 first_greatest(vf32 a, vf32 b) {
    vi32 keep = (a >= b) | (a != a);
    return (vf32)((keep & (vi32)a) | (~keep & (vi32)b));
}

static inline __attribute__((always_inline)) int64_t max_of_many_f32(const float *x, const float *x_end, int64_t w,
                                                                     float *out, const float *out_end) {
    const float *y = x + w;
    if (x_end - y < 2 * LANES || out_end - out < LANES) return 0;
    vf32 x0 = *(const vf32 *)x, x1 = *(const vf32 *)(x + LANES), y0 = *(const vf32 *)y,
         y1 = *(const vf32 *)(y + LANES);
    vf32 a = __builtin_shufflevector(x0, x1, EVERY_SECOND(LANES, 0)),
         b = __builtin_shufflevector(x0, x1, EVERY_SECOND(LANES, 1)),
         c = __builtin_shufflevector(y0, y1, EVERY_SECOND(LANES, 0)),
         d = __builtin_shufflevector(y0, y1, EVERY_SECOND(LANES, 1));
    *(vf32 *)out = first_greatest(first_greatest(first_greatest(a, b), c), d);
    return LANES;
}

#define PAIRS_4(o, n) o, o + n, o + 1, o + 1 + n
#define PAIRS_8(o, n) PAIRS_4(o, n), PAIRS_4(o + 2, n)
#define PAIRS_16(o, n) PAIRS_8(o, n), PAIRS_8(o + 4, n)
#define PAIRS_OF(lanes, o) PAIRS_##lanes(o, lanes)
#define IN_TURNS(lanes, o) PAIRS_OF(lanes, o)

static inline __attribute__((always_inline)) void put_in_turns(float *out, vf32 even, vf32 odd) {
    *(vf32 *)out = __builtin_shufflevector(even, odd, IN_TURNS(LANES, 0));
    *(vf32 *)(out + LANES) = __builtin_shufflevector(even, odd, IN_TURNS(LANES, LANES / 2));
}

static inline vi32 is_greater(vf32 next, vf32 greatest) { return ~(next <= greatest) & (greatest == greatest); }

/* v times (x > than ? 1 : 0) */
static inline vf32 masked_by(vf32 v, vf32 x, float than) {
    vf32 ones = (vf32){0} + 1.0f;
    return v * (vf32)((vi32)ones & (x > than));
}

static inline __attribute__((always_inline)) int64_t grad_of_many_f32(const int masked, float than, const float *g,
                                                                      const float *g_end, const float *x,
                                                                      const float *x_end, int64_t w, float *out,
                                                                      const float *out_end) {
    const float *y = x + w;
    if (g_end - g < LANES || x_end - y < 2 * LANES || out_end - (out + w) < 2 * LANES) return 0;
    vf32 x0 = *(const vf32 *)x, x1 = *(const vf32 *)(x + LANES), y0 = *(const vf32 *)y,
         y1 = *(const vf32 *)(y + LANES);
    vf32 a = __builtin_shufflevector(x0, x1, EVERY_SECOND(LANES, 0)),
         b = __builtin_shufflevector(x0, x1, EVERY_SECOND(LANES, 1)),
         c = __builtin_shufflevector(y0, y1, EVERY_SECOND(LANES, 0)),
         d = __builtin_shufflevector(y0, y1, EVERY_SECOND(LANES, 1));
    vi32 add = (vi32)((vf32){0} + *(const vf32 *)g), second = is_greater(b, a);
    vf32 first = a;
    a = (vf32)((second & (vi32)b) | (~second & (vi32)a));
    vi32 third = is_greater(c, a);
    a = (vf32)((third & (vi32)c) | (~third & (vi32)a));
    vi32 fourth = is_greater(d, a);
    vf32 to_first = (vf32)(add & ~(second | third | fourth)), to_second = (vf32)(add & second & ~(third | fourth)),
         to_third = (vf32)(add & third & ~fourth), to_fourth = (vf32)(add & fourth);
    if (masked)
        to_first = masked_by(to_first, first, than), to_second = masked_by(to_second, b, than),
        to_third = masked_by(to_third, c, than), to_fourth = masked_by(to_fourth, d, than);
    put_in_turns(out, to_first, to_second);
    put_in_turns(out + w, to_third, to_fourth);
    return LANES;
}
#else
#define max_of_many_f32(x, x_end, w, out, out_end) ((void)(x_end), (void)(out_end), 0)
#define grad_of_many_f32(masked, than, g, g_end, x, x_end, w, out, out_end) ((void)(g_end), (void)(x_end), (void)(out_end), 0)
#endif
#define max_of_many_f64(x, x_end, w, out, out_end) ((void)(x_end), (void)(out_end), 0)
#define grad_of_many_f64(masked, than, g, g_end, x, x_end, w, out, out_end) ((void)(g_end), (void)(x_end), (void)(out_end), 0)

#define POOLING(T, TAG)                                                                                      \
    /* Whole 2 x 2 windows in steps of 2: what most networks use. x: the upper left pixel of one. */                 \
    static inline __attribute__((always_inline)) T max_of_four_##TAG(const T *x, int64_t w) {                \
        T a = x[0], b = x[1], c = x[w], d = x[w + 1];                                                        \
        a = choose_##TAG((a >= b) | (a != a), a, b);                                                         \
        a = choose_##TAG((a >= c) | (a != a), a, c);                                                         \
        return choose_##TAG((a >= d) | (a != a), a, d);                                                      \
    }                                                                                                        \
    static void max_halves_##TAG(const pooling *p, const T *x, T *out, int64_t planes) {                     \
        const T *x_end = x + planes * p->h * p->w;                                                           \
        T *out_end = out + planes * p->out_h * p->out_w;                                                     \
        for (int64_t row = 0; row < planes * p->out_h; row++, out += p->out_w) {                             \
            const T *upper = x + (row / p->out_h * p->h + row % p->out_h * 2) * p->w;                        \
            for (int64_t ow = 0; ow < p->out_w;) {                                                           \
                int64_t done = max_of_many_##TAG(upper + 2 * ow, x_end, p->w, out + ow, out_end);            \
                if (!done) out[ow] = max_of_four_##TAG(upper + 2 * ow, p->w), done = 1;                      \
                ow += done;                                                                                  \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
    /* Its gradient, written once: nothing is added up where windows do not overlap. 0 + g: a sum has no -0. Short rows \
     * take one vector, which reaches behind their end: into what is written later, where no pixel lies between windows; \
     * the last vector of a longer row begins among the windows of the one before it. masked: every result times \
     * (x > than ? 1 : 0). */                                                                                \
    static inline __attribute__((always_inline)) void max_halves_grad_##TAG(                                 \
        const pooling *p, const int masked, T than, const T *g, const T *g_end, const T *x, const T *x_end, T *out, \
        const T *out_end) {                                                                                  \
        int nothing_between = p->w == 2 * p->out_w && p->h == 2 * p->out_h;                                  \
        for (int64_t oh = 0; oh < p->out_h; oh++) {                                                          \
            const T *upper = x + 2 * oh * p->w, *lower = upper + p->w, *given = g + oh * p->out_w;           \
            T *up = out + 2 * oh * p->w, *low = up + p->w;                                                   \
            int64_t first = 0, done = nothing_between || p->out_w >= LANES;                                  \
            while (done && first < p->out_w) {                                                               \
                int64_t at = first && p->out_w - first < LANES ? p->out_w - LANES : first;                   \
                done = grad_of_many_##TAG(masked, than, given + at, g_end, upper + 2 * at, x_end, p->w,      \
                                          up + 2 * at, out_end);                                             \
                if (done) first = at + done;                                                                 \
            }                                                                                                \
            INDEPENDENT for (int64_t ow = first; ow < p->out_w; ow++) {                                      \
                T a = upper[2 * ow], b = upper[2 * ow + 1], c = lower[2 * ow], d = lower[2 * ow + 1];        \
                T add = (T)0 + given[ow], first_pixel = a;                                                   \
                int second = !(b <= a) & (a == a);                                                           \
                a = choose_##TAG(second, b, a);                                                              \
                int third = !(c <= a) & (a == a);                                                            \
                a = choose_##TAG(third, c, a);                                                               \
                int fourth = !(d <= a) & (a == a);                                                           \
                up[2 * ow] = choose_##TAG(second | third | fourth, 0, add);                                  \
                up[2 * ow + 1] = choose_##TAG(second & !(third | fourth), add, 0);                           \
                low[2 * ow] = choose_##TAG(third & !fourth, add, 0);                                         \
                low[2 * ow + 1] = choose_##TAG(fourth, add, 0);                                              \
                if (!masked) continue;                                                                       \
                up[2 * ow] *= (T)(first_pixel > than), up[2 * ow + 1] *= (T)(upper[2 * ow + 1] > than);      \
                low[2 * ow] *= (T)(c > than), low[2 * ow + 1] *= (T)(d > than);                              \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
    static int in_halves_##TAG(const pooling *p) {                                                           \
        return p->kh == 2 && p->kw == 2 && p->sh == 2 && p->sw == 2 && !p->ph && !p->pw;                     \
    }                                                                                                        \
    static void max_pool2d_##TAG##_body(void *context, int64_t begin, int64_t end) {                         \
        const pooling *p = context;                                                                          \
        if (in_halves_##TAG(p)) {                                                                            \
            max_halves_##TAG(p, (const T *)p->call->in[0].data + begin * p->h * p->w,                        \
                             (T *)p->call->out.data + begin * p->out_h * p->out_w, end - begin);             \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t plane = begin; plane < end; plane++) {                                                  \
            const T *x = (const T *)p->call->in[0].data + plane * p->h * p->w;                               \
            T *out = (T *)p->call->out.data + plane * p->out_h * p->out_w;                                   \
            for (int64_t oh = 0; oh < p->out_h; oh++)                                                        \
                for (int64_t ow = 0; ow < p->out_w; ow++) {                                                  \
                    window at = window_at(p, oh, ow);                                                        \
                    T best = -(T)INFINITY;                                                                   \
                    for (int64_t r = at.top; r < at.bottom; r++)                                             \
                        for (int64_t c = at.left; c < at.right; c++) {                                       \
                            T next = x[r * p->w + c];                                                        \
                            best = best >= next || best != best ? best : next;                               \
                        }                                                                                    \
                    out[oh * p->out_w + ow] = best;                                                          \
                }                                                                                            \
        }                                                                                                    \
    }                                                                                                        \
    /* The gradient goes to the first greatest element of each window (the first NaN, where there is one).   \
     */                                                                                                      \
    static void max_pool2d_grad_##TAG##_body(void *context, int64_t begin, int64_t end) {                    \
        const pooling *p = context;                                                                          \
        for (int64_t plane = begin; plane < end; plane++) {                                                  \
            const T *g = (const T *)p->call->in[0].data + plane * p->out_h * p->out_w;                       \
            const T *x = (const T *)p->call->in[1].data + plane * p->h * p->w;                               \
            const cyx_call *mask = p->call->group == CYX_MASKED_GROUP ? p->call + 1 : NULL;                  \
            T *out = (T *)(mask ? mask[2].out.data : p->call->out.data) + plane * p->h * p->w;               \
            int halves = in_halves_##TAG(p);                                                                 \
            if (!halves || p->h % 2 || p->w % 2) memset(out, 0, sizeof(T) * (size_t)(p->h * p->w));          \
            if (halves) {                                                                                    \
                int64_t left = end - plane;                                                                  \
                const T *g_end = g + left * p->out_h * p->out_w, *x_end = x + left * p->h * p->w;            \
                T *out_end = out + left * p->h * p->w;                                                       \
                if (mask)                                                                                    \
                    max_halves_grad_##TAG(p, 1, *(const T *)mask->in[1].data, g, g_end, x, x_end, out, out_end); \
                else                                                                                         \
                    max_halves_grad_##TAG(p, 0, 0, g, g_end, x, x_end, out, out_end);                        \
                continue;                                                                                    \
            }                                                                                                \
            for (int64_t oh = 0; oh < p->out_h; oh++)                                                        \
                for (int64_t ow = 0; ow < p->out_w; ow++) {                                                  \
                    window at = window_at(p, oh, ow);                                                        \
                    if (at.top >= at.bottom || at.left >= at.right) continue;                                \
                    int64_t best = at.top * p->w + at.left;                                                  \
                    T greatest = x[best];                                                                    \
                    for (int64_t r = at.top; r < at.bottom; r++)                                             \
                        for (int64_t c = at.left; c < at.right; c++) {                                       \
                            T next = x[r * p->w + c];                                                        \
                            int better = !(next <= greatest) && greatest == greatest;                        \
                            best = better ? r * p->w + c : best;                                             \
                            greatest = better ? next : greatest;                                             \
                        }                                                                                    \
                    out[best] += g[oh * p->out_w + ow];                                                      \
                }                                                                                            \
        }                                                                                                    \
    }                                                                                                        \
    static void avg_pool2d_##TAG##_body(void *context, int64_t begin, int64_t end) {                         \
        const pooling *p = context;                                                                          \
        T area = (T)(p->kh * p->kw);                                                                         \
        for (int64_t plane = begin; plane < end; plane++) {                                                  \
            const T *x = (const T *)p->call->in[0].data + plane * p->h * p->w;                               \
            T *out = (T *)p->call->out.data + plane * p->out_h * p->out_w;                                   \
            for (int64_t oh = 0; oh < p->out_h; oh++)                                                        \
                for (int64_t ow = 0; ow < p->out_w; ow++) {                                                  \
                    window at = window_at(p, oh, ow);                                                        \
                    T sum = 0;                                                                               \
                    for (int64_t r = at.top; r < at.bottom; r++)                                             \
                        for (int64_t c = at.left; c < at.right; c++) sum += x[r * p->w + c];                 \
                    out[oh * p->out_w + ow] = sum / area;                                                    \
                }                                                                                            \
        }                                                                                                    \
    }                                                                                                        \
    static void avg_pool2d_grad_##TAG##_body(void *context, int64_t begin, int64_t end) {                    \
        const pooling *p = context;                                                                          \
        T area = (T)(p->kh * p->kw);                                                                         \
        for (int64_t plane = begin; plane < end; plane++) {                                                  \
            const T *g = (const T *)p->call->in[0].data + plane * p->out_h * p->out_w;                       \
            T *out = (T *)p->call->out.data + plane * p->h * p->w;                                           \
            memset(out, 0, sizeof(T) * (size_t)(p->h * p->w));                                               \
            for (int64_t oh = 0; oh < p->out_h; oh++)                                                        \
                for (int64_t ow = 0; ow < p->out_w; ow++) {                                                  \
                    window at = window_at(p, oh, ow);                                                        \
                    T share = g[oh * p->out_w + ow] / area;                                                  \
                    for (int64_t r = at.top; r < at.bottom; r++)                                             \
                        for (int64_t c = at.left; c < at.right; c++) out[r * p->w + c] += share;             \
                }                                                                                            \
        }                                                                                                    \
    }                                                                                                        \
    static cyx_status max_pool2d_##TAG(const cyx_call *call) {                                               \
        return run_pooling(call, &call->in[0], &call->out, max_pool2d_##TAG##_body);                         \
    }                                                                                                        \
    static cyx_status max_pool2d_grad_##TAG(const cyx_call *call) {                                          \
        return run_pooling(call, &call->in[1], &call->in[0], max_pool2d_grad_##TAG##_body);                  \
    }                                                                                                        \
    static cyx_status avg_pool2d_##TAG(const cyx_call *call) {                                               \
        return run_pooling(call, &call->in[0], &call->out, avg_pool2d_##TAG##_body);                         \
    }                                                                                                        \
    static cyx_status avg_pool2d_grad_##TAG(const cyx_call *call) {                                          \
        return run_pooling(call, &call->out, &call->in[0], avg_pool2d_grad_##TAG##_body);                    \
    }

POOLING(float, f32)
POOLING(double, f64)

#define FILL_POOLING(D, S)                                                                                   \
    table[CYX_OP_max_pool2d][D] = max_pool2d_##S, table[CYX_OP_max_pool2d_grad][D] = max_pool2d_grad_##S;    \
    table[CYX_OP_avg_pool2d][D] = avg_pool2d_##S, table[CYX_OP_avg_pool2d_grad][D] = avg_pool2d_grad_##S

static void fill_pool2d(cyx_table table) {
    FILL_POOLING(CYX_F32, f32);
    FILL_POOLING(CYX_F64, f64);
}
