/* x86-64 with AVX2 and FMA: 6 x 16 blocks in 12 of 16 registers. */
#if defined(__x86_64__)
#include "isa_headers.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "math.inl"
#include "math_avx2.inl"

#define LANES 8
#define MR 6
#define NV 2
#define VECTOR_BYTES 32
#include "vectors.h"
#define fma_vf32(a, b, c) ((vf32)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define fma_vf64(a, b, c) ((vf64)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))

#define splat_vf32(x) ((vf32)_mm256_set1_ps(x))
#define splat_vf64(x) ((vf64)_mm256_set1_pd(x))

/* The lanes that are bits of a number, zeros in the others. */
static inline __m256 load_lanes(const float *x, int lanes) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_maskload_ps(x, _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(lanes), bits), bits));
}
#define LOAD_LANES_f32(x, lanes) load_lanes(x, (int)(lanes))

/* As in isa_avx512.c. */
#define UNORDERED_f32 __m256
#define UNORDERED_f64 __m256d
#define NOTE_UNORDERED_f32(odd, a, b)                                                                        \
    (odd) = _mm256_or_ps(odd, _mm256_cmp_ps((__m256)(a), (__m256)(b), _CMP_UNORD_Q))
#define NOTE_UNORDERED_f64(odd, a, b)                                                                        \
    (odd) = _mm256_or_pd(odd, _mm256_cmp_pd((__m256d)(a), (__m256d)(b), _CMP_UNORD_Q))
#define ANY_UNORDERED_f32(odd) _mm256_movemask_ps(odd)
#define ANY_UNORDERED_f64(odd) _mm256_movemask_pd(odd)
#define NOT_LESS_f32(a, b) _mm256_movemask_ps(_mm256_cmp_ps((__m256)(a), (__m256)(b), _CMP_NLT_UQ))
#define NOT_LESS_f64(a, b) _mm256_movemask_pd(_mm256_cmp_pd((__m256d)(a), (__m256d)(b), _CMP_NLT_UQ))
#define QUICK_MAX_f32(a, b) ((vf32)_mm256_max_ps((__m256)(b), (__m256)(a)))
#define QUICK_MIN_f32(a, b) ((vf32)_mm256_min_ps((__m256)(b), (__m256)(a)))
#define QUICK_MAX_f64(a, b) ((vf64)_mm256_max_pd((__m256d)(b), (__m256d)(a)))
#define QUICK_MIN_f64(a, b) ((vf64)_mm256_min_pd((__m256d)(b), (__m256d)(a)))

/* Products of the lower halves of 64-bit lanes; even lanes of two vectors side by side, and odd ones. */
#define LOW_PRODUCTS(a, b) ((vu64)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#define PAIRS_LOW(a, b) ((vu64)_mm256_unpacklo_epi64((__m256i)(a), (__m256i)(b)))
#define PAIRS_HIGH(a, b) ((vu64)_mm256_unpackhi_epi64((__m256i)(a), (__m256i)(b)))

#include "isa.inl"

void cyx_fill_avx2(cyx_table table) { fill_isa(table); }
void cyx_draw_avx2(cyx_draw *draw) { draw_numbers(draw); }
void cyx_cast_halves_avx2(const cyx_halves *cast) { cast_halves(cast); }
cyx_status cyx_normalise_avx2(cyx_norm *norm) { return normalise(norm); }
cyx_status cyx_recur_avx2(const cyx_recurrence *one) { return recur(one); }
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
