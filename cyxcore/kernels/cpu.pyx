# cython: boundscheck=False, wraparound=False, freethreading_compatible=False
"""CPU kernels: one C call record per operation, checked once, run by a loop in C.

`call` runs one operation on arrays; `Program` keeps a list of them to run again and again. Both allocate nothing for
results: `out` is the caller's. Results follow cyx-exact/1: they depend on neither the number of threads nor the
instruction set. A NaN is a NaN; which of its bit patterns comes out is not part of the promise.
"""

import atexit
import os
from time import perf_counter_ns

from cyxcore import cores
from cyxcore.errors import DataError, DtypeError, GraphError, KernelError, ShapeError

cimport cython
cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

cnp.import_array()

cdef extern from *:
    """
    #if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    static void cyx_leave_mmx(void) { __asm__ volatile("emms" ::: "st"); }
    #else
    static void cyx_leave_mmx(void) {}
    #endif
    """
    void cyx_leave_mmx() nogil

cdef extern from "cyx.h" nogil:
    enum:
        CYX_MAX_NDIM
        CYX_MAX_INTS
        CYX_INLINE_INPUTS
        CYX_OP_COUNT
        CYX_DTYPE_COUNT
        CYX_MAX_GROUP
    ctypedef enum cyx_dtype:
        CYX_F32
        CYX_F64
        CYX_I64
        CYX_I32
        CYX_BOOL
        CYX_U8
        CYX_U64
    ctypedef enum cyx_status:
        CYX_OK
        CYX_BAD_SHAPE
        CYX_BAD_DTYPE
        CYX_BAD_ATTRIBUTE
        CYX_NO_KERNEL
        CYX_BAD_DATA
        CYX_NO_MEMORY
    ctypedef struct cyx_array:
        void *data
        int64_t size
        int64_t shape[8]
        int32_t ndim
        int32_t dtype
        int64_t band_bytes
        int64_t lane_bytes
        int64_t block_bytes
        int32_t turns
        int32_t repeats
    ctypedef struct cyx_factor
    ctypedef struct cyx_group
    ctypedef struct cyx_lanes
    ctypedef struct cyx_ahead
    ctypedef struct cyx_call:
        cyx_array *inputs "in"
        int32_t op
        int32_t in_count
        int32_t int_count
        int64_t ints[40]
        double floats[6]
        int32_t group
        int32_t elided
        int32_t stretch
        int32_t lanes
        int32_t bands
        int32_t blocks
        int32_t adds
        int32_t goes_on
        int64_t length
        int32_t terms
        double work
        cyx_factor *packed
        cyx_group *kept
        cyx_lanes *lane_records
        const cyx_ahead *ahead
        cyx_factor *pack
        cyx_array out
        cyx_array own_in[5]
    ctypedef struct cyx_message:
        char text[400]
    const char *cyx_op_names[]
    const char *cyx_dtype_names[]
    const int cyx_op_inputs[][2]
    const int cyx_dtype_bytes[]
    enum:
        CYX_DRAW_WORDS
        CYX_DRAW_TWELVES
        CYX_DRAW_NORMALS
        CYX_DRAW_INTEGERS
    ctypedef struct cyx_draw:
        int kind
        int dtype
        uint64_t seed
        uint64_t step
        uint32_t stream
        void *out
        int64_t count
        double scale
        double shift
        uint64_t span
        uint64_t low
        int over
    void cyx_draw_numbers(cyx_draw *draw)
    enum:
        CYX_TO_F16
        CYX_FROM_F16
        CYX_TO_BF16
        CYX_FROM_BF16
    ctypedef struct cyx_halves:
        int kind
        const void *x
        void *out
        int64_t count
    void cyx_cast_halves(const cyx_halves *cast)
    ctypedef struct cyx_norm:
        int dtype
        const void *x
        void *mean
        void *var
        int given
        const void *weight
        const void *bias
        void *out
        int64_t rows
        int64_t n
        int64_t inner
        int64_t channels
        double eps
        const void *g
        const void *before
        int before_first
        void *of_weight
        void *of_bias
    cyx_status cyx_normalise(cyx_norm *norm)
    enum: CYX_RNN_TANH, CYX_RNN_RELU, CYX_LSTM, CYX_GRU
    ctypedef struct cyx_recurrence:
        int kind
        int dtype
        int reverse
        int kept
        int64_t rows
        int64_t steps
        int64_t size
        int64_t state
        const void *projection
        void *whole
        void *of_states
        const int64_t *lengths
        const void *weight
        const void *bias
        const void *input_bias
        void *gates
        void *hidden
        void *cells
        void *out
        const void *g_out
        const void *g_hidden
        const void *g_cell
        void *of_x
        void *of_h
        const void *before_weight
        const void *before_projection
        const void *before_bias
        const void *before_hidden
        const void *before_cell
        void *of_weight
        void *of_projection
        void *of_bias
        void *of_hidden
        void *of_cell
    cyx_status cyx_recur(const cyx_recurrence *one) nogil
    cyx_status cyx_order_words(uint64_t seed, uint64_t step, uint32_t stream, int wide, int64_t *out, int64_t count)
    cyx_status cyx_order_rows(const void *x, int dtype, int64_t rows, int64_t n, int descending, int64_t *out)
    int CYX_MOST_BEST
    void cyx_best_of_rows(const void *x, int dtype, int64_t rows, int64_t n, int64_t k, int largest, int64_t *out)
    cyx_message cyx_last_failure
    int cyx_set_isa(const char *name)
    const char *cyx_isa()
    int cyx_amx()
    void cyx_setup()
    int cyx_has_kernel(int op, int dtype)
    int cyx_compute_dtype(int op, const int *dtypes, int count)
    cyx_status cyx_prepare(cyx_call *call, cyx_message *message)
    int cyx_call_is_fusible(const cyx_call *call)
    cyx_group *cyx_keep_group(const cyx_call *calls)
    int64_t cyx_sums_runs(const cyx_call *call)
    int cyx_adds_to_product(const cyx_call *calls)
    int cyx_adds_sum(const cyx_call *calls)
    int cyx_adds_before_relu(const cyx_call *calls)
    int cyx_masks_product(const cyx_call *calls)
    int cyx_masks_softmax(const cyx_call *calls)
    int cyx_masks_softmax_grad(const cyx_call *calls)
    int cyx_calls_mask_gradient(const cyx_call *calls)
    int cyx_reads_rows(const cyx_call *joined, const cyx_call *call)
    int cyx_is_adam(const cyx_call *calls, int64_t count)
    cyx_status cyx_run(const cyx_call *calls, int64_t count, int64_t *failed, cyx_message *message)

cdef extern from "ahead.h" nogil:
    void cyx_look_ahead(cyx_call *calls, int64_t count, bint of_a_lane)
    void cyx_look_nowhere(cyx_call *calls, int64_t count)
    int64_t cyx_lines_ahead(const cyx_call *call)

cdef extern from "fast.h" nogil:
    cyx_factor *cyx_share_factors(cyx_call *calls, int64_t count, size_t *bytes)
    void cyx_free_factors(cyx_factor *all)

cdef extern from "plan.h" nogil:
    enum:
        CYX_SHORTEST_RUN
        CYX_LONGEST_RUN
        CYX_RUN_BLOCK
        CYX_BLOCK_K
        CYX_MOST_SUMMED
    int cyx_adds_on(const cyx_call *before, const cyx_call *calls)
    int64_t cyx_stretches_pack(const cyx_call *calls, int64_t count)
    cyx_lanes *cyx_keep_lanes(const cyx_call *calls)
    void cyx_free_lanes(cyx_lanes *lanes)
    ctypedef struct cyx_trial:
        pass
    cyx_status cyx_run_trying(cyx_trial *trial, const cyx_call *calls, int64_t count, int64_t *failed, cyx_message *message)

cdef extern from "blocks.h" nogil:
    void *cyx_block(size_t bytes)
    void cyx_block_give_back(void *data)
    size_t cyx_blocks_kept()
    void cyx_blocks_shrink(size_t bytes)
    ctypedef struct cyx_blocks:
        pass
    const cyx_blocks cyx_own_blocks

cdef extern from "pool.h" nogil:
    int cyx_threads()
    void cyx_set_threads(int count)
    void cyx_stop_threads()
    ctypedef struct cyx_services:
        pass
    const cyx_services cyx_own_services

