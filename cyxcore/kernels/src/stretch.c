/* Calls made band by band: see cyxcore/bands.py for which. Each lane works on copies of the records, whose arrays move on
 * with the bands. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "ahead.h"
#include "elementwise.h"
#include "fast.h"
#include "plan.h"

__thread int64_t cyx_band;

/* The matrices by which every band multiplies are packed once. Products of a matrix share what is packed of it. */
enum { MOST_PACKED = 256, LEAST_PRODUCTS_PACKED = 4 };

typedef struct {
    const cyx_call *calls[MOST_PACKED]; /* the first product of each */
    void (*pack[MOST_PACKED])(const cyx_call *call, void *packed);
    char *at[MOST_PACKED];
    int count;
} packing;

typedef struct {
    const cyx_call *calls;
    packing packed;
    cyx_runner run;
    cyx_adding *adding; /* of each call that adds up; NULL: there is none */
    void *beside;       /* what sums over matrices take beside their outputs */
    _Atomic int64_t taken, stopped;
    pthread_mutex_t lock; /* of what follows: the failure of the lowest band */
    int64_t failed_band, failed;
    cyx_status status;
    cyx_message message;
} stretch;

static void move(cyx_array *array, const cyx_array *first, int64_t band, int64_t lane, int64_t blocks) {
    array->data = (char *)first->data + lane * first->lane_bytes;
    if (!blocks) {
        array->data = (char *)array->data + band * first->band_bytes;
        return;
    }
    int64_t matrix = band / blocks / first->repeats % first->turns;
    array->data = (char *)array->data + matrix * first->band_bytes + band % blocks * first->block_bytes;
}

static void note_failure(stretch *s, int64_t band, int64_t failed, cyx_status status) {
    pthread_mutex_lock(&s->lock);
    if (s->status == CYX_OK || band < s->failed_band) {
        s->failed_band = band, s->failed = failed, s->status = status;
        s->message = cyx_last_failure;
        s->stopped = band;
    }
    pthread_mutex_unlock(&s->lock);
}

/* Bytes of a lane's own records: their many inputs lie behind all of them. */
static size_t record_bytes(const cyx_call *calls) {
    int64_t count = calls->stretch, many = 0;
    for (int64_t k = 0; k < count; k++) many += calls[k].in_count > CYX_INLINE_INPUTS ? calls[k].in_count : 0;
    return sizeof(cyx_call) * (size_t)count + sizeof(cyx_array) * (size_t)many;
}

static void copy_records(cyx_call *own, const cyx_call *calls) {
    int64_t count = calls->stretch;
    memcpy(own, calls, sizeof(cyx_call) * (size_t)count);
    own->pack = NULL; /* once for all bands, not for each */
    cyx_array *room = (cyx_array *)(own + count);
    for (int64_t k = 0; k < count; k++) {
        own[k].in = own[k].own_in;
        if (calls[k].in_count <= CYX_INLINE_INPUTS) continue;
        own[k].in = room;
        memcpy(room, calls[k].in, sizeof(cyx_array) * (size_t)calls[k].in_count);
        room += calls[k].in_count;
    }
}

static void move_records(cyx_call *own, const cyx_call *calls, int64_t band, int64_t lane) {
    for (int64_t k = 0; k < calls->stretch; k++) {
        move(&own[k].out, &calls[k].out, band, lane, calls[k].blocks);
        for (int i = 0; i < calls[k].in_count; i++) move(&own[k].in[i], &calls[k].in[i], band, lane, calls[k].blocks);
    }
}

struct cyx_lanes {
    int64_t count;
    cyx_call *records[];
};

cyx_lanes *cyx_keep_lanes(const cyx_call *calls) {
    if (calls->bands != calls->lanes) return NULL;
    for (int64_t k = 0; k < calls->stretch; k++)
        if (calls[k].adds) return NULL;
    cyx_lanes *lanes = malloc(sizeof *lanes + sizeof(cyx_call *) * (size_t)calls->lanes);
    if (!lanes) return NULL;
    for (lanes->count = 0; lanes->count < calls->lanes; lanes->count++) {
        cyx_call *own = malloc(record_bytes(calls));
        if (!own) {
            cyx_free_lanes(lanes);
            return NULL;
        }
        copy_records(own, calls);
        move_records(own, calls, lanes->count, lanes->count);
        cyx_look_ahead(own, calls->stretch, 1);
        lanes->records[lanes->count] = own;
    }
    return lanes;
}

