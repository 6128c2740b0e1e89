/* Who fills which cells of the kernel table. */
#ifndef CYX_TABLES_H
#define CYX_TABLES_H

#include "cyx.h"

/* The same sources (*.inl) compiled once per instruction set. */
void cyx_fill_portable(cyx_table table);
void cyx_fill_avx2(cyx_table table);
void cyx_fill_avx512(cyx_table table);

void cyx_draw_portable(cyx_draw *draw);
void cyx_cast_halves_portable(const cyx_halves *cast);
cyx_status cyx_normalise_portable(cyx_norm *norm);
cyx_status cyx_recur_portable(const cyx_recurrence *one);
void cyx_draw_avx2(cyx_draw *draw);
void cyx_cast_halves_avx2(const cyx_halves *cast);
cyx_status cyx_normalise_avx2(cyx_norm *norm);
cyx_status cyx_recur_avx2(const cyx_recurrence *one);
void cyx_draw_avx512(cyx_draw *draw);
void cyx_cast_halves_avx512(const cyx_halves *cast);
cyx_status cyx_normalise_avx512(cyx_norm *norm);
cyx_status cyx_recur_avx512(const cyx_recurrence *one);

#endif
