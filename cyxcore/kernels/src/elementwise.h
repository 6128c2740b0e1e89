/* How an element-wise kernel is made from one expression: a body that walks rows, an inner loop per stride
 * pattern.
 *
 * CYX_UNARY(name, IN, OUT, expression of x), CYX_BINARY(name, IN, OUT, expression of x, y) and CYX_TERNARY
 * define the kernel `name`. An output may be the very memory of an input of the same shape, so no pointer is
 * `restrict`; the loops tell the compiler instead that iterations do not depend on each other. */
#ifndef CYX_ELEMENTWISE_H
#define CYX_ELEMENTWISE_H

#include "cyx.h"
#include "pool.h"
#include "shape.h"

#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

enum { CYX_LOOP_CONSTANTS = 5 };

typedef struct {
    const cyx_call *call;
    cyx_walk walk;
    double constants[CYX_LOOP_CONSTANTS]; /* what the kernel made of its scalars, where it has any; else the call's first two */
} cyx_rows;

/* An operand of a link: as many numbers, one for all, what was made, one for each row, one row for all, or what an earlier
 * link of the chain kept. */
typedef struct {
    enum { CYX_LINK_ARRAY, CYX_LINK_NUMBER, CYX_LINK_ITSELF, CYX_LINK_COLUMN, CYX_LINK_ROW, CYX_LINK_KEPT } form;
    short slot;         /* of what was kept */
    short ahead;        /* whether an array is fetched before it is read: the first of a chain */
    const float *array; /* of the others but what was made */
} cyx_operand;

enum { CYX_LINK_SLOTS = 6 };

/* One of a chain of float32 operations: made = first + other, and so on. FROM: other - first, OVER: other / first. NEG and what
 * comes behind it look at no other operand. */
typedef struct {
    enum {
        CYX_LINK_ADD, CYX_LINK_SUB, CYX_LINK_FROM, CYX_LINK_MUL, CYX_LINK_DIV, CYX_LINK_OVER,
        CYX_LINK_NEG, CYX_LINK_EXP, CYX_LINK_TANH, CYX_LINK_SIGMOID, CYX_LINK_ERF,
        CYX_LINK_GELU
    } kind;
    cyx_operand first; /* CYX_LINK_ITSELF: what the link before made; an array; or kept */
    cyx_operand other; /* CYX_LINK_ITSELF: the first operand */
    int keep;          /* the slot in which what is made waits for later links, or -1 */
    float *out;        /* where what is made goes, too; NULL: only the chain reads it */
} cyx_link;

/* Where a kernel that is asked for its loop, instead of being run, leaves it: see fused.c. */
typedef struct {
    cyx_body body; /* NULL: the kernel is not one of these */
    cyx_rows rows;
    /* Of a sum: its loop leaves the sum of each run of rows.walk.shape[0] terms, of which this makes the outputs. */
    void (*finish)(const cyx_call *call, const void *sums);
    cyx_body squares; /* of a sum: the same of the squares of what it reads */
    /* Of a product whose second factor may be packed before: how, and into how many bytes. */
    void (*pack)(const cyx_call *call, void *packed);
    int64_t packed_bytes;
    int masks; /* of a gradient: whether what a ReLU's mask leaves of it can be made at once (cyx_masks_gradient) */
    /* Of what can be one of a chain: makes all of it, for n elements. run: the length of rows, where operands go by rows,
     * else 0; column: where in its row the first element is; row: of which number in columns; period: after how many rows
     * these come again. */
    void (*links)(const cyx_link *links, int count, int64_t n, int64_t run, int64_t column, int64_t row, int64_t period);
} cyx_loop;
extern __thread cyx_loop *cyx_asked;
void cyx_ask(const cyx_call *call, const cyx_table table, cyx_loop *loop);

enum { CYX_LEAST_WORK = 65000 }; /* operations that outweigh waking a thread */

