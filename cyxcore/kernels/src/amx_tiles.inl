/* Making tiles of float32, and multiplying them. Compiled with AMX and AVX-512 turned on. */

#ifdef CYX_EMULATE_AMX
#include "amx_emulated.h"
#endif

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Eight tiles of 16 rows of 64 bytes. A thread's own; another library may have left others. */
static inline void tiles_begin(void) {
    tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = 64, shapes.rows[i] = TILE_ROWS;
    __asm__ volatile("" ::"r"(&shapes) : "memory"); /* gcc 12 does not know that the next line reads it all */
    _tile_loadconfig(&shapes);
}

static inline void tiles_end(void) { _tile_release(); }

static inline __mmask16 first(int64_t count) { return (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1); }

static inline __m512i alternating(__m512i low_then_high) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                         3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, low_then_high);
}

/* At -O2 gcc leaves short loops, and with them what they work on in memory. */
#if defined(__clang__)
#define UNROLLED
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

/* Rounding to bfloat16 by integers: the term is the upper half of this, and this without its lower half as float32. It
 * takes fewer cycles than the instruction for it, but may make a number of a NaN. What is left of a NaN is one, so that
 * the last term, made by the instruction, keeps it. */
static inline __m512i rounded(__m512 x) {
    return _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
}

static inline __m512 left_of(__m512 x, __m512i term) {
    return _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(term, _mm512_set1_epi32((int)0xffff0000))));
}

/* The terms of 16 pairs (a[i], b[i]) as 16 dwords, a in the lower half. */
static inline __attribute__((always_inline)) void split_pairs(__m512 a, __m512 b, const int terms, __m512i *term) {
    UNROLLED for (int t = 0; t + 1 < terms; t++) {
        __m512i of_a = rounded(a), of_b = rounded(b);
        term[t] = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(of_a, 16), of_b);
        a = left_of(a, of_a), b = left_of(b, of_b);
    }
    term[terms - 1] = alternating((__m512i)_mm512_cvtne2ps_pbh(b, a));
}

/* The terms of 32 elements in a row. */
static inline __attribute__((always_inline)) void split_row(__m512 low, __m512 high, const int terms, __m512i *term) {
    const __m512i upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                           23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    UNROLLED for (int t = 0; t + 1 < terms; t++) {
        __m512i of_low = rounded(low), of_high = rounded(high);
        term[t] = _mm512_permutex2var_epi16(of_low, upper, of_high);
        low = left_of(low, of_low), high = left_of(high, of_high);
    }
    term[terms - 1] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* 16 x 16 dwords, rows and columns exchanged. */
static inline __attribute__((always_inline)) void transpose_dwords(__m512i *row) {
    __m512i a[16], b[16];
    UNROLLED for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    UNROLLED for (int i = 0; i < 16; i += 4) {
        UNROLLED for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    }
    UNROLLED for (int i = 0; i < 16; i += 8) {
        UNROLLED for (int j = 0; j < 4; j++) {
            a[i + j] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0x88);
            a[i + j + 4] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0xdd);
        }
    }
    UNROLLED for (int j = 0; j < 8; j++) {
        row[j] = _mm512_shuffle_i32x4(a[j], a[j + 8], 0x88);
        row[j + 8] = _mm512_shuffle_i32x4(a[j], a[j + 8], 0xdd);
    }
}

/* A tile of each term out of `rows` x `columns` floats, whose lines begin `from_row` apart. along_k: k runs along the
 * lines (then at most 16 of 32), otherwise across them (32 of 16). turned: with rows and columns of its dwords
 * exchanged, which makes of one side's tile the other side's. */
static inline __attribute__((always_inline)) void make_tile(const float *from, int64_t from_row, int64_t rows,
                                                            int64_t columns, const int along_k, const int turned,
                                                            const int terms, bf16 *to) {
    __m512i line[CYX_MOST_TERMS][16];
    __mmask16 low = first(columns), high = first(columns > 16 ? columns - 16 : 0);
    for (int r = 0; r < 16; r++) {
        __m512i term[CYX_MOST_TERMS];
        if (along_k) {
            int here = r < rows;
            const float *at = here ? from + r * from_row : from;
            split_row(_mm512_maskz_loadu_ps(here ? low : 0, at),
                      _mm512_maskz_loadu_ps(here ? high : 0, at + (high ? 16 : 0)), terms, term);
        } else {
            int even = 2 * r < rows, odd = 2 * r + 1 < rows;
            split_pairs(_mm512_maskz_loadu_ps(even ? low : 0, even ? from + 2 * r * from_row : from),
                        _mm512_maskz_loadu_ps(odd ? low : 0, odd ? from + (2 * r + 1) * from_row : from), terms, term);
        }
        UNROLLED for (int t = 0; t < terms; t++) {
            if (turned)
                line[t][r] = term[t];
            else
                _mm512_store_si512(to + t * TILE + r * TILE_K, term[t]);
        }
    }
    UNROLLED for (int t = 0; turned && t < terms; t++) {
        transpose_dwords(line[t]);
        UNROLLED for (int r = 0; r < 16; r++) _mm512_store_si512(to + t * TILE + r * TILE_K, line[t][r]);
    }
}

/* The right factor's tile out of 32 lines of 16, of which so many rows and columns are there. */
static inline __attribute__((always_inline)) void pack_across(const int terms, const float *from, int64_t from_row,
                                                              int64_t rows, int64_t columns, bf16 *to) {
    make_tile(from, from_row, rows, columns, 0, 0, terms, to);
}

