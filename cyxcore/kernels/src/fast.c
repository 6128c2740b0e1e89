#include "fast.h"

#include <pthread.h>

#ifdef CYX_COMPILED_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* arch_prctl's ARCH_REQ_XCOMP_PERM, and the state it is for */

static int found;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* AVX-512 is looked at by run.c: a call runs here only while its kernels are the active ones. */
static void look(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1) /* AVX512_BF16 */) return;
#ifdef CYX_EMULATE_AMX
    found = 1;
    return;
#endif
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1 && d >> 24 & 1) /* AMX-BF16, AMX-TILE */) return;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c >> 27 & 1) /* OSXSAVE */) return;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x60000) != 0x60000) return; /* the system saves tiles and their configuration */
    found = !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
}

int cyx_amx_present(void) {
    pthread_once(&once, look);
    return found;
}
#else
int cyx_amx_present(void) { return 0; }
#endif

static double up_to(int64_t count, int64_t whole) { return (double)((count + whole - 1) / whole * whole); }

/* Rough cycles, from measurements: the exact kernel makes 28 multiplications and additions in one, a tile instruction
 * 16 x 16 x 32 in 16 at best, and each element of a factor takes about a third of a cycle for each of its terms. Of the
 * right factor only a part counts: where the left one has few rows, it is often packed once for many products. Not one
 * of many more rows than columns, as behind an image that was made flat: a run reads it once. */
int cyx_amx_pays(int64_t m, int64_t n, int64_t k, int terms) {
    static const double products[CYX_MOST_TERMS + 1] = {0, 1, 3, 6};
    double tiles_m = up_to(m, 16), tiles_n = up_to(n, 16), tiles_k = up_to(k, 32), share = k > 8 * n ? 1 : 0.5;
    double exact = (double)m * (double)n * (double)k / 28 + 100;
    double split = 0.35 * terms * tiles_k * (tiles_m + share * tiles_n);
    double fast = products[terms] * tiles_m * tiles_n * tiles_k / 420 + split + 400;
    return fast < exact;
}

static int64_t matrices_of(const cyx_array *x) {
    int64_t count = 1;
    for (int d = 0; d < x->ndim - 2; d++) count *= x->shape[d];
    return count;
}

int cyx_is_tall(const cyx_call *call) {
    const cyx_array *a = &call->in[0], *b = &call->in[1];
    return matrices_of(b) == 1 && matrices_of(a) == matrices_of(&call->out) && !call->ints[0];
}

/* A part is decided on as the whole would be: how large it is may depend on the number of threads, and on the plan. */
static int amx_takes(const cyx_call *call) {
    const cyx_array *a = &call->in[0], *b = &call->in[1], *out = &call->out;
    int64_t m = out->shape[out->ndim - 2], n = out->shape[out->ndim - 1];
    int64_t k = a->shape[a->ndim - (call->ints[0] ? 2 : 1)], bands = call->bands > 1 ? call->bands : 1;
    if (!out->size || !k) return 0;
    if (call->blocks && call->adds)
        k = call->length;
    else if (call->blocks) /* of a right factor of all matrices: these are one tall one */
        m = call->length * (b->turns == 1 ? bands / call->blocks : 1);
    else if (cyx_is_tall(call))
        m *= matrices_of(out) * (b->band_bytes || b->lane_bytes ? 1 : bands);
    return cyx_amx_pays(m, n, k, call->terms);
}

size_t cyx_lane_tiles(const cyx_call *call) {
    const cyx_array *b = &call->in[1];
    if (!call->terms || call->op != CYX_OP_matmul || !call->blocks || call->ints[0] || b->block_bytes || b->lane_bytes) return 0;
    return cyx_fast_kernel(call) ? cyx_packed_bytes(b->shape[call->ints[1]], b->shape[!call->ints[1]], call->terms) : 0;
}

cyx_status cyx_pack_factors(cyx_factor *first) {
#ifdef CYX_COMPILED_AMX
    return cyx_amx_pack(first);
#else
    return first ? CYX_NO_KERNEL : CYX_OK;
#endif
}

size_t cyx_packed_bytes(int64_t k, int64_t n, int terms) {
    return sizeof(uint16_t) * (size_t)(up_to(k, 32) * up_to(n, 16) * terms);
}

cyx_kernel cyx_fast_kernel(const cyx_call *call) {
    if (call->dtype != CYX_F32 || !cyx_amx_present()) return NULL;
#ifdef CYX_COMPILED_AMX
    switch (call->op) {
    case CYX_OP_matmul: return amx_takes(call) ? cyx_amx_matmul : NULL;
    case CYX_OP_conv2d: return cyx_amx_conv2d;
    case CYX_OP_conv2d_grad_input: return cyx_amx_conv2d_grad_input;
    case CYX_OP_conv2d_grad_weight: return cyx_amx_conv2d_grad_weight;
    }
#endif
    return NULL;
}
