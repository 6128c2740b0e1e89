/* exp, log, sigmoid, erf, gelu and its derivative of eight float32 at once: step by step those of math.inl, so with their bits. The compiler looks up eight numbers
 * in a table one by one; here they are shuffled. */

#define ALL(x) _mm256_set1_ps(x)

/* table[part % 16] of each lane. */
static inline __attribute__((always_inline)) __m256 pick_8(const float *table, __m256i part) {
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), part);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), part);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(part, 28)));
}

/* The same of thirty-two, table[part % 32]. */
static inline __attribute__((always_inline)) __m256 pick_8_of_32(const float *table, __m256i part) {
    __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(part, 27));
    return _mm256_blendv_ps(pick_8(table, part), pick_8(table + 16, part), second);
}

/* The natural logarithm of normal numbers above 0. */
static inline __attribute__((always_inline)) __m256 log_8(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), from = _mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f340000));
    __m256i exponent = _mm256_srai_epi32(from, 23), part = _mm256_srli_epi32(from, 19);
    __m256 m = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
    __m256 f = _mm256_fmadd_ps(m, pick_8(log_near, part), ALL(-1.0f)), z = _mm256_mul_ps(f, f);
    __m256 p = _mm256_fmadd_ps(f, ALL(0x1.555554p-2f), ALL(-0x1.fffffcp-2f));
    p = _mm256_fmadd_ps(z, _mm256_fmadd_ps(f, ALL(0x1.99e24ap-3f), ALL(-0x1.003a74p-2f)), p);
    __m256 y = _mm256_add_ps(pick_8(log_part, part), _mm256_fmadd_ps(z, p, f));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(exponent), ALL(0x1.62e43p-1f), y);
}

/* Rows of it. Eight among which there is another number, or a NaN, and the last ones go one at a time. */
static void log_8_row(float *out, const float *x, float shift, int64_t n) {
    (void)shift;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(x + i));
        __m256i fit = _mm256_andnot_si256(_mm256_cmpgt_epi32(bits, _mm256_set1_epi32(0x7f7fffff)),
                                          _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(0x007fffff)));
        if (_mm256_movemask_epi8(fit) == -1)
            _mm256_storeu_ps(out + i, log_8(_mm256_castsi256_ps(bits)));
        else
            for (int64_t k = i; k < i + 8; k++) out[k] = log_f32(x[k]);
    }
    for (; i < n; i++) out[i] = log_f32(x[i]);
}

/* power_f32 of numbers from -104 to 89, with its two halves of the power of two. */
static inline __attribute__((always_inline)) __m256 power_8(__m256 x, __m256 *first, __m256 *second) {
    __m256 shifted = _mm256_fmadd_ps(x, ALL(0x1.715476p+0f), ALL(0x1.8p20f)), k = _mm256_sub_ps(shifted, ALL(0x1.8p20f));
    __m256 r = _mm256_fmadd_ps(k, ALL(-0x1.62e4p-1f), x);
    r = _mm256_fmadd_ps(k, ALL(-0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_fmadd_ps(r, _mm256_fmadd_ps(r, ALL(0x1.555dacp-5f), ALL(0x1.555c7ep-3f)), ALL(0.5f));
    __m256i part = _mm256_castps_si256(shifted), n = _mm256_sub_epi32(part, _mm256_set1_epi32(0x49c00000));
    __m256i half = _mm256_srai_epi32(n, 4), one = _mm256_set1_epi32(127);
    *first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, one), 23));
    half = _mm256_sub_epi32(_mm256_srai_epi32(n, 3), half);
    *second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, one), 23));
    __m256 whole = _mm256_permutevar8x32_ps(_mm256_loadu_ps(eighths), part);
    return _mm256_fmadd_ps(whole, _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r), whole);
}

static inline __attribute__((always_inline)) __m256 exp_8(__m256 x) {
    __m256 first, second;
    __m256 e = power_8(_mm256_max_ps(ALL(-104.0f), _mm256_min_ps(ALL(89.0f), x)), &first, &second);
    second = _mm256_andnot_ps(_mm256_cmp_ps(x, ALL(-103.98f), _CMP_LT_OQ), second);
    return _mm256_mul_ps(_mm256_mul_ps(e, first), second);
}

static inline __attribute__((always_inline)) __m256 sigmoid_8(__m256 x) {
    __m256 first, second;
    __m256 e = power_8(_mm256_max_ps(ALL(-104.0f), _mm256_min_ps(ALL(88.0f), x)), &first, &second);
    e = _mm256_mul_ps(_mm256_mul_ps(e, first), second);
    __m256 y = _mm256_div_ps(e, _mm256_add_ps(e, ALL(1.0f)));
    return _mm256_blendv_ps(y, _mm256_fnmadd_ps(y, e, e), _mm256_cmp_ps(x, ALL(-1.0f), _CMP_LT_OQ));
}

