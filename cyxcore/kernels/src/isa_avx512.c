/* x86-64 with AVX-512 F, DQ, BW and VL: 12 x 32 blocks in 24 of 32 registers. All of these processors have prefetchw, which takes
 * a line that will be written from the other cores: without it the store asks for it once more. */
#if defined(__x86_64__)
#include "isa_headers.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,prfchw"))),         \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,prfchw,prefer-vector-width=512")
#endif
#include "math.inl"
#include "math_avx512.inl"

#define LANES 16
#define MR 12
#define NV 2
#define VECTOR_BYTES 64
#include "vectors.h"
#define fma_vf32(a, b, c) ((vf32)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define fma_vf64(a, b, c) ((vf64)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))

#define splat_vf32(x) ((vf32)_mm512_set1_ps(x))
#define splat_vf64(x) ((vf64)_mm512_set1_pd(x))

/* The lanes that a mask names, from and to memory; the others of a load are `rest`. */
#define LOAD_PART_f32(x, mask, rest) _mm512_mask_loadu_ps((__m512)(rest), (__mmask16)(mask), x)
#define LOAD_PART_f64(x, mask, rest) _mm512_mask_loadu_pd((__m512d)(rest), (__mmask8)(mask), x)
#define STORE_PART_f32(x, mask, v) _mm512_mask_storeu_ps(x, (__mmask16)(mask), (__m512)(v))
#define STORE_PART_f64(x, mask, v) _mm512_mask_storeu_pd(x, (__mmask8)(mask), (__m512d)(v))

/* What several operations read, from memory once: the compiler would load it for each, and loads are what they wait for. */
#define IN_VECTOR_REGISTER(v) __asm__("" : "+v"(v))

/* The lanes that are bits of a number, zeros in the others. */
#define LOAD_LANES_f32(x, lanes) _mm512_maskz_loadu_ps((__mmask16)(lanes), x)

/* 16 x 16 numbers (8 x 8 of 8 bytes) turned as they are loaded, quarters of lines first: half of the shuffles of a square
 * that is turned in registers, and loads, which nothing else waits for. */
#define HALF_f32(row, s, at) _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps((row)[s] + (at))), _mm_loadu_ps((row)[4 + (s)] + (at)), 1)
#define QUARTERS_f32(row, s, at)                                                                             \
    _mm512_insertf32x8(_mm512_castps256_ps512(HALF_f32(row, s, at)), HALF_f32(row, 8 + (s), at), 1)
#define LOAD_TURNED_f32(x, row, at)                                                                          \
    _Pragma("GCC unroll 4") for (int g = 0; g < 16; g += 4) {                                                \
        __m512 r0 = QUARTERS_f32(row, 0, (at) + g), r1 = QUARTERS_f32(row, 1, (at) + g);                     \
        __m512 r2 = QUARTERS_f32(row, 2, (at) + g), r3 = QUARTERS_f32(row, 3, (at) + g);                     \
        __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1));                                        \
        __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1));                                       \
        __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));                                        \
        __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));                                       \
        (x)[g] = (vf32)_mm512_unpacklo_pd(low01, low23), (x)[g + 1] = (vf32)_mm512_unpackhi_pd(low01, low23); \
        (x)[g + 2] = (vf32)_mm512_unpacklo_pd(high01, high23), (x)[g + 3] = (vf32)_mm512_unpackhi_pd(high01, high23); \
    }
#define QUARTERS_f64(row, s, at)                                                                             \
    _mm512_insertf64x2(_mm512_insertf64x2(_mm512_insertf64x2(_mm512_castpd128_pd512(_mm_loadu_pd((row)[s] + (at))), \
        _mm_loadu_pd((row)[2 + (s)] + (at)), 1), _mm_loadu_pd((row)[4 + (s)] + (at)), 2),                    \
        _mm_loadu_pd((row)[6 + (s)] + (at)), 3)
#define LOAD_TURNED_f64(x, row, at)                                                                          \
    _Pragma("GCC unroll 4") for (int g = 0; g < 8; g += 2) {                                                 \
        __m512d r0 = QUARTERS_f64(row, 0, (at) + g), r1 = QUARTERS_f64(row, 1, (at) + g);                    \
        (x)[g] = (vf64)_mm512_unpacklo_pd(r0, r1), (x)[g + 1] = (vf64)_mm512_unpackhi_pd(r0, r1);            \
    }

/* Lanes in which one of two is a NaN; the greater and the lesser, the first where one is, or where both are zeros. */
#define UNORDERED_f32 __mmask16
#define UNORDERED_f64 __mmask8
#define NOTE_UNORDERED_f32(odd, a, b)                                                                        \
    (odd) = (__mmask16)((odd) | _mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_UNORD_Q))
#define NOTE_UNORDERED_f64(odd, a, b)                                                                        \
    (odd) = (__mmask8)((odd) | _mm512_cmp_pd_mask((__m512d)(a), (__m512d)(b), _CMP_UNORD_Q))
#define ANY_UNORDERED_f32(odd) ((odd) != 0)
#define ANY_UNORDERED_f64(odd) ((odd) != 0)
#define NOT_LESS_f32(a, b) _mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_NLT_UQ)
#define NOT_LESS_f64(a, b) _mm512_cmp_pd_mask((__m512d)(a), (__m512d)(b), _CMP_NLT_UQ)
#define QUICK_MAX_f32(a, b) ((vf32)_mm512_max_ps((__m512)(b), (__m512)(a)))
#define QUICK_MIN_f32(a, b) ((vf32)_mm512_min_ps((__m512)(b), (__m512)(a)))
#define QUICK_MAX_f64(a, b) ((vf64)_mm512_max_pd((__m512d)(b), (__m512d)(a)))
#define QUICK_MIN_f64(a, b) ((vf64)_mm512_min_pd((__m512d)(b), (__m512d)(a)))

/* Products of the lower halves of 64-bit lanes; even lanes of two vectors side by side, and odd ones. */
#define LOW_PRODUCTS(a, b) ((vu64)_mm512_mul_epu32((__m512i)(a), (__m512i)(b)))
#define PAIRS_LOW(a, b) ((vu64)_mm512_unpacklo_epi64((__m512i)(a), (__m512i)(b)))
#define PAIRS_HIGH(a, b) ((vu64)_mm512_unpackhi_epi64((__m512i)(a), (__m512i)(b)))

/* float16 of sixteen numbers, and back: f16_of and f32_of_f16 of halves.inl as one instruction each. */
#define F16_OF_16(to, x) _mm256_storeu_si256((__m256i *)(to), _mm512_cvtps_ph(_mm512_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT))
#define F32_OF_16(to, x) _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(x))))

/* Two arrays read and one written, far from the nearest cache: by vectors of 64 bytes they take a tenth longer where a processor
 * stores these as two halves. One that stores them whole waits there for the same caches; it loses where all lies in its nearest.
 * Unrolled, or a loop waits for its own jumps where the memory is near. */
#if !defined(__clang__)
#define OF_STREAMS __attribute__((target("prefer-vector-width=256")))
#define UNROLLED _Pragma("GCC unroll 4")
#endif

#include "isa.inl"

void cyx_fill_avx512(cyx_table table) { fill_isa(table); }
void cyx_draw_avx512(cyx_draw *draw) { draw_numbers(draw); }
void cyx_cast_halves_avx512(const cyx_halves *cast) { cast_halves(cast); }
cyx_status cyx_normalise_avx512(cyx_norm *norm) { return normalise(norm); }
cyx_status cyx_recur_avx512(const cyx_recurrence *one) { return recur(one); }
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
