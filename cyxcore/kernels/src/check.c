/* Is a call sound? One rule per kind of operation; the table at the end says which operation follows which.
 * What passes cannot make a kernel touch memory outside its arrays, whoever wrote the graph. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cyx.h"

enum { TEXT = 96 };

/* "(3, 4)" */
static const char *shape_text(const cyx_array *x, char text[TEXT]) {
    int at = snprintf(text, TEXT, "(");
    for (int d = 0; d < x->ndim && at < TEXT - 24; d++)
        at += snprintf(text + at, TEXT - (size_t)at, d ? ", %lld" : "%lld", (long long)x->shape[d]);
    snprintf(text + at, TEXT - (size_t)at, x->ndim == 1 ? ",)" : ")");
    return text;
}

static cyx_status bad_out(const cyx_call *call, const cyx_array *expected) {
    char want[TEXT], got[TEXT], in[TEXT];
    return cyx_fail(CYX_BAD_SHAPE, "%s: expected an output of shape %s for a first input of shape %s, got %s",
                    cyx_op_names[call->op], shape_text(expected, want), shape_text(&call->in[0], in),
                    shape_text(&call->out, got));
}

static cyx_status bad_inputs(const cyx_call *call, const char *rule) {
    char all[3][TEXT];
    for (int i = 0; i < 3; i++) {
        all[i][0] = 0;
        if (i < call->in_count) shape_text(&call->in[i], all[i]);
    }
    return cyx_fail(CYX_BAD_SHAPE, "%s: expected %s, got inputs of shape %s %s %s and an output of shape %s",
                    cyx_op_names[call->op], rule, all[0], all[1], all[2],
                    shape_text(&call->out, (char[TEXT]){0}));
}

static cyx_status bad_attribute(const cyx_call *call, const char *rule) {
    char in[TEXT];
    return cyx_fail(CYX_BAD_ATTRIBUTE, "%s: expected %s for an input of shape %s", cyx_op_names[call->op],
                    rule, shape_text(&call->in[0], in));
}

static int same_shape(const cyx_array *a, const cyx_array *b) {
    return a->ndim == b->ndim && !memcmp(a->shape, b->shape, sizeof(int64_t) * (size_t)a->ndim);
}

static cyx_status want_shape(const cyx_call *call, int ndim, const int64_t *shape) {
    cyx_array expected = {.ndim = ndim};
    if (ndim > CYX_MAX_NDIM) return bad_inputs(call, "at most 8 dimensions");
    memcpy(expected.shape, shape, sizeof(int64_t) * (size_t)ndim);
    return same_shape(&expected, &call->out) ? CYX_OK : bad_out(call, &expected);
}

static cyx_status check_same(cyx_call *call) {
    for (int i = 0; i < call->in_count; i++)
        if (!same_shape(&call->in[i], &call->out)) return bad_out(call, &call->in[0]);
    return CYX_OK;
}

static cyx_status check_broadcast(cyx_call *call) {
    cyx_array expected = {.ndim = 0};
    for (int i = 0; i < call->in_count; i++)
        if (call->in[i].ndim > expected.ndim) expected.ndim = call->in[i].ndim;
    for (int d = 0; d < expected.ndim; d++) {
        expected.shape[d] = 1;
        for (int i = 0; i < call->in_count; i++) {
            int own = d - (expected.ndim - call->in[i].ndim);
            int64_t extent = own < 0 ? 1 : call->in[i].shape[own];
            if (extent != 1 && expected.shape[d] != 1 && extent != expected.shape[d])
                return bad_inputs(call, "shapes that broadcast");
            if (extent != 1) expected.shape[d] = extent;
        }
    }
    return same_shape(&expected, &call->out) ? CYX_OK : bad_out(call, &expected);
}

