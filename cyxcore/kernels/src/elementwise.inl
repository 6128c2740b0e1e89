/* Element-wise kernels of float32 and float64. A NaN that goes in comes out. */

/* Loops of arithmetic wait for memory: an instruction set may have vectors by which they wait less. */
#if !defined(OF_STREAMS)
#define OF_STREAMS
#define UNROLLED
#endif

#define FLOAT_OPS(T, S, F)                                                                                   \
    CYX_UNARY(neg_##S, T, T, -x)                                                                             \
    CYX_UNARY(abs_##S, T, T, __builtin_fabs##F(x))                                                           \
    CYX_UNARY(exp_op_##S, T, T, exp_##S(x))                                                                  \
    CYX_UNARY(log1p_op_##S, T, T, log1p_##S(x))                                                              \
    CYX_UNARY(log_op_##S, T, T, log_##S(x))                                                                  \
    CYX_UNARY(ceil_##S, T, T, __builtin_ceil##F(x))                                                          \
    CYX_UNARY(trunc_##S, T, T, __builtin_trunc##F(x))                                                        \
    CYX_UNARY(round_##S, T, T, __builtin_rint##F(x))                                                         \
    CYX_UNARY(erfinv_op_##S, T, T, erfinv_##S(x))                                                            \
    CYX_BINARY(copysign_##S, T, T, __builtin_copysign##F(x, y))                                              \
    CYX_UNARY(sqrt_##S, T, T, __builtin_sqrt##F(x))                                                          \
    CYX_UNARY(tanh_op_##S, T, T, tanh_##S(x))                                                                \
    CYX_UNARY(sigmoid_op_##S, T, T, sigmoid_##S(x))                                                          \
    CYX_UNARY(relu_##S, T, T, x < 0 ? 0 : x)                                                                 \
    CYX_UNARY(erf_op_##S, T, T, erf_##S(x))                                                                  \
    CYX_UNARY(erfc_op_##S, T, T, erfc_##S(x))                                                                \
    CYX_UNARY(ndtr_op_##S, T, T, ndtr_##S(x))                                                                \
    CYX_UNARY(gelu_op_##S, T, T, gelu_##S(x))                                                                \
    CYX_UNARY(square_##S, T, T, x *x)                                                                        \
    CYX_UNARY(sign_##S, T, T, x > 0 ? 1 : x < 0 ? -1 : x == 0 ? 0 : x)                                       \
    CYX_UNARY(floor_##S, T, T, __builtin_floor##F(x))                                                        \
    CYX_UNARY(logical_not_##S, T, uint8_t, x == 0)                                                           \
    CYX_BINARY_AS(OF_STREAMS, UNROLLED, add_##S, T, T, x + y)                                                \
    CYX_BINARY_AS(OF_STREAMS, UNROLLED, sub_##S, T, T, x - y)                                                \
    CYX_BINARY_AS(OF_STREAMS, UNROLLED, mul_##S, T, T, x *y)                                                 \
    CYX_BINARY_AS(OF_STREAMS, UNROLLED, div_##S, T, T, x / y)                                                \
    CYX_BINARY(maximum_##S, T, T, x >= y || x != x ? x : y)                                                  \
    CYX_BINARY(minimum_##S, T, T, x <= y || x != x ? x : y)                                                  \
    CYX_BINARY(equal_##S, T, uint8_t, x == y)                                                                \
    CYX_BINARY(not_equal_##S, T, uint8_t, x != y)                                                            \
    CYX_BINARY(less_##S, T, uint8_t, x < y)                                                                  \
    CYX_BINARY(less_equal_##S, T, uint8_t, x <= y)                                                           \
    CYX_BINARY(greater_##S, T, uint8_t, x > y)                                                               \
    CYX_BINARY(greater_equal_##S, T, uint8_t, x >= y)                                                        \
    CYX_BINARY(logical_and_##S, T, uint8_t, x != 0 && y != 0)                                                \
    CYX_BINARY(logical_or_##S, T, uint8_t, x != 0 || y != 0)

#if defined(LOG_ROW)
#define CYX_COSTLY(NAME, ROW)                                                                                \
    static void NAME##_body(void *context, int64_t begin, int64_t end) {                                     \
        const cyx_call *call = ((const cyx_rows *)context)->call;                                            \
        ROW((float *)call->out.data + begin, (const float *)call->in[0].data + begin, 0.0f, end - begin);    \
    }                                                                                                        \
    static cyx_status NAME(const cyx_call *call) { return cyx_run_rows(call, NAME##_body); }
CYX_COSTLY(exp_rows, EXP_ROW)
CYX_COSTLY(log_rows, LOG_ROW)
CYX_COSTLY(sigmoid_rows, SIGMOID_ROW)
CYX_COSTLY(erf_rows, ERF_ROW)
CYX_COSTLY(gelu_rows, GELU_ROW)
#endif
#if defined(VECTOR_MATH)
CYX_COSTLY(tanh_rows, tanh_of_row)
CYX_COSTLY(sin_rows, sin_of_row)
CYX_COSTLY(cos_rows, cos_of_row)
#endif

FLOAT_OPS(float, f32, f)
CYX_BINARY(atan2_op_f32, float, float, atan2_f32(x, y))
CYX_BINARY(hypot_op_f32, float, float, hypot_f32(x, y))
CYX_UNARY(sin_f64, double, double, cyx_sin(x))
CYX_UNARY(cos_f64, double, double, cyx_cos(x))

/* A chunk at a time as vectors; a chunk with an element beyond 2**20 (or infinite, or NaN) mends those one by
 * one. */
#define TRIGONOMETRY(NAME, SHIFT, BEYOND)                                                                    \
    static void NAME##_body(void *context, int64_t begin, int64_t end) {                                     \
        const cyx_call *call = ((const cyx_rows *)context)->call;                                            \
        const float *x = call->in[0].data;                                                                   \
        float *out = call->out.data;                                                                         \
        for (int64_t at = begin; at < end; at += 64) {                                                       \
            float own[64], y[64];                                                                            \
            int64_t n = end - at < 64 ? end - at : 64;                                                       \
            int beyond = 0;                                                                                  \
            memset(own, 0, sizeof own);                                                                      \
            memcpy(own, x + at, sizeof(float) * (size_t)n);                                                  \
            for (int i = 0; i < 64; i++) beyond |= !(__builtin_fabsf(own[i]) < 0x1p20f);                     \
            INDEPENDENT for (int i = 0; i < 64; i++) y[i] = sine_f32(own[i], SHIFT);                         \
            for (int i = 0; beyond && i < 64; i++)                                                           \
                if (!(__builtin_fabsf(own[i]) < 0x1p20f)) y[i] = (float)BEYOND(own[i]);                      \
            memcpy(out + at, y, sizeof(float) * (size_t)n);                                                  \
        }                                                                                                    \
    }                                                                                                        \
    static cyx_status NAME(const cyx_call *call) { return cyx_run_rows(call, NAME##_body); }
TRIGONOMETRY(sin_f32, 0, cyx_sin)
TRIGONOMETRY(cos_f32, 1, cyx_cos)

FLOAT_OPS(double, f64, )
CYX_BINARY(pow_f64, double, double, cyx_pow(x, y))

/* What cyx_pow has a rule for, beside what power_of_positive makes. */
static inline int pow_by_rule(double x, double y) {
    return !(x > 0.0) | (x >= INFINITY) | (x == 1.0) | !(__builtin_fabs(y) < INFINITY) | (y == -1.0) | (y == 0.0) |
           (y == 0.5) | (y == 1.0) | (y == 2.0) | (y == 3.0);
}

/* By float64, a chunk at a time as vectors; a chunk with elements that have a rule of their own mends those one by one. */
static void pow_f32_row(float *o, const float *a, int64_t sa, const float *b, int64_t sb, int64_t n) {
    enum { CHUNK = 64 };
    if (!sb && *b == -1.0f) {
        INDEPENDENT for (int64_t i = 0; i < n; i++) o[i] = 1.0f / a[i * sa];
        return;
    }
    for (int64_t at = 0; at < n; at += CHUNK) {
        double x[CHUNK], y[CHUNK];
        float z[CHUNK];
        int64_t count = n - at < CHUNK ? n - at : CHUNK;
        int by_rule = 0;
        for (int i = 0; i < count; i++) x[i] = a[(at + i) * sa], y[i] = b[(at + i) * sb];
        for (int i = (int)count; i < CHUNK; i++) x[i] = y[i] = 1.5;
        for (int i = 0; i < CHUNK; i++) by_rule |= pow_by_rule(x[i], y[i]);
        INDEPENDENT for (int i = 0; i < CHUNK; i++) z[i] = (float)power_of_positive(x[i], y[i]);
        for (int i = 0; by_rule && i < CHUNK; i++)
            if (pow_by_rule(x[i], y[i])) z[i] = (float)cyx_pow(x[i], y[i]);
        memcpy(o + at, z, sizeof(float) * (size_t)count);
    }
}
CYX_BINARY_ROWS(pow_f32, float, float)

/* A chunk at a time as vectors; a chunk with quotients that are large or none mends those one by one. */
static void remainder_f32_row(float *o, const float *a, int64_t sa, const float *b, int64_t sb, int64_t n) {
    enum { CHUNK = 64 };
    for (int64_t at = 0; at < n; at += CHUNK) {
        double x[CHUNK], y[CHUNK];
        float z[CHUNK];
        int64_t count = n - at < CHUNK ? n - at : CHUNK;
        int by_rule = 0;
        for (int i = 0; i < count; i++) x[i] = a[(at + i) * sa], y[i] = b[(at + i) * sb];
        for (int i = (int)count; i < CHUNK; i++) x[i] = y[i] = 1.5;
        for (int i = 0; i < CHUNK; i++) by_rule |= remainder_by_rule(x[i], y[i]);
        INDEPENDENT for (int i = 0; i < CHUNK; i++) z[i] = (float)remainder_of_small(x[i], y[i]);
        for (int i = 0; by_rule && i < CHUNK; i++)
            if (remainder_by_rule(x[i], y[i])) z[i] = (float)cyx_remainder(x[i], y[i]);
        memcpy(o + at, z, sizeof(float) * (size_t)count);
    }
}
CYX_BINARY_ROWS(remainder_f32, float, float)

/* A function for numbers from 1/2 on, in float64, a chunk at a time as vectors; a chunk with lower ones has theirs made of 1 - x. */
#define REFLECTED(NAME, S, T)                                                                                \
    static void NAME##_##S##_body(void *context, int64_t begin, int64_t end) {                               \
        enum { CHUNK = 64 };                                                                                 \
        const cyx_call *call = ((const cyx_rows *)context)->call;                                            \
        const T *from = call->in[0].data;                                                                    \
        T *out = call->out.data;                                                                             \
        for (int64_t at = begin; at < end; at += CHUNK) {                                                    \
            double x[CHUNK], above[CHUNK];                                                                   \
            int64_t count = end - at < CHUNK ? end - at : CHUNK;                                             \
            int low = 0;                                                                                     \
            for (int i = 0; i < count; i++) x[i] = from[at + i];                                             \
            for (int i = (int)count; i < CHUNK; i++) x[i] = 1.5;                                             \
            for (int i = 0; i < CHUNK; i++) low |= x[i] < 0.5;                                               \
            INDEPENDENT for (int i = 0; i < CHUNK; i++) above[i] = NAME##_above(x[i] < 0.5 ? 1.0 - x[i] : x[i]); \
            if (low)                                                                                         \
                INDEPENDENT for (int i = 0; i < CHUNK; i++)                                                  \
                    above[i] = x[i] < 0.5 ? NAME##_below(x[i], above[i]) : above[i];                         \
            for (int i = 0; i < count; i++) out[at + i] = (T)above[i];                                       \
        }                                                                                                    \
    }                                                                                                        \
    static cyx_status NAME##_op_##S(const cyx_call *call) { return cyx_run_rows(call, NAME##_##S##_body); }
#define REFLECTED_OPS(S, T) REFLECTED(lgamma, S, T) REFLECTED(digamma, S, T) REFLECTED(trigamma, S, T)
REFLECTED_OPS(f32, float)
REFLECTED_OPS(f64, double)

/* g times the derivative of gelu at x, so many numbers at a time that those stay in the nearest cache. */
#define GELU_GRAD(T, S, SLOPES)                                                                              \
    static void gelu_grad_##S##_row(T *o, const T *g, int64_t sg, const T *x, int64_t sx, int64_t n) {       \
        enum { NEAR = 1024 };                                                                                \
        T slope[NEAR];                                                                                       \
        for (int64_t at = 0; at < n; at += NEAR) {                                                           \
            int64_t count = n - at < NEAR ? n - at : NEAR;                                                   \
            if (sx)                                                                                          \
                SLOPES(slope, x + at, 0, count);                                                             \
            else if (!at)                                                                                    \
                for (int64_t i = 0; i < count; i++) slope[i] = gelu_slope_##S(*x);                           \
            mul_##S##_row(o + at, g + at * sg, sg, slope, 1, count);                                         \
        }                                                                                                    \
    }                                                                                                        \
    CYX_BINARY_ROWS(gelu_grad_##S, T, T)
#define SLOPES(T, S)                                                                                         \
    static inline void gelu_slope_##S##_row(T *slope, const T *x, T shift, int64_t n) {                      \
        (void)shift;                                                                                         \
        INDEPENDENT for (int64_t i = 0; i < n; i++) slope[i] = gelu_slope_##S(x[i]);                         \
    }
SLOPES(double, f64)
#if !defined(GELU_SLOPE_ROW)
SLOPES(float, f32)
#define GELU_SLOPE_ROW gelu_slope_f32_row
#endif
GELU_GRAD(float, f32, GELU_SLOPE_ROW)
GELU_GRAD(double, f64, gelu_slope_f64_row)

/* Functions of a few straight pieces (of huber also a parabola) and their gradients: the operations that they are made of in
 * graphs, one after the other, so that the bits are the same; a and b are the call's numbers. Of a gradient u is that of the result. */
#define BENT(NAME, T, S, ...)                                                                                \
    static void NAME##_##S##_body(void *context, int64_t begin, int64_t end) {                               \
        const cyx_rows *rows = context;                                                                      \
        const T a = (T)rows->constants[0], b = (T)rows->constants[1], *in = rows->call->in[0].data;          \
        T *out = rows->call->out.data;                                                                       \
        (void)a, (void)b;                                                                                    \
        INDEPENDENT for (int64_t i = begin; i < end; i++) {                                                  \
            T x = in[i];                                                                                     \
            out[i] = __VA_ARGS__;                                                                            \
        }                                                                                                    \
    }                                                                                                        \
    static cyx_status NAME##_op_##S(const cyx_call *call) { return cyx_run_rows(call, NAME##_##S##_body); }
#define BENT_GRAD(NAME, T, S, ...)                                                                           \
    static inline __attribute__((always_inline)) void NAME##_##S##_loop(T *o, const T *g, int64_t sg, const T *v, int64_t sv, \
                                                                        int64_t n, T a, T b) {               \
        (void)a, (void)b;                                                                                    \
        INDEPENDENT for (int64_t i = 0; i < n; i++) {                                                        \
            T u = g[i * sg], x = v[i * sv];                                                                  \
            o[i] = __VA_ARGS__;                                                                              \
        }                                                                                                    \
    }                                                                                                        \
    static void NAME##_##S##_body(void *context, int64_t begin, int64_t end) {                               \
        CYX_FOR_ROWS(2, {                                                                                    \
            int64_t sg = walk->stride[0][walk->ndim - 1], sv = walk->stride[1][walk->ndim - 1];              \
            const T *g = (const T *)rows->call->in[0].data + offset[0] + first * sg;                         \
            const T *v = (const T *)rows->call->in[1].data + offset[1] + first * sv;                         \
            T *o = (T *)rows->call->out.data + at;                                                           \
            T a = (T)rows->constants[0], b = (T)rows->constants[1];                                          \
            if (sg && sv)                                                                                    \
                NAME##_##S##_loop(o, g, 1, v, 1, n, a, b);                                                   \
            else if (sv)                                                                                     \
                NAME##_##S##_loop(o, g, 0, v, 1, n, a, b);                                                   \
            else                                                                                             \
                NAME##_##S##_loop(o, g, sg, v, 0, n, a, b);                                                  \
        })                                                                                                   \
    }                                                                                                        \
    static cyx_status NAME##_op_##S(const cyx_call *call) { return cyx_run_rows(call, NAME##_##S##_body); }

#define FROM_BELOW(x, low) (x <= low ? low : x)
#define WITHIN(x, low, high) (FROM_BELOW(x, low) >= high ? high : FROM_BELOW(x, low))
#define IF_WITHIN(x, low, high, y) (x <= low ? 0 : FROM_BELOW(x, low) >= high ? 0 : y)
#define CLIPPED_BELOW(x, low) (x < low ? low : x)
#define CLIPPED(x, low, high) (CLIPPED_BELOW(x, low) > high ? high : CLIPPED_BELOW(x, low))
#define BENT_OPS(T, S, F)                                                                                    \
    static const T sixth_##S = (T)(1.0 / 6.0), half_##S = (T)0.5, three_##S = 3, six_##S = 6;                \
    MATH T hardsigmoid_##S(T x) { return WITHIN((x + three_##S), 0, six_##S) * sixth_##S; }                  \
    MATH T if_bent_##S(T x, T y) { return IF_WITHIN((x + three_##S), 0, six_##S, y); }                       \
    MATH T huber_##S(T away, T delta) {                                                                      \
        T near = away <= delta || away != away ? away : delta;                                               \
        return near * (away - near * half_##S);                                                              \
    }                                                                                                        \
    MATH T huber_slope_##S(T u, T x, T delta) {                                                              \
        T away = __builtin_fabs##F(x), near = away <= delta || away != away ? away : delta;                  \
        T own = away == near, bound = delta == near;                                                         \
        T to_near = u * (away - near * half_##S) + -(u * near) * half_##S;                                   \
        return (u * near + to_near / (own + bound) * own) * (x > 0 ? 1 : x < 0 ? -1 : x == 0 ? 0 : x);       \
    }                                                                                                        \
    BENT(hardtanh, T, S, WITHIN(x, a, b))                                                                    \
    BENT(clip, T, S, CLIPPED(x, a, b))                                                                       \
    BENT(hardsigmoid, T, S, hardsigmoid_##S(x))                                                              \
    BENT(hardswish, T, S, x * hardsigmoid_##S(x))                                                            \
    BENT(softshrink, T, S, x - CLIPPED(x, -a, a))                                                            \
    BENT(leaky_relu, T, S, x > 0 ? x : x * a)                                                                \
    BENT(huber, T, S, huber_##S(__builtin_fabs##F(x), a))                                                    \
    BENT_GRAD(hardtanh_grad, T, S, IF_WITHIN(x, a, b, u))                                                    \
    BENT_GRAD(clip_grad, T, S, x < a ? 0 : CLIPPED_BELOW(x, a) > b ? 0 : u)                                  \
    BENT_GRAD(hardsigmoid_grad, T, S, if_bent_##S(x, u * sixth_##S))                                         \
    BENT_GRAD(hardswish_grad, T, S, u * hardsigmoid_##S(x) + if_bent_##S(x, u * x * sixth_##S))              \
    BENT_GRAD(softshrink_grad, T, S, u + (x < -a ? 0 : CLIPPED_BELOW(x, -a) > a ? 0 : -u))                   \
    BENT_GRAD(leaky_relu_grad, T, S, (x > 0 ? u : 0) + (x > 0 ? 0 : u) * a)                                  \
    BENT_GRAD(huber_grad, T, S, huber_slope_##S(u, x, a))
BENT_OPS(float, f32, f)
BENT_OPS(double, f64, )

CYX_WHERE(where_f32, float)
CYX_WHERE(where_f64, double)

/* Masks become factors in every backward pass; the other casts are those of integer.inl. */
CYX_UNARY(bool_to_f32, uint8_t, float, x)
static cyx_kernel other_cast_of_bool;
static cyx_status cast_of_bool(const cyx_call *call) {
    return call->out.dtype == CYX_F32 ? bool_to_f32(call) : other_cast_of_bool(call);
}

#define FILL_FLOAT_OPS(D, S)                                                                                 \
    table[CYX_OP_neg][D] = neg_##S, table[CYX_OP_abs][D] = abs_##S, table[CYX_OP_exp][D] = exp_op_##S;       \
    table[CYX_OP_log1p][D] = log1p_op_##S, table[CYX_OP_erfinv][D] = erfinv_op_##S;                          \
    table[CYX_OP_ceil][D] = ceil_##S, table[CYX_OP_trunc][D] = trunc_##S, table[CYX_OP_round][D] = round_##S; \
    table[CYX_OP_copysign][D] = copysign_##S, table[CYX_OP_lgamma][D] = lgamma_op_##S;                       \
    table[CYX_OP_digamma][D] = digamma_op_##S, table[CYX_OP_trigamma][D] = trigamma_op_##S;                  \
    table[CYX_OP_log][D] = log_op_##S, table[CYX_OP_sqrt][D] = sqrt_##S,                                     \
    table[CYX_OP_tanh][D] = tanh_op_##S;                                                                     \
    table[CYX_OP_sigmoid][D] = sigmoid_op_##S, table[CYX_OP_relu][D] = relu_##S,                             \
    table[CYX_OP_erf][D] = erf_op_##S, table[CYX_OP_erfc][D] = erfc_op_##S;                                  \
    table[CYX_OP_ndtr][D] = ndtr_op_##S, table[CYX_OP_gelu][D] = gelu_op_##S;                                \
    table[CYX_OP_gelu_grad][D] = gelu_grad_##S;                                                              \
    table[CYX_OP_hardtanh][D] = hardtanh_op_##S, table[CYX_OP_hardtanh_grad][D] = hardtanh_grad_op_##S;      \
    table[CYX_OP_hardsigmoid][D] = hardsigmoid_op_##S, table[CYX_OP_hardsigmoid_grad][D] = hardsigmoid_grad_op_##S; \
    table[CYX_OP_hardswish][D] = hardswish_op_##S, table[CYX_OP_hardswish_grad][D] = hardswish_grad_op_##S;  \
    table[CYX_OP_softshrink][D] = softshrink_op_##S, table[CYX_OP_softshrink_grad][D] = softshrink_grad_op_##S; \
    table[CYX_OP_leaky_relu][D] = leaky_relu_op_##S, table[CYX_OP_leaky_relu_grad][D] = leaky_relu_grad_op_##S; \
    table[CYX_OP_clip][D] = clip_op_##S, table[CYX_OP_clip_grad][D] = clip_grad_op_##S;                      \
    table[CYX_OP_huber][D] = huber_op_##S, table[CYX_OP_huber_grad][D] = huber_grad_op_##S;                  \
    table[CYX_OP_square][D] = square_##S, table[CYX_OP_sign][D] = sign_##S,                                  \
    table[CYX_OP_floor][D] = floor_##S;                                                                      \
    table[CYX_OP_logical_not][D] = logical_not_##S, table[CYX_OP_sin][D] = sin_##S,                          \
    table[CYX_OP_cos][D] = cos_##S;                                                                          \
    table[CYX_OP_add][D] = add_##S, table[CYX_OP_sub][D] = sub_##S, table[CYX_OP_mul][D] = mul_##S;          \
    table[CYX_OP_div][D] = div_##S, table[CYX_OP_pow][D] = pow_##S, table[CYX_OP_maximum][D] = maximum_##S;  \
    table[CYX_OP_minimum][D] = minimum_##S, table[CYX_OP_equal][D] = equal_##S;                              \
    table[CYX_OP_not_equal][D] = not_equal_##S, table[CYX_OP_less][D] = less_##S;                            \
    table[CYX_OP_less_equal][D] = less_equal_##S, table[CYX_OP_greater][D] = greater_##S;                    \
    table[CYX_OP_greater_equal][D] = greater_equal_##S, table[CYX_OP_logical_and][D] = logical_and_##S;      \
    table[CYX_OP_logical_or][D] = logical_or_##S

static void fill_elementwise(cyx_table table) {
    FILL_FLOAT_OPS(CYX_F32, f32);
    FILL_FLOAT_OPS(CYX_F64, f64);
#if defined(LOG_ROW)
    table[CYX_OP_exp][CYX_F32] = exp_rows, table[CYX_OP_log][CYX_F32] = log_rows;
    table[CYX_OP_sigmoid][CYX_F32] = sigmoid_rows, table[CYX_OP_erf][CYX_F32] = erf_rows;
    table[CYX_OP_gelu][CYX_F32] = gelu_rows;
#endif
#if defined(VECTOR_MATH)
    table[CYX_OP_tanh][CYX_F32] = tanh_rows, table[CYX_OP_sin][CYX_F32] = sin_rows, table[CYX_OP_cos][CYX_F32] = cos_rows;
#endif
    table[CYX_OP_atan2][CYX_F32] = atan2_op_f32, table[CYX_OP_hypot][CYX_F32] = hypot_op_f32;
    table[CYX_OP_remainder][CYX_F32] = remainder_f32;
    table[CYX_OP_where][CYX_F32] = where_f32, table[CYX_OP_where][CYX_F64] = where_f64;
    other_cast_of_bool = table[CYX_OP_cast][CYX_BOOL];
    table[CYX_OP_cast][CYX_BOOL] = cast_of_bool;
}
