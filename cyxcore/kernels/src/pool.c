#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#define cpu_relax() _mm_pause()
uint64_t cyx_float_mode_set(void) {
    uint64_t saved = _mm_getcsr();
    if ((saved & 0xffc0) != 0x1f80) _mm_setcsr(0x1f80);
    return saved;
}
void cyx_float_mode_restore(uint64_t saved) {
    if ((saved & 0xffc0) != 0x1f80) _mm_setcsr((unsigned)saved);
}
#elif defined(__aarch64__)
#define cpu_relax() __asm__ volatile("yield" ::: "memory")
uint64_t cyx_float_mode_set(void) {
    uint64_t saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    if (saved) __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
    return saved;
}
void cyx_float_mode_restore(uint64_t saved) {
    if (saved) __asm__ volatile("msr fpcr, %0" ::"r"(saved));
}
#else
#define cpu_relax() ((void)0)
uint64_t cyx_float_mode_set(void) { return 0; }
void cyx_float_mode_restore(uint64_t saved) { (void)saved; }
#endif

enum { MAX_THREADS = 256, MOST_PIECES = 65535, SCRATCH_SLOTS = 7, SPIN_ROUNDS = 2000, HUGE_PAGE = 1 << 21, PIECES_PER_THREAD = 16 };

/* The current job. Each thread has a share of the pieces, next to each other: in the next job it has the same again, and
 * reads what it wrote itself; to fetch what another core has just written takes several times as long. Who is through with
 * its own takes from the other end of another's. A share is (generation << 32 | first << 16 | behind the last) of the pieces
 * not yet taken: taking one is one compare-and-swap, and a worker that wakes late finds either nothing left or a job whose
 * caller is still waiting for that very piece. */
static struct {
    _Alignas(64) _Atomic uint32_t posted; /* how many jobs there were */
    _Atomic int threads;                  /* with a share */
    cyx_body body;
    void *context;
    int64_t count, grain;
    _Alignas(64) _Atomic int64_t done; /* pieces, but the one that the caller begins with */
    struct {
        _Alignas(64) _Atomic uint64_t left;
    } share[MAX_THREADS];
} job;

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* held by the thread whose job it is */
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static _Atomic int sleepers, stopping;
static _Atomic int wanted_threads = 1;
static int started_workers;
static pthread_t workers[MAX_THREADS];
static __thread int inside_body;
static _Atomic int64_t stalled_ns;
__thread int cyx_shares_finely;

int64_t cyx_stalled_ns(void) { return atomic_load_explicit(&stalled_ns, memory_order_relaxed); }

int64_t cyx_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void make_piece(int64_t piece) {
    int64_t begin = piece * job.grain, end = begin + job.grain;
    inside_body = 1;
    job.body(job.context, begin, end < job.count ? end : job.count);
    inside_body = 0;
}

static int take_from(int share, int from_the_end) {
    uint64_t seen = atomic_load_explicit(&job.share[share].left, memory_order_acquire);
    for (;;) {
        uint64_t first = seen >> 16 & 0xffff, behind = seen & 0xffff;
        if (first >= behind) return 0;
        uint64_t left = from_the_end ? seen - 1 : seen + (1 << 16);
        if (!atomic_compare_exchange_weak_explicit(&job.share[share].left, &seen, left, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        make_piece((int64_t)(from_the_end ? behind - 1 : first));
        atomic_fetch_add_explicit(&job.done, 1, memory_order_release);
        return 1;
    }
}

/* Pieces until there are none left: first those of the thread itself, then those of the others, the next one first. */
static void take_pieces(int thread) {
    int threads = atomic_load_explicit(&job.threads, memory_order_relaxed);
    for (int i = 0; i < threads; i++) {
        int share = (thread + i) % threads;
        while (take_from(share, share != thread)) {
        }
    }
}

static void wait_for_work(uint32_t seen) {
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&job.posted, memory_order_relaxed) != seen) return;
        cpu_relax();
    }
    pthread_mutex_lock(&sleep_lock);
    atomic_fetch_add(&sleepers, 1);
    while (atomic_load(&job.posted) == seen && !atomic_load(&stopping)) pthread_cond_wait(&wake, &sleep_lock);
    atomic_fetch_sub(&sleepers, 1);
    pthread_mutex_unlock(&sleep_lock);
}

static void *worker(void *number) {
    int thread = (int)(intptr_t)number;
    cyx_float_mode_set();
    while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
        uint32_t seen = atomic_load_explicit(&job.posted, memory_order_acquire);
        take_pieces(thread);
        wait_for_work(seen);
    }
    return NULL;
}

static void wake_all(void) {
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&sleep_lock);
}

/* A child of fork has none of its parent's threads; it starts its own when it first needs them. */
static void after_fork_in_child(void) {
    pthread_mutex_init(&owner, NULL);
    pthread_mutex_init(&sleep_lock, NULL);
    pthread_cond_init(&wake, NULL);
    atomic_store(&sleepers, 0);
    atomic_store(&stopping, 0);
    for (int i = 0; i < MAX_THREADS; i++) atomic_store(&job.share[i].left, 0);
    started_workers = 0;
    inside_body = 0;
}

