/* exp, log, log1p, tanh, sigmoid, erf, erfc, ndtr, gelu, sin, cos, atan2, hypot, pow: at most 2 units in the last place, the same
 * bits everywhere; gamma functions and erfinv, whose errors are at each.
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

/* The normal distribution function of -|x|, in float64 to 2**-28: e**(-a**2 / 2) R(a) with a = |x| up to 16, R(a) by a polynomial in
 * t = (a - 3) / (a + 3). */
MATH double normal_tail_f32(double x) {
    double a = __builtin_fabs(x);
    a = a > 16.0 ? 16.0 : a;
    double inverse = 1.0 / (a + 3.0), t = FMA64(-6.0, inverse, 1.0);
    double p = 0x1.d09dc3d1f022ap-15; /* (a + 3) R(a) */
    p = FMA64(p, t, 0x1.1748c14a37708p-13);
    p = FMA64(p, t, -0x1.007cf98df4b67p-12);
    p = FMA64(p, t, -0x1.0f21477ee8982p-10);
    p = FMA64(p, t, 0x1.0c78a993c4b8dp-10);
    p = FMA64(p, t, 0x1.c8c671420e9cp-8);
    p = FMA64(p, t, -0x1.56d410ac41ffdp-7);
    p = FMA64(p, t, -0x1.832d2afeee58bp-5);
    p = FMA64(p, t, 0x1.d713820eee811p-3);
    p = FMA64(p, t, -0x1.04c7299a8c6ecp-1);
    p = FMA64(p, t, 0x1.754a751f36d0dp-1);
    double square = -0.5 * a * a, shifted = FMA64(square, 0x1.71547652b82fep+0, 0x1.8p52);
    uint64_t n = bits_of_f64(shifted) - 0x4338000000000000u;
    double r = FMA64(shifted - 0x1.8p52, -0x1.62e42fefa39efp-1, square);
    double e = 0x1.a12515da60daep-13; /* (e**r - 1 - r) / r**2, |r| <= 0.35 */
    e = FMA64(e, r, 0x1.6d434d32cc595p-10);
    e = FMA64(e, r, 0x1.1110e0e528fc9p-7);
    e = FMA64(e, r, 0x1.5554e8e8cf598p-5);
    e = FMA64(e, r, 0x1.5555555a7b04dp-3);
    e = FMA64(e, r, 0x1.0000000b95df5p-1);
    double ratio = p * inverse, tail = FMA64(ratio, FMA64(e, r * r, r), ratio);
    return f64_of_bits(bits_of_f64(tail) + (n << 52)); /* a NaN that was a float32 stays one: its n ends in zeros */
}

MATH float ndtr_f32(float x) {
    double tail = normal_tail_f32(x);
    return (float)(x > 0.0f ? 1.0 - tail : tail);
}

MATH float erfc_f32(float x) {
    double tail = 2.0 * normal_tail_f32(0x1.6a09e667f3bcdp+0 * x);
    return (float)(x < 0.0f ? 2.0 - tail : tail);
}

/* a Phi(-a) and, in the second table, its derivative, Phi(-a) - a phi(a), for 0 <= a <= GELU_NEAR: 32 polynomials each, in t = a - k s,
 * s = 11 / 64. Beyond, the first is no more than 2**-25 of a, and both fall too fast for polynomials. */
