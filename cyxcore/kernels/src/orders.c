/* Orders by digits: the places of random words, and of numbers, from the least to the greatest; and the best of rows. Nothing is compared: a pass
 * by eleven bits puts all in the order of these. Nearly all random words differ in their upper bits, so two or three passes
 * leave next to nothing to do. */
#include <stdlib.h>
#include <string.h>

#include "cyx.h"
#include "elementwise.h"
#include "pool.h"

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };

typedef struct {
    uint64_t seed, step;
    uint32_t stream;
} source;

static void words_of(const source *from, void *out, int64_t count) {
    cyx_draw draw = {.kind = CYX_DRAW_WORDS, .seed = from->seed, .step = from->step, .stream = from->stream, .out = out, .count = count};
    cyx_draw_numbers(&draw);
}

/* One word of 64 bits again: the lower bits that did not fit beside its place. */
static uint64_t whole_word(const source *from, uint64_t place) {
    uint32_t c[4] = {(uint32_t)(place / 2), from->stream, (uint32_t)from->step, (uint32_t)(from->step >> 32)};
    uint32_t k0 = (uint32_t)from->seed, k1 = (uint32_t)(from->seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        uint64_t one = (uint64_t)0xd2511f53u * c[0], two = (uint64_t)0xcd9e8d57u * c[2];
        uint32_t next0 = (uint32_t)(two >> 32) ^ c[1] ^ k0, next2 = (uint32_t)(one >> 32) ^ c[3] ^ k1;
        c[0] = next0, c[1] = (uint32_t)two, c[2] = next2, c[3] = (uint32_t)one;
    }
    return place % 2 ? (uint64_t)c[2] << 32 | c[3] : (uint64_t)c[0] << 32 | c[1];
}

/* Upper bits of a word and its place in one number, `place_bits` of them for the place. */
static void packed(const source *from, int wide, int place_bits, uint64_t *out, int64_t count) {
    words_of(from, out, wide ? 2 * count : count);
    if (wide)
        for (int64_t i = 0; i < count; i++) {
            uint32_t half[2];
            memcpy(half, out + i, sizeof half);
            out[i] = ((uint64_t)half[0] << 32 | half[1]) >> place_bits << place_bits | (uint64_t)i;
        }
    else
        for (int64_t i = count - 1; i >= 0; i--) { /* from the last: those before are not yet written over */
            uint32_t word;
            memcpy(&word, (const char *)out + 4 * i, sizeof word);
            out[i] = (uint64_t)word << 32 | (uint64_t)i;
        }
}

/* Whether numbers were moved in the order of one digit: they are not where all have the same. BITS: of one of them. */
#define PASS(NAME, T, BITS)                                                                                  \
    static int NAME(const T *from, T *to, int64_t count, int shift) {                                        \
        int64_t start[DIGITS] = {0};                                                                         \
        for (int64_t i = 0; i < count; i++) start[BITS(from[i]) >> shift & (DIGITS - 1)]++;                  \
        if (count && start[BITS(from[0]) >> shift & (DIGITS - 1)] == count) return 0;                        \
        for (int64_t d = 0, total = 0; d < DIGITS; d++) {                                                    \
            int64_t here = start[d];                                                                         \
            start[d] = total, total += here;                                                                 \
        }                                                                                                    \
        for (int64_t i = 0; i < count; i++) to[start[BITS(from[i]) >> shift & (DIGITS - 1)]++] = from[i];    \
        return 1;                                                                                            \
    }

typedef struct {
    uint64_t key, place;
} keyed;

#define ITSELF(x) (x)
#define KEY(x) (x).key
PASS(pass, uint64_t, ITSELF)
PASS(pass_keyed, keyed, KEY)

static void insert(uint64_t *x, int64_t count) {
    for (int64_t i = 1; i < count; i++) {
        uint64_t one = x[i];
        int64_t k = i;
        for (; k && x[k - 1] > one; k--) x[k] = x[k - 1];
        x[k] = one;
    }
}

/* Words that are alike as far as they were kept, by all of their bits, then by their places. */
static void settle(const source *from, uint64_t *x, int64_t count, int place_bits) {
    const uint64_t mask = ((uint64_t)1 << place_bits) - 1;
    for (int64_t i = 1; i < count; i++) {
        uint64_t one = x[i], word;
        if (x[i - 1] >> place_bits != one >> place_bits) continue;
        word = whole_word(from, one & mask);
        int64_t k = i;
        for (; k && x[k - 1] >> place_bits == one >> place_bits && whole_word(from, x[k - 1] & mask) > word; k--) x[k] = x[k - 1];
        x[k] = one;
    }
}

