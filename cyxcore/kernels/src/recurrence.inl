/* A recurrent layer over a whole sequence, there and back: RNN, LSTM, GRU, behind the product of all inputs. Each number goes
 * through the operations of cyxcore/functional/recurrent.py and of their gradients, in their order: the bits are those of the
 * operations one by one.
 *
 * Weights are packed once for all steps. Rows do not depend on each other: threads take rows, each through all steps, or, where
 * there are few, hidden units, and meet at every step. The gradient of the recurrent weight is a sum of a product for each step,
 * the last step first; blocks of it stay in the nearest cache while all steps are added. */

#ifndef RECURRENCE_ONCE
#define RECURRENCE_ONCE
enum {
    ROWS_OF_A_THREAD = 4,     /* fewer, and threads share the hidden units */
    LEAST_OF_A_STEP = 60000,  /* multiply-adds of a thread at each step, where they meet at each */
    LEAST_OF_ROWS = 200000,   /* the same of all steps, where they meet once */
    PANELS_ABREAST = 4,       /* by which one row is multiplied at once */
    SUMMED_ROWS = 256,        /* of the gradients of the gates that are packed at once, */
    SUMMED_COLUMNS = 96       /* and columns of them */
};
#endif

/* One task: some rows, and some hidden units with all of their gates. */
typedef struct {
    int64_t r0, r1, u0, u1;
    const T *panels;
    T *product; /* (rows, gates * units), row by row */
    T *spare;   /* of one row */
    T *whole;   /* where states are projected: before that, or the gradients of these; (rows, H) */
    T *small;   /* and behind it: (rows, P) */
} NAME(portion);

typedef struct {
    const cyx_recurrence *one;
    int64_t gates, row_parts, unit_parts, units; /* units: of a part */
    int64_t step, last;                          /* the steps that are made, in their order */
    T *panels, *projection;
    T *of_hidden, *of_cell; /* on the way back: what goes into the gradients of the state before a step, but for its product: (N, H) */
    T *of_products;         /* the gradients of the state's part of the gates, of two steps, or in a GRU of all: (.., N, G H) */
    int of_projection; /* whether the gradient is made that is the projection's */
    _Atomic int no_memory;
} NAME(layer);

static inline __attribute__((always_inline)) void NAME(sigmoids)(T *x, int64_t n) {
#if defined(SIGMOID_F32_ROW)
    SIGMOID_F32_ROW(x, x, 0, n);
#else
    INDEPENDENT for (int64_t i = 0; i < n; i++) x[i] = NAME(sigmoid)(x[i]);
#endif
}

static inline __attribute__((always_inline)) void NAME(tanhs)(T *to, const T *x, int64_t n) {
#if defined(TANH_F32_ROW)
    TANH_F32_ROW(to, x, 0, n);
#else
    INDEPENDENT for (int64_t i = 0; i < n; i++) to[i] = NAME(tanh)(x[i]);
#endif
}

/* How many elements the panels of a factor of k terms and so many columns take. */
static inline int64_t NAME(panels_size)(int64_t k, int64_t columns) { return (columns + NR - 1) / NR * (k * NR + APART); }

static void NAME(pack_panels)(const T *b, int64_t b_row, int transposed, T *to, int64_t k, int64_t columns) {
    for (int64_t column = 0; column < columns; column += NR, to += k * NR + APART)
        NAME(pack_panel)(b + column * (transposed ? b_row : 1), b_row, transposed, to, k, columns - column < NR ? columns - column : NR);
}

/* One row by up to so many panels side by side: one panel alone has too few sums to keep the processor busy. */
static inline __attribute__((always_inline)) void NAME(row_by_panels)(const int count, const T *a, const T *panels, int64_t k,
                                                                      T *c, int64_t columns) {
    V sum[PANELS_ABREAST][NV];
    int64_t panel = k * NR + APART;
    for (int p = 0; p < count; p++) _Pragma("GCC unroll 4") for (int w = 0; w < NV; w++) sum[p][w] = (V){0};
    for (int64_t i = 0; i < k; i++, panels += NR) {
        V one = SPLAT(a[i]);
        _Pragma("GCC unroll 4") for (int p = 0; p < count; p++) _Pragma("GCC unroll 4") for (int w = 0; w < NV; w++)
            sum[p][w] = FMA_V(one, *(const V *)(panels + p * panel + w * VN), sum[p][w]);
    }
    _Pragma("GCC unroll 4") for (int p = 0; p < count; p++) _Pragma("GCC unroll 4") for (int w = 0; w < NV; w++)
        NAME(put_part)(c + p * NR + w * VN, sum[p][w], columns - p * NR - w * VN);
}

