/* Ed25519 (RFC 8032) of eight signatures side by side: one in each 64-bit lane of an AVX-512 register.
 *
 * Everything here is public (keys, signatures, messages), so nothing has to take the same time for every input.
 *
 * A number modulo p = 2^255 - 19 is five limbs of 51 bits. IFMA multiplies the low 52 bits of each lane, so a limb that
 * is multiplied has to be below 2^52: `carried` brings every sum back below 2^51 + 2^15. The high half of a product
 * counts 2^52, that is twice what the next limb counts.
 */

#include "lanes.h"

#include <string.h>

#if defined(__x86_64__)

#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512ifma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512ifma")
#endif

#define LIMBS 5
#define BITS 51
#define DIGITS 64 /* of 4 bits, -8 to 8 */
#define TABLE 8   /* multiples 1 to 8 */

typedef __m512i lane;
typedef struct {
    lane limb[LIMBS];
} number;
typedef struct {
    number x, y, z, t; /* x/z and y/z, with t = xy/z */
} point;
typedef struct {
    number sum, difference, z2, t2d; /* of a point: y + x, y - x, 2z, 2dt: what an addition needs of it */
} addend;

static const uint64_t MASK = (1ULL << BITS) - 1;
static const uint64_t ORDER[4] = {0x5812631a5cf5d3edULL, 0x14def9dea2f79cd6ULL, 0, 0x1000000000000000ULL};
/* -121665/121666, twice that, a root of -1, and the base point */
static const uint64_t D[LIMBS] = {
    0x34dca135978a3, 0x1a8283b156ebd, 0x5e7a26001c029, 0x739c663a03cbb, 0x52036cee2b6ff,
};
static const uint64_t D2[LIMBS] = {
    0x69b9426b2f159, 0x35050762add7a, 0x3cf44c0038052, 0x6738cc7407977, 0x2406d9dc56dff,
};
static const uint64_t ROOT[LIMBS] = {
    0x61b274a0ea0b0, 0xd5a5fc8f189d, 0x7ef5e9cbd0c60, 0x78595a6804c9e, 0x2b8324804fc1d,
};
static const uint64_t BASE_X[LIMBS] = {
    0x62d608f25d51a, 0x412a4b4f6592a, 0x75b7171a4b31d, 0x1ff60527118fe, 0x216936d3cd6e5,
};
static const uint64_t BASE_Y[LIMBS] = {
    0x6666666666658, 0x4cccccccccccc, 0x1999999999999, 0x3333333333333, 0x6666666666666,
};

static inline lane all(uint64_t value) {
    return _mm512_set1_epi64((long long)value);
}

/* A number of one expression for each limb i: written out, so that everything stays in registers. */
#define EACH(f) ((number){{f(0), f(1), f(2), f(3), f(4)}})

static inline number constant(const uint64_t *limbs) {
#define LIMB(i) all(limbs[i])
    return EACH(LIMB);
#undef LIMB
}

static inline number small(uint64_t value) {
    return (number){{all(value), all(0), all(0), all(0), all(0)}};
}

static inline lane times_19(lane a) {
    return _mm512_add_epi64(_mm512_add_epi64(_mm512_slli_epi64(a, 4), _mm512_slli_epi64(a, 1)), a);
}

/* The same number; of limbs below 2^61 every one is below 2^51 + 2^15 then. */
static inline number carried(number a) {
    const lane mask = all(MASK);
#define ABOVE(i) _mm512_srli_epi64(a.limb[i], BITS)
#define REST(i, in) _mm512_add_epi64(_mm512_and_si512(a.limb[i], mask), in)
    return (number){{REST(0, times_19(ABOVE(4))), REST(1, ABOVE(0)), REST(2, ABOVE(1)), REST(3, ABOVE(2)),
                     REST(4, ABOVE(3))}};
#undef ABOVE
#undef REST
}

static inline number plus(number a, number b) {
#define LIMB(i) _mm512_add_epi64(a.limb[i], b.limb[i])
    return carried(EACH(LIMB));
#undef LIMB
}

/* 2p - a, below 2^52 in every limb: it can be multiplied as it is. */
static inline number negative(number a) {
#define LIMB(i) _mm512_sub_epi64(all(2 * MASK - (i ? 0 : 36)), a.limb[i])
    return EACH(LIMB);
#undef LIMB
}