# The attributes of each operation, in the order the C side reads them. "list" is a length and its items, "pair" two
# integers; "shown" ones are already in the output array and only mentioned by the caller.
_AXIS = (("axis", "int"),)
_REDUCE = (("axes", "list"), ("keepdims", "int"))
_CONV = (("stride", "pair"), ("padding", "pair"), ("dilation", "pair"), ("groups", "int"))
_POOL = (("kernel", "pair"), ("stride", "pair"), ("padding", "pair"))
_CTC = (("blank", "int"), ("zero_infinity", "int"))
_FOLDS = ("none", "add", "mul", "min", "max")  # as along.c counts them
_SCHEMAS = {
    "cast": (("dtype", "shown"),),
    "sum": _REDUCE, "mean": _REDUCE, "max": _REDUCE, "min": _REDUCE, "argmax": _AXIS,
    "prod": _REDUCE, "all": _REDUCE, "any": _REDUCE,
    "cumulative_sum": _AXIS, "cumulative_prod": _AXIS, "cumulative_argmax": _AXIS, "cumulative_argmin": _AXIS,
    "recurrence": (("axis", "int"), ("backwards", "int")),
    "scatter": (("reduction", "fold"),),
    "matmul": (("transpose_a", "int"), ("transpose_b", "int")),
    "reshape": (("shape", "shown"),),
    "transpose": (("axes", "list"),),
    "broadcast_to": (("shape", "shown"),),
    "slice": (("starts", "list"), ("stops", "list"), ("steps", "list")),
    "pad": (("pads", "pairs"), ("value", "float")),
    "concat": _AXIS, "take": _AXIS, "take_along": _AXIS,
    "take_grad": (("axis", "int"), ("size", "int")),
    "take_along_grad": (("axis", "int"), ("size", "int"), ("terms", "int"), ("from_zero", "int")),
    "one_hot": (("depth", "int"),),
    "conv2d": _CONV,
    "conv2d_grad_input": (*_CONV, ("input_shape", "list")),
    "conv2d_grad_weight": (*_CONV, ("weight_shape", "list")),
    "max_pool2d": _POOL, "max_pool2d_grad": _POOL, "avg_pool2d": _POOL,
    "avg_pool2d_grad": (*_POOL, ("input_shape", "list")),
    "softmax": _AXIS, "log_softmax": _AXIS, "softmax_grad": _AXIS, "log_softmax_grad": _AXIS,
    "ctc_loss": _CTC, "ctc_loss_grad": _CTC,
    "hardtanh": (("low", "float"), ("high", "float")), "hardtanh_grad": (("low", "float"), ("high", "float")),
    "clip": (("low", "float"), ("high", "float")), "clip_grad": (("low", "float"), ("high", "float")),
    "softshrink": (("bound", "float"),), "softshrink_grad": (("bound", "float"),),
    "leaky_relu": (("slope", "float"),), "leaky_relu_grad": (("slope", "float"),),
    "huber": (("delta", "float"),), "huber_grad": (("delta", "float"),),
    "uniform": (("shape", "list"), ("stream", "int")),
    "sgd_update": (("weight_decay", "float"),),
    "momentum": (("momentum", "float"), ("weight_decay", "float")),
    "nesterov_update": (("momentum", "float"), ("weight_decay", "float")),
    "adam_m": (("beta", "float"), ("weight_decay", "float")),
    "adam_v": (("beta", "float"), ("weight_decay", "float")),
    "adam_update": (
        ("beta1", "float"), ("beta2", "float"), ("eps", "float"), ("decoupled_weight_decay", "float")
    ),
}  # fmt: skip


cdef class _Op:
    cdef int number, least, most
    cdef str name
    cdef tuple schema


cdef extern from *:
    """static __thread int own_terms = -1;"""
    int own_terms  # of calls that this thread makes at once; -1: those of the process

cdef int _terms = 0  # of the process

cdef dict _ops = {}
cdef dict _dtypes = {}


cdef _load():
    cdef _Op op
    cdef int number
    for number in range(CYX_OP_COUNT):
        op = _Op()
        op.number, op.name = number, cyx_op_names[number].decode()
        op.least, op.most = cyx_op_inputs[number][0], cyx_op_inputs[number][1]
        op.schema = _SCHEMAS.get(op.name, ())
        _ops[op.name] = op
    for number in range(CYX_DTYPE_COUNT):
        _dtypes[cyx_dtype_names[number].decode()] = number


cdef _Op _find(str name):
    op = _ops.get(name)
    if op is None:
        raise KernelError(f"{name}: the cpu has no such operation; see cyxcore.kernels.cpu.ops() for those it has")
    return <_Op>op


cdef int _dtype_of(cnp.ndarray array) except -2:
    cdef int kind = cnp.PyArray_TYPE(array)
    if kind == cnp.NPY_FLOAT32:
        return CYX_F32
    if kind == cnp.NPY_FLOAT64:
        return CYX_F64
    if kind == cnp.NPY_INT64 or (kind == cnp.NPY_LONGLONG and sizeof(long long) == 8):
        return CYX_I64
    if kind == cnp.NPY_INT32:
        return CYX_I32
    if kind == cnp.NPY_BOOL:
        return CYX_BOOL
    if kind == cnp.NPY_UINT8:
        return CYX_U8
    if kind == cnp.NPY_UINT64 or (kind == cnp.NPY_ULONGLONG and sizeof(long long) == 8):
        return CYX_U64
    return -1


cdef int _describe(cyx_array *to, object given, str op_name, str role) except -1:
    """Fills a C descriptor from a NumPy array that can be used where it lies."""
    if not cnp.PyArray_Check(given):
        raise DtypeError(f"{op_name}: expected {role} to be a numpy.ndarray, got {type(given).__name__}")
    cdef cnp.ndarray array = <cnp.ndarray>given
    cdef int d
    to.dtype = _dtype_of(array)
    if to.dtype < 0 or not cnp.PyArray_ISNOTSWAPPED(array):
        raise KernelError(f"{op_name}: the cpu has no kernel for {role} of type {array.dtype}")
    if not cnp.PyArray_IS_C_CONTIGUOUS(array) or not cnp.PyArray_ISALIGNED(array):
        raise ShapeError(
            f"{op_name}: expected {role} to be C-contiguous and aligned; copy it with numpy.ascontiguousarray"
        )
    to.ndim = cnp.PyArray_NDIM(array)
    if to.ndim > CYX_MAX_NDIM:
        raise ShapeError(f"{op_name}: expected at most {CYX_MAX_NDIM} dimensions, got {role} of shape {given.shape}")
    to.data = cnp.PyArray_DATA(array)
    to.size = cnp.PyArray_SIZE(array)
    for d in range(to.ndim):
        to.shape[d] = cnp.PyArray_DIM(array, d)
    return 0


cdef int _push(cyx_call *call, object value) except -1:
    if call.int_count >= CYX_MAX_INTS:
        raise OverflowError
    call.ints[call.int_count] = value
    call.int_count += 1
    return 0


cdef int _push_attribute(cyx_call *call, str kind, object value, int *float_count) except -1:
    cdef Py_ssize_t count
    if kind == "int":
        return _push(call, int(value))
    if kind == "fold":
        return _push(call, _FOLDS.index(value))
    if kind == "float":
        call.floats[float_count[0]] = value
        float_count[0] += 1
        return 0
    items = tuple(value)
    count = len(items)
    if kind == "pair":
        if count != 2:
            raise ValueError
    elif count > CYX_MAX_NDIM:
        raise ValueError
    else:
        _push(call, count)
    for item in items:
        if kind == "pairs":
            low, high = item
            _push(call, int(low))
            _push(call, int(high))
        else:
            _push(call, int(item))
    return 0


cdef int _set_attributes(cyx_call *call, _Op op, dict attrs) except -1:
    cdef int float_count = 0
    cdef Py_ssize_t used = 0
    for name, kind in op.schema:
        if kind == "shown":
            used += name in attrs
            continue
        if name not in attrs:
            raise GraphError(f"{op.name}: expected the attribute {name!r}, got {sorted(attrs)}")
        used += 1
        try:
            _push_attribute(call, kind, attrs[name], &float_count)
        except (TypeError, ValueError, OverflowError):
            raise GraphError(f"{op.name}: expected {name!r} to be a {kind}, got {attrs[name]!r}") from None
    if used != len(attrs):
        known = [name for name, _ in op.schema]
        raise GraphError(f"{op.name}: unknown attributes {sorted(set(attrs) - set(known))}; it takes {known}")
    return 0