/* c (rows, columns) = a (rows, k) times packed panels. */
static void NAME(rows_by_panels)(const T *a, int64_t rows, const T *panels, int64_t k, T *c, int64_t c_row, int64_t columns) {
    int64_t panel = k * NR + APART, column = 0;
    if (rows == 1) {
        for (; column + PANELS_ABREAST * NR <= columns; column += PANELS_ABREAST * NR, panels += PANELS_ABREAST * panel)
            NAME(row_by_panels)(PANELS_ABREAST, a, panels, k, c + column, columns - column);
        for (; column < columns; column += NR, panels += panel)
            NAME(row_by_panels)(1, a, panels, k, c + column, columns - column);
        return;
    }
    int64_t heights = (rows + MR - 1) / MR, height = (rows + heights - 1) / heights;
    for (; column < columns; column += NR, panels += panel)
        for (int64_t r = 0; r < rows; r += height)
            NAME(run_block)(NAME(rows_kernels), rows - r < height ? rows - r : height, columns - column < NR ? columns - column : NR,
                            a + r * k, k, panels, NR, c + r * c_row + column, c_row, k, 0, NO_ENDING);
}

/* The sum, or x where there is nothing yet: adding zeros would cost zeros their sign. */
static inline __attribute__((always_inline)) V NAME(joined)(int is_there, V so_far, V x) {
    if (is_there) return so_far + x;
    return x;
}

/* What a row of gates, and its state, become. gates: the inputs' part; product: that of the state before. */
static void NAME(gates_there)(const NAME(layer) * layer, const NAME(portion) * p, int64_t r, int64_t s) {
    const cyx_recurrence *one = layer->one;
    int64_t h = one->size, t = one->reverse ? one->steps - 1 - s : s, u0 = p->u0, n = p->u1 - p->u0, state = one->rows * h;
    int64_t before = one->kept ? s : s % 2, after = one->kept ? s + 1 : (s + 1) % 2, at = r * h + u0;
    T *x = (T *)one->gates + (r * one->steps + t) * layer->gates * h + u0;
    const T *product = p->product + (r - p->r0) * layer->gates * n, *bias = one->bias ? (const T *)one->bias + u0 : NULL;
    const T *input_bias = one->input_bias ? (const T *)one->input_bias + u0 : NULL;
    const T *old = (const T *)one->hidden + before * state + at; /* of who projects, nothing */
    T *hidden = one->projection ? p->whole + (r - p->r0) * h : (T *)one->hidden + after * state + at;
    int is_gru = one->kind == CYX_GRU, inside = !one->lengths || one->lengths[r] > t;
    int64_t ahead = one->steps * layer->gates * h; /* to the next row, which is fetched: it lies too far on to be foreseen */
    for (int64_t g = 0; g < layer->gates - is_gru; g++)
        for (int64_t i = 0; i < n; i += VN) {
            V sum = NAME(part)(product + g * n + i, n - i, 0), of_x = NAME(part)(x + g * h + i, n - i, 0);
            __builtin_prefetch(CYX_BEYOND(x, ahead + g * h + i), 1, 2);
            if (input_bias) of_x += NAME(part)(input_bias + g * h + i, n - i, 0);
            if (bias) sum += NAME(part)(bias + g * h + i, n - i, 0);
            NAME(put_part)(x + g * h + i, of_x + sum, n - i);
        }
    switch (one->kind) {
    case CYX_LSTM: {
        const T *cell = (const T *)one->cells + before * state + at;
        T *next = (T *)one->cells + after * state + at;
        if (n == h) NAME(sigmoids)(x, 2 * h);
        else NAME(sigmoids)(x, n), NAME(sigmoids)(x + h, n);
        NAME(tanhs)(x + 2 * h, x + 2 * h, n), NAME(sigmoids)(x + 3 * h, n);
        for (int64_t i = 0; i < n; i += VN)
            NAME(put_part)(next + i, NAME(part)(x + h + i, n - i, 0) * NAME(part)(cell + i, n - i, 0) +
                                         NAME(part)(x + i, n - i, 0) * NAME(part)(x + 2 * h + i, n - i, 0), n - i);
        NAME(tanhs)(p->spare, next, n);
        for (int64_t i = 0; i < n; i += VN)
            NAME(put_part)(hidden + i, NAME(part)(x + 3 * h + i, n - i, 0) * NAME(part)(p->spare + i, n - i, 0), n - i);
        if (!inside) NAME(copy)(next, cell, n);
        break;
    }
    case CYX_GRU: {
        T *candidate = one->kept ? (T *)one->cells + s * state + at : p->spare; /* its product, which the way back reads */
        if (n == h) NAME(sigmoids)(x, 2 * h);
        else NAME(sigmoids)(x, n), NAME(sigmoids)(x + h, n);
        for (int64_t i = 0; i < n; i += VN) {
            V sum = NAME(part)(product + 2 * n + i, n - i, 0), of_x = NAME(part)(x + 2 * h + i, n - i, 0);
            if (input_bias) of_x += NAME(part)(input_bias + 2 * h + i, n - i, 0);
            if (bias) sum += NAME(part)(bias + 2 * h + i, n - i, 0);
            NAME(put_part)(candidate + i, sum, n - i);
            NAME(put_part)(x + 2 * h + i, of_x + NAME(part)(x + i, n - i, 0) * sum, n - i);
        }
        NAME(tanhs)(x + 2 * h, x + 2 * h, n);
        for (int64_t i = 0; i < n; i += VN) {
            V z = NAME(part)(x + h + i, n - i, 0);
            V made = (SPLAT((T)1) - z) * NAME(part)(x + 2 * h + i, n - i, 0) + z * NAME(part)(old + i, n - i, 0);
            NAME(put_part)(hidden + i, made, n - i);
        }
        break;
    }
    case CYX_RNN_TANH:
        NAME(tanhs)(x, x, n);
        NAME(copy)(hidden, x, n);
        break;
    default:
        for (int64_t i = 0; i < n; i += VN) {
            V sum = NAME(part)(x + i, n - i, 0), made = SELECT(sum < (V){0}, (V){0}, sum);
            NAME(put_part)(x + i, made, n - i), NAME(put_part)(hidden + i, made, n - i);
        }
    }
}

