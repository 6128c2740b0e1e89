/* sum, mean, prod, max, min. The order in which terms meet is a tree fixed by their index alone:
 *
 * along contiguous memory: blocks of 1024 terms; in a block term i goes to lane i % 64, the lanes are then
 * folded in halves (a run of at most 128 terms is one block of 16 lanes); across rows: blocks of 32 rows,
 * added in order; blocks meet like the carries of a binary counter: equal powers of two first, what is left
 * from the right.
 *
 * A group of 2**k blocks is a complete subtree, so threads may take such groups without changing a bit. */

#ifndef REDUCE_ONCE
#define REDUCE_ONCE
enum { BLOCK_ROWS = CYX_BLOCK_ROWS, GROUP_BLOCKS = 64, RUN_BLOCK = CYX_RUN_BLOCK, TREE_DEPTH = 48, TILE = 1024, LEAST_TILE = 64, LEAST_SUMMED = 65000, LEAST_FAR = 1 << 20, LEAST_GROUP = 256, GROUPS_OF_A_THREAD = 2 };
#endif

#define SELECT(mask, a, b) ((V)(((MASK)(a) & (MASK)(mask)) | ((MASK)(b) & ~(MASK)(mask))))
#define ADD_S(a, b) ((a) + (b))
#define ADD_V(a, b) ((a) + (b))
#define MUL_S(a, b) ((a) * (b))
#define MUL_V(a, b) ((a) * (b))
#define MAX_S(a, b) ((a) >= (b) || (a) != (a) ? (a) : (b))
#define MAX_V(a, b) SELECT(((a) >= (b)) | ((a) != (a)), a, b)
#define MIN_S(a, b) ((a) <= (b) || (a) != (a) ? (a) : (b))
#define MIN_V(a, b) SELECT(((a) <= (b)) | ((a) != (a)), a, b)

/* The greater of two, in any order of NaN. */
#if defined(QUICK_MAX)
#define GREATER(a, b) QUICK_MAX(a, b)
#else
#define GREATER(a, b) SELECT((b) > (a), b, a)
#endif

/* The lanes of a vector, folded in halves. */
#define LANES_OF(FOLD, JOIN_V)                                                                               \
    static inline T NAME(FOLD##_lanes)(V whole) {                                                            \
        if (VN > 8) FOLD_LANES(whole, VN > 8 ? 8 : 1, JOIN_V)                                                \
        if (VN > 4) FOLD_LANES(whole, VN > 4 ? 4 : 1, JOIN_V)                                                \
        if (VN > 2) FOLD_LANES(whole, VN > 2 ? 2 : 1, JOIN_V)                                                \
        FOLD_LANES(whole, 1, JOIN_V)                                                                         \
        return whole[0];                                                                                     \
    }

#define ITSELF_V(a) (a)
#define SQUARE_V(a) ((a) * (a))

/* One block of a run of memory: n <= RUN_BLOCK terms in WIDTH lanes. TERM_V: what a term is of what lies there. */
#define BLOCK(FOLD, WIDTH, JOIN_V, START, TERM_V)                                                                  \
    static T NAME(FOLD##_block##WIDTH)(const T *x, int64_t n) {                                              \
        enum { VECTORS = WIDTH / VN };                                                                       \
        V lanes[VECTORS];                                                                                    \
        /* Unrolled, or the compiler makes a memset of it, which takes an eighth of a block's time with AVX2. */ \
        _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++) lanes[v] = (V){} + (T)(START);            \
        int64_t i = 0;                                                                                       \
        for (; i + WIDTH <= n; i += WIDTH) _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++) {      \
                V next = TERM_V(*(const V *)(x + i + v * VN));                                               \
                lanes[v] = JOIN_V(lanes[v], next);                                                           \
            }                                                                                                \
        if (i < n) _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++) {                              \
                V next = TERM_V(NAME(part)(x + i + v * VN, n - i - v * VN, (T)(START)));                     \
                lanes[v] = JOIN_V(lanes[v], next);                                                           \
            }                                                                                                \
        _Pragma("GCC unroll 8") for (int half = VECTORS / 2; half; half /= 2)                                \
            _Pragma("GCC unroll 16") for (int v = 0; v < half; v++) lanes[v] =                               \
                JOIN_V(lanes[v], lanes[v + half]);                                                           \
        return NAME(FOLD##_lanes)(lanes[0]);                                                                 \
    }

/* The greatest or the least of a block by the processor's own instruction: QUICK(so far, new) is `so far` also
 * where both are zeros or one is a NaN. A join differs only where a NaN comes in new; such a block is made by joins. */
