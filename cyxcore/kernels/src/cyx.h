/* The call record every kernel takes, and the doors of the C side.
 *
 * A call is checked once by cyx_prepare and may then be run any number of times. A kernel is a function of
 * one call; it finds its instruction set's version through the table, so the same record runs on any of them.
 */
#ifndef CYX_H
#define CYX_H

#include <stddef.h>
#include <stdint.h>

enum { CYX_MAX_NDIM = 8, CYX_MAX_INTS = 40, CYX_MAX_FLOATS = 6, CYX_INLINE_INPUTS = 5 };

typedef enum { CYX_F32, CYX_F64, CYX_I64, CYX_I32, CYX_BOOL, CYX_U8, CYX_U64, CYX_DTYPE_COUNT } cyx_dtype;

/* One list of operations: X(name, smallest number of inputs, largest). The Cython side reads names from it
 * too. */
#define CYX_OPS(X)                                                                                           \
    X(neg, 1, 1)                                                                                             \
    X(abs, 1, 1) X(exp, 1, 1) X(log, 1, 1) X(sqrt, 1, 1) X(tanh, 1, 1) X(sigmoid, 1, 1) X(relu, 1, 1)        \
        X(erf, 1, 1) X(erfc, 1, 1) X(ndtr, 1, 1) X(gelu, 1, 1) X(square, 1, 1) X(sign, 1, 1) X(floor, 1, 1) X(logical_not, 1, 1) X(sin, 1, 1)          \
            X(softplus, 1, 1) X(log1p, 1, 1) X(ceil, 1, 1) X(trunc, 1, 1) X(round, 1, 1) X(lgamma, 1, 1)       \
            X(digamma, 1, 1) X(trigamma, 1, 1) X(erfinv, 1, 1) X(hardtanh, 1, 1) X(hardsigmoid, 1, 1) X(hardswish, 1, 1)         \
            X(softshrink, 1, 1) X(leaky_relu, 1, 1) X(huber, 1, 1) X(clip, 1, 1) X(cos, 1, 1)                \
            X(add, 2, 2) X(sub, 2, 2) X(mul, 2, 2)                                                           \
            X(div, 2, 2) X(pow, 2, 2) X(atan2, 2, 2) X(hypot, 2, 2) X(copysign, 2, 2)                        \
            X(remainder, 2, 2) X(logaddexp, 2, 2) X(maximum, 2, 2)                                           \
                X(minimum, 2, 2) X(equal, 2, 2) X(not_equal, 2, 2) X(less, 2, 2) X(less_equal, 2, 2)         \
                    X(greater, 2, 2) X(greater_equal, 2, 2) X(logical_and, 2, 2) X(logical_or, 2, 2)         \
                        X(where, 3, 3) X(cast, 1, 1) X(sum, 1, 1) X(mean, 1, 1) X(max, 1, 1) X(min, 1, 1)    \
                            X(prod, 1, 1) X(all, 1, 1) X(any, 1, 1)                                          \
                            X(argmax, 1, 1) X(cumulative_sum, 1, 1) X(cumulative_prod, 1, 1)                 \
                            X(cumulative_argmax, 1, 1) X(cumulative_argmin, 1, 1) X(recurrence, 2, 2)        \
                            X(matmul, 2, 2) X(reshape, 1, 1) X(transpose, 1, 1)                              \
                                X(broadcast_to, 1, 1) X(slice, 1, 1) X(pad, 1, 1) X(concat, 1, 4096)         \
                                    X(take, 2, 2) X(take_grad, 2, 2) X(take_along, 2, 2) X(take_along_grad, 2, 2) X(scatter, 3, 3)  \
                                    X(one_hot, 1, 1) X(conv2d, 2, 2) X(conv2d_grad_input, 2, 2) X(conv2d_grad_weight, 2, 2) \
                                        X(max_pool2d, 1, 1) X(max_pool2d_grad, 2, 2) X(avg_pool2d, 1, 1)     \
                                            X(avg_pool2d_grad, 1, 1) X(softmax, 1, 1) X(log_softmax, 1, 1)   \
                                                X(softmax_grad, 2, 2) X(log_softmax_grad, 2, 2) X(softplus_grad, 2, 2) X(gelu_grad, 2, 2) \
                                                X(hardtanh_grad, 2, 2) X(hardsigmoid_grad, 2, 2) X(hardswish_grad, 2, 2) \
                                                X(softshrink_grad, 2, 2) X(leaky_relu_grad, 2, 2) X(huber_grad, 2, 2) X(clip_grad, 2, 2) \
                                                X(cross_entropy, 2, 2) X(cross_entropy_grad, 3, 3)           \
                                                X(ctc_loss, 4, 4) X(ctc_loss_grad, 5, 5)                     \
                                                    X(uniform, 1, 1) X(sgd_update, 3, 3) X(momentum, 3, 3)   \
                                                        X(nesterov_update, 4, 4) X(axpy_update, 3, 3)        \
                                                            X(adam_m, 3, 3) X(adam_v, 3, 3)                  \
                                                                X(adam_update, 5, 5)

