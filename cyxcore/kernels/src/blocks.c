/* A process that frees much at once loses the memory to the system and gets it again page by page, each of which takes
 * longer than an element-wise operation does with all of its numbers. So blocks are kept by their size, and the next
 * array of that size has one, or one a little larger. In use and kept together are never more than a quarter above what
 * was in use at the peak: where that would be, what was given back first goes to the system. */
#include "blocks.h"

#include <stdint.h>
#include <stdlib.h>
#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(MAP_ANONYMOUS) && !defined(__SANITIZE_ADDRESS__)
#define MAPPED_FROM ((size_t)256 << 10) /* of its own, so that it is gone when it is given back */
#else
#define MAPPED_FROM SIZE_MAX
#endif

enum {
    ALIGN = 64,
    STEPS = 8, /* sizes between a power of two and the next */
    BINS = 64 * STEPS,
    MOST_LARGER = 2 * STEPS /* by which a block may be larger than what is asked for: four times */
};
#define HUGE_PAGES_FROM ((size_t)4 << 20)
#define KEPT_SHARE 16 /* of the machine's memory: what an idle process may keep */
#define MOST_KEPT ((size_t)1 << 30)

typedef struct block {
    struct block *newer, *older;     /* of all that are kept, by the time they were given back */
    struct block *bin_newer, *bin_older; /* of those of this size */
    size_t bytes;
    void *memory; /* what the system gave */
} block;

_Static_assert(sizeof(block) <= ALIGN, "a block's head stands right before its data");

static block *newest, *oldest, *bins[BINS];
static size_t kept, in_use, peak;

static block *head_of(void *data) { return (block *)((char *)data - ALIGN); }

/* Rounded up by an eighth at the most, so that sizes which differ by little share blocks. */
static size_t rounded(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    return bytes; /* its redzones stand right behind an array */
#else
    size_t least = bytes > ALIGN * STEPS ? bytes : ALIGN * STEPS;
    size_t step = ((size_t)1 << (63 - __builtin_clzll(least))) / STEPS;
    return (least + step - 1) & ~(step - 1);
#endif
}

static block **bin_of(size_t bytes) {
    int top = 63 - __builtin_clzll(bytes | 1);
    return &bins[top * STEPS + (top < 3 ? 0 : (int)(bytes >> (top - 3) & (STEPS - 1)))];
}

static size_t most_kept(void) {
#if defined(__SANITIZE_ADDRESS__)
    return 0; /* it tells of memory that is used after it was given back */
#elif defined(_SC_PHYS_PAGES)
    static size_t most;
    if (!most) {
        long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
        most = pages > 0 && page > 0 ? (size_t)pages * (size_t)page / KEPT_SHARE : MOST_KEPT;
        if (most > MOST_KEPT) most = MOST_KEPT;
    }
    return most;
#else
    return MOST_KEPT / 4;
#endif
}

static void remove_kept(block *it) {
    *(it->newer ? &it->newer->older : &newest) = it->older;
    *(it->older ? &it->older->newer : &oldest) = it->newer;
    *(it->bin_newer ? &it->bin_newer->bin_older : bin_of(it->bytes)) = it->bin_older;
    if (it->bin_older) it->bin_older->bin_newer = it->bin_newer;
    kept -= it->bytes;
}

void cyx_blocks_shrink(size_t bytes) {
    while (oldest && kept > bytes) {
        block *it = oldest;
        remove_kept(it);
#if defined(MAP_ANONYMOUS)
        if (it->bytes >= MAPPED_FROM) {
            munmap(it->memory, it->bytes + 2 * ALIGN);
            continue;
        }
#endif
        free(it->memory);
    }
}

static void *system_memory(size_t bytes) {
#if defined(MAP_ANONYMOUS)
    if (bytes >= MAPPED_FROM) {
        void *memory = mmap(NULL, bytes + 2 * ALIGN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return NULL;
#if defined(MADV_HUGEPAGE)
        if (bytes >= HUGE_PAGES_FROM) madvise(memory, bytes, MADV_HUGEPAGE); /* 512 times fewer first uses of a page */
#endif
        return memory;
    }
#endif
    return malloc(bytes + 2 * ALIGN);
}

static block *from_system(size_t bytes) {
    char *memory = bytes <= SIZE_MAX - 2 * ALIGN ? system_memory(bytes) : NULL;
    if (!memory) return NULL;
    char *data = (char *)(((uintptr_t)memory + 2 * ALIGN - 1) & ~(uintptr_t)(ALIGN - 1));
    block *it = head_of(data);
    it->bytes = bytes, it->memory = memory;
    return it;
}

void *cyx_block(size_t bytes) {
    bytes = rounded(bytes);
    block **bin = bin_of(bytes), *it = *bin;
    for (int larger = 0; !it && larger < MOST_LARGER && bin < bins + BINS - 1; larger++) it = *++bin;
    if (it) {
        remove_kept(it);
        bytes = it->bytes;
    } else {
        size_t needed = in_use + bytes, most = needed > peak ? needed : peak;
        cyx_blocks_shrink(most + most / 4 - needed);
        it = from_system(bytes);
        if (!it && kept) {
            cyx_blocks_shrink(0);
            it = from_system(bytes);
        }
        if (!it) return NULL;
        peak = most;
    }
    in_use += bytes;
    return (char *)it + ALIGN;
}

void cyx_block_give_back(void *data) {
    block *it = head_of(data), **bin = bin_of(it->bytes);
    in_use -= it->bytes;
    kept += it->bytes;
    it->newer = NULL, it->older = newest;
    *(newest ? &newest->newer : &oldest) = it;
    newest = it;
    it->bin_newer = NULL, it->bin_older = *bin;
    if (*bin) (*bin)->bin_newer = it;
    *bin = it;
    cyx_blocks_shrink(most_kept());
}

size_t cyx_blocks_kept(void) { return kept; }

const cyx_blocks cyx_own_blocks = {cyx_block, cyx_block_give_back};
