/* Arithmetic and functions that follow each other: see cyx_link. What is made stays in registers, LINKED vectors at a time, or
 * waits beside them, where calls of their own would store and load it. */

enum {
    LINKED = MR >= 12 ? 8 : 4, /* with what they meet they fit the registers */
    LINKS_AHEAD = 512,         /* elements */
};

/* An address from which W vectors lie at fixed distances: without it the compiler keeps W offsets for all arrays in memory. */
#define IN_REGISTER(pointer) __asm__("" : "+r"(pointer))

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

/* One link of W vectors from element `at` on, of which `left` elements are there; they are of one row, from its element `column`
 * on. What it is, `is` and whether it stores, is a constant where its chain is known, and else that of the link itself. */
static inline __attribute__((always_inline)) void make_link(const int W, V *made, V (*kept)[LINKED], const cyx_link is,
                                                            const int stores, const cyx_link *link, int64_t at, int64_t left,
                                                            int64_t row, int64_t column) {
    if (is.first.form == CYX_LINK_KEPT) {
        ON_ALL(made[i] = kept[is.first.slot][i]);
    } else if (is.first.form == CYX_LINK_ARRAY) {
        const float *from = link->first.array + at;
        IN_REGISTER(from);
        ON_ALL(made[i] = W > 1 ? *(const V *)(from + i * VN) : NAME(part)(from, left, 0));
        if (W > 1 && is.first.ahead) ON_ALL(__builtin_prefetch(CYX_BEYOND(from, LINKS_AHEAD + i * VN), 0, 3));
    }
    V with[LINKED];
    switch (is.other.form) {
    case CYX_LINK_ARRAY: {
        const float *from = link->other.array + at;
        IN_REGISTER(from);
        ON_ALL(with[i] = W > 1 ? *(const V *)(from + i * VN) : NAME(part)(from, left, 0));
        break;
    }
    case CYX_LINK_ROW: {
        const float *from = link->other.array + column;
        ON_ALL(with[i] = W > 1 ? *(const V *)(from + i * VN) : NAME(part)(from, left, 0));
        break;
    }
    case CYX_LINK_COLUMN:
    case CYX_LINK_NUMBER: {
        V number = SPLAT(link->other.array[is.other.form == CYX_LINK_COLUMN ? row : 0]);
        ON_ALL(with[i] = number);
        break;
    }
    case CYX_LINK_KEPT: ON_ALL(with[i] = kept[is.other.slot][i]); break;
    default: ON_ALL(with[i] = made[i]);
    }
    switch (is.kind) {
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
    case CYX_LINK_GELU: IN_FOURS(gelu_of); break;
#endif
    default: ON_ALL(made[i] = made[i] * with[i]);
    }
    if (is.keep >= 0) ON_ALL(kept[is.keep][i] = made[i]);
    if (stores) {
        float *out = link->out + at;
        IN_REGISTER(out);
        ON_ALL({
            if (W > 1)
                *(V *)(out + i * VN) = made[i];
            else
                NAME(put_part)(out, made[i], left);
        })
    }
}

static inline __attribute__((always_inline)) void make_links(const int W, const cyx_link *links, int count, int64_t at,
                                                             int64_t left, int64_t row, int64_t column) {
    V made[LINKED], kept[CYX_LINK_SLOTS][LINKED];
    for (int k = 0; k < count; k++)
        make_link(W, made, kept, links[k], links[k].out != NULL, &links[k], at, left, row, column);
}

#if defined(VECTOR_MATH)
/* Chains that come often, compiled as they are: nothing is looked up, and what a link waits for is mixed with what others do.
 * LINK and LAST(number, kind, first operand, its slot, other operand, its slot, slot that keeps it); the last one stores. They
 * are what F.silu is, there and back, F.gelu by tanh there, and the gradients of sigmoid and tanh. */
#define SILU_THERE(LINK, LAST) LINK(0, SIGMOID, ARRAY, 0, ITSELF, 0, -1) LAST(1, MUL, ITSELF, 0, ARRAY, 0, -1)
#define SILU_BACK(LINK, LAST)                                                                                \
    LINK(0, SIGMOID, ARRAY, 0, ITSELF, 0, 0)                                                                 \
    LINK(1, MUL, ITSELF, 0, ARRAY, 0, 1)                                                                     \
    LINK(2, MUL, ARRAY, 0, ARRAY, 0, 2)                                                                      \
    LINK(3, FROM, KEPT, 0, NUMBER, 0, -1)                                                                    \
    LINK(4, MUL, ITSELF, 0, KEPT, 0, -1)                                                                     \
    LINK(5, MUL, ITSELF, 0, KEPT, 2, -1)                                                                     \
    LAST(6, ADD, ITSELF, 0, KEPT, 1, -1)
#define TANH_GELU_THERE(LINK, LAST)                                                                          \
    LINK(0, MUL, ARRAY, 0, ITSELF, 0, -1)                                                                    \
    LINK(1, MUL, ITSELF, 0, NUMBER, 0, -1)                                                                   \
    LINK(2, ADD, ITSELF, 0, NUMBER, 0, -1)                                                                   \
    LINK(3, MUL, ITSELF, 0, ARRAY, 0, -1)                                                                    \
    LINK(4, SIGMOID, ITSELF, 0, ITSELF, 0, -1)                                                               \
    LAST(5, MUL, ITSELF, 0, ARRAY, 0, -1)
