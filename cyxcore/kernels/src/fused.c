/* Element-wise calls made together. Every kernel of elementwise.h is a loop over a range of its output, so a group of
 * them can be run over one tile after another: each tile is read, changed by every call and written while it is in
 * the cache, and a result that only the group itself reads never leaves it. Each element goes through the same
 * operations in the same order as in separate calls. A sum over what lies in a row can be one of the group: tiles are
 * then whole runs, each is summed up while it is there, and the sums of runs meet at the end. */
#include <stdlib.h>
#include <string.h>

#include "elementwise.h"
#include "plan.h"
#include "reduce_plan.h"

int cyx_overlap(const cyx_array *a, const cyx_array *b) {
    const char *first = a->data, *second = b->data;
    return first < second + b->size * cyx_dtype_bytes[b->dtype] && second < first + a->size * cyx_dtype_bytes[a->dtype];
}

/* A product, and the sum of it and something that is as large or one row of it, are a group too: gemm.inl. */
int cyx_adds_to_product(const cyx_call *calls) {
    const cyx_call *product = calls, *sum = calls + 1;
    if (product->op != CYX_OP_matmul || sum->op != CYX_OP_add || product->dtype != sum->dtype) return 0;
    if ((product->dtype != CYX_F32 && product->dtype != CYX_F64) || product->terms) return 0; /* those are not exact */
    int second = sum->in[0].data != product->out.data;
    const cyx_array *made = &sum->in[second], *other = &sum->in[!second], *out = &sum->out;
    if (made->data != product->out.data || !out->size || made->size != product->out.size || out->size != made->size)
        return 0;
    int64_t n = product->out.shape[product->out.ndim - 1];
    int one_row = other->ndim && other->size == n && other->shape[other->ndim - 1] == n &&
                  out->shape[out->ndim - 1] == n;
    if (!product->in[0].size || (other->size != out->size && !one_row)) return 0;
    int64_t k = product->in[0].shape[product->in[0].ndim - (product->ints[0] ? 2 : 1)];
    int in_place = out->data == other->data && out->size == other->size && k <= CYX_BLOCK_K;
    /* It is written while the operands are read. */
    return !cyx_overlap(out, &product->in[0]) && !cyx_overlap(out, &product->in[1]) && (in_place || !cyx_overlap(out, other)) &&
           !cyx_overlap(other, &product->out);
}

int cyx_adds_before_relu(const cyx_call *calls) {
    const cyx_call *product = calls, *sum = calls + 1, *relu = calls + 2;
    const cyx_array *out = &relu->out, *other = &sum->in[sum->in[0].data == product->out.data];
    if (sum->op != CYX_OP_add || relu->op != CYX_OP_relu || relu->dtype != sum->dtype || !cyx_adds_to_product(calls)) return 0;
    if (relu->in[0].data != sum->out.data || relu->in[0].size != sum->out.size || out->size != sum->out.size) return 0;
    return !cyx_overlap(out, &product->in[0]) && !cyx_overlap(out, &product->in[1]) && !cyx_overlap(out, other);
}

/* Whether where(mask, made, a number) behind a stack of products, or what becomes of them, can be made with them: masked.inl. */
static int can_mask(const cyx_call *product, const cyx_array *made, const cyx_call *masked) {
    const cyx_array *mask = &masked->in[0], *out = &masked->out, *stack = &product->out;
    if (product->op != CYX_OP_matmul || masked->op != CYX_OP_where || product->dtype != masked->dtype) return 0;
    if ((product->dtype != CYX_F32 && product->dtype != CYX_F64) || product->terms || product->ints[0]) return 0;
    if (masked->in[1].data != made->data || masked->in[1].size != made->size || out->size != stack->size) return 0;
    int in_blocks = product->blocks > 0; /* of rows: each call makes one */
    if (stack->ndim < 3 - in_blocks || out->ndim != stack->ndim || product->in[0].ndim < 2 || product->in[1].ndim < 2) return 0;
    int64_t m = stack->shape[stack->ndim - 2], n = stack->shape[stack->ndim - 1];
    if (m < CYX_LEAST_MASKED || n < CYX_LEAST_MASKED || m > CYX_MOST_MASKED) return 0;
    if (!in_blocks && (n > CYX_MOST_MASKED || stack->size < 4 * m * n)) return 0; /* threads take whole ones */
    if (!product->in[0].shape[product->in[0].ndim - 1]) return 0;
    if (mask->dtype != CYX_BOOL || mask->ndim < 2 || mask->size != m * n || masked->in[2].size != 1) return 0;
    if (mask->shape[mask->ndim - 2] != m || masked->in[2].data == made->data) return 0;
    for (int i = 0; i < 3; i++)
        if (i != 1 && cyx_overlap(out, &masked->in[i])) return 0;
    return !cyx_overlap(out, &product->in[0]) && !cyx_overlap(out, &product->in[1]);
}

