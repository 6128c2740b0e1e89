/* Any processor: plain C, with fused multiply-add from the C library where the processor has none (slow but
 * exact). */
#include "isa_headers.h"
#include "math.inl"

#define LANES 4
#define MR 4
#define NV 4
#define VECTOR_BYTES 16
#include "vectors.h"

static inline __attribute__((always_inline)) vf32 fma_vf32(vf32 a, vf32 b, vf32 c) {
    vf32 r;
    for (int i = 0; i < 4; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
}
static inline __attribute__((always_inline)) vf64 fma_vf64(vf64 a, vf64 b, vf64 c) {
    vf64 r;
    for (int i = 0; i < 2; i++) r[i] = __builtin_fma(a[i], b[i], c[i]);
    return r;
}

#define splat_vf32(x) ((vf32){(x), (x), (x), (x)})
#define splat_vf64(x) ((vf64){(x), (x)})

#include "isa.inl"

void cyx_fill_portable(cyx_table table) { fill_isa(table); }
void cyx_draw_portable(cyx_draw *draw) { draw_numbers(draw); }
void cyx_cast_halves_portable(const cyx_halves *cast) { cast_halves(cast); }
cyx_status cyx_normalise_portable(cyx_norm *norm) { return normalise(norm); }
cyx_status cyx_recur_portable(const cyx_recurrence *one) { return recur(one); }
