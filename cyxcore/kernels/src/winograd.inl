/* 3 x 3 convolutions of float32 at stride 1, and their gradients, by Winograd's minimal filtering F(4 x 4, 3 x 3) (A. Lavin
 * and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016): thirty-six products for a tile of 4 x 4 outputs,
 * where the plain definition takes 144.
 *
 *     y = A' [ sum over channels of (G w G') * (B' d B) ] A     of a tile's 6 x 6 inputs d, and each 3 x 3 kernel w
 *     gradient of w = G' [ sum over tiles of (A g A') * (B' d B) ] G     of the 4 x 4 gradients g of its outputs
 *
 *     B' = 1   0  -5/2    0   1  0    G = 1       0      0       A = 1   0   0    0
 *          0  -2p  -2     p   1  0        -2/3  -2p/3  -1/3          1   p  1/2  p/2
 *          0   2p  -2    -p   1  0        -2/3   2p/3  -1/3          1  -p  1/2 -p/2
 *          0  -q/2 -1/2   q   1  0         1/6   q/6    1/3          1   q   2   2q
 *          0   q/2 -1/2  -q   1  0         1/6  -q/6    1/3          1  -q   2  -2q
 *          0   1    0   -5/2  0  1         0      0      1           0   0   0    1
 *
 * which is what the polynomials of the points 0, p, -p, q, -q and infinity give. p = 1/sqrt(2) and q = sqrt(2) lose least of
 * float32: 0.9 bits more than the plain definition's chains, where the usual 1 and 2 lose 2.0 (decision 56).
 *
 * What the bits are: each transform is computed as in the five functions below, first along rows, then along columns; between
 * them every one of the thirty-six positions is a chain of fused multiply-adds from zero, over channels in order, or for the
 * weight over images and their tiles in order. Which convolutions are made so depends on their shapes alone. */

enum {
    TILE_OUT = 4, /* outputs of a tile along each axis, and the inputs that they read */
    TILE_IN = 6,
    POSITIONS = TILE_IN * TILE_IN,
    TILED_CHANNELS = 16, /* with fewer, the transforms cost more than they save */
    FEW_PANELS = 4,      /* of tiles: more, and all weights are transformed beforehand */
    MOST_SEGMENTS = 4,   /* lines of tiles in a vector */
    LEAST_TILES = 64,    /* of the weight's gradient at once; more where they fit in TILED_BYTES */
    TILED_BYTES = 1 << 20
};

#define P_POINT ((T)0.70710678118654752440)
#define Q_POINT ((T)1.41421356237309504880)

/* B' d */
static inline __attribute__((always_inline)) void NAME(of_inputs)(const V *d, V *t) {
    V p = SPLAT(P_POINT), q = SPLAT(Q_POINT), wide = SPLAT((T)-2.5);
    V even = FMA_V(SPLAT((T)-2), d[2], d[4]), odd = FMA_V(SPLAT((T)-2), d[1], d[3]);
    V next_even = FMA_V(SPLAT((T)-0.5), d[2], d[4]), next_odd = FMA_V(SPLAT((T)-0.5), d[1], d[3]);
    t[0] = FMA_V(wide, d[2], d[0] + d[4]);
    t[1] = FMA_V(p, odd, even), t[2] = FMA_V(-p, odd, even);
    t[3] = FMA_V(q, next_odd, next_even), t[4] = FMA_V(-q, next_odd, next_even);
    t[5] = FMA_V(wide, d[3], d[1] + d[5]);
}

/* G w */
static inline __attribute__((always_inline)) void NAME(of_taps)(const V *w, V *t) {
    V p = SPLAT(P_POINT), q = SPLAT(Q_POINT), third = SPLAT((T)(-2.0 / 3)), sixth = SPLAT((T)(1.0 / 6));
    V sum = FMA_V(SPLAT((T)0.5), w[2], w[0]), next_sum = FMA_V(SPLAT((T)2), w[2], w[0]);
    t[0] = w[0];
    t[1] = FMA_V(p, w[1], sum) * third, t[2] = FMA_V(-p, w[1], sum) * third;
    t[3] = FMA_V(q, w[1], next_sum) * sixth, t[4] = FMA_V(-q, w[1], next_sum) * sixth;
    t[5] = w[2];
}

/* A g */
static inline __attribute__((always_inline)) void NAME(of_gradients)(const V *g, V *t) {
    V p = SPLAT(P_POINT), q = SPLAT(Q_POINT);
    V even = FMA_V(SPLAT((T)0.5), g[2], g[0]), odd = FMA_V(SPLAT((T)0.5), g[3], g[1]);
    V next_even = FMA_V(SPLAT((T)2), g[2], g[0]), next_odd = FMA_V(SPLAT((T)2), g[3], g[1]);
    t[0] = g[0];
    t[1] = FMA_V(p, odd, even), t[2] = FMA_V(-p, odd, even);
    t[3] = FMA_V(q, next_odd, next_even), t[4] = FMA_V(-q, next_odd, next_even);
    t[5] = g[3];
}

/* A' m */
static inline __attribute__((always_inline)) void NAME(to_outputs)(const V *m, V *y) {
    V sum = m[1] + m[2], apart = SPLAT(P_POINT) * (m[1] - m[2]), next_sum = m[3] + m[4],
      next_apart = SPLAT(Q_POINT) * (m[3] - m[4]);
    y[0] = (m[0] + sum) + next_sum;
    y[1] = apart + next_apart;
    y[2] = FMA_V(SPLAT((T)2), next_sum, sum * SPLAT((T)0.5));
    y[3] = FMA_V(SPLAT((T)2), next_apart, FMA_V(SPLAT((T)0.5), apart, m[5]));
}

/* G' m */
static inline __attribute__((always_inline)) void NAME(to_taps)(const V *m, V *w) {
    V third = SPLAT((T)(-2.0 / 3)), sixth = SPLAT((T)(1.0 / 6));
    V sum = third * (m[1] + m[2]), apart = third * (m[1] - m[2]), next_sum = sixth * (m[3] + m[4]),
      next_apart = sixth * (m[3] - m[4]);
    w[0] = (m[0] + sum) + next_sum;
    w[1] = FMA_V(SPLAT(P_POINT), apart, SPLAT(Q_POINT) * next_apart);
    w[2] = FMA_V(SPLAT((T)2), next_sum, FMA_V(SPLAT((T)0.5), sum, m[5]));
}