#define GELU_NEAR 5.41f
static const float gelu_part[7][32] = {
    {0.0f, 0x1.2ff6fp-4f, 0x1.0152f6p-3f, 0x1.400788p-3f, 0x1.5a3458p-3f, 0x1.57515p-3f, 0x1.3f5bfcp-3f,
     0x1.1a0a0cp-3f, 0x1.dc462ep-4f, 0x1.822884p-4f, 0x1.2d85dap-4f, 0x1.c65feep-5f, 0x1.4ad334p-5f,
     0x1.d1fdap-6f, 0x1.3db3eep-6f, 0x1.a39a9cp-7f, 0x1.0c832ep-7f, 0x1.4d1f8ap-8f, 0x1.90ba22p-9f,
     0x1.d3822cp-10f, 0x1.088752p-10f, 0x1.226a46p-11f, 0x1.35597p-12f, 0x1.3fbebcp-13f, 0x1.40b6a4p-14f,
     0x1.383068p-15f, 0x1.26efe4p-16f, 0x1.0e70ep-17f, 0x1.e162fp-19f, 0x1.9fdc7cp-20f, 0x1.5cb8b2p-21f,
     0x1.1bdaaap-22f},
    {0x1p-1f, 0x1.74f22ap-2f, 0x1.e3d62ap-3f, 0x1.f7a40cp-4f, 0x1.e0b2f8p-6f, -0x1.576868p-5f,
     -0x1.72ca7ep-4f, -0x1.e48498p-4f, -0x1.0752eep-3f, -0x1.0136bep-3f, -0x1.d1ca1cp-4f, -0x1.8d12b4p-4f,
     -0x1.418908p-4f, -0x1.f16634p-5f, -0x1.70d818p-5f, -0x1.06e64ap-5f, -0x1.68e62cp-6f, -0x1.ddc142p-7f,
     -0x1.31448p-7f, -0x1.78e838p-8f, -0x1.c1e896p-9f, -0x1.03bfbp-9f, -0x1.224034p-10f, -0x1.39fcd8p-11f,
     -0x1.48ee38p-12f, -0x1.4dc7d2p-13f, -0x1.4827c6p-14f, -0x1.38a37cp-15f, -0x1.20af0cp-16f,
     -0x1.0264cp-17f, -0x1.c071p-19f, -0x1.794c04p-20f},
    {-0x1.988454p-2f, -0x1.8c94f2p-2f, -0x1.6a542ep-2f, -0x1.361e9ap-2f, -0x1.ec9e5ep-3f, -0x1.6438a2p-3f,
     -0x1.c199f6p-4f, -0x1.b5cbc4p-5f, -0x1.15c802p-7f, 0x1.84104p-6f, 0x1.63f34ep-5f, 0x1.aebe0cp-5f,
     0x1.b70488p-5f, 0x1.92e76cp-5f, 0x1.567856p-5f, 0x1.1196c6p-5f, 0x1.9e601cp-6f, 0x1.2b1da2p-6f,
     0x1.9d298cp-7f, 0x1.11bd94p-7f, 0x1.5cab2p-8f, 0x1.ab876cp-9f, 0x1.f94122p-10f, 0x1.20054cp-10f,
     0x1.3d071ep-11f, 0x1.511c8cp-12f, 0x1.5a7b58p-13f, 0x1.585b82p-14f, 0x1.4b12e2p-15f, 0x1.3402fep-16f,
     0x1.155e9cp-17f, 0x1.e3a7f8p-19f},
    {0x1.e8c068p-21f, 0x1.6e48e8p-5f, 0x1.5692fp-4f, 0x1.cb19f4p-4f, 0x1.04b82cp-3f, 0x1.07d344p-3f,
     0x1.e499b2p-4f, 0x1.9593aep-4f, 0x1.32ed8p-4f, 0x1.995abp-5f, 0x1.bf182ap-6f, 0x1.257616p-7f,
     -0x1.0ff486p-8f, -0x1.8e12c2p-7f, -0x1.037766p-6f, -0x1.0bd688p-6f, -0x1.e68b58p-7f, -0x1.9465cap-7f,
     -0x1.39873p-7f, -0x1.ca635ap-8f, -0x1.3e1d92p-8f, -0x1.a516ap-9f, -0x1.0aa23cp-9f, -0x1.43d3a8p-10f,
     -0x1.79da28p-11f, -0x1.a82fbcp-12f, -0x1.caaafap-13f, -0x1.de23dp-14f, -0x1.e0e522p-15f,
     -0x1.d2f06p-16f, -0x1.b5f1d4p-17f, -0x1.8cf036p-18f},
    {0x1.103d8ap-4f, 0x1.fd6f24p-5f, 0x1.9953bap-5f, 0x1.07661ap-5f, 0x1.897c1ap-7f, -0x1.d60a9ep-8f,
     -0x1.7232b4p-6f, -0x1.0aa51ep-5f, -0x1.2b89cep-5f, -0x1.215f3cp-5f, -0x1.ee5ebp-6f, -0x1.77d91p-6f,
     -0x1.f304b4p-7f, -0x1.0e67e2p-7f, -0x1.69bb96p-9f, 0x1.034286p-10f, 0x1.9a00ep-9f, 0x1.051c7p-8f,
     0x1.04510ap-8f, 0x1.c5993ep-9f, 0x1.687f44p-9f, 0x1.0ab0a4p-9f, 0x1.72fbbep-10f, 0x1.e90c06p-11f,
     0x1.32e4bap-11f, 0x1.7006bp-12f, 0x1.a694dp-13f, 0x1.d1b3d2p-14f, 0x1.ed387ap-15f, 0x1.f69d6p-16f,
     0x1.ed5bb8p-17f, 0x1.d2c282p-18f},
    {0x1.37cccp-12f, -0x1.4fb62cp-7f, -0x1.2afba6p-6f, -0x1.739e82p-6f, -0x1.80b4c4p-6f, -0x1.50bd44p-6f,
     -0x1.e92026p-7f, -0x1.0ae8a8p-7f, -0x1.814b2cp-10f, 0x1.e9dc12p-9f, 0x1.eee002p-8f, 0x1.273184p-7f,
     0x1.1bbc4p-7f, 0x1.df204cp-8f, 0x1.5e6e7cp-8f, 0x1.ba5cfap-9f, 0x1.b76e2p-10f, 0x1.ae1906p-12f,
     -0x1.75f6aap-12f, -0x1.8d461ep-11f, -0x1.c38866p-11f, -0x1.9c08a6p-11f, -0x1.508d3ep-11f,
     -0x1.f6d568p-12f, -0x1.5d9a22p-12f, -0x1.c913b8p-13f, -0x1.1bc4dcp-13f, -0x1.4ec7d2p-14f,
     -0x1.79427p-15f, -0x1.96fa2ep-16f, -0x1.a4ec94p-17f, -0x1.a2621cp-18f},
    {-0x1.6f3bf4p-7f, -0x1.ab234ap-7f, -0x1.30c222p-7f, -0x1.309eaap-9f, 0x1.ee667ap-11f, 0x1.189648p-8f,
     0x1.9d7dfcp-8f, 0x1.e0dabap-8f, 0x1.bb0f32p-8f, 0x1.cec17ap-8f, 0x1.0049a8p-9f, 0x1.ee4936p-14f,
     -0x1.2b5d82p-13f, -0x1.75e512p-10f, -0x1.291a88p-9f, -0x1.d8db1p-10f, -0x1.8c6ad2p-10f,
     -0x1.cee264p-11f, -0x1.6c73a8p-11f, -0x1.6b4666p-13f, 0x1.13282p-14f, 0x1.16d12cp-14f,
     0x1.2b1414p-13f, 0x1.342ca8p-13f, 0x1.08b7b6p-13f, 0x1.7f254p-14f, 0x1.15fc8ep-14f, 0x1.63da0cp-15f,
     0x1.b0c68p-16f, 0x1.f598a8p-17f, 0x1.11893p-17f, 0x1.236c1p-18f},
};
static const float gelu_slope_part[7][32] = {
    {0x1p-1f, 0x1.74f22ap-2f, 0x1.e3d62ap-3f, 0x1.f7a40cp-4f, 0x1.e0b2f8p-6f, -0x1.576868p-5f,
     -0x1.72ca7ep-4f, -0x1.e48498p-4f, -0x1.0752eep-3f, -0x1.0136bep-3f, -0x1.d1ca1cp-4f, -0x1.8d12b4p-4f,
     -0x1.418908p-4f, -0x1.f16634p-5f, -0x1.70d818p-5f, -0x1.06e64ap-5f, -0x1.68e62cp-6f, -0x1.ddc142p-7f,
     -0x1.31448p-7f, -0x1.78e838p-8f, -0x1.c1e896p-9f, -0x1.03bfbp-9f, -0x1.224034p-10f, -0x1.39fcd8p-11f,
     -0x1.48ee38p-12f, -0x1.4dc7d2p-13f, -0x1.4827c6p-14f, -0x1.38a37cp-15f, -0x1.20af0cp-16f,
     -0x1.0264cp-17f, -0x1.c071p-19f, -0x1.794c02p-20f},
    {-0x1.988454p-1f, -0x1.8c94eap-1f, -0x1.6a5428p-1f, -0x1.361e9ap-1f, -0x1.ec9e5ep-2f, -0x1.6438a2p-2f,
     -0x1.c199f6p-3f, -0x1.b5cbccp-4f, -0x1.15c83p-6f, 0x1.840fecp-5f, 0x1.63f354p-4f, 0x1.aebe12p-4f,
     0x1.b7047cp-4f, 0x1.92e768p-4f, 0x1.56785ap-4f, 0x1.1196c6p-4f, 0x1.9e601ep-5f, 0x1.2b1d9ep-5f,
     0x1.9d2994p-6f, 0x1.11bd92p-6f, 0x1.5cab18p-7f, 0x1.ab8778p-8f, 0x1.f9412ap-9f, 0x1.20055p-9f,
     0x1.3d072p-10f, 0x1.511c94p-11f, 0x1.5a7b58p-12f, 0x1.585b84p-13f, 0x1.4b12e4p-14f, 0x1.3403p-15f,
     0x1.155ea2p-16f, 0x1.e3a7fcp-18f},
    {0x1.8d9d5p-19f, 0x1.12b176p-3f, 0x1.00ebfp-2f, 0x1.585394p-2f, 0x1.871448p-2f, 0x1.8bbcfap-2f,
     0x1.6b7396p-2f, 0x1.302e58p-2f, 0x1.cc62eep-3f, 0x1.32ff46p-3f, 0x1.4f537cp-4f, 0x1.b83552p-6f,
     -0x1.9803p-7f, -0x1.2a8fdp-5f, -0x1.85355ap-5f, -0x1.91c21cp-5f, -0x1.6ce81p-5f, -0x1.2f4c96p-5f,
     -0x1.d64922p-6f, -0x1.57caf2p-6f, -0x1.dd2d66p-7f, -0x1.3bcffp-7f, -0x1.8ff296p-8f, -0x1.e5bd2ep-9f,
     -0x1.1b6398p-9f, -0x1.3e237ap-10f, -0x1.5800d8p-11f, -0x1.669b88p-12f, -0x1.68acb6p-13f,
     -0x1.5e3568p-14f, -0x1.48766p-15f, -0x1.29b58ap-16f},
    {0x1.1034a2p-2f, 0x1.fd0eap-3f, 0x1.990cd6p-3f, 0x1.0769fap-3f, 0x1.897414p-5f, -0x1.d60e82p-6f,
     -0x1.723228p-4f, -0x1.0a989ep-3f, -0x1.2b786ap-3f, -0x1.212002p-3f, -0x1.ee71aep-4f, -0x1.77eb8p-4f,
     -0x1.f2bd3p-5f, -0x1.0e4e5p-5f, -0x1.6a209ap-7f, 0x1.034f14p-8f, 0x1.99e90cp-7f, 0x1.053216p-6f,
     0x1.04377ep-6f, 0x1.c5a794p-7f, 0x1.6897bep-7f, 0x1.0a9e4ep-7f, 0x1.72eff4p-8f, 0x1.e900bp-9f,
     0x1.32e1e6p-9f, 0x1.6ffa1ep-10f, 0x1.a6956cp-11f, 0x1.d1b0dep-12f, 0x1.ed34bap-13f, 0x1.f69a1cp-14f,
     0x1.ed5194p-15f, 0x1.d2c07p-16f},
    {0x1.736bbap-9f, -0x1.96ddeap-5f, -0x1.7085f8p-4f, -0x1.d118eap-4f, -0x1.e1af56p-4f, -0x1.a575c2p-4f,
     -0x1.32aba6p-4f, -0x1.4b87b8p-5f, -0x1.c4c3eap-8f, 0x1.4a97d2p-6f, 0x1.3427d4p-5f, 0x1.702d58p-5f,
     0x1.660e94p-5f, 0x1.2cb81ep-5f, 0x1.b8d5d8p-6f, 0x1.14c4cep-6f, 0x1.110aacp-7f, 0x1.0c4816p-9f,
     -0x1.e7dff8p-10f, -0x1.ef7454p-9f, -0x1.194edcp-8f, -0x1.02f42ep-8f, -0x1.a5a918p-9f, -0x1.3a5638p-9f,
     -0x1.b4b7bep-10f, -0x1.1d95bep-10f, -0x1.61d19ep-11f, -0x1.a150eep-12f, -0x1.d610d4p-13f,
     -0x1.fac36p-14f, -0x1.0606d2p-14f, -0x1.04387ep-15f},
    {-0x1.6649f8p-4f, -0x1.b3f398p-5f, -0x1.352f4cp-5f, -0x1.f4aadap-7f, 0x1.a0cd6ep-8f, 0x1.a7a6cap-6f,
     0x1.355c66p-5f, 0x1.4dc6dcp-5f, 0x1.27b9ccp-5f, 0x1.ac9c48p-6f, 0x1.d1c1eep-7f, 0x1.94fd04p-9f,
     -0x1.63a3a6p-8f, -0x1.4f310cp-7f, -0x1.8759f2p-7f, -0x1.674884p-7f, -0x1.1cd2cp-7f, -0x1.86d9d4p-8f,
     -0x1.b4efb6p-9f, -0x1.50abc6p-10f, -0x1.24ee3cp-19f, 0x1.6c608ap-11f, 0x1.f20e3ep-11f,
     0x1.e5a4cap-11f, 0x1.92fdcep-11f, 0x1.2cdcacp-11f, 0x1.a01d4cp-12f, 0x1.0c75a2p-12f, 0x1.46bb02p-13f,
     0x1.7a0866p-14f, 0x1.9ff534p-15f, 0x1.b5bb46p-16f},
    {0x1.a61d72p-4f, 0x1.4a8e28p-9f, 0x1.d23dfp-7f, 0x1.a3173ap-7f, 0x1.dfea9p-6f, 0x1.ced0bep-7f,
     0x1.f73948p-8f, -0x1.b350acp-11f, -0x1.dd4fd2p-8f, -0x1.799b5p-7f, -0x1.605a8ep-7f, -0x1.371e6ap-7f,
     -0x1.7e5664p-8f, -0x1.fbbd3ap-9f, 0x1.03608cp-16f, 0x1.161a4ap-10f, 0x1.4f21d2p-9f, 0x1.d7073ep-9f,
     0x1.57973ap-9f, 0x1.4dcd6p-10f, 0x1.f6a81p-11f, 0x1.bacadcp-12f, 0x1.287b9ap-15f, -0x1.3b3686p-13f,
     -0x1.9e2c8ep-13f, -0x1.7e2b7ap-13f, -0x1.531e5ep-13f, -0x1.ecb3fcp-14f, -0x1.43fbcp-14f,
     -0x1.a2ea72p-15f, -0x1.ec40dp-16f, -0x1.1c4f2cp-16f},
};

