/* The fast numeric classes: products of float32 by AMX, the matrix unit for bfloat16. Each factor is split into one, two
 * or three bfloat16 terms (x = t0 + t1 + t2, each the rounding of what is left), products of terms are accumulated in
 * float32, and those too small to matter are left out: 1, 3 or 6 products. A call asks for it by its `terms`. What AMX
 * does not pay for, or is not there for, runs in the exact kernel, which errs less. */
#ifndef CYX_FAST_H
#define CYX_FAST_H

#include "cyx.h"

/* A compiler knows AMX when it has its header: gcc's, or clang's of another name. */
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>) || (defined(__clang__) && __has_include(<amxintrin.h>))
#define CYX_COMPILED_AMX 1
#endif
#endif

enum { CYX_MOST_TERMS = 3 };

/* Whether the processor has AMX and the system lets this process use it; asks the system at the first call. */
int cyx_amx_present(void);

/* The kernel for a call with terms, or NULL where the exact one is to be used, as for a product that would not pay. */
cyx_kernel cyx_fast_kernel(const cyx_call *call);

int cyx_is_tall(const cyx_call *call); /* whether a stack of products has one right factor: it is one of more rows */

/* Bytes of the right factor as tiles that a lane keeps, while its blocks of rows are of one matrix (cyx_notes); 0: none. */
size_t cyx_lane_tiles(const cyx_call *call);

/* Whether a product of this size is quicker by AMX than by the exact kernel. Depends on nothing else, so that it is made
 * alike at once and in a plan, which may have its right factor packed already. */
int cyx_amx_pays(int64_t m, int64_t n, int64_t k, int terms);

/* A matrix that several products, or several bands of one, have as their right factor: it is packed once in a run. */
typedef struct cyx_factor {
    const float *from;
    int64_t k, n, row; /* row: of from, which holds n rows of k when it is transposed, otherwise k of n */
    int transposed, terms, uses, closed; /* closed: something else is in its memory by now */
    void *tiles;
    struct cyx_factor *next; /* that is packed before the same call */
    struct cyx_factor *all;  /* the next one of the program */
} cyx_factor;

/* Finds such factors among the calls of a program, which have their groups and stretches, and lets the calls know of
 * them. *bytes: what their tiles take, 64 bytes more each. 0 without AMX or terms. NULL: none, or no memory. */
cyx_factor *cyx_share_factors(cyx_call *calls, int64_t count, size_t *bytes);
void cyx_free_factors(cyx_factor *all);

cyx_status cyx_pack_factors(cyx_factor *first); /* and all that are packed before the same call */
size_t cyx_packed_bytes(int64_t k, int64_t n, int terms);

cyx_status cyx_amx_matmul(const cyx_call *call);
cyx_status cyx_amx_pack(cyx_factor *first);
/* CYX_NO_KERNEL: not for this call, or it would not pay. */
cyx_status cyx_amx_conv2d(const cyx_call *call);
cyx_status cyx_amx_conv2d_grad_input(const cyx_call *call);
cyx_status cyx_amx_conv2d_grad_weight(const cyx_call *call);

#endif
