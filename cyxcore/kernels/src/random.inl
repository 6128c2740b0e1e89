/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011): element i
 * of a stream depends on the key and on i alone, so any thread can make any part of it.
 *
 * Each lane of 64 bits holds one word of a block's counter in its lower half. What is in the upper half does not matter:
 * the products that a round makes read the lower one only. */
enum { PHILOX_LANES = VECTOR_BYTES / 8, PHILOX_GROUPS = 4, BLOCKS_AT_ONCE = PHILOX_LANES * PHILOX_GROUPS };

#if !defined(LOW_PRODUCTS)
#define LOW_PRODUCTS(a, b) (((a) & 0xffffffffu) * ((b) & 0xffffffffu))
#define PAIRS_LOW(a, b) ((vu64){(a)[0], (b)[0]})
#define PAIRS_HIGH(a, b) ((vu64){(a)[1], (b)[1]})
#endif

/* c: the counters of `groups` vectors of blocks, replaced by their words. */
static inline __attribute__((always_inline)) void philox_rounds(vu64 (*c)[4], int groups, const uint32_t *key) {
    uint32_t k0 = key[0], k1 = key[1];
    const vu64 m0 = (vu64){0} + 0xd2511f53u, m1 = (vu64){0} + 0xcd9e8d57u;
    for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        const vu64 a = (vu64){0} + (uint64_t)k0, b = (vu64){0} + (uint64_t)k1;
        _Pragma("GCC unroll 4") for (int g = 0; g < groups; g++) {
            vu64 one = LOW_PRODUCTS(c[g][0], m0), two = LOW_PRODUCTS(c[g][2], m1);
            c[g][0] = (two >> 32) ^ (c[g][1] ^ a), c[g][1] = two;
            c[g][2] = (one >> 32) ^ (c[g][3] ^ b), c[g][3] = one;
        }
    }
}

typedef struct {
    uint32_t key[2], stream, step[2];
} philox_stream;

static inline philox_stream stream_of(uint64_t seed, uint64_t step, uint32_t stream) {
    return (philox_stream){{(uint32_t)seed, (uint32_t)(seed >> 32)}, stream, {(uint32_t)step, (uint32_t)(step >> 32)}};
}

/* The words of blocks [first, first + BLOCKS_AT_ONCE): word w of block b goes to out[4 * b + w], as a number of 32 bits, or
 * as a float of its upper 24 in [0, 1). */
static inline __attribute__((always_inline)) void philox_blocks(const philox_stream *s, uint32_t first, void *out, int floats) {
    vu64 c[PHILOX_GROUPS][4], place;
    for (int l = 0; l < PHILOX_LANES; l++) place[l] = (uint64_t)((l >> 1) + (l & 1) * (PHILOX_LANES / 2)); /* see the stores */
    _Pragma("GCC unroll 4") for (int g = 0; g < PHILOX_GROUPS; g++) {
        c[g][0] = place + (uint64_t)(first + (uint32_t)(g * PHILOX_LANES));
        c[g][1] = (vu64){0} + (uint64_t)s->stream;
        c[g][2] = (vu64){0} + (uint64_t)s->step[0], c[g][3] = (vu64){0} + (uint64_t)s->step[1];
    }
    philox_rounds(c, PHILOX_GROUPS, s->key);
    _Pragma("GCC unroll 4") for (int g = 0; g < PHILOX_GROUPS; g++) {
        vu64 front = (c[g][0] & 0xffffffffu) | c[g][1] << 32, back = (c[g][2] & 0xffffffffu) | c[g][3] << 32;
        vu32 low = (vu32)PAIRS_LOW(front, back), high = (vu32)PAIRS_HIGH(front, back); /* even lanes, then odd ones */
        uint32_t *to = (uint32_t *)out + 4 * g * PHILOX_LANES;
        if (floats) {
            *(vf32 *)to = __builtin_convertvector((vi32)(low >> 8), vf32) * 0x1p-24f;
            *(vf32 *)(to + LANES) = __builtin_convertvector((vi32)(high >> 8), vf32) * 0x1p-24f;
        } else {
            *(vu32 *)to = low;
            *(vu32 *)(to + LANES) = high;
        }
    }
}