int cyx_masks_product(const cyx_call *calls) { return can_mask(calls, &calls->out, calls + 1); }

/* Rows are finished before they are written over. */
static int row_by_row(const cyx_array *a, const cyx_array *b) { return a->data == b->data || !cyx_overlap(a, b); }

int cyx_masks_softmax(const cyx_call *calls) {
    const cyx_call *masked = calls + 1, *softmax = calls + 2;
    const cyx_array *out = &softmax->out;
    if (softmax->op != CYX_OP_softmax || masked->op != CYX_OP_where || softmax->dtype != calls->dtype) return 0;
    if (softmax->in[0].data != masked->out.data || out->size != masked->out.size || out->ndim != calls->out.ndim) return 0;
    if (softmax->ints[0] != out->ndim - 1 || out->shape[out->ndim - 1] != calls->out.shape[out->ndim - 1]) return 0;
    return cyx_masks_product(calls) && row_by_row(out, &calls->out) && !cyx_overlap(out, &calls->in[0]) &&
           !cyx_overlap(out, &calls->in[1]) && !cyx_overlap(out, &masked->in[0]) && !cyx_overlap(out, &masked->in[2]);
}

int cyx_masks_softmax_grad(const cyx_call *calls) {
    const cyx_call *product = calls, *back = calls + 1, *masked = calls + 2;
    if (back->op != CYX_OP_softmax_grad || product->op != CYX_OP_matmul || product->dtype != back->dtype || !product->ints[1]) return 0;
    const cyx_array *made = &product->out, *weights = &back->in[1];
    if (back->in[0].data != made->data || weights->data == made->data || back->out.size != made->size) return 0;
    if (weights->size != made->size || back->in[0].ndim != made->ndim || back->ints[0] != made->ndim - 1) return 0;
    return can_mask(product, &back->out, masked) && row_by_row(&masked->out, made) && row_by_row(&masked->out, weights) &&
           !cyx_overlap(made, weights) && !cyx_overlap(made, &masked->in[0]);
}

static int makes_masked(const cyx_call *call) {
    return call->op == CYX_OP_max_pool2d_grad || call->op == CYX_OP_conv2d_grad_input;
}

static int is_pool_in_halves(const cyx_call *call) {
    const int64_t *i = call->ints;
    return i[0] == 2 && i[1] == 2 && i[2] == 2 && i[3] == 2 && !i[4] && !i[5];
}

/* Four calls: a gradient, greater(image, a number), cast, and the product of the first and the last. Of a pool the image must be
 * its own: pool2d.inl. Of a convolution's input: winograd.inl. Of a linear layer's input, a product: gemm.inl. */
int cyx_masks_gradient(const cyx_call *calls, const cyx_table table) {
    const cyx_call *made = calls, *greater = calls + 1, *cast = calls + 2, *masked = calls + 3;
    const cyx_array *image = &greater->in[0], *number = &greater->in[1], *out = &masked->out;
    if (greater->op != CYX_OP_greater || cast->op != CYX_OP_cast || masked->op != CYX_OP_mul) return 0;
    if (made->dtype != CYX_F32 || greater->dtype != CYX_F32 || masked->dtype != CYX_F32 || made->terms) return 0;
    if (made->op == CYX_OP_conv2d_grad_input) {
        cyx_loop loop;
        cyx_ask(made, table, &loop);
        if (!loop.masks) return 0;
    } else if (made->op == CYX_OP_matmul) {
        if (made->in[1].ndim != 2 || (made->in[0].ndim != 2 && made->ints[0]) || !made->in[0].size) return 0;
    } else if (made->op != CYX_OP_max_pool2d_grad || !is_pool_in_halves(made) || made->in[1].data != image->data) {
        return 0;
    }
    int second = masked->in[0].data != made->out.data;
    if (number->size != 1 || cast->in[0].data != greater->out.data || cast->out.dtype != CYX_F32) return 0;
    if (masked->in[second].data != made->out.data || masked->in[!second].data != cast->out.data) return 0;
    if (!out->size || out->size != image->size || out->size != made->out.size || out->size != cast->out.size) return 0;
    return !cyx_overlap(out, &made->in[0]) && !cyx_overlap(out, &made->in[1]) && !cyx_overlap(out, image) && !cyx_overlap(out, number);
}

enum { WHOLE_VECTORS = 16 }; /* elements that fill vectors of any instruction set */

/* A product of two matrices that is added to what lies in the place of the sum already. */
static int adds_in_place(const cyx_call *calls) {
    const cyx_array *other = &calls[1].in[calls[1].in[0].data == calls[0].out.data], *out = &calls[1].out;
    return cyx_adds_to_product(calls) && other->data == out->data && !calls->bands && out->ndim == 2 &&
           calls->in[0].ndim == 2 && calls->in[1].ndim == 2 && !calls->ints[1] && out->shape[1] % WHOLE_VECTORS == 0;
}

