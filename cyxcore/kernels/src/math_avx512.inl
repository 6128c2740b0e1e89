/* exp, log, tanh, sigmoid and erf of sixteen float32 at once: step by step those of math.inl, so with their bits, but
 * with instructions that no compiler finds there. Minimum and maximum return their second operand where the first is no
 * number less or greater, and scalef multiplies by a power of two with one rounding. */

#define ALL(x) _mm512_set1_ps(x)
#define FMA16(a, b, c) _mm512_fmadd_ps(a, b, c)

static inline __attribute__((always_inline)) __m512 exp_16(__m512 x) {
    __m512 c = _mm512_max_ps(ALL(-104.0f), _mm512_min_ps(ALL(89.0f), x));
    __m512 k = _mm512_sub_ps(FMA16(c, ALL(0x1.715476p+0f), ALL(0x1.8p23f)), ALL(0x1.8p23f));
    __m512 high = FMA16(k, ALL(-0x1.62e4p-1f), c);
    __m512 r = FMA16(k, ALL(-0x1.7f7d1cp-20f), high);
    __m512 lost = FMA16(k, ALL(-0x1.7f7d1cp-20f), _mm512_sub_ps(high, r));
    __m512 p = FMA16(ALL(0x1.6d1606p-10f), r, ALL(0x1.12106cp-7f));
    p = FMA16(p, r, ALL(0x1.555516p-5f));
    p = FMA16(p, r, ALL(0x1.5554d8p-3f));
    p = FMA16(p, r, ALL(0.5f));
    __m512 e = _mm512_add_ps(ALL(1.0f), _mm512_add_ps(r, FMA16(p, _mm512_mul_ps(r, r), lost)));
    __mmask16 counts = _mm512_cmp_ps_mask(x, ALL(-103.98f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(counts, e, k);
}

static inline __attribute__((always_inline)) __m512 tanh_16(__m512 x) {
    __m512 a = _mm512_abs_ps(x), z = _mm512_mul_ps(a, a);
    __m512 p = FMA16(ALL(0x1.2c7d78p-9f), z, ALL(-0x1.1168b4p-7f));
    p = FMA16(p, z, ALL(0x1.64a94p-6f));
    p = FMA16(p, z, ALL(-0x1.ba08c2p-5f));
    p = FMA16(p, z, ALL(0x1.1110eap-3f));
    p = FMA16(p, z, ALL(-0x1.555556p-2f));
    __m512 small = FMA16(a, _mm512_mul_ps(z, p), a);
    __m512 sum = _mm512_add_ps(exp_16(_mm512_mul_ps(ALL(2.0f), a)), ALL(1.0f));
    __m512 large = _mm512_sub_ps(ALL(1.0f), _mm512_div_ps(ALL(2.0f), sum));
    __m512 y = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, ALL(0.625f), _CMP_LT_OQ), large, small);
    return _mm512_or_ps(_mm512_abs_ps(y), _mm512_and_ps(x, ALL(-0.0f)));
}

static inline __attribute__((always_inline)) __m512 sigmoid_16(__m512 x) {
    __m512 z = exp_16(_mm512_or_ps(x, ALL(-0.0f)));
    __m512 top = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, ALL(0.0f), _CMP_GE_OQ), z, ALL(1.0f));
    __m512 sum = _mm512_add_ps(ALL(1.0f), z);
    __m512 lost = _mm512_sub_ps(z, _mm512_sub_ps(sum, ALL(1.0f)));
    __m512 inverse = _mm512_div_ps(ALL(1.0f), sum);
    __m512 off = _mm512_sub_ps(_mm512_fnmadd_ps(sum, inverse, ALL(1.0f)), _mm512_mul_ps(lost, inverse));
    return _mm512_mul_ps(top, FMA16(inverse, off, inverse));
}