/* Where the tiles of a factor lie. */
typedef struct {
    const bf16 *at;
    int64_t next;         /* elements to the tile of the next 16 rows or columns */
    int64_t term;         /* to that of the next term */
    int64_t step;         /* to that of the next step along k, */
    const int32_t *steps; /* unless here is where the tile of each step lies */
    int64_t row_bytes;    /* from one row of a tile to the next */
} factor;

/* Tiles one behind the other: [16 rows or columns][step][term]. */
static inline factor packed(const bf16 *at, int64_t steps, int terms) {
    return (factor){at, steps * terms * TILE, TILE, terms * TILE, NULL, 2 * TILE_K};
}

static inline const bf16 *of_step(const factor *f, int64_t s) { return f->at + (f->steps ? f->steps[s] : s * f->step); }

/* R x W tiles of sums. */
#define LOAD_A(t)                                                                                            \
    do {                                                                                                     \
        _tile_loadd(4, at_a + (t) * a.term, a.row_bytes);                                                    \
        if (R > 1) _tile_loadd(5, at_a + a.next + (t) * a.term, a.row_bytes);                                \
    } while (0)
#define LOAD_B(t)                                                                                            \
    do {                                                                                                     \
        _tile_loadd(6, at_b + (t) * b.term, b.row_bytes);                                                    \
        if (W > 1) _tile_loadd(7, at_b + b.next + (t) * b.term, b.row_bytes);                                \
    } while (0)
#define MULTIPLY                                                                                             \
    do {                                                                                                     \
        _tile_dpbf16ps(0, 4, 6);                                                                             \
        if (W > 1) _tile_dpbf16ps(1, 4, 7);                                                                  \
        if (R > 1) _tile_dpbf16ps(2, 5, 6);                                                                  \
        if (R > 1 && W > 1) _tile_dpbf16ps(3, 5, 7);                                                         \
    } while (0)

static inline __attribute__((always_inline)) void tile_block(const int R, const int W, const int terms, const factor a,
                                                             const factor b, int64_t steps, float *c, int64_t c_row,
                                                             int add) {
    __asm__ volatile("" ::: "memory"); /* gcc 12 does not know either that tiles read and write memory */
    if (add) {
        _tile_loadd(0, c, 4 * c_row);
        if (W > 1) _tile_loadd(1, c + 16, 4 * c_row);
        if (R > 1) _tile_loadd(2, c + 16 * c_row, 4 * c_row);
        if (R > 1 && W > 1) _tile_loadd(3, c + 16 * c_row + 16, 4 * c_row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t s = 0; s < steps; s++) {
        const bf16 *at_a = of_step(&a, s), *at_b = of_step(&b, s);
        /* An order in which few tiles are loaded twice. */
        if (terms == 3) {
            LOAD_A(0);
            LOAD_B(2);
            MULTIPLY;
            LOAD_B(1);
            MULTIPLY;
            LOAD_A(1);
            MULTIPLY;
            LOAD_B(0);
            MULTIPLY;
            LOAD_A(2);
            MULTIPLY;
            LOAD_A(0);
            MULTIPLY;
        } else if (terms == 2) {
            LOAD_A(1);
            LOAD_B(0);
            MULTIPLY;
            LOAD_A(0);
            MULTIPLY;
            LOAD_B(1);
            MULTIPLY;
        } else {
            LOAD_A(0);
            LOAD_B(0);
            MULTIPLY;
        }
    }
    _tile_stored(0, c, 4 * c_row);
    if (W > 1) _tile_stored(1, c + 16, 4 * c_row);
    if (R > 1) _tile_stored(2, c + 16 * c_row, 4 * c_row);
    if (R > 1 && W > 1) _tile_stored(3, c + 16 * c_row + 16, 4 * c_row);
    __asm__ volatile("" ::: "memory");
}

/* rows x columns <= 32 x 32, in tiles. */
static inline __attribute__((always_inline)) void tiles_of(int64_t rows, int64_t columns, const int terms,
                                                           const factor a, const factor b, int64_t steps, float *c,
                                                           int64_t c_row, int add) {
    if (rows > 16 && columns > 16)
        tile_block(2, 2, terms, a, b, steps, c, c_row, add);
    else if (rows > 16)
        tile_block(2, 1, terms, a, b, steps, c, c_row, add);
    else if (columns > 16)
        tile_block(1, 2, terms, a, b, steps, c, c_row, add);
    else
        tile_block(1, 1, terms, a, b, steps, c, c_row, add);
}

/* One for each number of terms, so that nothing is decided in the inner loops. */
#define OF_TERMS(terms, function, ...)                                                                       \
    do {                                                                                                     \
        if ((terms) == 3)                                                                                    \
            function(3, __VA_ARGS__);                                                                        \
        else if ((terms) == 2)                                                                               \
            function(2, __VA_ARGS__);                                                                        \
        else                                                                                                 \
            function(1, __VA_ARGS__);                                                                        \
    } while (0)

/* rows x columns <= 32 x 32 of sums at c, with or without what stands there, and nothing beyond them. */
static inline __attribute__((always_inline)) void sum_block(const int terms, const factor a, const factor b,
                                                            int64_t steps, float *c, int64_t c_row, int64_t rows,
                                                            int64_t columns, int add) {
    if (rows % 16 == 0 && columns % 16 == 0) {
        tiles_of(rows, columns, terms, a, b, steps, c, c_row, add);
        return;
    }
    _Alignas(64) float own[32 * 32];
    for (int64_t r = 0; add && r < rows; r++)
        memcpy(own + r * 32, c + r * c_row, sizeof(float) * (size_t)columns);
    tiles_of(rows, columns, terms, a, b, steps, own, 32, add);
    for (int64_t r = 0; r < rows; r++) memcpy(c + r * c_row, own + r * 32, sizeof(float) * (size_t)columns);
}