/* A sum over the rows of a matrix, and the sum of it and what lies in the place of the result already. */
int cyx_adds_sum(const cyx_call *calls) {
    const cyx_call *rows = calls, *sum = calls + 1;
    if (rows->op != CYX_OP_sum || sum->op != CYX_OP_add || rows->dtype != sum->dtype || rows->bands || sum->bands) return 0;
    if ((rows->dtype != CYX_F32 && rows->dtype != CYX_F64) || rows->in[0].dtype != rows->dtype || rows->in[0].ndim != 2) return 0;
    const cyx_array *made = &rows->out, *out = &sum->out, *other = &sum->in[sum->in[0].data == made->data];
    if (sum->in[other == sum->in].data != made->data || other->data != out->data || other->size != out->size) return 0;
    cyx_reduce_plan plan = cyx_plan_reduction(rows);
    int over_rows = !plan.inner_is_reduced && plan.outputs == 1 && plan.reduced_count == 1 && rows->in[0].size <= CYX_MOST_SUMMED;
    return over_rows && plan.terms > 1 && made->size == plan.inner && out->size == plan.inner && !cyx_overlap(out, &rows->in[0]) &&
           !cyx_overlap(out, made);
}

int cyx_adds_on(const cyx_call *before, const cyx_call *calls) {
    if (before->op == CYX_OP_sum)
        return cyx_adds_sum(before) && cyx_adds_sum(calls) && before->dtype == calls->dtype &&
               before[1].out.data == calls[1].out.data &&
               !memcmp(before->in[0].shape, calls->in[0].shape, 2 * sizeof(int64_t));
    return adds_in_place(before) && adds_in_place(calls) && before[1].out.data == calls[1].out.data &&
           before->dtype == calls->dtype && before->ints[0] == calls->ints[0] &&
           !memcmp(before->in[0].shape, calls->in[0].shape, 2 * sizeof(int64_t)) &&
           !memcmp(before->in[1].shape, calls->in[1].shape, 2 * sizeof(int64_t));
}

int64_t cyx_sums_runs(const cyx_call *call) {
    if ((call->op != CYX_OP_sum && call->op != CYX_OP_mean) || (call->dtype != CYX_F32 && call->dtype != CYX_F64)) return 0;
    cyx_reduce_plan plan = cyx_plan_reduction(call);
    if (!plan.inner_is_reduced || plan.inner < CYX_SHORTEST_RUN || !call->in[0].size || call->in[0].dtype != call->dtype) return 0;
    if (plan.inner <= CYX_LONGEST_RUN) return plan.inner;
    return plan.terms == 1 && (plan.outputs == 1 || plan.inner % CYX_RUN_BLOCK == 0) ? CYX_RUN_BLOCK : 0;
}

enum { LEAST_ROW = 32 }; /* elements */

int cyx_reads_rows(const cyx_call *joined, const cyx_call *call) {
    const cyx_array *made = &joined->out, *in = &call->in[0];
    if (joined->op != CYX_OP_concat || made->ndim < 2 || joined->ints[0] == made->ndim - 1 || !made->size) return 0;
    int64_t length = made->shape[made->ndim - 1];
    if ((made->dtype != CYX_F32 && made->dtype != CYX_F64) || call->dtype != made->dtype || length < LEAST_ROW) return 0;
    if (in->data != made->data || in->size != made->size || joined->bands || call->bands || call->terms) return 0;
    if (call->op == CYX_OP_sum || call->op == CYX_OP_mean) {
        cyx_reduce_plan plan = cyx_plan_reduction(call);
        return !plan.inner_is_reduced && plan.inner == length && plan.outputs == 1;
    }
    return call->op == CYX_OP_matmul && in->ndim == 2 && in->shape[1] == length && call->ints[0] &&
           call->in[1].ndim == 2 && call->in[1].data != made->data;
}

/* Where each row of a concat lies, in the order of its rows. */
static void find_lines(const cyx_call *joined, const void **lines) {
    const cyx_array *made = &joined->out;
    int64_t axis = joined->ints[0], outer = 1, inner = 1, row = made->shape[made->ndim - 1] * cyx_dtype_bytes[made->dtype];
    for (int64_t d = 0; d < axis; d++) outer *= made->shape[d];
    for (int64_t d = axis + 1; d < made->ndim - 1; d++) inner *= made->shape[d];
    for (int64_t o = 0; o < outer; o++)
        for (int i = 0; i < joined->in_count; i++) {
            int64_t rows = joined->in[i].shape[axis] * inner;
            for (int64_t r = 0; r < rows; r++) *lines++ = (const char *)joined->in[i].data + (o * rows + r) * row;
        }
}