/* Arrays of the output's shape, then scalars. */
static cyx_status check_update(cyx_call *call) {
    int scalars = call->op == CYX_OP_adam_update                                                          ? 2
                  : call->op == CYX_OP_momentum || call->op == CYX_OP_adam_m || call->op == CYX_OP_adam_v ? 0
                                                                                                          : 1;
    for (int i = 0; i < call->in_count; i++) {
        int scalar = i >= call->in_count - scalars;
        if (scalar ? call->in[i].size != 1 : !same_shape(&call->in[i], &call->out))
            return bad_inputs(call, "arrays of one shape, then scalars of one element");
    }
    return CYX_OK;
}

/* ints: count, axes..., keepdims */
static cyx_status check_reduce(cyx_call *call) {
    const cyx_array *x = &call->in[0];
    int64_t count = call->ints[0], shape[CYX_MAX_NDIM] = {0}, last = -1;
    int ndim = 0, next = 0, empty = 0;
    for (int64_t i = 0; i < count; i++) {
        if (call->ints[1 + i] <= last || call->ints[1 + i] >= x->ndim)
            return bad_attribute(call, "axes in ascending order, each within the dimensions");
        last = call->ints[1 + i];
    }
    for (int d = 0; d < x->ndim; d++) {
        int reduced = next < count && call->ints[1 + next] == d;
        next += reduced;
        empty |= reduced && !x->shape[d];
        if (!reduced)
            shape[ndim++] = x->shape[d];
        else if (call->ints[1 + count])
            shape[ndim++] = 1;
    }
    cyx_status status = want_shape(call, ndim, shape);
    if (status == CYX_OK && empty && (call->op == CYX_OP_max || call->op == CYX_OP_min))
        return bad_inputs(call, "at least one element along the reduced axes");
    return status;
}

/* ints: axis */
static cyx_status check_argmax(cyx_call *call) {
    const cyx_array *x = &call->in[0];
    int64_t axis = call->ints[0], shape[CYX_MAX_NDIM];
    if (axis < 0 || axis >= x->ndim) return bad_attribute(call, "an axis within the dimensions");
    if (!x->shape[axis]) return bad_inputs(call, "at least one element along the axis");
    for (int d = 0, to = 0; d < x->ndim; d++)
        if (d != axis) shape[to++] = x->shape[d];
    return want_shape(call, x->ndim - 1, shape);
}

/* ints: axis, of which one number has none */
static cyx_status check_cumulative(cyx_call *call) {
    if (call->in[0].ndim && (call->ints[0] < 0 || call->ints[0] >= call->in[0].ndim))
        return bad_attribute(call, "an axis within the dimensions");
    return check_same(call);
}

/* ints: axis, backwards */
static cyx_status check_recurrence(cyx_call *call) {
    if (!same_shape(&call->in[0], &call->in[1])) return bad_inputs(call, "a factor for each term");
    return check_cumulative(call);
}

static cyx_status check_scatter(cyx_call *call) {
    const cyx_array *x = &call->in[0], *places = &call->in[1];
    cyx_array rows = *x;
    if (!x->ndim || places->ndim != 1) return bad_inputs(call, "x of at least one dimension and places (K,)");
    if (call->ints[0] < 0 || call->ints[0] > 4) return bad_attribute(call, "a reduction from 0 to 4");
    rows.shape[0] = places->size;
    if (!same_shape(&rows, &call->in[2])) return bad_inputs(call, "a row for each place");
    return same_shape(x, &call->out) ? CYX_OK : bad_out(call, x);
}