cdef int _fail(cyx_status status, cyx_message *message) except -1:
    text = message.text.decode("utf-8", "replace")
    if status == CYX_BAD_SHAPE:
        raise ShapeError(text)
    if status == CYX_BAD_DTYPE:
        raise DtypeError(text)
    if status == CYX_BAD_ATTRIBUTE:
        raise GraphError(text)
    if status == CYX_NO_KERNEL:
        raise KernelError(text)
    if status == CYX_BAD_DATA:
        raise DataError(text)
    raise MemoryError(text)


cdef int _fill(cyx_call *call, _Op op, object out, object inputs, dict attrs) except -1:
    """Makes the record of one call. `call` is zeroed; memory taken for many inputs is the caller's to free."""
    cdef cyx_message message
    cdef cyx_status status
    cdef Py_ssize_t i, count = len(inputs)
    if count < op.least or count > op.most:
        wanted = str(op.least) if op.least == op.most else f"{op.least} to {op.most}"
        raise ShapeError(f"{op.name}: expected {wanted} inputs, got {count}")
    call.op, call.in_count, call.inputs = op.number, <int32_t>count, call.own_in
    if count > CYX_INLINE_INPUTS:
        call.inputs = <cyx_array *>calloc(count, sizeof(cyx_array))
        if call.inputs == NULL:
            raise MemoryError
    for i in range(count):
        _describe(&call.inputs[i], inputs[i], op.name, "an input")
    _describe(&call.out, out, op.name, "the output")
    if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out):
        raise ShapeError(f"{op.name}: expected an output that can be written, got a read-only array")
    if op.schema or attrs:
        _set_attributes(call, op, attrs)
    status = cyx_prepare(call, &message)
    if status != CYX_OK:
        _fail(status, &message)
    return 0


cdef inline void _release(cyx_call *call) noexcept:
    if call.inputs != NULL and call.inputs != call.own_in:
        free(call.inputs)


def ops() -> frozenset:
    """The names of the operations with a kernel."""
    return frozenset(_ops)


def supports(str op, tuple dtypes) -> bool:
    """Whether `op` has a kernel for inputs of these types (NumPy names)."""
    cdef _Op found = _ops.get(op)
    cdef int numbers[5]
    cdef int dtype
    if found is None or not found.least <= len(dtypes) <= found.most:
        return False
    for i, name in enumerate(dtypes):
        number = _dtypes.get(name)
        if number is None or (i >= CYX_INLINE_INPUTS and name != dtypes[0]):
            return False
        if i < CYX_INLINE_INPUTS:
            numbers[i] = number
    dtype = cyx_compute_dtype(found.number, numbers, min(len(dtypes), CYX_INLINE_INPUTS))
    return dtype >= 0 and cyx_has_kernel(found.number, dtype) != 0


def record(str op, out, inputs, dict attrs) -> bytes:
    """The checked record of one call, for cyxcore.kernels.tensors, which fills in where arrays lie and runs it.

    Raises what `call` raises, except for what only the data can tell, and KernelError for more inputs than it has room for.
    """
    cdef cyx_call made
    if len(inputs) > CYX_INLINE_INPUTS:
        raise KernelError(f"{op}: expected at most {CYX_INLINE_INPUTS} inputs of a record, got {len(inputs)}")
    memset(&made, 0, sizeof(made))
    _fill(&made, _find(op), out, inputs, attrs)
    return (<char *>&made)[:sizeof(made)]


def call(str op, out, inputs, dict attrs) -> None:
    """Runs one operation into `out`.

    Arrays are C-contiguous, `out` has the result's shape and type. Raises KernelError (no such operation, or not for
    these types), ShapeError, DtypeError, GraphError (an attribute), DataError (an index or label out of range).
    """
    cdef cyx_call record
    cdef cyx_message message
    cdef int64_t failed = 0
    cdef cyx_status status
    memset(&record, 0, sizeof(record))
    try:
        _fill(&record, _find(op), out, inputs, attrs)
        record.terms = get_terms()
        if record.work < 20000.0:  # below about 2 us it costs more to let other threads run than to finish
            status = cyx_run(&record, 1, &failed, &message)
        else:
            with nogil:
                status = cyx_run(&record, 1, &failed, &message)
        if status != CYX_OK:
            _fail(status, &message)
    finally:
        _release(&record)


MOST_TERMS = CYX_BLOCK_K  # of a product that may be added to what lies in the place of the sum
MOST_SUMMED = CYX_MOST_SUMMED  # elements of a matrix whose sum over rows may be added in the same way
SHORTEST_RUN, LONGEST_RUN = CYX_SHORTEST_RUN, CYX_LONGEST_RUN  # terms in a row, of the sums that a group can make
RUN_BLOCK = CYX_RUN_BLOCK  # of a longer run, of whole ones or alone, this many
MOST_CALLS = CYX_MAX_GROUP  # of a group
LEAST_FUSED = 256  # elements; below it a call costs what it costs, not what it moves


cdef bint _disturbs(const cyx_array *written, const cyx_array *other, const int *bytes_of) noexcept nogil:
    """Whether writing one tile by tile may change what is read of, or written to, the other at another place."""
    cdef size_t a = <size_t>written.data, b = <size_t>other.data
    cdef size_t a_bytes = <size_t>(written.size * bytes_of[written.dtype])
    cdef size_t b_bytes = <size_t>(other.size * bytes_of[other.dtype])
    if a + a_bytes <= b or b + b_bytes <= a:
        return False
    return a != b or written.size != other.size or bytes_of[written.dtype] != bytes_of[other.dtype]


cdef bint _meets(const cyx_array *a, const cyx_array *b, const int *bytes_of) noexcept nogil:
    """Whether two arrays have memory in common."""
    cdef size_t first = <size_t>a.data, second = <size_t>b.data
    return (
        first < second + <size_t>(b.size * bytes_of[b.dtype]) and second < first + <size_t>(a.size * bytes_of[a.dtype])
    )


cdef bint _is_past(const cyx_call *calls, const char *elided, int64_t first, int64_t place, const cyx_array *x) noexcept nogil:
    """Whether an array is what one of the calls [first, place) leaves in no memory."""
    cdef int64_t k
    for k in range(place - 1, first - 1, -1):
        if calls[k].out.data == x.data:
            return elided[k]
    return False


cdef bint _joins(const cyx_call *calls, const char *elided, int64_t first, int64_t place, int64_t run) noexcept nogil:
    """Whether a call can be made together with the calls [first, place). elided: which of them write to no memory, as
    all that read them came before. run: of the terms of sums among them, or 0.
    """
    cdef const cyx_call *new = &calls[place]
    cdef const cyx_call *earlier
    cdef int64_t k, own_run = cyx_sums_runs(new)
    cdef bint earlier_sums
    cdef int i
    if (new.inputs[0].size if own_run else new.out.size) != calls[first].out.size or (run and own_run and run != own_run):
        return False
    for i in range(new.in_count):
        if _disturbs(&new.out, &new.inputs[i], cyx_dtype_bytes):
            return False
    for k in range(first, place):
        earlier = &calls[k]
        earlier_sums = cyx_sums_runs(earlier) != 0
        if not elided[k]:
            if _disturbs(&earlier.out, &new.out, cyx_dtype_bytes):
                return False
            # What is summed up is there when the group is through, and not before.
            if (own_run or earlier_sums) and _meets(&earlier.out, &new.out, cyx_dtype_bytes):
                return False
            for i in range(new.in_count):
                if _disturbs(&earlier.out, &new.inputs[i], cyx_dtype_bytes):
                    return False
                if earlier_sums and _meets(&earlier.out, &new.inputs[i], cyx_dtype_bytes):
                    return False
        for i in range(earlier.in_count):
            if _is_past(calls, elided, first, k, &earlier.inputs[i]):
                continue
            if _disturbs(&new.out, &earlier.inputs[i], cyx_dtype_bytes):
                return False
            if own_run and _meets(&new.out, &earlier.inputs[i], cyx_dtype_bytes):
                return False
    return True


cdef enum:
    NOWHERE = -1
    ALIGN_BYTES = 64
    MOST_MOVING = 64  # arrays of a program