static cyx_status run_joined(const cyx_call *calls, const cyx_table table) {
    const cyx_array *made = &calls->out;
    const void **lines = cyx_scratch(4, sizeof *lines * (size_t)(made->size / made->shape[made->ndim - 1]));
    if (!lines) return CYX_NO_MEMORY;
    find_lines(calls, lines);
    cyx_status status = CYX_OK;
    for (int32_t k = 1; k < calls->group && status == CYX_OK; k++) {
        cyx_call reader = calls[k];
        reader.lines = lines;
        status = table[reader.op][reader.dtype](&reader);
    }
    return status;
}

enum { ALONE = 16384 }; /* elements; of a group of one loop */
enum { TILE = 1024 }; /* elements; four tiles of float32 take half of the first-level cache, and what is read from outside the rest */
enum { TILES_APART = 192 }; /* bytes between tiles: a load waits for a store whose address ends in the same twelve bits */

/* Arrays that a group goes through, and their bytes together, from which on the group fetches the next tile itself: the processor
 * follows fewer by itself, as far as a page, and better. */
enum { LEAST_STREAMS = 3, MOST_STREAMS = 8, FAR_BYTES = 16 << 20, LINE_BYTES = 64 };

__thread cyx_loop *cyx_asked;

typedef struct {
    int call, input; /* -1: the output */
} stream;

/* What is known of a group before it runs. */
struct cyx_group {
    const void *table; /* whose loops these are */
    int count;
    cyx_loop loops[CYX_MAX_GROUP];
    int made_by[CYX_MAX_GROUP][CYX_INLINE_INPUTS]; /* which elided call of the group an input comes from, or -1 */
    int tile[CYX_MAX_GROUP];                       /* where an elided call leaves its output */
    int chain[CYX_MAX_GROUP];  /* how many calls from this one on are links of one chain; 0: it is none */
    int64_t chain_run[CYX_MAX_GROUP];    /* the length of the rows by which a chain's operands go, or 0 */
    int64_t chain_period[CYX_MAX_GROUP]; /* after how many of them their numbers come again, or 0 */
    char squared[CYX_MAX_GROUP]; /* whether a call is not made: the sum behind it, which alone reads it, squares its terms */
    char inner[CYX_MAX_GROUP]; /* whether only links of its own chain read the output */
    signed char keep[CYX_MAX_GROUP]; /* the slot of such an output that another than the next link reads, or -1 */
    cyx_operand input[CYX_MAX_GROUP][2]; /* of a link: the forms and slots of its inputs */
    int tiles, element_bytes, streams;
    stream stream[MOST_STREAMS];
    int64_t tile_size; /* elements */
    int64_t sums, run; /* how many calls are sums, and of how many terms in a row */
    double work;
};

typedef struct {
    const cyx_group *made;
    const cyx_call *calls;
    char *sums[CYX_MAX_GROUP]; /* of the runs, where a call is a sum */
    _Atomic int no_memory;
} group;

void cyx_ask(const cyx_call *call, const cyx_table table, cyx_loop *loop) {
    loop->body = NULL, loop->finish = NULL, loop->squares = NULL, loop->pack = NULL, loop->links = NULL, loop->masks = 0;
    cyx_asked = loop;
    table[call->op][call->dtype](call);
    cyx_asked = NULL;
}

int cyx_fusible(const cyx_call *call, const cyx_table table) {
    cyx_call nothing = *call; /* a kernel of another kind, which runs instead of answering, has nothing to do */
    cyx_loop loop;
    if (call->in_count > CYX_INLINE_INPUTS || !table[call->op][call->dtype]) return 0;
    nothing.in = nothing.own_in;
    nothing.out.size = 0;
    cyx_ask(&nothing, table, &loop);
    return loop.body && !loop.finish;
}

/* What a loop looks at, and no more: for small arrays a group costs what it copies. */
static void copy_array(cyx_array *own, const cyx_array *from) {
    own->data = from->data, own->size = from->size, own->dtype = from->dtype;
}

static void copy_call(cyx_call *own, const cyx_call *from) {
    own->op = from->op, own->dtype = from->dtype, own->in_count = from->in_count, own->elided = from->elided;
    own->in = own->own_in;
    copy_array(&own->out, &from->out);
    for (int i = 0; i < from->in_count; i++) copy_array(&own->in[i], &from->in[i]);
}

static void copy_rows(cyx_rows *own, const cyx_rows *from) {
    if (from->walk.ndim != 1) {
        *own = *from;
        return;
    }
    own->walk.ndim = 1, own->walk.shape[0] = from->walk.shape[0];
    for (int k = 0; k < CYX_WALK_INPUTS; k++) own->walk.stride[k][0] = from->walk.stride[k][0];
    for (int i = 0; i < CYX_LOOP_CONSTANTS; i++) own->constants[i] = from->constants[i];
}

