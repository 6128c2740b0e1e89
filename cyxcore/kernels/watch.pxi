# What the plan of a compiled call is of, as it was when the plan was chosen (cyxcore/steps.py, compiled.py).

cdef extern from *:
    """
    /* Another one after every change of a dict. 0: this Python has none. */
    #if PY_VERSION_HEX < 0x030C0000
    #define version_of(dict) (((PyDictObject *)(dict))->ma_version_tag)
    #else
    #define version_of(dict) ((uint64_t)0)
    #endif
    """
    uint64_t _version_of "version_of" (PyObject *)

cdef enum Kind:
    ENTRY  # of a dict
    TABLE  # all values of a dict
    OPTIONS  # values of a dict, but for those that may change
    OF_DICTS = OPTIONS  # it, and those before
    CELL
    ITEMS  # of a list
    SIZE  # of anything that has one
    ATTRIBUTE
    TENSOR
    ANSWER

cdef struct Look:
    Kind kind
    PyObject *of  # these three are held by the watch
    PyObject *name
    PyObject *was  # NULL: there was nothing
    bint trained
    bint has_gradient
    bint has_hooks
    bint by_value
    double written
    uint64_t version  # of a dict that was found to be as it was
    Py_ssize_t size

cdef object _ANY = object()


cdef inline double _written(Held tensor) noexcept:
    return tensor._memory.written if tensor._memory is not None else 0


@cython.final
cdef class Watch:
    """Notes what is somewhere; holds() says whether all of it is there still: the very objects, not equal ones."""

    cdef Look *looks
    cdef Py_ssize_t count, room
    cdef list held
    cdef bint lost  # something cannot be watched

    def __cinit__(self):
        self.held = []

    def __dealloc__(self):
        free(self.looks)

    cdef Look *_note(self, Kind kind, of, name, was) except NULL:
        cdef Look *grown
        cdef Look *made
        if self.count == self.room:
            grown = <Look *>realloc(self.looks, (2 * self.room + 16) * sizeof(Look))
            if grown == NULL:
                raise MemoryError
            self.looks, self.room = grown, 2 * self.room + 16
        self.held.append((of, name, was))
        made = &self.looks[self.count]
        memset(made, 0, sizeof(Look))
        made.kind, made.of, made.name, made.was = kind, <PyObject *>of, <PyObject *>name, <PyObject *>was
        self.count += 1
        return made

    def place(self, holder, str name) -> None:
        """What a dict has by a name, or a variable of a function, if anything."""
        cdef PyObject *found
        cdef Look *made
        if isinstance(holder, dict):
            found = PyDict_GetItem(holder, name)
            made = self._note(ENTRY, holder, name, None if found == NULL else <object>found)
        elif PyCell_Check(holder):
            found = PyCell_GET(holder)
            made = self._note(CELL, holder, name, None if found == NULL else <object>found)
        else:
            self.lost = True
            return
        if found == NULL:
            made.was = NULL

    def table(self, dict table) -> None:
        """The values of a dict, in order."""
        self._note(TABLE, table, None, tuple(table.values()))

    def options(self, dict options, changing) -> None:
        """All that a dict has, in order, but for the values whose names are in `changing`."""
        cdef tuple names = tuple(options)
        self._note(OPTIONS, options, names, tuple([_ANY if name in changing else options[name] for name in names]))

    def items(self, list items) -> None:
        self._note(ITEMS, items, None, tuple(items))

    def size(self, container) -> None:
        """How much it has, of what only grows."""
        self._note(SIZE, container, None, None).size = len(container)

    def attribute(self, owner, str name) -> None:
        self._note(ATTRIBUTE, owner, name, getattr(owner, name))

    def tensor(self, Held tensor, bint by_value=False) -> None:
        """Its array, whether it requires a gradient, has one and has hooks; by_value: and when it was last written to."""
        cdef Look *made = self._note(TENSOR, tensor, None, _array_of(tensor))
        made.trained, made.has_gradient = tensor.requires_grad, tensor.grad is not None
        made.has_hooks = tensor._hooks is not None
        made.by_value, made.written = by_value, _written(tensor)

    def answer(self, function, *given) -> None:
        """What a function returns, which is compared by value."""
        self._note(ANSWER, function, given, function(*given))

    cpdef bint holds(self) except -1:
        cdef Py_ssize_t i
        if self.lost:
            return False
        for i in range(self.count):
            if not _is_still_by_version(&self.looks[i]):
                return False
        return True


cdef inline bint _is_still_by_version(Look *look) except -1:
    """_is_still(), which is known of a dict that nobody has changed since."""
    if look.kind > OF_DICTS:
        return _is_still(look)
    if look.version and look.version == _version_of(look.of):
        return True
    if not _is_still(look):
        return False
    look.version = _version_of(look.of)
    return True


