/* Update rules, element by element, in the order of operations of the formulas in each comment. The output
 * may be the first input. Scalars (lr, step) are arrays of one element. A weight decay of zero adds nothing,
 * not even a NaN. */

enum { FEW_UPDATED = 40000 }; /* operations of a thread where calls are shared finely */

/* base**exponent for a whole number 0 <= exponent < 2**53, by squaring. */
static double whole_power(double base, double exponent) {
    double result = 1.0;
    for (uint64_t left = exponent > 0 && exponent < 0x1p53 ? (uint64_t)exponent : 0; left;
         left >>= 1, base *= base)
        if (left & 1) result *= base;
    return result;
}

#define OPTIMIZER_OPS(T, S, F)                                                                               \
    typedef struct {                                                                                         \
        T *out;                                                                                              \
        const T *in[3];                                                                                      \
        T c[CYX_LOOP_CONSTANTS];                                                                             \
    } update_##S;                                                                                            \
    static inline update_##S update_on_##S(const cyx_call *call) {                                           \
        update_##S u = {.out = call->out.data};                                                              \
        for (int i = 0; i < 3 && i < call->in_count; i++) u.in[i] = call->in[i].data;                        \
        return u;                                                                                            \
    }                                                                                                        \
    static inline update_##S update_of_##S(const cyx_rows *rows) {                                           \
        update_##S u = update_on_##S(rows->call);                                                            \
        for (int i = 0; i < CYX_LOOP_CONSTANTS; i++) u.c[i] = (T)rows->constants[i];                         \
        return u;                                                                                            \
    }                                                                                                        \
    MATH T decayed_##S(T g, T p, T wd) { return wd != 0 ? g + wd * p : g; }                                  \
    /* c: lr, weight_decay */                                                                                \
    static void sgd_update_##S##_body(void *context, int64_t begin, int64_t end) {                           \
        update_##S u = update_of_##S(context);                                                               \
        INDEPENDENT for (int64_t i = begin; i < end; i++) {                                                  \
            T p = u.in[0][i];                                                                                \
            u.out[i] = p - u.c[0] * decayed_##S(u.in[1][i], p, u.c[1]);                                      \
        }                                                                                                    \
    }                                                                                                        \
    /* c: momentum, weight_decay */                                                                          \
    static void momentum_##S##_body(void *context, int64_t begin, int64_t end) {                             \
        update_##S u = update_of_##S(context);                                                               \
        INDEPENDENT for (int64_t i = begin; i < end; i++) u.out[i] =                                         \
            u.c[0] * u.in[0][i] + decayed_##S(u.in[1][i], u.in[2][i], u.c[1]);                               \
    }                                                                                                        \
    /* c: lr, momentum, weight_decay */                                                                      \
    static void nesterov_update_##S##_body(void *context, int64_t begin, int64_t end) {                      \
        update_##S u = update_of_##S(context);                                                               \
        INDEPENDENT for (int64_t i = begin; i < end; i++) {                                                  \
            T p = u.in[0][i];                                                                                \
            u.out[i] = p - u.c[0] * (decayed_##S(u.in[1][i], p, u.c[2]) + u.c[1] * u.in[2][i]);              \
        }                                                                                                    \
    }                                                                                                        \
    /* c: lr */                                                                                              \
    static void axpy_update_##S##_body(void *context, int64_t begin, int64_t end) {                          \
        update_##S u = update_of_##S(context);                                                               \
        INDEPENDENT for (int64_t i = begin; i < end; i++) u.out[i] = u.in[0][i] - u.c[0] * u.in[1][i];       \
    }                                                                                                        \
    /* c: beta, 1 - beta, weight_decay */                                                                    \
    static void adam_m_##S##_body(void *context, int64_t begin, int64_t end) {                               \
        update_##S u = update_of_##S(context);                                                               \
        INDEPENDENT for (int64_t i = begin; i < end; i++) u.out[i] =                                         \
            u.c[0] * u.in[0][i] + u.c[1] * decayed_##S(u.in[1][i], u.in[2][i], u.c[2]);                      \
    }                                                                                                        \
    static void adam_v_##S##_body(void *context, int64_t begin, int64_t end) {                               \
        update_##S u = update_of_##S(context);                                                               \
        INDEPENDENT for (int64_t i = begin; i < end; i++) {                                                  \
            T g = decayed_##S(u.in[1][i], u.in[2][i], u.c[2]);                                               \
            u.out[i] = u.c[0] * u.in[0][i] + u.c[1] * (g * g);                                               \
        }                                                                                                    \
    }                                                                                                        \
    /* c: 1 - lr weight_decay, lr / (1 - beta1**step), 1 / (1 - beta2**step), eps */                         \
    static void adam_update_##S##_body(void *context, int64_t begin, int64_t end) {                          \
        update_##S u = update_of_##S(context);                                                               \
        INDEPENDENT for (int64_t i = begin; i < end; i++) {                                                  \
            T root = __builtin_sqrt##F(u.in[2][i] * u.c[2]) + u.c[3];                                        \
            u.out[i] = u.in[0][i] * u.c[0] - u.c[1] * u.in[1][i] / root;                                     \
        }                                                                                                    \
    }                                                                                                        \
    /* The three calls of Adam in one loop: dividing and taking roots take as long as all the rest. Each number is \
     * what the three loops above make of it. c: of the calls in turn */                                     \
    typedef struct {                                                                                         \
        update_##S m, v, p;                                                                                  \
    } adam_##S;                                                                                              \
    static void adam_##S##_body(void *context, int64_t begin, int64_t end) {                                 \
        const adam_##S *of = context;                                                                        \
        update_##S um = of->m, uv = of->v, up = of->p;                                                       \
        INDEPENDENT for (int64_t i = begin; i < end; i++) {                                                  \
            T p = um.in[2][i], g = um.in[1][i];                                                              \
            T m = um.c[0] * um.in[0][i] + um.c[1] * decayed_##S(g, p, um.c[2]);                              \
            T h = decayed_##S(g, p, uv.c[2]), v = uv.c[0] * uv.in[0][i] + uv.c[1] * (h * h);                 \
            T root = __builtin_sqrt##F(v * up.c[2]) + up.c[3];                                               \
            um.out[i] = m, uv.out[i] = v, up.out[i] = p * up.c[0] - up.c[1] * m / root;                      \
        }                                                                                                    \
    }                                                                                                        \
    static T scalar_##S(const cyx_call *call, int index) { return *(const T *)call->in[index].data; }        \
    static void moment_constants_##S(const cyx_call *call, T *c) {                                           \
        c[0] = (T)call->floats[0], c[1] = (T)(1.0 - call->floats[0]), c[2] = (T)call->floats[1];             \
    }                                                                                                        \
    /* floats: beta1, beta2, eps, decoupled_weight_decay */                                                  \
    static void adam_constants_##S(const cyx_call *call, T *c) {                                             \
        double lr = scalar_##S(call, 3);                                                                     \
        double step = call->in[4].dtype == CYX_F32 ? *(const float *)call->in[4].data : scalar_##S(call, 4); \
        double first = 1.0 - whole_power(call->floats[0], step),                                             \
               second = 1.0 - whole_power(call->floats[1], step);                                            \
        c[0] = (T)(1.0 - lr * call->floats[3]), c[1] = (T)(lr / first), c[2] = (T)(1.0 / second);            \
        c[3] = (T)call->floats[2];                                                                           \
    }                                                                                                        \
    /* Whether that comes to the same for two parameters, as of one optimiser. */                            \
    static int adam_alike_##S(const cyx_call *one, const cyx_call *other) {                                  \
        return one->in[3].data == other->in[3].data && one->in[4].data == other->in[4].data &&               \
               one->in[4].dtype == other->in[4].dtype && !memcmp(one->floats, other->floats, 4 * sizeof(double));\
    }                                                                                                        \
    static cyx_status adam_group_##S(const cyx_call *calls) {                                                \
        T c[CYX_LOOP_CONSTANTS] = {0};                                                                       \
        for (int32_t k = 0; k < calls->group; k += 3) {                                                      \
            adam_##S of = {update_on_##S(&calls[k]), update_on_##S(&calls[k + 1]), update_on_##S(&calls[k + 2])}; \
            if (!k || !adam_alike_##S(&calls[k - 1], &calls[k + 2])) adam_constants_##S(&calls[k + 2], c);   \
            moment_constants_##S(&calls[k], of.m.c), moment_constants_##S(&calls[k + 1], of.v.c);            \
            memcpy(of.p.c, c, sizeof c);                                                                     \
            int64_t size = calls[k].out.size;                                                                \
            int64_t grain = cyx_grain(size, 12, cyx_shares_finely ? FEW_UPDATED : CYX_LEAST_WORK);           \
            cyx_parallel(size, grain, adam_##S##_body, &of);                                                 \
        }                                                                                                    \
        return CYX_OK;                                                                                       \
    }                                                                                                        \
    static cyx_status run_update_##S(const cyx_call *call, cyx_body body, const T *constants, int count) {   \
        cyx_rows rows = {.call = call};                                                                      \
        for (int i = 0; i < count; i++) rows.constants[i] = constants[i];                                    \
        if (cyx_asked)                                                                                       \
            *cyx_asked = (cyx_loop){body, rows};                                                             \
        else                                                                                                 \
            cyx_parallel(call->out.size, cyx_grain(call->out.size, 4, CYX_LEAST_WORK), body, &rows);         \
        return CYX_OK;                                                                                       \
    }                                                                                                        \
    static cyx_status sgd_update_##S(const cyx_call *call) {                                                 \
        T c[] = {scalar_##S(call, 2), (T)call->floats[0]};                                                   \
        return run_update_##S(call, sgd_update_##S##_body, c, 2);                                            \
    }                                                                                                        \
    static cyx_status momentum_##S(const cyx_call *call) {                                                   \
        T c[] = {(T)call->floats[0], (T)call->floats[1]};                                                    \
        return run_update_##S(call, momentum_##S##_body, c, 2);                                              \
    }                                                                                                        \
    static cyx_status nesterov_update_##S(const cyx_call *call) {                                            \
        T c[] = {scalar_##S(call, 3), (T)call->floats[0], (T)call->floats[1]};                               \
        return run_update_##S(call, nesterov_update_##S##_body, c, 3);                                       \
    }                                                                                                        \
    static cyx_status axpy_update_##S(const cyx_call *call) {                                                \
        T c[] = {scalar_##S(call, 2)};                                                                       \
        return run_update_##S(call, axpy_update_##S##_body, c, 1);                                           \
    }                                                                                                        \
    static cyx_status adam_m_##S(const cyx_call *call) {                                                     \
        if (call->group > 1 && !cyx_asked) return adam_group_##S(call);                                      \
        T c[3];                                                                                              \
        moment_constants_##S(call, c);                                                                       \
        return run_update_##S(call, adam_m_##S##_body, c, 3);                                                \
    }                                                                                                        \
    static cyx_status adam_v_##S(const cyx_call *call) {                                                     \
        T c[3];                                                                                              \
        moment_constants_##S(call, c);                                                                       \
        return run_update_##S(call, adam_v_##S##_body, c, 3);                                                \
    }                                                                                                        \
    static cyx_status adam_update_##S(const cyx_call *call) {                                                \
        T c[4];                                                                                              \
        adam_constants_##S(call, c);                                                                         \
        return run_update_##S(call, adam_update_##S##_body, c, 4);                                           \
    }

OPTIMIZER_OPS(float, f32, f)
OPTIMIZER_OPS(double, f64, )

#define FILL_OPTIMIZER(D, S)                                                                                 \
    table[CYX_OP_sgd_update][D] = sgd_update_##S, table[CYX_OP_momentum][D] = momentum_##S;                  \
    table[CYX_OP_nesterov_update][D] = nesterov_update_##S, table[CYX_OP_axpy_update][D] = axpy_update_##S;  \
    table[CYX_OP_adam_m][D] = adam_m_##S, table[CYX_OP_adam_v][D] = adam_v_##S;                              \
    table[CYX_OP_adam_update][D] = adam_update_##S

static void fill_optimizer(cyx_table table) {
    FILL_OPTIMIZER(CYX_F32, f32);
    FILL_OPTIMIZER(CYX_F64, f64);
}
