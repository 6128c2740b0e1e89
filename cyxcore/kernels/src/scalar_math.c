/* sin, cos and pow of float64, one element at a time. float32 goes through them: one rounding of a result
 * good to 1e-16. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "math.inl"

/* The bits of 2 / pi after the point, behind one word of zeros. */
static const uint64_t two_over_pi[] = {
    0,
    0xa2f9836e4e441529,
    0xfc2757d1f534ddc0,
    0xdb6295993c439041,
    0xfe5163abdebbc561,
    0xb7246e3a424dd2e0,
    0x06492eea09d1921c,
    0xfe1deb1cb129a73e,
    0xe88235f52ebb4484,
    0xe99c7026b45f7e41,
    0x3991d639835339f4,
    0x9c845f8bbdf9283b,
    0x1ff897ffde05980f,
    0xef2f118b5a0a6d1f,
    0x6d367ecf27cb09b7,
    0x4f463f669e5fea2d,
    0x7527bac7ebe5f17b,
    0x3d0739f78a5292ea,
    0x6bfb5fb11f8d5d08,
    0x56033046fc7b6bab,
    0xf0cfbc209af4361d,
};

/* x minus the nearest multiple of pi / 2 for |x| >= 2**20, with 2 / pi to as many bits as it takes (Payne and
 * Hanek). */
static pair reduce_large(double x, int *quadrant) {
    uint64_t bits = bits_of_f64(x), mantissa = (bits & 0xfffffffffffff) | 1ull << 52;
    int exponent = (int)(bits >> 52 & 2047) - 1075;
    /* Bits of 2 / pi worth a multiple of four turns are skipped; the first one kept is number exponent - 1.
     */
    int first = exponent - 1 - 1 + 64, word = first / 64, shift = first % 64;
    uint64_t window[3];
    for (int i = 0; i < 3; i++) {
        uint64_t next = word + i + 1 < 21 ? two_over_pi[word + i + 1] : 0;
        window[i] = shift ? two_over_pi[word + i] << shift | next >> (64 - shift) : two_over_pi[word + i];
    }
    unsigned __int128 low = (unsigned __int128)mantissa * window[2];
    unsigned __int128 middle = (unsigned __int128)mantissa * window[1] + (uint64_t)(low >> 64);
    uint64_t high = mantissa * window[0] + (uint64_t)(middle >> 64);
    *quadrant = (int)(high >> 62);
    unsigned __int128 fraction = (unsigned __int128)(high << 2 | (uint64_t)middle >> 62) << 64;
    fraction |= (uint64_t)((uint64_t)middle << 2 | (uint64_t)low >> 62);
    __int128 turn = (__int128)fraction; /* in [-1/2, 1/2) quarter turns, times 2**128 */
    if (turn < 0) ++*quadrant;
    double value = (double)turn;
    double rest = (double)(turn - (__int128)value);
    value *= 0x1p-128, rest *= 0x1p-128;
    double product = value * 0x1.921fb54442d18p+0;
    double lost = FMA64(value, 0x1.921fb54442d18p+0, -product) + value * 0x1.1a62633145c07p-54 +
                  rest * 0x1.921fb54442d18p+0;
    if (bits >> 63) {
        *quadrant = -*quadrant;
        product = -product, lost = -lost;
    }
    double sum = product + lost;
    return (pair){sum, (product - sum) + lost};
}

/* x minus the nearest multiple of pi / 2, which is taken off in four parts, the first three exactly (Cody and
 * Waite). */
static pair reduce(double x, int *quadrant) {
    if (__builtin_fabs(x) >= 0x1p20) return reduce_large(x, quadrant);
    double shifted = FMA64(x, 0x1.45f306dc9c883p-1, 0x1.8p52), k = shifted - 0x1.8p52;
    *quadrant = (int)(int64_t)(bits_of_f64(shifted) & 0xffffffff);
    pair first = two_difference(FMA64(k, -0x1.921fb544p+0, x), k * 0x1.0b4611a6p-34);
    pair second = two_difference(first.rest, k * 0x1.3198a2ep-69);
    double tail = FMA64(k, -0x1.b839a252049c1p-104, second.rest);
    double sum = first.value + second.value;
    return (pair){sum, ((first.value - sum) + second.value) + tail};
}