#define QUICK_BLOCK(FOLD, QUICK, START)                                                                      \
    static T NAME(FOLD##_quick)(const T *x, int64_t n) {                                                     \
        enum { VECTORS = 64 / VN };                                                                          \
        V lanes[VECTORS];                                                                                    \
        UNORDERED odd = {0};                                                                                 \
        if (n < 64) return NAME(FOLD##_block64)(x, n);                                                       \
        for (int v = 0; v < VECTORS; v++) lanes[v] = *(const V *)(x + v * VN);                               \
        for (int v = 0; v < VECTORS; v += 2) NOTE_UNORDERED(odd, lanes[v], lanes[v + 1]);                    \
        int64_t i = 64;                                                                                      \
        for (; i + 64 <= n; i += 64) _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v += 2) {          \
                V one = *(const V *)(x + i + v * VN), two = *(const V *)(x + i + (v + 1) * VN);              \
                lanes[v] = QUICK(lanes[v], one), lanes[v + 1] = QUICK(lanes[v + 1], two);                    \
                NOTE_UNORDERED(odd, one, two);                                                               \
            }                                                                                                \
        if (i < n) _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++) {                               \
                V next = NAME(part)(x + i + v * VN, n - i - v * VN, (T)(START));                             \
                lanes[v] = QUICK(lanes[v], next);                                                            \
                NOTE_UNORDERED(odd, next, next);                                                             \
            }                                                                                                \
        if (ANY_UNORDERED(odd)) return NAME(FOLD##_block64)(x, n);                                           \
        _Pragma("GCC unroll 8") for (int half = VECTORS / 2; half; half /= 2)                                \
            _Pragma("GCC unroll 16") for (int v = 0; v < half; v++) lanes[v] =                               \
                QUICK(lanes[v], lanes[v + half]);                                                            \
        return NAME(FOLD##_lanes)(lanes[0]);                                                                 \
    }

#define FOLD(NAME_, BLOCK64, JOIN_S)                                                                         \
    /* A counter's carries: `count` values were pushed before this one. Returns the new height. */           \
    static int NAME(NAME_##_push)(T * tree, int height, int64_t count, T value) {                            \
        for (; count & 1; count >>= 1) {                                                                     \
            T left = tree[--height];                                                                         \
            value = JOIN_S(left, value);                                                                     \
        }                                                                                                    \
        tree[height] = value;                                                                                \
        return height + 1;                                                                                   \
    }                                                                                                        \
    static T NAME(NAME_##_finish)(const T *tree, int height) {                                               \
        T value = tree[--height];                                                                            \
        while (height) {                                                                                     \
            T left = tree[--height];                                                                         \
            value = JOIN_S(left, value);                                                                     \
        }                                                                                                    \
        return value;                                                                                        \
    }                                                                                                        \
    static T NAME(NAME_##_blocks)(const T *x, int64_t n) {                                                   \
        T tree[TREE_DEPTH];                                                                                  \
        int height = 0;                                                                                      \
        for (int64_t i = 0, count = 0; i < n; i += RUN_BLOCK, count++)                                       \
            height = NAME(NAME_##_push)(                                                                     \
                tree, height, count, NAME(BLOCK64)(x + i, n - i < RUN_BLOCK ? n - i : RUN_BLOCK));           \
        return NAME(NAME_##_finish)(tree, height);                                                           \
    }                                                                                                        \
    static T NAME(NAME_##_run)(const T *x, int64_t n) {                                                      \
        return n <= 128         ? NAME(NAME_##_block16)(x, n)                                                \
               : n <= RUN_BLOCK ? NAME(BLOCK64)(x, n)                                                        \
                                : NAME(NAME_##_blocks)(x, n);                                                \
    }                                                                                                        \
    /* `into` meets `next`, element by element, in n columns. */                                             \
    static void NAME(NAME_##_columns)(T * into, const T *next, int64_t n) {                                  \
        INDEPENDENT for (int64_t j = 0; j < n; j++) {                                                        \
            T a = into[j], b = next[j];                                                                      \
            into[j] = JOIN_S(a, b);                                                                          \
        }                                                                                                    \
    }

/* `rows` rows, `stride` apart, folded in order into n columns. Four rows at a time, each from its beginning to its end:
 * that is the order of memory, which processors fetch ahead, while `into` stays in the nearest cache. FOUR(into, x,
 * stride, n, from) takes up to a vector of columns: of rows 0 to 3, or on top of `into` where from is 0. */
#define ROWS_BY_FOUR(FOUR, COLUMNS, ...)                                                                     \
    int64_t whole = n - n % VN, r = 4;                                                                       \
    if (rows < 4) {                                                                                          \
        NAME(copy)(into, x, n);                                                                              \
        r = 1;                                                                                               \
    } else {                                                                                                 \
        for (int64_t j = 0; j < whole; j += VN) FOUR(into + j, x + j, stride, VN, 1, ##__VA_ARGS__);         \
        if (whole < n) FOUR(into + whole, x + whole, stride, n - whole, 1, ##__VA_ARGS__);                   \
    }                                                                                                        \
    for (; r + 4 <= rows; r += 4) {                                                                          \
        const T *row = x + r * stride;                                                                       \
        for (int64_t j = 0; j < whole; j += VN) FOUR(into + j, row + j, stride, VN, 0, ##__VA_ARGS__);       \
        if (whole < n) FOUR(into + whole, row + whole, stride, n - whole, 0, ##__VA_ARGS__);                 \
    }                                                                                                        \
    for (; r < rows; r++) COLUMNS(into, x + r * stride, n)

#define FOLD_BLOCK(NAME_, JOIN_V)                                                                            \
    static inline __attribute__((always_inline)) void NAME(NAME_##_four)(T * into, const T *x,               \
                                                                         int64_t stride, int64_t n,          \
                                                                         const int from) {                   \
        V a = NAME(part)(from ? x : into, n, 0);                                                             \
        _Pragma("GCC unroll 4") for (int k = from; k < 4; k++) {                                             \
            V next = NAME(part)(x + k * stride, n, 0);                                                       \
            a = JOIN_V(a, next);                                                                             \
        }                                                                                                    \
        NAME(put_part)(into, a, n);                                                                          \
    }                                                                                                        \
    static void NAME(NAME_##_block)(T * into, const T *x, int64_t stride, int64_t rows, int64_t n) {         \
        if (n <= VN) { /* what is stored in parts is not there for the next load at once */                  \
            V a = NAME(part)(x, n, 0);                                                                       \
            for (int64_t r = 1; r < rows; r++) {                                                             \
                V next = NAME(part)(x + r * stride, n, 0);                                                   \
                a = JOIN_V(a, next);                                                                         \
            }                                                                                                \
            NAME(put_part)(into, a, n);                                                                      \
            return;                                                                                          \
        }                                                                                                    \
        ROWS_BY_FOUR(NAME(NAME_##_four), NAME(NAME_##_columns));                                             \
    }

/* Rows in the same way, and again by joins where there was a NaN. */
#define QUICK_ROWS(FOLD, QUICK)                                                                              \
    static inline __attribute__((always_inline)) void NAME(FOLD##_quick_four)(                               \
        T * into, const T *x, int64_t stride, int64_t n, const int from, UNORDERED *odd) {                   \
        V next[4];                                                                                           \
        _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) next[k] = NAME(part)(x + k * stride, n, 0);      \
        V a = from ? next[0] : NAME(part)(into, n, 0);                                                       \
        _Pragma("GCC unroll 4") for (int k = from; k < 4; k++) a = QUICK(a, next[k]);                        \
        NOTE_UNORDERED(*odd, next[0], next[1]);                                                              \
        NOTE_UNORDERED(*odd, next[2], next[3]);                                                              \
        NAME(put_part)(into, a, n);                                                                          \
    }                                                                                                        \
    static void NAME(FOLD##_quick_rows)(T * into, const T *x, int64_t stride, int64_t rows, int64_t n) {     \
        UNORDERED odd = {0};                                                                                 \
        ROWS_BY_FOUR(NAME(FOLD##_quick_four), NAME(FOLD##_columns), &odd);                                   \
        if (ANY_UNORDERED(odd)) NAME(FOLD##_block)(into, x, stride, rows, n);                                \
    }

LANES_OF(sum, ADD_V)
LANES_OF(prod, MUL_V)
LANES_OF(max, MAX_V)
LANES_OF(min, MIN_V)
LANES_OF(squares, ADD_V)
BLOCK(sum, 16, ADD_V, 0, ITSELF_V)
BLOCK(sum, 64, ADD_V, 0, ITSELF_V)
BLOCK(squares, 16, ADD_V, 0, SQUARE_V)
BLOCK(squares, 64, ADD_V, 0, SQUARE_V)
BLOCK(prod, 16, MUL_V, 1, ITSELF_V)
BLOCK(prod, 64, MUL_V, 1, ITSELF_V)
BLOCK(max, 16, MAX_V, -INF, ITSELF_V)
BLOCK(max, 64, MAX_V, -INF, ITSELF_V)
BLOCK(min, 16, MIN_V, INF, ITSELF_V)
BLOCK(min, 64, MIN_V, INF, ITSELF_V)
FOLD(sum, sum_block64, ADD_S)
FOLD_BLOCK(sum, ADD_V)
FOLD(prod, prod_block64, MUL_S)
FOLD_BLOCK(prod, MUL_V)
#if defined(UNORDERED)
QUICK_BLOCK(max, QUICK_MAX, -INF)
QUICK_BLOCK(min, QUICK_MIN, INF)
FOLD(max, max_quick, MAX_S)
FOLD(min, min_quick, MIN_S)
FOLD_BLOCK(max, MAX_V)
FOLD_BLOCK(min, MIN_V)
QUICK_ROWS(max, QUICK_MAX)
QUICK_ROWS(min, QUICK_MIN)
#define MAX_ROWS NAME(max_quick_rows)
#define MIN_ROWS NAME(min_quick_rows)
#else
FOLD(max, max_block64, MAX_S)
FOLD(min, min_block64, MIN_S)
FOLD_BLOCK(max, MAX_V)
FOLD_BLOCK(min, MIN_V)
#define MAX_ROWS NAME(max_block)
#define MIN_ROWS NAME(min_block)
#endif

typedef struct {
    T (*run)(const T *x, int64_t n);
    T (*blocks)(const T *x, int64_t n); /* the same of a part of a run, however short */
    int (*push)(T *tree, int height, int64_t count, T value);
    T (*finish)(const T *tree, int height);
    void (*columns)(T *into, const T *next, int64_t n);
    void (*block)(T *into, const T *x, int64_t stride, int64_t rows, int64_t n);
} NAME(fold);

static const NAME(fold)
    NAME(fold_sum) = {NAME(sum_run), NAME(sum_blocks), NAME(sum_push), NAME(sum_finish), NAME(sum_columns), NAME(sum_block)};
static const NAME(fold)
    NAME(fold_prod) = {NAME(prod_run), NAME(prod_blocks), NAME(prod_push), NAME(prod_finish), NAME(prod_columns), NAME(prod_block)};
static const NAME(fold)
    NAME(fold_max) = {NAME(max_run), NAME(max_blocks), NAME(max_push), NAME(max_finish), NAME(max_columns), MAX_ROWS};
static const NAME(fold)
    NAME(fold_min) = {NAME(min_run), NAME(min_blocks), NAME(min_push), NAME(min_finish), NAME(min_columns), MIN_ROWS};

typedef struct {
    const NAME(fold) * fold;
    cyx_reduce_plan plan;
    const cyx_call *calls; /* sums that are added up, where it is a group of them */
    const T *x;
    T *out;
    const T *const *lines; /* the rows, where a concat joins them that is not made; else NULL */
    T *partial; /* one per group, where a reduction is cut into groups; else NULL */
    int64_t groups, group_rows, tile; /* tile: columns of one task, at most TILE */
    T divisor;            /* of a mean; else 1 */
    _Atomic int no_memory;
} NAME(reduction);

/* Outputs whose terms end in a contiguous run. */
static void NAME(reduce_runs)(void *context, int64_t begin, int64_t end) {
    NAME(reduction) *r = context;
    const cyx_reduce_plan *plan = &r->plan;
    T tree[TREE_DEPTH];
    for (int64_t o = begin; o < end; o++) {
        const T *x = r->x + cyx_offset_of(o, plan->kept_count, plan->kept, plan->kept_stride);
        if (plan->terms == 1) {
            T value = r->fold->run(x, plan->inner);
            r->out[o] = r->divisor == 1 ? value : value / r->divisor;
            continue;
        }
        int height = 0;
        for (int64_t t = 0; t < plan->terms; t++) {
            int64_t offset = cyx_offset_of(t, plan->reduced_count, plan->reduced, plan->reduced_stride);
            height = r->fold->push(tree, height, t, r->fold->run(x + offset, plan->inner));
        }
        T value = r->fold->finish(tree, height);
        r->out[o] = r->divisor == 1 ? value : value / r->divisor;
    }
}

/* Runs in the order of memory, each into its place in `partial`. */
static void NAME(fold_runs)(void *context, int64_t begin, int64_t end) {
    NAME(reduction) *r = context;
    for (int64_t i = begin; i < end; i++) r->partial[i] = r->fold->run(r->x + i * r->plan.inner, r->plan.inner);
}

/* A complete subtree. */
static inline T NAME(sum_of_eight)(const T *x) {
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

/* The folds of all runs meet, in the order of reduce_runs. */
static void NAME(join_runs)(const NAME(reduction) * r, const T *folds) {
    const cyx_reduce_plan *plan = &r->plan;
    if (plan->terms == 1) { /* each is an output */
        for (int64_t o = 0; o < plan->outputs; o++) r->out[o] = r->divisor == 1 ? folds[o] : folds[o] / r->divisor;
        return;
    }
    T tree[TREE_DEPTH];
    /* A division for each takes as long as its sum. */
    int64_t step = plan->reduced_count == 1 ? plan->reduced_stride[0] / plan->inner : 0;
    for (int64_t o = 0; o < plan->outputs; o++) {
        const T *first = folds + cyx_offset_of(o, plan->kept_count, plan->kept, plan->kept_stride) / plan->inner;
        int height = 0;
        int64_t t = 0;
        if (step == 1 && r->fold == &NAME(fold_sum)) /* a carry is hard to foresee */
            for (; t + 8 <= plan->terms; t += 8)
                height = NAME(sum_push)(tree, height, t / 8, NAME(sum_of_eight)(first + t));
        for (; t < plan->terms; t++) {
            int64_t place = t * step;
            if (!step) place = cyx_offset_of(t, plan->reduced_count, plan->reduced, plan->reduced_stride) / plan->inner;
            height = r->fold->push(tree, height, t, first[place]);
        }
        T value = r->fold->finish(tree, height);
        r->out[o] = r->divisor == 1 ? value : value / r->divisor;
    }
}

/* Groups of one long run. */
static void NAME(reduce_groups)(void *context, int64_t begin, int64_t end) {
    NAME(reduction) *r = context;
    const int64_t size = RUN_BLOCK * GROUP_BLOCKS;
    for (int64_t g = begin; g < end; g++) {
        int64_t left = r->plan.inner - g * size;
        r->partial[g] = r->fold->blocks(r->x + g * size, left < size ? left : size);
    }
}

/* Rows of several reduced dimensions, which do not lie one stride apart. */
static void NAME(fold_scattered)(const NAME(reduction) * r, const T *x, int64_t first, int64_t rows,
                                 int64_t n, T *into) {
    const cyx_reduce_plan *plan = &r->plan;
    for (int64_t t = 0; t < rows; t++) {
        const T *row = r->lines ? r->lines[first + t] + (x - r->x)
                                : x + cyx_offset_of(first + t, plan->reduced_count, plan->reduced, plan->reduced_stride);
        if (t)
            r->fold->columns(into, row, n);
        else
            memcpy(into, row, sizeof(T) * (size_t)n);
    }
}

/* A tile of columns, one group of rows: the fold goes into `into`. `tree` has room for TREE_DEPTH tiles. */
static void NAME(reduce_tile)(const NAME(reduction) * r, const T *x, int64_t first, int64_t count, int64_t n,
                              T *tree, T *into) {
    const cyx_reduce_plan *plan = &r->plan;
    int height = 0;
    for (int64_t t = 0, blocks = 0; t < count; blocks++) {
        T *block = tree + height * TILE;
        int64_t stop = t + BLOCK_ROWS < count ? t + BLOCK_ROWS : count;
        if (plan->reduced_count == 1 && !r->lines) {
            int64_t stride = plan->reduced_stride[0];
            r->fold->block(block, x + (first + t) * stride, stride, stop - t, n);
        } else {
            NAME(fold_scattered)(r, x, first + t, stop - t, n, block);
        }
        t = stop;
        for (int64_t carry = blocks; carry & 1; carry >>= 1, height--)
            r->fold->columns(tree + (height - 1) * TILE, tree + height * TILE, n);
        height++;
    }
    while (--height) r->fold->columns(tree + (height - 1) * TILE, tree + height * TILE, n);
    memcpy(into, tree, sizeof(T) * (size_t)n);
}

/* Outputs whose terms lie in different rows: one task is (kept index, group of rows, tile of columns). */
static void NAME(reduce_rows)(void *context, int64_t begin, int64_t end) {
    NAME(reduction) *r = context;
    const cyx_reduce_plan *plan = &r->plan;
    int64_t tiles = (plan->inner + r->tile - 1) / r->tile;
    T *tree = cyx_scratch(1, sizeof(T) * TILE * TREE_DEPTH);
    if (!tree) {
        r->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        int64_t tile = task % tiles, group = task / tiles % r->groups, o = task / tiles / r->groups;
        int64_t column = tile * r->tile, n = plan->inner - column < r->tile ? plan->inner - column : r->tile;
        int64_t first = group * r->group_rows;
        int64_t count = plan->terms - first < r->group_rows ? plan->terms - first : r->group_rows;
        const T *x = r->x + cyx_offset_of(o, plan->kept_count, plan->kept, plan->kept_stride) + column;
        T *into = (r->partial ? r->partial : r->out) + (o * r->groups + group) * plan->inner + column;
        NAME(reduce_tile)(r, x, first, count, n, tree, into);
    }
}

/* The groups of one output row meet: the same carries, over whole rows, in place. */
static void NAME(join_groups)(const NAME(reduction) * r, T *partial, T *out) {
    int64_t n = r->plan.inner;
    int height = 0;
    for (int64_t g = 0; g < r->groups; g++) {
        if (g != height) memcpy(partial + height * n, partial + g * n, sizeof(T) * (size_t)n);
        for (int64_t carry = g; carry & 1; carry >>= 1, height--)
            r->fold->columns(partial + (height - 1) * n, partial + height * n, n);
        height++;
    }
    while (--height) r->fold->columns(partial + (height - 1) * n, partial + height * n, n);
    memcpy(out, partial, sizeof(T) * (size_t)n);
}

static cyx_status NAME(reduce_along_run)(NAME(reduction) * r) {
    const cyx_reduce_plan *plan = &r->plan;
    const int64_t size = RUN_BLOCK * GROUP_BLOCKS;
    if (plan->outputs == 1 && plan->terms == 1 && plan->inner > 2 * size && cyx_threads() > 1) {
        r->groups = (plan->inner + size - 1) / size;
        r->partial = cyx_scratch(0, sizeof(T) * (size_t)r->groups);
        if (!r->partial) return CYX_NO_MEMORY;
        cyx_parallel(r->groups, 1, NAME(reduce_groups), r);
        T tree[TREE_DEPTH];
        int height = 0;
        for (int64_t g = 0; g < r->groups; g++) height = r->fold->push(tree, height, g, r->partial[g]);
        T value = r->fold->finish(tree, height);
        r->out[0] = r->divisor == 1 ? value : value / r->divisor;
        return CYX_OK;
    }
    int64_t runs = plan->outputs * plan->terms;
    if (plan->terms > 1 && plan->inner >= CYX_SHORTEST_RUN && runs * plan->inner >= LEAST_FAR) { /* as memory is fetched ahead */
        r->partial = cyx_scratch(0, sizeof(T) * (size_t)runs);
        if (!r->partial) return CYX_NO_MEMORY;
        cyx_parallel(runs, cyx_grain(runs, (double)plan->inner, LEAST_SUMMED), NAME(fold_runs), r);
        NAME(join_runs)(r, r->partial);
        return CYX_OK;
    }
    cyx_parallel(plan->outputs, cyx_grain(plan->outputs, (double)plan->total_terms, LEAST_SUMMED),
                 NAME(reduce_runs), r);
    return CYX_OK;
}

/* Rows of a group, a complete subtree. Few outputs of many terms are shared by their rows, as whole rows lie as memory is read
 * best, where few groups of many rows give each thread about as many of them. */
static int64_t NAME(rows_of_group)(const cyx_reduce_plan *plan, int64_t threads) {
    const int64_t most = BLOCK_ROWS * GROUP_BLOCKS;
    int64_t tiles = plan->outputs * ((plan->inner + TILE - 1) / TILE);
    if (tiles >= threads || plan->terms * plan->outputs * plan->inner < 2 * LEAST_SUMMED) return most;
    for (int64_t rows = most; rows >= LEAST_GROUP; rows /= 2) {
        int64_t groups = (plan->terms + rows - 1) / rows, of_a_thread = (tiles * groups + threads - 1) / threads;
        if (groups > GROUPS_OF_A_THREAD * threads) break;
        if (of_a_thread * rows * threads * 8 <= plan->terms * tiles * 9) return rows;
    }
    return most;
}

static cyx_status NAME(reduce_across_rows)(NAME(reduction) * r) {
    const cyx_reduce_plan *plan = &r->plan;
    int64_t threads = cyx_threads();
    r->group_rows = NAME(rows_of_group)(plan, threads);
    r->groups = (plan->terms + r->group_rows - 1) / r->group_rows;
    if (r->groups > 1) {
        r->partial = cyx_scratch(0, sizeof(T) * (size_t)(r->groups * plan->outputs * plan->inner));
        if (!r->partial) return CYX_NO_MEMORY;
    }
    /* Few outputs of few groups: threads share the columns. */
    int64_t share = (plan->outputs * r->groups * plan->inner + threads - 1) / threads;
    share = (share + LEAST_TILE - 1) / LEAST_TILE * LEAST_TILE;
    r->tile = share < TILE ? share : TILE;
    int64_t tasks = plan->outputs * r->groups * ((plan->inner + r->tile - 1) / r->tile);
    double work = (double)plan->terms * (double)(plan->outputs * plan->inner) / (double)tasks;
    cyx_parallel(tasks, cyx_grain(tasks, work, LEAST_SUMMED), NAME(reduce_rows), r);
    if (r->no_memory) return CYX_NO_MEMORY;
    for (int64_t o = 0; r->partial && o < plan->outputs; o++)
        NAME(join_groups)(r, r->partial + o * r->groups * plan->inner, r->out + o * plan->inner);
    if (r->divisor != 1)
        for (int64_t i = 0; i < plan->outputs * plan->inner; i++) r->out[i] /= r->divisor;
    return CYX_OK;
}

/* Sums over rows that are added to one row, one after the other: threads share the sums, as whole rows lie as memory is
 * read best, and what they come to is then added in order. */
static void NAME(added_sums)(void *context, int64_t begin, int64_t end) {
    NAME(reduction) *r = context;
    T *tree = cyx_scratch(1, sizeof(T) * TILE * TREE_DEPTH);
    if (!tree) {
        r->no_memory = 1;
        return;
    }
    for (int64_t i = begin; i < end; i++)
        for (int64_t column = 0, n = r->plan.inner; column < n; column += TILE)
            NAME(reduce_tile)(r, (const T *)r->calls[2 * i].in[0].data + column, 0, r->plan.terms,
                              n - column < TILE ? n - column : TILE, tree, r->partial + i * n + column);
}

static cyx_status NAME(add_sums)(const cyx_call *calls) {
    NAME(reduction) r = {.fold = &NAME(fold_sum), .plan = cyx_plan_reduction(calls), .calls = calls};
    int64_t n = r.plan.inner, count = calls->group / 2;
    r.partial = cyx_scratch(0, sizeof(T) * (size_t)(count * n));
    if (!r.partial) return CYX_NO_MEMORY;
    cyx_parallel(count, cyx_grain(count, (double)(r.plan.terms * n), LEAST_SUMMED), NAME(added_sums), &r);
    if (r.no_memory) return CYX_NO_MEMORY;
    for (int64_t i = 0; i < count; i++) NAME(sum_columns)(calls[1].out.data, r.partial + i * n, n);
    return CYX_OK;
}

/* One band of a sum over the rows of all bands: it is a subtree, and meets those of the bands before it as blocks do. */
static cyx_status NAME(add_band)(const NAME(reduction) * r, const cyx_call *call) {
    int64_t n = r->plan.inner, height = 0;
    T *tree = cyx_scratch(1, sizeof(T) * TILE * TREE_DEPTH), *bands = call->adding->partial;
    if (!tree) return CYX_NO_MEMORY;
    for (int64_t before = cyx_band; before; before >>= 1) height += before & 1;
    for (int64_t column = 0; column < n; column += TILE)
        NAME(reduce_tile)(r, r->x + column, 0, r->plan.terms, n - column < TILE ? n - column : TILE, tree,
                          bands + height * n + column);
    for (int64_t carry = cyx_band; carry & 1; carry >>= 1, height--)
        NAME(sum_columns)(bands + (height - 1) * n, bands + height * n, n);
    if (cyx_band + 1 < call->bands) return CYX_OK;
    for (; height; height--) NAME(sum_columns)(bands + (height - 1) * n, bands + height * n, n);
    memcpy(r->out, bands, sizeof(T) * (size_t)n);
    return CYX_OK;
}

/* One block of rows of a matrix, of a sum over matrices: it meets the same rows of those before it in the order in which a sum
 * over all of them would. What the first 32 come to lies in the output, what later ones come to beside it until they meet. */
static cyx_status NAME(add_matrix)(const cyx_call *call) {
    const cyx_adding *adding = call->adding;
    int64_t matrix = cyx_band / call->blocks, repeats = call->out.repeats, of_turn = call->out.turns * repeats, n = call->out.size;
    int64_t terms = call->bands / call->blocks / call->out.turns, term = matrix / of_turn * repeats + matrix % repeats;
    int64_t block = term / BLOCK_ROWS, height = __builtin_popcountll((unsigned long long)block);
    T *levels[TREE_DEPTH] = {call->out.data};
    for (int64_t level = 1; level <= height; level++)
        levels[level] = (T *)((char *)adding->partial + (level - 1) * call->out.turns * call->out.band_bytes +
                              ((char *)call->out.data - (char *)adding->first));
    if (term % BLOCK_ROWS)
        NAME(sum_columns)(levels[height], call->in[0].data, n);
    else
        memcpy(levels[height], call->in[0].data, sizeof(T) * (size_t)n);
    int is_last = term + 1 == terms;
    if (!is_last && (term + 1) % BLOCK_ROWS) return CYX_OK;
    for (int64_t carry = block; carry & 1; carry >>= 1, height--) NAME(sum_columns)(levels[height - 1], levels[height], n);
    for (; is_last && height; height--) NAME(sum_columns)(levels[height - 1], levels[height], n);
    return CYX_OK;
}

/* The place of the first greatest of n <= RUN_BLOCK numbers, or of the first NaN: the greatest of each of a few parts, then
 * its place in the first part that has the greatest of all. Parts have one length, the last ones overlap, and nothing is
 * branched on that the numbers decide: a guess would be wrong once a row, and the next row wait for it. */
static int64_t NAME(argmax_block)(const T *x, int64_t n) {
#if defined(NOT_LESS)
    enum { PARTS = 4, STEP = 4 * VN };
    if (n >= STEP) {
        int64_t length = (n + PARTS * STEP - 1) / (PARTS * STEP) * STEP, start[PARTS];
        V best[PARTS];
        UNORDERED odd = {0};
        for (int p = 0; p < PARTS; p++) {
            V lanes[4];
            start[p] = p * length < n - length ? p * length : n - length;
            for (int v = 0; v < 4; v++) lanes[v] = SPLAT(-INF);
            for (int64_t i = start[p]; i < start[p] + length; i += STEP)
                _Pragma("GCC unroll 2") for (int v = 0; v < 4; v += 2) {
                    V one = *(const V *)(x + i + v * VN), two = *(const V *)(x + i + (v + 1) * VN);
                    lanes[v] = QUICK_MAX(lanes[v], one), lanes[v + 1] = QUICK_MAX(lanes[v + 1], two);
                    NOTE_UNORDERED(odd, one, two);
                }
            lanes[0] = QUICK_MAX(lanes[0], lanes[1]), lanes[2] = QUICK_MAX(lanes[2], lanes[3]);
            best[p] = QUICK_MAX(lanes[0], lanes[2]);
        }
        if (!ANY_UNORDERED(odd)) {
            V greatest = best[0];
            for (int p = 1; p < PARTS; p++) greatest = QUICK_MAX(greatest, best[p]);
            if (VN > 8) FOLD_LANES(greatest, VN > 8 ? 8 : 1, QUICK_MAX)
            if (VN > 4) FOLD_LANES(greatest, VN > 4 ? 4 : 1, QUICK_MAX)
            if (VN > 2) FOLD_LANES(greatest, VN > 2 ? 2 : 1, QUICK_MAX)
            FOLD_LANES(greatest, 1, QUICK_MAX)
            int64_t first = start[PARTS - 1], place = 0;
            for (int p = PARTS - 2; p >= 0; p--) first = NOT_LESS(best[p], greatest) ? start[p] : first;
            for (int64_t i = first + length - STEP; i >= first; i -= STEP) {
                uint64_t bits = 0;
                _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++)
                    bits |= (uint64_t)NOT_LESS(*(const V *)(x + i + v * VN), greatest) << v * VN;
                place = bits ? i + __builtin_ctzll(bits) : place;
            }
            return place;
        }
    }
#endif
    T greatest = NAME(max_run)(x, n);
    int64_t i = 0;
    if (greatest == greatest)
        while (x[i] != greatest) i++;
    else
        while (x[i] == x[i]) i++;
    return i;
}

/* The same of any run: of the first block that has the greatest of all, or a NaN. */
typedef struct {
    T greatest;
    int64_t block; /* its beginning */
} NAME(best_block);

typedef struct {
    const T *x;
    int64_t n;
    NAME(best_block) * best; /* of each group */
} NAME(argmax_groups);

static inline int NAME(is_better)(T greatest, T than) { return greatest > than || greatest != greatest; }

static NAME(best_block) NAME(best_block_of)(const T *x, int64_t begin, int64_t end) {
    NAME(best_block) best = {-INF, begin};
    for (int64_t first = begin; first < end; first += RUN_BLOCK) {
        T greatest = NAME(max_run)(x + first, end - first < RUN_BLOCK ? end - first : RUN_BLOCK);
        if (NAME(is_better)(greatest, best.greatest)) best.greatest = greatest, best.block = first;
        if (greatest != greatest) break;
    }
    return best;
}

static void NAME(argmax_body)(void *context, int64_t begin, int64_t end) {
    const NAME(argmax_groups) *groups = context;
    const int64_t size = RUN_BLOCK * GROUP_BLOCKS;
    for (int64_t g = begin; g < end; g++)
        groups->best[g] = NAME(best_block_of)(groups->x, g * size, (g + 1) * size < groups->n ? (g + 1) * size : groups->n);
}

/* Threads share a long run, where there is memory for what they find. */
static int64_t NAME(argmax_run)(const T *x, int64_t n) {
    const int64_t size = RUN_BLOCK * GROUP_BLOCKS;
    NAME(best_block) best = {-INF, 0};
    int64_t count = (n + size - 1) / size;
    NAME(argmax_groups) groups = {x, n, NULL};
    if (count > 2 && cyx_threads() > 1) groups.best = cyx_scratch(0, sizeof best * (size_t)count);
    if (groups.best) {
        cyx_parallel(count, 1, NAME(argmax_body), &groups);
        for (int64_t g = 0; g < count && best.greatest == best.greatest; g++)
            if (NAME(is_better)(groups.best[g].greatest, best.greatest)) best = groups.best[g];
    } else if (n > RUN_BLOCK) {
        best = NAME(best_block_of)(x, 0, n);
    }
    return best.block + NAME(argmax_block)(x + best.block, n - best.block < RUN_BLOCK ? n - best.block : RUN_BLOCK);
}

/* As a member of a group: the sum of each run, and of those the outputs, in the order of reduce_runs. A run that is too long
 * for that (cyx_sums_runs) is so many blocks. */
static inline int64_t NAME(length_of_runs)(const cyx_reduce_plan *plan) {
    return plan->inner > CYX_LONGEST_RUN ? RUN_BLOCK : plan->inner;
}

static T NAME(squares_run)(const T *x, int64_t n) { /* n <= 2 * RUN_BLOCK */
    if (n <= 128) return NAME(squares_block16)(x, n);
    if (n <= RUN_BLOCK) return NAME(squares_block64)(x, n);
    return NAME(squares_block64)(x, RUN_BLOCK) + NAME(squares_block64)(x + RUN_BLOCK, n - RUN_BLOCK);
}

#define SUMS_OF_RUNS(FOLD)                                                                                   \
    static void NAME(FOLD##_runs)(void *context, int64_t begin, int64_t end) {                               \
        const cyx_rows *rows = context;                                                                      \
        const T *x = rows->call->in[0].data;                                                                 \
        int64_t n = rows->walk.shape[0];                                                                     \
        T *sum = (T *)rows->call->out.data + begin / n;                                                      \
        for (int64_t at = begin; at < end; at += n)                                                          \
            *sum++ = n == RUN_BLOCK ? NAME(FOLD##_block64)(x + at, end - at < n ? end - at : n)              \
                                    : NAME(FOLD##_run)(x + at, n);                                           \
    }
SUMS_OF_RUNS(sum)
SUMS_OF_RUNS(squares)

static void NAME(finish_sums)(const cyx_call *call, const void *sums) {
    NAME(reduction) r = {.fold = &NAME(fold_sum), .plan = cyx_plan_reduction(call), .out = call->out.data, .divisor = 1};
    if (call->op == CYX_OP_mean) r.divisor = (T)r.plan.total_terms;
    if (r.plan.inner > CYX_LONGEST_RUN) {
        r.plan.terms = r.plan.reduced[0] = (r.plan.inner + RUN_BLOCK - 1) / RUN_BLOCK;
        r.plan.inner = r.plan.reduced_stride[0] = RUN_BLOCK, r.plan.reduced_count = 1;
    }
    NAME(join_runs)(&r, sums);
}

static cyx_status NAME(reduce)(const cyx_call *call, const NAME(fold) * fold, int is_mean) {
    NAME(reduction)
    r = {.fold = fold,
         .plan = cyx_plan_reduction(call),
         .x = call->in[0].data,
         .lines = (const T *const *)call->lines,
         .out = call->out.data,
         .divisor = 1};
    if (cyx_asked && fold == &NAME(fold_sum)) {
        cyx_asked->body = NAME(sum_runs), cyx_asked->squares = NAME(squares_runs), cyx_asked->finish = NAME(finish_sums);
        cyx_asked->rows.walk.ndim = 1, cyx_asked->rows.walk.shape[0] = NAME(length_of_runs)(&r.plan);
        return CYX_OK;
    }
    if (!call->out.size) return CYX_OK;
    if (call->adding) return call->blocks ? NAME(add_matrix)(call) : NAME(add_band)(&r, call);
    if (call->group > 1) return NAME(add_sums)(call);
    if (!call->in[0].size) { /* the greatest of nothing is refused earlier */
        for (int64_t i = 0; i < call->out.size; i++) r.out[i] = is_mean ? (T)NAN : fold == &NAME(fold_prod) ? 1 : 0;
        return CYX_OK;
    }
    if (is_mean) r.divisor = (T)r.plan.total_terms;
    return r.plan.inner_is_reduced ? NAME(reduce_along_run)(&r) : NAME(reduce_across_rows)(&r);
}

static cyx_status NAME(reduce_sum)(const cyx_call *call) { return NAME(reduce)(call, &NAME(fold_sum), 0); }
static cyx_status NAME(reduce_mean)(const cyx_call *call) { return NAME(reduce)(call, &NAME(fold_sum), 1); }
static cyx_status NAME(reduce_prod)(const cyx_call *call) { return NAME(reduce)(call, &NAME(fold_prod), 0); }
static cyx_status NAME(reduce_max)(const cyx_call *call) { return NAME(reduce)(call, &NAME(fold_max), 0); }
static cyx_status NAME(reduce_min)(const cyx_call *call) { return NAME(reduce)(call, &NAME(fold_min), 0); }

static void NAME(fill_reduce)(cyx_table table) {
    table[CYX_OP_sum][DTYPE] = NAME(reduce_sum), table[CYX_OP_mean][DTYPE] = NAME(reduce_mean);
    table[CYX_OP_prod][DTYPE] = NAME(reduce_prod);
    table[CYX_OP_max][DTYPE] = NAME(reduce_max), table[CYX_OP_min][DTYPE] = NAME(reduce_min);
}

#undef MAX_ROWS
#undef MIN_ROWS