cyx_status cyx_order_words(uint64_t seed, uint64_t step, uint32_t stream, int wide, int64_t *out, int64_t count) {
    const source from = {seed, step, stream};
    int place_bits = 1, passes = 0;
    while (place_bits < 32 && count >> place_bits) place_bits++;
    if (count >> 32) return cyx_fail(CYX_BAD_DATA, "an order of %lld: expected at most 2**32", (long long)count);
    while (count >> 3 >> (DIGIT_BITS * passes)) passes++; /* so that fewer than eight have the same digits, in the mean */
    if (!wide) place_bits = 32;
    uint64_t *here = (uint64_t *)out, *own = malloc(sizeof(uint64_t) * (size_t)count + 1), *other = own;
    if (!own) return cyx_fail(CYX_NO_MEMORY, "an order of %lld: no memory left for scratch space", (long long)count);
    if (passes % 2) here = other, other = (uint64_t *)out;
    packed(&from, wide, place_bits, here, count);
    for (int p = passes - 1; p >= 0; p--) {
        uint64_t *read = here;
        if (pass(read, other, count, 64 - DIGIT_BITS * (p + 1)))
            here = other, other = read;
    }
    insert(here, count);
    if (wide) settle(&from, here, count, place_bits);
    const uint64_t mask = ((uint64_t)1 << place_bits) - 1;
    for (int64_t i = 0; i < count; i++) out[i] = (int64_t)(here[i] & mask);
    free(own);
    return CYX_OK;
}

/* Bits that have the order of numbers: NaN above all others and alike, as zeros are. */
static inline uint32_t key_of_f32(float x) {
    uint32_t bits;
    x += 0.0f; /* -0 as 0 */
    memcpy(&bits, &x, sizeof bits);
    return x != x ? UINT32_MAX : bits >> 31 ? ~bits : bits | 0x80000000u;
}

static inline uint64_t key_of_f64(double x) {
    uint64_t bits;
    x += 0.0;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? UINT64_MAX : bits >> 63 ? ~bits : bits | (uint64_t)1 << 63;
}

/* Keys of a row, `turned` for the other order; of int64 their distance from the least, so that small ranges have few digits. */
static uint64_t widest_key(const void *x, int dtype, int64_t n, uint64_t *least) {
    if (dtype == CYX_F64) return UINT64_MAX;
    if (dtype != CYX_I64) return UINT32_MAX;
    const int64_t *from = x;
    int64_t low = from[0], high = from[0];
    for (int64_t i = 1; i < n; i++) low = from[i] < low ? from[i] : low, high = from[i] > high ? from[i] : high;
    *least = (uint64_t)low;
    return (uint64_t)high - (uint64_t)low;
}

static void narrow_row(const void *x, int dtype, uint64_t least, uint64_t turned, uint64_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint64_t key = dtype == CYX_F32   ? key_of_f32(((const float *)x)[i])
                       : dtype == CYX_I32 ? (uint32_t)((const int32_t *)x)[i] ^ 0x80000000u
                                          : (uint64_t)((const int64_t *)x)[i] - least;
        out[i] = (turned ? turned - key : key) << 32 | (uint64_t)i;
    }
}

static void order_narrow(const void *x, int dtype, uint64_t least, uint64_t widest, int descending, uint64_t *out,
                         uint64_t *other, int64_t n) {
    uint64_t *here = out, *there = other;
    narrow_row(x, dtype, least, descending ? widest : 0, here, n);
    for (int shift = 32; shift < 64 && widest >> (shift - 32); shift += DIGIT_BITS)
        if (pass(here, there, n, shift)) {
            uint64_t *read = here;
            here = there, there = read;
        }
    for (int64_t i = 0; i < n; i++) out[i] = here[i] & UINT32_MAX;
}

static void order_wide(const void *x, int dtype, uint64_t least, uint64_t widest, int descending, uint64_t *out,
                       keyed *first, int64_t n) {
    keyed *here = first, *there = first + n;
    for (int64_t i = 0; i < n; i++) {
        uint64_t key = dtype == CYX_F64 ? key_of_f64(((const double *)x)[i]) : (uint64_t)((const int64_t *)x)[i] - least;
        here[i] = (keyed){descending ? widest - key : key, (uint64_t)i};
    }
    for (int shift = 0; shift < 64; shift += DIGIT_BITS)
        if (pass_keyed(here, there, n, shift)) {
            keyed *read = here;
            here = there, there = read;
        }
    for (int64_t i = 0; i < n; i++) out[i] = here[i].place;
}