static inline number minus(number a, number b) {
    b = negative(b);
#define LIMB(i) _mm512_add_epi64(a.limb[i], b.limb[i])
    return carried(EACH(LIMB));
#undef LIMB
}

#define LOW(sum, i, j) _mm512_madd52lo_epu64(sum, a.limb[i], b.limb[j])
#define HIGH(sum, i, j) _mm512_madd52hi_epu64(sum, a.limb[i], b.limb[j])
#define TWICE(x) _mm512_slli_epi64(x, 1)

/* Ten columns of a product, low and high halves apart, as a number: 2^255 is 19. */
#define FOLDED(i, j) _mm512_add_epi64(column##i, times_19(column##j))
#define COLUMN(i) const lane column##i = _mm512_add_epi64(low##i, TWICE(high##i))
#define COLUMNS \
    COLUMN(1); COLUMN(2); COLUMN(3); COLUMN(4); COLUMN(5); COLUMN(6); COLUMN(7); COLUMN(8); \
    const lane column0 = low0, column9 = TWICE(high9)
#define ALL_FOLDED ((number){{FOLDED(0, 5), FOLDED(1, 6), FOLDED(2, 7), FOLDED(3, 8), FOLDED(4, 9)}})

static inline __attribute__((always_inline)) number product(number a, number b) {
    const lane no = all(0);
    const lane low0 = LOW(no, 0, 0), high1 = HIGH(no, 0, 0);
    const lane low1 = LOW(LOW(no, 0, 1), 1, 0), high2 = HIGH(HIGH(no, 0, 1), 1, 0);
    const lane low2 = LOW(LOW(LOW(no, 0, 2), 1, 1), 2, 0), high3 = HIGH(HIGH(HIGH(no, 0, 2), 1, 1), 2, 0);
    const lane low3 = LOW(LOW(LOW(LOW(no, 0, 3), 1, 2), 2, 1), 3, 0);
    const lane high4 = HIGH(HIGH(HIGH(HIGH(no, 0, 3), 1, 2), 2, 1), 3, 0);
    const lane low4 = LOW(LOW(LOW(LOW(LOW(no, 0, 4), 1, 3), 2, 2), 3, 1), 4, 0);
    const lane high5 = HIGH(HIGH(HIGH(HIGH(HIGH(no, 0, 4), 1, 3), 2, 2), 3, 1), 4, 0);
    const lane low5 = LOW(LOW(LOW(LOW(no, 1, 4), 2, 3), 3, 2), 4, 1);
    const lane high6 = HIGH(HIGH(HIGH(HIGH(no, 1, 4), 2, 3), 3, 2), 4, 1);
    const lane low6 = LOW(LOW(LOW(no, 2, 4), 3, 3), 4, 2), high7 = HIGH(HIGH(HIGH(no, 2, 4), 3, 3), 4, 2);
    const lane low7 = LOW(LOW(no, 3, 4), 4, 3), high8 = HIGH(HIGH(no, 3, 4), 4, 3);
    const lane low8 = LOW(no, 4, 4), high9 = HIGH(no, 4, 4);
    COLUMNS;
    return carried(ALL_FOLDED);
}

static inline __attribute__((always_inline)) number squared(number a) {
    const number b = a;
    const lane no = all(0);
    const lane low0 = LOW(no, 0, 0), high1 = HIGH(no, 0, 0);
    const lane low1 = TWICE(LOW(no, 0, 1)), high2 = TWICE(HIGH(no, 0, 1));
    const lane low2 = LOW(TWICE(LOW(no, 0, 2)), 1, 1), high3 = HIGH(TWICE(HIGH(no, 0, 2)), 1, 1);
    const lane low3 = TWICE(LOW(LOW(no, 0, 3), 1, 2)), high4 = TWICE(HIGH(HIGH(no, 0, 3), 1, 2));
    const lane low4 = LOW(TWICE(LOW(LOW(no, 0, 4), 1, 3)), 2, 2), high5 = HIGH(TWICE(HIGH(HIGH(no, 0, 4), 1, 3)), 2, 2);
    const lane low5 = TWICE(LOW(LOW(no, 1, 4), 2, 3)), high6 = TWICE(HIGH(HIGH(no, 1, 4), 2, 3));
    const lane low6 = LOW(TWICE(LOW(no, 2, 4)), 3, 3), high7 = HIGH(TWICE(HIGH(no, 2, 4)), 3, 3);
    const lane low7 = TWICE(LOW(no, 3, 4)), high8 = TWICE(HIGH(no, 3, 4));
    const lane low8 = LOW(no, 4, 4), high9 = HIGH(no, 4, 4);
    COLUMNS;
    return carried(ALL_FOLDED);
}

