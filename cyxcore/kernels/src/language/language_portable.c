/* Any processor, in plain C. */
#include "headers.h"

#include "../math.inl"

#define TILE 3
#define INLINE static inline __attribute__((always_inline))
typedef struct {
    float lane[16];
} VF;
typedef struct {
    int32_t lane[16];
} VI;
typedef struct {
    uint8_t byte[64];
} VB;

#define LANES16(expression)                                                                                  \
    for (int i = 0; i < 16; i++) r.lane[i] = (expression);                                                   \
    return r

INLINE float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, bits = half & 0x7fff;
    float magnitude = bits >= 0x7c00 ? f32_of_bits(0x7f800000u | (bits & 0x3ffu) << 13) /* infinity, NaN */
                      : bits < 0x400 ? (float)bits * 0x1p-24f                          /* below the normal numbers */
                                     : f32_of_bits((bits << 13) + (112u << 23));
    return f32_of_bits(bits_of_f32(magnitude) | sign);
}

INLINE VF vf_load(const float *at) {
    VF r;
    LANES16(at[i]);
}
INLINE void vf_store(float *at, VF x) { memcpy(at, x.lane, sizeof x.lane); }
INLINE VF vf_splat(float x) {
    VF r;
    LANES16(x);
}
INLINE VF vf_mul(VF x, VF y) {
    VF r;
    LANES16(x.lane[i] * y.lane[i]);
}
INLINE VF vf_fma(VF x, VF y, VF z) {
    VF r;
    LANES16(FMA32(x.lane[i], y.lane[i], z.lane[i]));
}
INLINE VF vf_of_vi(VI x) {
    VF r;
    LANES16((float)x.lane[i]);
}
INLINE VF vf_load_half(const uint16_t *at) {
    VF r;
    LANES16(float_of_half(at[i]));
}
INLINE VF vf_load_brain(const uint16_t *at) {
    VF r;
    LANES16(f32_of_bits((uint32_t)at[i] << 16));
}
INLINE VF vf_load_byte(const uint8_t *at) {
    VF r;
    LANES16((float)at[i]);
}
INLINE VF vf_load_signed_byte(const uint8_t *at) {
    VF r;
    LANES16((float)(int8_t)at[i]);
}
INLINE VI vi_splat(int32_t x) {
    VI r;
    LANES16(x);
}
INLINE VB vb_load(const uint8_t *at) {
    VB r;
    memcpy(r.byte, at, sizeof r.byte);
    return r;
}
INLINE VB vb_low_halves(VB x) {
    for (int i = 0; i < 64; i++) x.byte[i] &= 15;
    return x;
}
INLINE VB vb_high_halves(VB x) {
    for (int i = 0; i < 64; i++) x.byte[i] >>= 4;
    return x;
}
INLINE VI vi_dot(VI sum, VB bytes, int32_t word, int narrow) {
    (void)narrow;
    int8_t q[4];
    memcpy(q, &word, sizeof q);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 4; j++) sum.lane[i] += bytes.byte[4 * i + j] * q[j];
    return sum;
}
INLINE void vf_store_rows(const product *p, int64_t panel, int64_t row, VF x) { store_rows(p, panel, row, x.lane); }

#include "language.inl"

const language_table language_portable = {multiply, quantise, attend, place, rms_norm, swiglu};