__attribute__((constructor)) static void set_fork_handler(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

static void start_workers(void) {
    while (started_workers < wanted_threads - 1) {
        if (pthread_create(&workers[started_workers], NULL, worker, (void *)(intptr_t)(started_workers + 1)))
            break; /* fewer threads, same results */
        started_workers++;
    }
}

static void stop_workers(void) {
    atomic_store(&stopping, 1);
    wake_all();
    for (int i = 0; i < started_workers; i++) pthread_join(workers[i], NULL);
    started_workers = 0;
    atomic_store(&stopping, 0);
}

int cyx_threads(void) { return wanted_threads == 1 || inside_body ? 1 : wanted_threads; }

void cyx_set_threads(int count) {
    count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
    pthread_mutex_lock(&owner);
    if (count - 1 < started_workers) stop_workers();
    wanted_threads = count;
    pthread_mutex_unlock(&owner);
}

void cyx_stop_threads(void) {
    pthread_mutex_lock(&owner);
    stop_workers();
    pthread_mutex_unlock(&owner);
}

int64_t cyx_grain(int64_t count, double work_per_item, double least_work) {
    if (wanted_threads == 1) return count;
    double fit = (double)count * work_per_item / least_work, most = (double)(PIECES_PER_THREAD * wanted_threads);
    int64_t pieces = (int64_t)(fit < most ? fit : most);
    if (pieces > wanted_threads) pieces -= pieces % wanted_threads; /* none waits for the last piece of another */
    return pieces < 2 ? count : (count + pieces - 1) / pieces;
}

static void wait_for_pieces(int64_t pieces) {
    for (int spins = 0; spins < SPIN_ROUNDS; spins++) {
        if (atomic_load_explicit(&job.done, memory_order_acquire) == pieces) return;
        cpu_relax();
    }
    int64_t began_ns = cyx_now_ns();
    while (atomic_load_explicit(&job.done, memory_order_acquire) < pieces) sched_yield();
    atomic_fetch_add_explicit(&stalled_ns, cyx_now_ns() - began_ns, memory_order_relaxed);
}

void cyx_parallel(int64_t count, int64_t grain, cyx_body body, void *context) {
    if (count <= 0) return;
    if (grain < 1) grain = 1;
    if (count / grain >= MOST_PIECES) grain = count / MOST_PIECES + 1;
    if (count <= grain || wanted_threads == 1 || inside_body) {
        body(context, 0, count);
        return;
    }
    if (pthread_mutex_trylock(&owner)) {
        inside_body = 1;
        body(context, 0, count);
        inside_body = 0;
        return;
    }
    start_workers();
    int64_t pieces = (count + grain - 1) / grain;
    int threads = pieces < wanted_threads ? (int)pieces : wanted_threads;
    uint32_t generation = atomic_load_explicit(&job.posted, memory_order_relaxed) + 1;
    job.body = body;
    job.context = context;
    job.count = count;
    job.grain = grain;
    atomic_store_explicit(&job.done, 1, memory_order_relaxed);
    atomic_store_explicit(&job.threads, threads, memory_order_relaxed);
    for (int i = 0; i < threads; i++) {
        int64_t first = i ? (pieces * i + threads - 1) / threads : 1, behind = (pieces * (i + 1) + threads - 1) / threads;
        atomic_store_explicit(&job.share[i].left, (uint64_t)generation << 32 | (uint64_t)(first << 16 | behind),
                              memory_order_release);
    }
    /* A worker that goes to sleep just now may miss it: the others make what would have been its pieces. */
    atomic_store_explicit(&job.posted, generation, memory_order_release);
    if (atomic_load_explicit(&sleepers, memory_order_relaxed)) wake_all();
    make_piece(0);
    take_pieces(0);
    wait_for_pieces(pieces);
    pthread_mutex_unlock(&owner);
}

typedef struct {
    void *memory[SCRATCH_SLOTS];
    size_t bytes[SCRATCH_SLOTS];
} scratch;

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static __thread scratch *own_scratch;

static void free_scratch(void *given) {
    scratch *all = given;
    for (int i = 0; i < SCRATCH_SLOTS; i++) free(all->memory[i]);
    free(all);
}

static void make_scratch_key(void) { pthread_key_create(&scratch_key, free_scratch); }

void *cyx_scratch(int slot, size_t bytes) {
    if (!own_scratch) {
        pthread_once(&scratch_once, make_scratch_key);
        own_scratch = calloc(1, sizeof *own_scratch);
        if (!own_scratch) return NULL;
        pthread_setspecific(scratch_key, own_scratch);
    }
    if (own_scratch->bytes[slot] < bytes || !own_scratch->memory[slot]) {
        size_t rounded = (bytes + 4096) & ~(size_t)4095;
        free(own_scratch->memory[slot]);
        own_scratch->memory[slot] = NULL;
        own_scratch->bytes[slot] = 0;
        void *fresh;
        if (posix_memalign(&fresh, rounded < HUGE_PAGE ? 64 : HUGE_PAGE, rounded)) return NULL;
#if defined(MADV_HUGEPAGE)
        if (rounded >= HUGE_PAGE) madvise(fresh, rounded, MADV_HUGEPAGE); /* fewer translations to look up */
#endif
        own_scratch->memory[slot] = fresh;
        own_scratch->bytes[slot] = rounded;
    }
    return own_scratch->memory[slot];
}