static cyx_status check_matmul(cyx_call *call) {
    const cyx_array *a = &call->in[0], *b = &call->in[1];
    if (a->ndim < 2 || b->ndim < 2) return bad_inputs(call, "at least two dimensions each");
    int64_t m = a->shape[a->ndim - (call->ints[0] ? 1 : 2)], k = a->shape[a->ndim - (call->ints[0] ? 2 : 1)];
    int64_t n = b->shape[b->ndim - (call->ints[1] ? 2 : 1)];
    if (b->shape[b->ndim - (call->ints[1] ? 1 : 2)] != k)
        return bad_inputs(call, "(..., M, K) times (..., K, N)");
    int ndim = a->ndim > b->ndim ? a->ndim : b->ndim;
    int64_t shape[CYX_MAX_NDIM];
    for (int d = 0; d < ndim - 2; d++) {
        int64_t p = d - (ndim - a->ndim) < 0 ? 1 : a->shape[d - (ndim - a->ndim)];
        int64_t q = d - (ndim - b->ndim) < 0 ? 1 : b->shape[d - (ndim - b->ndim)];
        if (p != q && p != 1 && q != 1) return bad_inputs(call, "leading dimensions that broadcast");
        shape[d] = p == 1 ? q : p;
    }
    shape[ndim - 2] = m, shape[ndim - 1] = n;
    call->work = 2.0 * (double)call->out.size * (double)k / 8.0;
    return want_shape(call, ndim, shape);
}

static cyx_status check_reshape(cyx_call *call) {
    return call->in[0].size == call->out.size ? CYX_OK
                                              : bad_inputs(call, "as many elements as the input has");
}

static cyx_status check_transpose(cyx_call *call) {
    const cyx_array *x = &call->in[0];
    int64_t shape[CYX_MAX_NDIM];
    unsigned seen = 0;
    if (call->ints[0] != x->ndim) return bad_attribute(call, "one axis per dimension");
    for (int d = 0; d < x->ndim; d++) {
        int64_t axis = call->ints[1 + d];
        if (axis < 0 || axis >= x->ndim || seen >> axis & 1)
            return bad_attribute(call, "a permutation of the axes");
        seen |= 1u << axis;
        shape[d] = x->shape[axis];
    }
    return want_shape(call, x->ndim, shape);
}

static cyx_status check_broadcast_to(cyx_call *call) {
    const cyx_array *x = &call->in[0], *out = &call->out;
    int missing = out->ndim - x->ndim, fits = missing >= 0;
    for (int d = 0; fits && d < x->ndim; d++)
        fits = x->shape[d] == 1 || x->shape[d] == out->shape[d + missing];
    return fits ? CYX_OK : bad_inputs(call, "an output shape the input broadcasts to");
}

/* ints: three lists of ndim each. A step may be negative; then the slice runs down from start, and may stop
 * at -1. */
static cyx_status check_slice(cyx_call *call) {
    const cyx_array *x = &call->in[0];
    const int64_t *starts = call->ints, *stops = starts + 1 + x->ndim, *steps = stops + 1 + x->ndim;
    int64_t shape[CYX_MAX_NDIM];
    if (call->int_count != 3 * (1 + x->ndim) || starts[0] != x->ndim || stops[0] != x->ndim ||
        steps[0] != x->ndim)
        return bad_attribute(call, "one start, stop and step per dimension");
    for (int d = 0; d < x->ndim; d++) {
        int64_t start = starts[1 + d], stop = stops[1 + d], step = steps[1 + d], extent = x->shape[d];
        if (step == 0 || step == INT64_MIN || start < -1 || start > extent || stop < -1 || stop > extent)
            return bad_attribute(call, "starts and stops inside the dimension and steps other than 0");
        int64_t length = step > 0 ? (stop - start - 1) / step + 1 : (start - stop - 1) / -step + 1;
        if (step > 0 ? stop <= start : start <= stop) length = 0;
        int64_t last = length ? start + (length - 1) * step : 0; /* a step may be longer than the dimension */
        if (length && (start < 0 || start >= extent || last < 0 || last >= extent))
            return bad_attribute(call, "slices inside the dimension");
        shape[d] = length;
    }
    return want_shape(call, x->ndim, shape);
}

