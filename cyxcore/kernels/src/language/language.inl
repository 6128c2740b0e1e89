/* The kernels, compiled once per instruction set. The including file has defined vectors of 16 lanes: VF (float), VI
 * (int32) and VB (64 bytes), what can be done with them, and TILE, the most rows of activations taken at once. */

#define UNROLL _Pragma("GCC unroll 16")
#define FREE _Pragma("GCC ivdep") /* no element of this loop waits for another */
#define LOCAL static inline __attribute__((always_inline))

/* ---- products ---- */

enum { AHEAD = 4096 }; /* bytes */

LOCAL int32_t four_bytes(const int8_t *at) {
    int32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* `count` rows of activations times one panel. Blocks are added in ascending order, each exactly as an integer and then
 * by one fused multiply-add. `kind` and `count` are constants wherever this is called. */
LOCAL void quantised_tile(const product *p, int64_t panel, int64_t row, const int kind, const int count) {
    const int nibbles = kind == MATRIX_Q4_0 || kind == MATRIX_Q4_K;
    const int with_minimum = kind == MATRIX_Q4_K || kind == MATRIX_Q5_K;
    const int by_super = with_minimum || kind == MATRIX_Q6_K;
    const int offset = kind == MATRIX_Q8_0 ? 128 : kind == MATRIX_Q4_0 ? 8 : kind == MATRIX_Q6_K ? 32 : 0;
    const int narrow = kind != MATRIX_Q8_0; /* the values are below 64 */
    const matrix *w = p->weights;
    int64_t blocks = w->columns / BLOCK, units = by_super ? w->columns / SUPER : blocks;
    const uint8_t *values = (const uint8_t *)w->values + panel * blocks * (nibbles ? 256 : 512);
    const uint16_t *halves = w->halves + panel * units * (with_minimum ? 2 : 1) * ROWS;
    const uint8_t *subs = by_super ? w->subs + panel * units * 16 * ROWS : NULL;
    VF total[TILE];
    UNROLL for (int t = 0; t < count; t++) total[t] = vf_splat(0.0f);
    VF d = vf_splat(0.0f), dmin = d;
    for (int64_t b = 0; b < blocks; b++, values += nibbles ? 256 : 512) {
        if (!by_super) {
            d = vf_load_half(halves), halves += ROWS;
        } else if (b % 8 == 0) {
            d = vf_load_half(halves), halves += ROWS;
            if (with_minimum) dmin = vf_load_half(halves), halves += ROWS;
        }
        if (count == 1) /* one row of activations waits for memory: ask for it early, also across the border of a page */
            UNROLL for (int line = 0; line < (nibbles ? 4 : 8); line++)
                __builtin_prefetch(values + AHEAD + 64 * line, 0, 3);
        const int parts = kind == MATRIX_Q6_K ? 2 : 1; /* groups in a block */
        UNROLL for (int part = 0; part < parts; part++) {
            VI sum[TILE];
            UNROLL for (int t = 0; t < count; t++) {
                const int32_t *sums = p->quantised.sums + ((row + t) * blocks + b) * 2;
                sum[t] = vi_splat(offset ? -offset * (parts == 2 ? sums[part] : sums[0] + sums[1]) : 0);
            }
            const int8_t *q = p->quantised.q + row * w->columns + b * BLOCK;
            const int steps = 8 / parts;
            if (nibbles) {
                UNROLL for (int g = 0; g < 4; g++) {
                    VB both = vb_load(values + 64 * g), low = vb_low_halves(both), high = vb_high_halves(both);
                    UNROLL for (int t = 0; t < count; t++)
                        sum[t] = vi_dot(sum[t], low, four_bytes(q + t * w->columns + 8 * g), narrow);
                    UNROLL for (int t = 0; t < count; t++)
                        sum[t] = vi_dot(sum[t], high, four_bytes(q + t * w->columns + 8 * g + 4), narrow);
                }
            } else {
                UNROLL for (int g = part * steps; g < (part + 1) * steps; g++) {
                    VB bytes = vb_load(values + 64 * g);
                    UNROLL for (int t = 0; t < count; t++)
                        sum[t] = vi_dot(sum[t], bytes, four_bytes(q + t * w->columns + 4 * g), narrow);
                }
            }
            VF scale = d, minimum = dmin;
            if (kind == MATRIX_Q6_K) {
                scale = vf_mul(d, vf_load_signed_byte(subs)), subs += ROWS;
            } else if (with_minimum) {
                scale = vf_mul(d, vf_load_byte(subs)), minimum = vf_mul(dmin, vf_load_byte(subs + ROWS));
                subs += 2 * ROWS;
            }
            UNROLL for (int t = 0; t < count; t++) {
                int64_t at = (row + t) * blocks + b;
                VF both = vf_mul(scale, vf_splat(p->quantised.scale[at]));
                total[t] = vf_fma(vf_of_vi(sum[t]), both, total[t]);
                if (with_minimum) total[t] = vf_fma(minimum, vf_splat(p->quantised.times_sum[at]), total[t]);
            }
        }
    }
    UNROLL for (int t = 0; t < count; t++) vf_store_rows(p, panel, row + t, total[t]);
}

/* Columns are added in ascending order by fused multiply-adds. */
LOCAL void plain_tile(const product *p, int64_t panel, int64_t row, const int kind, const int count) {
    const matrix *w = p->weights;
    const int bytes = kind == MATRIX_F32 ? 4 : 2;
    const uint8_t *values = (const uint8_t *)w->values + panel * w->columns * ROWS * bytes;
    const float *x = p->x + row * w->columns;
    VF total[TILE];
    UNROLL for (int t = 0; t < count; t++) total[t] = vf_splat(0.0f);
    for (int64_t k = 0; k < w->columns; k++, values += ROWS * bytes) {
        VF column = kind == MATRIX_F32   ? vf_load((const float *)values)
                    : kind == MATRIX_F16 ? vf_load_half((const uint16_t *)values)
                                         : vf_load_brain((const uint16_t *)values);
        UNROLL for (int t = 0; t < count; t++) total[t] = vf_fma(column, vf_splat(x[t * w->columns + k]), total[t]);
    }
    UNROLL for (int t = 0; t < count; t++) vf_store_rows(p, panel, row + t, total[t]);
}

/* A panel stays in the cache while all rows of activations pass it. */
#define PANELS(tile, kind)                                                                                   \
    static void panels_##kind(const product *p, int64_t first, int64_t last) {                               \
        for (int64_t panel = first; panel < last; panel++) {                                                 \
            int64_t row = 0;                                                                                 \
            for (; row + TILE <= p->count; row += TILE) tile(p, panel, row, kind, TILE);                     \
            for (; row + TILE / 3 <= p->count; row += TILE / 3) tile(p, panel, row, kind, TILE / 3);         \
            for (; row < p->count; row++) tile(p, panel, row, kind, 1);                                      \
        }                                                                                                    \
    }