/* The state behind a step, of which `made` was made, and the result. */
static void NAME(state_there)(const NAME(layer) * layer, const NAME(portion) * p, int64_t r, int64_t s, const T *made) {
    const cyx_recurrence *one = layer->one;
    int64_t t = one->reverse ? one->steps - 1 - s : s, width = one->state, n = one->projection ? width : p->u1 - p->u0;
    int64_t before = one->kept ? s : s % 2, after = one->kept ? s + 1 : (s + 1) % 2, at = r * width + p->u0;
    const T *old = (const T *)one->hidden + before * one->rows * width + at;
    T *hidden = (T *)one->hidden + after * one->rows * width + at, *out = (T *)one->out + (r * one->steps + t) * width + p->u0;
    int inside = !one->lengths || one->lengths[r] > t;
    if (!inside || made) NAME(copy)(hidden, inside ? made : old, n);
    for (int64_t i = 0; i < n; i += VN) NAME(put_part)(out + i, inside ? NAME(part)(hidden + i, n - i, 0) : (V){0}, n - i);
}

/* Where the gradients of the state's part of the gates of a step lie. */
static inline T *NAME(of_product)(const NAME(layer) * layer, int64_t s) {
    int64_t slot = layer->one->kind == CYX_GRU ? s : s % 2;
    return layer->of_products + slot * layer->one->rows * layer->gates * layer->one->size;
}

/* Whether something but its product goes into the gradient of the hidden state before step s. */
static inline int NAME(has_more)(const cyx_recurrence *one, int64_t s) {
    if (one->kind == CYX_GRU || (s == 0 && one->before_hidden)) return 1;
    return one->lengths && (s < one->steps - 1 || one->g_hidden);
}

/* What comes to the gradient of a row's hidden state behind a step. */
typedef struct {
    const T *out, *last, *before, *behind, *product; /* the result's, of the last state, what there is of the first; or NULL */
    int lengths, inside;
} NAME(arrival);

/* Its gradient, and what goes on to the state before but the product: of which there is something where *goes_on is set. What comes
 * to one number is added in the order of the operations, the last first. */
static inline __attribute__((always_inline)) V NAME(arrive)(const NAME(arrival) * from, int64_t i, int64_t left, V *more, int *goes_on) {
    const V nothing = {0};
    V g = nothing, of_state = nothing; /* of_state: the gradient of the state behind the step */
    *more = nothing, *goes_on = from->before != NULL;
    if (from->out) g = NAME(part)(from->out + i, left, 0);
    if (from->before) *more = NAME(part)(from->before + i, left, 0);
    if (from->lengths) {
        int has_state = from->last || from->product;
        if (from->last) of_state = NAME(part)(from->last + i, left, 0);
        if (from->behind) of_state = NAME(part)(from->behind + i, left, 0);
        if (from->product) of_state = NAME(joined)(from->behind != NULL, of_state, NAME(part)(from->product + i, left, 0));
        if (has_state) *more = NAME(joined)(*goes_on, *more, from->inside ? nothing : of_state), *goes_on = 1;
        if (!from->inside) g = nothing;
        if (has_state) g = NAME(joined)(from->out != NULL, g, from->inside ? of_state : nothing);
        return g;
    }
    if (from->last) g = NAME(joined)(from->out != NULL, g, NAME(part)(from->last + i, left, 0));
    if (from->behind) g = NAME(joined)(from->out != NULL, g, NAME(part)(from->behind + i, left, 0));
    if (from->product) g = NAME(joined)(from->out || from->behind, g, NAME(part)(from->product + i, left, 0));
    return g;
}

/* Whether a hidden state's gradient has anything at a step: of the last one the cell's may be all there is. */
static inline int NAME(has_gradient)(const cyx_recurrence *one, int64_t s) { return one->g_out || one->g_hidden || s < one->steps - 1; }

