/* What the calls behind a product read, fetched while it multiplies: ahead.c. */
#ifndef CYX_AHEAD_H
#define CYX_AHEAD_H

#include "cyx.h"

enum { CYX_LINE_BYTES = 64, CYX_FEW_LINES = 12 };

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

/* The lines from `at` to `last`, for a block of registers to fetch: one with each of its terms. at: NULL for none. */
typedef struct {
    const char *at, *last;
} cyx_fetching;

/* What a block of `terms` terms fetches, into the second-level cache: the nearest one is the product's. A few lines are
 * fetched at once. */
static inline cyx_fetching cyx_fetch_ahead(cyx_looking *looking, int64_t terms) {
    const cyx_ahead *ahead = looking->ahead;
    for (int64_t left = CYX_FEW_LINES; ahead && looking->span < ahead->count;) {
        const char *at = ahead->spans[looking->span].at + looking->line * CYX_LINE_BYTES;
        int64_t lines = ahead->spans[looking->span].lines - looking->line;
        if (lines > left) {
            int64_t count = lines < terms ? lines : terms;
            looking->line += count;
            return (cyx_fetching){at, at + (count - 1) * CYX_LINE_BYTES};
        }
        for (int64_t line = 0; line < lines; line++) __builtin_prefetch(at + line * CYX_LINE_BYTES, 0, 2);
        left -= lines, looking->span++, looking->line = 0;
    }
    return (cyx_fetching){NULL, NULL};
}

/* Finds it for every product among calls whose arrays stay where they are: those outside of stretches, or those of one
 * lane's own records. Without memory nothing is fetched. */
void cyx_look_ahead(cyx_call *calls, int64_t count, int of_a_lane);
void cyx_look_nowhere(cyx_call *calls, int64_t count); /* frees it */

static inline int64_t cyx_lines_ahead(const cyx_call *call) { return call->ahead ? call->ahead->lines : 0; }

#endif