PANELS(plain_tile, MATRIX_F32)
PANELS(plain_tile, MATRIX_F16)
PANELS(plain_tile, MATRIX_BF16)
PANELS(quantised_tile, MATRIX_Q8_0)
PANELS(quantised_tile, MATRIX_Q4_0)
PANELS(quantised_tile, MATRIX_Q4_K)
PANELS(quantised_tile, MATRIX_Q5_K)
PANELS(quantised_tile, MATRIX_Q6_K)

static void multiply(const product *p, int64_t first, int64_t last) {
    static void (*const of_kind[MATRIX_KINDS])(const product *, int64_t, int64_t) = {
        panels_MATRIX_F32,  panels_MATRIX_F16,  panels_MATRIX_BF16, panels_MATRIX_Q8_0,
        panels_MATRIX_Q4_0, panels_MATRIX_Q4_K, panels_MATRIX_Q5_K, panels_MATRIX_Q6_K,
    };
    of_kind[p->weights->kind](p, first, last);
}

/* int8 with a scale for each 32: scale = max |x| / 127, q = x / scale to the nearest, ties to even. A block that holds
 * what is no number gets a scale that is none. */
static void quantise(const float *x, int64_t blocks, int8_t *q, float *scale, float *times_sum, int32_t *sums) {
    for (int64_t b = 0; b < blocks; b++, x += BLOCK, q += BLOCK) {
        uint32_t most = 0; /* of the bits: for magnitudes they are in the order of the numbers, and NaN is above all */
        for (int i = 0; i < BLOCK; i++) {
            uint32_t bits = bits_of_f32(x[i]) & 0x7fffffffu;
            most = bits > most ? bits : most;
        }
        float greatest = f32_of_bits(most);
        int usable = most < 0x7f800000u && greatest > 0x1p-100f; /* below that the inverse overflows */
        float inverse = usable ? 127.0f / greatest : 0.0f;
        scale[b] = usable ? greatest / 127.0f : most < 0x7f800000u ? 0.0f : NAN;
        int32_t whole[BLOCK];
        for (int i = 0; i < BLOCK; i++) {
            float scaled = usable ? x[i] * inverse : 0.0f;
            whole[i] = (int32_t)(bits_of_f32(scaled + 0x1.8p23f) - 0x4b400000u); /* the integer in the low bits */
        }
        int32_t low = 0, high = 0;
        for (int i = 0; i < 16; i++) low += whole[i], high += whole[16 + i];
        for (int i = 0; i < BLOCK; i++) q[i] = (int8_t)whole[i];
        sums[2 * b] = low, sums[2 * b + 1] = high;
        times_sum[b] = -scale[b] * (float)(low + high);
    }
}