cdef class Program:
    """A list of calls on arrays that stay where they are; changing what the arrays hold feeds new data."""

    cdef cyx_call *_calls
    cdef int64_t _count, _room
    cdef int _running, _terms
    cdef cyx_trial _trial
    cdef cyx_factor *_factors  # matrices that are packed once a run
    cdef readonly size_t packed_bytes  # what those and the matrices of a stretch take beside the arrays of the calls
    cdef list _kept  # places of calls whose outputs are read in ways that records do not show
    cdef set _edges  # places of calls that no group of earlier ones reaches
    cdef int32_t *_homes  # of each array of each call, the output first: which of those that move it lies in, or NOWHERE
    cdef list _bases  # where these lie in the records
    cdef list _arrays
    cdef object __weakref__

    def __cinit__(self, int terms=0):
        """terms: see set_terms; of this program, whatever is set."""
        self._terms = _checked_terms(terms)
        self._arrays = []
        self._edges = set()
        self._kept = []

    def __dealloc__(self):
        cdef int64_t i
        cyx_look_nowhere(self._calls, self._count)
        for i in range(self._count):
            free(self._calls[i].kept)
            cyx_free_lanes(self._calls[i].lane_records)
            _release(&self._calls[i])
        free(self._calls)
        free(self._homes)
        cyx_free_factors(self._factors)

    def __len__(self):
        return self._count

    def add(self, str op, out, inputs, dict attrs) -> None:
        """Appends one call; raises what `call` raises, except for what only the data can tell."""
        cdef cyx_call *grown
        cdef int64_t i, room
        cdef _Op found = _find(op)
        if self._running:
            raise RuntimeError("expected Program.add before or after run, got it while another thread runs the program")
        if self._count == self._room:
            room = max(16, 2 * self._room)
            grown = <cyx_call *>realloc(self._calls, room * sizeof(cyx_call))
            if grown == NULL:
                raise MemoryError
            for i in range(self._count):  # records moved, and with them the inputs they hold themselves
                if grown[i].in_count <= CYX_INLINE_INPUTS:
                    grown[i].inputs = grown[i].own_in
            self._calls, self._room = grown, room
        memset(&self._calls[self._count], 0, sizeof(cyx_call))
        try:
            _fill(&self._calls[self._count], found, out, inputs, attrs)
            self._calls[self._count].terms = self._terms
        except BaseException:
            _release(&self._calls[self._count])
            raise
        self._arrays.append((out, tuple(inputs)))
        self._count += 1

    def stretch(self, int64_t first, int bands, int lanes, list steps, adds=(), int blocks=0, bint goes_on=False, kept=(),
                int64_t length=0) -> None:
        """The calls from `first` on run on one band after another: cyxcore/bands.py.

        They were added with the arrays of band 0, lane 0. steps: of each call, for its output and then its inputs, how
        many bytes further on the array of the next band and of the next lane lies. The caller knows that everything
        stays within memory that it keeps, and that no two bands write to one place. adds: which of the calls (from 0) add
        up what all bands come to in one output; they are products of a transposed matrix, and sums over rows of which each
        band has 32, 64, 128 and so on. Before fuse().

        blocks: where it is not 0, so many bands in a row are blocks of rows of one matrix of a stack (rowblocks.py), and
        steps have three numbers more: how many bytes further on the next block lies (the first number is then to the next
        matrix), how many matrices there are, and for how many of the stack in a row each is. What all blocks of a matrix
        come to is added up in products of a transposed matrix, and in sums over an axis of one element what all matrices for
        which that of the output is come to, block by block. goes_on: these are the last, shorter blocks, and add to
        what is there already. length: the rows of each matrix, of which random numbers are drawn. kept: which of the
        calls (from 0) make what others read, who may find it from another block on.
        """
        cdef cyx_array *array
        cdef int64_t place
        cdef Py_ssize_t i
        if first < 0 or bands < 1 or lanes < 1 or not steps or first + len(steps) > self._count:
            raise ValueError("expected calls of this program, and at least one band and lane")
        for place in range(first, first + len(steps)):
            arrays = steps[place - first]
            if len(arrays) != 1 + self._calls[place].in_count:
                raise ValueError("expected the steps of an output and of every input")
            for i in range(len(arrays)):
                array = &self._calls[place].out if i == 0 else &self._calls[place].inputs[i - 1]
                array.turns = array.repeats = 1
                array.band_bytes, array.lane_bytes = arrays[i][:2]
                if blocks:
                    array.block_bytes, array.turns, array.repeats = arrays[i][2:]
            self._calls[place].bands, self._calls[place].blocks = bands, blocks
            self._calls[place].goes_on, self._calls[place].length = goes_on, length
        for place in adds:
            self._calls[first + <int64_t>place].adds = blocks or bands
        self._kept.extend([first + place for place in kept])
        self._calls[first].stretch, self._calls[first].lanes = len(steps), lanes
        self._edges.update((first, first + len(steps)))

    def fuse(self, scratch=None, results=()) -> list:
        """Lets neighbouring element-wise calls, and sums over runs, be made together, tile by tile (fused.c). Call it once,
        at the end.

        scratch: an array whose memory nobody needs after the run, but for the arrays `results`; what only a group
        itself reads there is never stored. No bit changes, and no order. Returns (first call, for each call of the
        group whether its output is stored) of every group.
        """
        cdef int64_t first = 0, end, place, run, own_run
        cdef size_t low = 0, high = 0
        cdef list groups = [], last_read = self._last_reads(results)
        cdef bytearray past = bytearray(self._count)
        cdef char *elided = past
        if scratch is not None:
            low = <size_t>cnp.PyArray_DATA(<cnp.ndarray>scratch)
            high = low + cnp.PyArray_NBYTES(<cnp.ndarray>scratch)
        while first < self._count:
            end = first
            if self._masks_weights(first, last_read, low, high):
                end = first + 3
            elif (
                first + 1 < self._count and first + 1 not in self._edges and last_read[first] == first + 1
                and low <= <size_t>self._calls[first].out.data < high
                and (
                    cyx_adds_to_product(&self._calls[first]) or cyx_masks_product(&self._calls[first])
                    or cyx_adds_sum(&self._calls[first])
                )
            ):
                end = first + 2
                if self._goes_to_relu(first, last_read, low, high):
                    end = first + 3
                while self._adds_on(first, end, last_read, low, high):
                    end += 2
            elif self._masks_gradient(first, last_read, low, high):
                end = first + 4
            elif self._readers_end(first, last_read, low, high) > end:
                end = self._readers_end(first, last_read, low, high)
            elif (
                (self._calls[first].out.size >= LEAST_FUSED and cyx_call_is_fusible(&self._calls[first]))
                or (first + 3 <= self._count and cyx_is_adam(&self._calls[first], 3))
            ):
                end, run = first + 1, 0
                while end < self._count and end not in self._edges and end - first < CYX_MAX_GROUP:
                    own_run = cyx_sums_runs(&self._calls[end])
                    if not (own_run or cyx_call_is_fusible(&self._calls[end])):
                        break
                    for place in range(first, end):
                        elided[place] = last_read[place] >= 0 and self._is_elided(place, end, last_read, low, high)
                    if not _joins(self._calls, elided, first, end, run):
                        break
                    run, end = own_run or run, end + 1
                while self._updates_on(first, end, last_read, low, high):
                    end += 3
            if end - first > 1:
                self._calls[first].group = <int32_t>(end - first)
                for place in range(first, end):
                    self._calls[place].elided = self._is_elided(place, end, last_read, low, high)
                free(self._calls[first].kept)
                self._calls[first].kept = cyx_keep_group(&self._calls[first])
                groups.append((first, [not self._calls[place].elided for place in range(first, end)]))
            first = max(end, first + 1)
        if self._factors == NULL:
            self._factors = cyx_share_factors(self._calls, self._count, &self.packed_bytes)
            self.packed_bytes += <size_t>cyx_stretches_pack(self._calls, self._count)
        cyx_look_nowhere(self._calls, self._count)
        cyx_look_ahead(self._calls, self._count, False)
        for place in range(self._count):  # at last: these are copies of the records
            if self._calls[place].stretch:
                cyx_free_lanes(self._calls[place].lane_records)
                self._calls[place].lane_records = cyx_keep_lanes(&self._calls[place])
        return groups

    cdef bint _goes_to_relu(self, int64_t first, list last_read, size_t low, size_t high):
        """Whether a product and the sum behind it can be made as one with the ReLU that alone reads the sum."""
        cdef int64_t relu = first + 2
        if relu >= self._count or relu in self._edges or last_read[first + 1] != relu:
            return False
        return low <= <size_t>self._calls[first + 1].out.data < high and cyx_adds_before_relu(&self._calls[first])

    cdef bint _adds_on(self, int64_t first, int64_t end, list last_read, size_t low, size_t high):
        """Whether the two calls at `end` add to what the group from `first` to there has made."""
        cdef int64_t place
        if end + 1 >= self._count or last_read[end - 1] != end + 1 or last_read[end] != end + 1:
            return False
        if not low <= <size_t>self._calls[end].out.data < high:
            return False
        for place in range(first + 1, end + 2):
            if place in self._edges:
                return False
        return cyx_adds_on(&self._calls[end - 2], &self._calls[end])

    cdef bint _updates_on(self, int64_t first, int64_t end, list last_read, size_t low, size_t high):
        """Whether the group from `first` to `end` is Adam of some parameters and goes on with that of another, of any size."""
        cdef int64_t place, behind = end + 3
        if behind > self._count or behind - first > CYX_MAX_GROUP or not cyx_is_adam(&self._calls[first], behind - first):
            return False
        for place in range(first, behind):
            if (place >= end and place in self._edges) or self._is_elided(place, behind, last_read, low, high):
                return False
        return True

    cdef bint _masks_weights(self, int64_t first, list last_read, size_t low, size_t high):
        """Whether three calls from `first` on can be made as one: attention's weights, or the gradient of its scores."""
        cdef int64_t place
        if first + 3 > self._count:
            return False
        for place in range(first, first + 2):
            if place + 1 in self._edges or last_read[place] != place + 1:
                return False
            if not low <= <size_t>self._calls[place].out.data < high:
                return False
        return cyx_masks_softmax(&self._calls[first]) or cyx_masks_softmax_grad(&self._calls[first])

    cdef bint _masks_gradient(self, int64_t first, list last_read, size_t low, size_t high):
        """Whether four calls from `first` on can be made as one masked gradient, and nobody else reads the first three. Not
        where the mask begins a longer group, which saves more.
        """
        cdef int64_t place, behind = first + 4
        if behind > self._count or not cyx_calls_mask_gradient(&self._calls[first]):
            return False
        while behind < self._count and behind not in self._edges and cyx_sums_runs(&self._calls[behind]):
            behind += 1
        if behind < self._count and behind not in self._edges and cyx_call_is_fusible(&self._calls[behind]):
            if self._calls[behind].out.size == self._calls[first].out.size:
                return False
        for place in range(first, first + 3):
            if place + 1 in self._edges or not low <= <size_t>self._calls[place].out.data < high:
                return False
        return last_read[first] == last_read[first + 2] == first + 3 and last_read[first + 1] == first + 2

    cdef int64_t _readers_end(self, int64_t first, list last_read, size_t low, size_t high):
        """Behind the calls that alone read the concat at `first`, row by row, so that it need not be made; 0: it must be."""
        cdef int64_t end = first + 1
        cdef int i
        if not low <= <size_t>self._calls[first].out.data < high:
            return 0
        while end < self._count and end not in self._edges and cyx_reads_rows(&self._calls[first], &self._calls[end]):
            for i in range(self._calls[first].in_count):  # which are read until the last of them is through
                if _meets(&self._calls[end].out, &self._calls[first].inputs[i], cyx_dtype_bytes):
                    return 0
            end += 1
        return end if last_read[first] == end - 1 else 0

    cdef bint _is_elided(self, int64_t place, int64_t end, list last_read, size_t low, size_t high):
        """Whether the output of a call in a group that ends before `end` need not be stored."""
        cdef size_t start = <size_t>self._calls[place].out.data
        return low <= start < high and <int64_t>last_read[place] < end and not cyx_sums_runs(&self._calls[place])

    cdef list _last_reads(self, results):
        """For each call the last place where its output is read, before something else is written there."""
        cdef list last = [-1] * self._count
        cdef dict writer = {}
        cdef int64_t place
        cdef int i
        for place in range(self._count):
            for i in range(self._calls[place].in_count):
                found = writer.get(<size_t>self._calls[place].inputs[i].data)
                if found is not None:
                    last[found] = place
            writer[<size_t>self._calls[place].out.data] = place
        for array in results:
            found = writer.get(<size_t>cnp.PyArray_DATA(<cnp.ndarray>array))
            if found is not None:
                last[found] = self._count
        for place in self._kept:
            last[place] = self._count
        return last

    @property
    def lines_ahead(self) -> list:
        """For each call how many lines of 64 bytes it fetches for the calls behind it, where one thread makes it (ahead.c)."""
        return [cyx_lines_ahead(&self._calls[place]) for place in range(self._count)]

    def run(self) -> None:
        """Runs every call in order without the interpreter lock. Raises DataError where the data is out of range."""
        cdef cyx_message message
        cdef int64_t failed = 0
        cdef cyx_status status
        self._running += 1
        with nogil:
            status = cyx_run_trying(&self._trial, self._calls, self._count, &failed, &message)
        self._running -= 1
        if status != CYX_OK:
            _fail(status, &message)

    def readers(self, array) -> "list | None":
        """The addresses of the pointers by which calls read an array: for a run those of another of its size may take their
        place. None where a call writes to it, or more than these pointers was made of where it lies. After fuse().
        """
        cdef cyx_array whole
        cdef const cyx_call *call
        cdef int64_t place, kept = 0
        cdef int i
        cdef list found = []
        memset(&whole, 0, sizeof(whole))
        _describe(&whole, array, "readers", "an array")
        for place in range(self._count):
            call = &self._calls[place]
            if call.stretch or call.kept != NULL:  # of which there are copies
                kept = max(kept, place + max(call.stretch, call.group))
            if _meets(&call.out, &whole, cyx_dtype_bytes):
                return None
            for i in range(call.in_count):
                if _meets(&call.inputs[i], &whole, cyx_dtype_bytes):
                    if place < kept or call.packed != NULL or call.inputs[i].data != whole.data:
                        return None
                    found.append(<size_t>&call.inputs[i].data)
        return found

    def written(self) -> list:
        """(from, to) of the memory that calls write to, in order, in as few pieces as it has."""
        cdef int64_t place
        cdef cyx_array *out
        cdef list pieces = []
        for place in range(self._count):
            out = &self._calls[place].out
            end = <size_t>out.data + <size_t>(out.size * cyx_dtype_bytes[out.dtype])
            if self._calls[place].blocks:
                end += (out.turns - 1) * out.band_bytes + (self._calls[place].blocks - 1) * out.block_bytes
            elif self._calls[place].bands:
                end += (self._calls[place].bands - 1) * out.band_bytes
            pieces.append((<size_t>out.data, end))
        cdef list found = []
        start = end = 0
        for low, high in sorted(pieces):
            if low > end:
                found.append((start, end))
                start = low
            end = max(end, high)
        return [*found, (start, end)][1:]

    def moving(self, list arrays) -> None:
        """From now on the program runs on other arrays each time: run_on. After fuse().

        arrays: those in whose place others come, no two of which overlap. The program lets go of all its arrays; what
        else is in them (constants) the caller keeps. Nothing is packed once a run any more: runs may overlap.
        """
        cdef int64_t k
        cdef int i, place
        cdef const cyx_array *array
        cdef size_t start
        if self._homes != NULL:
            raise ValueError("expected a program whose arrays do not move yet")
        if self._factors != NULL:
            for k in range(self._count):
                self._calls[k].packed = self._calls[k].pack = NULL
            cyx_free_factors(self._factors)
            self._factors, self.packed_bytes = NULL, cyx_stretches_pack(self._calls, self._count)
        self._bases = [(<size_t>cnp.PyArray_DATA(<cnp.ndarray>x), cnp.PyArray_NBYTES(<cnp.ndarray>x)) for x in arrays]
        self._homes = <int32_t *>malloc((self._count * (1 + CYX_INLINE_INPUTS) + 1) * sizeof(int32_t))
        if self._homes == NULL:
            raise MemoryError
        for k in range(self._count):
            if self._calls[k].in_count > CYX_INLINE_INPUTS:
                free(self._homes)
                self._homes = NULL
                raise ValueError(f"expected calls of at most {CYX_INLINE_INPUTS} inputs")
            for i in range(1 + self._calls[k].in_count):
                array = &self._calls[k].out if i == 0 else &self._calls[k].inputs[i - 1]
                start = <size_t>array.data
                self._homes[k * (1 + CYX_INLINE_INPUTS) + i] = NOWHERE
                for place, (base, count) in enumerate(self._bases):
                    if base <= start < base + max(count, 1):
                        self._homes[k * (1 + CYX_INLINE_INPUTS) + i] = place
        self._arrays = []

    def run_on(self, list arrays, list made) -> None:
        """Runs as run() does, on arrays in the place of those that move, of their sizes and in their order.

        made: what aligned() makes the last ones of, which are added to `arrays`. Threads may do so at the same time. Raises
        ValueError for an array with gaps or of another size.
        """
        cdef cyx_message message
        cdef int64_t failed = 0, k
        cdef cyx_status status
        cdef int64_t shifts[MOST_MOVING]
        cdef cyx_call *own
        cdef int32_t *homes
        cdef Py_ssize_t place
        cdef int i
        for shape, numpy_type in made:
            arrays.append(aligned(shape, numpy_type))
        if self._homes == NULL or len(arrays) != len(self._bases) or len(arrays) > MOST_MOVING:
            raise ValueError(f"expected a program that moves, and {len(self._bases or ())} arrays; got {len(arrays)}")
        for place in range(len(arrays)):
            array = <cnp.ndarray?>arrays[place]
            base, count = <tuple>(self._bases[place])
            if not cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_NBYTES(array) != count:
                raise ValueError(f"expected array {place} to have {count} bytes without gaps")
            shifts[place] = <int64_t>(<size_t>cnp.PyArray_DATA(array) - <size_t>base)
        own = <cyx_call *>malloc((self._count + 1) * sizeof(cyx_call))
        if own == NULL:
            raise MemoryError
        memcpy(own, self._calls, self._count * sizeof(cyx_call))
        for k in range(self._count):
            # Those are of the arrays that were there.
            own[k].inputs, own[k].lane_records, own[k].ahead = own[k].own_in, NULL, NULL
            homes = self._homes + k * (1 + CYX_INLINE_INPUTS)
            if homes[0] != NOWHERE:
                own[k].out.data = <char *>own[k].out.data + shifts[homes[0]]
            for i in range(own[k].in_count):
                if homes[1 + i] != NOWHERE:
                    own[k].inputs[i].data = <char *>own[k].inputs[i].data + shifts[homes[1 + i]]
        self._running += 1
        with nogil:
            status = cyx_run(own, self._count, &failed, &message)
        self._running -= 1
        free(own)
        if status != CYX_OK:
            _fail(status, &message)

    def timed(self) -> list:
        """Runs as run() does, and returns (first call, how many calls, start, nanoseconds) of all that ran as one.

        Calls that were fused or stretched run as one; threads share none that are small. start: as time.perf_counter_ns() has it.
        """
        cdef cyx_message message
        cdef int64_t failed = 0, first = 0, count
        cdef cyx_status status
        cdef list found = []
        self._running += 1
        try:
            while first < self._count:
                count = max(1, self._calls[first].stretch, self._calls[first].group)
                began = perf_counter_ns()
                with nogil:
                    status = cyx_run(&self._calls[first], count, &failed, &message)
                found.append((first, count, began, perf_counter_ns() - began))
                if status != CYX_OK:
                    _fail(status, &message)
                first += count
        finally:
            self._running -= 1
        return found


