/* The tile instructions of AMX in AVX-512, as Intel's manual defines them: for tests on machines that have none. A build
 * with -DCYX_EMULATE_AMX uses them in the place of the processor's. Takes only the one configuration that tiles_begin
 * makes, and ends the process where an instruction comes without it. */
#ifndef CYX_AMX_EMULATED_H
#define CYX_AMX_EMULATED_H

#include <stdlib.h>

static __thread __m512i emulated_tiles[8][16];
static __thread int emulated_is_configured;

static inline __m512i *emulated_tile(int tile) {
    if (!emulated_is_configured || tile < 0 || tile > 7) abort();
    return emulated_tiles[tile];
}

static inline void emulated_configure(const void *shapes) {
    const uint8_t *bytes = shapes;
    for (int i = 0; i < 64; i++) {
        int wanted = i == 0 ? 1 : i < 16 ? 0 : i < 32 ? (i % 2 ? 0 : 64) : i < 48 ? 0 : i < 56 ? 16 : 0;
        if (bytes[i] != wanted) abort();
    }
    memset(emulated_tiles, 0, sizeof emulated_tiles);
    emulated_is_configured = 1;
}

static inline void emulated_load(int tile, const void *from, int64_t stride) {
    __m512i *to = emulated_tile(tile);
    for (int r = 0; r < 16; r++) to[r] = _mm512_loadu_si512((const char *)from + r * stride);
}

static inline void emulated_store(int tile, void *to, int64_t stride) {
    const __m512i *from = emulated_tile(tile);
    for (int r = 0; r < 16; r++) _mm512_storeu_si512((char *)to + r * stride, from[r]);
}

/* c[row][column] += sum over 16 pairs of a[row][pair] b[pair][column], the lower halves of the pairs and the upper ones
 * summed up apart, rounded to the nearest, denormal numbers being zero before and behind. */
static inline void emulated_multiply(int tile_c, int tile_a, int tile_b) {
    __m512i *c = emulated_tile(tile_c), *a = emulated_tile(tile_a), *b = emulated_tile(tile_b);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    unsigned mode = _mm_getcsr();
    _mm_setcsr(0x9fc0);
    __asm__ volatile("" ::: "memory");
    for (int r = 0; r < 16; r++) {
        __m512 low = _mm512_setzero_ps(), high = low;
        for (int pair = 0; pair < 16; pair++) {
            __m512i of_a = _mm512_set1_epi32(((const int *)&a[r])[pair]);
            low = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(of_a, 16)),
                                  _mm512_castsi512_ps(_mm512_slli_epi32(b[pair], 16)), low);
            high = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(of_a, upper)),
                                   _mm512_castsi512_ps(_mm512_and_si512(b[pair], upper)), high);
        }
        c[r] = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(c[r]), _mm512_add_ps(low, high)));
    }
    __asm__ volatile("" ::: "memory");
    _mm_setcsr(mode);
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) emulated_configure(shapes)
#define _tile_release() ((void)(emulated_is_configured = 0))
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_zero(tile) memset(emulated_tile(tile), 0, sizeof emulated_tiles[0])
#define _tile_dpbf16ps(c, a, b) emulated_multiply(c, a, b)

#endif