MATH float gelu_by_part(const float (*table)[32], float a) {
    a = a > GELU_NEAR ? GELU_NEAR : a;
    float shifted = FMA32(a, 0x1.745d18p+2f, 0x1.8p23f), t = FMA32(shifted - 0x1.8p23f, -0x1.6p-3f, a);
    uint32_t part = bits_of_f32(shifted) & 31;
    float p = FMA32(table[6][part], t, table[5][part]);
    p = FMA32(p, t, table[4][part]);
    p = FMA32(p, t, table[3][part]);
    p = FMA32(p, t, table[2][part]);
    p = FMA32(p, t, table[1][part]);
    return FMA32(p, t, table[0][part]);
}

/* `value` times e**(-a**2 / 2) for a <= 15, with the square in one multiply-add: k L is exact, L being the first bits of log 2. */
MATH float times_gauss_f32(float value, float a) {
    float shifted = FMA32(a * a, -0x1.715476p-1f, 0x1.8p23f), k = shifted - 0x1.8p23f;
    int32_t n = (int32_t)(bits_of_f32(shifted) - 0x4b400000u), half = n >> 1;
    float r = FMA32(-0.5f * a, a, k * -0x1.62e4p-1f);
    r = FMA32(k, -0x1.7f7d1cp-20f, r);
    float p = FMA32(r, 0x1.a12652p-13f, 0x1.6d44b2p-10f); /* (e**r - 1 - r) / r**2, |r| <= 0.35 */
    p = FMA32(p, r, 0x1.1110ep-7f);
    p = FMA32(p, r, 0x1.5554e8p-5f);
    p = FMA32(p, r, 0x1.555556p-3f);
    p = FMA32(p, r, 0x1p-1f);
    float y = FMA32(value, FMA32(r * r, p, r), value);
    return y * f32_of_bits((uint32_t)(half + 127) << 23) * f32_of_bits((uint32_t)(n - half + 127) << 23);
}