#define CYX_ENUM(name, low, high) CYX_OP_##name,
typedef enum { CYX_OPS(CYX_ENUM) CYX_OP_COUNT } cyx_op;
#undef CYX_ENUM

typedef struct {
    void *data;
    int64_t size; /* elements */
    int64_t shape[CYX_MAX_NDIM];
    int32_t ndim;
    int32_t dtype;
    int64_t band_bytes, lane_bytes; /* in a stretch: how far further on the next band's and the next lane's lie */
    /* Where bands are blocks of rows of a stack of matrices: how far further on the next block's lies; band_bytes is then to the
     * next matrix, of which there are `turns`, each for `repeats` matrices of the stack in a row. */
    int64_t block_bytes;
    int32_t turns, repeats;
} cyx_array; /* always C-contiguous */

typedef struct cyx_group cyx_group; /* fused.c */
typedef struct cyx_lanes cyx_lanes; /* stretch.c */
typedef struct cyx_ahead cyx_ahead; /* ahead.c */

/* Of a call in a stretch whose results of all bands are added up in its one output, band after band: stretch.c. */
typedef struct {
    _Atomic int64_t turn;           /* the band that comes next */
    const _Atomic int64_t *stopped; /* no band from this one on is finished any more */
    void *partial;                  /* of a sum: what the bands before came to, as it meets what comes behind */
    const void *first;              /* of a sum over matrices: the output of the first band */
} cyx_adding;

/* What a lane keeps of a call on blocks of rows, for its other calls and its next bands (masked.inl). */
typedef struct {
    int64_t used; /* behind so many columns what the call has made of this band is +0 */
    const void *of; /* the right factor, whose first columns lie in the panels; by AMX all of it, as tiles */
    int64_t columns;
    int bounded; /* whether no number of it is large; -1: not known yet */
    void *panels;
} cyx_notes;

