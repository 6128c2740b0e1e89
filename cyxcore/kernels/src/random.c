/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011): element i
 * of a stream depends on the key and on i alone, so any thread can make any part of it. */
#include "elementwise.h"
#include "tables.h"

typedef struct {
    uint32_t key[2], stream, step[2];
    float *out;
    int64_t size;
} uniform_stream;

static inline void philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        uint64_t first = (uint64_t)0xd2511f53u * c[0], second = (uint64_t)0xcd9e8d57u * c[2];
        uint32_t next0 = (uint32_t)(second >> 32) ^ c[1] ^ k0, next2 = (uint32_t)(first >> 32) ^ c[3] ^ k1;
        c[0] = next0, c[1] = (uint32_t)second, c[2] = next2, c[3] = (uint32_t)first;
        k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
    }
}

static void uniform_body(void *context, int64_t begin, int64_t end) {
    const uniform_stream *u = context;
    for (int64_t block = begin; block < end; block++) {
        uint32_t word[4] = {(uint32_t)block, u->stream, u->step[0], u->step[1]};
        philox(word, u->key[0], u->key[1]);
        for (int64_t i = 4 * block; i < 4 * block + 4 && i < u->size; i++)
            u->out[i] = (float)(word[i % 4] >> 8) * 0x1p-24f;
    }
}

/* ints: count, shape..., stream. The key is (seed, step). */
static cyx_status uniform(const cyx_call *call) {
    const uint64_t *key = call->in[0].data;
    uniform_stream u = {.key = {(uint32_t)key[0], (uint32_t)(key[0] >> 32)},
                        .stream = (uint32_t)call->ints[1 + call->ints[0]],
                        .step = {(uint32_t)key[1], (uint32_t)(key[1] >> 32)},
                        .out = call->out.data,
                        .size = call->out.size};
    int64_t blocks = (u.size + 3) / 4;
    cyx_parallel(blocks, cyx_grain(blocks, 60, CYX_LEAST_WORK), uniform_body, &u);
    return CYX_OK;
}

void cyx_fill_random(cyx_table table) { table[CYX_OP_uniform][CYX_U64] = uniform; }