/* a R(a), where R(a) is Phi(-a) e**(a**2 / 2), by a polynomial in z = 1 / a**2, for 5.4 <= a <= 15. */
MATH float mills_far_f32(float z) {
    float p = FMA32(z, -0x1.0ca36cp+7f, 0x1.0b071ap+5f);
    p = FMA32(p, z, -0x1.74236p+2f);
    p = FMA32(p, z, 0x1.31eab6p+0f);
    p = FMA32(p, z, -0x1.9881bep-2f);
    return FMA32(p, z, 0x1.988452p-2f);
}

/* x Phi(x) = max(x, 0) - |x| Phi(-|x|), so that nothing cancels. */
MATH float gelu_far_f32(float x) {
    float a = __builtin_fabsf(x);
    a = a > 15.0f ? 15.0f : a;
    return -times_gauss_f32(mills_far_f32(1.0f / (a * a)), a);
}
MATH float gelu_f32(float x) {
    float near = (x < 0.0f ? -0.0f : x) - gelu_by_part(gelu_part, __builtin_fabsf(x));
    return x < -GELU_NEAR ? gelu_far_f32(x) : near;
}

/* Its derivative, Phi(x) + x phi(x). */
MATH float gelu_slope_far_f32(float x) {
    float a = __builtin_fabsf(x);
    a = a > 15.0f ? 15.0f : a;
    float z = 1.0f / (a * a), ratio = FMA32(a, 0x1.857936p-27f, mills_far_f32(z) * z * a); /* less what is lost of 1 / sqrt(2 pi) */
    float tail = times_gauss_f32(FMA32(a, -0x1.988454p-2f, ratio), a);
    return x < 0.0f ? tail : 1.0f - tail;
}
MATH float gelu_slope_f32(float x) {
    float a = __builtin_fabsf(x), tail = gelu_by_part(gelu_slope_part, a);
    return a > GELU_NEAR ? gelu_slope_far_f32(x) : x < 0.0f ? tail : 1.0f - tail;
}