/* ---- norms and activations ---- */

/* Sixteen running sums, then a tree: the order of a sum never depends on the vector's width. */
LOCAL float tree_sum(float *lanes) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

static void rms_norm(float *out, const float *x, const float *weight, int64_t size, float eps) {
    float lanes[16] = {0};
    int64_t i = 0;
    VF sums = vf_load(lanes);
    for (; i + 16 <= size; i += 16) {
        VF here = vf_load(x + i);
        sums = vf_fma(here, here, sums);
    }
    vf_store(lanes, sums);
    for (int j = 0; i < size; i++, j++) lanes[j] = FMA32(x[i], x[i], lanes[j]);
    float inverse = 1.0f / __builtin_sqrtf(tree_sum(lanes) / (float)size + eps);
    FREE for (i = 0; i < size; i++) out[i] = x[i] * inverse * weight[i];
}

static void swiglu(float *out, const float *gate, const float *up, int64_t count) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        FREE for (int j = 0; j < 16; j++) out[i + j] = gate[i + j] * sigmoid_f32(gate[i + j]) * up[i + j];
    for (; i < count; i++) out[i] = gate[i] * sigmoid_f32(gate[i]) * up[i];
}

/* ---- attention ---- */

/* Norms where the model has them, turns the pairs of queries and keys, and puts keys and values into their pages. */
static void turn(float *head, const float *cosine, const float *sine, int64_t rotated, int halves) {
    int64_t half = rotated / 2;
    for (int64_t i = 0; i < half; i++) {
        float *a = halves ? head + i : head + 2 * i, *b = halves ? head + half + i : head + 2 * i + 1;
        float x = *a, y = *b;
        *a = x * cosine[i] - y * sine[i];
        *b = x * sine[i] + y * cosine[i];
    }
}

static void place(const placing *p, int64_t first, int64_t last) {
    int64_t size = p->size, padded = (size + 15) / 16 * 16, half = p->rotated / 2;
    for (int64_t row = first; row < last; row++) {
        float *from = p->qkv + row * (p->heads + 2 * p->kv_heads) * size;
        const float *cosine = p->cosine + row * half, *sine = p->sine + row * half;
        int64_t page = p->slots[row] / PAGE, in_page = p->slots[row] % PAGE;
        for (int64_t h = 0; h < p->heads + p->kv_heads; h++) {
            const float *norm = h < p->heads ? p->q_norm : p->k_norm;
            if (norm) rms_norm(from + h * size, from + h * size, norm, size, p->eps);
            turn(from + h * size, cosine, sine, p->rotated, p->halves);
        }
        memcpy(p->q + row * p->heads * size, from, sizeof(float) * (size_t)(p->heads * size));
        from += p->heads * size;
        for (int64_t h = 0; h < p->kv_heads; h++) {
            float *k = p->k + (page * p->kv_heads + h) * size * PAGE + in_page;
            float *v = p->v + ((page * p->kv_heads + h) * PAGE + in_page) * padded;
            for (int64_t i = 0; i < size; i++) k[i * PAGE] = from[h * size + i];
            memcpy(v, from + (p->kv_heads + h) * size, sizeof(float) * (size_t)size);
        }
    }
}

enum { QUERIES = 4, WIDE = 4 };

typedef struct {
    const float *q;
    float *out, *scores;
    int64_t low, high; /* the positions it sees: low <= position < high */
    float inverse;     /* of the sum of its weights */
} query;

LOCAL void scores_of(const attention *a, const stretch *s, int64_t kv_head, query *queries, const int count,
                     int64_t low, int64_t high) {
    for (int64_t page = low / PAGE; page * PAGE < high; page++) {
        const float *k = a->k + ((int64_t)s->pages[page] * a->kv_heads + kv_head) * a->size * PAGE;
        VF sum[QUERIES];
        UNROLL for (int j = 0; j < count; j++) sum[j] = vf_splat(0.0f);
        for (int64_t i = 0; i < a->size; i++) {
            VF column = vf_load(k + i * PAGE);
            UNROLL for (int j = 0; j < count; j++) sum[j] = vf_fma(column, vf_splat(queries[j].q[i]), sum[j]);
        }
        UNROLL for (int j = 0; j < count; j++)
            vf_store(queries[j].scores + page * PAGE, vf_mul(sum[j], vf_splat(a->scale)));
    }
}

