/* x86-64 with AVX2 and FMA: 6 x 16 blocks in 12 of 16 registers. */
#if defined(__x86_64__)
#include "isa_headers.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "math.inl"

#define LANES 8
#define MR 6
#define NV 2
#define VECTOR_BYTES 32
#include "vectors.h"
#define fma_vf32(a, b, c) ((vf32)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define fma_vf64(a, b, c) ((vf64)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))

#define splat_vf32(x) ((vf32)_mm256_set1_ps(x))
#define splat_vf64(x) ((vf64)_mm256_set1_pd(x))

#include "isa.inl"

void cyx_fill_avx2(cyx_table table) { fill_isa(table); }
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