#define EVEN_LANE(j, h) (2 * (j) + (h))
#define WOVEN_LANE(j, h) ((j) / 2 + (j) % 2 * VN + (h))
/* Every second element of two vectors, from the first or the second on; and back. */
#define EVENS(a, b) TWO_VECTORS(a, b, EACH_LANE(EVEN_LANE, 0))
#define ODDS(a, b) TWO_VECTORS(a, b, EACH_LANE(EVEN_LANE, 1))
#define MIX_LOW(a, b) TWO_VECTORS(a, b, EACH_LANE(WOVEN_LANE, 0))
#define MIX_HIGH(a, b) TWO_VECTORS(a, b, EACH_LANE(WOVEN_LANE, VN / 2))

/* A convolution of `planes` channels to `rows` in each group; the canvas is a plane with its border of zeros,
 * on which lines and tiles are counted: nobody writes it. */
typedef struct {
    NAME(unfolding) canvas;
    int64_t images, groups, planes, rows, out_h, out_w, tiles_w, tiles; /* tiles: of one image */
    const T *image;
    T *out;
    const T *mask; /* an image like out, whose every pixel is multiplied by (mask > than ? 1 : 0); or NULL */
    T than;
    const T *weight; /* transformed: [group][rows / MR][position][plane][MR] */
    int64_t panels;  /* of NR tiles, through all images */
    _Atomic int no_memory;
} NAME(tiled);

/* Tiles next to each other in one line of them: `count`, beginning at tile (y, x) of image n. */
typedef struct {
    int64_t n, y, x, count;
} NAME(run);

/* The tiles from `first` on that lie in one line, at most `most`. */
static inline NAME(run) NAME(run_from)(const NAME(tiled) * p, int64_t first, int64_t most) {
    int64_t n = first / p->tiles, tile = first % p->tiles, y = tile / p->tiles_w, x = tile % p->tiles_w;
    return (NAME(run)){n, y, x, p->tiles_w - x < most ? p->tiles_w - x : most};
}

/* The same, but through all lines of its image, where those are short. */
static inline NAME(run) NAME(part_from)(const NAME(tiled) * p, int64_t first, int64_t most) {
    NAME(run) part = NAME(run_from)(p, first, most);
    int64_t left = p->tiles - first % p->tiles;
    if (p->tiles_w <= NR) part.count = left < most ? left : most;
    return part;
}

/* How many lines of image n's canvas its tiles before `stop`, counted through all images, reach. */
static inline int64_t NAME(lines_to)(const NAME(tiled) * p, int64_t n, int64_t stop) {
    int64_t tiles = stop - n * p->tiles < p->tiles ? stop - n * p->tiles : p->tiles;
    return TILE_OUT * ((tiles - 1) / p->tiles_w) + TILE_IN;
}

/* Elements that see_part() works in for `count` tiles. */
static inline int64_t NAME(of_half)(const NAME(tiled) * p, int64_t count) {
    return TILE_OUT * TILE_IN * (count + (2 + MOST_SEGMENTS) * p->tiles_w + VN);
}

/* A vector of pixels, zeros where the bit of a lane is not set. */
static inline __attribute__((always_inline)) V NAME(pixels)(const T *from, uint32_t there) {
#if defined(LOAD_LANES_f32)
    return (V)LOAD_LANES_f32(from, there);
#else
    if (there == (1u << VN) - 1) return *(const V *)from;
    V found = {0};
    for (int i = 0; i < VN; i++)
        if (there >> i & 1) found[i] = from[i];
    return found;
#endif
}

/* The lanes of a vector that begins at element `first` which are those of [0, count). */
static inline uint32_t NAME(lanes_within)(int64_t first, int64_t count) {
    int64_t begin = first < 0 ? -first : 0, end = count - first < VN ? count - first : VN;
    return begin < end ? (1u << end) - (1u << begin) : 0;
}

typedef T NAME(half_vector) __attribute__((vector_size(VN / 2 * sizeof(T)), aligned(sizeof(T)), may_alias));
typedef T NAME(quarter_vector) __attribute__((vector_size(VN / 4 * sizeof(T)), aligned(sizeof(T)), may_alias));
typedef union {
    V whole;
    NAME(half_vector) half[2];
    NAME(quarter_vector) quarter[4];
} NAME(segments);

/* The first half of see_part(): lines of pixels. Short ones are S segments of a vector, from lines of tiles below each other. */
static inline __attribute__((always_inline)) void NAME(see_lines)(const int S, const NAME(tiled) * p, const T *image, int64_t y,
                                                                  int64_t x, int64_t lines, int64_t width, int64_t next,
                                                                  T *half) {
    const int64_t w = p->canvas.w, h = p->canvas.h, plane = h * w, tall = TILE_OUT * w, half_line = TILE_IN * next;
    const int tiles = VN / S, vectors = TILE_OUT / S; /* of a line in a vector; of their pixels */
    for (int64_t i = 0; i < width; i += tiles) {
        int64_t first = width > tiles && i + tiles > width ? width - tiles : i;
        int64_t column = TILE_OUT * (x + first) - p->canvas.left, row = TILE_OUT * y - p->canvas.top;
        uint32_t there[2][TILE_OUT];
        for (int n = 0; n < 2; n++)
            for (int v = 0; v < vectors; v++) there[n][v] = NAME(lanes_within)(column + TILE_OUT * n + v * VN, w);
        const T *from = image + row * w + column;
        T *to = half + first;
        for (int64_t line = 0; line <= lines; line += S, row += (S - 1) * TILE_OUT, from += (S - 1) * tall, to += S * width) {
            T *at = to;
            int64_t count = line < lines ? TILE_OUT : TILE_IN - TILE_OUT;
            for (int64_t k = 0; k < count; k++, row++, from += w, at += half_line) {
                V d[2 * TILE_OUT], t[TILE_IN];
                uint32_t inside[MOST_SEGMENTS];
                _Pragma("GCC unroll 4") for (int s = 0; s < S; s++)
                    inside[s] = (uint64_t)(row + TILE_OUT * s) < (uint64_t)h ? ~0u : 0;
                _Pragma("GCC unroll 2") for (int n = 0; n < 2; n++) { /* the pixels of each tile, and of the next one */
                    V a[TILE_OUT];
                    _Pragma("GCC unroll 4") for (int s = 0; s < S; s++)
                        _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++) {
                            const T *pixel = from + s * tall + TILE_OUT * n + v * VN;
                            a[s * vectors + v] = NAME(pixels)(pixel, there[n][v] & inside[s]);
                            if (!n) __builtin_prefetch(CYX_BEYOND(pixel, plane)); /* of the next plane */
                        }
                    V even = EVENS(a[0], a[1]), next_even = EVENS(a[2], a[3]), odd = ODDS(a[0], a[1]), next_odd = ODDS(a[2], a[3]);
                    d[TILE_OUT * n] = EVENS(even, next_even), d[TILE_OUT * n + 1] = EVENS(odd, next_odd);
                    d[TILE_OUT * n + 2] = ODDS(even, next_even), d[TILE_OUT * n + 3] = ODDS(odd, next_odd);
                }
                NAME(of_inputs)(d, t);
                _Pragma("GCC unroll 6") for (int j = 0; j < TILE_IN; j++) {
                    NAME(segments) made = {t[j]};
                    if (S == 1) *(V *)(at + j * next) = t[j];
                    _Pragma("GCC unroll 4") for (int s = 0; s < S; s++)
                        if (S == 2)
                            *(NAME(half_vector) *)(at + j * next + s * width) = made.half[s];
                        else if (S == 4)
                            *(NAME(quarter_vector) *)(at + j * next + s * width) = made.quarter[s];
                }
            }
        }
    }
}