static number squared_often(number a, int times) {
    while (times--) a = squared(a);
    return a;
}

/* a^(2^250 - 1), and a^11 on the way: both inversion and the square root begin so. */
static number power_250(number a, number *a11) {
    number a2 = squared(a), a9 = product(squared_often(a2, 2), a);
    *a11 = product(a9, a2);
    number x5 = product(squared(*a11), a9);
    number x10 = product(squared_often(x5, 5), x5);
    number x20 = product(squared_often(x10, 10), x10);
    number x40 = product(squared_often(x20, 20), x20);
    number x50 = product(squared_often(x40, 10), x10);
    number x100 = product(squared_often(x50, 50), x50);
    number x200 = product(squared_often(x100, 100), x100);
    return product(squared_often(x200, 50), x50);
}

static number inverse(number a) {
    number a11, x = power_250(a, &a11);
    return product(squared_often(x, 5), a11);
}

/* The one representation below p. */
static number whole(number a) {
    const lane mask = all(MASK);
    a = carried(carried(a));
    lane over = _mm512_srli_epi64(_mm512_add_epi64(a.limb[0], all(19)), BITS); /* 1 where a >= p */
    for (int i = 1; i < LIMBS; i++) over = _mm512_srli_epi64(_mm512_add_epi64(a.limb[i], over), BITS);
    a.limb[0] = _mm512_add_epi64(a.limb[0], times_19(over));
    for (int i = 0; i < LIMBS; i++) {
        if (i + 1 < LIMBS) a.limb[i + 1] = _mm512_add_epi64(a.limb[i + 1], _mm512_srli_epi64(a.limb[i], BITS));
        a.limb[i] = _mm512_and_si512(a.limb[i], mask);
    }
    return a;
}

static __mmask8 alike(number a, number b) {
    __mmask8 same = 0xff;
    for (int i = 0; i < LIMBS; i++) same &= _mm512_cmpeq_epi64_mask(a.limb[i], b.limb[i]);
    return same;
}

static __mmask8 is_zero(number a) {
    return alike(whole(a), small(0));
}

static __mmask8 is_odd(number a) {
    return _mm512_test_epi64_mask(whole(a).limb[0], all(1));
}

static inline number chosen(__mmask8 second, number a, number b) {
#define LIMB(i) _mm512_mask_mov_epi64(a.limb[i], second, b.limb[i])
    return EACH(LIMB);
#undef LIMB
}

static point identity(void) {
    point r = {small(0), small(1), small(1), small(0)};
    return r;
}

static inline addend as_addend(point p) {
    addend r = {plus(p.y, p.x), minus(p.y, p.x), plus(p.z, p.z), product(p.t, constant(D2))};
    return r;
}

/* z2: twice the product of both z. */
static inline __attribute__((always_inline)) point added(point p, const addend *q, number z2) {
    number a = product(minus(p.y, p.x), q->difference), b = product(plus(p.y, p.x), q->sum);
    number c = product(p.t, q->t2d), e = minus(b, a), f = minus(z2, c), g = plus(z2, c), h = plus(b, a);
    point r = {product(e, f), product(g, h), product(f, g), product(e, h)};
    return r;
}

static point sum(point p, const addend *q) {
    return added(p, q, product(p.z, q->z2));
}

/* t is not needed where another doubling follows. */
static point doubled(point p, int with_t) {
    number a = squared(p.x), b = squared(p.y), c = squared(p.z), h = plus(a, b);
    number e = minus(h, squared(plus(p.x, p.y))), g = minus(a, b), f = plus(plus(c, c), g);
    point r = {product(e, f), product(g, h), product(f, g), with_t ? product(e, h) : p.t};
    return r;
}

