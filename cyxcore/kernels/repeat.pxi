# A call of a compiled function that is as the one before, but for what its arrays hold (cyxcore/steps.py, compiled.py).

cdef str _STEPS = "steps"
cdef str _HOOKS = "hooks"
cdef str _GROUPS = "param_groups"
cdef str _LR = "lr"


cdef struct Argument:
    size_t bytes
    bint moves  # calls can read it where it lies
    char *home  # what else it is copied to
    char *at  # where it is read in this run
    char *apart  # where an argument has been before that no call writes to

cdef struct Slot:  # of a record of a call
    char **pointer
    int argument

cdef struct Piece:
    size_t low
    size_t high


@cython.final
cdef class Repeat:
    """What such a call does with a plan: arguments and numbers of optimisers in, run it, results out.

    Arguments are read where they lie, but for those that a call writes to (a step of its own weights), and integers: of
    these a kernel makes sure that they are in range before it uses them, and another thread might write in between.
    """

    cdef Argument *arguments
    cdef Slot *slots
    cdef Piece *written_to
    cdef int slot_count, piece_count

    cdef public int64_t left  # how many such calls may come before the function is traced again
    cdef bint recording  # whether the thread was
    cdef int terms  # what the numeric class of this moment has to come to (cpu.get_terms); -1: the plan has one of its own
    cdef list fed  # for each argument the array that the plan reads
    cdef tuple shapes
    cdef tuple dtypes
    cdef list optimizers  # which make a step: of each its attributes, as those below
    cdef list counts  # (array, optimiser) of the number of the step
    cdef list rates  # (array, optimiser, number of the group) of learning rates
    cdef list written  # tensors
    cdef list results  # arrays
    cdef list result_shapes
    cdef list result_dtypes
    cdef object run  # of the plan's program
    cdef dict planning  # globals of cyxcore.plan, whose observer makes the calls of a plan while there is one
    cdef object rebuild  # what the function returns, of the results
    cdef bint alone  # it is one tensor, not in anything

    def __dealloc__(self):
        free(self.arguments)
        free(self.slots)
        free(self.written_to)

    cdef int _read_in_place(self, program) except -1:
        """Find the pointers by which the calls of a program read arguments."""
        cdef int i, count = <int>len(self.fed)
        cdef list found = []
        self.arguments = <Argument *>calloc(count + 1, sizeof(Argument))
        if self.arguments == NULL:
            raise MemoryError
        for i in range(count):
            self.arguments[i].home = <char *>cnp.PyArray_DATA(<cnp.ndarray>self.fed[i])
            self.arguments[i].bytes = <size_t>cnp.PyArray_NBYTES(<cnp.ndarray>self.fed[i])
            if isinstance(program, cpu.Program) and self.dtypes[i] in _FLOATS:
                readers = program.readers(self.fed[i])
                self.arguments[i].moves = readers is not None
                found += [(pointer, i) for pointer in readers or ()]
        if not found:
            return 0
        pieces = program.written()
        self.slots = <Slot *>malloc(len(found) * sizeof(Slot))
        self.written_to = <Piece *>malloc((len(pieces) + 1) * sizeof(Piece))
        if self.slots == NULL or self.written_to == NULL:
            raise MemoryError
        for pointer, i in found:
            self.slots[self.slot_count] = Slot(<char **><size_t>pointer, i)
            self.slot_count += 1
        for low, high in pieces:
            self.written_to[self.piece_count] = Piece(low, high)
            self.piece_count += 1
        return 0

    cdef bint _is_apart(self, Argument *argument, char *data) noexcept:
        """Whether no call writes to an argument there."""
        cdef int i
        cdef size_t low = <size_t>data, high = low + argument.bytes
        if data == argument.apart:
            return True
        for i in range(self.piece_count):
            if low < self.written_to[i].high and self.written_to[i].low < high:
                return False
        argument.apart = data
        return True

    cdef inline void _point(self) noexcept:
        cdef int i
        for i in range(self.slot_count):
            self.slots[i].pointer[0] = self.arguments[self.slots[i].argument].at

    cdef bint is_of(self, tuple given) except -1:
        """Whether the arguments are plain memory, of the kinds of the plan, and nothing else asks for the long way."""
        cdef Py_ssize_t i
        cdef Held tensor
        cdef dict optimizer
        cdef PyObject *hooks
        if self.left <= 0 or _is_casting() or len(given) != len(self.fed) or self.recording != (_recording != 0):
            return False
        for i in range(len(given)):
            if type(given[i]) is not _tensor_type:
                return False
            tensor = <Held>given[i]
            if tensor._pointer == NULL or tensor.dtype is not self.dtypes[i]:
                return False
            if tensor.shape is not self.shapes[i] and tensor.shape != self.shapes[i]:
                return False
        for optimizer in self.optimizers:
            hooks = PyDict_GetItem(optimizer, _HOOKS)
            if hooks != NULL and <object>hooks is not None:
                return False
        for _, optimizer, group in self.rates:
            if type(_rate(optimizer, group)) is not float:
                return False
        return self.planning["observer"] is None and (self.terms < 0 or _terms_now() == self.terms)

    cdef object made(self, tuple given):
        """The call, of arguments that is_of() is true of."""
        cdef Py_ssize_t i
        cdef Argument *argument
        cdef dict optimizer
        self.left -= 1
        for i in range(len(given)):
            argument = &self.arguments[i]
            argument.at = (<Held>given[i])._pointer
            if not argument.moves or not self._is_apart(argument, argument.at):
                memcpy(argument.home, argument.at, argument.bytes)
                argument.at = argument.home
        for array, optimizer in self.counts:
            _set_number(<cnp.ndarray>array, optimizer[_STEPS] + 1)
        for array, optimizer, group in self.rates:
            _set_number(<cnp.ndarray>array, _rate(optimizer, group))
        self._point()
        try:
            self.run()
        finally:
            for i in range(len(given)):
                self.arguments[i].at = self.arguments[i].home
            self._point()
        for optimizer in self.optimizers:  # a step that failed is none
            optimizer[_STEPS] = optimizer[_STEPS] + 1
        wrote(self.written)
        if self.alone:
            return self._result(0)
        return self.rebuild(tuple([self._result(i) for i in range(len(self.results))]))

    cdef inline Held _result(self, Py_ssize_t i):
        return _copied(<cnp.ndarray>self.results[i], <tuple>self.result_shapes[i], <str>self.result_dtypes[i])