static double sine(pair r) {
    double z = r.value * r.value;
    double p = -0x1.ab066192d3e8fp-41; /* (sin(r) / r - 1) / r**2, |r| <= pi / 4 */
    p = FMA64(p, z, 0x1.612161267019ep-33);
    p = FMA64(p, z, -0x1.ae6453ecab5c4p-26);
    p = FMA64(p, z, 0x1.71de3a544a6cep-19);
    p = FMA64(p, z, -0x1.a01a01a019880p-13);
    p = FMA64(p, z, 0x1.1111111111110p-7);
    p = FMA64(p, z, -0x1.5555555555555p-3);
    return r.value + FMA64(r.value * z, p, FMA64(r.rest, -0.5 * z, r.rest));
}

static double cosine(pair r) {
    double z = r.value * r.value;
    double p = 0x1.ab68d5c07540fp-45; /* (cos(r) - 1 + r**2 / 2) / r**4 */
    p = FMA64(p, z, -0x1.93949f74df6fdp-37);
    p = FMA64(p, z, 0x1.1eed8ddaa538ep-29);
    p = FMA64(p, z, -0x1.27e4fb7708fb2p-22);
    p = FMA64(p, z, 0x1.a01a01a019cb8p-16);
    p = FMA64(p, z, -0x1.6c16c16c16c16p-10);
    p = FMA64(p, z, 0x1.5555555555555p-5);
    double half = 0.5 * z, c = 1.0 - half;
    return c + (((1.0 - c) - half) + FMA64(z * z, p, -r.value * r.rest));
}

double cyx_sin(double x) {
    if (!(__builtin_fabs(x) < INFINITY)) return x - x;
    if (__builtin_fabs(x) < 0x1p-27) return x; /* also keeps the sign of zero */
    int quadrant;
    pair r = reduce(x, &quadrant);
    double y = quadrant & 1 ? cosine(r) : sine(r);
    return quadrant & 2 ? -y : y;
}

double cyx_cos(double x) {
    if (!(__builtin_fabs(x) < INFINITY)) return x - x;
    int quadrant;
    pair r = reduce(x, &quadrant);
    double y = quadrant & 1 ? sine(r) : cosine(r);
    return (quadrant + 1) & 2 ? -y : y;
}

static int is_odd(double y) {
    double a = __builtin_fabs(y);
    return a < 0x1p53 && ((int64_t)a & 1);
}

/* x**y with the special cases of C. Powers people write out (-1, 0.5, 2, 3) are what multiplying gives. */
double cyx_pow(double x, double y) {
    if (y == 2.0) return x * x;
    if (y == 1.0) return x;
    if (y == 0.0 || x == 1.0) return 1.0;
    if (x != x || y != y) return x + y;
    if (y == -1.0) return 1.0 / x;
    if (y == 3.0) return x * x * x;
    double a = __builtin_fabs(x);
    int whole = __builtin_fabs(y) >= 0x1p53 || (double)(int64_t)y == y;
    int negative = bits_of_f64(x) >> 63 && whole && is_odd(y);
    double result;
    if (__builtin_fabs(y) == INFINITY) return a == 1.0 ? 1.0 : (a > 1.0) == (y > 0.0) ? INFINITY : 0.0;
    if (a == 0.0 || a == INFINITY)
        result = (a == 0.0) == (y > 0.0) ? 0.0 : INFINITY;
    else if (x < 0.0 && !whole)
        return NAN;
    else if (y == 0.5)
        result = __builtin_sqrt(a);
    else
        result = power_of_positive(a, y);
    return negative ? -result : result;
}

/* As NumPy's: of the sign of y, exact. */
double cyx_remainder(double x, double y) {
    double rest = fmod(x, y);
    if (rest == 0.0) return copysign(0.0, y);
    return (rest < 0.0) != (y < 0.0) ? rest + y : rest;
}