static NAME(arrival) NAME(arrival_of)(const NAME(layer) * layer, const NAME(portion) * p, int64_t r, int64_t s) {
    const cyx_recurrence *one = layer->one;
    int64_t t = one->reverse ? one->steps - 1 - s : s, width = one->state, at = r * width + p->u0;
    int64_t n = one->projection ? width : p->u1 - p->u0;
    int is_last = s == one->steps - 1;
    return (NAME(arrival)){
        .out = one->g_out ? (const T *)one->g_out + (r * one->steps + t) * width + p->u0 : NULL,
        .last = is_last && one->g_hidden ? (const T *)one->g_hidden + at : NULL,
        .before = s == 0 && one->before_hidden ? (const T *)one->before_hidden + at : NULL,
        .behind = !is_last && NAME(has_more)(one, s + 1) ? layer->of_hidden + at : NULL,
        .product = is_last ? NULL : p->product + (r - p->r0) * n,
        .lengths = one->lengths != NULL,
        .inside = !one->lengths || one->lengths[r] > t,
    };
}

/* The gradient of a row's projected state, which is kept for that of the projection. */
static void NAME(state_back)(const NAME(layer) * layer, const NAME(portion) * p, int64_t r, int64_t s) {
    const cyx_recurrence *one = layer->one;
    NAME(arrival) from = NAME(arrival_of)(layer, p, r, s);
    T *to = (T *)one->of_states + (s * one->rows + r) * one->state;
    for (int64_t i = 0; i < one->state; i += VN) {
        V more;
        int goes_on;
        NAME(put_part)(to + i, NAME(arrive)(&from, i, one->state - i, &more, &goes_on), one->state - i);
        if (goes_on) NAME(put_part)(layer->of_hidden + r * one->state + i, more, one->state - i);
    }
}

/* The gradients of a row of gates at a step, of those of the results and of the step behind it, whose product is there. */
static void NAME(gates_back)(const NAME(layer) * layer, const NAME(portion) * p, int64_t r, int64_t s) {
    const cyx_recurrence *one = layer->one;
    int64_t h = one->size, t = one->reverse ? one->steps - 1 - s : s, n = p->u1 - p->u0, state = one->rows * h, at = r * h + p->u0;
    int64_t row = r * one->steps + t;
    int is_last = s == one->steps - 1, is_gru = one->kind == CYX_GRU, inside = !one->lengths || one->lengths[r] > t;
    const T *x = (const T *)one->gates + row * layer->gates * h + p->u0;
    const T *whole = one->projection ? p->whole + (r - p->r0) * h : NULL;
    const T *hidden = (const T *)one->hidden + s * state + at, *cells = one->cells ? (const T *)one->cells + s * state + at : NULL;
    T *of_x = (T *)one->of_x + row * layer->gates * h + p->u0, *of_product = NAME(of_product)(layer, s) + r * layer->gates * h + p->u0;
    T *of_hidden = layer->of_hidden + at, *of_cell = layer->of_cell + at;
    const T *g_cell = one->kind != CYX_LSTM ? NULL : !is_last ? of_cell : one->g_cell ? (const T *)one->g_cell + at : NULL;
    const T *before_cell = s == 0 && one->before_cell ? (const T *)one->before_cell + at : NULL;
    NAME(arrival) from = NAME(arrival_of)(layer, p, r, s);
    int has_g = NAME(has_gradient)(one, s);
    if (one->kind == CYX_LSTM && inside) NAME(tanhs)(p->spare, cells + state, n);
    else if (one->kind == CYX_LSTM) { /* the next cell is not what the gates made */
        for (int64_t i = 0; i < n; i += VN)
            NAME(put_part)(p->spare + i, NAME(part)(x + h + i, n - i, 0) * NAME(part)(cells + i, n - i, 0) +
                                             NAME(part)(x + i, n - i, 0) * NAME(part)(x + 2 * h + i, n - i, 0), n - i);
        NAME(tanhs)(p->spare, p->spare, n);
    }
    const V unit = SPLAT((T)1), nothing = {0};
    int64_t ahead = one->steps * layer->gates * h; /* as on the way there */
    for (int64_t i = 0; i < n; i += VN) {
        int64_t left = n - i;
        V more = nothing, back[4];
        int has_more = 0;
        for (int64_t k = 0; k < layer->gates; k++) {
            __builtin_prefetch(CYX_BEYOND(x, ahead + k * h + i), 0, 2);
            __builtin_prefetch(CYX_BEYOND(of_x, ahead + k * h + i), 1, 2);
        }
        if (from.out) __builtin_prefetch(CYX_BEYOND(from.out, one->steps * one->state + i), 0, 2);
        V g = whole ? NAME(part)(whole + i, left, 0) : NAME(arrive)(&from, i, left, &more, &has_more);
        switch (one->kind) {
        case CYX_LSTM: {
            V input = NAME(part)(x + i, left, 0), forget = NAME(part)(x + h + i, left, 0), new = NAME(part)(x + 2 * h + i, left, 0);
            V output = NAME(part)(x + 3 * h + i, left, 0), squashed = NAME(part)(p->spare + i, left, 0);
            V cell = nothing, given = g_cell ? NAME(part)(g_cell + i, left, 0) : nothing, also = nothing;
            if (has_g) cell = g * output * (unit - squashed * squashed);
            if (g_cell) cell = NAME(joined)(has_g, cell, inside ? given : nothing);
            back[0] = cell * new * (input * (unit - input));
            back[1] = cell * NAME(part)(cells + i, left, 0) * (forget * (unit - forget));
            back[2] = cell * input * (unit - new * new);
            back[3] = g * squashed * (output * (unit - output));
            if (!has_g) { /* three of four pieces are padded and added */
                for (int k = 0; k < 3; k++) back[k] = back[k] + nothing;
                back[3] = nothing;
            }
            if (before_cell) also = NAME(part)(before_cell + i, left, 0);
            if (one->lengths && g_cell) also = NAME(joined)(before_cell != NULL, also, inside ? nothing : given);
            NAME(put_part)(of_cell + i, NAME(joined)(before_cell || (one->lengths && g_cell), also, cell * forget), left);
            break;
        }
        case CYX_GRU: {
            V reset = NAME(part)(x + i, left, 0), z = NAME(part)(x + h + i, left, 0), new = NAME(part)(x + 2 * h + i, left, 0);
            V of_new = g * (unit - z) * (unit - new * new);
            back[0] = of_new * NAME(part)(cells + i, left, 0) * (reset * (unit - reset));
            back[1] = (g * NAME(part)(hidden + i, left, 0) - g * new) * (z * (unit - z));
            back[2] = of_new;
            NAME(put_part)(of_product + 2 * h + i, of_new * reset, left);
            more = NAME(joined)(has_more, more, g * z);
            break;
        }
        case CYX_RNN_TANH: {
            V made = NAME(part)(x + i, left, 0);
            back[0] = g * (unit - made * made);
            break;
        }
        default: back[0] = g * SELECT(NAME(part)(x + i, left, 0) > nothing, unit, nothing);
        }
        if (has_more || is_gru) NAME(put_part)(of_hidden + i, more, left);
        for (int64_t k = 0; k < layer->gates; k++) {
            NAME(put_part)(of_x + k * h + i, back[k], left);
            if (k < 2 || !is_gru) NAME(put_part)(of_product + k * h + i, back[k], left);
        }
    }
}

