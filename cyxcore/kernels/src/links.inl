/* Arithmetic and functions of which each takes what the one before it made: see cyx_link. What is made stays in registers,
 * LINKED vectors at a time, where calls of their own would store and load it. */

enum {
    LINKED = MR >= 12 ? 8 : 4, /* with what they meet they fit the registers */
    LINKS_AHEAD = 512,         /* elements */
};

#define ON_ALL(...) _Pragma("GCC unroll 8") for (int i = 0; i < W; i++) __VA_ARGS__

/* Of W vectors, what takes four at once. */
#define IN_FOURS(FUNCTION)                                                                                   \
    _Pragma("GCC unroll 2") for (int first = 0; first < W; first += 4) {                                     \
        const int count = W < 4 ? W : 4;                                                                     \
        __m512 own[4];                                                                                       \
        EACH own[k] = (__m512)made[first + k];                                                               \
        FUNCTION(own, count);                                                                                \
        EACH made[first + k] = (V)own[k];                                                                    \
    }

/* W vectors from element `at` on, of which `left` elements are there; they are of one row, from its element `column` on. */
static inline __attribute__((always_inline)) void make_links(const int W, const float *from, const cyx_link *links,
                                                             int count, int64_t at, int64_t left, int64_t row,
                                                             int64_t column) {
    V made[LINKED];
    ON_ALL(made[i] = W > 1 ? *(const V *)(from + at + i * VN) : NAME(part)(from + at, left, 0));
    if (W > 1) ON_ALL(__builtin_prefetch(from + at + LINKS_AHEAD + i * VN, 0, 3)); /* the other calls of a tile are between */
    for (int k = 0; k < count; k++) {
        const float *other = links[k].other;
        V with[LINKED];
        switch (links[k].form) {
        case CYX_LINK_ROW:
        case CYX_LINK_ARRAY:
            other += links[k].form == CYX_LINK_ROW ? column : at;
            ON_ALL(with[i] = W > 1 ? *(const V *)(other + i * VN) : NAME(part)(other, left, 0));
            break;
        case CYX_LINK_COLUMN:
        case CYX_LINK_NUMBER: {
            V number = SPLAT(other[links[k].form == CYX_LINK_COLUMN ? row : 0]);
            ON_ALL(with[i] = number);
            break;
        }
        default: ON_ALL(with[i] = made[i]);
        }
        switch (links[k].kind) {
        case CYX_LINK_ADD: ON_ALL(made[i] = made[i] + with[i]); break;
        case CYX_LINK_SUB: ON_ALL(made[i] = made[i] - with[i]); break;
        case CYX_LINK_FROM: ON_ALL(made[i] = with[i] - made[i]); break;
        case CYX_LINK_DIV: ON_ALL(made[i] = made[i] / with[i]); break;
        case CYX_LINK_OVER: ON_ALL(made[i] = with[i] / made[i]); break;
        case CYX_LINK_NEG: ON_ALL(made[i] = -made[i]); break;
#if defined(VECTOR_MATH)
        case CYX_LINK_EXP: ON_ALL(made[i] = (V)exp_16((__m512)made[i])); break;
        case CYX_LINK_ERF: ON_ALL(made[i] = (V)erf_16((__m512)made[i])); break;
        case CYX_LINK_TANH: IN_FOURS(tanh_of); break;
        case CYX_LINK_SIGMOID: IN_FOURS(sigmoid_of); break;
#endif
        default: ON_ALL(made[i] = made[i] * with[i]);
        }
        float *out = links[k].out;
        if (out) {
            ON_ALL({
                if (W > 1)
                    *(V *)(out + at + i * VN) = made[i];
                else
                    NAME(put_part)(out + at, made[i], left);
            })
        }
    }
}

static void run_links(const float *from, const cyx_link *links, int count, int64_t n, int64_t run, int64_t column) {
    for (int64_t at = 0, row = 0; at < n; row++, column = 0) {
        int64_t stop = run && run - column < n - at ? at + run - column : n;
        for (; at + LINKED * VN <= stop; at += LINKED * VN, column += LINKED * VN)
            make_links(LINKED, from, links, count, at, LINKED * VN, row, column);
        for (; at < stop; at += VN, column += VN) make_links(1, from, links, count, at, stop - at, row, column);
        at = stop;
    }
}

#define LINKED_CALL(OP, KERNEL)                                                                              \
    static cyx_status OP##_linked(const cyx_call *call) {                                                    \
        cyx_status status = KERNEL(call);                                                                    \
        if (cyx_asked) cyx_asked->links = run_links;                                                         \
        return status;                                                                                       \
    }
LINKED_CALL(add, add_f32)
LINKED_CALL(sub, sub_f32)
LINKED_CALL(mul, mul_f32)
LINKED_CALL(div, div_f32)
LINKED_CALL(neg, neg_f32)
LINKED_CALL(square, square_f32)
#if defined(VECTOR_MATH)
LINKED_CALL(exp, exp_rows)
LINKED_CALL(tanh, tanh_rows)
LINKED_CALL(sigmoid, sigmoid_rows)
LINKED_CALL(erf, erf_rows)
#endif

static void fill_links(cyx_table table) {
    table[CYX_OP_add][CYX_F32] = add_linked, table[CYX_OP_sub][CYX_F32] = sub_linked;
    table[CYX_OP_mul][CYX_F32] = mul_linked, table[CYX_OP_div][CYX_F32] = div_linked;
    table[CYX_OP_neg][CYX_F32] = neg_linked, table[CYX_OP_square][CYX_F32] = square_linked;
#if defined(VECTOR_MATH)
    table[CYX_OP_exp][CYX_F32] = exp_linked, table[CYX_OP_tanh][CYX_F32] = tanh_linked;
    table[CYX_OP_sigmoid][CYX_F32] = sigmoid_linked, table[CYX_OP_erf][CYX_F32] = erf_linked;
#endif
}
