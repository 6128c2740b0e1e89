# What the methods of Held do where a call is plain (tensors.pyx).

cdef str _FLOAT32 = "float32"
cdef dict _FROM_NAMES = {}  # the names of dtypes, by themselves: a name is always the same object
cdef dict _interned = {}  # shapes and the like, by themselves: calls are known by the very objects
cdef list _reductions = [None] * 64  # attributes, by twice the axis (16 + rank: all), one more where it is kept
cdef list _along_axis = [{"axis": axis} for axis in range(8)]


cdef inline tuple _same(tuple sizes):
    """Always the same object for equal sizes."""
    cdef PyObject *found = PyDict_GetItem(_interned, sizes)
    if found != NULL:
        return <tuple>found
    if len(_interned) >= MOST_KNOWN:
        _interned.clear()
    _interned[sizes] = sizes
    return sizes


cdef inline object _of_two(str op, Held left, Held right):
    cdef PyObject *tensors[2]
    tensors[0], tensors[1] = <PyObject *>left, <PyObject *>right
    return _applied(op, tensors, 2, None)


cdef inline bint _has_vector(Held left, Held right):
    """Whether one factor at least is a vector, which is not empty, and none is a number."""
    cdef Py_ssize_t rows = len(left.shape), columns = len(right.shape)
    return (rows == 1 and columns > 0 and left.shape[0] > 0) or (columns == 1 and rows > 0 and right.shape[0] > 0)


cdef object _times_vector(Held left, Held right):
    """A product in which vectors are matrices of one row, on the left, or of one column."""
    cdef Held rows = left, columns = right, made
    cdef tuple shape
    if len(left.shape) == 1:
        rows = <Held>_with_attrs("reshape", left, {"shape": _same((1, left.shape[0]))})
    if len(right.shape) == 1:
        columns = <Held>_with_attrs("reshape", right, {"shape": _same((right.shape[0], 1))})
    made = <Held>_of_two("matmul", rows, columns)
    shape = made.shape
    if len(right.shape) == 1:
        shape = shape[:-1]
        if len(left.shape) == 1:
            shape = shape[:-1]
    else:
        shape = shape[:-2] + shape[-1:]
    return _with_attrs("reshape", made, {"shape": _same(shape)})


cdef inline object _with_attrs(str op, Held tensor, dict attrs):
    cdef PyObject *tensors[1]
    tensors[0] = <PyObject *>tensor
    return _applied(op, tensors, 1, attrs)


cdef object _alone(str op, Held tensor, bint inexact):
    if inexact and tensor.dtype is not _FLOAT32 and tensor.dtype not in _FLOATS:
        return _general[op](tensor)
    return _with_attrs(op, tensor, None)


cdef object _cast_to(Held tensor, str dtype):
    return _with_attrs("cast", tensor, {"dtype": dtype})


cdef object _reduced(str op, Held tensor, axis, keepdims, dict words):
    """Over all axes, or over one."""
    cdef Py_ssize_t rank = len(tensor.shape), place = -1
    cdef bint exact = op is _SUM or op is _MEAN  # of integers these are something else
    if words or rank > 8 or type(keepdims) is not bool or tensor.dtype == "bool":
        return _general[op](tensor, axis, keepdims, **words)
    if exact and tensor.dtype not in _FLOATS:
        return _general[op](tensor, axis, keepdims)
    if op is _MEAN and 0 in tensor.shape:  # maybe of nothing
        return _general[op](tensor, axis, keepdims)
    if axis is None:
        place = 16 + rank
    elif type(axis) is int and -rank <= axis < rank:
        place = axis if axis >= 0 else axis + rank
    else:
        return _general[op](tensor, axis, keepdims)
    attrs = _reductions[2 * place + (keepdims is True)]
    if attrs is None:
        axes = (place,) if place < 16 else tuple(range(rank))
        attrs = _reductions[2 * place + (keepdims is True)] = {"axes": axes, "keepdims": keepdims}
    return _with_attrs(op, tensor, <dict>attrs)


cdef str _SUM = "sum"
cdef str _MEAN = "mean"


