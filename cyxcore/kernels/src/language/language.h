/* What a language model needs beside the operations of cyx.h: products with quantised matrices, norms, rotated
 * positions and attention over a paged cache. An extension of its own, which borrows the threads of the first one.
 *
 * Everything follows cyx-exact/1. Beyond that, a row of a result depends on its own row of input alone, so a sequence
 * gets the same bits whatever else is in its batch and however its prompt is cut into pieces.
 */
#ifndef CYX_LANGUAGE_H
#define CYX_LANGUAGE_H

#include <stdint.h>

#include "../pool.h"

enum { ROWS = 16, BLOCK = 32, SUPER = 256, PAGE = 16 };

/* How the elements of a matrix are stored. A panel is 16 rows side by side; the unit of the K formats is a super-block of
 * 256 columns, of the others a block of 32, of plain numbers one column. */
typedef enum {
    MATRIX_F32, /* 16 numbers for each column */
    MATRIX_F16,
    MATRIX_BF16,
    MATRIX_Q8_0, /* bytes with an offset of 128; a half as scale */
    MATRIX_Q4_0, /* nibbles with an offset of 8; a half as scale */
    MATRIX_Q4_K, /* nibbles; halves d and dmin; for each 32 a byte times d as scale, a byte times dmin as minimum */
    MATRIX_Q5_K, /* bytes; otherwise as Q4_K */
    MATRIX_Q6_K, /* bytes with an offset of 32; a half d; for each 16 a signed byte times d as scale */
    MATRIX_KINDS
} matrix_kind;

/* values: [panel][block][4 columns][row][column] in bytes, or [panel][block][8 columns][row][column] where a byte's low
 * half belongs to the first 4 columns and its high half to the others. halves: [panel][unit][1 or 2][row].
 * subs: [panel][unit][group][1 or 2][row]. */
typedef struct {
    int32_t kind;
    int64_t rows, columns;
    const void *values;
    const uint16_t *halves;
    const uint8_t *subs;
} matrix;

/* Rows of activations as int8 with a scale for each block of 32. */
typedef struct {
    const int8_t *q;        /* [row][column] */
    const float *scale;     /* [row][block] */
    const float *times_sum; /* [row][block] -scale * sum of q */
    const int32_t *sums;    /* [row][block][2] sums of q over 16 columns */
} activations;

typedef struct {
    const matrix *weights;
    const float *x; /* [count][columns], for plain kinds */
    activations quantised;
    float *out; /* [count][rows] */
    int64_t count;
    int accumulate;
} product;

/* A stretch of one sequence: rows first .. first + count of q at positions start, start + 1 ... */
typedef struct {
    int64_t first, count, start;
    const int32_t *pages; /* the numbers of the sequence's pages */
} stretch;

typedef struct {
    const float *q; /* [row][heads][size], rotated */
    float *out;     /* [row][heads][size] */
    const float *k; /* [page][kv head][size][PAGE] */
    const float *v; /* [page][kv head][PAGE][padded size] */
    const stretch *stretches;
    int64_t stretch_count, heads, kv_heads, size, window; /* window: how far back is seen; 0: all the way */
    float scale;
} attention;

typedef struct {
    float *qkv;                           /* [row][(heads + 2 kv heads) * size] */
    const float *cosine, *sine;           /* [row][size of the rotated part / 2] */
    const float *q_norm, *k_norm;         /* [size], or NULL */
    const int64_t *slots;                 /* [row] page * PAGE + place in it */
    float *q, *k, *v;                     /* as in attention */
    int64_t count, heads, kv_heads, size; /* count: rows */
    int64_t rotated;                      /* how many of a head's numbers are turned */
    int halves;                           /* pairs (i, i + rotated / 2) instead of (2 i, 2 i + 1) */
    float eps;
} placing;

typedef struct {
    void (*multiply)(const product *p, int64_t first_panel, int64_t last_panel);
    void (*quantise)(const float *x, int64_t blocks, int8_t *q, float *scale, float *times_sum, int32_t *sums);
    void (*attend)(const attention *a, const stretch *s, int64_t kv_head, int64_t first, int64_t last, float *scores);
    void (*place)(const placing *p, int64_t first, int64_t last);
    void (*rms_norm)(float *out, const float *x, const float *weight, int64_t size, float eps);
    void (*swiglu)(float *out, const float *gate, const float *up, int64_t count);
} language_table;

extern const language_table language_portable;
#if defined(__x86_64__)
extern const language_table language_avx2, language_vnni;
#endif

/* language.c. The doors return 0, or -1 where there is no memory for scratch space. */
void language_setup(const cyx_services *services);
int language_multiply(const matrix *weights, const float *x, int64_t count, float *out, int accumulate);
int language_attend(const attention *a);
void language_place(const placing *p);
void language_rms_norm(float *out, const float *x, const float *weight, int64_t count, int64_t size, float eps);
void language_swiglu(float *out, const float *both, int64_t count, int64_t size);

#endif