/* ---- float64 ---- */

/* 2**n (1 + value) for |n| <= 2046, rounded once. The shift is logical: AVX2 has no other on 64 bits. */
MATH double scale_f64(double value, int64_t n) {
    uint64_t whole = (uint64_t)n, half = ((whole + 4096) >> 1) - 2048; /* of a NaN n may be anything */
    return value * f64_of_bits((half + 1023) << 52) * f64_of_bits((whole - half + 1023) << 52);
}

/* e**(x + low) for |low| far below x is 2**n (1 + what comes back). */
MATH double power_f64(double x, double low, int64_t *n) {
    double c = x > 710.0 ? 710.0 : x;
    c = c < -800.0 ? -800.0 : c;
    double shifted = FMA64(c, 0x1.71547652b82fep+0, 0x1.8p52);
    *n = (int64_t)(bits_of_f64(shifted) - 0x4338000000000000u);
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
    return r + FMA64(p, r * r, FMA64(lost, r, lost));
}

MATH double exp_sum_f64(double x, double low) {
    int64_t n;
    double more = power_f64(x, low, &n);
    return scale_f64(1.0 + more, n);
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

/* erfc(a + rest) e**(a**2) for 0 <= a <= 28 and a rest far below: 1 and a times a polynomial, from 0.5 on a polynomial in
 * t = (a - 2) / (a + 2) over a + 2. What each step loses goes into the rest. */
MATH pair scaled_erfc(double a, double rest) {
    double q = -0x1.567408a6079ccp-16; /* (erfc(a) e**(a**2) - 1) / a, a <= 0.5 */
    q = FMA64(q, a, 0x1.131b0fbc8ed13p-13);
    q = FMA64(q, a, -0x1.f1fd35809644fp-12);
    q = FMA64(q, a, 0x1.627c9ca40262bp-10);
    q = FMA64(q, a, -0x1.c52de81a6ce76p-9);
    q = FMA64(q, a, 0x1.10e5ece9e385cp-7);
    q = FMA64(q, a, -0x1.38fe79023a92fp-6);
    q = FMA64(q, a, 0x1.5554ea1e7fb9cp-5);
    q = FMA64(q, a, -0x1.6023e27dbbf54p-4);
    q = FMA64(q, a, 0x1.55555512c68b8p-3);
    q = FMA64(q, a, -0x1.341f6bbe6558cp-2);
    q = FMA64(q, a, 0x1.fffffffff1545p-2);
    q = FMA64(q, a, -0x1.812746b0377ebp-1);
    q = FMA64(q, a, 0x1.ffffffffffffdp-1);
    q = FMA64(q, a, -0x1.20dd750429b6dp+0);
    double near = FMA64(q, a, 1.0), near_rest = FMA64(q, a, 1.0 - near);
    double high = a > 2.0 ? a : 2.0, low = a > 2.0 ? 2.0 : a, sum = high + low, lost = low - (sum - high);
    double inverse = 1.0 / sum, inverse_rest = inverse * (FMA64(-sum, inverse, 1.0) - lost * inverse);
    pair place = two_difference(1.0, 4.0 * inverse);
    double t = place.value;
    double p = -0x1.332bb8be4f17fp-25; /* ((a + 2) erfc(a) e**(a**2) - 0x1.058671b52c776p+0) / t, a >= 0.5 */
    p = FMA64(p, t, 0x1.05a5613f95366p-25);
    p = FMA64(p, t, 0x1.56c5a1b0d610cp-23);
    p = FMA64(p, t, 0x1.553049ac97923p-27);
    p = FMA64(p, t, -0x1.8c9e64e5a5907p-22);
    p = FMA64(p, t, -0x1.318bd70e96309p-21);
    p = FMA64(p, t, 0x1.beca7fbf43512p-26);
    p = FMA64(p, t, 0x1.0bf2531f34bcbp-19);
    p = FMA64(p, t, 0x1.e7f90569afdfbp-19);
    p = FMA64(p, t, -0x1.2d578c032412ap-20);
    p = FMA64(p, t, -0x1.0e6eff108720ap-16);
    p = FMA64(p, t, -0x1.6c042911884e7p-16);
    p = FMA64(p, t, 0x1.1e759a7df6b34p-15);
    p = FMA64(p, t, 0x1.2efa3751c19cbp-13);
    p = FMA64(p, t, 0x1.2054286f270c8p-15);
    p = FMA64(p, t, -0x1.5ba43898f4b17p-11);
    p = FMA64(p, t, -0x1.b6fbf9b519773p-11);
    p = FMA64(p, t, 0x1.9517bb7162bd1p-9);
    p = FMA64(p, t, 0x1.a89eaff89132dp-8);
    p = FMA64(p, t, -0x1.606e41552a515p-6);
    p = FMA64(p, t, -0x1.2a88e6107d6d5p-5);
    p = FMA64(p, t, 0x1.1e2deea6b1174p-2);
    p = FMA64(p, t, -0x1.5fd386754eff9p-1);
    double far = FMA64(p, t, 0x1.058671b52c776p+0), far_rest = FMA64(p, t, 0x1.058671b52c776p+0 - far);
    far_rest = FMA64(p, place.rest - 4.0 * inverse_rest, far_rest);
    double over = far * inverse, over_rest = FMA64(far, inverse, -over) + (far_rest * inverse + far * inverse_rest);
    double value = a < 0.5 ? near : over, slope = FMA64(2.0 * a, value, -0x1.20dd750429b6dp+0);
    return (pair){value, FMA64(slope, rest, a < 0.5 ? near_rest : over_rest)};
}

/* (whole s - less) e**-(square + low), rounded once: the power of two comes last. */
MATH double times_gauss_f64(pair s, double whole, double less, double square, double low) {
    double product = s.value * whole;
    pair value = two_difference(product, less);
    value.rest += FMA64(s.value, whole, -product) + s.rest * whole;
    int64_t n;
    double more = power_f64(-square, -low, &n);
    return scale_f64(value.value + FMA64(value.value, more, value.rest), n);
}

MATH double erfc_f64(double x) {
    double a = __builtin_fabs(x);
    a = a > 28.0 ? 28.0 : a;
    double square = a * a, tail = times_gauss_f64(scaled_erfc(a, 0.0), 1.0, 0.0, square, FMA64(a, a, -square));
    return x < 0.0 ? 2.0 - tail : tail;
}

/* (whole R(a) - less) e**(-a**2 / 2) for a >= 0: see normal_tail_f32. */
MATH double normal_tail_f64(double a, double whole, double less) {
    double square = a * a, low = FMA64(a, a, -square);
    double x = a * 0x1.6a09e667f3bcdp-1, rest = FMA64(a, 0x1.6a09e667f3bcdp-1, -x) + a * -0x1.bdd3413b26456p-55;
    return times_gauss_f64(scaled_erfc(x, rest), 0.5 * whole, less, 0.5 * square, 0.5 * low);
}

MATH double ndtr_f64(double x) {
    double a = __builtin_fabs(x);
    double tail = normal_tail_f64(a > 39.0 ? 39.0 : a, 1.0, 0.0);
    return x > 0.0 ? 1.0 - tail : tail;
}

/* As those of float32. */
MATH double gelu_f64(double x) {
    double a = __builtin_fabs(x);
    a = a > 39.0 ? 39.0 : a;
    return (x < 0.0 ? -0.0 : x) - normal_tail_f64(a, a, 0.0);
}
MATH double gelu_slope_f64(double x) {
    double a = __builtin_fabs(x);
    a = a > 39.0 ? 39.0 : a;
    double tail = normal_tail_f64(a, 1.0, a * 0x1.9884533d43651p-2);
    return x < 0.0 ? tail : 1.0 - tail;
}

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

/* In float64, whose range holds the squares. */
MATH float hypot_f32(float x, float y) {
    double a = x, b = y, sum = FMA64(a, a, b * b);
    int infinite = (__builtin_fabsf(x) == INFINITY) | (__builtin_fabsf(y) == INFINITY); /* also beside a NaN */
    return infinite ? INFINITY : (float)__builtin_sqrt(sum);
}

/* x - floor(x / y) y, exactly, by a quotient in float64, which holds the product with y of one below 2**29 and is at most one too
 * large. Not of infinities and NaNs, nor by 0: remainder_by_rule. */
MATH double remainder_of_small(double x, double y) {
    double rest = FMA64(-__builtin_floor(x / y), y, x);
    rest += (rest != 0.0) & ((rest < 0.0) != (y < 0.0)) ? y : 0.0;
    return __builtin_copysign(rest, y);
}
MATH int remainder_by_rule(double x, double y) {
    return !(__builtin_fabs(x / y) < 0x1p29) | !(__builtin_fabs(y) < INFINITY);
}

/* ---- gamma functions, in float64 ----
 *
 * Their asymptotic series (Abramowitz and Stegun 6.1.40, 6.3.18, 6.4.12) have 16 digits from 8 on; what lies below is brought there
 * by eight steps of the recurrence. Below 1/2 the reflections are by sin(pi x) and cos(pi x), of the distance to a whole number,
 * which is exact. */

/* sin(pi r) and cos(pi r) for |r| <= 1/2. */
MATH double sine_of_half_turns(double r) {
    double z = r * r, p = -0x1.7ff4e832c02d1p-26; /* (sin(pi r) / r - pi) / r**2 */
    p = FMA64(p, z, 0x1.aac5bdd9ad6c0p-21);
    p = FMA64(p, z, -0x1.6fad6c4e00fc1p-16);
    p = FMA64(p, z, 0x1.e8f434193cda5p-12);
    p = FMA64(p, z, -0x1.e3074fdd8b579p-8);
    p = FMA64(p, z, 0x1.50783487edb34p-4);
    p = FMA64(p, z, -0x1.32d2cce62bd7cp-1);
    p = FMA64(p, z, 0x1.466bc6775aae2p+1);
    p = FMA64(p, z, -0x1.4abbce625be53p+2);
    return r * FMA64(p, z, 0x1.921fb54442d18p+1);
}
MATH double cosine_of_half_turns(double r) {
    double z = r * r, p = 0x1.e25d3ac092e31p-29; /* (cos(pi r) - 1) / r**2 */
    p = FMA64(p, z, -0x1.29f0b0660bc72p-23);
    p = FMA64(p, z, 0x1.20c5eb36ce63dp-18);
    p = FMA64(p, z, -0x1.b6e24e8c156dfp-14);
    p = FMA64(p, z, 0x1.f9d38a361f020p-10);
    p = FMA64(p, z, -0x1.a6d1f2a2034ccp-6);
    p = FMA64(p, z, 0x1.e1f506891baa0p-3);
    p = FMA64(p, z, -0x1.55d3c7e3cbffap+0);
    p = FMA64(p, z, 0x1.03c1f081b5ac4p+2);
    p = FMA64(p, z, -0x1.3bd3cc9be45dep+2);
    return FMA64(p, z, 1.0);
}

/* log gamma(x) for x >= 1/2. Next to 1 and 2, where it is 0, the first terms of its series there, which are all that is left. */
MATH double lgamma_above(double x) {
    double product = x * (x + 1.0) * ((x + 2.0) * (x + 3.0)) * ((x + 4.0) * (x + 5.0) * ((x + 6.0) * (x + 7.0)));
    int far = x >= 8.0, second = x > 1.5;
    double y = far ? x : x + 8.0, inverse = 1.0 / y, z = inverse * inverse;
    double p = -3617.0 / 122400.0;
    p = FMA64(p, z, 1.0 / 156.0);
    p = FMA64(p, z, -691.0 / 360360.0);
    p = FMA64(p, z, 1.0 / 1188.0);
    p = FMA64(p, z, -1.0 / 1680.0);
    p = FMA64(p, z, 1.0 / 1260.0);
    p = FMA64(p, z, -1.0 / 360.0);
    p = FMA64(p, z, 1.0 / 12.0);
    double log_y = log_f64(y), more = FMA64(p, inverse, 0x1.d67f1c864beb5p-1) - log_f64(far ? 1.0 : product);
    double value = FMA64(y, log_y - 1.0, FMA64(-0.5, log_y, more));
    double e = x - (second ? 2.0 : 1.0);
    double q = second ? 0x1.51322ac7d8483p-6 : 0x1.151322ac7d848p-2; /* (zeta(4) - 1) / 4 and zeta(4) / 4, … */
    q = FMA64(q, e, second ? -0x1.13e001a557607p-4 : -0x1.9a4d55beab2d7p-2);
    q = FMA64(q, e, second ? 0x1.4a34cc4a60fa6p-2 : 0x1.a51a6625307d3p-1);
    q = FMA64(q, e, second ? 0x1.b0ee6072093cep-2 : -0x1.2788cfc6fb619p-1);
    value = __builtin_fabs(e) < 0x1p-14 ? FMA64(q, e, 0.0) : value; /* +0 at both */
    return x < (double)INFINITY ? value : x;
}
/* log |gamma(x)| for x < 1/2, by that of 1 - x. */
MATH double lgamma_below(double x, double above) {
    double r = x - __builtin_rint(x), sine = __builtin_fabs(sine_of_half_turns(r));
    double value = 0x1.250d048e7a1bdp+0 - log_f64(sine) - above; /* log pi */
    return (r == 0.0) | (x < -0x1p52) ? (double)INFINITY : value;
}

/* The derivative of log gamma for x >= 1/2. */
MATH double digamma_above(double x) {
    double sum = 1.0, product = x; /* sum / product is that of 1 / (x + k) */
#define STEP(k) sum = FMA64(sum, x + (k), product), product *= x + (k)
    STEP(1.0), STEP(2.0), STEP(3.0), STEP(4.0), STEP(5.0), STEP(6.0), STEP(7.0); /* a loop would stop compilers from making vectors */
#undef STEP
    int far = x >= 8.0;
    double y = far ? x : x + 8.0, inverse = 1.0 / y, z = inverse * inverse;
    double p = -3617.0 / 8160.0;
    p = FMA64(p, z, 1.0 / 12.0);
    p = FMA64(p, z, -691.0 / 32760.0);
    p = FMA64(p, z, 1.0 / 132.0);
    p = FMA64(p, z, -1.0 / 240.0);
    p = FMA64(p, z, 1.0 / 252.0);
    p = FMA64(p, z, -1.0 / 120.0);
    p = FMA64(p, z, 1.0 / 12.0);
    double before = far ? 0.0 : sum / product;
    return log_f64(y) - 0.5 * inverse - p * z - before;
}
MATH double digamma_below(double x, double above) {
    double r = x - __builtin_rint(x);
    double value = above - 0x1.921fb54442d18p+1 * cosine_of_half_turns(r) / sine_of_half_turns(r);
    value = (r == 0.0) | (x < -0x1p52) ? (double)NAN : value;
    return x == 0.0 ? -(double)INFINITY : value;
}

/* The derivative of digamma. */
MATH double trigamma_above(double x) {
    double sum = 1.0, product = x * x; /* sum / product is that of 1 / (x + k)**2 */
#define STEP(k) sum = FMA64(sum, (x + (k)) * (x + (k)), product), product *= (x + (k)) * (x + (k))
    STEP(1.0), STEP(2.0), STEP(3.0), STEP(4.0), STEP(5.0), STEP(6.0), STEP(7.0);
#undef STEP
    int far = x >= 8.0;
    double y = far ? x : x + 8.0, inverse = 1.0 / y, z = inverse * inverse;
    double p = -3617.0 / 510.0;
    p = FMA64(p, z, 7.0 / 6.0);
    p = FMA64(p, z, -691.0 / 2730.0);
    p = FMA64(p, z, 5.0 / 66.0);
    p = FMA64(p, z, -1.0 / 30.0);
    p = FMA64(p, z, 1.0 / 42.0);
    p = FMA64(p, z, -1.0 / 30.0);
    p = FMA64(p, z, 1.0 / 6.0);
    double before = far ? 0.0 : sum / product;
    return inverse + (0.5 * z + p * z * inverse) + before;
}
MATH double trigamma_below(double x, double above) {
    double r = x - __builtin_rint(x), ratio = 0x1.921fb54442d18p+1 / sine_of_half_turns(r);
    return (r == 0.0) | (x < -0x1p52) ? (double)INFINITY : FMA64(ratio, ratio, -above);
}

/* x times a polynomial in w = -log(1 - x**2), from w = 5 on in sqrt(w) - 3, to 2**-27. */
MATH float erfinv_f32(float x) {
    double a = x, w = -log_f64((1.0 - a) * (1.0 + a));
    double p = 0x1.00d79ace33980p-31;
    p = FMA64(p, w, -0x1.5ecb04472a75ap-26);
    p = FMA64(p, w, 0x1.7160ca2726890p-22);
    p = FMA64(p, w, -0x1.69ec2f33caa8fp-19);
    p = FMA64(p, w, 0x1.b6512070618e9p-18);
    p = FMA64(p, w, 0x1.47006dc7355f5p-15);
    p = FMA64(p, w, -0x1.f76c9d922873ep-14);
    p = FMA64(p, w, -0x1.32b6478644d4bp-9);
    p = FMA64(p, w, 0x1.7a7ffa7168253p-7);
    p = FMA64(p, w, 0x1.db29e139d2f7ep-3);
    p = FMA64(p, w, 0x1.c5bf893d966b4p-1);
    double t = __builtin_sqrt(w) - 3.0, q = -0x1.220af2bee8834p-15;
    q = FMA64(q, t, 0x1.617512fea43a9p-13);
    q = FMA64(q, t, -0x1.1d7e250c3f128p-12);
    q = FMA64(q, t, -0x1.1365db7f3e2d2p-13);
    q = FMA64(q, t, 0x1.825564965b280p-10);
    q = FMA64(q, t, -0x1.d2d619012b43ap-9);
    q = FMA64(q, t, 0x1.74bf900d76280p-8);
    q = FMA64(q, t, -0x1.f4f0c5f02c9cep-8);
    q = FMA64(q, t, 0x1.35811cb04e46cp-7);
    q = FMA64(q, t, 0x1.006dca9fa66fap+0);
    q = FMA64(q, t, 0x1.6a9efbdba6eccp+1);
    float y = (float)(a * (w < 5.0 ? p : q));
    return __builtin_fabsf(x) == 1.0f ? __builtin_copysignf(INFINITY, x) : y;
}

/* One of Newton's steps: by erf where a is small, else by erfc, whose digits 1 - a has. */
MATH double nearer_erfinv(double y, double a) {
    double small = erf_f64(y) - a, large = (1.0 - a) - erfc_f64(y);
    return y - (a < 0.5 ? small : large) / (exp_f64(-y * y) * 0x1.20dd750429b6dp+0); /* 2 / sqrt(pi) */
}

/* Giles 2010, Approximating the erfinv function, for single precision; from w = 5 on a fit of the same kind up to where 1 - |x| is
 * 2**-53. Then two of Newton's steps, which double the digits. */
MATH double erfinv_f64(double x) {
    double a = __builtin_fabs(x), w = -log_f64((1.0 - a) * (1.0 + a));
    double near = w - 2.5, far = __builtin_sqrt(w) - 3.0;
    double p = 2.81022636e-08;
    p = FMA64(p, near, 3.43273939e-07);
    p = FMA64(p, near, -3.5233877e-06);
    p = FMA64(p, near, -4.39150654e-06);
    p = FMA64(p, near, 0.00021858087);
    p = FMA64(p, near, -0.00125372503);
    p = FMA64(p, near, -0.00417768164);
    p = FMA64(p, near, 0.246640727);
    p = FMA64(p, near, 1.50140941);
    double q = -3.0971342420782707e-07;
    q = FMA64(q, far, 5.195607782543808e-06);
    q = FMA64(q, far, -3.6090201876838226e-05);
    q = FMA64(q, far, 0.00012871673398377935);
    q = FMA64(q, far, -0.00020947943063116912);
    q = FMA64(q, far, -0.00012059625026002467);
    q = FMA64(q, far, 0.0014001585052249947);
    q = FMA64(q, far, -0.0035401564033343126);
    q = FMA64(q, far, 0.00571675284457488);
    q = FMA64(q, far, -0.007654487886023025);
    q = FMA64(q, far, 0.009441033839953686);
    q = FMA64(q, far, 1.0016763087406755);
    q = FMA64(q, far, 2.832976927632848);
    double y = a * (w < 5.0 ? p : q);
    y = nearer_erfinv(nearer_erfinv(y, a), a);
    return __builtin_copysign(a == 1.0 ? (double)INFINITY : y, x);
}

/* The rest goes one element at a time: scalar_math.c. */
double cyx_sin(double x);
double cyx_cos(double x);
double cyx_pow(double x, double y);
double cyx_remainder(double x, double y); /* of numbers that were float32 */