/* How an input goes along with the output, as a form of cyx_link; -1: in none of these ways. run: the length of rows; period: after
 * how many of them numbers of rows come again, as those of channels do with each image. */
static int form_of(const cyx_walk *walk, int input, int64_t *run, int64_t *period) {
    const int64_t *shape = walk->shape, *stride = walk->stride[input];
    int last = walk->ndim - 1, moves = 0, whole = 1;
    int64_t length = 1;
    if (walk->ndim > 3) return -1;
    for (int d = last; d >= 0; length *= shape[d--]) moves |= stride[d] != 0, whole &= stride[d] == length;
    if (whole || !moves) return whole ? CYX_LINK_ARRAY : CYX_LINK_NUMBER;
    if (last == 2 && (stride[0] || stride[1] != 1 || stride[2])) return -1;
    *run = shape[last];
    if (stride[last]) return CYX_LINK_ROW;
    *period = shape[last - 1];
    return CYX_LINK_COLUMN;
}

static int is_of_one(int op) {
    return op == CYX_OP_neg || op == CYX_OP_square || op == CYX_OP_exp || op == CYX_OP_tanh ||
           op == CYX_OP_sigmoid || op == CYX_OP_erf || op == CYX_OP_gelu;
}

/* A link that begins with element `at`. */
static cyx_link link_of(const cyx_call *call, const cyx_operand *input, int64_t at) {
    cyx_link link = {.first = input[0], .other = {.form = CYX_LINK_ITSELF}};
    int of_one = is_of_one(call->op), second = 0; /* whether the first operand is the call's second input */
    if (!of_one) {
        second = input[0].form != CYX_LINK_ITSELF && input[1].form == CYX_LINK_ITSELF;
        second |= input[0].form != CYX_LINK_ARRAY && input[0].form != CYX_LINK_KEPT && input[0].form != CYX_LINK_ITSELF;
        if (call->in[0].data != call->in[1].data || input[0].form != input[1].form) link.other = input[!second];
        link.first = input[second];
    }
    link.first.array = (const float *)call->in[second].data + (link.first.form == CYX_LINK_ARRAY ? at : 0);
    if (!of_one) link.other.array = (const float *)call->in[!second].data + (link.other.form == CYX_LINK_ARRAY ? at : 0);
    switch (call->op) {
    case CYX_OP_neg: link.kind = CYX_LINK_NEG; break;
    case CYX_OP_exp: link.kind = CYX_LINK_EXP; break;
    case CYX_OP_tanh: link.kind = CYX_LINK_TANH; break;
    case CYX_OP_sigmoid: link.kind = CYX_LINK_SIGMOID; break;
    case CYX_OP_erf: link.kind = CYX_LINK_ERF; break;
    case CYX_OP_gelu: link.kind = CYX_LINK_GELU; break;
    case CYX_OP_add: link.kind = CYX_LINK_ADD; break;
    case CYX_OP_sub: link.kind = second ? CYX_LINK_FROM : CYX_LINK_SUB; break;
    case CYX_OP_div: link.kind = second ? CYX_LINK_OVER : CYX_LINK_DIV; break;
    default: link.kind = CYX_LINK_MUL;
    }
    return link;
}

static void run_chain(const cyx_group *g, const cyx_call *calls, int first, int64_t at, int64_t stop) {
    cyx_link links[CYX_MAX_GROUP];
    int64_t run = g->chain_run[first], period = g->chain_period[first], row = period ? at / run % period : 0;
    for (int k = 0; k < g->chain[first]; k++) {
        const cyx_call *call = &calls[first + k];
        links[k] = link_of(call, g->input[first + k], at);
        links[k].keep = g->keep[first + k];
        links[k].out = g->inner[first + k] ? NULL : (float *)call->out.data + at;
    }
    links[0].first.ahead = 1; /* the other calls of a tile are between this chain and itself */
    g->loops[first].links(links, g->chain[first], stop - at, run, run ? at % run : 0, row, period);
}

static const cyx_array *array_of(const stream *s, const cyx_call *calls) {
    return s->input < 0 ? &calls[s->call].out : &calls[s->call].in[s->input];
}

/* A part of what the tile [at, stop) takes from memory and leaves there, on its way to the second-level cache while call k works on
 * the tile before: all at once would be more than the processor waits for. */
static void fetch_part(const cyx_group *g, const cyx_call *calls, int64_t at, int64_t stop, int k) {
    for (int i = 0; i < g->streams; i++) {
        const cyx_array *array = array_of(&g->stream[i], calls);
        int64_t width = cyx_dtype_bytes[array->dtype], bytes = (stop - at) * width;
        const char *first = (const char *)array->data + at * width;
        for (int64_t b = bytes * k / g->count; b < bytes * (k + 1) / g->count; b += LINE_BYTES) __builtin_prefetch(first + b, 0, 2);
    }
}