/* Words [begin, end) to out, which has the first of them; begin is that of a block. */
static inline __attribute__((always_inline)) void philox_words(const philox_stream *s, int64_t begin, int64_t end, void *out,
                                                               int floats) {
    for (int64_t word = begin; word < end; word += 4 * BLOCKS_AT_ONCE) {
        uint32_t own[4 * BLOCKS_AT_ONCE], *to = (uint32_t *)out + (word - begin);
        int whole = end - word >= 4 * BLOCKS_AT_ONCE;
        philox_blocks(s, (uint32_t)(word / 4), whole ? to : own, floats);
        if (!whole) memcpy(to, own, sizeof(uint32_t) * (size_t)(end - word));
    }
}

/* What is asked for, and the words it is made of; `before` of them are those of others. */
typedef struct {
    philox_stream stream;
    cyx_draw *draw;
    int64_t before;
} drawing;

static void uniform_body(void *context, int64_t begin, int64_t end) {
    const drawing *d = context;
    float *out = d->draw->out;
    int64_t before = d->before, behind = before + d->draw->count;
    for (int64_t block = before / 4 + begin, stop = before / 4 + end; block < stop;) {
        int64_t word = 4 * block, last = 4 * stop < behind ? 4 * stop : behind;
        if (word >= before) {
            philox_words(&d->stream, word, last, out + (word - before), 1);
            return;
        }
        float own[4]; /* of this block others have the first words */
        philox_words(&d->stream, word, word + 4, own, 1);
        for (word = before; word < last && word < 4 * block + 4; word++) out[word - before] = own[word % 4];
        block++;
    }
}

/* How many words of a stack of matrices come before the block of rows that a call of a stretch makes. */
static int64_t words_before(const cyx_call *call) {
    if (!call->blocks) return 0;
    int64_t rows = call->out.shape[0], matrix = cyx_band / call->blocks;
    int64_t row = call->goes_on ? call->length - rows : cyx_band % call->blocks * rows;
    return (matrix * call->length + row) * call->out.shape[1];
}

/* ints: count, shape..., stream. The key is (seed, step). */
static cyx_status uniform(const cyx_call *call) {
    const uint64_t *key = call->in[0].data;
    cyx_draw draw = {.out = call->out.data, .count = call->out.size};
    drawing d = {stream_of(key[0], key[1], (uint32_t)call->ints[1 + call->ints[0]]), &draw, words_before(call)};
    int64_t blocks = (d.before + draw.count + 3) / 4 - d.before / 4;
    cyx_parallel(blocks, cyx_grain(blocks, 60, CYX_LEAST_WORK), uniform_body, &d);
    return CYX_OK;
}

static void words_body(void *context, int64_t begin, int64_t end) {
    const drawing *d = context;
    int64_t last = 4 * end < d->draw->count ? 4 * end : d->draw->count;
    philox_words(&d->stream, 4 * begin, last, (uint32_t *)d->draw->out + 4 * begin, 0);
}

enum { DRAWN_AT_ONCE = 256 };

/* Numbers shift + scale * x [begin, begin + count) of a result. */
static inline void put_numbers(const cyx_draw *draw, int64_t begin, int64_t count, const double *x) {
    const double scale = draw->scale, shift = draw->shift;
    if (draw->dtype == CYX_F32)
        for (int64_t i = 0; i < count; i++) ((float *)draw->out)[begin + i] = (float)(shift + scale * x[i]);
    else
        for (int64_t i = 0; i < count; i++) ((double *)draw->out)[begin + i] = shift + scale * x[i];
}

