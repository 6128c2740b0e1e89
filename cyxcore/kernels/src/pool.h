/* One private pool of threads. Work is split only across output elements, so how it is split never shows in a
 * result. */
#ifndef CYX_POOL_H
#define CYX_POOL_H

#include <stddef.h>
#include <stdint.h>

typedef void (*cyx_body)(void *context, int64_t begin, int64_t end);

/* Runs body over [0, count) in pieces of `grain`; returns when all are done. Called inside a body, or while
 * another thread has the pool, it runs everything here. */
void cyx_parallel(int64_t count, int64_t grain, cyx_body body, void *context);

/* The grain that gives every thread equally many pieces, of at least `least_work` operations each; all of `count` where
 * there is less than twice that. */
int64_t cyx_grain(int64_t count, double work_per_item, double least_work);

/* How many threads share a call that is made now: inside a body 1. */
int cyx_threads(void);
void cyx_set_threads(int count);
void cyx_stop_threads(void);

/* Whether this thread's calls are shared where a piece takes a few microseconds, too: see cyx_run_trying. */
extern __thread int cyx_shares_finely;

/* How long callers have waited, after a while of waiting, for pieces that others had begun: their cores have other work. */
int64_t cyx_stalled_ns(void);
int64_t cyx_now_ns(void);

/* Memory of the calling thread, kept between calls: 64-byte aligned, NULL when there is none left. Slot 0
 * belongs to the kernel, slot 1 to a body, slot 2 to matmul, slot 3 to a lane, slots 4 and 5 to a
 * stretch, 4 also to the rows of a concat that is not made, slot 6 to the notes of a
 * lane. The content is undefined. */
void *cyx_scratch(int slot, size_t bytes);

/* Rounding to nearest, denormals kept: what exact results assume. Returns what was set before. */
uint64_t cyx_float_mode_set(void);
void cyx_float_mode_restore(uint64_t saved);

/* All of that for another extension, so that a process has one pool. cpu.pyx hands it out as a capsule. */
typedef struct {
    void (*parallel)(int64_t count, int64_t grain, cyx_body body, void *context);
    int64_t (*grain)(int64_t count, double work_per_item, double least_work);
    void *(*scratch)(int slot, size_t bytes);
    uint64_t (*float_mode_set)(void);
    void (*float_mode_restore)(uint64_t saved);
    const char *(*isa)(void);
} cyx_services;
extern const cyx_services cyx_own_services;

#endif
