# cython: boundscheck=False, wraparound=False, freethreading_compatible=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
#   methods are the interpreter's own, which look at what they are given as self
"""What a tensor holds, and the short way of an operation: from tensors straight to a kernel of the cpu.

This file has the fields of a tensor and its operators; calls.pxi what is known of calls, tape.pxi the walk back,
watch.pxi what compiled calls depend on, repeat.pxi those that are as the one before, functions.pxi functions whose calls
are known.

`apply` knows calls by what they are of: the operation, the shapes and dtypes of its inputs, its attributes. The first
call of a kind goes the general way (`Tensor._apply_generally`), which checks it; from the second on its record is kept,
and a call fills in where its arrays lie. Whatever is not plain memory of the host in one piece goes the general way too,
so that there is one meaning and one text of every error.

Everything here runs with the interpreter lock held, but for kernels that take long, which run on a copy of the record.
"""

from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.dict cimport PyDict_GetItem, PyDict_Next
from cpython.object cimport Py_EQ, Py_NE, PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.math cimport fabs
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

cimport cython
cimport numpy as cnp

from operator import itemgetter

import numpy as np

from cyxcore import casting
from cyxcore.errors import GradientError, KernelError
from cyxcore.kernels import cpu

cnp.import_array()

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *)
    bint PyCell_Check(object)
    PyObject *PyCell_GET(object)
    int PySlice_Unpack(object, Py_ssize_t *, Py_ssize_t *, Py_ssize_t *) except -1
    Py_ssize_t PySlice_AdjustIndices(Py_ssize_t, Py_ssize_t *, Py_ssize_t *, Py_ssize_t) noexcept

cdef extern from "numpy/arrayobject.h":
    object PyArray_New(PyTypeObject *, int, cnp.npy_intp *, int, cnp.npy_intp *, void *, int, int, PyObject *)
    object PyArray_NewCopy(cnp.ndarray, cnp.NPY_ORDER)
    PyTypeObject PyArray_Type

cdef extern from "reuse.h":
    void cyx_reuse(PyTypeObject *)
    void cyx_reuse_too(PyTypeObject *)
    int cyx_inherit_operator(PyTypeObject *, object, object) except -1

cdef extern from "cyx.h" nogil:
    enum:
        CYX_INLINE_INPUTS
    ctypedef enum cyx_status:
        CYX_OK
    ctypedef struct cyx_array:
        void *data
        int64_t size
        int64_t shape[8]
        int32_t ndim
    ctypedef struct cyx_call:
        cyx_array *inputs "in"
        int64_t ints[40]
        double work
        int32_t group
        int32_t elided
        cyx_array out
        cyx_array own_in[5]
    ctypedef struct cyx_message:
        pass

ctypedef cyx_status (*runner)(const cyx_call *, int64_t, int64_t *, cyx_message *) noexcept nogil
cdef runner _run = <runner>PyCapsule_GetPointer(cpu._runner, "cyxcore.kernels.cpu._runner")

cdef extern from "blocks.h" nogil:
    ctypedef struct cyx_blocks:
        void *(*take)(size_t)
        void (*give_back)(void *)

cdef const cyx_blocks *_blocks = <const cyx_blocks *>PyCapsule_GetPointer(cpu._blocks, "cyxcore.kernels.cpu._blocks")


# memory -------------------------------------------------------------------------------------------

cdef enum:
    ALIGN_BYTES = 64
    SIZES = 11  # of blocks that are kept here: 64 bytes, 128 ... 64 KiB; larger ones: src/blocks.c
    KEPT_BYTES = 1 << 19  # of one size

cdef void *_kept[SIZES]  # lists of free blocks, each beginning with a pointer to the next
cdef int64_t _kept_count[SIZES]


cdef inline int _size_class(size_t count) noexcept:
    cdef int found = 0
    if count > <size_t>ALIGN_BYTES << (SIZES - 1):
        return SIZES
    while (<size_t>ALIGN_BYTES << found) < count:
        found += 1
    return found


