# calls that are known -----------------------------------------------------------------------------

cdef enum:
    KEY_ROOM = 24
    PLACES = 4096  # of calls by the identity of what they are of
    MOST_KNOWN = 8192


@cython.final
cdef class Call:
    """A kind of call that was checked: its record, and what comes out."""

    cdef cyx_call record
    cdef str op
    cdef int count  # of inputs
    cdef tuple key  # the very objects of the call, which stay alive with it
    cdef tuple shape
    cdef str dtype
    cdef int numpy_type
    cdef size_t out_bytes
    cdef int size_class
    cdef object attrs
    cdef bint differentiable
    cdef bint view  # a result in the memory of its input
    cdef bint known_view  # of an input in one piece it lies there: in bytes, a place and how far from one to the next
    cdef Py_ssize_t offset
    cdef cnp.npy_intp strides[8]
    cdef tuple steps
    cdef dict backs  # by which gradients are wanted: how often they were, then a Program, or None where there is none


cdef list _calls = [None] * PLACES
cdef dict _known = {}  # by equality: None after the first time, False for what goes the general way, or a Call


cdef inline int _key_of(str op, PyObject **tensors, Py_ssize_t count, dict attrs, PyObject **key) noexcept:
    """The objects that a call is of. Returns how many, or -1 where they are too many."""
    cdef Py_ssize_t i, place = 0
    cdef PyObject *name
    cdef PyObject *value
    cdef int length = 1
    key[0] = <PyObject *>op
    for i in range(count):
        key[length] = <PyObject *>(<Held>tensors[i]).shape
        key[length + 1] = <PyObject *>(<Held>tensors[i]).dtype
        length += 2
    if attrs is not None:
        while PyDict_Next(attrs, &place, &name, &value):
            if length + 2 > KEY_ROOM:
                return -1
            key[length] = name
            key[length + 1] = value
            length += 2
    return length


cdef inline size_t _hash_of(PyObject **key, int length) noexcept:
    cdef size_t found = 0
    cdef int i
    for i in range(length):
        found = (found ^ (<size_t>key[i] >> 4)) * <size_t>0x9E3779B97F4A7C15
    return found >> 52  # PLACES is 2**12


cdef inline bint _is_of(Call call, PyObject **key, int length) noexcept:
    cdef int i
    if len(call.key) != length:
        return False
    for i in range(length):
        if <PyObject *>call.key[i] != key[i]:
            return False
    return True


cdef object _typed(object value):
    """An attribute so that what is equal is the same: 1, True and 1.0 are not. Raises TypeError for what may change."""
    if type(value) is float:
        return value.hex()
    if type(value) is int or type(value) is bool:
        return type(value), value
    if type(value) is str:
        return str, value
    if type(value) is tuple:
        return tuple([_typed(item) for item in value])
    raise TypeError


cdef object _look_up(str op, PyObject **tensors, Py_ssize_t count, dict attrs, PyObject **key, int length, bint update):
    """What is known of a call by equality: a Call, or None where it goes the general way this time."""
    cdef Py_ssize_t i
    cdef Held tensor
    cdef Call call
    try:
        equal = (
            update, op, count,
            tuple([((<Held>tensors[i]).shape, (<Held>tensors[i]).dtype) for i in range(count)]),
            None if not attrs else tuple([(name, _typed(value)) for name, value in attrs.items()]),
        )  # fmt: skip
    except TypeError:
        return None
    found = _known.get(equal, 0)
    if found is False:
        return None
    if type(found) is int:
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[equal] = None
        return None
    if found is None:
        found = _known[equal] = _checked(op, tensors, count, attrs, key, length, update)
        if found is False:
            return None
    call = found
    for i in range(count):  # from now on the same objects, which are found without comparing
        tensor = <Held>tensors[i]
        tensor.shape, tensor.dtype = call.key[1 + 2 * i], call.key[2 + 2 * i]
    length = _key_of(op, tensors, count, attrs, key)
    if not _is_of(call, key, length):  # attributes are other objects this time
        call.key = tuple([<object>key[i] for i in range(length)])
    _calls[_hash_of(key, length)] = call
    return call