/* e**(score - max) of what is seen and 0 elsewhere, over whole pages from low to high. */
LOCAL void weights_of(query *one, int64_t low, int64_t high) {
    int64_t first = low / PAGE * PAGE, last = (high + PAGE - 1) / PAGE * PAGE;
    for (int64_t i = first; i < one->low; i++) one->scores[i] = -INFINITY;
    for (int64_t i = one->high; i < last; i++) one->scores[i] = -INFINITY;
    float most = -INFINITY;
    for (int64_t i = one->low; i < one->high; i++) most = one->scores[i] > most ? one->scores[i] : most;
    float lanes[16] = {0};
    for (int64_t i = first; i < last; i += 16) {
        float *here = one->scores + i;
        FREE for (int j = 0; j < 16; j++) here[j] = exp_f32(here[j] - most);
        FREE for (int j = 0; j < 16; j++) lanes[j] += here[j];
    }
    one->inverse = 1.0f / tree_sum(lanes);
}

/* Each query adds positions in ascending order, from the first that it sees itself. */
LOCAL void mix(const attention *a, const stretch *s, int64_t kv_head, query *queries, const int count, int64_t low,
               int64_t high) {
    int64_t padded = (a->size + 15) / 16 * 16;
    for (int64_t start = 0; start < padded; start += 16 * WIDE) {
        const int wide = padded - start >= 16 * WIDE ? WIDE : (int)((padded - start) / 16);
        VF sum[QUERIES][WIDE];
        UNROLL for (int j = 0; j < count; j++) UNROLL for (int c = 0; c < WIDE; c++) sum[j][c] = vf_splat(0.0f);
        for (int64_t at = low; at < high;) {
            int64_t stop = (at / PAGE + 1) * PAGE < high ? (at / PAGE + 1) * PAGE : high;
            const float *v = a->v + ((int64_t)s->pages[at / PAGE] * a->kv_heads + kv_head) * PAGE * padded + start;
            if (wide == WIDE) {
                for (; at < stop; at++) {
                    VF value[WIDE];
                    UNROLL for (int c = 0; c < WIDE; c++) value[c] = vf_load(v + at % PAGE * padded + 16 * c);
                    UNROLL for (int j = 0; j < count; j++) {
                        VF weight = vf_splat(queries[j].scores[at]);
                        UNROLL for (int c = 0; c < WIDE; c++) sum[j][c] = vf_fma(value[c], weight, sum[j][c]);
                    }
                }
            } else {
                for (; at < stop; at++)
                    for (int c = 0; c < wide; c++) {
                        VF value = vf_load(v + at % PAGE * padded + 16 * c);
                        UNROLL for (int j = 0; j < count; j++)
                            sum[j][c] = vf_fma(value, vf_splat(queries[j].scores[at]), sum[j][c]);
                    }
            }
        }
        UNROLL for (int j = 0; j < count; j++) for (int c = 0; c < wide; c++) {
            float lanes[16];
            vf_store(lanes, vf_mul(sum[j][c], vf_splat(queries[j].inverse)));
            int64_t left = a->size - start - 16 * c;
            memcpy(queries[j].out + start + 16 * c, lanes, sizeof(float) * (size_t)(left < 16 ? left : 16));
        }
    }
}

LOCAL void attend_some(const attention *a, const stretch *s, int64_t kv_head, query *queries, const int count) {
    int64_t low = queries[0].low, high = queries[0].high;
    for (int j = 1; j < count; j++) {
        low = queries[j].low < low ? queries[j].low : low;
        high = queries[j].high > high ? queries[j].high : high;
    }
    scores_of(a, s, kv_head, queries, count, low, high);
    for (int j = 0; j < count; j++) weights_of(&queries[j], low, high);
    mix(a, s, kv_head, queries, count, low, high);
}

/* Rows first .. last of a stretch, all heads that share one head of keys. scores: QUERIES rows of whole pages. */
static void attend(const attention *a, const stretch *s, int64_t kv_head, int64_t first, int64_t last,
                   float *scores) {
    int64_t group = a->heads / a->kv_heads, room = (s->start + last + PAGE - 1) / PAGE * PAGE;
    query queries[QUERIES];
    int waiting = 0;
    for (int64_t i = first; i < last; i++)
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
            int64_t at = ((s->first + i) * a->heads + h) * a->size, high = s->start + i + 1;
            queries[waiting] = (query){.q = a->q + at,
                                       .out = a->out + at,
                                       .scores = scores + waiting * room,
                                       .low = a->window && high > a->window ? high - a->window : 0,
                                       .high = high};
            if (++waiting == QUERIES) attend_some(a, s, kv_head, queries, QUERIES), waiting = 0;
        }
    for (int j = 0; j < waiting; j++) attend_some(a, s, kv_head, queries + j, 1);
}