cdef inline char *_taken(size_t count, int size_class) except NULL:
    """A block of at least `count` bytes."""
    cdef void *memory
    if size_class < SIZES:
        memory = _kept[size_class]
        if memory != NULL:
            _kept[size_class] = (<void **>memory)[0]
            _kept_count[size_class] -= 1
            return <char *>memory
        count = <size_t>ALIGN_BYTES << size_class
        if posix_memalign(&memory, ALIGN_BYTES, count):
            raise MemoryError
        return <char *>memory
    memory = _blocks.take(count)
    if memory == NULL:
        raise MemoryError
    return <char *>memory


cdef inline void _given_back(char *data, int size_class) noexcept:
    if size_class >= SIZES:
        _blocks.give_back(data)
    elif (_kept_count[size_class] << size_class) * ALIGN_BYTES < KEPT_BYTES:
        (<void **>data)[0] = _kept[size_class]
        _kept[size_class] = data
        _kept_count[size_class] += 1
    else:
        free(data)


@cython.final
cdef class Buffer:
    """A block of memory that several have: tensors, or arrays."""

    cdef char *data
    cdef int size_class

    def __dealloc__(self):
        if self.data != NULL:
            _given_back(self.data, self.size_class)


# what is remembered -------------------------------------------------------------------------------

cdef int64_t _clock = 0

cdef extern from *:
    """
    static __thread int recording = 1; /* a thread's own: a step in one must not end what another remembers */
    """
    int _recording "recording"


def now() -> int:
    """The time: later than all that was recorded or written before."""
    global _clock
    _clock += 1
    return _clock


def later(int64_t count) -> int:
    """now() after so many times that nothing else has."""
    global _clock
    _clock += count
    return _clock


def is_recording() -> bool:
    """Whether results of this thread remember what they came from."""
    return _recording != 0


def set_recording(bint on) -> None:
    global _recording
    _recording = on


cdef class Call
cdef class Dispatched

cdef enum:
    NO_TYPE = -1  # of elements that are not in the host's memory, or not as the cpu reads them


@cython.final
@cython.freelist(64)
cdef class Memory:
    """What tensors of one memory have in common."""

    cdef public double written  # when it was last written to
    cdef public double put  # when that last changed what the tensor remembers

    def __init__(self, double written=0):
        self.written = written


cdef struct Index:
    int rank
    int left  # axes of what it leaves
    bint whole  # nothing is left out
    Py_ssize_t starts[8]
    Py_ssize_t stops[8]
    Py_ssize_t steps[8]


@cython.final
@cython.freelist(64)
cdef class View:
    """How a tensor comes from the one whose memory it shares."""

    cdef public object base  # None: memory with gaps that is no tensor's
    cdef public double since  # the time at which what the view remembers was right
    cdef View before  # of whose steps come first, or None
    cdef tuple own  # steps; None: not made of the index yet
    cdef Index index
    cdef tuple shape  # what the index leaves

    def __init__(self, base, tuple steps, double since):
        self.base, self.own, self.since = base, steps, since

    @property
    def steps(self) -> tuple:
        """Operations and their attributes."""
        cdef View view = self
        cdef list found = []  # the last first; no recursion: a view of a view may have a long row before it
        while view is not None:
            if view.own is None:
                view.own = _steps_of(&view.index, view.shape)
            found.extend(reversed(view.own))
            view = view.before
        return tuple(reversed(found))

    def __dealloc__(self):
        """What is before goes one after the other, not one within the other."""
        cdef View last = self.before
        cdef View following
        self.before = None
        while last is not None and Py_REFCNT(<PyObject *>last) == 1:
            following = last.before
            last.before = None
            last, following = following, None  # which ends the one that was last


