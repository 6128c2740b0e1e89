/* Casts between float32 and the types of half its size, to the nearest, ties to even. float16 has 5 bits of exponent and 10
 * behind the point, bfloat16 is the upper half of a float32. A NaN stays one, with those of its digits that fit. */
typedef union {
    uint32_t bits;
    float number;
} f32_bits;

static inline uint16_t f16_of(uint32_t x) {
    uint32_t size = x & 0x7fffffff, sign = x >> 16 & 0x8000;
    f32_bits small = {size};
    small.number += 0.5f; /* whose last digit is that of the halves below the normal ones */
    uint32_t normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    uint32_t nan = 0x7e00 | (size >> 13 & 0x3ff);
    uint32_t half = size < 113u << 23 ? small.bits - 0x3f000000 : size < 143u << 23 ? normal : 0x7c00;
    return (uint16_t)(sign | (size > 0x7f800000 ? nan : half));
}

static inline uint32_t f32_of_f16(uint16_t x) {
    uint32_t size = x & 0x7fff, sign = (uint32_t)(x & 0x8000) << 16;
    f32_bits small = {.number = (float)(int32_t)size * 0x1p-24f};
    uint32_t normal = (size << 13) + (112u << 23), odd = size << 13 | 0x7f800000 | (size > 0x7c00 ? 0x400000u : 0);
    return sign | (size < 0x400 ? small.bits : size < 0x7c00 ? normal : odd);
}

static inline uint16_t bf16_of(uint32_t x) {
    uint32_t rounded = (x + 0x7fff + (x >> 16 & 1)) >> 16;
    return (uint16_t)((x & 0x7fffffff) > 0x7f800000 ? x >> 16 | 0x40 : rounded);
}

static void halves_body(void *context, int64_t begin, int64_t end) {
    const cyx_halves *cast = context;
    const uint32_t *wide = (const uint32_t *)cast->x;
    const uint16_t *half = (const uint16_t *)cast->x;
    uint32_t *to_wide = (uint32_t *)cast->out;
    uint16_t *to_half = (uint16_t *)cast->out;
    int64_t i = begin;
    switch (cast->kind) {
    case CYX_TO_F16:
#if defined(F16_OF_16)
        for (; i + 16 <= end; i += 16) F16_OF_16(to_half + i, (const float *)wide + i);
#endif
        INDEPENDENT for (; i < end; i++) to_half[i] = f16_of(wide[i]);
        break;
    case CYX_FROM_F16:
#if defined(F32_OF_16)
        for (; i + 16 <= end; i += 16) F32_OF_16((float *)to_wide + i, half + i);
#endif
        INDEPENDENT for (; i < end; i++) to_wide[i] = f32_of_f16(half[i]);
        break;
    case CYX_TO_BF16:
        INDEPENDENT for (; i < end; i++) to_half[i] = bf16_of(wide[i]);
        break;
    default:
        INDEPENDENT for (; i < end; i++) to_wide[i] = (uint32_t)half[i] << 16;
    }
}

static void cast_halves(const cyx_halves *cast) {
    cyx_parallel(cast->count, cyx_grain(cast->count, 1, CYX_LEAST_WORK), halves_body, (void *)cast);
}
