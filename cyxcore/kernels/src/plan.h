/* What a plan asks before it runs: which calls a group can make, and what its stretches pack. */
#ifndef CYX_PLAN_H
#define CYX_PLAN_H

#include "cyx.h"

enum { CYX_SHORTEST_RUN = 32, CYX_LONGEST_RUN = 2048 }; /* terms of a sum in a row, of those that a group can make */
enum { CYX_BLOCK_ROWS = 32 }; /* rows that a sum across them adds in order, before it meets those of other blocks */
enum { CYX_RUN_BLOCK = 1024 }; /* terms of a subtree of a sum: a longer run, of whole ones or alone, is so many of them */

enum { CYX_LEAST_MASKED = 32, CYX_MOST_MASKED = 1024 }; /* rows and columns of the products that a mask follows */
enum { CYX_BLOCK_K = 384 }; /* terms of a product that are summed before anything is written to memory */

enum { CYX_PANEL_COLUMNS = 64 }; /* or a divisor of it: of a panel of a right factor, in any instruction set */

enum { CYX_MOST_SUMMED = 1 << 17 }; /* elements of the sums over rows that are added up: each is made by one thread */

int cyx_overlap(const cyx_array *a, const cyx_array *b); /* whether they share memory */

/* Whether a product, or a sum over rows, is added to what the two calls before it wrote, as they did, in the same place. */
int cyx_adds_on(const cyx_call *before, const cyx_call *calls);

/* A call that adds up what all bands come to, when it is the turn of its band: sums have one order. */
cyx_status cyx_run_in_turn(const cyx_call *call, cyx_kernel kernel);

/* The records of every lane of a stretch each of whose lanes has one band: they are the same in every run. The caller's,
 * until the stretch has run for the last time; NULL where lanes have more bands, or there is no memory. */
cyx_lanes *cyx_keep_lanes(const cyx_call *calls);
void cyx_free_lanes(cyx_lanes *lanes);

/* Whether threads share small calls of a program: that depends on where its cores lie, what else they do, and what happens
 * between runs, so it is tried now and then. Begins with zeros. */
typedef struct {
    int64_t runs, least_ns, sum_ns[2]; /* of the trial that is on, one by one and shared */
    int64_t saves_ns, credit_ns;       /* what sharing saves in a run, and what it may lose by waiting before it ends */
    int finely;                        /* what the last trial came to */
} cyx_trial;
cyx_status cyx_run_trying(cyx_trial *trial, const cyx_call *calls, int64_t count, int64_t *failed, cyx_message *message);

int64_t cyx_stretch_packs(const cyx_call *calls, const cyx_table table); /* bytes, of one stretch while it runs */
int64_t cyx_stretches_pack(const cyx_call *calls, int64_t count);        /* the most that one of these packs */

#endif