@cython.final
@cython.freelist(256)
cdef class Node:
    """What a result remembers: the operation (a name, or an object with a gradient of its own), inputs and time."""

    cdef Call call  # where it is one that is known; otherwise op and attrs
    cdef object own_op
    cdef object own_attrs
    cdef object first
    cdef object second
    cdef object third
    cdef tuple many  # inputs, where they are more than three
    cdef int count
    cdef uint64_t asked  # a bit for each of the first 64 inputs: whether it required a gradient then
    cdef bytes asked_beyond  # a byte for each of the others
    cdef readonly int64_t time
    cdef readonly bint forgotten  # a walk back has given back what it was for

    def __init__(self, op, tuple inputs, attrs, int64_t time):
        cdef int place
        self.own_op, self.own_attrs, self.time, self.count = op, attrs, time, len(inputs)
        for place in range(min(self.count, 64)):
            if (<Held>inputs[place]).requires_grad:
                self.asked |= <uint64_t>1 << place
        if self.count > 64:
            self.asked_beyond = bytes([(<Held>x).requires_grad for x in inputs[64:]])
        if self.count > 3:
            self.many = inputs
        else:
            if self.count > 0:
                self.first = inputs[0]
            if self.count > 1:
                self.second = inputs[1]
            if self.count > 2:
                self.third = inputs[2]

    @property
    def op(self):
        return self.own_op if self.call is None else self.call.op

    @property
    def attrs(self):
        return self.own_attrs if self.call is None else self.call.attrs

    @property
    def inputs(self) -> tuple:
        if self.many is not None:
            return self.many
        return tuple([<object>_input_of(self, place) for place in range(self.count)])

    @property
    def followed(self) -> list:
        """Of each input, whether it required a gradient when this was recorded."""
        return [_was_asked(self, place) for place in range(self.count)]

    cpdef void forget(self) noexcept:
        """Let go of the inputs, and of what the operation has kept."""
        self.forgotten, self.count = True, 0
        self.own_op = self.own_attrs = self.first = self.second = self.third = self.many = None


cdef inline bint _was_asked(Node node, int place) noexcept:
    """Whether an input required a gradient when the node was recorded. One that was frozen then gets none later."""
    return node.asked >> place & 1 if place < 64 else (<const char *>node.asked_beyond)[place - 64]


cdef inline PyObject *_input_of(Node node, int place) noexcept:
    if node.many is not None:
        return <PyObject *>node.many[place]
    return <PyObject *>node.first if place == 0 else <PyObject *>node.second if place == 1 else <PyObject *>node.third


# tensors ------------------------------------------------------------------------------------------