/* Sums of twelve uniforms minus six. A lane makes one from three blocks; the sum is a whole number of 2**-24. */
static void twelves_body(void *context, int64_t begin, int64_t end) {
    const drawing *d = context;
    const philox_stream *s = &d->stream;
    for (int64_t first = begin; first < end; first += DRAWN_AT_ONCE) {
        int64_t count = end - first < DRAWN_AT_ONCE ? end - first : DRAWN_AT_ONCE;
        double x[DRAWN_AT_ONCE];
        for (int64_t i = 0; i < count; i += PHILOX_LANES) {
            vu64 c[3][4], place;
            for (int l = 0; l < PHILOX_LANES; l++) place[l] = 3 * (uint64_t)l;
            _Pragma("GCC unroll 3") for (int g = 0; g < 3; g++) {
                c[g][0] = place + (uint64_t)(3 * (first + i) + g);
                c[g][1] = (vu64){0} + (uint64_t)s->stream;
                c[g][2] = (vu64){0} + (uint64_t)s->step[0], c[g][3] = (vu64){0} + (uint64_t)s->step[1];
            }
            philox_rounds(c, 3, s->key);
            vu32 sum = {0};
            _Pragma("GCC unroll 3") for (int g = 0; g < 3; g++)
                sum += (((vu32)c[g][0] >> 8) + ((vu32)c[g][1] >> 8)) + (((vu32)c[g][2] >> 8) + ((vu32)c[g][3] >> 8));
            /* The bits of 2**52 + n, for n below 2**52: subtracting is exact. */
            vf64 whole = (vf64)(((vu64)sum & 0xffffffffu) | 0x4330000000000000u);
            *(vf64 *)(x + i) = (whole - (0x1p52 + 6.0 * 0x1p24)) * 0x1p-24;
        }
        put_numbers(d->draw, first, count, x);
    }
}

/* Normal quantiles by M. J. Wichura, AS 241 (1988): cyxcore/variates.py is the definition, whose sums and products these
 * are, one by one. The constant first. */
static const double quantile_middle[2][8] = {
    {3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125, 45921.953931549871457,
     67265.770927008700853, 33430.575583588128105, 2509.0809287301226727},
    {1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077, 21213.794301586595867, 39307.895800092710610,
     28729.085735721942674, 5226.4952788528545610}};
static const double quantile_near[2][8] = {
    {1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504, 1.27045825245236838258,
     0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4},
    {1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550, 0.148103976427480074590,
     0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9}};
static const double quantile_far[2][8] = {
    {6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230,
     0.0265321895265761230930, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7},
    {1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525, 7.86869131145613259100e-4,
     1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15}};

MATH double quantile_ratio(const double (*parts)[8], double r) {
    double above = parts[0][7], below = parts[1][7];
    _Pragma("GCC unroll 7") for (int i = 6; i >= 0; i--) above = above * r + parts[0][i], below = below * r + parts[1][i];
    return above / below;
}

/* x: probabilities in (0, 1), replaced by what a standard normal number is below with each. */
static void quantiles(double *x, int64_t count) {
    double tail[DRAWN_AT_ONCE], root[DRAWN_AT_ONCE];
    int32_t place[DRAWN_AT_ONCE];
    int64_t tails = 0, far = 0;
    for (int64_t i = 0; i < count; i++) { /* without a branch, which would be mispredicted at every fourth */
        place[tails] = (int32_t)i, tail[tails] = x[i];
        tails += __builtin_fabs(x[i] - 0.5) > 0.425;
    }
    for (int64_t i = 0; i < count; i++) {
        double q = x[i] - 0.5;
        x[i] = q * quantile_ratio(quantile_middle, 0.180625 - q * q);
    }
    for (int64_t i = 0; i < tails; i++) {
        double rest = 1.0 - tail[i];
        root[i] = __builtin_sqrt(-log_f64(tail[i] < rest ? tail[i] : rest));
    }
    for (int64_t i = 0; i < tails; i++) {
        double size = quantile_ratio(quantile_near, root[i] - 1.6);
        far += root[i] > 5.0;
        tail[i] = __builtin_copysign(size, tail[i] - 0.5);
    }
    for (int64_t i = 0; far && i < tails; i++)
        if (root[i] > 5.0) tail[i] = __builtin_copysign(quantile_ratio(quantile_far, root[i] - 5.0), tail[i]);
    for (int64_t i = 0; i < tails; i++) x[place[i]] = tail[i];
}

