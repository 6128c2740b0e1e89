/* Who fills which cells of the kernel table. */
#ifndef CYX_TABLES_H
#define CYX_TABLES_H

#include "cyx.h"

/* Kernels whose bits no instruction set could change: integers, moving data, indexing, random
 * numbers. */
void cyx_fill_integer(cyx_table table);
void cyx_fill_movement(cyx_table table);
void cyx_fill_indexing(cyx_table table);
void cyx_fill_random(cyx_table table);

/* Floating point, the same sources (*.inl) compiled once per instruction set. */
void cyx_fill_portable(cyx_table table);
void cyx_fill_avx2(cyx_table table);
void cyx_fill_avx512(cyx_table table);

#endif