@cython.c_api_binop_methods(True)
cdef class Held:
    """The fields of a tensor, its memory, its operators, and the methods that loops call most.

    A method here does what the one of its name in Value (or Leaving) does, and asks that wherever a call is not plain.
    """

    cdef object _array  # where it is computed; None: not made of the memory yet
    cdef object _keeper  # a Buffer or an array that has the memory, where several have it
    cdef char *_pointer  # to elements of the host in one piece, of the cpu's types; otherwise NULL
    cdef int _numpy_type  # of the elements, with or without gaps between them
    cdef int _block  # 1 + size class of the block at _pointer, where it is of nobody else; otherwise 0
    cdef int64_t _walk  # the last walk back that came by, and the place it gave this tensor
    cdef int _place
    cdef public tuple shape
    cdef public str dtype
    cdef public object grad
    cdef public Node _op
    cdef public Memory _memory
    cdef public View _view
    cdef public object _hooks
    cdef public bint requires_grad

    def __dealloc__(self):
        if self._block:
            _given_back(self._pointer, self._block - 1)

    @property
    def _data(self):
        _spoil()
        return _array_of(self)

    @_data.setter
    def _data(self, array):
        cdef cnp.ndarray held
        cdef int block = self._block
        if block:
            self._block = 0
            _given_back(self._pointer, block - 1)
        self._array, self._keeper, self._pointer = array, None, NULL
        self._numpy_type = NO_TYPE
        if type(array) is cnp.ndarray:
            held = <cnp.ndarray>array
            if cnp.PyArray_ISALIGNED(held) and cnp.PyArray_ISNOTSWAPPED(held):
                self._numpy_type = cnp.PyArray_TYPE(held)
                if cnp.PyArray_IS_C_CONTIGUOUS(held):
                    self._pointer = <char *>cnp.PyArray_DATA(held)

    cdef inline bint _is_on_host(self) noexcept:
        return self._array is None or type(self._array) is cnp.ndarray

    @property
    def _on_host(self) -> bool:
        return self._is_on_host()

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        """That of `_exported()`: only a type made in C can have the buffer protocol before Python 3.12."""
        PyObject_GetBuffer(self._exported(), buffer, flags)

    def _apply(self, str op, inputs, dict attrs):
        cdef PyObject *tensors[5]
        cdef Py_ssize_t i, count
        cdef tuple given = inputs if type(inputs) is tuple else tuple(inputs)
        count = len(given)
        if 0 < count <= CYX_INLINE_INPUTS:
            for i in range(count):
                if not isinstance(given[i], Held):
                    break
                tensors[i] = <PyObject *>given[i]
            else:
                return _applied(op, tensors, count, attrs)
        _spoil()
        return self._apply_generally(op, given, attrs)

    def _next(self, str op, *others, **attrs):
        """An update op whose result takes the place of this tensor."""
        cdef PyObject *tensors[5]
        cdef Py_ssize_t i, count = 1 + len(others)
        if count <= CYX_INLINE_INPUTS:
            tensors[0] = <PyObject *>self
            for i in range(count - 1):
                if not isinstance(others[i], Held):
                    break
                tensors[i + 1] = <PyObject *>others[i]
            else:
                if _updated(self, op, tensors, count, attrs):
                    return self
        _spoil()
        return self._next_generally(op, *others, **attrs)

    def _all_below(self, int64_t size):
        """Whether these are int64 in one piece, all of 0..size - 1."""
        cdef Py_ssize_t i, count = 1
        cdef uint64_t signs = 0  # the first bit: that of anything below 0, and of anything above size - 1
        cdef const uint64_t *values = <const uint64_t *>self._pointer
        for length in self.shape:
            count *= length
        if self.dtype != "int64" or values == NULL:
            return False
        _spoil()
        for i in range(count):
            signs |= values[i] | (<uint64_t>(size - 1) - values[i])
        return signs >> 63 == 0

    def _bounds(self):
        """(the least, the greatest) of int64 elements in one piece, None where there are none or the way is longer."""
        cdef Py_ssize_t i, count = 1
        cdef int64_t least, most
        cdef const int64_t *values = <const int64_t *>self._pointer
        for size in self.shape:
            count *= size
        if self.dtype != "int64" or values == NULL or not count:
            return None
        _spoil()
        least = most = values[0]
        for i in range(1, count):
            least, most = min(least, values[i]), max(most, values[i])
        return least, most

    # operators --------------------------------------------------------------------------------

    def __add__(left, right):
        return _operated("add", left, right)

    def __sub__(left, right):
        return _operated("sub", left, right)

    def __mul__(left, right):
        return _operated("mul", left, right)

    def __truediv__(left, right):
        return _operated("div", left, right)

    def __matmul__(left, right):
        if isinstance(left, Held) and isinstance(right, Held) and (<Held>left).dtype != "bool" and not _is_casting():
            if len((<Held>left).shape) == 2 and len((<Held>right).shape) == 2 and (<Held>left).dtype is (<Held>right).dtype:
                return _of_two("matmul", <Held>left, <Held>right)
            if (<Held>left).dtype is (<Held>right).dtype and _has_vector(<Held>left, <Held>right):
                return _times_vector(<Held>left, <Held>right)
        return _general["__matmul__"](left, right) if isinstance(left, Held) else _general["__rmatmul__"](right, left)

    def __pow__(left, right, modulo):
        if isinstance(left, Held):
            if type(right) is int and right == 2:
                return _alone("square", <Held>left, False)
            return _general["__pow__"](left, right)
        return _general["__rpow__"](right, left)

    def __neg__(self):
        return _alone("neg", self, False)

    def __abs__(self):
        return _alone("abs", self, False)

    def __iadd__(self, other):
        return _into("add", "__iadd__", self, other)

    def __isub__(self, other):
        return _into("sub", "__isub__", self, other)

    def __imul__(self, other):
        return _into("mul", "__imul__", self, other)

    def __itruediv__(self, other):
        return _into("div", "__itruediv__", self, other)

    def __richcmp__(left, right, int order):
        if (right is None or type(right) is str) and (order == Py_EQ or order == Py_NE):
            return NotImplemented  # so that they are not equal, as for other objects
        return _operated(_ORDERS[order], left, right)

    def __hash__(self):
        return object.__hash__(self)

    # element by element -----------------------------------------------------------------------

    def exp(self):
        return _alone("exp", self, True)

    def log(self):
        return _alone("log", self, True)

    def sqrt(self):
        return _alone("sqrt", self, True)

    def tanh(self):
        return _alone("tanh", self, True)

    def sigmoid(self):
        """1 / (1 + exp(-x))."""
        return _alone("sigmoid", self, True)

    def relu(self):
        """max(x, 0)."""
        return _alone("relu", self, False)

    def abs(self):
        return _alone("abs", self, False)

    def square(self):
        return _alone("square", self, False)

    def sin(self):
        return _alone("sin", self, True)

    def cos(self):
        return _alone("cos", self, True)

    def astype(self, dtype):
        if type(dtype) is str:
            if dtype == self.dtype:
                return self
            name = _FROM_NAMES.get(dtype)
            if name is not None:
                return _cast_to(self, <str>name)
        return _general["astype"](self, dtype)

    def copy(self):
        return _cast_to(self, self.dtype)

    # reductions -------------------------------------------------------------------------------

    def sum(self, axis=None, keepdims=False, **words):
        """The sum; integers and bools are summed as int64, unsigned ones as uint64, as in NumPy."""
        return _reduced("sum", self, axis, keepdims, words)

    def mean(self, axis=None, keepdims=False, **words):
        return _reduced("mean", self, axis, keepdims, words)

    def max(self, axis=None, keepdims=False, **words):
        """The largest; NaN if there is one. With `dim` as in PyTorch: (values, indices) along that axis."""
        return _reduced("max", self, axis, keepdims, words)

    def min(self, axis=None, keepdims=False, **words):
        """The smallest; NaN if there is one. With `dim` as in PyTorch: (values, indices) along that axis."""
        return _reduced("min", self, axis, keepdims, words)

    def argmax(self, axis=None, keepdims=False, **words):
        """Place of the largest element, the first among equals; of the flattened array without an axis."""
        cdef Py_ssize_t rank = len(self.shape)
        if words or keepdims is not False or type(axis) is not int or not -rank <= axis < rank or rank > 8:
            return _general["argmax"](self, axis, keepdims, **words)
        return _with_attrs("argmax", self, <dict>_along_axis[axis + rank if axis < 0 else axis])

    # the same memory --------------------------------------------------------------------------

    def reshape(self, *shape):
        cdef tuple sizes = _sizes_of(self, shape)
        if sizes is None:
            return _general["reshape"](self, *shape)
        return self if sizes == self.shape else _with_attrs("reshape", self, {"shape": sizes})

    def detach(self):
        """The same data without a past. What is written to one is seen by the other."""
        cdef Held made
        _spoil()
        if self._pointer == NULL or not _shares(self):
            return self._detached()
        made = _sharing(self, self._pointer, self.shape)
        made._memory = _memory_of(self)
        return made

    def __getitem__(self, index):
        if _is_here(self) and _shares(self) and (self._view is None or _as_it_is(self)):
            found = _rows_of(self, <Held>index) if isinstance(index, Held) else _part_of(self, index)
            if found is not None:
                return found
        return self._picked(index)

    @property
    def T(self):
        cdef Py_ssize_t rank = len(self.shape)
        return _general["transpose"](self) if rank > 8 else _permuted(self, _backwards_up_to[rank])

    def permute(self, *axes):
        """Axes in a new order."""
        cdef tuple order = _order_of(self, axes)
        return _general["permute"](self, *axes) if order is None else _permuted(self, order)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self):
        if not self.shape:
            raise TypeError("len: a 0-d tensor has no length")
        return self.shape[0]

    # numbers ----------------------------------------------------------------------------------

    def item(self):
        """The one element as a Python number."""
        number = _number_of(self)
        return _general["item"](self) if number is None else number

    def __float__(self):
        number = _number_of(self)
        return _general["__float__"](self) if number is None else float(number)

    def __int__(self):
        number = _number_of(self)
        return _general["__int__"](self) if number is None else int(number)

    def __bool__(self):
        number = _number_of(self)
        return _general["__bool__"](self) if number is None else bool(number)