cyx_status cyx_order_rows(const void *x, int dtype, int64_t rows, int64_t n, int descending, int64_t *out) {
    if (n >> 32) return cyx_fail(CYX_BAD_DATA, "an order of %lld: expected at most 2**32", (long long)n);
    int64_t bytes = cyx_dtype_bytes[dtype];
    void *scratch = malloc((size_t)n * (bytes == 8 ? 2 * sizeof(keyed) : sizeof(uint64_t)) + 1);
    if (!scratch) return cyx_fail(CYX_NO_MEMORY, "an order of %lld: no memory left for scratch space", (long long)n);
    for (int64_t row = 0; n && row < rows; row++) {
        const void *from = (const char *)x + row * n * bytes;
        uint64_t least = 0, widest = widest_key(from, dtype, n, &least), *to = (uint64_t *)out + row * n;
        if (widest <= UINT32_MAX)
            order_narrow(from, dtype, least, widest, descending, to, scratch, n);
        else
            order_wide(from, dtype, least, widest, descending, to, scratch, n);
    }
    free(scratch);
    return CYX_OK;
}

/* The places of the k best of each row, the best first and equals in their order, by a short list of the best so far: most numbers
 * are found by a whole chunk not to be among them. Keys are as above, but signed, and turned for the least. */
static inline int32_t signed_key_of_f32(float x) { return (int32_t)(key_of_f32(x) ^ 0x80000000u); }
static inline int64_t signed_key_of_f64(double x) { return (int64_t)(key_of_f64(x) ^ (uint64_t)1 << 63); }
static inline int32_t signed_key_of_i32(int32_t x) { return x; }
static inline int64_t signed_key_of_i64(int64_t x) { return x; }

typedef struct {
    const void *x;
    int64_t n, k;
    int largest;
    int64_t *out;
} best_rows;

#define BEST_ROWS(T, K, TAG)                                                                                 \
    static void best_rows_##TAG##_body(void *context, int64_t begin, int64_t end) {                          \
        enum { CHUNK = 64 };                                                                                 \
        const best_rows *w = context;                                                                        \
        K best[CYX_MOST_BEST], turned = w->largest ? 0 : -1;                                                 \
        for (int64_t row = begin; row < end; row++) {                                                        \
            const T *x = (const T *)w->x + row * w->n;                                                       \
            int64_t *place = w->out + row * w->k, count = 0;                                                 \
            for (int64_t at = 0; at < w->n; at += CHUNK) {                                                   \
                K keys[CHUNK];                                                                               \
                int64_t size = w->n - at < CHUNK ? w->n - at : CHUNK;                                        \
                for (int64_t i = 0; i < size; i++) keys[i] = signed_key_of_##TAG(x[at + i]) ^ turned;        \
                if (count == w->k) {                                                                         \
                    K least = best[count - 1];                                                               \
                    int better = 0;                                                                          \
                    for (int64_t i = 0; i < size; i++) better |= keys[i] > least;                            \
                    if (!better) continue;                                                                   \
                }                                                                                            \
                for (int64_t i = 0; i < size; i++) {                                                         \
                    if (count == w->k && keys[i] <= best[count - 1]) continue;                               \
                    int64_t to = count < w->k ? count++ : count - 1;                                         \
                    for (; to > 0 && best[to - 1] < keys[i]; to--) best[to] = best[to - 1], place[to] = place[to - 1]; \
                    best[to] = keys[i], place[to] = at + i;                                                  \
                }                                                                                            \
            }                                                                                                \
        }                                                                                                    \
    }
BEST_ROWS(float, int32_t, f32)
BEST_ROWS(double, int64_t, f64)
BEST_ROWS(int32_t, int32_t, i32)
BEST_ROWS(int64_t, int64_t, i64)

void cyx_best_of_rows(const void *x, int dtype, int64_t rows, int64_t n, int64_t k, int largest, int64_t *out) {
    best_rows work = {x, n, k, largest, out};
    cyx_parallel(rows, cyx_grain(rows, 2.0 * (double)n, CYX_LEAST_WORK),
                 dtype == CYX_F32   ? best_rows_f32_body
                 : dtype == CYX_F64 ? best_rows_f64_body
                 : dtype == CYX_I32 ? best_rows_i32_body
                                    : best_rows_i64_body,
                 &work);
}
