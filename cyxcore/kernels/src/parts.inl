/* Vectors by lanes: shuffled, folded, and those at the end of a row, which is no whole vector. */

#undef EACH_LANE
#if VN == 16
#define EACH_LANE(F, h)                                                                                      \
    F(0, h), F(1, h), F(2, h), F(3, h), F(4, h), F(5, h), F(6, h), F(7, h), F(8, h), F(9, h), F(10, h),      \
        F(11, h), F(12, h), F(13, h), F(14, h), F(15, h)
#elif VN == 8
#define EACH_LANE(F, h) F(0, h), F(1, h), F(2, h), F(3, h), F(4, h), F(5, h), F(6, h), F(7, h)
#elif VN == 4
#define EACH_LANE(F, h) F(0, h), F(1, h), F(2, h), F(3, h)
#else
#define EACH_LANE(F, h) F(0, h), F(1, h)
#endif

#ifndef PARTS_ONCE
#define PARTS_ONCE
#if defined(__clang__)
#define TWO_VECTORS(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TWO_VECTORS(a, b, ...) __builtin_shuffle(a, b, (MASK){__VA_ARGS__})
#endif
#define LANE_AFTER(j, h) (((j) + (h)) % VN)
#define LOW_LANE(j, h) ((j) & (h) ? VN + (j) - (h) : (j))
#define HIGH_LANE(j, h) ((j) & (h) ? VN + (j) : (j) + (h))
/* Of each 2h x 2h square of x the two h x h squares off the diagonal change places. */
#define EXCHANGE(x, h)                                                                                       \
    _Pragma("GCC unroll 16") for (int i = 0; i < VN; i++) if (!(i & (h))) {                                  \
        V a = x[i], b = x[i + (h)];                                                                          \
        x[i] = TWO_VECTORS(a, b, EACH_LANE(LOW_LANE, h));                                                    \
        x[i + (h)] = TWO_VECTORS(a, b, EACH_LANE(HIGH_LANE, h));                                             \
    }
#ifndef IN_VECTOR_REGISTER
#define IN_VECTOR_REGISTER(v)
#endif
/* Lane j meets lane j + h. */
#define FOLD_LANES(x, h, JOIN_V)                                                                             \
    {                                                                                                        \
        V other = TWO_VECTORS(x, x, EACH_LANE(LANE_AFTER, h));                                               \
        x = JOIN_V(x, other);                                                                                \
    }
#endif

/* The first n elements of x, and `fill` where there are no more: n may be less than 1 or more than a vector has. */
static inline __attribute__((always_inline)) V NAME(part)(const T *x, int64_t n, T fill) {
    if (n >= VN) return *(const V *)x;
#if defined(LOAD_PART)
    V found = (V){} + fill;
    if (n > 0) found = (V)LOAD_PART(x, (1u << n) - 1, found);
    return found;
#else
    V found = (V){} + fill;
    for (int64_t i = 0; i < n; i++) found[i] = x[i];
    return found;
#endif
}

/* The first n elements of a vector to x; as above. */
static inline __attribute__((always_inline)) void NAME(put_part)(T *x, V v, int64_t n) {
    if (n >= VN) {
        *(V *)x = v;
        return;
    }
#if defined(LOAD_PART)
    if (n > 0) STORE_PART(x, (1u << n) - 1, v);
#else
    for (int64_t i = 0; i < n; i++) x[i] = v[i];
#endif
}

/* n elements from one place to another: what memcpy does, without a call for a few. */
static inline void NAME(copy)(T *to, const T *from, int64_t n) {
    for (int64_t i = 0; i < n; i += VN) NAME(put_part)(to + i, NAME(part)(from + i, n - i, 0), n - i);
}

/* VN vectors turned: lane i of x[j] becomes what lane j of x[i] was. */
static inline __attribute__((always_inline)) void NAME(turn)(V *x) {
    EXCHANGE(x, 1)
#if VN > 2
    EXCHANGE(x, 2)
#endif
#if VN > 4
    EXCHANGE(x, 4)
#endif
#if VN > 8
    EXCHANGE(x, 8)
#endif
}