void cyx_free_lanes(cyx_lanes *lanes) {
    for (int64_t lane = 0; lanes && lane < lanes->count; lane++) {
        cyx_look_nowhere(lanes->records[lane], lanes->records[lane]->stretch);
        free(lanes->records[lane]);
    }
    free(lanes);
}

static void pack_body(void *context, int64_t begin, int64_t end) {
    packing *packed = context;
    for (int64_t i = begin; i < end; i++) packed->pack[i](packed->calls[i], packed->at[i]);
}

/* Whether all bands of all lanes read the second factor of a product at one place. */
static int is_shared_product(const cyx_call *call) {
    const cyx_array *factor = &call->in[1];
    int has_panels = call->dtype == CYX_F32 || call->dtype == CYX_F64; /* others would be made instead of answering */
    return call->op == CYX_OP_matmul && has_panels && !call->terms && factor->ndim == 2 && !factor->band_bytes &&
           !factor->block_bytes && !factor->lane_bytes;
}

/* Which of the packed matrices a product reads; -1: none. */
static int matrix_of(const packing *packed, const cyx_call *call) {
    if (!is_shared_product(call)) return -1;
    for (int i = 0; i < packed->count; i++)
        if (packed->calls[i]->in[1].data == call->in[1].data && packed->calls[i]->ints[1] == call->ints[1] &&
            packed->calls[i]->dtype == call->dtype &&
            !memcmp(packed->calls[i]->in[1].shape, call->in[1].shape, 2 * sizeof(int64_t)))
            return i;
    return -1;
}

/* The matrices of a stretch that enough products read, and where each is packed. Returns how many bytes all of them take. */
static int64_t find_shared(packing *packed, int64_t *offset, const cyx_call *calls, const cyx_table table) {
    int64_t bytes = 0, products[MOST_PACKED], size[MOST_PACKED];
    int found = 0;
    packed->count = 0;
    for (int64_t k = 0; k < calls->stretch; k++) {
        cyx_loop loop;
        int known = matrix_of(packed, &calls[k]);
        if (known >= 0) products[known] += calls->bands;
        if (known >= 0 || packed->count == MOST_PACKED || !is_shared_product(&calls[k])) continue;
        cyx_ask(&calls[k], table, &loop);
        if (!loop.pack) continue;
        packed->calls[packed->count] = &calls[k], packed->pack[packed->count] = loop.pack;
        products[packed->count] = calls->bands, size[packed->count++] = loop.packed_bytes;
    }
    for (int i = 0; i < packed->count; i++) {
        if (products[i] < LEAST_PRODUCTS_PACKED) continue;
        packed->calls[found] = packed->calls[i], packed->pack[found] = packed->pack[i];
        offset[found++] = bytes;
        bytes += (size[i] + 63) / 64 * 64;
    }
    packed->count = found;
    return bytes;
}

int64_t cyx_stretch_packs(const cyx_call *calls, const cyx_table table) {
    packing packed;
    int64_t offset[MOST_PACKED];
    return find_shared(&packed, offset, calls, table);
}

/* Without memory for it nothing is packed: each product does it by itself. */
static void pack_shared(packing *packed, const cyx_call *calls, const cyx_table table) {
    int64_t offset[MOST_PACKED], bytes = find_shared(packed, offset, calls, table);
    char *memory = bytes ? cyx_scratch(4, (size_t)bytes) : NULL;
    if (!memory) packed->count = 0;
    for (int i = 0; i < packed->count; i++) packed->at[i] = memory + offset[i];
    cyx_parallel(packed->count, 1, pack_body, packed);
}

/* Returns whether the band was made. */
static int run_band(stretch *s, cyx_call *own, int64_t band) {
    int64_t failed = 0;
    cyx_band = band;
    cyx_status status = s->run(own, s->calls->stretch, &failed);
    cyx_band = 0;
    if (status != CYX_OK) note_failure(s, band, failed, status);
    return status == CYX_OK;
}