for _name in ("__add__", "__sub__", "__mul__", "__truediv__", "__matmul__"):
    cyx_inherit_operator(<PyTypeObject *>Held, _name, getattr(np.ndarray, _name))

cdef tuple _ORDERS = ("less", "less_equal", "equal", "not_equal", "greater", "greater_equal")  # by Py_LT ... Py_GE


cdef object _array_of(Held tensor):
    """The array of a tensor, made of its memory when somebody asks for it."""
    cdef cnp.npy_intp dims[32]
    cdef Py_ssize_t i, rank
    cdef cnp.ndarray array
    if tensor._array is not None:
        return tensor._array
    if tensor._pointer == NULL:
        return None  # a tensor that is being made
    rank = len(tensor.shape)
    for i in range(rank):
        dims[i] = tensor.shape[i]
    keeper = _keeper_of(tensor)
    array = cnp.PyArray_SimpleNewFromData(<int>rank, dims, tensor._numpy_type, tensor._pointer)
    cnp.set_array_base(array, keeper)
    tensor._array, tensor._keeper = array, None
    return array


cdef object _keeper_of(Held tensor):
    """What has the memory of a tensor in one piece, for others that have it too."""
    cdef Buffer made
    if tensor._keeper is not None:
        return tensor._keeper
    if tensor._array is not None:
        return tensor._array
    made = Buffer.__new__(Buffer)
    made.data, made.size_class = tensor._pointer, tensor._block - 1
    tensor._block, tensor._keeper = 0, made
    return made