/* The second half: what came of its lines, down each tile of a vector. whole: all of it may be written. */
static inline __attribute__((always_inline)) void NAME(see_columns)(const int whole, const T *half, int64_t width, int64_t next, T *to,
                                                                    int64_t apart, int64_t room) {
    const T *low = half + TILE_IN * 2 * next;
    int64_t line = TILE_IN * next, six = TILE_IN * apart;
    for (int64_t j = 0; j < TILE_IN; j++, half += next, low += next, to += apart) {
        V t[TILE_IN], d[TILE_IN] = {*(const V *)half, *(const V *)(half + line), *(const V *)low, *(const V *)(low + line),
                                    *(const V *)(half + width), *(const V *)(half + width + line)};
        NAME(of_inputs)(d, t);
        T *down = to;
        _Pragma("GCC unroll 6") for (int k = 0; k < TILE_IN; k++, down += six)
            if (whole)
                *(V *)down = t[k];
            else
                NAME(put_part)(down, t[k], room);
    }
}

/* B' d B of tiles one behind the other, from tile (y, x) of a plane on: position i of tile j to[i * apart + j], of which `room` may be
 * written. Lines of pixels are transformed first, each for both lines of tiles that it is part of: half[line % TILE_OUT][j][line /
 * TILE_OUT][tile], so that tiles of several lines are next to each other. */
static void NAME(see_part)(const NAME(tiled) * p, const T *image, int64_t y, int64_t x, int64_t count, T *half, T *to, int64_t apart,
                           int64_t room) {
    int64_t width = p->tiles_w, lines = (x + count + width - 1) / width, begin = 0;
    if (lines == 1) begin = x, width = count, x = 0;
    int64_t next = (lines + MOST_SEGMENTS) * width + VN; /* of a line, up to VN tiles too many */
    if (4 * width <= VN && VN >= 16)
        NAME(see_lines)(4, p, image, y, begin, lines, width, next, half);
    else if (2 * width <= VN && VN >= 8)
        NAME(see_lines)(2, p, image, y, begin, lines, width, next, half);
    else
        NAME(see_lines)(1, p, image, y, begin, lines, width, next, half);
    for (int64_t i = 0; i < count; i += VN)
        if (room - i >= VN)
            NAME(see_columns)(1, half + x + i, width, next, to + i, apart, VN);
        else
            NAME(see_columns)(0, half + x + i, width, next, to + i, apart, room - i);
}

/* G w G' of all kernels. */
typedef struct {
    const NAME(tiled) * p;
    const T *weight;
    T *packed;
    int turned; /* rows are the weight's input channels, and its taps are read backwards */
    _Atomic int no_memory;
} NAME(tiled_weights);

static inline int64_t NAME(weights_apart)(const NAME(tiled) * p) { return p->planes * MR + APART; } /* from position to position */

static inline int64_t NAME(row_blocks)(const NAME(tiled) * p) { return (p->rows + MR - 1) / MR; } /* of a group */

static inline int64_t NAME(of_weights)(const NAME(tiled) * p) { return POSITIONS * NAME(weights_apart)(p); } /* of a block */

static inline int64_t NAME(of_all_taps)(const NAME(tiled) * p) { return 9 * p->planes * MR + NAME(SLACK); } /* of a block */

/* MR rows of one group, side by side in vectors: to[position * apart + plane * MR + row]. taps: room for [plane][9][MR]. */
static void NAME(transform_weights)(const NAME(tiled_weights) * own, int64_t block, T *taps, T *to) {
    const NAME(tiled) *p = own->p;
    int64_t group = block / NAME(row_blocks)(p), first = block % NAME(row_blocks)(p) * MR, apart = NAME(weights_apart)(p);
    int64_t rows = p->rows - first < MR ? p->rows - first : MR;
    if (!own->turned)
        NAME(transpose)(own->weight + 9 * (group * p->rows + first) * p->planes, 9 * p->planes, taps, MR, rows, 9 * p->planes);
    for (int64_t c = 0; own->turned && c < p->planes; c++)
        NAME(transpose_columns)(own->weight + 9 * ((group * p->planes + c) * p->rows + first), 9, taps + 9 * c * MR, MR, rows, 0, 9);
    for (int64_t c = 0; c < p->planes; c++, to += MR) {
        V t[3][TILE_IN];
        for (int j = 0; j < 3; j++) {
            const T *tap = taps + (9 * c + (own->turned ? 8 - j : j)) * MR;
            int64_t next = own->turned ? -3 * MR : 3 * MR;
            V w[3] = {*(const V *)tap, *(const V *)(tap + next), *(const V *)(tap + 2 * next)};
            NAME(of_taps)(w, t[j]);
        }
        for (int i = 0; i < TILE_IN; i++) {
            V w[3] = {t[0][i], t[1][i], t[2][i]}, made[TILE_IN];
            NAME(of_taps)(w, made);
            for (int j = 0; j < TILE_IN; j++) *(V *)(to + (TILE_IN * i + j) * apart) = made[j];
        }
    }
}

