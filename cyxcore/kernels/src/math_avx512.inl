/* exp, log, tanh, sigmoid, erf, gelu and its derivative, sin and cos of sixteen float32 at once: step by step those of math.inl, so with their
 * bits, but with instructions that no compiler finds there. Minimum and maximum return their second operand where the
 * first is no number less or greater, and scalef multiplies by a power of two with one rounding. */

#define ALL(x) _mm512_set1_ps(x)
#define FMA16(a, b, c) _mm512_fmadd_ps(a, b, c)

/* `magnitude`, at least 0, with the sign of x. */
static inline __attribute__((always_inline)) __m512 signed_as_16(__m512 magnitude, __m512 x) {
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(magnitude), _mm512_castps_si512(x),
                                                         _mm512_set1_epi32(0x7fffffff), 0xe4)); /* third ? first : second */
}

/* power_f32, but for the power of two: scalef rounds the exponent, in eighths, down by itself. */
static inline __attribute__((always_inline)) __m512 power_16(__m512 x, __m512 *exponent) {
    __m512 shifted = FMA16(x, ALL(0x1.715476p+0f), ALL(0x1.8p20f)), k = _mm512_sub_ps(shifted, ALL(0x1.8p20f));
    __m512 r = FMA16(k, ALL(-0x1.7f7d1cp-20f), FMA16(k, ALL(-0x1.62e4p-1f), x));
    __m512 p = FMA16(r, FMA16(r, ALL(0x1.555dacp-5f), ALL(0x1.555c7ep-3f)), ALL(0.5f));
    /* A shuffle looks at four bits: the table twice. */
    __m512 whole = _mm512_permutexvar_ps(_mm512_castps_si512(shifted), _mm512_broadcast_f32x8(_mm256_loadu_ps(eighths)));
    *exponent = k;
    return FMA16(whole, FMA16(_mm512_mul_ps(r, r), p, r), whole);
}