static cyx_status check_pad(cyx_call *call) {
    const cyx_array *x = &call->in[0];
    int64_t shape[CYX_MAX_NDIM];
    if (call->ints[0] != x->ndim) return bad_attribute(call, "one (low, high) pair per dimension");
    for (int d = 0; d < x->ndim; d++) {
        int64_t low = call->ints[1 + 2 * d], high = call->ints[2 + 2 * d];
        if (low < 0 || high < 0 || low > INT32_MAX || high > INT32_MAX)
            return bad_attribute(call, "padding from 0 to 2**31");
        shape[d] = low + x->shape[d] + high;
    }
    return want_shape(call, x->ndim, shape);
}

static cyx_status check_concat(cyx_call *call) {
    const cyx_array *first = &call->in[0];
    int64_t axis = call->ints[0];
    cyx_array expected = *first;
    if (axis < 0 || axis >= first->ndim) return bad_attribute(call, "an axis within the dimensions");
    expected.shape[axis] = 0;
    for (int i = 0; i < call->in_count; i++) {
        cyx_array other = call->in[i];
        int64_t extent = other.ndim == first->ndim ? other.shape[axis] : 0;
        other.shape[axis] = first->shape[axis];
        if (!same_shape(&other, first)) return bad_inputs(call, "inputs alike but for the axis");
        expected.shape[axis] += extent;
    }
    return same_shape(&expected, &call->out) ? CYX_OK : bad_out(call, &expected);
}

/* The shape of x with the axis replaced by another array's dimensions. */
static cyx_status replace_axis(const cyx_call *call, const cyx_array *x, int64_t axis, const cyx_array *by,
                               cyx_array *result) {
    if (axis < 0 || axis >= x->ndim) return bad_attribute(call, "an axis within the dimensions");
    if (x->ndim - 1 + by->ndim > CYX_MAX_NDIM) return bad_inputs(call, "at most 8 dimensions in the result");
    result->ndim = 0;
    for (int d = 0; d < x->ndim; d++) {
        if (d != axis)
            result->shape[result->ndim++] = x->shape[d];
        else
            for (int e = 0; e < by->ndim; e++) result->shape[result->ndim++] = by->shape[e];
    }
    return CYX_OK;
}

static cyx_status check_take(cyx_call *call) {
    cyx_array expected;
    cyx_status status = replace_axis(call, &call->in[0], call->ints[0], &call->in[1], &expected);
    return status != CYX_OK || same_shape(&expected, &call->out) ? status : bad_out(call, &expected);
}

/* ints: axis, size */
static cyx_status check_take_grad(cyx_call *call) {
    cyx_array expected;
    cyx_status status = replace_axis(call, &call->out, call->ints[0], &call->in[1], &expected);
    if (status != CYX_OK) return status;
    if (call->out.shape[call->ints[0]] != call->ints[1])
        return bad_attribute(call, "size equal to the output's axis");
    return same_shape(&expected, &call->in[0]) ? CYX_OK
                                               : bad_inputs(call, "a gradient of the shape take gives");
}

static cyx_status check_take_along(cyx_call *call) {
    const cyx_array *x = &call->in[0], *indices = &call->in[1];
    int64_t axis = call->ints[0];
    if (axis < 0 || axis >= x->ndim) return bad_attribute(call, "an axis within the dimensions");
    if (indices->ndim != x->ndim) return bad_inputs(call, "as many dimensions in the indices");
    for (int d = 0; d < x->ndim; d++)
        if (d != axis && indices->shape[d] != x->shape[d])
            return bad_inputs(call, "indices alike but for the axis");
    return same_shape(indices, &call->out) ? CYX_OK : bad_out(call, indices);
}

/* ints: axis, size, terms, from_zero */
static cyx_status check_take_along_grad(cyx_call *call) {
    cyx_array expected = call->in[0];
    int64_t axis = call->ints[0];
    if (axis < 0 || axis >= expected.ndim) return bad_attribute(call, "an axis within the dimensions");
    if (call->ints[1] < 0 || call->ints[1] >> 31 || expected.shape[axis] >> 31 || call->ints[2] < 1)
        return bad_attribute(call, "at most 2**31 places, and blocks of at least one term");
    if (!same_shape(&call->in[0], &call->in[1])) return bad_inputs(call, "an index for each term");
    expected.shape[axis] = call->ints[1];
    return same_shape(&expected, &call->out) ? CYX_OK : bad_out(call, &expected);
}