static void NAME(tiled_weights_body)(void *context, int64_t begin, int64_t end) {
    NAME(tiled_weights) *own = context;
    T *taps = cyx_scratch(1, sizeof(T) * (size_t)NAME(of_all_taps)(own->p));
    if (!taps) {
        own->no_memory = 1;
        return;
    }
    for (int64_t block = begin; block < end; block++)
        NAME(transform_weights)(own, block, taps, own->packed + block * NAME(of_weights)(own->p));
}

/* Where the outputs of the first row of a run begin. */
static inline T *NAME(outputs_of)(const NAME(tiled) * p, const NAME(run) * run, int64_t group, int64_t row) {
    return p->out + (((run->n * p->groups + group) * p->rows + row) * p->out_h + TILE_OUT * run->y) * p->out_w + TILE_OUT * run->x;
}

/* How many of a tile's lines there are. */
static inline int64_t NAME(lines_of)(const NAME(tiled) * p, const NAME(run) * run) {
    return p->out_h - TILE_OUT * run->y < TILE_OUT ? p->out_h - TILE_OUT * run->y : TILE_OUT;
}

/* A line of outputs, times (mask > than ? 1 : 0). */
static inline void NAME(put_masked)(T *to, const T *from, const T *mask, T than, int64_t n) {
    for (int64_t i = 0; i < n; i += VN) {
        MASK kept = NAME(part)(mask + i, n - i, 0) > SPLAT(than);
        NAME(put_part)(to + i, NAME(part)(from + i, n - i, 0) * (V)((MASK)SPLAT((T)1) & kept), n - i);
    }
}

/* The lines of the cache that a panel's outputs will be written to: on their way while they are computed. */
static void NAME(fetch_tiles)(const NAME(tiled) * p, const NAME(run) * runs, int64_t group, int64_t first, int64_t rows) {
    for (const NAME(run) *run = runs; run->count; run++) {
        const T *to = NAME(outputs_of)(p, run, group, first);
        for (int64_t r = 0; r < rows; r++, to += p->out_h * p->out_w)
            for (int64_t line = 0; line < NAME(lines_of)(p, run); line++)
                for (int64_t x = 0; x < TILE_OUT * run->count; x += LINE) {
                    __builtin_prefetch(to + line * p->out_w + x, 1);
                    if (p->mask) __builtin_prefetch(p->mask + (to - p->out) + line * p->out_w + x);
                }
    }
}

/* A' m A of the tiles of a panel, rows [first, first + rows) of the group: position i of row r and tile j is
 * m[(i * MR + r) * NR + j]. */
static void NAME(emit_tiles)(const NAME(tiled) * p, const T *m, const NAME(run) * runs, int64_t vectors, int64_t group,
                             int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; r++, m += NR) {
        T lines[TILE_OUT][TILE_OUT * NR];
        for (int64_t w = 0; w < vectors; w++) {
            V t[TILE_IN][TILE_OUT];
            _Pragma("GCC unroll 6") for (int j = 0; j < TILE_IN; j++) {
                V position[TILE_IN];
                _Pragma("GCC unroll 6") for (int i = 0; i < TILE_IN; i++)
                    position[i] = *(const V *)(m + (TILE_IN * i + j) * MR * NR + w * VN);
                NAME(to_outputs)(position, t[j]);
            }
            _Pragma("GCC unroll 4") for (int i = 0; i < TILE_OUT; i++) {
                V across[TILE_IN] = {t[0][i], t[1][i], t[2][i], t[3][i], t[4][i], t[5][i]}, y[TILE_OUT];
                NAME(to_outputs)(across, y);
                V low = MIX_LOW(y[0], y[2]), high = MIX_HIGH(y[0], y[2]), next_low = MIX_LOW(y[1], y[3]),
                  next_high = MIX_HIGH(y[1], y[3]);
                V *to = (V *)(lines[i] + TILE_OUT * w * VN);
                to[0] = MIX_LOW(low, next_low), to[1] = MIX_HIGH(low, next_low);
                to[2] = MIX_LOW(high, next_high), to[3] = MIX_HIGH(high, next_high);
            }
        }
        int64_t at = 0;
        for (const NAME(run) *run = runs; run->count; at += TILE_OUT * run->count, run++) {
            T *to = NAME(outputs_of)(p, run, group, first + r);
            int64_t left = p->out_w - TILE_OUT * run->x, count = left < TILE_OUT * run->count ? left : TILE_OUT * run->count;
            const T *mask = p->mask ? p->mask + (to - p->out) : NULL;
            for (int64_t line = 0; line < NAME(lines_of)(p, run); line++, to += p->out_w)
                if (mask)
                    NAME(put_masked)(to, lines[line] + at, mask + line * p->out_w, p->than, count);
                else
                    NAME(copy)(to, lines[line] + at, count);
        }
    }
}

/* The runs of `count` tiles from `first` on, and one of none behind them. */
static void NAME(runs_of)(const NAME(tiled) * p, int64_t first, int64_t count, NAME(run) * runs) {
    for (int64_t done = 0; done < count; done += runs++->count) *runs = NAME(run_from)(p, first + done, count - done);
    runs->count = 0;
}