#define SIGMOID_BACK(LINK, LAST)                                                                             \
    LINK(0, FROM, ARRAY, 0, NUMBER, 0, -1) LINK(1, MUL, ITSELF, 0, ARRAY, 0, -1) LAST(2, MUL, ITSELF, 0, ARRAY, 0, -1)
#define TANH_BACK(LINK, LAST)                                                                                \
    LINK(0, MUL, ARRAY, 0, ITSELF, 0, -1) LINK(1, FROM, ITSELF, 0, NUMBER, 0, -1) LAST(2, MUL, ITSELF, 0, ARRAY, 0, -1)

#define IS_LINK(KIND, FIRST, FIRST_SLOT, OTHER, OTHER_SLOT, KEEP)                                            \
    (cyx_link) {                                                                                             \
        .kind = CYX_LINK_##KIND, .first = {.form = CYX_LINK_##FIRST, .slot = FIRST_SLOT},                    \
        .other = {.form = CYX_LINK_##OTHER, .slot = OTHER_SLOT}, .keep = KEEP                                \
    }
static inline int is_link(const cyx_link *link, const cyx_link is, int stores) {
    return link->kind == is.kind && link->first.form == is.first.form && link->first.slot == is.first.slot &&
           link->other.form == is.other.form && link->other.slot == is.other.slot && link->keep == is.keep &&
           (link->out != NULL) == stores;
}
#define COUNTED(...) +1
#define SAME_LINK(NUMBER, ...) &&is_link(&links[NUMBER], IS_LINK(__VA_ARGS__), 0)
#define SAME_LAST(NUMBER, ...) &&is_link(&links[NUMBER], IS_LINK(__VA_ARGS__), 1)
#define MAKE_LINK(NUMBER, ...) make_link(LINKED, made, kept, IS_LINK(__VA_ARGS__), 0, &links[NUMBER], at, 0, 0, 0);
#define MAKE_LAST(NUMBER, ...) make_link(LINKED, made, kept, IS_LINK(__VA_ARGS__), 1, &links[NUMBER], at, 0, 0, 0);
#define IF_CHAIN_IS(CHAIN)                                                                                   \
    if (count == 0 CHAIN(COUNTED, COUNTED) CHAIN(SAME_LINK, SAME_LAST)) {                                    \
        for (; at + LINKED * VN <= n; at += LINKED * VN) {                                                   \
            V made[LINKED], kept[CYX_LINK_SLOTS][LINKED];                                                    \
            CHAIN(MAKE_LINK, MAKE_LAST)                                                                      \
        }                                                                                                    \
        return at;                                                                                           \
    }

/* How many of n elements are made, if this is such a chain. */
static int64_t make_known(const cyx_link *links, int count, int64_t n) {
    int64_t at = 0;
    IF_CHAIN_IS(SILU_THERE)
    IF_CHAIN_IS(SILU_BACK)
    IF_CHAIN_IS(TANH_GELU_THERE)
    IF_CHAIN_IS(SIGMOID_BACK)
    IF_CHAIN_IS(TANH_BACK)
    return at;
}
#else
static int64_t make_known(const cyx_link *links, int count, int64_t n) {
    (void)links, (void)count, (void)n;
    return 0;
}
#endif

static void run_links(const cyx_link *links, int count, int64_t n, int64_t run, int64_t column, int64_t row, int64_t period) {
    for (int64_t at = run ? 0 : make_known(links, count, n); at < n; row++, column = 0) {
        int64_t stop = run && run - column < n - at ? at + run - column : n;
        if (row == period) row = 0;
        for (; at + LINKED * VN <= stop; at += LINKED * VN, column += LINKED * VN)
            make_links(LINKED, links, count, at, LINKED * VN, row, column);
        for (; at + 2 * VN <= stop; at += 2 * VN, column += 2 * VN) make_links(2, links, count, at, 2 * VN, row, column);
        for (; at < stop; at += VN, column += VN) make_links(1, links, count, at, stop - at, row, column);
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
LINKED_CALL(gelu, gelu_rows)
#endif

static void fill_links(cyx_table table) {
    table[CYX_OP_add][CYX_F32] = add_linked, table[CYX_OP_sub][CYX_F32] = sub_linked;
    table[CYX_OP_mul][CYX_F32] = mul_linked, table[CYX_OP_div][CYX_F32] = div_linked;
    table[CYX_OP_neg][CYX_F32] = neg_linked, table[CYX_OP_square][CYX_F32] = square_linked;
#if defined(VECTOR_MATH)
    table[CYX_OP_exp][CYX_F32] = exp_linked, table[CYX_OP_tanh][CYX_F32] = tanh_linked;
    table[CYX_OP_sigmoid][CYX_F32] = sigmoid_linked, table[CYX_OP_erf][CYX_F32] = erf_linked;
    table[CYX_OP_gelu][CYX_F32] = gelu_linked;
#endif
}
