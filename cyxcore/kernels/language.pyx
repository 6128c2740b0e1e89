# cython: boundscheck=False, wraparound=False, freethreading_compatible=False
"""The kernels of language models: products with quantised matrices, norms, rotated positions, attention over pages.

They use the threads and the instruction set of cyxcore.kernels.cpu and follow cyx-exact/1. Beyond that, a row of a result
depends on its own row of input alone. All arrays are C-contiguous; what the caller passes is checked here once, since the C
side trusts it.
"""

from cyxcore.errors import ShapeError
from cyxcore.kernels import cpu  # noqa: F401: its threads are used

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_Import
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t
from libc.stdlib cimport free, malloc

cnp.import_array()

cdef extern from "language.h" nogil:
    enum:
        ROWS
        BLOCK
        SUPER
        PAGE
    ctypedef enum matrix_kind:
        MATRIX_F32
        MATRIX_F16
        MATRIX_BF16
        MATRIX_Q8_0
        MATRIX_Q4_0
        MATRIX_Q4_K
        MATRIX_Q5_K
        MATRIX_Q6_K
    ctypedef struct cyx_services:
        pass
    ctypedef struct matrix:
        int32_t kind
        int64_t rows, columns
        const void *values
        const uint16_t *halves
        const uint8_t *subs
    ctypedef struct stretch:
        int64_t first, count, start
        const int32_t *pages
    ctypedef struct attention:
        const float *q
        float *out
        const float *k
        const float *v
        const stretch *stretches
        int64_t stretch_count, heads, kv_heads, size, window
        float scale
    ctypedef struct placing:
        float *qkv
        const float *cosine
        const float *sine
        const float *q_norm
        const float *k_norm
        const int64_t *slots
        float *q
        float *k
        float *v
        int64_t count, heads, kv_heads, size, rotated
        int halves
        float eps
    void language_setup(const cyx_services *services)
    int language_multiply(const matrix *weights, const float *x, int64_t count, float *out, int accumulate)
    int language_attend(const attention *a)
    void language_place(const placing *p)
    void language_rms_norm(float *out, const float *x, const float *weight, int64_t count, int64_t size, float eps)
    void language_swiglu(float *out, const float *both, int64_t count, int64_t size)

language_setup(<const cyx_services *>PyCapsule_Import("cyxcore.kernels.cpu._services", 0))

PANEL_ROWS, BLOCK_COLUMNS, SUPER_COLUMNS, PAGE_TOKENS = ROWS, BLOCK, SUPER, PAGE

# kind: (number, bytes of values, of halves and of subs for 16 rows of a unit, columns of a unit)
KINDS = {
    "F32": (MATRIX_F32, 64, 0, 0, 1),
    "F16": (MATRIX_F16, 32, 0, 0, 1),
    "BF16": (MATRIX_BF16, 32, 0, 0, 1),
    "Q8_0": (MATRIX_Q8_0, 512, 32, 0, BLOCK),
    "Q4_0": (MATRIX_Q4_0, 256, 32, 0, BLOCK),
    "Q4_K": (MATRIX_Q4_K, 2048, 64, 256, SUPER),
    "Q5_K": (MATRIX_Q5_K, 4096, 64, 256, SUPER),
    "Q6_K": (MATRIX_Q6_K, 4096, 32, 256, SUPER),
}


cdef void *_data(cnp.ndarray array, int kind, str name, tuple shape) except NULL:
    """The memory of an array that is what it has to be."""
    if cnp.PyArray_TYPE(array) != kind or not cnp.PyArray_IS_C_CONTIGUOUS(array):
        raise ShapeError(f"{name}: expected a contiguous array of {cnp.PyArray_DescrFromType(kind)}, got {array.dtype}")
    if (<object>array).shape != shape:
        raise ShapeError(f"{name}: expected shape {shape}, got {(<object>array).shape}")
    return cnp.PyArray_DATA(array)