/* One loop that leaves nothing for a next call: it need not stop at tiles. */
static int is_sum_of_squares(const cyx_group *g) { return g->count == 2 && g->squared[0]; }

static void group_body(void *context, int64_t begin, int64_t end) {
    group *running = context;
    const cyx_group *g = running->made;
    cyx_call own[CYX_MAX_GROUP];
    cyx_rows rows[CYX_MAX_GROUP];
    int64_t tile_bytes = g->tile_size * g->element_bytes + TILES_APART;
    char *tiles = cyx_scratch(1, (size_t)(g->tiles * tile_bytes + 1));
    if (!tiles) {
        running->no_memory = 1;
        return;
    }
    for (int k = 0; k < g->count; k++) {
        copy_call(&own[k], &running->calls[k]);
        copy_rows(&rows[k], &g->loops[k].rows);
        rows[k].call = &own[k];
        if (g->loops[k].finish) own[k].out.data = running->sums[k];
    }
    int64_t tile = is_sum_of_squares(g) ? end - begin : g->tile_size;
    for (int64_t at = begin; at < end; at += tile) {
        int64_t stop = end - at < tile ? end : at + tile;
        int64_t next = end - stop < tile ? end : stop + tile;
        for (int k = 0, first = 0; k < g->count; k++) {
            /* Loops count from the start of the whole array: element `at` is the tile's first. */
            if (own[k].elided && !g->inner[k])
                own[k].out.data = tiles + g->tile[k] * tile_bytes - at * cyx_dtype_bytes[own[k].out.dtype];
            for (int i = 0; i < own[k].in_count; i++)
                if (g->made_by[k][i] >= 0 && !g->squared[g->made_by[k][i]]) own[k].in[i].data = own[g->made_by[k][i]].out.data;
            if (g->squared[k]) own[k + 1].in[0].data = own[k].in[0].data;
            fetch_part(g, own, stop, next, k);
            if (k + 1 - first < g->chain[first]) continue; /* the last of its chain makes all of it */
            if (g->chain[first])
                run_chain(g, own, first, at, stop);
            else if (k && g->squared[k - 1])
                g->loops[k].squares(&rows[k], at, stop);
            else if (!g->squared[k])
                g->loops[k].body(&rows[k], at, stop);
            first = k + 1;
        }
    }
}

/* A tile for every elided call, taken again after its last reader: the fewer, the nearer they stay. */
static void share_tiles(cyx_group *g, const cyx_call *calls) {
    int last[CYX_MAX_GROUP], taken[CYX_MAX_GROUP] = {0};
    for (int k = 0; k < g->count; k++) last[k] = k;
    for (int k = 0; k < g->count; k++)
        for (int i = 0; i < calls[k].in_count; i++)
            if (g->made_by[k][i] >= 0) last[g->made_by[k][i]] = k;
    for (int k = 0; k < g->count; k++) {
        if (calls[k].elided && !g->squared[k] && !g->inner[k]) {
            int tile = 0, bytes = cyx_dtype_bytes[calls[k].out.dtype];
            while (taken[tile]) tile++;
            taken[tile] = 1;
            g->tile[k] = tile;
            if (tile >= g->tiles) g->tiles = tile + 1;
            if (bytes > g->element_bytes) g->element_bytes = bytes;
        }
        for (int made = 0; made <= k; made++) /* only now: nothing is written over what the same call reads */
            if (calls[made].elided && !g->squared[made] && !g->inner[made] && last[made] == k) taken[g->tile[made]] = 0;
    }
}

/* Whether a call can be a link of a chain whose operands go by rows of `run` elements, or by none yet (0), and whose numbers of
 * rows come again after `period` of them, or are none yet. */
static int can_be_link(cyx_group *g, int k, const cyx_call *call, int64_t *run, int64_t *period) {
    const cyx_rows *rows = &g->loops[k].rows;
    int64_t own = 0, again = 0;
    if (!g->loops[k].links || g->squared[k]) return 0;
    int first = form_of(&rows->walk, 0, &own, &again);
    int second = is_of_one(call->op) ? first : form_of(&rows->walk, 1, &own, &again);
    if (first < 0 || second < 0 || (first != CYX_LINK_ARRAY && second != CYX_LINK_ARRAY)) return 0;
    if ((own && *run && own != *run) || (again && *period && again != *period)) return 0;
    if (own) *run = own;
    if (again) *period = again;
    g->input[k][0] = (cyx_operand){.form = (unsigned)first}, g->input[k][1] = (cyx_operand){.form = (unsigned)second};
    return 1;
}

