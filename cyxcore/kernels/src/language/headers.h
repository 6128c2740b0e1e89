/* What the file of each instruction set needs, read before its target pragma. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "language.h"

/* Adds or stores a panel's results; the last panel of a matrix may be partly empty. */
static inline void store_rows(const product *p, int64_t panel, int64_t row, const float *lanes) {
    int64_t first = panel * ROWS, count = p->weights->rows - first < ROWS ? p->weights->rows - first : ROWS;
    float *out = p->out + row * p->weights->rows + first;
    for (int64_t i = 0; i < count; i++) out[i] = p->accumulate ? out[i] + lanes[i] : lanes[i];
}
