#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cyx.h"
#include "fast.h"
#include "plan.h"
#include "pool.h"
#include "tables.h"

#define CYX_NAME(name, low, high) #name,
const char *const cyx_op_names[CYX_OP_COUNT] = {CYX_OPS(CYX_NAME)};
#define CYX_INPUTS(name, low, high) {low, high},
const int cyx_op_inputs[CYX_OP_COUNT][2] = {CYX_OPS(CYX_INPUTS)};
const char *const cyx_dtype_names[CYX_DTYPE_COUNT] = {"float32", "float64", "int64", "int32",
                                                      "bool",    "uint8",   "uint64"};
const int cyx_dtype_bytes[CYX_DTYPE_COUNT] = {4, 8, 8, 4, 1, 1, 8};

__thread cyx_message cyx_last_failure;

typedef struct {
    const char *name;
    void (*fill)(cyx_table table);
    void (*draw)(cyx_draw *draw);
    void (*cast_halves)(const cyx_halves *cast);
    cyx_status (*normalise)(cyx_norm *norm);
    cyx_status (*recur)(const cyx_recurrence *one);
    int present;
    int has_amx; /* whether its machines may have AMX */
    cyx_table table;
} isa;

/* Worst first; the last one present is the default. */
static isa isas[] = {
    {.name = "portable", .fill = cyx_fill_portable, .draw = cyx_draw_portable, .cast_halves = cyx_cast_halves_portable,
     .normalise = cyx_normalise_portable, .recur = cyx_recur_portable},
#if defined(__x86_64__)
    {.name = "avx2", .fill = cyx_fill_avx2, .draw = cyx_draw_avx2, .cast_halves = cyx_cast_halves_avx2,
     .normalise = cyx_normalise_avx2, .recur = cyx_recur_avx2},
    {.name = "avx512", .fill = cyx_fill_avx512, .draw = cyx_draw_avx512, .cast_halves = cyx_cast_halves_avx512,
     .normalise = cyx_normalise_avx512, .recur = cyx_recur_avx512, .has_amx = 1},
#endif
};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };
static isa *active = &isas[0];

/* glibc gives blocks of megabytes back to the system as they are freed, until the first that is larger has been, and every page
 * of the next one is a fault, which takes longer than most operations on it. This makes it keep some, as it does by itself in
 * a program that has used much; whoever has set its thresholds keeps theirs. */
static void keep_freed_blocks(void) {
    void *volatile largest = malloc((32 << 20) - (1 << 16)); /* just below what it always gives back */
    free(largest);
}

void cyx_setup(void) {
    keep_freed_blocks();
    isas[0].present = 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    isas[1].present = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    isas[2].present = isas[1].present && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
#endif
    for (int i = 0; i < ISA_COUNT; i++) {
        if (!isas[i].present) continue;
        isas[i].fill(isas[i].table);
        active = &isas[i];
    }
}

int cyx_set_isa(const char *name) {
    for (int i = 0; i < ISA_COUNT; i++)
        if (isas[i].present && !strcmp(isas[i].name, name)) {
            active = &isas[i];
            return 0;
        }
    return -1;
}

const char *cyx_isa(void) { return active->name; }

int cyx_amx(void) { return active->has_amx && cyx_amx_present(); }

int cyx_has_kernel(int op, int dtype) { return isas[0].table[op][dtype] != NULL; }

cyx_status cyx_fail(cyx_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cyx_last_failure.text, sizeof cyx_last_failure.text, format, arguments);
    va_end(arguments);
    return status;
}

int cyx_call_is_fusible(const cyx_call *call) { return cyx_fusible(call, active->table); }

void cyx_draw_numbers(cyx_draw *draw) {
    uint64_t mode = cyx_float_mode_set();
    active->draw(draw);
    cyx_float_mode_restore(mode);
}

void cyx_cast_halves(const cyx_halves *cast) {
    uint64_t mode = cyx_float_mode_set();
    active->cast_halves(cast);
    cyx_float_mode_restore(mode);
}

cyx_status cyx_normalise(cyx_norm *norm) {
    uint64_t mode = cyx_float_mode_set();
    cyx_status status = active->normalise(norm);
    cyx_float_mode_restore(mode);
    return status;
}

cyx_status cyx_recur(const cyx_recurrence *one) {
    uint64_t mode = cyx_float_mode_set();
    cyx_status status = active->recur(one);
    cyx_float_mode_restore(mode);
    return status;
}

int cyx_calls_mask_gradient(const cyx_call *calls) { return cyx_masks_gradient(calls, active->table); }

cyx_group *cyx_keep_group(const cyx_call *calls) { return cyx_look_at_group(calls, active->table); }

int64_t cyx_stretches_pack(const cyx_call *calls, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t bytes = calls[i].stretch ? cyx_stretch_packs(&calls[i], active->table) : 0;
        if (bytes > most) most = bytes;
    }
    return most;
}

