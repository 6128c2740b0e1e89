/* x86-64 with AVX-512 and its products of bytes (VNNI). */
#if defined(__x86_64__)
#include "headers.h"
#if defined(__clang__)
#pragma clang attribute push(                                                                                \
    __attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,prefer-vector-width=512")
#endif
#include "../math.inl"

#define TILE 12
typedef __m512 VF;
typedef __m512i VI, VB;

#define vf_load(at) _mm512_loadu_ps(at)
#define vf_store(at, x) _mm512_storeu_ps(at, x)
#define vf_splat(x) _mm512_set1_ps(x)
#define vf_mul(a, b) _mm512_mul_ps(a, b)
#define vf_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define vf_of_vi(x) _mm512_cvtepi32_ps(x)
#define vf_load_half(at) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(at)))
#define vf_load_brain(at)                                                                                    \
    _mm512_castsi512_ps(                                                                                     \
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(at))), 16))
#define vf_load_byte(at) _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(at))))
#define vf_load_signed_byte(at) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(at))))
#define vi_splat(x) _mm512_set1_epi32(x)
#define vb_load(at) _mm512_loadu_si512(at)
#define vb_low_halves(x) _mm512_and_si512(x, _mm512_set1_epi8(15))
#define vb_high_halves(x) _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15))
#define vi_dot(sum, bytes, word, narrow) _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi32(word))

static inline __attribute__((always_inline)) void vf_store_rows(const product *p, int64_t panel, int64_t row,
                                                                VF x) {
    float lanes[16];
    if ((panel + 1) * ROWS <= p->weights->rows) {
        float *out = p->out + row * p->weights->rows + panel * ROWS;
        _mm512_storeu_ps(out, p->accumulate ? _mm512_add_ps(_mm512_loadu_ps(out), x) : x);
        return;
    }
    vf_store(lanes, x);
    store_rows(p, panel, row, lanes);
}

#include "language.inl"

const language_table language_vnni = {multiply, quantise, attend, place, rms_norm, swiglu};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