/* One task: a panel of tiles of one group, by all of its rows. */
static void NAME(tiled_body)(void *context, int64_t begin, int64_t end) {
    NAME(tiled) *p = context;
    const NAME(unfolding) *u = &p->canvas;
    int64_t total = p->images * p->tiles, apart = p->planes * NR + APART;
    T *seen = cyx_scratch(1, sizeof(T) * (size_t)(POSITIONS * (apart + MR * NR) + NAME(of_half)(p, NR)));
    T *m = seen + POSITIONS * apart, *half = m + POSITIONS * MR * NR;
    if (!seen) {
        p->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        int64_t group = task / p->panels, first = task % p->panels * NR;
        int64_t count = total - first < NR ? total - first : NR, vectors = (count + VN - 1) / VN;
        NAME(run) runs[NR + 1], part;
        NAME(runs_of)(p, first, count, runs);
        for (int64_t done = 0; done < count; done += part.count) {
            part = NAME(part_from)(p, first + done, count - done);
            const T *image = p->image + (part.n * p->groups + group) * p->planes * u->h * u->w;
            for (int64_t c = 0; c < p->planes; c++, image += u->h * u->w)
                NAME(see_part)(p, image, part.y, part.x, part.count, half, seen + c * NR + done, apart, NR - done);
        }
        const T *weight = p->weight + group * NAME(row_blocks)(p) * NAME(of_weights)(p);
        for (int64_t r = 0; r < p->rows; r += MR) {
            int64_t rows = p->rows - r < MR ? p->rows - r : MR;
            NAME(fetch_tiles)(p, runs, group, r, rows);
            for (int i = 0; i < POSITIONS; i++, weight += NAME(weights_apart)(p))
                NAME(packed_kernels)[rows - 1][vectors - 1](weight, MR, seen + i * apart, NR, m + i * MR * NR, NR,
                                                            p->planes, 0, NO_ENDING);
            NAME(emit_tiles)(p, m, runs, vectors, group, r, rows);
        }
    }
}

/* Few tiles by many channels, as of a small image alone: to write all weights transformed and to read them back would take
 * longer than the products. So the tiles of all planes are transformed first; then each block of rows has its weights made
 * where they are used. */
typedef struct {
    NAME(tiled) * p;
    NAME(tiled_weights) weights;
    T *seen; /* [group][position][plane][tile], whole panels of tiles */
    int64_t stride, seen_apart;
} NAME(few_tiles);

/* One task: a plane of all images. */
static void NAME(few_tiles_seen)(void *context, int64_t begin, int64_t end) {
    NAME(few_tiles) *few = context;
    NAME(tiled) *p = few->p;
    const NAME(unfolding) *u = &p->canvas;
    int64_t total = p->images * p->tiles, of_half = NAME(of_half)(p, p->tiles);
    T *half = cyx_scratch(1, sizeof(T) * (size_t)of_half);
    if (!half) {
        p->no_memory = 1;
        return;
    }
    for (int64_t task = begin; task < end; task++) {
        T *seen = few->seen + task / p->planes * POSITIONS * few->seen_apart + task % p->planes * few->stride;
        NAME(run) part;
        for (int64_t done = 0; done < total; done += part.count) {
            part = NAME(part_from)(p, done, total - done);
            NAME(see_part)(p, p->image + (part.n * p->groups * p->planes + task) * u->h * u->w, part.y, part.x, part.count, half,
                           seen + done, few->seen_apart, few->stride - done);
        }
    }
}

/* One task: MR rows of one group. */
static void NAME(few_tiles_body)(void *context, int64_t begin, int64_t end) {
    NAME(few_tiles) *few = context;
    NAME(tiled) *p = few->p;
    int64_t total = p->images * p->tiles, of_weights = NAME(of_weights)(p), of_m = POSITIONS * MR * NR;
    T *weight = cyx_scratch(1, sizeof(T) * (size_t)(of_weights + of_m + NAME(of_all_taps)(p))), *m = weight + of_weights;
    if (!weight) {
        p->no_memory = 1;
        return;
    }
    for (int64_t block = begin; block < end; block++) {
        int64_t group = block / NAME(row_blocks)(p), r = block % NAME(row_blocks)(p) * MR;
        int64_t rows = p->rows - r < MR ? p->rows - r : MR;
        NAME(transform_weights)(&few->weights, block, m + of_m, weight);
        for (int64_t first = 0; first < total; first += NR) {
            int64_t count = total - first < NR ? total - first : NR, vectors = (count + VN - 1) / VN;
            const T *seen = few->seen + group * POSITIONS * few->seen_apart + first;
            NAME(run) runs[NR + 1];
            NAME(runs_of)(p, first, count, runs);
            for (int i = 0; i < POSITIONS; i++) {
                const T *factors = weight + i * NAME(weights_apart)(p), *tiles = seen + i * few->seen_apart;
                T *to = m + i * MR * NR, turned[MR * VN];
                if (total >= MR) {
                    NAME(packed_kernels)[rows - 1][vectors - 1](factors, MR, tiles, few->stride, to, NR, p->planes, 0, NO_ENDING);
                    continue;
                }
                /* A vector of so few tiles would be mostly empty: one of rows is not. */
                NAME(packed_kernels)[count - 1][0](tiles, few->stride, factors, MR, turned, VN, p->planes, 0, NO_ENDING);
                for (int64_t tile = 0; tile < count; tile++)
                    for (int64_t row = 0; row < rows; row++) to[row * NR + tile] = turned[tile * VN + row];
            }
            NAME(emit_tiles)(p, m, runs, vectors, group, r, rows);
        }
    }
}

static cyx_status NAME(run_few_tiles)(NAME(tiled) * p, const T *weight, int turned) {
    NAME(few_tiles) few = {.p = p, .weights = {.p = p, .weight = weight, .turned = turned}, .stride = p->panels * NR + APART};
    few.seen_apart = p->planes * few.stride + APART;
    few.seen = cyx_scratch(0, sizeof(T) * (size_t)(p->groups * POSITIONS * few.seen_apart + NAME(SLACK)));
    if (!few.seen) return CYX_NO_MEMORY;
    int64_t planes = p->groups * p->planes, blocks = p->groups * NAME(row_blocks)(p);
    cyx_parallel(planes, cyx_grain(planes, (double)(POSITIONS * few.stride), 100000), NAME(few_tiles_seen), &few);
    double work = (double)NAME(of_weights)(p) * (1 + (double)p->panels * NV / 2);
    if (!p->no_memory) cyx_parallel(blocks, cyx_grain(blocks, work, 100000), NAME(few_tiles_body), &few);
    return p->no_memory ? CYX_NO_MEMORY : CYX_OK;
}

