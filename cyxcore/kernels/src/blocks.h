/* Memory of large arrays, kept when it is given back. Callers hold Python's lock. */
#ifndef CYX_BLOCKS_H
#define CYX_BLOCKS_H

#include <stddef.h>

/* At least so many bytes, 64-byte aligned, of undefined content; NULL when there are none left. */
void *cyx_block(size_t bytes);

/* What cyx_block gave. */
void cyx_block_give_back(void *data);

/* Bytes that are kept and in nobody's use. */
size_t cyx_blocks_kept(void);

/* Gives the system back what has been kept longest, until no more than so many bytes are. */
void cyx_blocks_shrink(size_t bytes);

/* Both for another extension, so that a process has one store. cpu.pyx hands it out as a capsule. */
typedef struct {
    void *(*take)(size_t bytes);
    void (*give_back)(void *data);
} cyx_blocks;
extern const cyx_blocks cyx_own_blocks;

#endif