static inline __attribute__((always_inline)) __m512 erf_16(__m512 x) {
    __m512 a = _mm512_abs_ps(x), z = _mm512_mul_ps(a, a);
    __m512 p = FMA16(ALL(0x1.604c22p-14f), z, ALL(-0x1.ab4b06p-11f));
    p = FMA16(p, z, ALL(0x1.54e62cp-8f));
    p = FMA16(p, z, ALL(-0x1.b811b2p-6f));
    p = FMA16(p, z, ALL(0x1.ce2e2ep-4f));
    p = FMA16(p, z, ALL(-0x1.812744p-2f));
    p = FMA16(p, z, ALL(0x1.06eba8p-3f));
    __m512 small = FMA16(a, p, a);
    __m512 c = _mm512_min_ps(ALL(4.0f), a);
    __m512 q = FMA16(ALL(-0x1.b9314p-20f), c, ALL(0x1.835e5p-15f));
    q = FMA16(q, c, ALL(-0x1.3963c6p-11f));
    q = FMA16(q, c, ALL(0x1.382f88p-8f));
    q = FMA16(q, c, ALL(-0x1.b10bbap-6f));
    q = FMA16(q, c, ALL(0x1.c2f26ep-4f));
    q = FMA16(q, c, ALL(0x1.437d32p-1f));
    q = FMA16(q, c, ALL(0x1.21574p+0f));
    q = FMA16(q, c, ALL(-0x1.5001dep-12f));
    __m512 large = _mm512_sub_ps(ALL(1.0f), exp_16(_mm512_xor_ps(q, ALL(-0.0f))));
    __m512 y = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, ALL(0.92f), _CMP_LT_OQ), large, small);
    return _mm512_or_ps(_mm512_abs_ps(y), _mm512_and_ps(x, ALL(-0.0f)));
}

/* out = FUNCTION(x - shift), the rest of a row through a mask. */
#define ROW_OF_16(FUNCTION)                                                                                  \
    static void FUNCTION##_row(float *out, const float *x, float shift, int64_t n) {                         \
        int64_t i = 0;                                                                                       \
        for (; i + 16 <= n; i += 16)                                                                         \
            _mm512_storeu_ps(out + i, FUNCTION(_mm512_sub_ps(_mm512_loadu_ps(x + i), ALL(shift))));          \
        if (i == n) return;                                                                                  \
        __mmask16 rest = (__mmask16)((1u << (n - i)) - 1);                                                   \
        _mm512_mask_storeu_ps(out + i, rest,                                                                 \
                              FUNCTION(_mm512_sub_ps(_mm512_maskz_loadu_ps(rest, x + i), ALL(shift))));      \
    }

/* The natural logarithm of normal numbers above 0. */
static inline __attribute__((always_inline)) __m512 log_16(__m512 x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i exponent = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
    __m512i scaled = _mm512_sub_epi32(bits, _mm512_slli_epi32(exponent, 23));
    __m512 f = _mm512_sub_ps(_mm512_castsi512_ps(scaled), ALL(1.0f));
    __m512 e = _mm512_cvtepi32_ps(exponent), z = _mm512_mul_ps(f, f);
    __m512 p = FMA16(ALL(0x1.1d8ea6p-4f), f, ALL(-0x1.d635bcp-4f));
    p = FMA16(p, f, ALL(0x1.dea282p-4f));
    p = FMA16(p, f, ALL(-0x1.fcf4c6p-4f));
    p = FMA16(p, f, ALL(0x1.23d21ap-3f));
    p = FMA16(p, f, ALL(-0x1.555b4ap-3f));
    p = FMA16(p, f, ALL(0x1.999d5ap-3f));
    p = FMA16(p, f, ALL(-0x1.fffffcp-3f));
    p = FMA16(p, f, ALL(0x1.555554p-2f));
    __m512 y = _mm512_mul_ps(_mm512_mul_ps(f, z), p);
    y = FMA16(e, ALL(0x1.7f7d1cp-20f), y);
    y = FMA16(ALL(-0.5f), z, y);
    return FMA16(e, ALL(0x1.62e4p-1f), _mm512_add_ps(f, y));
}

/* Rows of it. Sixteen among which there is another number, or a NaN, go the compiler's way. */
static void log_16_row(float *out, const float *x, float shift, int64_t n) {
    (void)shift;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 there = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;
        __m512 own = _mm512_mask_loadu_ps(ALL(1.0f), there, x + i);
        __m512i above = _mm512_sub_epi32(_mm512_castps_si512(own), _mm512_set1_epi32(0x00800000));
        __m512 y = log_16(own);
        if (_mm512_cmpge_epu32_mask(above, _mm512_set1_epi32(0x7f000000))) {
            float each[16];
            _mm512_storeu_ps(each, own);
            INDEPENDENT for (int k = 0; k < 16; k++) each[k] = log_f32(each[k]);
            y = _mm512_loadu_ps(each);
        }
        _mm512_mask_storeu_ps(out + i, there, y);
    }
}

ROW_OF_16(exp_16)
ROW_OF_16(tanh_16)
ROW_OF_16(sigmoid_16)
ROW_OF_16(erf_16)
#define VECTOR_MATH