cdef object _terms_now = cpu.get_terms


cdef inline object _rate(dict optimizer, Py_ssize_t group):
    return optimizer[_GROUPS][group][_LR]


cdef int _set_number(cnp.ndarray array, double number) except -1:
    if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32:
        (<float *>cnp.PyArray_DATA(array))[0] = <float>number
    else:
        (<double *>cnp.PyArray_DATA(array))[0] = number
    return 0


cdef bint _is_lasting(array):
    """Whether an array of a plan can be filled and copied as it lies."""
    return type(array) is cnp.ndarray and _item_bytes(cnp.PyArray_TYPE(<cnp.ndarray>array)) and cnp.PyArray_ISCARRAY(array)


def repeat(list fed, list counts, list rates, list optimizers, list written, list results, run, dict planning, rebuild, terms):
    """A Repeat, or None where the plan's arrays are not plain memory of the host, or there is nothing in them.

    optimizers: the attributes of each, vars(optimizer), here and in what follows. counts: (array, optimiser) of inputs that
    are the number of its next step. rates: (array, optimiser, group) of inputs that are the learning rate of a group by its
    number. terms: of the numeric class in which calls must be made, or None.
    """
    cdef Repeat made = Repeat.__new__(Repeat)
    for array in [*fed, *results]:
        if not _is_lasting(array) or not array.size:
            return None
    for array, *_ in [*counts, *rates]:
        if not _is_lasting(array) or array.dtype.name not in _FLOATS:
            return None
    for optimizer in optimizers:
        if _STEPS not in optimizer or _GROUPS not in optimizer:  # they are not plain attributes
            return None
    made.recording, made.terms = _recording != 0, -1 if terms is None else terms
    made.fed, made.shapes = fed, tuple([array.shape for array in fed])
    made.dtypes = tuple([_FROM_NAMES[array.dtype.name] for array in fed])
    made.counts, made.rates, made.optimizers, made.written = counts, rates, optimizers, written
    made.results, made.result_shapes = results, [array.shape for array in results]
    made.result_dtypes = [_FROM_NAMES[array.dtype.name] for array in results]
    made._read_in_place(getattr(run, "__self__", None))
    made.run, made.planning, made.rebuild = run, planning, rebuild
    made.alone = type(rebuild) is itemgetter and len(results) == 1
    return made


cdef class Repeating:
    """A compiled function: calls that are as the one before are made here, all others by its _called()."""

    cdef public object _lock
    cdef public Repeat _repeat  # of the plan of the call before, if it has one
    cdef public Watch _watch  # of what that was chosen by besides the arguments

    def __call__(self, *inputs, **named):
        cdef Repeat before = self._repeat
        if before is not None and not named and self._watch is not None and before.is_of(inputs):
            lock = self._lock
            if lock.acquire(False):
                try:
                    if self._repeat is before and self._watch.holds():
                        return before.made(inputs)
                finally:
                    lock.release()
        return self._called(inputs, named)