/* Eight times a point of small order is the identity. */
static __mmask8 of_small_order(point p) {
    p = doubled(doubled(doubled(p, 0), 0), 0);
    return is_zero(p.x) & is_zero(minus(p.y, p.z));
}

static number read_numbers(const uint8_t *bytes, int stride, __mmask8 *signs) {
    uint64_t limbs[LIMBS][LANES];
    *signs = 0;
    for (int i = 0; i < LANES; i++) {
        uint64_t word[4];
        memcpy(word, bytes + i * stride, sizeof word);
        *signs |= (__mmask8)((word[3] >> 63) << i);
        limbs[0][i] = word[0] & MASK;
        limbs[1][i] = (word[0] >> 51 | word[1] << 13) & MASK;
        limbs[2][i] = (word[1] >> 38 | word[2] << 26) & MASK;
        limbs[3][i] = (word[2] >> 25 | word[3] << 39) & MASK;
        limbs[4][i] = word[3] >> 12 & MASK;
    }
    number r;
    for (int i = 0; i < LIMBS; i++) r.limb[i] = _mm512_loadu_si512(limbs[i]);
    return r;
}

/* The point with this y, and the x of that sign; where there is none, `found` has no bit. */
static point read_points(const uint8_t *bytes, int stride, __mmask8 *found) {
    __mmask8 signs;
    point r = {small(0), read_numbers(bytes, stride, &signs), small(1), small(0)};
    number one = small(1), y2 = squared(r.y), u = minus(y2, one), v = plus(product(y2, constant(D)), one);
    number v3 = product(squared(v), v), uv7 = product(product(squared(v3), v), u), a11;
    number power = power_250(uv7, &a11);
    power = product(squared_often(power, 2), uv7); /* (uv^7)^((p - 5) / 8) */
    number x = product(product(u, v3), power), vx2 = product(v, squared(x));
    __mmask8 right = is_zero(minus(vx2, u)), turned = is_zero(plus(vx2, u));
    x = chosen(turned, x, product(x, constant(ROOT)));
    *found = right | turned;
    r.x = chosen(is_odd(x) ^ signs, x, carried(negative(x)));
    r.t = product(r.x, r.y);
    return r;
}

/* 1 to 8 times the base point, one in each lane: set once, by lanes_begin. */
static struct {
    uint64_t limb[sizeof(addend) / sizeof(lane)][LANES];
} base_multiples;

static void set_base_multiples(void) {
    point b = {constant(BASE_X), constant(BASE_Y), small(1), small(0)}, r = identity();
    b.t = product(b.x, b.y);
    addend base = as_addend(b);
    for (int i = 0; i < TABLE; i++) {
        point next = sum(r, &base);
        __mmask8 goes_on = (__mmask8)(0xff << i);
        r.x = chosen(goes_on, r.x, next.x);
        r.y = chosen(goes_on, r.y, next.y);
        r.z = chosen(goes_on, r.z, next.z);
        r.t = chosen(goes_on, r.t, next.t);
    }
    number per_z = inverse(r.z);
    point flat = {product(r.x, per_z), product(r.y, per_z), small(1), small(0)};
    flat.t = product(flat.x, flat.y);
    addend made = as_addend(flat);
    memcpy(&base_multiples, &made, sizeof made);
}

/* 64 digits from -8 to 8 of a number below 2^253, of eight numbers. */
static void read_digits(const uint8_t *bytes, int stride, int64_t digits[DIGITS][LANES]) {
    for (int i = 0; i < LANES; i++) {
        int64_t carry = 0;
        for (int j = 0; j < DIGITS; j++) {
            int64_t digit = (bytes[i * stride + j / 2] >> (j % 2 * 4) & 15) + carry;
            carry = digit > 8;
            digits[j][i] = digit - (carry << 4);
        }
    }
}

static inline void turn(addend *a, __mmask8 negated) {
    number kept = a->sum;
    a->sum = chosen(negated, a->sum, a->difference);
    a->difference = chosen(negated, a->difference, kept);
    a->t2d = chosen(negated, a->t2d, negative(a->t2d));
}

