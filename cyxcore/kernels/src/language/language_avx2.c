/* x86-64 with AVX2, FMA and F16C: a vector of 16 lanes is two of the processor's. */
#if defined(__x86_64__)
#include "headers.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "../math.inl"

#define TILE 3
#define INLINE static inline __attribute__((always_inline))
typedef struct {
    __m256 a, b;
} VF;
typedef struct {
    __m256i a, b;
} VI;
typedef VI VB;

INLINE VF vf_load(const float *at) { return (VF){_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
INLINE void vf_store(float *at, VF x) { _mm256_storeu_ps(at, x.a), _mm256_storeu_ps(at + 8, x.b); }
INLINE VF vf_splat(float x) { return (VF){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE VF vf_mul(VF x, VF y) { return (VF){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INLINE VF vf_fma(VF x, VF y, VF z) {
    return (VF){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
INLINE VF vf_of_vi(VI x) { return (VF){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE __m128i load_128(const void *at) { return _mm_loadu_si128((const __m128i *)at); }
INLINE __m128i load_64(const void *at) { return _mm_loadl_epi64((const __m128i *)at); }
INLINE VF vf_load_half(const uint16_t *at) {
    return (VF){_mm256_cvtph_ps(load_128(at)), _mm256_cvtph_ps(load_128(at + 8))};
}
INLINE VF vf_load_brain(const uint16_t *at) {
    return (VF){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(at)), 16)),
                _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(at + 8)), 16))};
}
INLINE VF vf_load_byte(const uint8_t *at) {
    return vf_of_vi((VI){_mm256_cvtepu8_epi32(load_64(at)), _mm256_cvtepu8_epi32(load_64(at + 8))});
}
INLINE VF vf_load_signed_byte(const uint8_t *at) {
    return vf_of_vi((VI){_mm256_cvtepi8_epi32(load_64(at)), _mm256_cvtepi8_epi32(load_64(at + 8))});
}
INLINE VI vi_splat(int32_t x) { return (VI){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE VB vb_load(const uint8_t *at) {
    return (VB){_mm256_loadu_si256((const __m256i *)at), _mm256_loadu_si256((const __m256i *)(at + 32))};
}
INLINE VB vb_low_halves(VB x) {
    __m256i mask = _mm256_set1_epi8(15);
    return (VB){_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
INLINE VB vb_high_halves(VB x) {
    return vb_low_halves((VB){_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)});
}
/* Four products of bytes in each lane. Pairs of products of values below 64 fit into 16 bits; for larger ones even and
 * odd bytes are widened first. */
INLINE __m256i dot_256(__m256i sum, __m256i bytes, __m256i words, int narrow) {
    if (narrow) {
        __m256i pairs = _mm256_maddubs_epi16(bytes, words);
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(255)),
                                     _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(bytes, 8), _mm256_srai_epi16(words, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
INLINE VI vi_dot(VI sum, VB bytes, int32_t word, int narrow) {
    __m256i words = _mm256_set1_epi32(word);
    return (VI){dot_256(sum.a, bytes.a, words, narrow), dot_256(sum.b, bytes.b, words, narrow)};
}
INLINE void vf_store_rows(const product *p, int64_t panel, int64_t row, VF x) {
    float lanes[16];
    vf_store(lanes, x);
    store_rows(p, panel, row, lanes);
}

#include "language.inl"

const language_table language_avx2 = {multiply, quantise, attend, place, rms_norm, swiglu};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