static inline cyx_status cyx_run_rows(const cyx_call *call, cyx_body body) {
    cyx_rows own, *rows = __builtin_expect(cyx_asked != NULL, 0) ? &cyx_asked->rows : &own;
    int64_t size = call->out.size;
    int alike = 1;
    for (int k = 0; k < call->in_count; k++) alike &= call->in[k].size == size;
    rows->call = call;
    rows->constants[0] = call->floats[0], rows->constants[1] = call->floats[1];
    if (alike) { /* nothing is broadcast: one long row */
        rows->walk.ndim = 1;
        rows->walk.shape[0] = size;
        for (int k = 0; k < call->in_count; k++) rows->walk.stride[k][0] = 1;
    } else {
        rows->walk = cyx_broadcast_walk(&call->out, call->in, call->in_count);
    }
    if (rows != &own) {
        cyx_asked->body = body;
        return CYX_OK;
    }
    if (call->work < CYX_LEAST_WORK && size)
        body(rows, 0, size);
    else
        cyx_parallel(size, cyx_grain(size, call->work / (double)(size ? size : 1), CYX_LEAST_WORK), body, rows);
    return CYX_OK;
}

/* Runs the given block, with `at`, `first` and `n`, for each piece of an inner row within [begin, end). */
#define CYX_FOR_ROWS(COUNT, ...)                                                                             \
    const cyx_rows *rows = context;                                                                          \
    const cyx_walk *walk = &rows->walk;                                                                      \
    int64_t coordinate[CYX_MAX_NDIM], offset[CYX_WALK_INPUTS];                                               \
    int64_t inner = walk->shape[walk->ndim - 1];                                                             \
    cyx_walk_seek(walk, COUNT, begin, coordinate, offset);                                                   \
    for (int64_t at = begin; at < end;) {                                                                    \
        int64_t first = coordinate[walk->ndim - 1];                                                          \
        int64_t n = inner - first < end - at ? inner - first : end - at;                                     \
        __VA_ARGS__;                                                                                         \
        at += n;                                                                                             \
        if (at < end) cyx_walk_next_row(walk, COUNT, coordinate, offset);                                    \
    }

#define CYX_UNARY(NAME, IN, OUT, EXPRESSION)                                                                 \
    static inline __attribute__((always_inline)) void NAME##_loop(OUT *o, const IN *a, int64_t sa,           \
                                                                  int64_t n) {                               \
        INDEPENDENT for (int64_t i = 0; i < n; i++) {                                                        \
            IN x = a[i * sa];                                                                                \
            o[i] = (OUT)(EXPRESSION);                                                                        \
        }                                                                                                    \
    }                                                                                                        \
    static void NAME##_body(void *context, int64_t begin, int64_t end) {                                     \
        const cyx_rows *rows = context;                                                                      \
        NAME##_loop((OUT *)rows->call->out.data + begin, (const IN *)rows->call->in[0].data + begin, 1,      \
                    end - begin);                                                                            \
    }                                                                                                        \
    static cyx_status NAME(const cyx_call *call) { return cyx_run_rows(call, NAME##_body); }

#define CYX_BINARY(NAME, IN, OUT, EXPRESSION) CYX_BINARY_AS(, , NAME, IN, OUT, EXPRESSION)

/* The same with an attribute and a pragma of its loops. */
#define CYX_BINARY_AS(ATTRIBUTE, PRAGMA, NAME, IN, OUT, EXPRESSION)                                          \
    static inline __attribute__((always_inline)) void NAME##_loop(OUT *o, const IN *a, int64_t sa,           \
                                                                  const IN *b, int64_t sb, int64_t n) {      \
        INDEPENDENT PRAGMA for (int64_t i = 0; i < n; i++) {                                                 \
            IN x = a[i * sa], y = b[i * sb];                                                                 \
            o[i] = (OUT)(EXPRESSION);                                                                        \
        }                                                                                                    \
    }                                                                                                        \
    ATTRIBUTE static void NAME##_row(OUT *o, const IN *a, int64_t sa, const IN *b, int64_t sb, int64_t n) {  \
        /* Both broadcast means one element. */                                                              \
        if (sa && sb)                                                                                        \
            NAME##_loop(o, a, 1, b, 1, n);                                                                   \
        else if (sa)                                                                                         \
            NAME##_loop(o, a, 1, b, 0, n);                                                                   \
        else                                                                                                 \
            NAME##_loop(o, a, 0, b, 1, n);                                                                   \
    }                                                                                                        \
    CYX_BINARY_ROWS(NAME, IN, OUT)