static cyx_status check_one_hot(cyx_call *call) {
    const cyx_array *x = &call->in[0];
    if (x->ndim + 1 > CYX_MAX_NDIM || call->ints[0] < 0)
        return bad_attribute(call, "a depth of at least 0 and 7 dimensions at most");
    int64_t shape[CYX_MAX_NDIM];
    memcpy(shape, x->shape, sizeof(int64_t) * (size_t)x->ndim);
    shape[x->ndim] = call->ints[0];
    return want_shape(call, x->ndim + 1, shape);
}

static int64_t window_count(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
    return room < 0 ? -1 : room / stride + 1;
}

static int between(const int64_t *values, int count, int64_t low, int64_t high) {
    for (int i = 0; i < count; i++)
        if (values[i] < low || values[i] > high) return 0;
    return 1;
}

/* ints: stride (2), padding (2), dilation (2), groups; then input_shape or weight_shape, counted */
static cyx_status check_conv2d(cyx_call *call) {
    const cyx_array *x = call->op == CYX_OP_conv2d              ? &call->in[0]
                         : call->op == CYX_OP_conv2d_grad_input ? &call->out
                                                                : &call->in[1];
    const cyx_array *w = call->op == CYX_OP_conv2d_grad_weight ? &call->out : &call->in[1];
    const cyx_array *y = call->op == CYX_OP_conv2d ? &call->out : &call->in[0];
    const int64_t *i = call->ints;
    int64_t groups = i[6];
    if (x->ndim != 4 || w->ndim != 4 || y->ndim != 4) return bad_inputs(call, "four dimensions each");
    if (!between(i, 2, 1, INT32_MAX) || !between(i + 2, 2, 0, INT32_MAX) ||
        !between(i + 4, 2, 1, INT32_MAX) || groups < 1)
        return bad_attribute(call, "stride and dilation from 1, padding from 0, groups from 1");
    if (call->op != CYX_OP_conv2d) {
        const cyx_array *named = call->op == CYX_OP_conv2d_grad_input ? x : w;
        if (i[7] != 4 || memcmp(i + 8, named->shape, 4 * sizeof(int64_t)))
            return bad_attribute(call, "the shape attribute to be the output's");
    }
    if (x->shape[1] % groups || x->shape[1] / groups != w->shape[1] || w->shape[0] % groups)
        return bad_inputs(call, "x (N, C, H, W) and w (O, C / groups, KH, KW) with O a multiple of groups");
    if (!between(w->shape + 2, 2, 1, INT32_MAX) || !between(x->shape + 2, 2, 0, INT32_MAX))
        return bad_inputs(call, "a kernel of at least 1 x 1");
    if (y->shape[0] != x->shape[0] || y->shape[1] != w->shape[0] ||
        y->shape[2] != window_count(x->shape[2], w->shape[2], i[0], i[2], i[4]) ||
        y->shape[3] != window_count(x->shape[3], w->shape[3], i[1], i[3], i[5]))
        return bad_inputs(call, "a result of shape (N, O, OH, OW) that these windows give");
    double canvas = 4.0 * (double)(x->shape[2] + i[2]) * (double)(x->shape[3] + i[3]) *
                    (double)(w->shape[0] + x->shape[1]);
    if (canvas > 1e12) return bad_attribute(call, "an image and padding that fit in memory");
    call->work = 2.0 * (double)y->size * (double)(w->shape[1] * w->shape[2] * w->shape[3]) / 8.0;
    return CYX_OK;
}

