/* Tiles: what the products by AMX share. To be read before the target's pragma is in force.
 *
 * A factor is packed as tiles of 1 kB. The left one's holds 16 rows of 32 elements along k; the right one's 16 pairs
 * along k of 16 columns. Of a place in the matrix the tiles of all terms follow each other. Edges are filled with zeros. */
#ifndef CYX_AMX_H
#define CYX_AMX_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "fast.h"
#include "pool.h"

typedef uint16_t bf16;
enum { TILE_ROWS = 16, TILE_K = 32, TILE = TILE_ROWS * TILE_K }; /* TILE: bf16 elements */

#endif