static void NAME(portion_of)(const NAME(layer) * layer, int64_t task, NAME(portion) * p) {
    const cyx_recurrence *one = layer->one;
    int64_t rows = (one->rows + layer->row_parts - 1) / layer->row_parts, part = task / layer->row_parts;
    p->r0 = task % layer->row_parts * rows, p->r1 = p->r0 + rows < one->rows ? p->r0 + rows : one->rows;
    p->u0 = part * layer->units, p->u1 = p->u0 + layer->units < one->size ? p->u0 + layer->units : one->size;
}

/* Where the panels of a part of the hidden units begin: on the way there those of each gate one behind the other, but where
 * there is one part only. */
static int64_t NAME(panels_of_part)(const NAME(layer) * layer) {
    int64_t h = layer->one->size, state = layer->one->state;
    if (layer->one->of_x) return NAME(panels_size)(layer->gates * h, layer->one->projection ? state : layer->units);
    return layer->unit_parts == 1 ? NAME(panels_size)(state, layer->gates * h) : layer->gates * NAME(panels_size)(h, layer->units);
}

static void NAME(pack_parts)(void *context, int64_t begin, int64_t end) {
    NAME(layer) *layer = context;
    const T *weight = layer->one->weight;
    int64_t h = layer->one->size, state = layer->one->state, gates = layer->gates;
    for (int64_t part = begin; part < end; part++) {
        T *to = layer->panels + part * NAME(panels_of_part)(layer);
        int64_t u0 = part * layer->units, units = u0 + layer->units < h ? layer->units : h - u0;
        if (layer->one->of_x) NAME(pack_panels)(weight + u0, state, 0, to, gates * h, layer->one->projection ? state : units);
        else if (layer->unit_parts == 1) NAME(pack_panels)(weight, state, 1, to, state, gates * h);
        else
            for (int64_t g = 0; g < gates; g++)
                NAME(pack_panels)(weight + (g * h + u0) * h, h, 1, to + g * NAME(panels_size)(h, layer->units), h, units);
    }
}

static void NAME(step_there)(const NAME(layer) * layer, const NAME(portion) * p, int64_t s) {
    const cyx_recurrence *one = layer->one;
    int64_t h = one->size, size = one->state, rows = p->r1 - p->r0, n = p->u1 - p->u0, width = layer->gates * n;
    const T *state = (const T *)one->hidden + (one->kept ? s : s % 2) * one->rows * size + p->r0 * size;
    if (layer->unit_parts == 1) NAME(rows_by_panels)(state, rows, p->panels, size, p->product, width, width);
    else
        for (int64_t g = 0; g < layer->gates; g++)
            NAME(rows_by_panels)(state, rows, p->panels + g * NAME(panels_size)(h, layer->units), h, p->product + g * n, width, n);
    if (!one->projection) {
        for (int64_t r = p->r0; r < p->r1; r++) NAME(gates_there)(layer, p, r, s), NAME(state_there)(layer, p, r, s, NULL);
        return;
    }
    NAME(portion) kept = *p;
    if (one->kept) kept.whole = (T *)one->whole + (s * one->rows + p->r0) * h;
    for (int64_t r = p->r0; r < p->r1; r++) NAME(gates_there)(layer, &kept, r, s);
    NAME(rows_by_panels)(kept.whole, rows, layer->projection, h, p->small, size, size);
    for (int64_t r = p->r0; r < p->r1; r++) NAME(state_there)(layer, p, r, s, p->small + (r - p->r0) * size);
}