cdef bint _is_still(Look *look) except -1:
    cdef Held tensor
    if look.kind == ENTRY:
        return PyDict_GetItem(<object>look.of, <object>look.name) == look.was
    if look.kind == CELL:
        return PyCell_GET(<object>look.of) == look.was
    if look.kind == TABLE or look.kind == OPTIONS:
        return _has_still(look)
    if look.kind == ITEMS:
        return _are_still(<list>look.of, <tuple>look.was)
    if look.kind == SIZE:
        return len(<object>look.of) == look.size
    if look.kind == ATTRIBUTE:
        return getattr(<object>look.of, <object>look.name) is <object>look.was
    if look.kind == TENSOR:
        tensor = <Held>look.of
        return (
            <PyObject *>tensor._array == look.was
            and tensor.requires_grad == look.trained
            and (tensor.grad is not None) == look.has_gradient
            and (tensor._hooks is not None) == look.has_hooks
            and (not look.by_value or _written(tensor) == look.written)
        )
    return (<object>look.of)(*<tuple>look.name) == <object>look.was


cdef bint _has_still(Look *look) except -1:
    cdef dict table = <dict>look.of
    cdef tuple was = <tuple>look.was
    cdef Py_ssize_t place = 0
    cdef int i = 0, count = <int>len(was)
    cdef PyObject *name
    cdef PyObject *value
    if len(table) != count:
        return False
    while PyDict_Next(table, &place, &name, &value):
        if value != <PyObject *>was[i] and was[i] is not _ANY:
            return False
        if look.kind == OPTIONS and name != <PyObject *>(<tuple>look.name)[i]:
            return False
        i += 1
    return True


cdef bint _are_still(list items, tuple was) except -1:
    cdef Py_ssize_t i, count = len(was)
    if len(items) != count:
        return False
    for i in range(count):
        if items[i] is not was[i]:
            return False
    return True


def kinds(list tensors) -> tuple:
    """The shape and the dtype of each tensor, one behind the other."""
    cdef list found = []
    cdef Held tensor
    for tensor in tensors:
        found.append(tensor.shape)
        found.append(tensor.dtype)
    return tuple(found)


def refill(list arrays, list tensors) -> list:
    """Copies tensors into arrays of their shapes. Returns the places where one of both is not plain memory: nothing is done."""
    cdef list left = []
    cdef Py_ssize_t place
    for place in range(len(arrays)):
        if not _refilled(arrays[place], <Held?>tensors[place]):
            left.append(place)
    return left


cdef bint _refilled(array, Held tensor) except -1:
    cdef cnp.ndarray into
    cdef size_t count
    if tensor._pointer == NULL or type(array) is not cnp.ndarray:
        return False
    into = <cnp.ndarray>array
    count = _bytes_of(tensor)
    if not count or cnp.PyArray_TYPE(into) != tensor._numpy_type or <size_t>cnp.PyArray_NBYTES(into) != count:
        return False
    if not cnp.PyArray_IS_C_CONTIGUOUS(into):
        return False
    memcpy(cnp.PyArray_DATA(into), tensor._pointer, count)
    return True


def copied(array, str dtype):
    """A tensor of a copy of an array, whose dtype has that name; None where the array is not plain memory."""
    cdef cnp.ndarray source
    if type(array) is not cnp.ndarray or _tensor_type is None:
        return None
    source = <cnp.ndarray>array
    if not _item_bytes(cnp.PyArray_TYPE(source)):
        return None
    if not cnp.PyArray_NBYTES(source) or not cnp.PyArray_IS_C_CONTIGUOUS(source) or not cnp.PyArray_ISNOTSWAPPED(source):
        return None
    return _copied(source, array.shape, dtype)


cdef enum:
    MOST_FILLED_BYTES = 4096  # larger ones are NumPy's: its zeros are pages that nobody has touched yet


def filled(double number, tuple shape):
    """A float32 tensor with one number everywhere; None where it is large or empty."""
    cdef size_t count = sizeof(float)
    cdef size_t i
    cdef Held made
    for size in shape:
        if size > MOST_FILLED_BYTES:
            return None
        count *= <size_t>size
        if not 0 < count <= MOST_FILLED_BYTES:
            return None
    if _tensor_type is None:
        return None
    made = _new()
    made.shape, made.dtype = shape, "float32"
    made._pointer = _taken(count, _size_class(count))
    made._block, made._numpy_type = 1 + _size_class(count), cnp.NPY_FLOAT32
    for i in range(count // sizeof(float)):
        (<float *>made._pointer)[i] = <float>number
    return made


cdef Held _copied(cnp.ndarray source, tuple shape, str dtype):
    """The same of an array that has elements and is plain memory."""
    cdef size_t count = <size_t>cnp.PyArray_NBYTES(source)
    cdef Held made = _new()
    made.shape, made.dtype = shape, dtype
    made._pointer = _taken(count, _size_class(count))
    made._block, made._numpy_type = 1 + _size_class(count), cnp.PyArray_TYPE(source)
    memcpy(made._pointer, cnp.PyArray_DATA(source), count)
    return made


cpdef wrote(list tensors):
    """Tells everybody with the memory of these tensors that it was written to just now."""
    cdef double time = now()
    cdef Py_ssize_t i
    for i in range(len(tensors)):
        _memory_of(<Held?>tensors[i]).written = time
