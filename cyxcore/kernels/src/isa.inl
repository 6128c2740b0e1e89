/* Everything that is compiled once per instruction set. The including file has defined LANES (float32
 * elements in a vector), MR and NV (rows and vectors of a matmul block) and the fused multiply-adds of its
 * vectors. Files that need the element type are read twice, with T, its vector V of VN elements, and NAME(x)
 * for x_f32 or x_f64. */
#include "integer.inl"
#include "indexing.inl"
#include "halves.inl"
#include "random.inl"
#include "elementwise.inl"
#include "optimizer.inl"
#include "pool2d.inl"

#define T float
#define V vf32
#define MASK vi32
#define VN LANES
#define DTYPE CYX_F32
#define NAME(x) x##_f32
#define FMA_V fma_vf32
#define SPLAT splat_vf32
#define INF INFINITY
#if defined(LOAD_PART_f32)
#define LOAD_PART LOAD_PART_f32
#define STORE_PART STORE_PART_f32
#endif
#if defined(LOAD_TURNED_f32)
#define LOAD_TURNED LOAD_TURNED_f32
#endif
#if defined(NOT_LESS_f32)
#define NOT_LESS NOT_LESS_f32
#endif
#if defined(UNORDERED_f32)
#define UNORDERED UNORDERED_f32
#define NOTE_UNORDERED NOTE_UNORDERED_f32
#define ANY_UNORDERED ANY_UNORDERED_f32
#define QUICK_MAX QUICK_MAX_f32
#define QUICK_MIN QUICK_MIN_f32
#endif
#include "parts.inl"
#include "links.inl"
#include "reduce.inl"
#include "softmax.inl"
#include "ctc.inl"
#include "norms.inl"
#include "gemv.inl"
#include "gemm.inl"
#include "triangular.inl"
#include "masked.inl"
#include "conv2d_blocks.inl"
#include "conv2d.inl"
#include "conv2d_lanes.inl"
#include "winograd.inl"
#if defined(SIGMOID_ROW)
#define SIGMOID_F32_ROW SIGMOID_ROW
#endif
#if defined(VECTOR_MATH)
#define TANH_F32_ROW tanh_of_row
#endif
#include "recurrence.inl"
#undef SIGMOID_F32_ROW
#undef TANH_F32_ROW
#undef T
#undef V
#undef MASK
#undef VN
#undef DTYPE
#undef NAME
#undef FMA_V
#undef SPLAT
#undef INF
#undef LOAD_PART
#undef LOAD_TURNED
#undef STORE_PART
#undef UNORDERED
#undef NOTE_UNORDERED
#undef ANY_UNORDERED
#undef NOT_LESS
#undef QUICK_MAX
#undef QUICK_MIN

#define T double
#define V vf64
#define MASK vi64
#define VN (LANES / 2)
#define DTYPE CYX_F64
#define NAME(x) x##_f64
#define FMA_V fma_vf64
#define SPLAT splat_vf64
#define INF ((double)INFINITY)
#if defined(LOAD_PART_f64)
#define LOAD_PART LOAD_PART_f64
#define STORE_PART STORE_PART_f64
#endif
#if defined(LOAD_TURNED_f64)
#define LOAD_TURNED LOAD_TURNED_f64
#endif
#if defined(NOT_LESS_f64)
#define NOT_LESS NOT_LESS_f64
#endif
#if defined(UNORDERED_f64)
#define UNORDERED UNORDERED_f64
#define NOTE_UNORDERED NOTE_UNORDERED_f64
#define ANY_UNORDERED ANY_UNORDERED_f64
#define QUICK_MAX QUICK_MAX_f64
#define QUICK_MIN QUICK_MIN_f64
#endif
#include "parts.inl"
#include "reduce.inl"
#include "softmax.inl"
#include "ctc.inl"
#include "norms.inl"
#include "gemv.inl"
#include "gemm.inl"
#include "triangular.inl"
#include "masked.inl"
#include "conv2d_blocks.inl"
#include "conv2d.inl"
#include "conv2d_lanes.inl"
#include "recurrence.inl"

#include "movement.inl"

static cyx_status normalise(cyx_norm *norm) {
    if (norm->dtype == CYX_F32) return norm->g ? norm_back_f32(norm) : norm_there_f32(norm);
    return norm->g ? norm_back_f64(norm) : norm_there_f64(norm);
}

static cyx_status recur(const cyx_recurrence *one) { return one->dtype == CYX_F32 ? recur_f32(one) : recur_f64(one); }

static void fill_isa(cyx_table table) {
    fill_integer(table); /* before the others, which take some cells of its own */
    fill_movement(table);
    fill_indexing(table);
    fill_random(table);
    fill_elementwise(table);
    fill_links(table);
    fill_optimizer(table);
    fill_pool2d(table);
    fill_reduce_f32(table), fill_reduce_f64(table);
    fill_softmax_f32(table), fill_softmax_f64(table);
    fill_ctc_f32(table), fill_ctc_f64(table);
    fill_gemm_f32(table), fill_gemm_f64(table);
    fill_conv2d_f32(table), fill_conv2d_f64(table);
    fill_winograd_f32(table);
}