static cyx_status NAME(run_tiled)(NAME(tiled) * p, const T *weight, int turned) {
    p->panels = (p->images * p->tiles + NR - 1) / NR;
    if (p->panels <= FEW_PANELS) return NAME(run_few_tiles)(p, weight, turned);
    int64_t blocks = p->groups * NAME(row_blocks)(p), of_block = NAME(of_weights)(p);
    T *packed = cyx_scratch(0, sizeof(T) * (size_t)(blocks * of_block));
    if (!packed) return CYX_NO_MEMORY;
    NAME(tiled_weights) weights = {.p = p, .weight = weight, .packed = packed, .turned = turned};
    cyx_parallel(blocks, cyx_grain(blocks, (double)of_block, 100000), NAME(tiled_weights_body), &weights);
    if (weights.no_memory) return CYX_NO_MEMORY;
    p->weight = packed;
    double work = (double)(p->rows * p->planes) * POSITIONS * NR / 8.0;
    cyx_parallel(p->groups * p->panels, cyx_grain(p->groups * p->panels, work, 100000), NAME(tiled_body), p);
    return p->no_memory ? CYX_NO_MEMORY : CYX_OK;
}

/* Whether (planes -> rows) channels by a kernel of this shape, to out_h x out_w, are made by tiles: their 36 products
 * must be at least a third fewer than 9 for each output. ints as conv2d's. */
static int NAME(fits_tiles)(const int64_t *ints, const int64_t *weight, int64_t planes, int64_t rows, int64_t out_h,
                            int64_t out_w) {
    int64_t tiles = (out_h + TILE_OUT - 1) / TILE_OUT * ((out_w + TILE_OUT - 1) / TILE_OUT);
    return weight[2] == 3 && weight[3] == 3 && ints[0] == 1 && ints[1] == 1 && ints[4] == 1 && ints[5] == 1 &&
           planes >= TILED_CHANNELS && rows >= TILED_CHANNELS && 6 * tiles <= out_h * out_w;
}

/* The image x, and y of out_h x out_w made of it, by windows that begin `top` and `left` pixels outside of it. */
static NAME(tiled) NAME(cut_tiles)(const cyx_array *x, const cyx_array *y, int64_t groups, int64_t top, int64_t left) {
    int64_t tiles_h = (y->shape[2] + TILE_OUT - 1) / TILE_OUT, tiles_w = (y->shape[3] + TILE_OUT - 1) / TILE_OUT;
    return (NAME(tiled)){.canvas = {.h = x->shape[2],
                                    .w = x->shape[3],
                                    .top = top,
                                    .left = left},
                         .images = x->shape[0],
                         .groups = groups,
                         .planes = x->shape[1] / groups,
                         .rows = y->shape[1] / groups,
                         .out_h = y->shape[2],
                         .out_w = y->shape[3],
                         .tiles_w = tiles_w,
                         .tiles = tiles_h * tiles_w,
                         .image = x->data,
                         .out = y->data};
}

static cyx_status NAME(conv2d_by_tiles)(const cyx_call *call) {
    const cyx_array *x = &call->in[0], *w = &call->in[1], *y = &call->out;
    const int64_t *i = call->ints;
    if (!y->size || !NAME(fits_tiles)(i, w->shape, w->shape[1], w->shape[0] / i[6], y->shape[2], y->shape[3]))
        return NAME(conv2d)(call);
    NAME(tiled) p = NAME(cut_tiles)(x, y, i[6], i[2], i[3]);
    return NAME(run_tiled)(&p, w->data, 0);
}

/* The input's gradient is a convolution of the output's: the kernel turned round, its border 2 less the padding. */
static cyx_status NAME(conv2d_grad_input_by_tiles)(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *w = &call->in[1], *x = &call->out;
    const int64_t *i = call->ints;
    int by_tiles = x->size && g->size &&
                   NAME(fits_tiles)(i, w->shape, w->shape[0] / i[6], w->shape[1], x->shape[2], x->shape[3]);
    if (cyx_asked) {
        cyx_asked->masks = by_tiles;
        return CYX_OK;
    }
    if (!by_tiles) return NAME(conv2d_grad_input)(call);
    NAME(tiled) p = NAME(cut_tiles)(g, x, i[6], 2 - i[2], 2 - i[3]);
    if (call->group == CYX_MASKED_GROUP) {
        const cyx_call *greater = call + 1, *masked = call + 3;
        p.mask = greater->in[0].data, p.than = *(const T *)greater->in[1].data, p.out = masked->out.data;
    }
    return NAME(run_tiled)(&p, w->data, 1);
}

/* The weight's gradient is made in blocks of planes by rows, each by a thread of its own, which transforms what its block needs: to
 * read what another core has just written, or to write where it has read, costs more than to do it twice. Some tiles at a time, of
 * all images in order, are transformed on both sides; then each position of theirs is added to its sums. */
typedef struct {
    NAME(tiled) of; /* .out is not used */
    const T *g;
    T *gradient;
    int64_t planes, rows, plane_blocks, row_blocks; /* of a block, but for the last ones; blocks of a group */
    int64_t grain;
    _Atomic int no_memory;
} NAME(tiled_sums);

/* One of those blocks, and the tiles at work. */
typedef struct {
    const NAME(tiled) * of;
    const T *x, *g; /* of its first plane and row in the first image */
    int64_t planes, rows, width, first, count, most; /* rows in whole panels; tiles: at most `most` */
    int64_t stride, seen_apart, panels_apart, sums_apart; /* from plane to plane of `seen`; from position to position */
    T *seen, *panels, *sums; /* [position][plane][tile]; [position][panel][tile][NR]; [position][plane][width] */
    T *half, *own; /* a plane's lines, transformed; four lines of the gradient */
} NAME(tiled_block);

/* The tiles at work of each plane. */
static void NAME(see_planes)(const NAME(tiled_block) * s) {
    const NAME(tiled) *p = s->of;
    const NAME(unfolding) *u = &p->canvas;
    for (int64_t plane = 0; plane < s->planes; plane++) {
        NAME(run) part;
        for (int64_t done = 0; done < s->count; done += part.count) {
            part = NAME(part_from)(p, s->first + done, s->count - done);
            NAME(see_part)(p, s->x + (part.n * p->groups * p->planes + plane) * u->h * u->w, part.y, part.x, part.count, s->half,
                           s->seen + plane * s->stride + done, s->seen_apart, s->stride - done);
        }
    }
}

