/* What the calls behind a product read, fetched while it multiplies: ahead.c. */
#ifndef CYX_AHEAD_H
#define CYX_AHEAD_H

#include "cyx.h"

enum { CYX_LINE_BYTES = 64, CYX_FEW_LINES = 12 };

/* An address to fetch, so many elements from x, where the array may have ended: no pointer of C may point there. */
#define CYX_BEYOND(x, count) ((const void *)((uintptr_t)(x) + sizeof(*(x)) * (uintptr_t)(count)))

typedef struct {
    const char *at;
    int64_t lines;
} cyx_span;

struct cyx_ahead {
    int64_t lines; /* of all spans */
    int count;
    cyx_span spans[];
};

/* How far one product has come. A product that looks ahead of nothing has ahead NULL. */
typedef struct {
    const cyx_ahead *ahead;
    int span;
    int64_t line;
} cyx_looking;

/* Lines for a block of registers to fetch, one with each of its terms: from `at` to `last`, `step` bytes apart. */
typedef struct {
    const char *at, *last;
    int64_t step;
} cyx_fetching;

static inline void cyx_fetch_at_once(const cyx_fetching *rows, size_t bytes) {
    for (const char *at = rows->at; at; at = at == rows->last ? NULL : at + rows->step)
        for (size_t i = 0; i < bytes; i += CYX_LINE_BYTES) __builtin_prefetch(at + i, 1);
}

/* What a block of `terms` terms fetches, into the second-level cache: the nearest one is the product's. A few lines are
 * fetched at once. at: NULL for none. */
static inline cyx_fetching cyx_fetch_ahead(cyx_looking *looking, int64_t terms) {
    const cyx_ahead *ahead = looking->ahead;
    for (int64_t left = CYX_FEW_LINES; ahead && looking->span < ahead->count;) {
        const char *at = ahead->spans[looking->span].at + looking->line * CYX_LINE_BYTES;
        int64_t lines = ahead->spans[looking->span].lines - looking->line;
        if (lines > left) {
            int64_t count = lines < terms ? lines : terms;
            looking->line += count;
            return (cyx_fetching){at, at + (count - 1) * CYX_LINE_BYTES, CYX_LINE_BYTES};
        }
        for (int64_t line = 0; line < lines; line++) __builtin_prefetch(at + line * CYX_LINE_BYTES, 0, 2);
        left -= lines, looking->span++, looking->line = 0;
    }
    return (cyx_fetching){NULL, NULL, 0};
}

/* A part of a matrix that many blocks fetch by and by, each block the same number of its lines: those of all rows at
 * one column, then at the next. All zero: nothing. */
typedef struct {
    const char *at;
    int64_t rows, row_bytes, columns, at_once;
    int64_t row, column; /* the next line */
} cyx_rectangle;

/* `bytes` of each of `rows` rows, for so many blocks. */
static inline cyx_rectangle cyx_rectangle_of(const void *at, int64_t rows, int64_t row_bytes, int64_t bytes,
                                             int64_t blocks) {
    uintptr_t first = (uintptr_t)at / CYX_LINE_BYTES;
    uintptr_t end = ((uintptr_t)at + (uintptr_t)bytes + CYX_LINE_BYTES - 1) / CYX_LINE_BYTES;
    int64_t columns = (int64_t)(end - first), pieces = blocks / columns; /* of a column */
    int64_t at_once = pieces < 2 ? rows : (rows + pieces - 1) / pieces;
    return (cyx_rectangle){(const char *)(first * CYX_LINE_BYTES), rows, row_bytes, columns, at_once, 0, 0};
}

static inline cyx_fetching cyx_fetch_rectangle(cyx_rectangle *of, int64_t terms) {
    if (of->column == of->columns) return (cyx_fetching){NULL, NULL, 0};
    const char *at = of->at + of->row * of->row_bytes + of->column * CYX_LINE_BYTES;
    int64_t most = of->at_once < terms ? of->at_once : terms, left = of->rows - of->row;
    int64_t count = most < left ? most : left;
    of->row += count;
    if (of->row == of->rows) of->row = 0, of->column++;
    return (cyx_fetching){at, at + (count - 1) * of->row_bytes, of->row_bytes};
}

/* Finds it for every product among calls whose arrays stay where they are: those outside of stretches, or those of one
 * lane's own records. Without memory nothing is fetched. */
void cyx_look_ahead(cyx_call *calls, int64_t count, int of_a_lane);
void cyx_look_nowhere(cyx_call *calls, int64_t count); /* frees it */

static inline int64_t cyx_lines_ahead(const cyx_call *call) { return call->ahead ? call->ahead->lines : 0; }

#endif