/* The gradients of the states to begin with, when the product is there. */
static void NAME(finish_back)(const NAME(layer) * layer, const NAME(portion) * p) {
    const cyx_recurrence *one = layer->one;
    int64_t h = one->size, n = one->projection ? one->state : p->u1 - p->u0;
    for (int64_t r = p->r0; r < p->r1; r++) {
        int64_t at = r * one->state + p->u0;
        const T *product = p->product + (r - p->r0) * n;
        for (int64_t i = 0; one->of_hidden && i < n; i += VN)
            NAME(put_part)((T *)one->of_hidden + at + i,
                           NAME(joined)(NAME(has_more)(one, 0), NAME(part)(layer->of_hidden + at + i, n - i, 0),
                                        NAME(part)(product + i, n - i, 0)), n - i);
        if (one->of_cell) NAME(copy)((T *)one->of_cell + r * h + p->u0, layer->of_cell + r * h + p->u0, p->u1 - p->u0);
    }
}

static void NAME(step_back)(const NAME(layer) * layer, const NAME(portion) * p, int64_t s) {
    const cyx_recurrence *one = layer->one;
    int64_t h = one->size, width = layer->gates * h, rows = p->r1 - p->r0, n = one->projection ? one->state : p->u1 - p->u0;
    if (s < one->steps - 1)
        NAME(rows_by_panels)(NAME(of_product)(layer, s + 1) + p->r0 * width, rows, p->panels, width, p->product, n, n);
    if (s >= 0 && one->projection) {
        for (int64_t r = p->r0; r < p->r1; r++) NAME(state_back)(layer, p, r, s);
        NAME(rows_by_panels)((const T *)one->of_states + (s * one->rows + p->r0) * n, rows, layer->projection, n, p->whole, h, h);
    }
    if (s < 0) NAME(finish_back)(layer, p);
    else
        for (int64_t r = p->r0; r < p->r1; r++) NAME(gates_back)(layer, p, r, s);
}

static void NAME(layer_body)(void *context, int64_t begin, int64_t end) {
    NAME(layer) *layer = context;
    int64_t rows = (layer->one->rows + layer->row_parts - 1) / layer->row_parts;
    int64_t size = (rows * layer->gates + 1) * layer->units + VN, projected = layer->one->projection ? rows * layer->one->size : 0;
    T *memory = cyx_scratch(1, sizeof(T) * (size_t)(size + 2 * projected));
    if (!memory) {
        layer->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        NAME(portion) p = {.panels = layer->panels + task / layer->row_parts * NAME(panels_of_part)(layer), .spare = memory,
                           .product = memory + layer->units, .whole = memory + size, .small = memory + size + projected};
        NAME(portion_of)(layer, task, &p);
        if (layer->one->of_x)
            for (int64_t s = layer->step; s >= layer->last; s--) NAME(step_back)(layer, &p, s);
        else
            for (int64_t s = layer->step; s <= layer->last; s++) NAME(step_there)(layer, &p, s);
    }
}

/* All steps in their order, there or back. */
static cyx_status NAME(all_steps)(NAME(layer) * layer) {
    const cyx_recurrence *one = layer->one;
    int64_t h = one->size, threads = cyx_threads(), back = one->of_x != NULL;
    double work = (double)one->rows * (double)h * (double)(h * layer->gates);
    int64_t most = (int64_t)(work * (double)one->steps / LEAST_OF_ROWS), at_each = (int64_t)(work / LEAST_OF_A_STEP);
    layer->row_parts = layer->unit_parts = 1;
    if (one->rows >= ROWS_OF_A_THREAD * threads && most >= threads) layer->row_parts = threads;
    else if (at_each >= threads && h >= threads * NR && !one->projection) layer->unit_parts = threads;
    layer->units = ((h + layer->unit_parts - 1) / layer->unit_parts + VN - 1) / VN * VN;
    if (layer->unit_parts == 1) layer->units = h;
    layer->unit_parts = (h + layer->units - 1) / layer->units;
    int64_t panels = layer->unit_parts * NAME(panels_of_part)(layer);
    int64_t projected = one->projection ? NAME(panels_size)(back ? one->state : h, back ? h : one->state) : 0;
    int64_t states = back ? one->rows * h : 0, two = one->of_h ? 0 : 2 * layer->gates * states;
    layer->panels = cyx_scratch(0, sizeof(T) * (size_t)(panels + projected + 2 * states + two));
    if (!layer->panels) return CYX_NO_MEMORY;
    layer->projection = layer->panels + panels;
    if (one->projection)
        NAME(pack_panels)(one->projection, h, !back, layer->projection, back ? one->state : h, back ? h : one->state);
    layer->of_hidden = layer->projection + projected, layer->of_cell = layer->of_hidden + states;
    layer->of_products = one->of_h ? one->of_h : layer->of_cell + states;
    cyx_parallel(layer->unit_parts, 1, NAME(pack_parts), layer);
    int64_t first = back ? one->steps - 1 : 0, end = back ? (one->of_hidden || one->of_cell ? -2 : -1) : one->steps;
    if (layer->unit_parts == 1) {
        layer->step = first, layer->last = end + (back ? 1 : -1);
        cyx_parallel(layer->row_parts, 1, NAME(layer_body), layer);
    } else
        for (int64_t s = first; s != end; s += back ? -1 : 1) {
            layer->step = layer->last = s;
            cyx_parallel(layer->unit_parts, 1, NAME(layer_body), layer);
        }
    return layer->no_memory ? CYX_NO_MEMORY : CYX_OK;
}