/* ints: kernel (2), stride (2), padding (2); then input_shape, counted, for avg_pool2d_grad */
static cyx_status check_pool2d(cyx_call *call) {
    int forward = call->op == CYX_OP_max_pool2d || call->op == CYX_OP_avg_pool2d;
    const cyx_array *x = forward                              ? &call->in[0]
                         : call->op == CYX_OP_max_pool2d_grad ? &call->in[1]
                                                              : &call->out;
    const cyx_array *y = forward ? &call->out : &call->in[0];
    const int64_t *i = call->ints;
    if (x->ndim != 4 || y->ndim != 4) return bad_inputs(call, "four dimensions each");
    if (!between(i, 4, 1, INT32_MAX) || i[4] < 0 || i[5] < 0 || i[4] > i[0] / 2 || i[5] > i[1] / 2)
        return bad_attribute(call, "kernel and stride from 1, padding from 0 to half the kernel");
    if (call->op == CYX_OP_avg_pool2d_grad && (i[6] != 4 || memcmp(i + 7, x->shape, 4 * sizeof(int64_t))))
        return bad_attribute(call, "input_shape to be the output's");
    if (call->op == CYX_OP_max_pool2d_grad && !same_shape(x, &call->out)) return bad_out(call, x);
    if (y->shape[0] != x->shape[0] || y->shape[1] != x->shape[1] ||
        y->shape[2] != window_count(x->shape[2], i[0], i[2], i[4], 1) ||
        y->shape[3] != window_count(x->shape[3], i[1], i[3], i[5], 1))
        return bad_inputs(call, "a result of shape (N, C, OH, OW) that these windows give");
    return CYX_OK;
}

static cyx_status check_softmax(cyx_call *call) {
    if (call->ints[0] < 0 || call->ints[0] >= call->in[0].ndim)
        return bad_attribute(call, "an axis within the dimensions");
    call->work *= 12;
    return check_same(call);
}

static cyx_status check_loss(cyx_call *call) {
    int gradient = call->op == CYX_OP_cross_entropy_grad;
    const cyx_array *logits = &call->in[gradient], *labels = &call->in[1 + gradient];
    const cyx_array *rows = gradient ? &call->in[0] : &call->out;
    int fits = logits->ndim >= 2 && labels->ndim == logits->ndim - 1 && labels->shape[0] == logits->shape[0];
    for (int d = 1; fits && d < labels->ndim; d++) fits = labels->shape[d] == logits->shape[d + 1];
    if (!fits || !same_shape(rows, labels) || (gradient && !same_shape(&call->out, logits)))
        return bad_inputs(call, "logits (N, C, ...), labels (N, ...) and one loss per label");
    call->work = 12.0 * (double)logits->size;
    return CYX_OK;
}

/* ints: blank, zero_infinity */
static cyx_status check_ctc(cyx_call *call) {
    int gradient = call->op == CYX_OP_ctc_loss_grad;
    const cyx_array *in = call->in + gradient, *log_probs = &in[0], *rows = gradient ? &call->in[0] : &call->out;
    int fits = log_probs->ndim == 3 && in[1].ndim == 2 && rows->ndim == 1 && in[1].shape[0] == rows->shape[0];
    if (!fits || log_probs->shape[1] != rows->shape[0] || !same_shape(&in[2], rows) || !same_shape(&in[3], rows) ||
        (gradient && !same_shape(&call->out, log_probs)))
        return bad_inputs(call, "log_probs (T, N, C), targets (N, S), and of each row two lengths and one loss");
    if (call->ints[0] < 0 || call->ints[0] >= log_probs->shape[2]) return bad_attribute(call, "a blank within the classes");
    call->work = 60.0 * (double)log_probs->shape[0] * (double)(in[1].size + rows->size) + (double)log_probs->size;
    return CYX_OK;
}