static const addend *of_table(const addend *table, lane digit, addend *r) {
    const lane size = _mm512_abs_epi64(digit);
    const lane *from = (const lane *)table;
    lane *to = (lane *)r;
    enum { PARTS = sizeof(addend) / sizeof(lane) };
    r->sum = r->difference = small(1);
    r->z2 = small(2);
    r->t2d = small(0);
    for (int i = 0; i < TABLE; i++) {
        __mmask8 here = _mm512_cmpeq_epi64_mask(size, all((uint64_t)i + 1));
        for (int j = 0; j < PARTS; j++) to[j] = _mm512_mask_mov_epi64(to[j], here, from[i * PARTS + j]);
    }
    turn(r, _mm512_movepi64_mask(digit));
    return r;
}

static inline number shuffled(number a, lane index, __mmask8 kept, number other) {
#define LIMB(i) _mm512_mask_mov_epi64(other.limb[i], kept, _mm512_permutexvar_epi64(index, a.limb[i]))
    return EACH(LIMB);
#undef LIMB
}

static const addend *of_base(const addend *table, lane digit, addend *r) {
    const lane size = _mm512_abs_epi64(digit), index = _mm512_sub_epi64(size, all(1));
    __mmask8 any = _mm512_test_epi64_mask(size, size);
    r->sum = shuffled(table->sum, index, any, small(1));
    r->difference = shuffled(table->difference, index, any, small(1));
    r->t2d = shuffled(table->t2d, index, any, small(0));
    turn(r, _mm512_movepi64_mask(digit));
    return r;
}

static int below_order(const uint8_t *scalar) {
    uint64_t word[4];
    memcpy(word, scalar, sizeof word);
    for (int i = 3; i >= 0; i--)
        if (word[i] != ORDER[i]) return word[i] < ORDER[i];
    return 0;
}

void lanes_good(const uint8_t *keys, const uint8_t *signatures, const uint8_t *hashes, uint8_t *good) {
    __mmask8 known, signs, right;
    int64_t of_key[DIGITS][LANES], of_base_point[DIGITS][LANES];
    addend multiples[TABLE], base, picked;
    point key = read_points(keys, 32, &known), r = identity();
    right = known & (__mmask8)~of_small_order(key);
    key.x = carried(negative(key.x)); /* R is S times the base point less hash times the key */
    key.t = carried(negative(key.t));
    multiples[0] = as_addend(key);
    point multiple = key;
    for (int i = 1; i < TABLE; i++) {
        multiple = sum(multiple, &multiples[0]);
        multiples[i] = as_addend(multiple);
    }
    memcpy(&base, &base_multiples, sizeof base);
    for (int i = 0; i < LANES; i++)
        if (!below_order(signatures + 64 * i + 32) || !below_order(hashes + 32 * i)) right &= (__mmask8)~(1 << i);
    read_digits(hashes, 32, of_key);
    read_digits(signatures + 32, 64, of_base_point);
    for (int i = DIGITS - 1; i >= 0; i--) {
        for (int j = 0; j < 4; j++) r = doubled(r, j == 3);
        r = sum(r, of_table(multiples, _mm512_loadu_si512(of_key[i]), &picked));
        const addend *part = of_base(&base, _mm512_loadu_si512(of_base_point[i]), &picked);
        r = added(r, part, plus(r.z, r.z));
    }
    right &= (__mmask8)~of_small_order(r);
    number per_z = inverse(r.z);
    number wanted = read_numbers(signatures, 64, &signs);
    right &= alike(whole(product(r.y, per_z)), wanted) & (__mmask8)~(is_odd(product(r.x, per_z)) ^ signs);
    for (int i = 0; i < LANES; i++) good[i] = right >> i & 1;
}

void lanes_on_curve(const uint8_t *encoded, uint8_t *found) {
    __mmask8 points;
    read_points(encoded, 32, &points);
    for (int i = 0; i < LANES; i++) found[i] = points >> i & 1;
}

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

int lanes_begin(void) {
    int present = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512ifma");
    if (present) set_base_multiples();
    return present;
}

#else

int lanes_begin(void) {
    return 0;
}

void lanes_good(const uint8_t *keys, const uint8_t *signatures, const uint8_t *hashes, uint8_t *good) {
    memset(good, 0, LANES);
}

void lanes_on_curve(const uint8_t *encoded, uint8_t *found) {
    memset(found, 0, LANES);
}

#endif