/* A g A' of NR channels of a run of tiles: to[i * apart + tile * NR + channel]; pixels: [TILE_OUT][TILE_OUT * count][NR]. */
static void NAME(see_gradient)(const T *pixels, int64_t line, int64_t count, T *to, int64_t apart) {
    for (int64_t tile = 0; tile < count; tile++, pixels += TILE_OUT * NR, to += NR)
        for (int w = 0; w < NV; w++) {
            V t[TILE_OUT][TILE_IN];
            _Pragma("GCC unroll 4") for (int j = 0; j < TILE_OUT; j++) {
                V g[TILE_OUT];
                _Pragma("GCC unroll 4") for (int i = 0; i < TILE_OUT; i++)
                    g[i] = *(const V *)(pixels + i * line + j * NR + w * VN);
                NAME(of_gradients)(g, t[j]);
            }
            _Pragma("GCC unroll 6") for (int i = 0; i < TILE_IN; i++) {
                V g[TILE_OUT] = {t[0][i], t[1][i], t[2][i], t[3][i]}, made[TILE_IN];
                NAME(of_gradients)(g, made);
                _Pragma("GCC unroll 6") for (int j = 0; j < TILE_IN; j++)
                    *(V *)(to + (TILE_IN * i + j) * apart + w * VN) = made[j];
            }
        }
}

/* The tiles at work of each panel of the gradient's channels. */
static void NAME(see_panels)(const NAME(tiled_block) * s) {
    const NAME(tiled) *p = s->of;
    int64_t pixels = p->out_h * p->out_w;
    for (int64_t row = 0; row < s->width; row += NR) {
        int64_t channels = s->rows - row < NR ? s->rows - row : NR;
        NAME(run) run;
        for (int64_t done = 0; done < s->count; done += run.count) {
            run = NAME(run_from)(p, s->first + done, s->count - done);
            const T *g = s->g + (run.n * p->groups * p->rows + row) * pixels + TILE_OUT * run.y * p->out_w + TILE_OUT * run.x;
            int64_t of_line = TILE_OUT * run.count * NR, left = p->out_w - TILE_OUT * run.x, lines = NAME(lines_of)(p, &run);
            if (!run.x && left == TILE_OUT * run.count && lines == TILE_OUT) /* all lines are one */
                NAME(pack_panel)(g, pixels, 1, s->own, TILE_OUT * left, channels);
            else
                for (int i = 0; i < TILE_OUT; i++) {
                    T *line = s->own + i * of_line;
                    int64_t there = i >= lines ? 0 : left < TILE_OUT * run.count ? left : TILE_OUT * run.count;
                    if (there) NAME(pack_panel)(g + i * p->out_w, pixels, 1, line, there, channels);
                    memset(line + there * NR, 0, sizeof(T) * (size_t)((TILE_OUT * run.count - there) * NR));
                }
            NAME(see_gradient)(s->own, of_line, run.count, s->panels + row * s->count + done * NR, s->panels_apart);
        }
    }
}

/* Lines [begin, end) of a plane that holds h lines of w, as far as there are any: on their way to the second-level cache. */
static inline void NAME(fetch_lines)(const T *plane, int64_t h, int64_t w, int64_t begin, int64_t end) {
    if (begin < 0) begin = 0;
    if (end > h) end = h;
    for (const T *at = plane + begin * w; at < plane + end * w; at += LINE) __builtin_prefetch(at, 0, 2);
}

/* A part of what tiles [first, end) read, of all planes and rows: parts are numbered from 0 to `parts`. */
static void NAME(fetch_part)(const NAME(tiled_block) * s, int64_t first, int64_t end, int64_t part, int64_t parts) {
    const NAME(tiled) *p = s->of;
    const NAME(unfolding) *u = &p->canvas;
    int64_t channels = s->planes + s->rows, pixels = p->out_h * p->out_w;
    for (int64_t n = first / p->tiles; n * p->tiles < end; n++) {
        int64_t begin = first > n * p->tiles ? TILE_OUT * (first % p->tiles / p->tiles_w) : 0, stop = NAME(lines_to)(p, n, end);
        for (int64_t i = channels * part / parts; i < channels * (part + 1) / parts; i++)
            if (i < s->planes)
                NAME(fetch_lines)(s->x + (n * p->groups * p->planes + i) * u->h * u->w, u->h, u->w, begin - u->top, stop - u->top);
            else
                NAME(fetch_lines)(s->g + (n * p->groups * p->rows + i - s->planes) * pixels, p->out_h, p->out_w, begin, stop - (TILE_IN - TILE_OUT));
    }
}

/* Every position of the tiles at work onto its sums; meanwhile the memory sends what the next tiles need. */
static void NAME(add_tiles)(const NAME(tiled_block) * s) {
    int64_t heights = (s->planes + MR - 1) / MR, parts = POSITIONS * heights;
    int64_t first = s->first + s->count, total = s->of->images * s->of->tiles, end = first + s->most < total ? first + s->most : total;
    for (int64_t position = 0; position < POSITIONS; position++)
        for (int64_t r = 0; r < s->planes; r += MR) {
            int64_t planes = s->planes - r < MR ? s->planes - r : MR;
            if (first < end) NAME(fetch_part)(s, first, end, position * heights + r / MR, parts);
            for (int64_t column = 0; column < s->width; column += NR) {
                int64_t vectors = s->rows - column < NR ? (s->rows - column + VN - 1) / VN : NV;
                NAME(rows_kernels)[planes - 1][vectors - 1](
                    s->seen + position * s->seen_apart + r * s->stride, s->stride,
                    s->panels + position * s->panels_apart + column * s->count, NR,
                    s->sums + position * s->sums_apart + r * s->width + column, s->width, s->count, 1, NO_ENDING);
            }
        }
}