cdef cyx_draw _draw_into(int kind, uint64_t seed, uint64_t step, uint32_t stream, cnp.ndarray out, tuple types) except *:
    """What fills an array, which has to be whole and of one of some types."""
    cdef cyx_draw draw
    if cnp.PyArray_TYPE(out) not in types or not cnp.PyArray_ISCARRAY(out):
        raise ValueError(f"expected a writable C-contiguous array of another dtype, got {(<object>out).dtype}")
    memset(&draw, 0, sizeof(draw))
    draw.kind, draw.seed, draw.step, draw.stream = kind, seed, step, stream
    draw.dtype = CYX_F32 if cnp.PyArray_TYPE(out) == cnp.NPY_FLOAT32 else CYX_F64
    draw.out, draw.count = cnp.PyArray_DATA(out), cnp.PyArray_SIZE(out)
    return draw


def draw_words(uint64_t seed, uint64_t step, uint32_t stream, cnp.ndarray out) -> None:
    """Fills a uint32 array with the words of a stream (kernels/philox.py)."""
    cdef cyx_draw draw = _draw_into(CYX_DRAW_WORDS, seed, step, stream, out, (cnp.NPY_UINT32,))
    with nogil:
        cyx_draw_numbers(&draw)


def draw_reals(str kind, uint64_t seed, uint64_t step, uint32_t stream, double scale, double shift, cnp.ndarray out) -> None:
    """Fills a float32 or float64 array with shift + scale x. kind: "twelves", x the sum of twelve multiples of 2**-24 in
    [0, 1) less six; or "normals", x a normal quantile (cyxcore/variates.py).
    """
    cdef cyx_draw draw
    cdef int number = CYX_DRAW_TWELVES if kind == "twelves" else CYX_DRAW_NORMALS
    draw = _draw_into(number, seed, step, stream, out, (cnp.NPY_FLOAT32, cnp.NPY_FLOAT64))
    draw.scale, draw.shift = scale, shift
    with nogil:
        cyx_draw_numbers(&draw)


