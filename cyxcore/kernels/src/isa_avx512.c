/* x86-64 with AVX-512 F, DQ, BW and VL: 12 x 32 blocks in 24 of 32 registers. */
#if defined(__x86_64__)
#include "isa_headers.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))),         \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
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

#include "isa.inl"

void cyx_fill_avx512(cyx_table table) { fill_isa(table); }
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
