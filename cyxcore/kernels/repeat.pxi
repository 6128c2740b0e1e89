# A call of a compiled function that is as the one before, but for what its arrays hold (cyxcore/steps.py, compiled.py).

cdef str _STEPS = "steps"
cdef str _HOOKS = "hooks"
cdef str _GROUPS = "param_groups"
cdef str _LR = "lr"


@cython.final
cdef class Repeat:
    """What such a call does with a plan: arguments and numbers of optimisers in, run it, results out."""

    cdef public int64_t left  # how many such calls may come before the function is traced again
    cdef bint recording  # whether the thread was
    cdef object numerics  # the class that current() has to be; None: the plan has one of its own
    cdef object current
    cdef list fed  # for each argument the array that the plan reads
    cdef tuple shapes
    cdef tuple dtypes
    cdef list optimizers  # which make a step
    cdef list counts  # (array, optimiser) of the number of the step
    cdef list rates  # (array, optimiser, number of the group) of learning rates
    cdef list written  # tensors
    cdef list results  # arrays
    cdef list result_shapes
    cdef list result_dtypes
    cdef object run  # of the plan's program
    cdef dict planning  # globals of cyxcore.plan, whose observer makes the calls of a plan while there is one
    cdef object rebuild  # what the function returns, of the results

    cdef bint is_of(self, tuple given) except -1:
        """Whether the arguments are plain memory, of the kinds of the plan, and nothing else asks for the long way."""
        cdef Py_ssize_t i
        cdef Held tensor
        if self.left <= 0 or len(given) != len(self.fed) or self.recording != (_recording != 0):
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
            if getattr(optimizer, _HOOKS) is not None:
                return False
        for _, optimizer, group in self.rates:
            if type(_rate(optimizer, group)) is not float:
                return False
        return self.planning["observer"] is None and (self.numerics is None or self.current() == self.numerics)

    cdef object made(self, tuple given):
        """The call, of arguments that is_of() is true of."""
        cdef Py_ssize_t i
        self.left -= 1
        for i in range(len(given)):
            _refilled(self.fed[i], <Held>given[i])
        for array, optimizer in self.counts:
            _set_number(<cnp.ndarray>array, getattr(optimizer, _STEPS) + 1)
        for array, optimizer, group in self.rates:
            _set_number(<cnp.ndarray>array, _rate(optimizer, group))
        self.run()
        for optimizer in self.optimizers:  # a step that failed is none
            optimizer.steps = getattr(optimizer, _STEPS) + 1
        wrote(self.written)
        return self.rebuild(tuple([
            _copied(<cnp.ndarray>self.results[i], <tuple>self.result_shapes[i], <str>self.result_dtypes[i])
            for i in range(len(self.results))
        ]))  # fmt: skip


cdef inline object _rate(optimizer, Py_ssize_t group):
    return getattr(optimizer, _GROUPS)[group][_LR]


cdef int _set_number(cnp.ndarray array, double number) except -1:
    if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32:
        (<float *>cnp.PyArray_DATA(array))[0] = <float>number
    else:
        (<double *>cnp.PyArray_DATA(array))[0] = number
    return 0


cdef bint _is_lasting(array):
    """Whether an array of a plan can be filled and copied as it lies."""
    return type(array) is cnp.ndarray and _item_bytes(cnp.PyArray_TYPE(<cnp.ndarray>array)) and cnp.PyArray_ISCARRAY(array)


def repeat(list fed, list counts, list rates, list optimizers, list written, list results, run, dict planning, rebuild, numerics, current):
    """A Repeat, or None where the plan's arrays are not plain memory of the host, or there is nothing in them.

    counts: (array, optimiser) of inputs that are the number of its next step. rates: (array, optimiser, group) of
    inputs that are the learning rate of a group by its number. numerics: what current() must return, or None.
    """
    cdef Repeat made = Repeat.__new__(Repeat)
    for array in [*fed, *results]:
        if not _is_lasting(array) or not array.size:
            return None
    for array, *_ in [*counts, *rates]:
        if not _is_lasting(array) or array.dtype.name not in _FLOATS:
            return None
    made.recording, made.numerics, made.current = _recording != 0, numerics, current
    made.fed, made.shapes = fed, tuple([array.shape for array in fed])
    made.dtypes = tuple([_FROM_NAMES[array.dtype.name] for array in fed])
    made.counts, made.rates, made.optimizers, made.written = counts, rates, optimizers, written
    made.results, made.result_shapes = results, [array.shape for array in results]
    made.result_dtypes = [_FROM_NAMES[array.dtype.name] for array in results]
    made.run, made.planning, made.rebuild = run, planning, rebuild
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