def draw_integers(uint64_t seed, uint64_t step, uint32_t stream, uint64_t span, uint64_t low, cnp.ndarray out) -> bool:
    """Fills an int64 array with low + a word of 64 bits % span (span 0: 2**64), modulo 2**64. Returns False where a word was
    among those that would favour the first numbers: then the caller draws in another way.
    """
    cdef cyx_draw draw = _draw_into(CYX_DRAW_INTEGERS, seed, step, stream, out, (cnp.NPY_INT64,))
    draw.span, draw.low = span, low
    with nogil:
        cyx_draw_numbers(&draw)
    return not draw.over


def draw_order(uint64_t seed, uint64_t step, uint32_t stream, bint wide, cnp.ndarray out) -> None:
    """Fills an int64 array with the order of as many random words: a stable sort of words of 32 bits, or of 64 if `wide`."""
    cdef cyx_draw draw = _draw_into(CYX_DRAW_WORDS, seed, step, stream, out, (cnp.NPY_INT64,))
    cdef cyx_status status
    cdef cyx_message message
    with nogil:
        status = cyx_order_words(seed, step, stream, wide, <int64_t *>draw.out, draw.count)
        message = cyx_last_failure
    if status != CYX_OK:
        _fail(status, &message)


@cython.final
cdef class _Block:
    """Memory of an array, for the next one when that is gone."""

    cdef void *data

    def __dealloc__(self):
        if self.data != NULL:
            cyx_block_give_back(self.data)


def aligned(tuple shape, int numpy_type) -> cnp.ndarray:
    """An array of some shape and NumPy's number of a dtype, at a multiple of 64 bytes, whatever was in its memory before."""
    cdef cnp.npy_intp sizes[CYX_MAX_NDIM]
    cdef cnp.npy_intp bytes = cnp.PyArray_DescrFromType(numpy_type).itemsize
    cdef int d
    cdef cnp.ndarray made
    cdef _Block memory = _Block.__new__(_Block)
    if len(shape) > CYX_MAX_NDIM:
        raise ValueError(f"expected at most {CYX_MAX_NDIM} axes, got {shape}")
    for d in range(len(shape)):
        sizes[d] = shape[d]
        bytes *= sizes[d]
    memory.data = cyx_block(bytes)
    if memory.data == NULL:
        raise MemoryError(f"no {bytes:,} bytes left for an array of {shape}")
    made = cnp.PyArray_SimpleNewFromData(<int>len(shape), sizes, numpy_type, memory.data)
    cnp.set_array_base(made, memory)
    return made


def kept_bytes() -> int:
    """Of memory that large arrays have given back, and that is kept for the next ones."""
    return cyx_blocks_kept()


def release_kept(size_t most_bytes=0) -> None:
    """Give all but so many bytes of it back to the system, those first that have been kept longest."""
    cyx_blocks_shrink(most_bytes)


cdef void *_data_of(object array, int type, int64_t size, bint written=False) except? NULL:
    """The memory of a whole array of some dtype and size, which may be written to where it is; NULL of None."""
    if array is None:
        return NULL
    cdef cnp.ndarray own = array
    cdef bint whole = cnp.PyArray_ISCARRAY(own) if written else cnp.PyArray_ISCARRAY_RO(own)
    if cnp.PyArray_TYPE(own) != type or cnp.PyArray_SIZE(own) != size or not whole:
        raise ValueError(f"expected a C-contiguous array of {size} numbers, got {own.dtype} {array.shape}")
    return cnp.PyArray_DATA(own)


