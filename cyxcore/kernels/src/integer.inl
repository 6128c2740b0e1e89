/* Element-wise kernels of integers and truth values, and every cast. Integers wrap, as NumPy's do. */
#define ARITHMETIC(T, U, TAG)                                                                                \
    CYX_UNARY(neg_##TAG, T, T, (U)0 - (U)x)                                                                  \
    CYX_UNARY(abs_##TAG, T, T, x > 0 ? (U)x : (U)0 - (U)x)                                                   \
    CYX_UNARY(square_##TAG, T, T, (U)x *(U)x)                                                                \
    CYX_UNARY(sign_##TAG, T, T, x > 0 ? 1 : x == 0 ? 0 : -1)                                                 \
    CYX_UNARY(relu_##TAG, T, T, x > 0 ? x : 0)                                                               \
    CYX_UNARY(floor_##TAG, T, T, x)                                                                          \
    CYX_BINARY(add_##TAG, T, T, (U)x + (U)y)                                                                 \
    CYX_BINARY(sub_##TAG, T, T, (U)x - (U)y)                                                                 \
    CYX_BINARY(mul_##TAG, T, T, (U)x *(U)y)

#define ORDER(T, TAG)                                                                                        \
    CYX_BINARY(maximum_##TAG, T, T, x > y ? x : y)                                                           \
    CYX_BINARY(minimum_##TAG, T, T, x < y ? x : y)                                                           \
    CYX_BINARY(equal_##TAG, T, uint8_t, x == y)                                                              \
    CYX_BINARY(not_equal_##TAG, T, uint8_t, x != y)                                                          \
    CYX_BINARY(less_##TAG, T, uint8_t, x < y)                                                                \
    CYX_BINARY(less_equal_##TAG, T, uint8_t, x <= y)                                                         \
    CYX_BINARY(greater_##TAG, T, uint8_t, x > y)                                                             \
    CYX_BINARY(greater_equal_##TAG, T, uint8_t, x >= y)                                                      \
    CYX_UNARY(logical_not_##TAG, T, uint8_t, !x)                                                             \
    CYX_BINARY(logical_and_##TAG, T, uint8_t, x &&y)                                                         \
    CYX_BINARY(logical_or_##TAG, T, uint8_t, x || y)

ARITHMETIC(int64_t, uint64_t, i64)
ARITHMETIC(int32_t, uint32_t, i32)
ARITHMETIC(uint8_t, uint32_t, u8)
ORDER(int64_t, i64)
ORDER(int32_t, i32)
ORDER(uint8_t, u8)
CYX_WHERE(where_8, uint8_t)
CYX_WHERE(where_32, uint32_t)
CYX_WHERE(where_64, uint64_t)

/* A float becomes the nearest integer towards zero that the type holds; NaN becomes 0. C leaves this open and
 * processors differ, so it is spelled out. */
#define CLAMPED(T, LOW, ABOVE, HIGH) (x != x ? (T)0 : x <= (LOW) ? (T)(LOW) : x >= (ABOVE) ? (HIGH) : (T)x)
#define CASTS_FROM_FLOAT(T, TAG)                                                                             \
    CYX_UNARY(TAG##_to_f32, T, float, x)                                                                     \
    CYX_UNARY(TAG##_to_f64, T, double, x)                                                                    \
    CYX_UNARY(TAG##_to_i64, T, int64_t,                                                                      \
              CLAMPED(int64_t, -9223372036854775808.0, 9223372036854775808.0, INT64_MAX))                    \
    CYX_UNARY(TAG##_to_i32, T, int32_t, CLAMPED(int32_t, -2147483648.0, 2147483648.0, INT32_MAX))            \
    CYX_UNARY(TAG##_to_u8, T, uint8_t, CLAMPED(uint8_t, 0.0, 256.0, UINT8_MAX))                              \
    CYX_UNARY(TAG##_to_bool, T, uint8_t, x != 0)
#define CASTS_FROM_INTEGER(T, TAG)                                                                           \
    CYX_UNARY(TAG##_to_f32, T, float, x)                                                                     \
    CYX_UNARY(TAG##_to_f64, T, double, x)                                                                    \
    CYX_UNARY(TAG##_to_i64, T, int64_t, x)                                                                   \
    CYX_UNARY(TAG##_to_i32, T, int32_t, x)                                                                   \
    CYX_UNARY(TAG##_to_u8, T, uint8_t, x)                                                                    \
    CYX_UNARY(TAG##_to_bool, T, uint8_t, x != 0)
CASTS_FROM_FLOAT(float, f32)
CASTS_FROM_FLOAT(double, f64)
CASTS_FROM_INTEGER(int64_t, i64)
CASTS_FROM_INTEGER(int32_t, i32)
CASTS_FROM_INTEGER(uint8_t, u8)

#define CASTS(TAG) {TAG##_to_f32, TAG##_to_f64, TAG##_to_i64, TAG##_to_i32, TAG##_to_bool, TAG##_to_u8}
static const cyx_kernel casts[6][6] = {CASTS(f32), CASTS(f64), CASTS(i64), CASTS(i32), CASTS(u8), CASTS(u8)};

static cyx_status cast(const cyx_call *call) { return casts[call->in[0].dtype][call->out.dtype](call); }

#define FILL_ARITHMETIC(DTYPE, TAG)                                                                          \
    table[CYX_OP_neg][DTYPE] = neg_##TAG, table[CYX_OP_abs][DTYPE] = abs_##TAG;                              \
    table[CYX_OP_square][DTYPE] = square_##TAG, table[CYX_OP_sign][DTYPE] = sign_##TAG;                      \
    table[CYX_OP_relu][DTYPE] = relu_##TAG, table[CYX_OP_floor][DTYPE] = floor_##TAG;                        \
    table[CYX_OP_add][DTYPE] = add_##TAG, table[CYX_OP_sub][DTYPE] = sub_##TAG,                              \
    table[CYX_OP_mul][DTYPE] = mul_##TAG

#define FILL_ORDER(DTYPE, TAG)                                                                               \
    table[CYX_OP_maximum][DTYPE] = maximum_##TAG, table[CYX_OP_minimum][DTYPE] = minimum_##TAG;              \
    table[CYX_OP_equal][DTYPE] = equal_##TAG, table[CYX_OP_not_equal][DTYPE] = not_equal_##TAG;              \
    table[CYX_OP_less][DTYPE] = less_##TAG, table[CYX_OP_less_equal][DTYPE] = less_equal_##TAG;              \
    table[CYX_OP_greater][DTYPE] = greater_##TAG, table[CYX_OP_greater_equal][DTYPE] = greater_equal_##TAG;  \
    table[CYX_OP_logical_not][DTYPE] = logical_not_##TAG,                                                    \
    table[CYX_OP_logical_and][DTYPE] = logical_and_##TAG;                                                    \
    table[CYX_OP_logical_or][DTYPE] = logical_or_##TAG

static void fill_integer(cyx_table table) {
    FILL_ARITHMETIC(CYX_I64, i64);
    FILL_ARITHMETIC(CYX_I32, i32);
    FILL_ARITHMETIC(CYX_U8, u8);
    FILL_ORDER(CYX_I64, i64);
    FILL_ORDER(CYX_I32, i32);
    FILL_ORDER(CYX_U8, u8);
    FILL_ORDER(CYX_BOOL, u8);
    for (int dtype = CYX_F32; dtype <= CYX_U8; dtype++) {
        table[CYX_OP_cast][dtype] = cast;
        int bytes = cyx_dtype_bytes[dtype];
        table[CYX_OP_where][dtype] = bytes == 8 ? where_64 : bytes == 4 ? where_32 : where_8;
    }
}