/* The kernel of what NAME_row makes of two rows of n elements, which follow each other (stride 1) or are one for all (0). */
#define CYX_BINARY_ROWS(NAME, IN, OUT)                                                                       \
    static void NAME##_body(void *context, int64_t begin, int64_t end) {                                     \
        const cyx_rows *all = context;                                                                       \
        if (all->walk.ndim == 1) { /* no row to look for */                                                  \
            int64_t sa = all->walk.stride[0][0], sb = all->walk.stride[1][0];                                \
            NAME##_row((OUT *)all->call->out.data + begin, (const IN *)all->call->in[0].data + begin * sa,   \
                       sa, (const IN *)all->call->in[1].data + begin * sb, sb, end - begin);                 \
            return;                                                                                          \
        }                                                                                                    \
        CYX_FOR_ROWS(2, {                                                                                    \
            int64_t sa = walk->stride[0][walk->ndim - 1], sb = walk->stride[1][walk->ndim - 1];              \
            NAME##_row((OUT *)rows->call->out.data + at,                                                     \
                       (const IN *)rows->call->in[0].data + offset[0] + first * sa, sa,                      \
                       (const IN *)rows->call->in[1].data + offset[1] + first * sb, sb, n);                  \
        })                                                                                                   \
    }                                                                                                        \
    static cyx_status NAME(const cyx_call *call) { return cyx_run_rows(call, NAME##_body); }

/* where: the condition is one byte per element, the choices are T. A stride is 1, or 0 where that input is broadcast. */
#define CYX_WHERE(NAME, T)                                                                                   \
    static inline __attribute__((always_inline)) void NAME##_loop(T *o, const uint8_t *c, int64_t sc,        \
                                                                  const T *a, int64_t sa, const T *b,        \
                                                                  int64_t sb, int64_t n) {                   \
        INDEPENDENT for (int64_t i = 0; i < n; i++) {                                                        \
            T x = a[i * sa], y = b[i * sb];                                                                  \
            o[i] = c[i * sc] ? x : y;                                                                        \
        }                                                                                                    \
    }                                                                                                        \
    static void NAME##_row(T *o, const uint8_t *c, int64_t sc, const T *a, int64_t sa, const T *b,           \
                           int64_t sb, int64_t n) {                                                          \
        switch ((sc ? 4 : 0) | (sa ? 2 : 0) | (sb ? 1 : 0)) {                                                \
        case 7: NAME##_loop(o, c, 1, a, 1, b, 1, n); break;                                                  \
        case 6: NAME##_loop(o, c, 1, a, 1, b, 0, n); break;                                                  \
        case 5: NAME##_loop(o, c, 1, a, 0, b, 1, n); break;                                                  \
        case 4: NAME##_loop(o, c, 1, a, 0, b, 0, n); break;                                                  \
        case 3: NAME##_loop(o, c, 0, a, 1, b, 1, n); break;                                                  \
        case 2: NAME##_loop(o, c, 0, a, 1, b, 0, n); break;                                                  \
        case 1: NAME##_loop(o, c, 0, a, 0, b, 1, n); break;                                                  \
        default: NAME##_loop(o, c, 0, a, 0, b, 0, n); break;                                                 \
        }                                                                                                    \
    }                                                                                                        \
    static void NAME##_body(void *context, int64_t begin, int64_t end) {                                     \
        CYX_FOR_ROWS(3, {                                                                                    \
            int64_t sc = walk->stride[0][walk->ndim - 1], sa = walk->stride[1][walk->ndim - 1],              \
                    sb = walk->stride[2][walk->ndim - 1];                                                    \
            NAME##_row((T *)rows->call->out.data + at,                                                       \
                       (const uint8_t *)rows->call->in[0].data + offset[0] + first * sc, sc,                 \
                       (const T *)rows->call->in[1].data + offset[1] + first * sa, sa,                       \
                       (const T *)rows->call->in[2].data + offset[2] + first * sb, sb, n);                   \
        })                                                                                                   \
    }                                                                                                        \
    static cyx_status NAME(const cyx_call *call) { return cyx_run_rows(call, NAME##_body); }

#endif