# what the rest of the library gives, once
cdef object _tensor_type = None
cdef tuple _nothing = ()
cdef dict _devices = None
cdef bytearray _straight = bytearray(1)  # whether there is a short way at the moment
cdef bytearray _inside = casting.inside
cdef object _infer = None
cdef object _look = None  # memory.seen
cdef dict _general = None  # the methods of Value and of Leaving
cdef object _operate = None
cdef frozenset _views = frozenset()  # operations whose results share the memory of their input
cdef frozenset _no_gradient = frozenset()
cdef frozenset _differentiable = frozenset()


def connect(
    tensor_type, dict devices, infer, look, dict general, operate, frozenset views, frozenset no_gradient,
    frozenset differentiable,
):
    """Tell this module of the class of results, the globals of cyxcore.device, and the general ways."""
    global _tensor_type, _devices, _straight, _infer, _look, _general, _operate, _views, _no_gradient, _differentiable
    _tensor_type, _devices, _straight, _infer = tensor_type, devices, devices["straight"], infer
    _look, _general, _operate = look, general, operate
    _FROM_NAMES.update({name: name for name in ("float32", "float64", "int64", "int32", "bool", "uint8")})
    _views, _no_gradient, _differentiable = views, no_gradient, differentiable
    cyx_reuse(<PyTypeObject *>tensor_type)
    also_plain(tensor_type)


