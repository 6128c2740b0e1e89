/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011): element i
 * of a stream depends on the key and on i alone, so any thread can make any part of it. */
typedef struct {
    uint32_t key[2], stream, step[2];
    float *out;
    int64_t size;
} uniform_stream;

enum { BLOCKS_AT_ONCE = 16 };

/* Blocks [first, first + BLOCKS_AT_ONCE): word w of block b goes to out[4 * b + w]. */
static inline void uniform_blocks(const uniform_stream *u, uint32_t first, float *out) {
    uint32_t c0[BLOCKS_AT_ONCE], c1[BLOCKS_AT_ONCE], c2[BLOCKS_AT_ONCE], c3[BLOCKS_AT_ONCE];
    uint32_t k0 = u->key[0], k1 = u->key[1];
    for (uint32_t b = 0; b < BLOCKS_AT_ONCE; b++)
        c0[b] = first + b, c1[b] = u->stream, c2[b] = u->step[0], c3[b] = u->step[1];
    for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u)
        for (int b = 0; b < BLOCKS_AT_ONCE; b++) {
            uint64_t one = (uint64_t)0xd2511f53u * c0[b], two = (uint64_t)0xcd9e8d57u * c2[b];
            uint32_t next0 = (uint32_t)(two >> 32) ^ c1[b] ^ k0, next2 = (uint32_t)(one >> 32) ^ c3[b] ^ k1;
            c0[b] = next0, c1[b] = (uint32_t)two, c2[b] = next2, c3[b] = (uint32_t)one;
        }
    for (int b = 0; b < BLOCKS_AT_ONCE; b++) {
        out[4 * b] = (float)(int32_t)(c0[b] >> 8) * 0x1p-24f;
        out[4 * b + 1] = (float)(int32_t)(c1[b] >> 8) * 0x1p-24f;
        out[4 * b + 2] = (float)(int32_t)(c2[b] >> 8) * 0x1p-24f;
        out[4 * b + 3] = (float)(int32_t)(c3[b] >> 8) * 0x1p-24f;
    }
}

static void uniform_body(void *context, int64_t begin, int64_t end) {
    const uniform_stream *u = context;
    for (int64_t block = begin; block < end; block += BLOCKS_AT_ONCE) {
        int64_t stop = block + BLOCKS_AT_ONCE < end ? block + BLOCKS_AT_ONCE : end, last = 4 * stop < u->size ? 4 * stop : u->size;
        float own[4 * BLOCKS_AT_ONCE];
        int whole = last - 4 * block == 4 * BLOCKS_AT_ONCE;
        uniform_blocks(u, (uint32_t)block, whole ? u->out + 4 * block : own);
        if (!whole) memcpy(u->out + 4 * block, own, sizeof(float) * (size_t)(last - 4 * block));
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

static void fill_random(cyx_table table) { table[CYX_OP_uniform][CYX_U64] = uniform; }