cdef object _checked(str op, PyObject **tensors, Py_ssize_t count, dict attrs, PyObject **key, int length, bint update):
    """The Call of a call that went well before, or False where the cpu has no kernel for it."""
    cdef Call call = Call.__new__(Call)
    cdef Py_ssize_t i
    cdef cnp.ndarray out
    cdef cnp.ndarray there
    arrays = [_array_of(<Held>tensors[i]) for i in range(count)]
    for i in range(1 if update else 0, count):  # what is written into is in one piece: _updated() asks that first
        if not cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>arrays[i]):
            arrays[i] = PyArray_NewCopy(<cnp.ndarray>arrays[i], cnp.NPY_CORDER)
    backend = _devices["backend"]("cpu")
    if update:
        out, normal = arrays[0], attrs
    else:
        shapes = tuple([(<Held>tensors[i]).shape for i in range(count)])
        dtypes = tuple([(<Held>tensors[i]).dtype for i in range(count)])
        (shape, dtype), normal = _infer(op, shapes, dtypes, attrs or {})
        call.shape, call.dtype = _same(shape), dtype
        call.view = op in _views
        out = backend.empty(shape, dtype)
        if call.view:
            call.steps = ((op, normal),)
            if len(shape) <= 8 and out.size:
                origin = np.empty(shapes[0], arrays[0].dtype)
                there = _look(origin, op, normal, shape)
                call.known_view = True
                call.offset = <char *>cnp.PyArray_DATA(there) - <char *>cnp.PyArray_DATA(<cnp.ndarray>origin)
                for i in range(len(shape)):
                    call.strides[i] = cnp.PyArray_STRIDE(there, <int>i)
    if not call.view:
        if not backend.has(op, out, arrays):
            return False
        try:
            kept = cpu.record(op, out, arrays, dict(normal))
        except KernelError:  # more inputs than a record has room for
            return False
        memcpy(&call.record, <const char *><bytes>kept, sizeof(cyx_call))
        call.record.inputs = call.record.own_in
    call.op, call.count = op, count
    call.key = tuple([<object>key[i] for i in range(length)])
    call.numpy_type, call.out_bytes = cnp.PyArray_TYPE(out), cnp.PyArray_NBYTES(out)
    call.size_class = _size_class(call.out_bytes)
    call.attrs = normal
    call.differentiable = not update and op not in _no_gradient and call.dtype in _differentiable
    return call


cdef inline Call _call_of(str op, PyObject **tensors, Py_ssize_t count, dict attrs, bint update):
    """The checked call, or None where it goes the general way."""
    cdef PyObject *key[KEY_ROOM]
    cdef int length
    cdef Held tensor
    cdef Py_ssize_t i
    if not PyByteArray_AS_STRING(_straight)[0]:
        return None
    for i in range(count):
        tensor = <Held>tensors[i]
        if not _is_here(tensor) or (tensor._view is not None and not _as_it_is(tensor)):
            return None
    length = _key_of(op, tensors, count, attrs, key)
    if length < 0:
        return None
    found = _calls[_hash_of(key, length)]
    if found is not None and _is_of(<Call>found, key, length) and ((<Call>found).shape is None) == update:
        return <Call>found
    return _look_up(op, tensors, count, attrs, key, length, update)


cdef bint _as_it_is(Held tensor) except -1:
    """Whether a view need not look for what was assigned to its base since."""
    cdef View view = tensor._view
    return view.base is None or tensor._memory is None or tensor._memory.put <= view.since


cdef str _MATMUL = "matmul"


cdef bint _is_turned(cnp.ndarray matrices) noexcept:
    """Whether they lie in one piece but for their last two axes, which have changed places."""
    cdef cnp.npy_intp *sizes = cnp.PyArray_DIMS(matrices)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(matrices)
    cdef int axis, rank = cnp.PyArray_NDIM(matrices)
    cdef cnp.npy_intp expected = cnp.PyArray_ITEMSIZE(matrices)
    if rank < 2 or strides[rank - 2] != expected or strides[rank - 1] != expected * sizes[rank - 2]:
        return False
    expected *= sizes[rank - 2] * sizes[rank - 1]
    for axis in range(rank - 3, -1, -1):
        if strides[axis] != expected:
            return False
        expected *= sizes[axis]
    return True


cdef inline void _turn(cyx_call *product, Py_ssize_t place) noexcept:
    """A factor of a product read as it lies, the other way round."""
    cdef cyx_array *factor = &product.own_in[place]
    cdef int64_t *last = &factor.shape[factor.ndim - 2]
    last[0], last[1] = last[1], last[0]
    product.ints[place] = not product.ints[place]


cdef inline bint _ran(Call call, char *out, PyObject **tensors, Py_ssize_t count) except -1:
    """Runs the kernel. False where it failed: the general way says why."""
    cdef cyx_message message
    cdef int64_t failed = 0
    cdef cyx_call own
    cdef cyx_status status
    cdef Py_ssize_t i
    cdef void *given[5]
    cdef bint turned[5]
    cdef bint any_turned = False
    cdef list packed = None
    for i in range(count):
        given[i] = (<Held>tensors[i])._pointer
        turned[i] = False
        if given[i] == NULL:
            if call.op is _MATMUL and _is_turned(<cnp.ndarray>(<Held>tensors[i])._array):
                given[i] = cnp.PyArray_DATA(<cnp.ndarray>(<Held>tensors[i])._array)
                any_turned = turned[i] = True
                continue
            array = _packed(<Held>tensors[i])
            given[i] = cnp.PyArray_DATA(<cnp.ndarray>array)
            packed = [packed, array]  # they stay until the kernel has run
    for i in range(count):
        call.record.own_in[i].data = given[i]
    call.record.out.data = out
    # below about 2 us it costs more to let other threads run than to finish
    if call.record.work < 20000.0 and not any_turned:
        return _run(&call.record, 1, &failed, &message) == CYX_OK
    own = call.record
    own.inputs = own.own_in
    for i in range(count):
        if turned[i]:
            _turn(&own, i)
    if own.work < 20000.0:
        return _run(&own, 1, &failed, &message) == CYX_OK
    with nogil:
        status = _run(&own, 1, &failed, &message)
    return status == CYX_OK