static inline __attribute__((always_inline)) __m512 exp_16(__m512 x) {
    __m512 k, e = power_16(_mm512_max_ps(ALL(-104.0f), _mm512_min_ps(ALL(89.0f), x)), &k);
    __mmask16 counts = _mm512_cmp_ps_mask(x, ALL(-103.98f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(counts, e, k);
}

static inline __attribute__((always_inline)) __m512 erf_16(__m512 x) {
    __m512 a = _mm512_min_ps(ALL(4.0f), _mm512_abs_ps(x));
    __m512 shifted = FMA16(a, ALL(0x1.eeb6e2p+1f), ALL(0x1.8p23f));
    __m512 k = _mm512_sub_ps(shifted, ALL(0x1.8p23f)), t = FMA16(k, ALL(-0x1.08f1dep-2f), a);
    __m512i part = _mm512_castps_si512(shifted);
#define PART(power) _mm512_permutexvar_ps(part, _mm512_loadu_ps(erf_part[power]))
    __m512 p = FMA16(PART(5), t, PART(4));
    p = FMA16(p, t, PART(3));
    p = FMA16(p, t, PART(2));
    p = FMA16(p, t, PART(1));
#undef PART
    __mmask16 far = _mm512_test_epi32_mask(part, _mm512_set1_epi32(15));
    __m512 y = FMA16(p, t, _mm512_mask_permutexvar_ps(a, far, part, _mm512_loadu_ps(erf_part[0])));
    return signed_as_16(y, x);
}

/* The others take `count` vectors at once, a stage of all before the next stage: so more of them are under way than the
 * processor finds by itself. x is overwritten by the results. */
#define EACH _Pragma("GCC unroll 4") for (int k = 0; k < count; k++)
#define STAGES static inline __attribute__((always_inline)) void

STAGES tanh_of(__m512 *x, const int count) {
    __m512 a[4], n[4], h[4];
    __m512i power[4];
    __mmask16 small[4];
    EACH {
        a[k] = _mm512_min_ps(ALL(9.02f), _mm512_abs_ps(x[k]));
        small[k] = _mm512_cmp_ps_mask(a[k], ALL(0.35f), _CMP_LT_OQ);
        n[k] = _mm512_add_ps(FMA16(a[k], ALL(0x1.715476p+1f), ALL(-0.25f)), ALL(0x1.8p23f));
        power[k] = _mm512_slli_epi32(_mm512_castps_si512(n[k]), 23);
        n[k] = _mm512_sub_ps(n[k], ALL(0x1.8p23f));
    }
    EACH a[k] = FMA16(n[k], ALL(-0x1.62e43p-2f), a[k]);
    EACH {
        __m512 r = a[k], z = _mm512_mul_ps(r, r);
        __m512 p = FMA16(z, ALL(0x1.a36272p-5f), FMA16(r, ALL(0x1.0f7e94p-3f), ALL(0x1.554936p-2f)));
        p = FMA16(z, p, FMA16(r, ALL(0x1.555634p-1f), ALL(0x1.000002p+0f)));
        a[k] = FMA16(z, p, r);
    }
    EACH {
        __m512 half = _mm512_castsi512_ps(_mm512_add_epi32(power[k], _mm512_set1_epi32(0x3f000000)));
        __m512 whole = _mm512_castsi512_ps(_mm512_add_epi32(power[k], _mm512_set1_epi32(0x3f800000)));
        h[k] = FMA16(whole, a[k], _mm512_sub_ps(half, ALL(0.5f)));
    }
    EACH {
        __m512 y = _mm512_div_ps(h[k], _mm512_add_ps(h[k], ALL(1.0f)));
        y = _mm512_mask_fnmadd_ps(y, small[k], h[k], h[k]);
        x[k] = signed_as_16(y, x[k]);
    }
}

STAGES exp_of(__m512 *x, const int count) { EACH x[k] = exp_16(x[k]); }
STAGES erf_of(__m512 *x, const int count) { EACH x[k] = erf_16(x[k]); }

/* p = gelu_by_part(table, |x|). */
static inline __attribute__((always_inline)) void gelu_by_part_of(const float (*table)[32], const __m512 *x, __m512 *p,
                                                                  const int count) {
    __m512 t[4];
    __m512i part[4];
    EACH {
        __m512 a = _mm512_min_ps(ALL(GELU_NEAR), _mm512_abs_ps(x[k])), shifted = FMA16(a, ALL(0x1.745d18p+2f), ALL(0x1.8p23f));
        t[k] = FMA16(_mm512_sub_ps(shifted, ALL(0x1.8p23f)), ALL(-0x1.6p-3f), a);
        part[k] = _mm512_castps_si512(shifted);
        p[k] = _mm512_permutex2var_ps(_mm512_loadu_ps(table[6]), part[k], _mm512_loadu_ps(table[6] + 16));
    }
    _Pragma("GCC unroll 6") for (int power = 5; power >= 0; power--) {
        __m512 low = _mm512_loadu_ps(table[power]), high = _mm512_loadu_ps(table[power] + 16);
        EACH p[k] = FMA16(p[k], t[k], _mm512_permutex2var_ps(low, part[k], high));
    }
}

/* y = FUNCTION(x) where `far` says so. */
#define MEND_FAR(FUNCTION, far, x, y)                                                                        \
    do {                                                                                                     \
        __mmask16 beyond = far;                                                                              \
        if (__builtin_expect(beyond, 0)) {                                                                   \
            float each[16];                                                                                  \
            _mm512_storeu_ps(each, x);                                                                       \
            INDEPENDENT for (int i = 0; i < 16; i++) each[i] = FUNCTION(each[i]);                            \
            (y) = _mm512_mask_loadu_ps(y, beyond, each);                                                     \
        }                                                                                                    \
    } while (0)

STAGES gelu_of(__m512 *x, const int count) {
    __m512 tail[4];
    gelu_by_part_of(gelu_part, x, tail, count);
    EACH {
        __m512 y = _mm512_sub_ps(_mm512_max_ps(ALL(-0.0f), x[k]), tail[k]);
        MEND_FAR(gelu_far_f32, _mm512_cmp_ps_mask(x[k], ALL(-GELU_NEAR), _CMP_LT_OQ), x[k], y);
        x[k] = y;
    }
}

STAGES gelu_slope_of(__m512 *x, const int count) {
    __m512 tail[4];
    gelu_by_part_of(gelu_slope_part, x, tail, count);
    EACH {
        __mmask16 below = _mm512_cmp_ps_mask(x[k], ALL(0.0f), _CMP_LT_OQ);
        __m512 y = _mm512_mask_mov_ps(_mm512_sub_ps(ALL(1.0f), tail[k]), below, tail[k]);
        MEND_FAR(gelu_slope_far_f32, _mm512_cmp_ps_mask(_mm512_abs_ps(x[k]), ALL(GELU_NEAR), _CMP_GT_OQ), x[k], y);
        x[k] = y;
    }
}

STAGES sigmoid_of(__m512 *x, const int count) {
    __m512 e[4];
    EACH {
        __m512 n, power = power_16(_mm512_max_ps(ALL(-104.0f), _mm512_min_ps(ALL(88.0f), x[k])), &n);
        e[k] = _mm512_scalef_ps(power, n);
    }
    EACH {
        __m512 y = _mm512_div_ps(e[k], _mm512_add_ps(e[k], ALL(1.0f)));
        __mmask16 small = _mm512_cmp_ps_mask(x[k], ALL(-1.0f), _CMP_LT_OQ);
        x[k] = _mm512_mask_fnmadd_ps(y, small, e[k], e[k]);
    }
}

/* Of numbers below 2**20; others are found and mended by the row. */
STAGES sine_of(__m512 *x, const int count, const int shift) {
    __m512 a[4], n[4];
    __m512i quadrant[4];
    EACH {
        a[k] = _mm512_abs_ps(x[k]);
        n[k] = FMA16(a[k], ALL(0x1.45f306p-1f), ALL(0x1.8p23f));
        quadrant[k] = _mm512_add_epi32(_mm512_castps_si512(n[k]), _mm512_set1_epi32(shift));
        n[k] = _mm512_sub_ps(n[k], ALL(0x1.8p23f));
    }
    EACH {
        __m512 r = FMA16(n[k], ALL(-0x1.921fb4p+0f), a[k]);
        r = FMA16(n[k], ALL(-0x1.4442d2p-24f), r);
        a[k] = FMA16(n[k], ALL(0x1.ee59dap-50f), r);
    }
    EACH {
        __mmask16 is_cosine = _mm512_test_epi32_mask(quadrant[k], _mm512_set1_epi32(1));
#define EITHER(sine, cosine) _mm512_mask_blend_ps(is_cosine, sine, cosine)
        __m512 r = a[k], z = _mm512_mul_ps(r, r);
        __m512 p = FMA16(EITHER(ALL(-0x1.9862b4p-13f), ALL(0x1.993bcep-16f)), z,
                         EITHER(ALL(0x1.110486p-7f), ALL(-0x1.6c09cp-10f)));
        p = FMA16(p, z, EITHER(ALL(-0x1.55553ep-3f), ALL(0x1.555546p-5f)));
        __m512 y = FMA16(_mm512_mul_ps(z, EITHER(r, z)), p, EITHER(r, FMA16(ALL(-0.5f), z, ALL(1.0f))));
#undef EITHER
        __m512i sign = _mm512_slli_epi32(quadrant[k], 30);
        if (!shift) sign = _mm512_xor_si512(sign, _mm512_castps_si512(x[k]));
        x[k] = _mm512_xor_ps(y, _mm512_and_ps(_mm512_castsi512_ps(sign), ALL(-0.0f)));
    }
}

/* The same, where a number may be 2**20 or more, infinite or NaN: such go one at a time. */
STAGES sine_anywhere(__m512 *x, const int count, const int shift) {
    __m512i greatest = _mm512_setzero_si512();
    EACH greatest = _mm512_max_epi32(greatest, _mm512_castps_si512(_mm512_abs_ps(x[k])));
    if (__builtin_expect(_mm512_cmpge_epi32_mask(greatest, _mm512_castps_si512(ALL(0x1p20f))), 0)) {
        float each[64];
        EACH _mm512_storeu_ps(each + 16 * k, x[k]);
        for (int i = 0; i < 16 * count; i++)
            each[i] = __builtin_fabsf(each[i]) < 0x1p20f ? sine_f32(each[i], shift)
                                                        : (float)(shift ? cyx_cos(each[i]) : cyx_sin(each[i]));
        EACH x[k] = _mm512_loadu_ps(each + 16 * k);
    } else {
        sine_of(x, count, shift);
    }
}

/* Where a number is not a normal one above 0, all go the compiler's way. A shuffle looks at four bits of `part`. */
STAGES log_of(__m512 *x, const int count) {
    __m512 e[4], f[4], near[4];
    __m512i greatest = _mm512_setzero_si512();
    EACH {
        __m512i above = _mm512_sub_epi32(_mm512_castps_si512(x[k]), _mm512_set1_epi32(0x00800000));
        greatest = _mm512_max_epu32(greatest, above);
    }
    if (__builtin_expect(_mm512_cmpge_epu32_mask(greatest, _mm512_set1_epi32(0x7f000000)), 0)) {
        float each[64];
        EACH _mm512_storeu_ps(each + 16 * k, x[k]);
        INDEPENDENT for (int i = 0; i < 16 * count; i++) each[i] = log_f32(each[i]);
        EACH x[k] = _mm512_loadu_ps(each + 16 * k);
        return;
    }
    EACH {
        __m512i bits = _mm512_castps_si512(x[k]), from = _mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f340000));
        __m512i exponent = _mm512_srai_epi32(from, 23), part = _mm512_srli_epi32(from, 19);
        __m512 m = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(exponent, 23)));
        e[k] = _mm512_cvtepi32_ps(exponent);
        f[k] = FMA16(m, _mm512_permutexvar_ps(part, _mm512_loadu_ps(log_near)), ALL(-1.0f));
        near[k] = _mm512_permutexvar_ps(part, _mm512_loadu_ps(log_part));
    }
    EACH {
        __m512 z = _mm512_mul_ps(f[k], f[k]), p = FMA16(f[k], ALL(0x1.555554p-2f), ALL(-0x1.fffffcp-2f));
        p = FMA16(z, FMA16(f[k], ALL(0x1.99e24ap-3f), ALL(-0x1.003a74p-2f)), p);
        x[k] = FMA16(e[k], ALL(0x1.62e43p-1f), _mm512_add_ps(near[k], FMA16(z, p, f[k])));
    }
}