/* The gradients of the state's part of the gates at a step, or of what was projected, and how far its rows lie apart. */
static inline const T *NAME(summed)(const NAME(layer) * layer, int64_t s, int64_t *apart) {
    const cyx_recurrence *one = layer->one;
    if (layer->of_projection) {
        *apart = one->state;
        return (const T *)one->of_states + s * one->rows * one->state;
    }
    int64_t width = layer->gates * one->size;
    if (one->kind == CYX_GRU) {
        *apart = width;
        return (const T *)one->of_h + s * one->rows * width;
    }
    *apart = one->steps * width;
    return (const T *)one->of_x + (one->reverse ? one->steps - 1 - s : s) * width;
}

/* Half as many rows as a block has: the sum of all steps, and that of one, are in registers. c: where `goes_on` the sum so far. */
static void NAME(summed_block)(const T *a, int64_t a_step, const T *b, int64_t b_row, int64_t b_step, int64_t rows, int64_t count,
                               T *c, int64_t c_row, int goes_on) {
    V all[MR / 2][NV], sum[MR / 2][NV];
#define EACH_SUM                                                                                             \
    _Pragma("GCC unroll 8") for (int r = 0; r < MR / 2; r++) _Pragma("GCC unroll 4") for (int w = 0; w < NV; w++)
    EACH_SUM all[r][w] = goes_on ? *(const V *)(c + r * c_row + w * VN) : (V){0};
    for (int64_t k = 0; k < count; k++, a += a_step, b += b_step) {
        EACH_SUM sum[r][w] = (V){0};
        for (int64_t i = 0; i < rows; i++)
            EACH_SUM sum[r][w] = FMA_V(SPLAT(a[i * MR + r]), *(const V *)(b + i * b_row + w * VN), sum[r][w]);
        if (k || goes_on) EACH_SUM all[r][w] = all[r][w] + sum[r][w];
        else EACH_SUM all[r][w] = sum[r][w];
    }
    EACH_SUM *(V *)(c + r * c_row + w * VN) = all[r][w];
#undef EACH_SUM
}

/* Rows [SUMMED_COLUMNS * begin, SUMMED_COLUMNS * end) of a weight's gradient: for each step the gates' gradients, turned, times
 * the state before it, added in order; of the projection the states' gradients times what was projected. Blocks that are not
 * whole are made elsewhere, of states that are packed. */