/* ints: count, shape..., stream */
static cyx_status check_uniform(cyx_call *call) {
    if (call->in[0].ndim != 1 || call->in[0].shape[0] != 2) return bad_inputs(call, "a key of shape (2,)");
    if (call->out.size > (int64_t)4 * UINT32_MAX) return bad_inputs(call, "at most 2**34 numbers");
    if (call->ints[1 + call->ints[0]] < 0 || call->ints[1 + call->ints[0]] > UINT32_MAX)
        return bad_attribute(call, "a stream from 0 to 2**32 - 1");
    return want_shape(call, (int)call->ints[0], call->ints + 1);
}

typedef cyx_status (*rule)(cyx_call *call);

static rule rule_of(int op) {
    if (op <= CYX_OP_cos || op == CYX_OP_cast) return check_same;
    if (op <= CYX_OP_where) return check_broadcast;
    if (op <= CYX_OP_any) return check_reduce;
    if (op >= CYX_OP_sgd_update) return check_update;
    switch (op) {
    case CYX_OP_argmax: return check_argmax;
    case CYX_OP_cumulative_sum:
    case CYX_OP_cumulative_prod:
    case CYX_OP_cumulative_argmax:
    case CYX_OP_cumulative_argmin: return check_cumulative;
    case CYX_OP_recurrence: return check_recurrence;
    case CYX_OP_matmul: return check_matmul;
    case CYX_OP_reshape: return check_reshape;
    case CYX_OP_transpose: return check_transpose;
    case CYX_OP_broadcast_to: return check_broadcast_to;
    case CYX_OP_slice: return check_slice;
    case CYX_OP_pad: return check_pad;
    case CYX_OP_concat: return check_concat;
    case CYX_OP_take: return check_take;
    case CYX_OP_take_grad: return check_take_grad;
    case CYX_OP_take_along: return check_take_along;
    case CYX_OP_take_along_grad: return check_take_along_grad;
    case CYX_OP_scatter: return check_scatter;
    case CYX_OP_one_hot: return check_one_hot;
    case CYX_OP_conv2d:
    case CYX_OP_conv2d_grad_input:
    case CYX_OP_conv2d_grad_weight: return check_conv2d;
    case CYX_OP_softmax:
    case CYX_OP_log_softmax:
    case CYX_OP_softmax_grad:
    case CYX_OP_log_softmax_grad: return check_softmax;
    case CYX_OP_softplus_grad:
    case CYX_OP_gelu_grad:
    case CYX_OP_hardtanh_grad:
    case CYX_OP_hardsigmoid_grad:
    case CYX_OP_hardswish_grad:
    case CYX_OP_softshrink_grad:
    case CYX_OP_leaky_relu_grad:
    case CYX_OP_huber_grad:
    case CYX_OP_clip_grad: return check_broadcast;
    case CYX_OP_cross_entropy:
    case CYX_OP_cross_entropy_grad: return check_loss;
    case CYX_OP_ctc_loss:
    case CYX_OP_ctc_loss_grad: return check_ctc;
    case CYX_OP_uniform: return check_uniform;
    default: return check_pool2d;
    }
}

/* Which input gives the type an operation computes in, and the type every other input must have: the same,
 * unless said. */
int cyx_compute_dtype(int op, const int *dtypes, int count) {
    int main_input = op == CYX_OP_where ? 1 : 0, dtype = dtypes[main_input];
    for (int i = 0; i < count; i++) {
        int expected = dtype;
        if (op == CYX_OP_where && i == 0) expected = CYX_BOOL;
        if ((op == CYX_OP_take || op == CYX_OP_take_grad || op == CYX_OP_take_along ||
             op == CYX_OP_take_along_grad || op == CYX_OP_scatter || op == CYX_OP_cross_entropy) &&
            i == 1)
            expected = CYX_I64;
        if (op == CYX_OP_cross_entropy_grad && i == 2) expected = CYX_I64;
        if ((op == CYX_OP_ctc_loss && i > 0) || (op == CYX_OP_ctc_loss_grad && i > 1)) expected = CYX_I64;
        if (op == CYX_OP_adam_update && i == 4 && dtypes[i] == CYX_F32)
            expected = CYX_F32; /* step, else the type of all */
        if (dtypes[i] != expected) return -1;
    }
    return dtype;
}