/* The exact kernel, unless the call allows another and that takes it. */
static cyx_status run_one(const cyx_call *call, const isa *chosen) {
    cyx_kernel kernel = chosen->table[call->op][call->dtype];
    cyx_kernel fast = call->terms && chosen->has_amx ? cyx_fast_kernel(call) : NULL;
    if (call->adding) return cyx_run_in_turn(call, fast ? fast : kernel);
    cyx_status status = fast ? fast(call) : CYX_NO_KERNEL;
    return status == CYX_NO_KERNEL ? kernel(call) : status;
}

static cyx_status pack_before(const cyx_call *call, const isa *chosen) {
    return call->pack && chosen->has_amx ? cyx_pack_factors(call->pack) : CYX_OK;
}

/* One call after the other, groups together; stops at the first that fails. */
static cyx_status run_calls(const cyx_call *calls, int64_t count, int64_t *failed) {
    const isa *chosen = active;
    cyx_status status = CYX_OK;
    for (int64_t i = 0; i < count && status == CYX_OK; i += calls[i].group > 1 ? calls[i].group : 1) {
        status = pack_before(&calls[i], chosen);
        if (status == CYX_OK)
            status = calls[i].group > 1 ? cyx_run_group(calls + i, chosen->table) : run_one(&calls[i], chosen);
        *failed = i;
    }
    return status;
}

cyx_status cyx_run(const cyx_call *calls, int64_t count, int64_t *failed, cyx_message *message) {
    uint64_t mode = cyx_float_mode_set();
    cyx_status status = CYX_OK;
    for (int64_t i = 0; i < count && status == CYX_OK;) {
        int64_t end = i + 1, at = 0;
        if (calls[i].stretch) {
            end = i + calls[i].stretch;
            status = pack_before(&calls[i], active);
            if (status == CYX_OK) status = cyx_run_stretch(calls + i, run_calls, active->table, &at);
        } else {
            while (end < count && !calls[end].stretch) end++;
            status = run_calls(calls + i, end - i, &at);
        }
        *failed = i + at;
        i = end;
    }
    if (status == CYX_NO_MEMORY)
        cyx_fail(status, "%s: no memory left for scratch space", cyx_op_names[calls[*failed].op]);
    if (status != CYX_OK) *message = cyx_last_failure;
    cyx_float_mode_restore(mode);
    return status;
}

/* Of so many runs the first few are tried in turns, a few in a row, of which the quickest counts. */
enum { TRIED_EVERY = 2000, TRIED_IN_A_ROW = 4, TRIED_RUNS = 4 * TRIED_IN_A_ROW, LONGEST_TRIED_NS = 1000000, CREDIT_NS = 1000000 };

static void note_tried(cyx_trial *trial, int64_t place, int finely, int64_t took_ns) {
    if (place % TRIED_IN_A_ROW == 0 || took_ns < trial->least_ns) trial->least_ns = took_ns;
    if (place % TRIED_IN_A_ROW < TRIED_IN_A_ROW - 1) return;
    trial->sum_ns[finely] += trial->least_ns;
    int is_long = trial->least_ns > LONGEST_TRIED_NS;
    if (place < TRIED_RUNS - 1 && !is_long) return;
    if (is_long) trial->runs += TRIED_RUNS - 1 - place; /* the rest of the trial is left out */
    trial->saves_ns = (trial->sum_ns[0] - trial->sum_ns[1]) / 2, trial->credit_ns = CREDIT_NS;
    trial->finely = !is_long && trial->sum_ns[1] < trial->sum_ns[0] / 32 * 31;
    trial->sum_ns[0] = trial->sum_ns[1] = 0;
}

cyx_status cyx_run_trying(cyx_trial *trial, const cyx_call *calls, int64_t count, int64_t *failed, cyx_message *message) {
    if (cyx_threads() == 1) return cyx_run(calls, count, failed, message);
    int64_t place = trial->runs % TRIED_EVERY, began_ns = 0, stalled_ns = cyx_stalled_ns();
    int tried = place < TRIED_RUNS, finely = tried ? place / TRIED_IN_A_ROW % 2 : trial->finely;
    if (tried) began_ns = cyx_now_ns();
    cyx_shares_finely = finely;
    cyx_status status = cyx_run(calls, count, failed, message);
    cyx_shares_finely = 0;
    if (tried)
        note_tried(trial, place, finely, cyx_now_ns() - began_ns);
    else if (finely && (trial->credit_ns += trial->saves_ns - (cyx_stalled_ns() - stalled_ns)) < 0)
        trial->finely = 0;
    trial->runs++;
    return status;
}

const cyx_services cyx_own_services = {
    cyx_parallel, cyx_grain, cyx_scratch, cyx_float_mode_set, cyx_float_mode_restore, cyx_isa,
};