static void NAME(weight_body)(void *context, int64_t begin, int64_t end) {
    NAME(layer) *layer = context;
    const cyx_recurrence *one = layer->one;
    int of_projection = layer->of_projection;
    int64_t h = of_projection ? one->size : one->state, rows = one->rows, state = rows * h;
    int64_t width = of_projection ? one->state : layer->gates * one->size;
    int64_t first = one->steps - 1 - (of_projection && !NAME(has_gradient)(one, one->steps - 1));
    const T *so_far = of_projection ? one->before_projection : one->before_weight;
    T *made = of_projection ? one->of_projection : one->of_weight;
    int64_t at_once = SUMMED_ROWS / rows > 1 ? SUMMED_ROWS / rows : 1, of_step = (SUMMED_COLUMNS / MR + 1) * ROWS_PANEL(rows);
    T *packed = cyx_scratch(1, sizeof(T) * (size_t)(at_once * (of_step + rows * NR))), *states = packed + at_once * of_step;
    if (!packed) {
        layer->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        int64_t m0 = task * SUMMED_COLUMNS, m = width - m0 < SUMMED_COLUMNS ? width - m0 : SUMMED_COLUMNS, count, apart;
        for (int64_t last = first; last >= 0; last -= count) {
            int goes_on = last < first || so_far;
            count = last + 1 < at_once ? last + 1 : at_once;
            for (int64_t k = 0; k < count; k++) {
                T *to = packed + k * of_step;
                const T *from = NAME(summed)(layer, last - k, &apart) + m0;
                if (m % MR) memset(to + m / MR * ROWS_PANEL(rows), 0, sizeof(T) * (size_t)ROWS_PANEL(rows));
                NAME(pack_rows)(from, apart, NULL, 0, to, rows, m);
            }
            for (int64_t column = 0; column < h; column += NR) {
                int64_t wide = h - column < NR ? h - column : NR, b_row = wide < NR ? NR : h;
                const T *b = (const T *)(of_projection ? one->whole : one->hidden) + last * state + column;
                for (int64_t k = 0; wide < NR && k < count; k++)
                    NAME(pack_panel)(b - k * state, h, 0, states + k * rows * NR, rows, wide);
                int64_t b_step = wide < NR ? rows * NR : -state;
                if (wide < NR) b = states;
                for (int64_t r = 0; r < m; r += MR / 2) {
                    int64_t at = (m0 + r) * h + column, high = m - r < MR / 2 ? m - r : MR / 2, whole = high == MR / 2 && wide == NR;
                    const T *a = packed + r / MR * ROWS_PANEL(rows) + r % MR;
                    T *c = made + at, own[MR / 2 * NR];
                    const T *before = last < first ? c : goes_on ? so_far + at : NULL;
                    T *to = whole && (!before || before == c) ? c : own;
                    if (to == own) memset(own, 0, sizeof own);
                    for (int64_t i = 0; before && to == own && i < high; i++) NAME(copy)(own + i * NR, before + i * h, wide);
                    NAME(summed_block)(a, of_step, b, b_row, b_step, rows, count, to, to == own ? NR : h, goes_on);
                    for (int64_t i = 0; to == own && i < high; i++) NAME(copy)(c + i * h, own + i * NR, wide);
                }
            }
        }
    }
}

/* Columns [LEAST_TILE * begin, LEAST_TILE * end) of the bias's: sums over the rows of each step, added in order. */
static void NAME(bias_body)(void *context, int64_t begin, int64_t end) {
    NAME(layer) *layer = context;
    const cyx_recurrence *one = layer->one;
    int64_t width = layer->gates * one->size, first = begin * LEAST_TILE, stop = end * LEAST_TILE < width ? end * LEAST_TILE : width;
    T *tree = cyx_scratch(1, sizeof(T) * TILE * (TREE_DEPTH + 1)), *sum = tree + TILE * TREE_DEPTH;
    if (!tree) {
        layer->no_memory = 1;
        return;
    }
    NAME(reduction) r = {.fold = &NAME(fold_sum), .plan = {.reduced_count = 1}};
    for (int64_t column = first; column < stop; column += TILE) {
        int64_t n = stop - column < TILE ? stop - column : TILE;
        T *to = (T *)one->of_bias + column;
        for (int64_t s = one->steps - 1; s >= 0; s--) {
            const T *before = s < one->steps - 1 ? to : one->before_bias ? (const T *)one->before_bias + column : NULL;
            const T *x = NAME(summed)(layer, s, &r.plan.reduced_stride[0]) + column;
            NAME(reduce_tile)(&r, x, 0, one->rows, n, tree, sum);
            for (int64_t i = 0; i < n; i += VN) {
                V made = NAME(part)(sum + i, n - i, 0);
                if (before) made = NAME(part)(before + i, n - i, 0) + made;
                NAME(put_part)(to + i, made, n - i);
            }
        }
    }
}

static cyx_status NAME(recur)(const cyx_recurrence *one) {
    static const int64_t gates[] = {[CYX_RNN_TANH] = 1, [CYX_RNN_RELU] = 1, [CYX_LSTM] = 4, [CYX_GRU] = 3};
    NAME(layer) layer = {.one = one, .gates = gates[one->kind]};
    cyx_status status = NAME(all_steps)(&layer);
    if (status != CYX_OK || !one->of_x) return status;
    int64_t width = layer.gates * one->size, terms = one->rows * one->steps;
    int64_t blocks = (width + SUMMED_COLUMNS - 1) / SUMMED_COLUMNS, tiles = (width + LEAST_TILE - 1) / LEAST_TILE;
    if (one->of_weight)
        cyx_parallel(blocks, cyx_grain(blocks, (double)(SUMMED_COLUMNS * one->state) * (double)terms, LEAST_OF_A_THREAD),
                     NAME(weight_body), &layer);
    if (one->of_bias)
        cyx_parallel(tiles, cyx_grain(tiles, (double)(LEAST_TILE * terms), LEAST_SUMMED), NAME(bias_body), &layer);
    layer.of_projection = 1, blocks = (one->state + SUMMED_COLUMNS - 1) / SUMMED_COLUMNS;
    if (one->of_projection)
        cyx_parallel(blocks, cyx_grain(blocks, (double)(SUMMED_COLUMNS * one->size) * (double)terms, LEAST_OF_A_THREAD),
                     NAME(weight_body), &layer);
    return layer.no_memory ? CYX_NO_MEMORY : CYX_OK;
}