typedef struct cyx_call {
    cyx_array *in; /* own_in, or memory of its own where there are more inputs */
    int32_t op;
    int32_t dtype; /* the type the kernel computes in; selects the column of the table */
    int32_t in_count;
    int32_t int_count;
    int64_t ints[CYX_MAX_INTS]; /* attributes in the order of the op's schema; a list is its length, then its
                                   items */
    double floats[CYX_MAX_FLOATS];
    int32_t group;  /* this many calls from here on are made together; 0 or 1: this one alone */
    int32_t elided; /* nobody outside the group reads the output: it is never stored */
    int32_t stretch, lanes; /* of the first call of a stretch: how many calls, on how many lanes */
    int32_t bands;          /* of every call of a stretch: how often it is made */
    int32_t blocks;         /* of every call of a stretch: so many bands in a row are the blocks of one matrix; 0: bands are of axis 0 */
    int32_t adds;           /* in a stretch: what so many bands in a row come to is added up in one output; of a sum over matrices
                               those of several do, block by block */
    int32_t goes_on;        /* blocks: the last, shorter ones of matrices; what adds up adds to what is in that output already */
    int64_t length;         /* blocks: the rows of each matrix */
    int32_t terms; /* 0: exact; 1 to 3: bfloat16 terms into which a product may split its float32 factors (fast.h) */
    const void *panels; /* in a stretch: the right factor of an exact product as its kernel reads it; else NULL */
    const void *const *lines; /* in a group that begins with a concat: where the rows of the first input lie; else NULL */
    double work; /* rough number of elementary operations: decides about threads and the interpreter lock */
    struct cyx_factor *packed; /* the right factor of a product, as tiles; NULL: the product makes its own (fast.h) */
    cyx_group *kept; /* of the first call of a group: what need not be found again in every run; or NULL */
    cyx_lanes *lane_records; /* of the first call of a stretch: what need not be copied in every run; or NULL */
    cyx_adding *adding;        /* of a lane's call that adds up; else NULL */
    cyx_notes *notes;          /* of a lane's call on blocks of rows; else NULL */
    const cyx_notes *zeros;    /* of who has made its left factor, or the weights of softmax; NULL: they must be looked for */
    const cyx_ahead *ahead;    /* of a product: what it fetches for the calls behind it; or NULL */
    struct cyx_factor *pack;   /* those to be made before this call, or before the stretch that begins with it */
    cyx_array out;
    cyx_array own_in[CYX_INLINE_INPUTS];
} cyx_call;

typedef enum {
    CYX_OK,
    CYX_BAD_SHAPE,
    CYX_BAD_DTYPE,
    CYX_BAD_ATTRIBUTE,
    CYX_NO_KERNEL,
    CYX_BAD_DATA,
    CYX_NO_MEMORY
} cyx_status;

typedef cyx_status (*cyx_kernel)(const cyx_call *call);
typedef cyx_kernel cyx_table[CYX_OP_COUNT][CYX_DTYPE_COUNT];

typedef struct {
    char text[400];
} cyx_message;

extern const char *const cyx_op_names[CYX_OP_COUNT];
extern const int cyx_op_inputs[CYX_OP_COUNT][2]; /* least and most */
extern const char *const cyx_dtype_names[CYX_DTYPE_COUNT];
extern const int cyx_dtype_bytes[CYX_DTYPE_COUNT];

/* Numbers made of the words of Philox (random.inl), beside the operations: what a program draws at once. */
typedef enum {
    CYX_DRAW_WORDS,    /* 32 random bits each */
    CYX_DRAW_TWELVES,  /* shift + scale x, x a sum of twelve uniforms minus six */
    CYX_DRAW_NORMALS,  /* the same of x by normal quantiles */
    CYX_DRAW_INTEGERS, /* low + a 64-bit word % span; span 0: 2**64 */
    CYX_DRAW_COUNT
} cyx_draw_kind;

typedef struct {
    int kind, dtype; /* dtype: CYX_F32 or CYX_F64 of the real ones; words are uint32, integers uint64 */
    uint64_t seed, step;
    uint32_t stream;
    void *out;
    int64_t count;
    double scale, shift;
    uint64_t span, low;
    int over; /* set: a word was among the last ones, which would favour the first numbers */
} cyx_draw;

/* A cast between float32 and a type of half its size (halves.inl), beside the operations: those types have no other kernels. */
typedef struct {
    enum { CYX_TO_F16, CYX_FROM_F16, CYX_TO_BF16, CYX_FROM_BF16 } kind;
    const void *x;
    void *out;
    int64_t count;
} cyx_halves;