/* G' m G of every plane: [plane][9][width]. */
static void NAME(make_taps)(const NAME(tiled_block) * s, T *taps) {
    int64_t apart = s->sums_apart;
    for (int64_t plane = 0; plane < s->planes; plane++)
        for (int64_t column = 0; column < s->width; column += VN) {
            const T *m = s->sums + plane * s->width + column;
            T *to = taps + plane * 9 * s->width + column;
            V t[TILE_IN][3];
            for (int j = 0; j < TILE_IN; j++) {
                V position[TILE_IN];
                for (int i = 0; i < TILE_IN; i++) position[i] = *(const V *)(m + (TILE_IN * i + j) * apart);
                NAME(to_taps)(position, t[j]);
            }
            for (int i = 0; i < 3; i++) {
                V across[TILE_IN] = {t[0][i], t[1][i], t[2][i], t[3][i], t[4][i], t[5][i]}, w[3];
                NAME(to_taps)(across, w);
                for (int j = 0; j < 3; j++) *(V *)(to + (3 * i + j) * s->width) = w[j];
            }
        }
}

/* One task: a block of a group. */
static void NAME(tiled_sums_body)(void *context, int64_t begin, int64_t end) {
    NAME(tiled_sums) *all = context;
    const NAME(tiled) *p = &all->of;
    const NAME(unfolding) *u = &p->canvas;
    for (int64_t task = begin; task < end; task++) {
        int64_t block = task % (all->plane_blocks * all->row_blocks), group = task / (all->plane_blocks * all->row_blocks);
        int64_t plane = block / all->row_blocks * all->planes, row = block % all->row_blocks * all->rows;
        NAME(tiled_block)
        s = {.of = p,
             .x = p->image + (group * p->planes + plane) * u->h * u->w,
             .g = all->g + (group * p->rows + row) * p->out_h * p->out_w,
             .planes = p->planes - plane < all->planes ? p->planes - plane : all->planes,
             .rows = p->rows - row < all->rows ? p->rows - row : all->rows};
        s.width = (s.rows + NR - 1) / NR * NR;
        int64_t near = TILED_BYTES / ((int64_t)sizeof(T) * POSITIONS * (s.planes + s.width)), total = p->images * p->tiles;
        s.most = near < LEAST_TILES ? LEAST_TILES : near;
        if (s.most > p->tiles_w) s.most -= s.most % p->tiles_w; /* whole lines are turned faster */
        if (s.most > total) s.most = total;
        s.stride = s.most + APART, s.seen_apart = s.planes * s.stride + APART, s.panels_apart = s.width * s.most + APART;
        s.sums_apart = s.planes * s.width + APART;
        int64_t of_own = TILE_OUT * TILE_OUT * p->tiles_w * NR, taps = 9 * s.planes * s.width, of_half = NAME(of_half)(p, s.most);
        int64_t sides = POSITIONS * (s.seen_apart + s.panels_apart), of_sums = POSITIONS * s.sums_apart;
        s.sums = cyx_scratch(1, sizeof(T) * (size_t)(of_sums + (sides > taps ? sides : taps) + of_half + of_own + NAME(SLACK)));
        if (!s.sums) {
            all->no_memory = 1;
            return;
        }
        s.panels = s.sums + of_sums, s.seen = s.panels + POSITIONS * s.panels_apart;
        s.half = s.panels + (sides > taps ? sides : taps), s.own = s.half + of_half;
        memset(s.sums, 0, sizeof(T) * (size_t)of_sums);
        for (; s.first < total; s.first += s.count) {
            s.count = total - s.first < s.most ? total - s.first : s.most;
            NAME(see_planes)(&s);
            NAME(see_panels)(&s);
            NAME(add_tiles)(&s);
        }
        NAME(make_taps)(&s, s.panels);
        int64_t k = 9 * p->planes;
        NAME(put_turned)(s.panels, s.width, all->gradient + (group * p->rows + row) * k + 9 * plane, k, 9 * s.planes, s.rows);
    }
}

/* Cuts planes and rows so that the threads are through soonest. For each tile a block takes the time of its products, and of some
 * for each plane and each row that it transforms: more for planes, whose tiles overlap. */
static void NAME(cut_blocks)(NAME(tiled_sums) * s) {
    enum { PER_PLANE = 16, PER_ROW = 8, LEAST_WORK = 100000 };
    const NAME(tiled) *p = &s->of;
    double work = (double)(p->groups * p->planes * p->rows) * (double)(p->images * p->tiles) * POSITIONS / 8.0 / LEAST_WORK;
    int64_t threads = work < 1 ? 1 : work < cyx_threads() ? (int64_t)work : cyx_threads(), least = INT64_MAX;
    int64_t heights = (p->planes + MR - 1) / MR, panels = (p->rows + NR - 1) / NR;
    for (int64_t m = 1; m <= heights && m <= 2 * threads; m++)
        for (int64_t n = 1; n <= panels && n <= 2 * threads; n++) {
            int64_t planes = (p->planes + m - 1) / m, rows = (panels + n - 1) / n * NR;
            int64_t cost = (p->groups * m * n + threads - 1) / threads * (planes * rows + PER_PLANE * planes + PER_ROW * rows);
            if (cost >= least) continue;
            least = cost;
            s->planes = planes, s->plane_blocks = (p->planes + planes - 1) / planes;
            s->rows = rows, s->row_blocks = (p->rows + rows - 1) / rows;
        }
    s->grain = threads == 1 ? p->groups : 1;
}

static cyx_status NAME(conv2d_grad_weight_by_tiles)(const cyx_call *call) {
    const cyx_array *g = &call->in[0], *x = &call->in[1], *w = &call->out;
    const int64_t *i = call->ints;
    if (!w->size || !g->size || !x->size ||
        !NAME(fits_tiles)(i, w->shape, w->shape[1], w->shape[0] / i[6], g->shape[2], g->shape[3]))
        return NAME(conv2d_grad_weight)(call);
    NAME(tiled_sums) s = {.of = NAME(cut_tiles)(x, g, i[6], i[2], i[3]), .g = g->data, .gradient = w->data};
    NAME(cut_blocks)(&s);
    cyx_parallel(s.of.groups * s.plane_blocks * s.row_blocks, s.grain, NAME(tiled_sums_body), &s);
    return s.no_memory ? CYX_NO_MEMORY : CYX_OK;
}

static void NAME(fill_winograd)(cyx_table table) {
    table[CYX_OP_conv2d][DTYPE] = NAME(conv2d_by_tiles);
    table[CYX_OP_conv2d_grad_input][DTYPE] = NAME(conv2d_grad_input_by_tiles);
    table[CYX_OP_conv2d_grad_weight][DTYPE] = NAME(conv2d_grad_weight_by_tiles);
}