cyx_status cyx_run_in_turn(const cyx_call *call, cyx_kernel kernel) {
    cyx_adding *adding = call->adding;
    while (adding->turn != cyx_band) { /* the bands before are taken already, each by a thread that runs */
        if (*adding->stopped < cyx_band) return CYX_BAD_DATA; /* a band before this one failed: this is of no use */
        sched_yield();
    }
    cyx_status status = kernel(call);
    adding->turn = cyx_band + 1;
    return status;
}

static int64_t tree_bytes(const cyx_call *call) {
    int64_t rows = 1;
    if (call->op != CYX_OP_sum || call->blocks) return 0;
    for (int64_t bands = call->bands; bands; bands >>= 1) rows++;
    return (rows * call->out.size * cyx_dtype_bytes[call->dtype] + 63) / 64 * 64;
}

/* Of a sum over matrices: what it takes beside the output. */
static size_t bytes_beside(const cyx_call *call) {
    if (call->op != CYX_OP_sum || !call->blocks || !call->adds) return 0;
    int64_t terms = call->bands / call->blocks / call->out.turns, levels = 0;
    for (int64_t last = (terms - 1) / CYX_BLOCK_ROWS; last; last >>= 1) levels++;
    return (size_t)(levels * call->out.turns * call->out.band_bytes);
}

/* What calls that add up have in common in all lanes. Returns whether there is memory for it. */
static int prepare_adding(stretch *s) {
    int64_t count = 0, bytes = 0;
    size_t beside = 0;
    for (int64_t k = 0; k < s->calls->stretch; k++)
        if (s->calls[k].adds) count++, bytes += tree_bytes(&s->calls[k]), beside += bytes_beside(&s->calls[k]);
    if (!count) return 1;
    if (beside && !(s->beside = malloc(beside))) return 0; /* as large as a few matrices: nothing to keep for the next run */
    char *matrices = s->beside;
    s->adding = cyx_scratch(5, sizeof *s->adding * (size_t)count + (size_t)bytes + 64);
    if (!s->adding) return 0;
    char *tree = (char *)(((uintptr_t)(s->adding + count) + 63) / 64 * 64);
    cyx_adding *next = s->adding;
    for (int64_t k = 0; k < s->calls->stretch; k++) {
        if (!s->calls[k].adds) continue;
        next->turn = 0;
        next->stopped = &s->stopped, next->partial = s->calls[k].blocks ? matrices : tree, next->first = s->calls[k].out.data;
        tree += tree_bytes(&s->calls[k]), next++;
        matrices = matrices ? matrices + bytes_beside(&s->calls[k]) : NULL;
    }
    return 1;
}

static void note_adding(const stretch *s, cyx_call *own) {
    cyx_adding *next = s->adding;
    for (int64_t k = 0; k < s->calls->stretch; k++)
        if (s->calls[k].adds) own[k].adding = next++;
}

static void note_panels(const stretch *s, cyx_call *own) {
    for (int64_t k = 0; k < s->calls->stretch; k++) {
        if (s->calls[k].op != CYX_OP_matmul) continue;
        int matrix = matrix_of(&s->packed, &s->calls[k]);
        own[k].panels = matrix < 0 ? NULL : s->packed.at[matrix];
    }
}

/* Whether calls from `first` on are a group that begins with a product and ends with a mask or a softmax: masked.inl. */
static int is_masked_group(const cyx_call *first) {
    if (first->op != CYX_OP_matmul || first->group < 2) return 0;
    int32_t last = first[first->group - 1].op;
    return last == CYX_OP_where || last == CYX_OP_softmax;
}

/* Bytes of the right factor as panels, or tiles, that a lane keeps, while its blocks of rows are of one matrix; 0: it keeps none. */
static size_t bytes_of_panels(const cyx_call *call) {
    const cyx_array *factor = &call->in[1];
    if (call->terms) return (cyx_lane_tiles(call) + 63) / 64 * 64;
    if (!is_masked_group(call) || !call->ints[1] || factor->ndim != 2 || factor->block_bytes || factor->lane_bytes) return 0;
    int64_t columns = (factor->shape[0] + CYX_PANEL_COLUMNS - 1) / CYX_PANEL_COLUMNS * CYX_PANEL_COLUMNS;
    return ((size_t)(columns * factor->shape[1] * cyx_dtype_bytes[factor->dtype]) + 63) / 64 * 64;
}