def becomes(kind):
    """A class that tensors may change to: of one like theirs."""
    cyx_reuse_too(<PyTypeObject *>kind)
    return kind


cdef inline bint _is_casting():
    """Whether any thread is within autocast, where products are the general way's."""
    return PyByteArray_AS_STRING(_inside)[0]


cdef inline Held _new():
    return <Held>(<PyTypeObject *>_tensor_type).tp_new(<type>_tensor_type, <PyObject *>_nothing, NULL)


cdef inline Held _result(Call call):
    cdef Held made = _new()
    made._pointer = _taken(call.out_bytes, call.size_class)
    made._block, made._numpy_type = 1 + call.size_class, call.numpy_type
    made.shape = call.shape
    made.dtype = call.dtype
    return made


cdef Held _sharing(Held tensor, char *pointer, tuple shape):
    """A tensor in the memory of another in one piece."""
    cdef Held made = _new()
    made._keeper = _keeper_of(tensor)
    made._pointer, made._numpy_type, made.shape, made.dtype = pointer, tensor._numpy_type, shape, tensor.dtype
    return made


include "calls.pxi"
include "tape.pxi"
include "watch.pxi"
include "repeat.pxi"

# operators ----------------------------------------------------------------------------------------

cdef list _constants = [None] * 256
cdef tuple _FLOATS = ("float32", "float64")


@cython.final
cdef class Constant:
    """A number as a tensor."""

    cdef double value
    cdef str dtype
    cdef Held tensor


cdef Held _constant(object number, Held beside):
    """A float or int as a scalar of the dtype it has beside a tensor, or None where the general way must decide."""
    cdef double value
    cdef uint64_t bits
    cdef Constant known
    cdef Held made
    cdef bint single = beside.dtype == "float32"
    if not _is_here(beside) or not (single or beside.dtype == "float64"):
        return None
    if type(number) is float:
        value = number
        if single and fabs(value) > 3.4028234e38:  # infinite, NaN or too large
            return None
    elif type(number) is int and -(1 << 24) <= number <= 1 << 24:
        value = number
    else:
        return None
    memcpy(&bits, &value, 8)
    place = (bits * <uint64_t>0x9E3779B97F4A7C15) >> 56
    known = _constants[place]
    if known is not None and known.dtype is beside.dtype and memcmp(&known.value, &value, 8) == 0:
        return known.tensor
    made = beside._constant(number, beside.dtype)
    made.dtype = beside.dtype
    known = Constant.__new__(Constant)
    known.value, known.dtype, known.tensor = value, beside.dtype, made
    _constants[place] = known
    return made


cdef object _operated(str op, object left, object right):
    """left op right: of two tensors of one dtype, or a tensor and a number, at once."""
    cdef PyObject *tensors[2]
    cdef Held constant
    if isinstance(left, Held):
        if isinstance(right, Held):
            if (<Held>left).dtype is (<Held>right).dtype and (
                (<Held>left).dtype is not _BOOL if op is not _DIV else (<Held>left).dtype in _FLOATS
            ):
                tensors[0], tensors[1] = <PyObject *>left, <PyObject *>right
                return _applied(op, tensors, 2, None)
        elif type(right) is float or type(right) is int:
            constant = _constant(right, <Held>left)
            if constant is not None:
                tensors[0], tensors[1] = <PyObject *>left, <PyObject *>constant
                return _applied(op, tensors, 2, None)
    elif type(left) is float or type(left) is int:
        constant = _constant(left, <Held>right)
        if constant is not None:
            tensors[0], tensors[1] = <PyObject *>constant, <PyObject *>right
            return _applied(op, tensors, 2, None)
    return _operate[op](left, right)


cdef str _DIV = "div"
cdef str _BOOL = "bool"

include "methods.pxi"
include "functions.pxi"