/* Rows of n numbers, each less its mean and by its standard deviation (norms.inl), beside the operations. */
typedef struct {
    int dtype;                 /* CYX_F32 or CYX_F64, of all arrays */
    const void *x;             /* rows x n */
    void *mean, *var;          /* of each row: made there, read on the way back. mean NULL: none is taken */
    int given;                 /* set: they are given, for each channel, and var is what a row less its mean is multiplied by */
    const void *weight, *bias; /* or NULL */
    void *out;                 /* the result, or the gradient of x (NULL: nobody wants it) */
    int64_t rows, n;
    int64_t inner, channels; /* runs of `inner` numbers have one weight each, `channels` in turn; inner 0: each column has one */
    double eps;
    const void *g;              /* the gradient of the result; NULL on the way there */
    const void *before;         /* what there is of the gradient of x, or NULL */
    int before_first;           /* whether it is added before what goes through the mean */
    void *of_weight, *of_bias;  /* their gradients, or NULL */
    void *partial;              /* the kernel's own */
    int64_t unit;
    _Atomic int no_memory;
} cyx_norm;

/* A recurrent layer over a sequence (recurrence.inl), beside the operations. Arrays are (N, T, ...), those of steps (T, N, ...) in
 * the order in which the steps are made. */
typedef enum { CYX_RNN_TANH, CYX_RNN_RELU, CYX_LSTM, CYX_GRU, CYX_RECURRENCE_COUNT } cyx_recurrence_kind;

typedef struct {
    int kind, dtype, reverse;
    int kept;                  /* whether all steps of `hidden` and `cells` are there, for the way back; else two are used in turn */
    int64_t rows, steps, size; /* N, T, H */
    int64_t state;             /* P: numbers of a hidden state; H, but where it is projected */
    const void *projection;    /* of an LSTM that is: (P, H); else NULL */
    void *whole;               /* (T, N, H): hidden states before that, where `kept` is set */
    void *of_states;           /* on the way back (T, N, P): the gradients behind it */
    const int64_t *lengths;    /* (N,): from there on a row changes nothing and gives zeros; or NULL */
    const void *weight, *bias, *input_bias; /* (G H, P), and (G H,) or NULL: what is added to the state's part, and to the inputs' */
    void *gates;               /* (N, T, G H): there of the inputs' part what the gates come to, which the way back reads */
    void *hidden;              /* (T + 1, N, P), the first of them the state to begin with */
    void *cells;               /* of an LSTM as many (N, H); of a GRU (T, N, H), the state's part of the last gate; else NULL */
    void *out;                 /* (N, T, P) */
    const void *g_out, *g_hidden, *g_cell; /* the gradients of the results, or NULL */
    void *of_x;                /* those of the gates' part of the inputs: (N, T, G H); NULL on the way there */
    void *of_h;                /* of a GRU those of the state's part, of steps (T, N, G H); of others they are the same */
    const void *before_weight, *before_projection, *before_bias, *before_hidden, *before_cell; /* what there is of the following, or NULL */
    void *of_weight, *of_projection, *of_bias, *of_hidden, *of_cell; /* of the first states; or NULL */
} cyx_recurrence;

/* orders.c: the places of random words from the least to the greatest, equal ones in their order. wide: of words of 64 bits
 * (two each, as of integers) instead of 32. */
cyx_status cyx_order_words(uint64_t seed, uint64_t step, uint32_t stream, int wide, int64_t *out, int64_t count);

/* The places that sort each of `rows` rows of n float32, float64, int64 or int32, equals in their order; NaN above all. */
cyx_status cyx_order_rows(const void *x, int dtype, int64_t rows, int64_t n, int descending, int64_t *out);

/* The places of the k best of each of `rows` rows of n of those types, 0 < k <= n, at most CYX_MOST_BEST: orders.c. */
enum { CYX_MOST_BEST = 128 };
void cyx_best_of_rows(const void *x, int dtype, int64_t rows, int64_t n, int64_t k, int largest, int64_t *out);

/* along.c */
cyx_status cyx_take_along_grad(const cyx_call *call);
cyx_status cyx_cumulative_place(const cyx_call *call);
cyx_status cyx_linear_recurrence(const cyx_call *call);
cyx_status cyx_scatter(const cyx_call *call);