static int output_dtype_fits(const cyx_call *call) {
    int out = call->out.dtype, in = call->dtype;
    if (call->op >= CYX_OP_equal && call->op <= CYX_OP_logical_or) return out == CYX_BOOL;
    if (call->op == CYX_OP_logical_not) return out == CYX_BOOL;
    if (call->op == CYX_OP_cast) return out <= CYX_U8;
    if (call->op == CYX_OP_argmax || call->op == CYX_OP_cumulative_argmax || call->op == CYX_OP_cumulative_argmin)
        return out == CYX_I64;
    if (call->op == CYX_OP_one_hot || call->op == CYX_OP_uniform) return out == CYX_F32;
    if (call->op == CYX_OP_sum && in > CYX_F64) return out == CYX_I64 || out == CYX_I32 || out == in;
    return out == in;
}

/* Operations per element beyond moving it, for those that do much more. */
static double cost_of(int op) {
    switch (op) {
    case CYX_OP_exp:
    case CYX_OP_log:
    case CYX_OP_tanh:
    case CYX_OP_sigmoid:
    case CYX_OP_erf:
    case CYX_OP_gelu:
    case CYX_OP_gelu_grad:
    case CYX_OP_div:
    case CYX_OP_sqrt:
    case CYX_OP_adam_update: return 6;
    case CYX_OP_sin:
    case CYX_OP_cos:
    case CYX_OP_log1p:
    case CYX_OP_erfc:
    case CYX_OP_ndtr:
    case CYX_OP_atan2:
    case CYX_OP_uniform: return 20;
    case CYX_OP_softplus:
    case CYX_OP_softplus_grad:
    case CYX_OP_logaddexp: return 12;
    case CYX_OP_lgamma:
    case CYX_OP_digamma:
    case CYX_OP_trigamma:
    case CYX_OP_erfinv: return 30;
    case CYX_OP_pow: return 80;
    default: return 1;
    }
}

cyx_status cyx_prepare(cyx_call *call, cyx_message *message) {
    const char *name = cyx_op_names[call->op];
    int dtypes[CYX_INLINE_INPUTS] = {0};
    cyx_status status = CYX_OK;
    for (int i = 0; i < call->in_count && i < CYX_INLINE_INPUTS; i++) dtypes[i] = call->in[i].dtype;
    for (int i = CYX_INLINE_INPUTS; i < call->in_count; i++)
        if (call->in[i].dtype != dtypes[0])
            status = cyx_fail(CYX_BAD_DTYPE, "%s: expected inputs of one type", name);
    call->dtype = cyx_compute_dtype(call->op, dtypes,
                                    call->in_count < CYX_INLINE_INPUTS ? call->in_count : CYX_INLINE_INPUTS);
    if (status == CYX_OK && (call->dtype < 0 || !cyx_has_kernel(call->op, call->dtype)))
        status = cyx_fail(CYX_NO_KERNEL, "%s: the cpu has no kernel for inputs of type %s, %s, %s", name,
                          cyx_dtype_names[dtypes[0]], call->in_count > 1 ? cyx_dtype_names[dtypes[1]] : "-",
                          call->in_count > 2 ? cyx_dtype_names[dtypes[2]] : "-");
    if (status == CYX_OK && !output_dtype_fits(call))
        status = cyx_fail(CYX_BAD_DTYPE, "%s: inputs of type %s cannot give an output of type %s", name,
                          cyx_dtype_names[dtypes[0]], cyx_dtype_names[call->out.dtype]);
    call->work =
        (double)(call->in[0].size > call->out.size ? call->in[0].size : call->out.size) * cost_of(call->op);
    if (status == CYX_OK) status = rule_of(call->op)(call);
    if (status != CYX_OK) *message = cyx_last_failure;
    return status;
}