cdef class Matrix:
    """Weights (rows, columns) in panels of 16 rows; see language.h for how they lie. Made by cyxcore.llm.weights."""

    cdef matrix _matrix
    cdef readonly str kind
    cdef readonly tuple shape
    cdef readonly int64_t nbytes
    cdef object _kept

    def __init__(self, str kind, int64_t rows, int64_t columns, cnp.ndarray values, cnp.ndarray halves, cnp.ndarray subs):
        """values, halves, subs: uint8, flat."""
        number, value_bytes, half_bytes, sub_bytes, unit = KINDS[kind]
        if rows < 1 or columns < 1 or columns % unit:
            raise ShapeError(f"matrix: expected rows, and columns in {unit}s for {kind}, got ({rows}, {columns})")
        units = -(-rows // ROWS) * (columns // unit)
        self._matrix.kind, self._matrix.rows, self._matrix.columns = number, rows, columns
        self._matrix.values = _data(values, cnp.NPY_UINT8, "values", (units * value_bytes,))
        self._matrix.halves = <const uint16_t *>_data(halves, cnp.NPY_UINT8, "halves", (units * half_bytes,))
        self._matrix.subs = <const uint8_t *>_data(subs, cnp.NPY_UINT8, "subs", (units * sub_bytes,))
        self.kind, self.shape, self._kept = kind, (rows, columns), (values, halves, subs)
        self.nbytes = values.nbytes + halves.nbytes + subs.nbytes

    def multiply(self, cnp.ndarray x, cnp.ndarray out, bint accumulate=False):
        """out (N, rows) = x (N, columns) times the transposed matrix; with accumulate added to what is there."""
        cdef int64_t count = x.shape[0]
        cdef const float *from_ = <const float *>_data(x, cnp.NPY_FLOAT32, "x", (count, self._matrix.columns))
        cdef float *to = <float *>_data(out, cnp.NPY_FLOAT32, "out", (count, self._matrix.rows))
        cdef int status
        with nogil:
            status = language_multiply(&self._matrix, from_, count, to, accumulate)
        if status:
            raise MemoryError


def rms_norm(cnp.ndarray out, cnp.ndarray x, cnp.ndarray weight, float eps):
    """out (N, size) = x / sqrt(mean(x²) + eps) · weight (size), row by row."""
    cdef int64_t count = x.shape[0], size = x.shape[1]
    cdef const float *from_ = <const float *>_data(x, cnp.NPY_FLOAT32, "x", (count, size))
    cdef const float *by = <const float *>_data(weight, cnp.NPY_FLOAT32, "weight", (size,))
    cdef float *to = <float *>_data(out, cnp.NPY_FLOAT32, "out", (count, size))
    with nogil:
        language_rms_norm(to, from_, by, count, size, eps)


def swiglu(cnp.ndarray out, cnp.ndarray both):
    """out (N, size) = silu(gate) · up, where both (N, 2 size) holds gate and then up."""
    cdef int64_t count = out.shape[0], size = out.shape[1]
    cdef const float *from_ = <const float *>_data(both, cnp.NPY_FLOAT32, "both", (count, 2 * size))
    cdef float *to = <float *>_data(out, cnp.NPY_FLOAT32, "out", (count, size))
    with nogil:
        language_swiglu(to, from_, count, size)


def place(
    cnp.ndarray qkv, cnp.ndarray cosine, cnp.ndarray sine, cnp.ndarray slots, cnp.ndarray q, cnp.ndarray k, cnp.ndarray v,
    int64_t kv_heads, bint halves, q_norm, k_norm, float eps,
):
    """Rotates queries and keys, and puts keys and values into their pages.

    qkv: (N, (H + 2 G) D), overwritten. cosine, sine: (N, rotated / 2). slots: int64 (N,), page · 16 + place in it.
    q: (N, H, D), for the queries. k: (pages, G, D, 16), v: (pages, G, 16, D rounded up to 16). q_norm, k_norm: (D,) or
    None. halves: the pairs are (i, i + rotated / 2), otherwise (2 i, 2 i + 1).
    """
    cdef placing p
    cdef int64_t heads = q.shape[1], padded = (q.shape[2] + 15) // 16 * 16, pages = k.shape[0]
    p.count, p.heads, p.kv_heads, p.size = q.shape[0], heads, kv_heads, q.shape[2]
    p.rotated, p.halves, p.eps = 2 * cosine.shape[1], halves, eps
    if p.rotated > p.size:
        raise ShapeError(f"place: cannot rotate {p.rotated} of {p.size} numbers")
    p.qkv = <float *>_data(qkv, cnp.NPY_FLOAT32, "qkv", (p.count, (heads + 2 * kv_heads) * p.size))
    p.cosine = <const float *>_data(cosine, cnp.NPY_FLOAT32, "cosine", (p.count, p.rotated // 2))
    p.sine = <const float *>_data(sine, cnp.NPY_FLOAT32, "sine", (p.count, p.rotated // 2))
    p.slots = <const int64_t *>_data(slots, cnp.NPY_INT64, "slots", (p.count,))
    p.q = <float *>_data(q, cnp.NPY_FLOAT32, "q", (p.count, heads, p.size))
    p.k = <float *>_data(k, cnp.NPY_FLOAT32, "k", (pages, kv_heads, p.size, PAGE))
    p.v = <float *>_data(v, cnp.NPY_FLOAT32, "v", (pages, kv_heads, PAGE, padded))
    p.q_norm = p.k_norm = NULL
    if q_norm is not None:
        p.q_norm = <const float *>_data(q_norm, cnp.NPY_FLOAT32, "q_norm", (p.size,))
        p.k_norm = <const float *>_data(k_norm, cnp.NPY_FLOAT32, "k_norm", (p.size,))
    if p.count and not (0 <= slots.min() and slots.max() < pages * PAGE):
        raise ShapeError(f"place: expected slots from 0 to {pages * PAGE - 1}")
    with nogil:
        language_place(&p)


def attend(
    cnp.ndarray out, cnp.ndarray q, cnp.ndarray k, cnp.ndarray v, list stretches, int64_t kv_heads, int64_t window, float scale
):
    """Causal attention of stretches of sequences to all that their pages hold.

    q, out: (N, H, D). k, v: as in `place`. stretches: (first row, rows, position of the first, pages int32). Together
    they are the rows in their order. window: how many positions back are seen, 0 for all.
    """
    cdef attention a
    cdef int64_t count = q.shape[0], pages = k.shape[0], padded = (q.shape[2] + 15) // 16 * 16, i, at = 0
    cdef stretch *each
    cdef cnp.ndarray numbers
    a.heads, a.size, a.kv_heads, a.window, a.scale = q.shape[1], q.shape[2], kv_heads, window, scale
    if a.heads % kv_heads or window < 0:
        raise ShapeError(f"attend: {kv_heads} heads of keys do not divide {a.heads}, or window {window} is negative")
    a.q = <const float *>_data(q, cnp.NPY_FLOAT32, "q", (count, a.heads, a.size))
    a.out = <float *>_data(out, cnp.NPY_FLOAT32, "out", (count, a.heads, a.size))
    a.k = <const float *>_data(k, cnp.NPY_FLOAT32, "k", (pages, kv_heads, a.size, PAGE))
    a.v = <const float *>_data(v, cnp.NPY_FLOAT32, "v", (pages, kv_heads, PAGE, padded))
    a.stretch_count = len(stretches)
    each = <stretch *>malloc(sizeof(stretch) * (a.stretch_count + 1))
    if each == NULL:
        raise MemoryError
    cdef int status
    try:
        for i in range(a.stretch_count):
            each[i].first, each[i].count, each[i].start, numbers = stretches[i]
            if each[i].first != at or each[i].count < 1 or each[i].start < 0:
                raise ShapeError(f"attend: stretch {i} does not follow the one before it")
            at += each[i].count
            needed = -(-(each[i].start + each[i].count) // PAGE)
            each[i].pages = <const int32_t *>_data(numbers, cnp.NPY_INT32, "pages", (numbers.shape[0],))
            if numbers.shape[0] < needed or not (0 <= numbers[:needed].min() and numbers[:needed].max() < pages):
                raise ShapeError(f"attend: stretch {i} needs {needed} pages of {pages}")
        if at != count:
            raise ShapeError(f"attend: the stretches have {at} rows, q has {count}")
        a.stretches = each
        with nogil:
            status = language_attend(&a)
    finally:
        free(each)
    if status:
        raise MemoryError
