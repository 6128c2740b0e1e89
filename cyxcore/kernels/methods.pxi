# What the methods of Held do where a call is plain (tensors.pyx).

cdef str _FLOAT32 = "float32"
cdef dict _FROM_NAMES = {}  # the names of dtypes, by themselves: a name is always the same object
cdef dict _interned = {}  # shapes and the like, by themselves: calls are known by the very objects
cdef list _reductions = [None] * 64  # attributes, by _place_of_axis


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
    if words or rank > 8 or type(keepdims) is not bool or (exact and tensor.dtype not in _FLOATS):
        return _general[op](tensor, axis, keepdims, **words)
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
        if type(given[i]) is not int:
            return None
        size = given[i]
        if size == -1 and unknown < 0:
            unknown = i
        elif size < 0 or size > 1 << 40:
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


cdef Held _viewed(Held tensor, Py_ssize_t offset, tuple shape, tuple steps):
    """A view in one piece; offset: in bytes."""
    cdef Held made = _sharing(tensor, tensor._pointer + offset, shape)
    cdef Memory memory = _memory_of(tensor)
    cdef View view = View.__new__(View)
    if tensor._view is None or tensor._view.base is None:
        view.base, view.steps = tensor, steps
    else:
        view.base, view.steps = tensor._view.base, tensor._view.steps + steps
    view.since = memory.put
    made._memory, made._view = memory, view
    return made


cdef object _part_of(Held tensor, index):
    """tensor[index] that lies in one piece: integers, then at most one slice, the rest whole. None for all others."""
    cdef Py_ssize_t starts[8]
    cdef Py_ssize_t counts[8]
    cdef Py_ssize_t rank = len(tensor.shape), given, axis, size, low, high, offset, dropped = 0
    cdef bint cut = False
    cdef tuple first, last, parts
    cdef int item = _item_bytes(tensor._numpy_type)
    if not item or not 0 < rank <= 8:
        return None
    if type(index) is tuple:
        parts, given = <tuple>index, len(<tuple>index)
        if given > rank:
            return None
    else:
        parts, given = None, 1
    offset = 0
    for axis in range(rank):
        size = tensor.shape[axis]
        offset *= size
        part = None
        if axis < given:
            part = index if parts is None else parts[axis]
            if type(part) is int:
                if dropped != axis or not -size <= part < size:
                    return None
                low = part
                starts[axis], counts[axis] = low + size if low < 0 else low, 1
                offset += starts[axis]
                dropped += 1
                continue
            if type(part) is not slice or part.step is not None:
                return None
        low, high = 0, size
        if part is not None:
            start, stop = part.start, part.stop
            if (start is not None and type(start) is not int) or (stop is not None and type(stop) is not int):
                return None
            if start is not None:
                low = 0 if start < -size else size if start > size else start
                low = low + size if low < 0 else low
            if stop is not None:
                high = 0 if stop < -size else size if stop > size else stop
                high = high + size if high < 0 else high
            high = low if high < low else high
        if high - low != size:
            if cut or axis != dropped:
                return None
            cut = True
        starts[axis], counts[axis] = low, high - low
        offset += low
    if not cut and not dropped:
        return tensor
    first = _same(tuple([counts[axis] for axis in range(rank)]))
    last = _same(tuple([counts[axis] for axis in range(dropped, rank)])) if dropped else first
    begin = _same(tuple([starts[axis] for axis in range(rank)]))
    end = _same(tuple([starts[axis] + counts[axis] for axis in range(rank)]))
    attrs = {"starts": begin, "stops": end, "steps": _same((1,) * rank)}
    whole = first == tensor.shape
    if _recording and tensor.requires_grad:
        found = tensor if whole else _with_attrs("slice", tensor, attrs)
        return _with_attrs("reshape", <Held>found, {"shape": last}) if dropped else found
    steps = () if whole else (("slice", attrs),)
    if dropped:
        steps += (("reshape", {"shape": last}),)
    return _viewed(tensor, offset * item, last, steps)


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
