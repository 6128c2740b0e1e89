/* log of eight float32 at once: step by step that of math.inl, so with its bits. The compiler looks up eight numbers
 * in a table one by one; here they are shuffled. */

/* table[part % 16] of each lane. */
static inline __attribute__((always_inline)) __m256 pick_8(const float *table, __m256i part) {
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), part);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), part);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(part, 28)));
}

/* The natural logarithm of normal numbers above 0. */
static inline __attribute__((always_inline)) __m256 log_8(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), from = _mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f340000));
    __m256i exponent = _mm256_srai_epi32(from, 23), part = _mm256_srli_epi32(from, 19);
    __m256 m = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
#define ALL(x) _mm256_set1_ps(x)
    __m256 f = _mm256_fmadd_ps(m, pick_8(log_near, part), ALL(-1.0f)), z = _mm256_mul_ps(f, f);
    __m256 p = _mm256_fmadd_ps(f, ALL(0x1.555554p-2f), ALL(-0x1.fffffcp-2f));
    p = _mm256_fmadd_ps(z, _mm256_fmadd_ps(f, ALL(0x1.99e24ap-3f), ALL(-0x1.003a74p-2f)), p);
    __m256 y = _mm256_add_ps(pick_8(log_part, part), _mm256_fmadd_ps(z, p, f));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(exponent), ALL(0x1.62e43p-1f), y);
#undef ALL
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
#define LOG_ROW log_8_row
