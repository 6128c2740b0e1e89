/* exp, log, log1p, tanh, sigmoid, erf, sin, cos, atan2, pow: at most 2 units in the last place, the same bits everywhere.
 *
 * Every step is an IEEE operation or a fused multiply-add written as such, so a compiler can only choose how
 * many elements go at once. No branch in the functions that matter for speed: the loops around them
 * vectorise. Coefficients are Chebyshev or minimax fits made for this file with 50-digit arithmetic, over the
 * interval named at each. */

static inline uint32_t bits_of_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float f32_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline uint64_t bits_of_f64(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline double f64_of_bits(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#define FMA32(a, b, c) __builtin_fmaf(a, b, c)
#define FMA64(a, b, c) __builtin_fma(a, b, c)
#define MATH static inline __attribute__((always_inline))

/* ---- float32 ---- */

/* 2 to the power of 0 to 7 eighths. */
static const float eighths[8] = {0x1p+0f, 0x1.172b84p+0f, 0x1.306fep+0f, 0x1.4bfdaep+0f, 0x1.6a09e6p+0f,
                                  0x1.8ace54p+0f, 0x1.ae89fap+0f, 0x1.d5818ep+0f};

/* For x from -104 to 89: a number from 0.95 to 1.93, and what power of two it is times, to make e**x. x = n ln 2 / 8 + r,
 * so e**x is 2**(n / 8), of which a table holds eight, times e**r, |r| <= ln 2 / 16. */
MATH float power_f32(float x, int32_t *exponent) {
    float shifted = FMA32(x, 0x1.715476p+0f, 0x1.8p20f); /* adding 1.5 * 2**20 leaves the nearest eighth in the low bits */
    int32_t n = (int32_t)(bits_of_f32(shifted) - 0x49c00000u);
    float k = shifted - 0x1.8p20f;
    float r = FMA32(k, -0x1.7f7d1cp-20f, FMA32(k, -0x1.62e4p-1f, x));
    float p = FMA32(r, FMA32(r, 0x1.555dacp-5f, 0x1.555c7ep-3f), 0.5f); /* (e**r - 1 - r) / r**2 */
    float whole = eighths[n & 7];
    *exponent = n >> 3;
    return FMA32(whole, FMA32(r * r, p, r), whole);
}

/* The power of two is applied in two halves, so that results below the normal numbers round once and those above become
 * infinity. */
MATH float exp_f32(float x) {
    float c = x > 89.0f ? 89.0f : x;
    c = c < -104.0f ? -104.0f : c;
    int32_t n;
    float e = power_f32(c, &n);
    int32_t half = n >> 1;
    /* Below half the smallest number the result is 0; processors take a hundred cycles to find that by themselves. */
    uint32_t last = x < -103.98f ? 0 : (uint32_t)(n - half + 127) << 23;
    return e * f32_of_bits((uint32_t)(half + 127) << 23) * f32_of_bits(last);
}

/* x = 2**e m with m in [0.703125, 1.40625), which is sixteen parts with equal bits; log x = e ln 2 - log c + log(m c),
 * where c is near 1 / m in its part, 1 around 1, and such that -log c is within 2**-36 of a float32. */
static const float log_near[16] = {0x1.641d2cp+0f, 0x1.5564fap+0f, 0x1.47bbccp+0f, 0x1.3b20d8p+0f,
                                   0x1.2f63fap+0f, 0x1.248eeep+0f, 0x1.1a653ap+0f, 0x1.11031cp+0f,
                                   0x1.0852e6p+0f, 1.0f,           0x1.e1f452p-1f, 0x1.c711d4p-1f,
                                   0x1.af1f4ap-1f, 0x1.99a968p-1f, 0x1.8624d2p-1f, 0x1.746c6cp-1f};
static const float log_part[16] = {-0x1.51febep-2f, -0x1.26c50ep-2f, -0x1.f9e78p-3f,  -0x1.a9944ep-3f,
                                   -0x1.5bd6dep-3f, -0x1.11616ap-3f, -0x1.91f1a2p-4f, -0x1.07882ap-4f,
                                   -0x1.061fa2p-5f, 0.0f,            0x1.ef69ap-5f,   0x1.e2d004p-4f,
                                   0x1.601e68p-3f,  0x1.c8b076p-3f,  0x1.165524p-2f,  0x1.45ee94p-2f};

MATH float log_f32(float x) {
    float scaled = x < 0x1p-126f ? x * 0x1p23f : x;
    int32_t below = x < 0x1p-126f ? 23 : 0;
    uint32_t bits = bits_of_f32(scaled), from = bits - 0x3f340000u, part = from >> 19 & 15;
    int32_t exponent = (int32_t)from >> 23;
    float f = FMA32(f32_of_bits(bits - ((uint32_t)exponent << 23)), log_near[part], -1.0f);
    /* (log(1 + f) - f) / f**2, |f| <= 0.0313 */
    float z = f * f, p = FMA32(f, 0x1.555554p-2f, -0x1.fffffcp-2f);
    p = FMA32(z, FMA32(f, 0x1.99e24ap-3f, -0x1.003a74p-2f), p);
    float y = FMA32((float)(exponent - below), 0x1.62e43p-1f, log_part[part] + FMA32(z, p, f));
    y = x == 0.0f ? -INFINITY : y;
    y = x < 0.0f ? NAN : y;
    return x < INFINITY ? y : x; /* infinity and NaN are their own logarithm */
}

/* tanh a = h / (h + 1) with h = (e**2a - 1) / 2 = 2**n g + (2**n - 1) / 2 and g = (e**2r - 1) / 2. Up to a = 0.26, n is
 * 0 and h as good as g, so that nothing cancels. */
MATH float tanh_f32(float x) {
    float a = __builtin_fabsf(x);
    a = a > 9.02f ? 9.02f : a; /* 1 from 9.011 on */
    float shifted = FMA32(a, 0x1.715476p+1f, -0.25f) + 0x1.8p23f, k = shifted - 0x1.8p23f;
    float power = f32_of_bits((bits_of_f32(shifted) << 23) + 0x3f800000u);
    float half = f32_of_bits((bits_of_f32(shifted) << 23) + 0x3f000000u) - 0.5f;
    float r = FMA32(k, -0x1.62e43p-2f, a);
    float z = r * r;
    float p = FMA32(z, 0x1.a36272p-5f, FMA32(r, 0x1.0f7e94p-3f, 0x1.554936p-2f));
    p = FMA32(z, p, FMA32(r, 0x1.555634p-1f, 0x1.000002p+0f)); /* (g - r) / r**2, -0.087 <= r <= 0.26 */
    float h = FMA32(power, FMA32(z, p, r), half), y = h / (h + 1.0f);
    y = a < 0.35f ? FMA32(-y, h, h) : y; /* where h is small, what h + 1 loses counts less so */
    return __builtin_copysignf(y, x);
}

/* e / (e + 1) with e = e**x. */
MATH float sigmoid_f32(float x) {
    float c = x > 88.0f ? 88.0f : x;
    c = c < -104.0f ? -104.0f : c;
    int32_t n;
    float e = power_f32(c, &n);
    int32_t half = n >> 1;
    e = e * f32_of_bits((uint32_t)(half + 127) << 23) * f32_of_bits((uint32_t)(n - half + 127) << 23);
    float y = e / (e + 1.0f);
    return x < -1.0f ? FMA32(-y, e, e) : y; /* as in tanh_f32 */
}

/* sin (shift 0) and cos (shift 1) for |x| < 2**20: x less the nearest multiple of pi / 2, which is taken off in three
 * parts. The first difference is exact, since both are multiples of one power of two; the last part is far below a unit
 * in the last place of any result but those near 0. */
MATH float sine_f32(float x, int shift) {
    float a = __builtin_fabsf(x), shifted = FMA32(a, 0x1.45f306p-1f, 0x1.8p23f), k = shifted - 0x1.8p23f;
    uint32_t quadrant = bits_of_f32(shifted) + (uint32_t)shift;
    float r = FMA32(k, -0x1.921fb4p+0f, a);
    r = FMA32(k, -0x1.4442d2p-24f, r);
    r = FMA32(k, 0x1.ee59dap-50f, r);
    float z = r * r;
    int is_cosine = quadrant & 1;
    float p = is_cosine ? 0x1.993bcep-16f : -0x1.9862b4p-13f; /* (cos(r) - 1 + r**2 / 2) / r**4, (sin(r) - r) / r**3 */
    p = FMA32(p, z, is_cosine ? -0x1.6c09cp-10f : 0x1.110486p-7f); /* |r| <= 0.83 */
    p = FMA32(p, z, is_cosine ? 0x1.555546p-5f : -0x1.55553ep-3f);
    float y = FMA32(z * (is_cosine ? z : r), p, is_cosine ? FMA32(-0.5f, z, 1.0f) : r);
    uint32_t sign = (quadrant << 30 ^ (shift ? 0 : bits_of_f32(x))) & 0x80000000u;
    return f32_of_bits(bits_of_f32(y) ^ sign);
}

/* Sixteen polynomials in t = a - k s, one around each multiple of s, a little more than 4 / 15.5 and such that erf(k s) is near a
 * float32; the last reaches to 4, from where on erf is 1. Around 0 that of erf(a) - a, which has odd powers alone. */
static const float erf_part[6][16] = {
    {0.0f, 0x1.246b3ep-2f, 0x1.124994p-1f, 0x1.74919ap-1f, 0x1.b6a1ecp-1f, 0x1.dd8846p-1f, 0x1.f198aep-1f,
     0x1.faa95ap-1f, 0x1.fe3fc6p-1f, 0x1.ff7e26p-1f, 0x1.ffded2p-1f, 0x1.fff888p-1f, 0x1.fffe86p-1f, 0x1.ffffbep-1f,
     0x1.fffff6p-1f, 0x1.fffffep-1f},
    {0x1.06eba8p-3f, 0x1.0e291p+0f, 0x1.ba027p-1f, 0x1.3c4664p-1f, 0x1.8be56cp-2f, 0x1.b1764ap-3f, 0x1.9f1ed8p-4f,
     0x1.5bbc98p-5f, 0x1.fd93dp-7f, 0x1.469528p-8f, 0x1.6e2674p-10f, 0x1.6711dap-12f, 0x1.34002ap-14f,
     0x1.ce2d88p-17f, 0x1.2f4f6ap-19f, 0x1.5c377cp-22f},
    {0.0f, -0x1.17985ap-2f, -0x1.c972e6p-2f, -0x1.eafcdp-2f, -0x1.99bab6p-2f, -0x1.1860fap-2f, -0x1.4236d6p-3f,
     -0x1.3aeaa6p-4f, -0x1.07ad5ep-5f, -0x1.7c0eeep-7f, -0x1.d93d48p-9f, -0x1.fec42ep-11f, -0x1.f5fafep-13f,
     -0x1.84899cp-15f, -0x1.4560f2p-17f, 0x1.07b956p-17f},
    {-0x1.81262cp-2f, -0x1.380158p-2f, -0x1.11c1f8p-3f, 0x1.59b864p-5f, 0x1.2d7522p-3f, 0x1.5323dcp-3f,
     0x1.084b14p-3f, 0x1.424474p-4f, 0x1.41695ap-5f, 0x1.0bee84p-6f, 0x1.7a020cp-8f, 0x1.c6d1eep-10f,
     0x1.d523b8p-12f, 0x1.a05c5ap-14f, 0x1.3eee08p-16f, 0x1.a66d08p-19f},
    {0.0f, 0x1.093104p-3f, 0x1.759488p-3f, 0x1.24d7a8p-3f, 0x1.d5df4cp-5f, -0x1.fcc216p-7f, -0x1.85a79ep-5f,
     -0x1.72faa6p-5f, -0x1.eb697p-6f, -0x1.fde13p-7f, -0x1.a9e15p-8f, -0x1.1edc12p-9f, 0x1.b0c536p-15f,
     -0x1.44b882p-13f, 0x1.e50c78p-15f, -0x1.206bdap-11f},
    {0x1.cb6dfep-4f, 0x1.4257ccp-4f, 0x1.9a3e94p-9f, -0x1.ceac88p-5f, -0x1.145b16p-4f, -0x1.53c0cap-5f,
     -0x1.2f4e94p-7f, 0x1.3165aap-7f, 0x1.a6b168p-7f, 0x1.2e310ap-7f, 0x1.38063ep-8f, 0x1.fac07ep-10f,
     0x1.503c3ep-11f, 0x1.741b7ap-13f, 0x1.585ab6p-15f, 0x1.0f451p-17f}};

MATH float erf_f32(float x) {
    float a = __builtin_fabsf(x);
    a = a > 4.0f ? 4.0f : a;
    float shifted = FMA32(a, 0x1.eeb6e2p+1f, 0x1.8p23f), k = shifted - 0x1.8p23f, t = FMA32(k, -0x1.08f1dep-2f, a);
    uint32_t part = bits_of_f32(shifted) & 15;
    float p = FMA32(erf_part[5][part], t, erf_part[4][part]);
    p = FMA32(p, t, erf_part[3][part]);
    p = FMA32(p, t, erf_part[2][part]);
    p = FMA32(p, t, erf_part[1][part]);
    return __builtin_copysignf(FMA32(p, t, part ? erf_part[0][part] : a), x);
}

/* ---- float64 ---- */

/* 2**n (1 + value) for |n| <= 2046, rounded once. The shift is logical: AVX2 has no other on 64 bits. */
MATH double scale_f64(double value, int64_t n) {
    uint64_t whole = (uint64_t)n, half = ((whole + 4096) >> 1) - 2048; /* of a NaN n may be anything */
    return value * f64_of_bits((half + 1023) << 52) * f64_of_bits((whole - half + 1023) << 52);
}

/* e**(x + low) for |low| far below x. */
MATH double exp_sum_f64(double x, double low) {
    double c = x > 710.0 ? 710.0 : x;
    c = c < -746.0 ? -746.0 : c;
    double shifted = FMA64(c, 0x1.71547652b82fep+0, 0x1.8p52);
    int64_t n = (int64_t)(bits_of_f64(shifted) - 0x4338000000000000u);
    double k = shifted - 0x1.8p52;
    double high = FMA64(k, -0x1.62e42fefa4p-1, c);
    double tail = FMA64(k, 0x1.8432a1b0e2634p-43, low);
    double r = high + tail;
    double lost = (high - r) + tail;
    double p = 0x1.1f75aba0b1e2ep-29; /* (e**r - 1 - r) / r**2, |r| <= 0.35 */
    p = FMA64(p, r, 0x1.af52906239de4p-26);
    p = FMA64(p, r, 0x1.27e4da1a3bf04p-22);
    p = FMA64(p, r, 0x1.71ddffef9e7b1p-19);
    p = FMA64(p, r, 0x1.a01a01a741b3cp-16);
    p = FMA64(p, r, 0x1.a01a01aca0134p-13);
    p = FMA64(p, r, 0x1.6c16c16c16212p-10);
    p = FMA64(p, r, 0x1.111111110ff87p-7);
    p = FMA64(p, r, 0x1.5555555555556p-5);
    p = FMA64(p, r, 0x1.5555555555557p-3);
    p = FMA64(p, r, 0.5);
    double e = 1.0 + (r + FMA64(p, r * r, FMA64(lost, r, lost)));
    return scale_f64(e, n);
}

MATH double exp_f64(double x) { return exp_sum_f64(x, 0.0); }

MATH double log_f64(double x) {
    double scaled = x < 0x1p-1022 ? x * 0x1p54 : x;
    int32_t below = x < 0x1p-1022 ? 54 : 0;
    uint64_t bits = bits_of_f64(scaled);
    int32_t exponent = (int32_t)((bits - 0x3fe6a09e667f3bcdu + (1024ull << 52)) >> 52) - 1024;
    double f = f64_of_bits(bits - ((uint64_t)(int64_t)exponent << 52)) - 1.0;
    double e = (double)(exponent - below);
    double s = f / (2.0 + f), z = s * s;
    double p = 0x1.0c06cf14c641bp-3; /* 2 (atanh(s) / s - 1) / s**2 */
    p = FMA64(p, z, 0x1.0fbe478772696p-3);
    p = FMA64(p, z, 0x1.3b1c38474d3eep-3);
    p = FMA64(p, z, 0x1.745cf8f6c9119p-3);
    p = FMA64(p, z, 0x1.c71c72017a15cp-3);
    p = FMA64(p, z, 0x1.2492492476ba1p-2);
    p = FMA64(p, z, 0x1.9999999999a38p-2);
    p = FMA64(p, z, 0x1.5555555555555p-1);
    double square = 0.5 * f * f;
    double correction = FMA64(s, square + p * z, e * -0x1.8432a1b0e2634p-43);
    double y = FMA64(e, 0x1.62e42fefa4p-1, f - (square - correction));
    y = x == 0.0 ? -(double)INFINITY : y;
    y = x < 0.0 ? (double)NAN : y;
    return x < (double)INFINITY ? y : x;
}

/* In float64, in which 1 + x loses nothing that a float32 would show. */
MATH float log1p_f32(float x) {
    double wide = x, y = log_f64(1.0 + wide);
    double series = FMA64(wide * wide, FMA64(wide, 0x1.5555555555555p-2, -0.5), wide);
    return (float)(__builtin_fabs(wide) < 0x1p-13 ? series : y);
}

/* The angle of (x, y), in float64: that of the first eighth of a turn by a polynomial in t = low / high, the others from it. */
MATH float atan2_f32(float y, float x) {
    double a = __builtin_fabsf(y), b = __builtin_fabsf(x), high = a > b ? a : b, low = a > b ? b : a;
    double t = low == high ? (high > 0.0 ? 1.0 : 0.0) : low / high, z = t * t; /* of two infinities, or zeros, too */
    double p = -0x1.8c3df2f8025f2p-12; /* (atan(t) / t - 1) / t**2, t <= 1, to 2**-36 */
    p = FMA64(p, z, 0x1.78e5494f454ddp-9);
    p = FMA64(p, z, -0x1.501b58d7c5d83p-7);
    p = FMA64(p, z, 0x1.7ce6bf2e13f66p-6);
    p = FMA64(p, z, -0x1.3d9456c30b29cp-5);
    p = FMA64(p, z, 0x1.b1b76c9c6a591p-5);
    p = FMA64(p, z, -0x1.09b5c76aff80ep-4);
    p = FMA64(p, z, 0x1.39851af4a0e9ep-4);
    p = FMA64(p, z, -0x1.7425acb13e55ep-4);
    p = FMA64(p, z, 0x1.c717c7c1bc05ap-4);
    p = FMA64(p, z, -0x1.24922eae8609bp-3);
    p = FMA64(p, z, 0x1.9999992244316p-3);
    p = FMA64(p, z, -0x1.555555552843ap-2);
    double angle = FMA64(t, z * p, t);
    angle = a > b ? 0x1.921fb54442d18p+0 - angle : angle;
    angle = bits_of_f32(x) >> 31 ? 0x1.921fb54442d18p+1 - angle : angle;
    return __builtin_copysignf((float)angle, y);
}

MATH double tanh_f64(double x) {
    double a = __builtin_fabs(x), z = a * a;
    double p = 0x1.08378067f032ap-17; /* (tanh(a) / a - 1) / a**2, a <= 0.55 */
    p = FMA64(p, z, -0x1.1adede7706052p-15);
    p = FMA64(p, z, 0x1.8c93b7d5aba25p-14);
    p = FMA64(p, z, -0x1.f41d11ba745ap-13);
    p = FMA64(p, z, 0x1.3547bfaa42508p-11);
    p = FMA64(p, z, -0x1.7da25da5066b5p-10);
    p = FMA64(p, z, 0x1.d6d3c60009e9cp-9);
    p = FMA64(p, z, -0x1.226e3539b9272p-7);
    p = FMA64(p, z, 0x1.664f48822e9a5p-6);
    p = FMA64(p, z, -0x1.ba1ba1ba1a732p-5);
    p = FMA64(p, z, 0x1.1111111111109p-3);
    p = FMA64(p, z, -0x1.5555555555555p-2);
    double small = FMA64(a, z * p, a);
    double large = 1.0 - 2.0 / (exp_f64(2.0 * a) + 1.0);
    return __builtin_copysign(a < 0.55 ? small : large, x);
}

/* 1 / (a + b) for 0 <= b <= a, as if the sum had not been rounded: one division and one Newton step. */
MATH double reciprocal_f64(double a, double b) {
    double sum = a + b, lost = b - (sum - a), inverse = 1.0 / sum;
    return FMA64(inverse, FMA64(-sum, inverse, 1.0) - lost * inverse, inverse);
}

MATH double sigmoid_f64(double x) {
    double z = exp_f64(-__builtin_fabs(x));
    double top = x >= 0.0 ? 1.0 : z;
    return top * reciprocal_f64(1.0, z);
}

/* A polynomial below 1; above it 1 - e**(-a**2) g(t), where g is e**(a**2) erfc(a) in t = (a - 2) / (a + 2).
 */
MATH double erf_f64(double x) {
    double a = __builtin_fabs(x), z = a * a;
    double p = 0x1.05ffd737fb32ep-34; /* erf(a) / a - 1 */
    p = FMA64(p, z, -0x1.389d4f2641625p-30);
    p = FMA64(p, z, 0x1.f7b4bf3b13964p-27);
    p = FMA64(p, z, -0x1.5f1ecb6f0764cp-23);
    p = FMA64(p, z, 0x1.b9df224ca4b97p-20);
    p = FMA64(p, z, -0x1.f4d1e3183f7aep-17);
    p = FMA64(p, z, 0x1.f9a321d5b8e1ep-14);
    p = FMA64(p, z, -0x1.c02db3dac435fp-11);
    p = FMA64(p, z, 0x1.565bcd0dbaa38p-8);
    p = FMA64(p, z, -0x1.b82ce31284ep-6);
    p = FMA64(p, z, 0x1.ce2f21a042b3p-4);
    p = FMA64(p, z, -0x1.812746b0379e6p-2);
    p = FMA64(p, z, 0x1.06eba8214db69p-3);
    double small = FMA64(a, p, a);
    double c = a > 6.0 ? 6.0 : a;
    double t = (c - 2.0) / (c + 2.0);
    double g = 0x1.06de90fce20e3p-18;
    g = FMA64(g, t, 0x1.e89749bb276c3p-20);
    g = FMA64(g, t, -0x1.d8072f8b2af1ep-17);
    g = FMA64(g, t, -0x1.cfd845cfda3f9p-16);
    g = FMA64(g, t, 0x1.ce18d5b499621p-16);
    g = FMA64(g, t, 0x1.6dac8e32716eep-13);
    g = FMA64(g, t, 0x1.6d5bf00483674p-15);
    g = FMA64(g, t, -0x1.016b61e9c90a9p-10);
    g = FMA64(g, t, -0x1.bc25a2a5685b8p-11);
    g = FMA64(g, t, 0x1.ca95ed5c92a4bp-8);
    g = FMA64(g, t, 0x1.e9471595c0b9dp-9);
    g = FMA64(g, t, -0x1.437f0b68c2dcp-4);
    g = FMA64(g, t, 0x1.eeea7dc8a7932p-3);
    g = FMA64(g, t, -0x1.b57034efd3f69p-2);
    g = FMA64(g, t, 0x1.058671b52c776p-2);
    double large = 1.0 - exp_f64(-c * c) * g;
    return __builtin_copysign(a < 1.0 ? small : large, x);
}

typedef struct {
    double value, rest; /* value + rest is the number */
} pair;

MATH pair two_difference(double a, double b) {
    double value = a - b, back = a - value;
    return (pair){value, (back - b) + (a - (value + back))};
}

MATH pair two_sum(double a, double b) { return two_difference(a, -b); }

/* log(1 + x) = log u + rest / u, where u is 1 + x as it rounds. Near 0 the first two terms of the series are enough. */
MATH double log1p_f64(double x) {
    pair u = two_sum(1.0, x);
    double y = log_f64(u.value);
    y = (x > -1.0) & (x < 0x1p53) ? y + u.rest / u.value : y;
    return __builtin_fabs(x) < 0x1p-30 ? FMA64(-0.5 * x, x, x) : y;
}

/* log x to about 100 bits for 0 < x < infinity: 2 atanh((m - 1) / (m + 1)) + e ln 2. */
MATH pair log_pair(double x) {
    int below = x < 0x1p-1022 ? 54 : 0;
    uint64_t bits = bits_of_f64(below ? x * 0x1p54 : x);
    int exponent = (int)((bits - 0x3fe6a09e667f3bcdu + (1024ull << 52)) >> 52) - 1024;
    double m = f64_of_bits(bits - ((uint64_t)(int64_t)exponent << 52)), e = exponent - below;
    double f = m - 1.0, d = m + 1.0, d_rest = m - (d - 1.0);
    double s = f / d, s_rest = (FMA64(-s, d, f) - s * d_rest) / d;
    double z = s * s, z_rest = FMA64(s, s, -z) + 2.0 * s * s_rest;
    double cube = s * z, cube_rest = FMA64(s, z, -cube) + s * z_rest + s_rest * z;
    double third = cube * 0x1.5555555555555p-2;
    double third_rest = FMA64(cube, 0x1.5555555555555p-2, -third) + cube * 0x1.5555555555555p-56 +
                        cube_rest * 0x1.5555555555555p-2;
    double p = 0x1.b8d8d842612f1p-5; /* (atanh(s) / s - 1 - s**2 / 3) / s**4 */
    p = FMA64(p, z, 0x1.ac4a068982d9cp-5);
    p = FMA64(p, z, 0x1.e1f8005103106p-5);
    p = FMA64(p, z, 0x1.1110df9bb902ap-4);
    p = FMA64(p, z, 0x1.3b13b1bcae4ffp-4);
    p = FMA64(p, z, 0x1.745d174512f5ep-4);
    p = FMA64(p, z, 0x1.c71c71c71cfdep-4);
    p = FMA64(p, z, 0x1.2492492492491p-3);
    p = FMA64(p, z, 0x1.999999999999ap-3);
    pair sum = two_sum(s, third);
    sum.rest += s_rest + third_rest + cube * z * p;
    pair total = two_sum(e * 0x1.62e42fefa4p-1, 2.0 * sum.value);
    total.rest += 2.0 * sum.rest - e * 0x1.8432a1b0e2634p-43;
    double value = total.value + total.rest;
    return (pair){value, (total.value - value) + total.rest};
}

/* x**y for 0 < x < infinity and finite y. */
MATH double power_of_positive(double x, double y) {
    pair log_x = log_pair(x);
    double product = y * log_x.value, rest = FMA64(y, log_x.value, -product) + y * log_x.rest;
    return exp_sum_f64(product, __builtin_fabs(product) < 800.0 ? rest : 0.0);
}

/* The rest goes one element at a time: scalar_math.c. */
double cyx_sin(double x);
double cyx_cos(double x);
double cyx_pow(double x, double y);