/* Which group with a mask has made an array that call k reads, in the same band, and nobody has written to since; -1: none. */
static int64_t masked_group_of(const cyx_call *calls, int64_t k, const cyx_array *x) {
    int64_t writer = k - 1;
    while (writer >= 0 && !cyx_overlap(&calls[writer].out, x)) writer--;
    if (writer < 0 || calls[writer].out.data != x->data || calls[writer].out.size != x->size) return -1;
    if (calls[writer].out.shape[calls[writer].out.ndim - 1] != x->shape[x->ndim - 1]) return -1;
    for (int64_t first = writer - 1; first >= 0 && first >= writer - 2; first--)
        if (is_masked_group(&calls[first]) && first + calls[first].group - 1 == writer) return first;
    return -1;
}

/* Without memory for notes, calls do without. */
static void note_zeros(const stretch *s, cyx_call *own) {
    const cyx_call *calls = s->calls;
    size_t count = (size_t)calls->stretch, bytes = (sizeof(cyx_notes) * count + 63) / 64 * 64;
    char *panels = NULL;
    for (int64_t k = 0; k < calls->stretch; k++) {
        own[k].notes = NULL, own[k].zeros = NULL;
        bytes += bytes_of_panels(&calls[k]);
    }
    cyx_notes *notes = calls->blocks ? cyx_scratch(6, bytes) : NULL;
    if (!notes) return;
    panels = (char *)notes + (sizeof(cyx_notes) * count + 63) / 64 * 64;
    for (int64_t k = 0; k < calls->stretch; k++) {
        size_t own_bytes = bytes_of_panels(&calls[k]);
        const cyx_array *left = is_masked_group(&calls[k]) && calls[k + 1].op == CYX_OP_softmax_grad ? &calls[k + 1].in[1] : &calls[k].in[0];
        int64_t maker = calls[k].op == CYX_OP_matmul ? masked_group_of(calls, k, left) : -1;
        notes[k] = (cyx_notes){.panels = own_bytes ? panels : NULL};
        own[k].notes = &notes[k], own[k].zeros = maker < 0 ? NULL : &notes[maker];
        panels += own_bytes;
    }
}

/* Bands next to each other: as the pool shares out whole calls, so that a thread finds what it wrote itself. */
static int64_t first_band(const cyx_call *calls, int64_t lane) { return lane * calls->bands / calls->lanes; }

/* The band that a lane makes after `before`; its first one after -1. What bands add up goes from one to the next: then each lane
 * takes the next band that nobody has, and waits only for those that are being made. */
static int64_t band_after(stretch *s, int64_t lane, int64_t before) {
    if (s->adding) return atomic_fetch_add(&s->taken, 1);
    return before < 0 ? first_band(s->calls, lane) : before + 1;
}

static void lane_body(void *context, int64_t begin, int64_t end) {
    stretch *s = context;
    const cyx_call *calls = s->calls;
    for (int64_t lane = begin; calls->lane_records && lane < end; lane++) {
        cyx_call *own = calls->lane_records->records[lane];
        note_panels(s, own);
        run_band(s, own, lane);
    }
    if (calls->lane_records) return;
    cyx_call *own = cyx_scratch(3, record_bytes(calls));
    if (!own) {
        note_failure(s, begin, 0, CYX_NO_MEMORY);
        return;
    }
    copy_records(own, calls);
    note_panels(s, own);
    note_adding(s, own);
    note_zeros(s, own);
    for (int64_t lane = begin; lane < end; lane++)
        for (int64_t band = band_after(s, lane, -1), stop = s->adding ? calls->bands : first_band(calls, lane + 1); band < stop;
             band = band_after(s, lane, band)) {
            move_records(own, calls, band, lane);
            if (!run_band(s, own, band)) break;
        }
}

cyx_status cyx_run_stretch(const cyx_call *calls, cyx_runner run, const cyx_table table, int64_t *failed) {
    stretch s = {.calls = calls, .run = run, .stopped = INT64_MAX, .status = CYX_OK, .lock = PTHREAD_MUTEX_INITIALIZER};
    *failed = 0;
    if (!prepare_adding(&s)) {
        free(s.beside);
        return CYX_NO_MEMORY;
    }
    pack_shared(&s.packed, calls, table);
    cyx_parallel(calls->lanes, 1, lane_body, &s);
    free(s.beside);
    if (s.status != CYX_OK) cyx_last_failure = s.message;
    *failed = s.failed;
    return s.status;
}
