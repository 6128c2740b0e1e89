#include "language.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const cyx_services *services;
static int has_f16c; /* asked by cpuid: clang's __builtin_cpu_supports did not know it for long */

void language_setup(const cyx_services *given) {
    services = given;
#if defined(__x86_64__)
    unsigned a, b, c, d;
    has_f16c = __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
#endif
}

/* The instruction set the other kernels use, or the next one below it that these have. */
static const language_table *table(void) {
#if defined(__x86_64__)
    const char *isa = services->isa();
    if (!strcmp(isa, "avx512") && __builtin_cpu_supports("avx512vnni")) return &language_vnni;
    if (strcmp(isa, "portable") && has_f16c) return &language_avx2;
#endif
    return &language_portable;
}

typedef struct {
    const language_table *table;
    const void *task;
} work;

static void multiply_body(void *context, int64_t begin, int64_t end) {
    const work *w = context;
    w->table->multiply(w->task, begin, end);
}

typedef struct {
    const language_table *table;
    const float *x;
    int8_t *q;
    float *scale, *times_sum;
    int32_t *sums;
} quantising;

static void quantise_body(void *context, int64_t begin, int64_t end) {
    const quantising *q = context;
    q->table->quantise(q->x + begin * BLOCK, end - begin, q->q + begin * BLOCK, q->scale + begin, q->times_sum + begin,
                       q->sums + 2 * begin);
}

int language_multiply(const matrix *weights, const float *x, int64_t count, float *out, int accumulate) {
    if (!count) return 0;
    uint64_t mode = services->float_mode_set();
    product p = {.weights = weights, .x = x, .out = out, .count = count, .accumulate = accumulate};
    const language_table *kernels = table();
    if (weights->kind >= MATRIX_Q8_0) {
        int64_t blocks = count * (weights->columns / BLOCK);
        char *memory = services->scratch(0, (size_t)blocks * (BLOCK + 2 * sizeof(float) + 2 * sizeof(int32_t)));
        if (!memory) return services->float_mode_restore(mode), -1;
        quantising q = {.table = kernels, .x = x, .q = (int8_t *)memory};
        q.scale = (float *)(memory + blocks * BLOCK);
        q.times_sum = q.scale + blocks;
        q.sums = (int32_t *)(q.times_sum + blocks);
        services->parallel(blocks, services->grain(blocks, BLOCK, 100000), quantise_body, &q);
        p.quantised = (activations){q.q, q.scale, q.times_sum, q.sums};
    }
    int64_t panels = (weights->rows + ROWS - 1) / ROWS;
    double panel_work = (double)(weights->columns * ROWS) * (count < 4 ? 1.0 : (double)count / 4);
    work w = {kernels, &p};
    services->parallel(panels, services->grain(panels, panel_work, 100000), multiply_body, &w);
    services->float_mode_restore(mode);
    return 0;
}

enum { AT_ONCE = 8 }; /* rows of a stretch in one piece of work */

typedef struct {
    const language_table *table;
    const attention *a;
    int64_t room;
    _Atomic int no_memory;
} attending;

static void attend_body(void *context, int64_t begin, int64_t end) {
    attending *all = context;
    const attention *a = all->a;
    float *scores = services->scratch(1, sizeof(float) * 4 * (size_t)all->room);
    if (!scores) {
        all->no_memory = 1;
        return;
    }
    int64_t item = 0;
    for (int64_t i = 0; i < a->stretch_count && item < end; i++) {
        const stretch *s = &a->stretches[i];
        int64_t pieces = (s->count + AT_ONCE - 1) / AT_ONCE * a->kv_heads;
        int64_t from = begin > item ? begin - item : 0, to = end - item < pieces ? end - item : pieces;
        for (int64_t k = from; k < to; k++) {
            int64_t first = k / a->kv_heads * AT_ONCE;
            int64_t last = first + AT_ONCE < s->count ? first + AT_ONCE : s->count;
            all->table->attend(a, s, k % a->kv_heads, first, last, scores);
        }
        item += pieces;
    }
}

int language_attend(const attention *a) {
    uint64_t mode = services->float_mode_set();
    attending all = {.table = table(), .a = a};
    int64_t items = 0;
    double positions = 0;
    for (int64_t i = 0; i < a->stretch_count; i++) {
        const stretch *s = &a->stretches[i];
        int64_t room = (s->start + s->count + PAGE - 1) / PAGE * PAGE;
        all.room = room > all.room ? room : all.room;
        items += (s->count + AT_ONCE - 1) / AT_ONCE * a->kv_heads;
        positions += (double)s->count * (double)(s->start + s->count);
    }
    double each = items ? positions * (double)(a->heads * a->size) / (double)items : 1.0;
    services->parallel(items, services->grain(items, each, 50000), attend_body, &all);
    services->float_mode_restore(mode);
    return all.no_memory ? -1 : 0;
}

static void place_body(void *context, int64_t begin, int64_t end) {
    const work *w = context;
    w->table->place(w->task, begin, end);
}

void language_place(const placing *p) {
    uint64_t mode = services->float_mode_set();
    work w = {table(), p};
    int64_t numbers = (p->heads + 2 * p->kv_heads) * p->size;
    services->parallel(p->count, services->grain(p->count, (double)numbers, 50000), place_body, &w);
    services->float_mode_restore(mode);
}

typedef struct {
    const language_table *table;
    float *out;
    const float *x, *weight;
    int64_t size;
    float eps;
} rows;

static void norm_body(void *context, int64_t begin, int64_t end) {
    const rows *r = context;
    for (int64_t i = begin; i < end; i++)
        r->table->rms_norm(r->out + i * r->size, r->x + i * r->size, r->weight, r->size, r->eps);
}

void language_rms_norm(float *out, const float *x, const float *weight, int64_t count, int64_t size, float eps) {
    uint64_t mode = services->float_mode_set();
    rows r = {.table = table(), .out = out, .x = x, .weight = weight, .size = size, .eps = eps};
    services->parallel(count, services->grain(count, (double)size, 50000), norm_body, &r);
    services->float_mode_restore(mode);
}

static void swiglu_body(void *context, int64_t begin, int64_t end) {
    const rows *r = context;
    for (int64_t i = begin; i < end; i++) {
        const float *both = r->x + 2 * i * r->size;
        r->table->swiglu(r->out + i * r->size, both, both + r->size, r->size);
    }
}

void language_swiglu(float *out, const float *both, int64_t count, int64_t size) {
    uint64_t mode = services->float_mode_set();
    rows r = {.table = table(), .out = out, .x = both, .size = size};
    services->parallel(count, services->grain(count, 10.0 * (double)size, 50000), swiglu_body, &r);
    services->float_mode_restore(mode);
}