cdef object _applied(str op, PyObject **tensors, Py_ssize_t count, dict attrs):
    """One op on tensors."""
    cdef Call call = _call_of(op, tensors, count, attrs, False)
    cdef Held result
    cdef uint64_t asked = 0
    cdef Py_ssize_t i
    if call is not None:
        if call.view:
            result = _seen(call, <Held>tensors[0])
        else:
            result = _moved(call, tensors, count)
            if result is None:
                result = _result(call)
                if not _ran(call, result._pointer, tensors, count):
                    result = None
        if result is not None:
            if _recorder != NULL:
                (<Recorder>_recorder).note(call, tensors, count, result)
            if _recording and call.differentiable:
                for i in range(count):
                    asked |= <uint64_t>(<Held>tensors[i]).requires_grad << i
                if asked:
                    _remember(result, call, tensors, count, asked)
            return result
    _spoil()
    return (<Held>tensors[0])._apply_generally(op, tuple([<object>tensors[i] for i in range(count)]), attrs or {})


cdef frozenset _READ_WITH_GAPS = frozenset(("cast", "concat", "add", "sub", "mul", "div"))


cdef inline Held _moved(Call call, PyObject **tensors, Py_ssize_t count):
    """The result where much memory with gaps is read once and where it lies; else None."""
    cdef Py_ssize_t i
    if call.record.out.size > 1 << 14:
        for i in range(count):
            if (<Held>tensors[i])._pointer == NULL and call.op in _READ_WITH_GAPS:
                others = [<object>tensors[i] for i in range(count)]
                return (<Held>tensors[0])._moved(call.op, others, call.shape, call.dtype, call.attrs)
    return None


cdef inline Held _seen(Call call, Held tensor):
    if call.known_view and tensor._pointer != NULL and _shares(tensor):
        return _viewed(tensor, tensor._pointer + call.offset, call.shape, call.strides, call.steps, NULL)
    return <Held>tensor._seen(call.op, call.shape, call.attrs)


cdef inline int _remember(Held result, Call call, PyObject **tensors, Py_ssize_t count, uint64_t asked) except -1:
    """That a result is of these inputs. asked: a bit for each that requires a gradient."""
    global _clock
    cdef Node node = Node.__new__(Node)
    _clock += 1
    node.call, node.count, node.asked, node.time = call, <int>count, asked, _clock
    if count > 3:
        node.many = tuple([<object>tensors[i] for i in range(count)])
    else:
        node.first = <object>tensors[0]
        if count > 1:
            node.second = <object>tensors[1]
        if count > 2:
            node.third = <object>tensors[2]
    result.requires_grad, result._op = True, node
    return 0


cdef bint _updated(Held target, str op, PyObject **tensors, Py_ssize_t count, dict attrs) except -1:
    """Whether an update op was made, into the memory of the first tensor."""
    cdef Call call
    if target._pointer == NULL or not _is_open(target):
        return False
    call = _call_of(op, tensors, count, attrs, True)
    if call is None or not _ran(call, target._pointer, tensors, count):
        return False
    if _recorder != NULL:
        (<Recorder>_recorder).note(call, tensors, count, None)
    _memory_of(target).written = now()
    return True


def described(inputs, tuple options, dtypes, tuple fixed):
    """Of a call of several operations (cyxcore/composed.py): which of its tensors each input is, the shape and dtype of
    each, whether it is followed, and the tensors. None where it is no plain call: an option that is not of the `fixed`
    types may change; an input is no tensor of these dtypes on the host, or empty.
    """
    cdef list places = [], tensors = []
    cdef Held tensor
    cdef Py_ssize_t i
    for option in options:
        if not isinstance(option, fixed):
            return None
    for x in inputs:
        if x is None:
            places.append(None)
            continue
        if not isinstance(x, Held):
            return None
        tensor = <Held>x
        if tensor.dtype not in dtypes or not tensor._is_on_host() or 0 in tensor.shape:
            return None
        for i in range(len(tensors)):
            if tensors[i] is tensor:
                places.append(i)
                break
        else:
            if tensor._view is not None:
                tensor._refresh()
            places.append(len(tensors))
            tensors.append(tensor)
    typed, followed = [], []
    for tensor in tensors:
        typed.append((tensor.shape, tensor.dtype))
        followed.append(_recording != 0 and tensor.requires_grad)
    return tuple(places), tuple(typed), tuple(followed), tensors