def normalise(
    cnp.ndarray x not None, int64_t n, int64_t inner, double eps, mean, cnp.ndarray var not None, weight, bias, out,
    g=None, before=None, bint before_first=True, of_weight=None, of_bias=None, bint given=False,
) -> None:
    """Rows of n numbers less their means, by sqrt(var + eps), times a weight, plus a bias: from x to out; means and
    variances to `mean` (None: no mean is taken) and `var`. Each column has a weight, or each run of `inner` numbers where
    that is not 0: as many in turn as `weight` and `bias` have. Either may be None.

    g: the gradient of the result. Then `mean` and `var` are read, and out is the gradient of x, added to `before` (before
    what goes through the mean, or behind it); of_weight and of_bias are those of weight and bias. What is None is not
    made.

    given: the rows are the runs; `mean` and `var` are read, too, and each channel's: what its rows are shifted by, and
    what that is multiplied by, of which of_weight is the gradient then.
    """
    cdef cyx_norm norm
    cdef int type = cnp.PyArray_TYPE(x)
    cdef int64_t size = cnp.PyArray_SIZE(x), numbers, stats
    cdef bint made
    cdef cyx_status status
    if type != cnp.NPY_FLOAT32 and type != cnp.NPY_FLOAT64 or n < 1 or inner < 0 or size % n or (inner and n % inner):
        raise ValueError(f"expected rows of {n} real numbers, in runs of {inner}, got {(<object>x).dtype} {(<object>x).shape}")
    numbers = n
    if inner:
        weights = (var,) if given else (weight, bias, of_weight, of_bias)
        numbers = max([each.size for each in weights if each is not None], default=n // inner)
        if numbers % (n // inner) or size // inner % numbers:
            raise ValueError(f"expected weights for all runs of {inner} numbers, got {numbers}")
    memset(&norm, 0, sizeof(norm))
    norm.dtype = CYX_F32 if type == cnp.NPY_FLOAT32 else CYX_F64
    norm.rows, norm.n, norm.inner, norm.channels, norm.eps = size // n, n, inner, numbers, eps
    norm.x, norm.out = _data_of(x, type, size), _data_of(out, type, size, True)
    stats = numbers if given else norm.rows
    made = g is None and not given
    norm.mean, norm.var, norm.given = _data_of(mean, type, stats, made), _data_of(var, type, stats, made), given
    norm.weight, norm.bias = _data_of(weight, type, numbers), _data_of(bias, type, numbers)
    norm.g, norm.before, norm.before_first = _data_of(g, type, size), _data_of(before, type, size), before_first
    norm.of_weight, norm.of_bias = _data_of(of_weight, type, numbers, True), _data_of(of_bias, type, numbers, True)
    if g is None and out is None or given and (mean is None or n != inner):
        raise ValueError("expected an array for the result, and given means for runs that are rows")
    with nogil:
        status = cyx_normalise(&norm)
    if status != CYX_OK:
        raise MemoryError("normalise: no memory left for scratch space")


_RECURRENCES = {"rnn_tanh": (CYX_RNN_TANH, 1), "rnn_relu": (CYX_RNN_RELU, 1), "lstm": (CYX_LSTM, 4), "gru": (CYX_GRU, 3)}


def recur(
    str kind, bint reverse, cnp.ndarray weight not None, cnp.ndarray gates not None, hidden, cells, out=None, *, bias=None,
    input_bias=None, projection=None, whole=None, lengths=None, g=(), of_x=None, of_h=None, of_states=None, before=(), made=(),
) -> None:
    """A recurrent layer, behind the product of its inputs. kind: of functional.recurrent.CELLS. weight: (G H, P), P being H
    but where an LSTM has a projection (P, H), P <= H.

    gates: (N, T, G H), the product of the inputs, which becomes what the gates come to. input_bias, bias: (G H,), added to
    that and to the state's product. hidden: (T + 1, N, P), the first of them the state to begin with; or two of them, used
    in turn. cells: of an LSTM as many (N, H); of a GRU of all steps (T, N, H), what the last gate is made of beside the
    inputs; else None. whole: (T, N, H), what is projected, where all steps are kept. out: (N, T, P). lengths: (N,) of
    int64: from there on a row changes nothing and gives zeros.

    g: the gradients of the results (out, last hidden state, last cell state; any of them None). Then all of these are
    read, but out, which is not; of_x: (N, T, G H), the gradients of the inputs' part of the gates; of_h: (T, N, G H), in the
    order of the steps those of the state's part, of a GRU only, as of others they are the same; of_states: (T, N, P), those
    of what was projected; made: those of weight, bias, first hidden and first cell state, projection; before: what each of
    these is added to. What is None is not made, or not there.
    """
    cdef cyx_recurrence one
    cdef int type = cnp.PyArray_TYPE(gates)
    cdef int64_t count, states, inputs, cell_states
    cdef cyx_status status
    cdef bint back = bool(made)
    memset(&one, 0, sizeof(one))
    one.kind, count = _RECURRENCES[kind]
    if type != cnp.NPY_FLOAT32 and type != cnp.NPY_FLOAT64 or (<object>gates).ndim != 3 or (<object>weight).ndim != 2:
        raise ValueError(f"expected real gates (N, T, G H) and a matrix, got {(<object>gates).dtype} {(<object>gates).shape}")
    one.dtype = CYX_F32 if type == cnp.NPY_FLOAT32 else CYX_F64
    one.rows, one.steps, one.size, one.state = gates.shape[0], gates.shape[1], gates.shape[2] // count, weight.shape[1]
    if min(one.rows, one.steps, one.size, one.state) < 1 or gates.shape[2] % count:
        raise ValueError(f"expected at least one row, step and hidden unit, got {(<object>gates).shape}")
    if one.state > one.size or projection is None and one.state < one.size or projection is not None and one.kind != CYX_LSTM:
        raise ValueError(f"expected a weight of states of {one.size}, of an LSTM with a projection fewer, got {one.state}")
    inputs, states, cell_states = one.rows * one.steps * one.size, one.rows * one.state, one.rows * one.size
    one.kept = hidden.shape[0] == one.steps + 1
    if one.steps == 1 and not back and (projection is not None and whole is None or one.kind == CYX_GRU and cells is None):
        one.kept = False # two states are those of all steps, too: what is kept beside them tells which is meant
    one.reverse = reverse
    if not one.kept and (back or hidden.shape[0] != 2):
        raise ValueError(f"expected the states of all steps, or two, got {hidden.shape[0]}")
    one.weight, one.bias = _data_of(weight, type, count * one.size * one.state), _data_of(bias, type, count * one.size)
    one.input_bias = _data_of(input_bias, type, count * one.size)
    one.projection = _data_of(projection, type, one.state * one.size)
    one.whole = _data_of(whole, type, inputs, not back)
    if projection is not None and one.kept and whole is None:
        raise ValueError("expected an array for what is projected")
    one.lengths = <const int64_t *>_data_of(lengths, cnp.NPY_INT64, one.rows)
    one.gates = _data_of(gates, type, count * inputs, not back)
    one.hidden = _data_of(hidden, type, hidden.shape[0] * states, not back)
    if one.kind == CYX_LSTM or one.kind == CYX_GRU and one.kept:
        if cells is None:
            raise ValueError(f"expected cells of {kind}")
        one.cells = _data_of(cells, type, inputs if one.kind == CYX_GRU else hidden.shape[0] * cell_states, not back)
    if back:
        one.g_out, one.g_hidden, one.g_cell = (
            _data_of(g[0], type, one.steps * states), _data_of(g[1], type, states), _data_of(g[2], type, cell_states)
        )
        if all(x is None for x in (g if one.kind == CYX_LSTM else g[:2])):
            raise ValueError("expected the gradient of a result")
        one.of_x = _data_of(of_x, type, count * inputs, True)
        if one.kind == CYX_GRU:
            one.of_h = _data_of(of_h, type, count * inputs, True)
        one.of_states = _data_of(of_states, type, one.steps * states, True)
        if one.of_x == NULL or one.kind == CYX_GRU and one.of_h == NULL or (projection is None) != (of_states is None):
            raise ValueError("expected arrays for the gradients of the gates")
        sizes = (count * one.size * one.state, count * one.size, one.state * one.size)
        one.of_weight, one.before_weight = _data_of(made[0], type, sizes[0], True), _data_of(before[0], type, sizes[0])
        one.of_bias, one.before_bias = _data_of(made[1], type, sizes[1], True), _data_of(before[1], type, sizes[1])
        one.of_hidden, one.before_hidden = _data_of(made[2], type, states, True), _data_of(before[2], type, states)
        one.of_cell, one.before_cell = _data_of(made[3], type, cell_states, True), _data_of(before[3], type, cell_states)
        if projection is None and made[4] is not None:
            raise ValueError("expected no array for the gradient of a projection, as there is none")
        one.of_projection = _data_of(made[4], type, sizes[2], True)
        one.before_projection = _data_of(before[4], type, sizes[2])
    else:
        one.out = _data_of(out, type, one.steps * states, True)
        if one.out == NULL:
            raise ValueError("expected an array for the result")
    with nogil:
        status = cyx_recur(&one)
    if status != CYX_OK:
        raise MemoryError("recur: no memory left for scratch space")


def cast_halves(cnp.ndarray x, cnp.ndarray out) -> None:
    """out[...] = x between float32 and float16 or bfloat16 (kernels/bfloat16.py), to the nearest, ties to even; both
    C-contiguous, of one shape.
    """
    cdef cyx_halves cast
    cdef bint narrows = cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32
    cdef cnp.ndarray half = out if narrows else x
    cdef cnp.ndarray wide = x if narrows else out
    cdef bint is_f16 = cnp.PyArray_TYPE(half) == cnp.NPY_FLOAT16
    if cnp.PyArray_TYPE(wide) != cnp.NPY_FLOAT32 or cnp.PyArray_ITEMSIZE(half) != 2:
        raise ValueError("expected float32 on one side and a type of half its size on the other")
    if not cnp.PyArray_IS_C_CONTIGUOUS(x) or not cnp.PyArray_ISCARRAY(out) or (<object>x).shape != (<object>out).shape:
        raise ValueError("expected C-contiguous arrays of one shape, and a result that is writable")
    cast.kind = (CYX_TO_F16 if is_f16 else CYX_TO_BF16) if narrows else (CYX_FROM_F16 if is_f16 else CYX_FROM_BF16)
    cast.x, cast.out, cast.count = cnp.PyArray_DATA(x), cnp.PyArray_DATA(out), cnp.PyArray_SIZE(x)
    with nogil:
        cyx_cast_halves(&cast)


def order_rows(cnp.ndarray x, bint descending, cnp.ndarray out) -> None:
    """The places that sort each row of x (rows, n), equals in their order, NaN as the greatest. x: float32, float64, int64
    or int32; out: int64 of its shape; both C-contiguous.
    """
    cdef int dtype
    cdef cyx_status status
    cdef cyx_message message
    cdef const void *data = cnp.PyArray_DATA(x)
    cdef int64_t *to = <int64_t *>cnp.PyArray_DATA(out)
    cdef int64_t rows, n
    types = {cnp.NPY_FLOAT32: CYX_F32, cnp.NPY_FLOAT64: CYX_F64, cnp.NPY_INT64: CYX_I64, cnp.NPY_INT32: CYX_I32}
    if cnp.PyArray_TYPE(x) not in types or not cnp.PyArray_IS_C_CONTIGUOUS(x) or x.ndim != 2:
        raise ValueError("expected C-contiguous rows of float32, float64, int64 or int32")
    if cnp.PyArray_TYPE(out) != cnp.NPY_INT64 or not cnp.PyArray_ISCARRAY(out) or (<object>out).shape != (<object>x).shape:
        raise ValueError("expected a writable C-contiguous int64 array of the shape of what is sorted")
    dtype, rows, n = types[cnp.PyArray_TYPE(x)], x.shape[0], x.shape[1]
    with nogil:
        status = cyx_order_rows(data, dtype, rows, n, descending, to)
        message = cyx_last_failure
    if status != CYX_OK:
        _fail(status, &message)


def best_of_rows(cnp.ndarray x, int64_t k, bint largest, cnp.ndarray out) -> None:
    """The places of the k greatest (or least) of each row of x (rows, n), the first of them first, equals in their order and NaN
    as the greatest. x: float32, float64, int64 or int32; out: int64 (rows, k); both C-contiguous; k from 1 to n and MOST_BEST.
    """
    cdef const void *data = cnp.PyArray_DATA(x)
    cdef int64_t *to = <int64_t *>cnp.PyArray_DATA(out)
    cdef int64_t rows, n
    cdef int dtype
    types = {cnp.NPY_FLOAT32: CYX_F32, cnp.NPY_FLOAT64: CYX_F64, cnp.NPY_INT64: CYX_I64, cnp.NPY_INT32: CYX_I32}
    if cnp.PyArray_TYPE(x) not in types or not cnp.PyArray_IS_C_CONTIGUOUS(x) or x.ndim != 2:
        raise ValueError("expected C-contiguous rows of float32, float64, int64 or int32")
    dtype, rows, n = types[cnp.PyArray_TYPE(x)], x.shape[0], x.shape[1]
    if not 1 <= k <= min(n, CYX_MOST_BEST):
        raise ValueError(f"expected a k from 1 to {min(n, CYX_MOST_BEST)}, got {k}")
    if cnp.PyArray_TYPE(out) != cnp.NPY_INT64 or not cnp.PyArray_ISCARRAY(out) or (<object>out).shape != (rows, k):
        raise ValueError("expected a writable C-contiguous int64 array (rows, k)")
    with nogil:
        cyx_best_of_rows(data, dtype, rows, n, k, largest, to)


MOST_BEST = CYX_MOST_BEST


def set_num_threads(int count) -> None:
    """How many threads share one operation (1 to 256). Results do not depend on it."""
    if not 1 <= count <= 256:
        raise ValueError(f"expected 1 to 256 threads, got {count}")
    with nogil:
        cyx_set_threads(count)


def get_num_threads() -> int:
    return cyx_threads()


cdef int _checked_terms(int terms) except -1:
    if not 0 <= terms <= 3:
        raise ValueError(f"expected 0 (exact) to 3 terms, got {terms}")
    return terms


def set_terms(int terms) -> None:
    """Into how many bfloat16 terms products of float32 may split their factors, in calls made at once; 0: exact.

    Where amx() is False, and for products too small to gain, calls are exact whatever is set.
    """
    global _terms
    _terms = _checked_terms(terms)


def set_own_terms(int terms) -> int:
    """The same for the calls of this thread alone, whatever is set; -1: as is set. Returns what it was before."""
    global own_terms
    before = own_terms
    own_terms = terms if terms == -1 else _checked_terms(terms)
    return before


cpdef int get_terms():
    """Of calls that this thread makes at once."""
    return _terms if own_terms < 0 else own_terms


def amx() -> bool:
    """Whether terms change anything here: the processor multiplies tiles of bfloat16, and "avx512" is in use."""
    return cyx_amx() != 0


def isa() -> str:
    """The instruction set in use: "avx512", "avx2" or "portable"."""
    return cyx_isa().decode()


def set_isa(str name) -> None:
    """Chooses an instruction set, for tests and benchmarks. Raises ValueError where this machine lacks it."""
    if cyx_set_isa(name.encode()):
        raise ValueError(f"expected an instruction set of this machine (avx512, avx2, portable), got {name!r}")


cyx_setup()
if os.environ.get("CYX_ISA"):
    try:
        set_isa(os.environ["CYX_ISA"])
    except ValueError as error:
        raise KernelError(f"CYX_ISA: {error}") from None
_load()
_services = PyCapsule_New(<void *>&cyx_own_services, "cyxcore.kernels.cpu._services", NULL)  # for language.pyx
_blocks = PyCapsule_New(<void *>&cyx_own_blocks, "cyxcore.kernels.cpu._blocks", NULL)  # for tensors.pyx
_runner = PyCapsule_New(<void *>cyx_run, "cyxcore.kernels.cpu._runner", NULL)  # for tensors.pyx
cyx_set_threads(cores.usable())
atexit.register(cyx_stop_threads)


def leave_mmx() -> None:
    """Empty the x87 registers of this thread, which code that used MMX may have left in use.

    The compiled programs of a chain that runs within this process do so. The norms of OpenBLAS are computed in these
    registers, and LAPACK gives up on sound matrices then.
    """
    cyx_leave_mmx()