/* Squares of float32 or float64 that are only summed up are made where the sum reads what they are of. */
static void find_squares(cyx_group *g, const cyx_call *calls) {
    for (int k = 0; k < g->count; k++) {
        int readers = 0;
        for (int later = k + 1; later < g->count; later++)
            for (int i = 0; i < calls[later].in_count; i++) readers += g->made_by[later][i] == k;
        g->squared[k] = calls[k].op == CYX_OP_square && readers == 1 && k + 1 < g->count && g->made_by[k + 1][0] == k &&
                        g->loops[k + 1].squares;
    }
}

/* Of links [first, stop): where they find what others of them made. */
static void find_operands(cyx_group *g, const cyx_call *calls, int first, int stop) {
    int last[CYX_MAX_GROUP], taken[CYX_LINK_SLOTS] = {0}; /* the last that reads an output; whether a slot is in use */
    for (int k = first; k < stop; k++) {
        last[k] = 0;
        for (int later = k + 1; later < g->count; later++)
            for (int i = 0; i < calls[later].in_count; i++)
                if (g->made_by[later][i] == k) last[k] = later;
    }
    for (int k = first; k < stop; k++) {
        for (int i = 0; i < calls[k].in_count; i++) {
            cyx_operand *input = &g->input[k][i];
            if (input->form != CYX_LINK_ARRAY) continue;
            int made_by = g->made_by[k][i];
            if (k > first && calls[k].in[i].data == calls[k - 1].out.data)
                input->form = CYX_LINK_ITSELF;
            else if (made_by >= first && g->inner[made_by])
                input->form = CYX_LINK_KEPT, input->slot = g->keep[made_by];
        }
        for (int made = first; made < k; made++) /* only what is made is stored: it may be where an operand was */
            if (g->keep[made] >= 0 && last[made] == k) taken[g->keep[made]] = 0;
        g->inner[k] = calls[k].elided && last[k] && last[k] < stop;
        if (!g->inner[k] || last[k] == k + 1) continue;
        int slot = 0;
        while (slot < CYX_LINK_SLOTS && taken[slot]) slot++;
        if (slot < CYX_LINK_SLOTS)
            taken[slot] = 1, g->keep[k] = (signed char)slot;
        else
            g->inner[k] = 0; /* it waits in a tile */
    }
}

enum { LEAST_REPEATING = 3 }; /* links, where numbers of rows come again: loops of their own are compiled as they are */

/* A call alone is a chain where an operand goes by rows: its own loop would look for each row. Otherwise chains are for AVX-512:
 * with shorter vectors a link takes longer than what a loop of its own loads and stores. */
static void find_chains(cyx_group *g, const cyx_call *calls) {
    int wide = !strcmp(cyx_isa(), "avx512");
    for (int k = 0; k < g->count; k++) g->chain[k] = 0, g->inner[k] = 0, g->keep[k] = -1;
    for (int first = 0, k; first < g->count; first = k) {
        int64_t run = 0, period = 0;
        k = first + 1;
        int links = can_be_link(g, first, &calls[first], &run, &period);
        for (; links && k < g->count; k++) {
            int64_t with = run, again = period;
            if (!can_be_link(g, k, &calls[k], &with, &again)) break;
            run = with, period = again;
        }
        int repeats = period && period * run < calls[first].out.size;
        if (!links || (repeats ? k - first < LEAST_REPEATING || !wide : !run && (k == first + 1 || !wide))) continue;
        g->chain[first] = k - first, g->chain_run[first] = run, g->chain_period[first] = period;
        find_operands(g, calls, first, k);
    }
}

/* Whether all is one chain, or one sum of squares, and nothing waits in a tile. */
static int is_one_loop(const cyx_group *g, const cyx_call *calls) {
    if (is_sum_of_squares(g)) return 1;
    for (int k = 0; k < g->count; k++)
        if (calls[k].elided && !g->inner[k]) return 0;
    return g->chain[0] == g->count;
}

/* What goes through memory: arrays as large as the group's, which it does not keep in its tiles, each once. Those of one loop
 * the processor follows better by itself: what was fetched before the loop would only be waited for. */
static void find_streams(cyx_group *g, const cyx_call *calls) {
    int64_t bytes = 0;
    for (int k = 0; k < g->count; k++)
        for (int i = 0; i <= calls[k].in_count && g->streams < MOST_STREAMS; i++) {
            stream new = {k, i < calls[k].in_count ? i : -1};
            const cyx_array *array = array_of(&new, calls);
            int elided = new.input < 0 ? calls[k].elided : g->made_by[k][i] >= 0, known = 0;
            for (int s = 0; s < g->streams; s++) known |= array_of(&g->stream[s], calls)->data == array->data;
            if (elided || known || array->size != calls->out.size) continue;
            g->stream[g->streams++] = new;
            bytes += array->size * cyx_dtype_bytes[array->dtype];
        }
    if (g->streams < LEAST_STREAMS || bytes < FAR_BYTES || is_one_loop(g, calls)) g->streams = 0;
}