/* Odd multiples of 2**-49 in (0, 1), of two words each. begin is even. */
static inline void insides(const drawing *d, int64_t begin, int64_t count, double *x) {
    float pair[2 * DRAWN_AT_ONCE];
    philox_words(&d->stream, 2 * begin, 2 * (begin + count), pair, 1);
    for (int64_t i = 0; i < count; i++) x[i] = ((double)pair[2 * i] + (double)pair[2 * i + 1] * 0x1p-24) + 0x1p-49;
}

static void normals_body(void *context, int64_t begin, int64_t end) {
    const drawing *d = context;
    for (int64_t first = begin; first < end; first += DRAWN_AT_ONCE) {
        int64_t count = end - first < DRAWN_AT_ONCE ? end - first : DRAWN_AT_ONCE;
        double x[DRAWN_AT_ONCE];
        insides(d, first, count, x);
        quantiles(x, count);
        put_numbers(d->draw, first, count, x);
    }
}

/* low + word % span of 64-bit words; draw->over is set where one of them is among the last, which would favour the first. */
static void integers_body(void *context, int64_t begin, int64_t end) {
    const drawing *d = context;
    cyx_draw *draw = d->draw;
    const uint64_t span = draw->span, low = draw->low;
    const uint64_t last = span ? UINT64_MAX - (0 - span) % span : UINT64_MAX;
    const uint64_t inverse = span ? UINT64_MAX / span : 0;
    uint64_t *out = draw->out;
    int over = 0;
    for (int64_t first = begin; first < end; first += DRAWN_AT_ONCE) {
        int64_t count = end - first < DRAWN_AT_ONCE ? end - first : DRAWN_AT_ONCE;
        uint32_t half[2 * DRAWN_AT_ONCE];
        philox_words(&d->stream, 2 * first, 2 * (first + count), half, 0);
        for (int64_t i = 0; i < count; i++) {
            uint64_t word = (uint64_t)half[2 * i] << 32 | half[2 * i + 1], rest = word;
            over |= word > last;
            rest -= (uint64_t)((unsigned __int128)word * inverse >> 64) * span; /* a quotient that is at most one too small */
            rest -= rest >= span ? span : 0;
            out[first + i] = low + rest;
        }
    }
    if (over) __atomic_store_n(&draw->over, 1, __ATOMIC_RELAXED);
}

static void draw_numbers(cyx_draw *draw) {
    static const struct {
        cyx_body body;
        int per_item; /* blocks of words are items of their own */
        double work;
    } kinds[CYX_DRAW_COUNT] = {[CYX_DRAW_WORDS] = {words_body, 4, 40},
                               [CYX_DRAW_TWELVES] = {twelves_body, 1, 100},
                               [CYX_DRAW_NORMALS] = {normals_body, 1, 150},
                               [CYX_DRAW_INTEGERS] = {integers_body, 1, 30}};
    drawing d = {stream_of(draw->seed, draw->step, draw->stream), draw};
    int64_t per = kinds[draw->kind].per_item, items = (draw->count + per - 1) / per;
    int64_t grain = cyx_grain(items, kinds[draw->kind].work, CYX_LEAST_WORK);
    cyx_parallel(items, (grain + 1) & ~(int64_t)1, kinds[draw->kind].body, &d); /* even: two make a block */
}

static void fill_random(cyx_table table) { table[CYX_OP_uniform][CYX_U64] = uniform; }