/* run.c */
void cyx_draw_numbers(cyx_draw *draw);
void cyx_cast_halves(const cyx_halves *cast);
cyx_status cyx_normalise(cyx_norm *norm);
cyx_status cyx_recur(const cyx_recurrence *one);
int cyx_set_isa(const char *name); /* 0, or -1 where this machine lacks it */
const char *cyx_isa(void);
int cyx_amx(void); /* whether calls with terms are made by AMX: it is there, and so are the kernels beside it */
void cyx_setup(void);
int cyx_has_kernel(int op, int dtype);
cyx_status cyx_run(const cyx_call *calls, int64_t count, int64_t *failed, cyx_message *message);
int cyx_call_is_fusible(const cyx_call *call);
cyx_group *cyx_keep_group(const cyx_call *calls); /* what `kept` of the first may point to: the caller's, or NULL */

/* stretch.c: calls [0, calls->stretch) on band 0, then band 1 ...; each lane takes bands next to each other and has memory
 * of its own for what only its bands read. run makes a list of calls in order. */
typedef cyx_status (*cyx_runner)(const cyx_call *calls, int64_t count, int64_t *failed);
cyx_status cyx_run_stretch(const cyx_call *calls, cyx_runner run, const cyx_table table, int64_t *failed);
extern __thread int64_t cyx_band; /* the band this thread is at; 0 outside of stretches */

/* fused.c: calls [0, calls->group) tile by tile, so that what one writes the next finds in the cache. The bits are
 * those of one call after the other. */
cyx_status cyx_run_group(const cyx_call *calls, const cyx_table table);
cyx_group *cyx_look_at_group(const cyx_call *calls, const cyx_table table);
const void *cyx_group_records(const cyx_group *kept, size_t *bytes); /* what every run reads of it */
int cyx_fusible(const cyx_call *call, const cyx_table table);
int64_t cyx_sums_runs(const cyx_call *call); /* the terms that lie in a row of a sum that a group can make; 0: it cannot */
/* Whether a call reads the rows of a concat one by one, so that nobody has to make that. */
int cyx_reads_rows(const cyx_call *joined, const cyx_call *call);
int cyx_adds_to_product(const cyx_call *calls); /* whether two calls can be made as one product */
int cyx_adds_sum(const cyx_call *calls);        /* the same of a sum over rows that is added in place */
int cyx_adds_before_relu(const cyx_call *calls); /* the same of three, the last one ReLU of the sum */
int cyx_masks_product(const cyx_call *calls);   /* the same of a stack of products and what a mask leaves of it */
int cyx_masks_softmax(const cyx_call *calls);   /* and of three: with softmax behind these, */
int cyx_masks_softmax_grad(const cyx_call *calls); /* or with its gradient between them */
int cyx_is_adam(const cyx_call *calls, int64_t count); /* whether a group is that of three calls for each parameter */
/* Whether four calls are a gradient that comes to a ReLU, and what its mask leaves of that, and a kernel makes them at once. */
int cyx_masks_gradient(const cyx_call *calls, const cyx_table table);
int cyx_calls_mask_gradient(const cyx_call *calls); /* by the kernels that are chosen */
enum { CYX_MAX_GROUP = 32, CYX_RELU_GROUP = 3, CYX_MASKED_GROUP = 4 };

/* Whether the group of a product, if any, is this and what is made of it; else it goes on with other products. */
static inline int cyx_is_one_product(const cyx_call *product) { return product->group <= 2 || product[2].op != CYX_OP_matmul; }

/* check.c: whether a call is sound; fills dtype and work. Nothing that passes may touch memory outside its
 * arrays. */
cyx_status cyx_prepare(cyx_call *call, cyx_message *message);
int cyx_compute_dtype(int op, const int *dtypes, int count); /* -1 where the op does not take these types */

/* A kernel's own fault found while running (an index out of range) leaves its text here, per thread. */
cyx_status cyx_fail(cyx_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern __thread cyx_message cyx_last_failure;

#endif