/* Not set to zero before, as a whole: that is the larger part of a small group's work. */
static void look_at_group(cyx_group *g, const cyx_call *calls, const cyx_table table) {
    g->table = table, g->count = calls->group, g->tiles = 0, g->element_bytes = 0, g->streams = 0, g->sums = 0, g->run = 0, g->work = 0;
    for (int k = 0; k < g->count; k++) {
        cyx_ask(&calls[k], table, &g->loops[k]);
        g->work += calls[k].work;
        if (g->loops[k].finish) g->run = g->loops[k].rows.walk.shape[0], g->sums++;
        for (int i = 0; i < calls[k].in_count; i++) {
            g->made_by[k][i] = -1;
            for (int earlier = 0; earlier < k; earlier++)
                if (calls[earlier].out.data == calls[k].in[i].data)
                    g->made_by[k][i] = calls[earlier].elided ? earlier : -1;
        }
    }
    find_squares(g, calls);
    find_chains(g, calls);
    find_streams(g, calls);
    share_tiles(g, calls);
    int64_t tile = is_one_loop(g, calls) ? ALONE : TILE;
    g->tile_size = g->run && g->run < tile ? tile / g->run * g->run : g->run ? g->run : tile; /* of whole runs */
}

cyx_group *cyx_look_at_group(const cyx_call *calls, const cyx_table table) {
    if (calls->op == CYX_OP_concat) return NULL;
    for (int k = 0; k < calls->group; k++) /* products are made otherwise; the loops of updates hold numbers of one run */
        if (makes_masked(&calls[k]) || calls[k].op == CYX_OP_matmul || calls[k].op >= CYX_OP_sgd_update) return NULL;
    if (calls->op == CYX_OP_sum) return NULL; /* neither do sums that are added up */
    cyx_group *g = malloc(sizeof *g);
    if (g) look_at_group(g, calls, table);
    return g;
}

const void *cyx_group_records(const cyx_group *kept, size_t *bytes) {
    *bytes = offsetof(cyx_group, loops) + sizeof *kept->loops * (size_t)kept->count;
    return kept;
}

int cyx_is_adam(const cyx_call *calls, int64_t count) {
    if (count < 3 || count % 3) return 0;
    for (const cyx_call *m = calls; m < calls + count; m += 3) {
        const cyx_call *v = m + 1, *p = m + 2;
        int ops = m->op == CYX_OP_adam_m && v->op == CYX_OP_adam_v && p->op == CYX_OP_adam_update;
        if (!ops || m->dtype != calls->dtype || v->dtype != m->dtype || p->dtype != m->dtype) return 0;
        int sources = m->in[1].data == v->in[1].data && m->in[2].data == v->in[2].data &&
                      m->in[2].data == p->in[0].data && p->in[1].data == m->out.data && p->in[2].data == v->out.data;
        if (!sources || m->elided || v->elided || p->elided) return 0;
    }
    return 1;
}

cyx_status cyx_run_group(const cyx_call *calls, const cyx_table table) {
    if (calls->op == CYX_OP_concat) return run_joined(calls, table);
    int by_itself = calls->op == CYX_OP_matmul || calls->op == CYX_OP_sum || makes_masked(calls);
    if (by_itself || cyx_is_adam(calls, calls->group)) return table[calls->op][calls->dtype](calls);
    cyx_group own;
    group g = {.calls = calls, .made = calls->kept && calls->kept->table == table ? calls->kept : &own};
    if (g.made == &own) look_at_group(&own, calls, table);
    int64_t size = calls->out.size;
    if (!size) return CYX_OK;
    if (g.made->sums) {
        int64_t bytes = (size / g.made->run + 1) * (int64_t)sizeof(double);
        char *memory = cyx_scratch(0, (size_t)(g.made->sums * bytes));
        if (!memory) return CYX_NO_MEMORY;
        for (int k = 0; k < g.made->count; k++)
            if (g.made->loops[k].finish) g.sums[k] = memory, memory += bytes;
    }
    int64_t grain = cyx_grain(size, g.made->work / (double)size, CYX_LEAST_WORK), tile = g.made->tile_size;
    if (g.made->work < CYX_LEAST_WORK)
        group_body(&g, 0, size);
    else
        cyx_parallel(size, (grain + tile - 1) / tile * tile, group_body, &g);
    for (int k = 0; g.made->sums && !g.no_memory && k < g.made->count; k++)
        if (g.made->loops[k].finish) g.made->loops[k].finish(&calls[k], g.sums[k]);
    return g.no_memory ? CYX_NO_MEMORY : CYX_OK;
}
