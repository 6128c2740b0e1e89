/* Vectors of VECTOR_BYTES, loaded from and stored to any element boundary. */
typedef float vf32 __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef double vf64 __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
typedef int32_t vi32 __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int64_t vi64 __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
typedef uint32_t vu32 __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef uint64_t vu64 __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
typedef uint8_t vu8 __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));