STAGES sin_of(__m512 *x, const int count) { sine_anywhere(x, count, 0); }
STAGES cos_of(__m512 *x, const int count) { sine_anywhere(x, count, 1); }

/* out = e**(x - shift) of n numbers, a multiple of 16, each less a number of its own. */
static inline void exp_16_less(float *out, const float *x, const float *shift, int64_t n) {
    for (int64_t i = 0; i < n; i += 16)
        _mm512_storeu_ps(out + i, exp_16(_mm512_sub_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(shift + i))));
}

/* out = FUNCTION(TAKE(x)), the rest of a row through a mask. */
#define AS_IT_IS(x) x
#define SHIFTED(x) _mm512_sub_ps(x, ALL(shift))
#define ROW_OF_64(FUNCTION, TAKE)                                                                            \
    static void FUNCTION##_row(float *out, const float *x, float shift, int64_t n) {                         \
        enum { count = 4 };                                                                                  \
        int64_t i = 0;                                                                                       \
        (void)shift;                                                                                         \
        for (; i + 64 <= n; i += 64) {                                                                       \
            __m512 own[4];                                                                                   \
            EACH own[k] = TAKE(_mm512_loadu_ps(x + i + 16 * k));                                             \
            FUNCTION(own, 4);                                                                                \
            EACH _mm512_storeu_ps(out + i + 16 * k, own[k]);                                                 \
        }                                                                                                    \
        for (; i < n; i += 16) {                                                                             \
            __mmask16 there = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;                        \
            __m512 own = TAKE(_mm512_mask_loadu_ps(ALL(1.0f), there, x + i));                                \
            FUNCTION(&own, 1);                                                                               \
            _mm512_mask_storeu_ps(out + i, there, own);                                                      \
        }                                                                                                    \
    }

ROW_OF_64(exp_of, SHIFTED)
ROW_OF_64(erf_of, AS_IT_IS)
ROW_OF_64(gelu_of, AS_IT_IS)
ROW_OF_64(gelu_slope_of, AS_IT_IS)
ROW_OF_64(log_of, AS_IT_IS)
ROW_OF_64(tanh_of, AS_IT_IS)
ROW_OF_64(sigmoid_of, AS_IT_IS)
ROW_OF_64(sin_of, AS_IT_IS)
ROW_OF_64(cos_of, AS_IT_IS)
#define VECTOR_MATH
#define EXP_ROW exp_of_row
#define EXP_LESS exp_16_less
#define EXP_VECTOR(x) exp_16((__m512)(x))
#define SIGMOID_ROW sigmoid_of_row
#define LOG_ROW log_of_row
#define ERF_ROW erf_of_row
#define GELU_ROW gelu_of_row
#define GELU_SLOPE_ROW gelu_slope_of_row