cdef tuple _sizes_of(Held tensor, tuple given):
    """The sizes that reshape is asked for, -1 among them known; None where the general way must say what is wrong."""
    cdef Py_ssize_t known = 1, count = 1, unknown = -1, i, size
    if len(given) == 1 and (type(given[0]) is tuple or type(given[0]) is list):
        given = tuple(given[0])
    if len(given) > 8:
        return None
    for i in range(len(given)):
        if type(given[i]) is not int or not -1 <= given[i] <= 1 << 40:
            return None
        size = given[i]
        if size == -1 and unknown < 0:
            unknown = i
        elif size < 0:
            return None
        else:
            known *= size
    for each in tensor.shape:
        count *= <Py_ssize_t>each
    if unknown >= 0:
        if not known or count % known:
            return None
        given = given[:unknown] + (count // known,) + given[unknown + 1 :]
    elif known != count:
        return None
    return _same(given)


# memory of several tensors -------------------------------------------------------------------------


cdef inline Memory _memory_of(Held tensor):
    if tensor._memory is None:
        tensor._memory = Memory.__new__(Memory)
    return tensor._memory


cdef inline int _item_bytes(int numpy_type) noexcept:
    """0 for what is not among these."""
    if numpy_type == cnp.NPY_FLOAT32 or numpy_type == cnp.NPY_INT32:
        return 4
    if numpy_type == cnp.NPY_FLOAT64 or numpy_type == cnp.NPY_INT64:
        return 8
    return numpy_type == cnp.NPY_BOOL or numpy_type == cnp.NPY_UINT8


cdef inline bint _is_open(Held tensor):
    """Whether others may have its memory without asking whose it is."""
    return tensor._array is None or cnp.PyArray_ISWRITEABLE(<cnp.ndarray>tensor._array)


cdef inline bint _shares(Held tensor):
    """Whether a view of it can be made here."""
    return _item_bytes(tensor._numpy_type) and _is_open(tensor)


cdef inline bint _is_here(Held tensor):
    """Whether its elements are in the host's memory and as the cpu reads them, gaps or not."""
    return tensor._pointer != NULL or (tensor._array is not None and _item_bytes(tensor._numpy_type) != 0)


cdef inline char *_start_of(Held tensor):
    return tensor._pointer if tensor._pointer != NULL else <char *>cnp.PyArray_DATA(<cnp.ndarray>tensor._array)


cdef Held _viewed(Held tensor, char *start, tuple shape, cnp.npy_intp *strides, tuple steps, Index *index):
    """A view. strides: in bytes; NULL: it lies in one piece. How it comes about: by steps, or an index."""
    cdef cnp.npy_intp sizes[8]
    cdef Held made
    cdef Memory memory = _memory_of(tensor)
    cdef View view
    cdef int i, rank = <int>len(shape)
    if strides != NULL:
        for i in range(rank):
            sizes[i] = shape[i]
        if _in_one_piece(sizes, strides, rank, _item_bytes(tensor._numpy_type)):
            strides = NULL
    if strides == NULL:
        made = _sharing(tensor, start, shape)
    else:
        array = PyArray_New(
            &PyArray_Type, rank, sizes, tensor._numpy_type, strides, start, 0,
            cnp.NPY_ARRAY_WRITEABLE | cnp.NPY_ARRAY_ALIGNED, NULL,
        )  # fmt: skip
        cnp.set_array_base(<cnp.ndarray>array, _keeper_of(tensor))
        made = _new()
        made._array, made._numpy_type, made.shape, made.dtype = array, tensor._numpy_type, shape, tensor.dtype
    view = View.__new__(View)
    if tensor._view is None or tensor._view.base is None:
        view.base = tensor
    else:
        view.base, view.before = tensor._view.base, tensor._view
    if index == NULL:
        view.own = steps
    else:
        view.index, view.shape = index[0], shape
    view.since = memory.put
    made._memory, made._view = memory, view
    return made


cdef inline bint _in_one_piece(cnp.npy_intp *sizes, cnp.npy_intp *strides, int rank, Py_ssize_t item) noexcept:
    cdef Py_ssize_t expected = item
    cdef int i
    for i in range(rank):
        if sizes[i] == 0:
            return True
    for i in range(rank - 1, -1, -1):
        if sizes[i] != 1:
            if strides[i] != expected:
                return False
            expected *= sizes[i]
    return True


cdef object _packed(Held tensor):
    """The array of a tensor with gaps, without them: a copy."""
    if cnp.PyArray_SIZE(<cnp.ndarray>tensor._array) > 1 << 14:
        return tensor._dense()  # kernels move blocks better
    return PyArray_NewCopy(<cnp.ndarray>tensor._array, cnp.NPY_CORDER)


cdef object _part_of(Held tensor, index):
    """tensor[index] of integers, slices that go forward and `...`. None for all others."""
    cdef cnp.npy_intp strides[8]
    cdef cnp.npy_intp kept[8]
    cdef Index found
    cdef Py_ssize_t *starts = found.starts
    cdef Py_ssize_t *stops = found.stops
    cdef Py_ssize_t *steps = found.steps
    cdef Py_ssize_t counts[8]
    cdef bint dropped[8]
    cdef Py_ssize_t rank = len(tensor.shape), given = 1, axis, at = 0, size, item = _item_bytes(tensor._numpy_type)
    cdef int left = 0
    cdef bint whole = True, stretched = False
    cdef char *start = _start_of(tensor)
    cdef tuple parts, last
    cdef object size_of_axis
    if not 0 < rank <= 8:
        return None
    parts = <tuple>index if type(index) is tuple else (index,)
    given = len(parts)
    if tensor._pointer == NULL:
        for axis in range(rank):
            strides[axis] = cnp.PyArray_STRIDE(<cnp.ndarray>tensor._array, <int>axis)
    else:
        size = item
        for axis in range(rank - 1, -1, -1):
            strides[axis] = size
            size *= <Py_ssize_t>tensor.shape[axis]
    axis = 0
    for at in range(given):
        part = parts[at]
        if part is Ellipsis:
            if stretched or rank - axis < given - at - 1:
                return None
            stretched = True
            while rank - axis > given - at - 1:
                size = tensor.shape[axis]
                starts[axis], stops[axis], steps[axis], counts[axis], dropped[axis] = 0, size, 1, size, False
                axis += 1
            continue
        if axis == rank:
            return None
        size = tensor.shape[axis]
        if type(part) is int:
            if not -size <= part < size:
                return None
            starts[axis] = part
            if starts[axis] < 0:
                starts[axis] += size
            stops[axis], steps[axis], counts[axis], dropped[axis] = starts[axis] + 1, 1, 1, True
        elif type(part) is slice:
            PySlice_Unpack(part, &starts[axis], &stops[axis], &steps[axis])
            if steps[axis] < 1:
                return None
            counts[axis] = PySlice_AdjustIndices(size, &starts[axis], &stops[axis], steps[axis])
            stops[axis], dropped[axis] = max(starts[axis], stops[axis]), False
        else:
            return None
        axis += 1
    while axis < rank:
        size = tensor.shape[axis]
        starts[axis], stops[axis], steps[axis], counts[axis], dropped[axis] = 0, size, 1, size, False
        axis += 1
    for axis in range(rank):
        whole = whole and starts[axis] == 0 and steps[axis] == 1 and stops[axis] == <Py_ssize_t>tensor.shape[axis]
        start += starts[axis] * strides[axis]
        if not dropped[axis]:
            kept[left] = strides[axis] * steps[axis]
            left += 1
    if whole and left == rank:
        return tensor
    last = PyTuple_New(left)
    left = 0
    for axis in range(rank):
        if not dropped[axis]:
            size_of_axis = counts[axis]
            Py_INCREF(size_of_axis)
            PyTuple_SET_ITEM(last, left, size_of_axis)
            left += 1
    last = _same(last)
    found.rank, found.left, found.whole = <int>rank, left, whole
    if _recorder == NULL and not (_recording and tensor.requires_grad):
        return _viewed(tensor, start, last, kept, None, &found)
    result = tensor
    for op, attrs in _steps_of(&found, last):
        result = _with_attrs(op, <Held>result, attrs)
    return result


cdef object _rows_of(Held tensor, Held indices):
    """tensor[indices] of int64 indices none of which is negative. None for all others."""
    cdef PyObject *tensors[2]
    if not tensor.shape or not indices.shape:
        return None
    if not indices._all_below(tensor.shape[0]):
        return None
    tensors[0], tensors[1] = <PyObject *>tensor, <PyObject *>indices
    return _applied("take", tensors, 2, _FIRST_AXIS)


cdef dict _FIRST_AXIS = {"axis": 0}


cdef tuple _steps_of(Index *index, tuple shape):
    """An index as operations: a slice, then a reshape where axes go."""
    cdef int axis
    steps = ()
    if not index.whole:
        starts = _same(tuple([index.starts[axis] for axis in range(index.rank)]))
        stops = _same(tuple([index.stops[axis] for axis in range(index.rank)]))
        by = _same(tuple([index.steps[axis] for axis in range(index.rank)]))
        steps = (("slice", {"starts": starts, "stops": stops, "steps": by}),)
    return steps + (("reshape", {"shape": shape}),) if index.left != index.rank else steps


cdef list _backwards_up_to = [tuple(range(rank - 1, -1, -1)) for rank in range(9)]
_interned.update({order: order for order in _backwards_up_to})


cdef tuple _order_of(Held tensor, tuple axes):
    """The axes that permute is asked for, counted from the front. None where the general way must say what is wrong."""
    cdef Py_ssize_t rank = len(tensor.shape), i
    if len(axes) == 1 and (type(axes[0]) is tuple or type(axes[0]) is list):
        axes = tuple(axes[0])
    if len(axes) != rank or rank > 8:
        return None
    for i in range(rank):
        if type(axes[i]) is not int or not -rank <= axes[i] < rank:
            return None
    return _same(tuple([axis + rank if axis < 0 else axis for axis in axes]))


cdef object _permuted(Held tensor, tuple order):
    return _with_attrs("transpose", tensor, {"axes": order})


cdef object _into(str op, str name, Held target, other):
    """target = target op other, in its memory, where nothing of it is remembered."""
    cdef PyObject *tensors[2]
    cdef Held operand = None
    cdef Call call
    cdef char *first
    cdef char *second
    if isinstance(other, Held):
        operand = <Held>other
        if operand.dtype is not target.dtype or (op is _DIV and target.dtype not in _FLOATS):
            operand = None
    elif type(other) is float or type(other) is int:
        operand = _constant(other, target)
    if operand is None or target._pointer == NULL or operand._pointer == NULL or not _shares(target) or _recorder != NULL:
        return _general[name](target, other)
    if _recording and (
        target.requires_grad or operand.requires_grad
        or (target._view is not None and target._view.base is not None and target._view.base.requires_grad)
    ):  # fmt: skip
        return _general[name](target, other)
    first, second = target._pointer, operand._pointer
    if (
        first < second + _bytes_of(operand) and second < first + _bytes_of(target)
        and not (first == second and operand.shape == target.shape)
    ):  # fmt: skip
        return _general[name](target, other)  # of one memory, at other places
    tensors[0], tensors[1] = <PyObject *>target, <PyObject *>operand
    call = _call_of(op, tensors, 2, None, False)
    if call is None or call.shape != target.shape or call.dtype is not target.dtype:
        return _general[name](target, other)
    if not _ran(call, first, tensors, 2):
        return _general[name](target, other)
    _memory_of(target).written = now()
    return target


cdef object _number_of(Held tensor):
    """The one element, or None where the longer way must say it."""
    cdef int kind = tensor._numpy_type
    if tensor._pointer == NULL:
        return None
    for size in tensor.shape:
        if <Py_ssize_t>size != 1:
            return None
    _spoil()
    if kind == cnp.NPY_FLOAT32:
        return (<float *>tensor._pointer)[0]
    if kind == cnp.NPY_FLOAT64:
        return (<double *>tensor._pointer)[0]
    if kind == cnp.NPY_INT64:
        return (<int64_t *>tensor._pointer)[0]
    if kind == cnp.NPY_INT32:
        return (<int32_t *>tensor._pointer)[0]
    if kind == cnp.NPY_BOOL:
        return tensor._pointer[0] != 0
    return None