static inline __attribute__((always_inline)) __m256 erf_8(__m256 x) {
    __m256 sign = _mm256_and_ps(x, ALL(-0.0f)), a = _mm256_min_ps(ALL(4.0f), _mm256_andnot_ps(ALL(-0.0f), x));
    __m256 shifted = _mm256_fmadd_ps(a, ALL(0x1.eeb6e2p+1f), ALL(0x1.8p23f));
    __m256 k = _mm256_sub_ps(shifted, ALL(0x1.8p23f)), t = _mm256_fmadd_ps(k, ALL(-0x1.08f1dep-2f), a);
    __m256i part = _mm256_castps_si256(shifted);
    __m256 p = _mm256_fmadd_ps(pick_8(erf_part[5], part), t, pick_8(erf_part[4], part));
    p = _mm256_fmadd_ps(p, t, pick_8(erf_part[3], part));
    p = _mm256_fmadd_ps(p, t, pick_8(erf_part[2], part));
    p = _mm256_fmadd_ps(p, t, pick_8(erf_part[1], part));
    __m256 base = _mm256_blendv_ps(pick_8(erf_part[0], part), a, _mm256_cmp_ps(k, _mm256_setzero_ps(), _CMP_EQ_OQ));
    return _mm256_or_ps(_mm256_andnot_ps(ALL(-0.0f), _mm256_fmadd_ps(p, t, base)), sign);
}

static inline __attribute__((always_inline)) __m256 gelu_by_part_8(const float (*table)[32], __m256 a) {
    a = _mm256_min_ps(ALL(GELU_NEAR), a);
    __m256 shifted = _mm256_fmadd_ps(a, ALL(0x1.745d18p+2f), ALL(0x1.8p23f));
    __m256 t = _mm256_fmadd_ps(_mm256_sub_ps(shifted, ALL(0x1.8p23f)), ALL(-0x1.6p-3f), a);
    __m256i part = _mm256_castps_si256(shifted);
#define PART(power) pick_8_of_32(table[power], part)
    __m256 p = _mm256_fmadd_ps(PART(6), t, PART(5));
    p = _mm256_fmadd_ps(p, t, PART(4));
    p = _mm256_fmadd_ps(p, t, PART(3));
    p = _mm256_fmadd_ps(p, t, PART(2));
    p = _mm256_fmadd_ps(p, t, PART(1));
    return _mm256_fmadd_ps(p, t, PART(0));
#undef PART
}

/* y = FUNCTION(x) where `far` says so. */
#define MEND_FAR(FUNCTION, far, x, y)                                                                        \
    do {                                                                                                     \
        __m256 beyond = far;                                                                                 \
        if (__builtin_expect(_mm256_movemask_ps(beyond), 0)) {                                               \
            float each[8];                                                                                   \
            _mm256_storeu_ps(each, x);                                                                       \
            INDEPENDENT for (int i = 0; i < 8; i++) each[i] = FUNCTION(each[i]);                             \
            (y) = _mm256_blendv_ps(y, _mm256_loadu_ps(each), beyond);                                        \
        }                                                                                                    \
    } while (0)

static inline __attribute__((always_inline)) __m256 gelu_8(__m256 x) {
    __m256 y = gelu_by_part_8(gelu_part, _mm256_andnot_ps(ALL(-0.0f), x));
    y = _mm256_sub_ps(_mm256_max_ps(ALL(-0.0f), x), y);
    MEND_FAR(gelu_far_f32, _mm256_cmp_ps(x, ALL(-GELU_NEAR), _CMP_LT_OQ), x, y);
    return y;
}

static inline __attribute__((always_inline)) __m256 gelu_slope_8(__m256 x) {
    __m256 a = _mm256_andnot_ps(ALL(-0.0f), x), tail = gelu_by_part_8(gelu_slope_part, a);
    __m256 y = _mm256_blendv_ps(_mm256_sub_ps(ALL(1.0f), tail), tail, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
    MEND_FAR(gelu_slope_far_f32, _mm256_cmp_ps(a, ALL(GELU_NEAR), _CMP_GT_OQ), x, y);
    return y;
}

/* out = FUNCTION(x - shift). The last ones of a row are a vector, too, made elsewhere. */
#define ROW_OF_8(FUNCTION)                                                                                   \
    static void FUNCTION##_row(float *out, const float *x, float shift, int64_t n) {                         \
        int64_t i = 0;                                                                                       \
        for (; i + 8 <= n; i += 8)                                                                           \
            _mm256_storeu_ps(out + i, FUNCTION(_mm256_sub_ps(_mm256_loadu_ps(x + i), ALL(shift))));          \
        if (i == n) return;                                                                                  \
        float rest[8] = {0};                                                                                 \
        memcpy(rest, x + i, sizeof(float) * (size_t)(n - i));                                                \
        _mm256_storeu_ps(rest, FUNCTION(_mm256_sub_ps(_mm256_loadu_ps(rest), ALL(shift))));                  \
        memcpy(out + i, rest, sizeof(float) * (size_t)(n - i));                                              \
    }

ROW_OF_8(exp_8)
ROW_OF_8(sigmoid_8)
ROW_OF_8(erf_8)
ROW_OF_8(gelu_8)
ROW_OF_8(gelu_slope_8)

/* out = e**(x - shift) of n numbers, a multiple of 8, each less a number of its own. */
static inline void exp_8_less(float *out, const float *x, const float *shift, int64_t n) {
    for (int64_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(out + i, exp_8(_mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(shift + i))));
}
#undef ALL
#define EXP_ROW exp_8_row
#define EXP_LESS exp_8_less
#define EXP_VECTOR(x) exp_8((__m256)(x))
#define SIGMOID_ROW sigmoid_8_row
#define LOG_ROW log_8_row
#define ERF_ROW erf_8_row
#define GELU_ROW gelu_8_row
#define GELU_SLOPE_ROW gelu_slope_8_row
