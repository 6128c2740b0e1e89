# Functions whose calls are known (tensors.pyx, cyxcore/dispatch.py).
#
# A function of the namespace is Python: it takes words of two libraries, checks, and makes a few calls. What it does
# depends on the kinds of its arguments alone, so it is watched once, as gradient rules are (tape.pxi), and what it did is
# made again as a Program, with the tape. Of a function that is one call of several operations (cyxcore/composed.py) that
# call is made again. Calls that are not plain, fail or look at a number stay with the function.

cdef extern from "reuse.h":
    void cyx_as_function(PyTypeObject *, Py_ssize_t)

cdef extern from "Python.h":
    ctypedef object (*vectorcallfunc)(object, PyObject **, size_t, PyObject *)
    Py_ssize_t PyVectorcall_NARGS(size_t)
    object PyMethod_New(object, object)
    object PyObject_Vectorcall(object, PyObject **, size_t, PyObject *)
    PyTypeObject *Py_TYPE(PyObject *)
    bint PyLong_CheckExact(PyObject *)
    bint PyFloat_CheckExact(PyObject *)
    bint PyBool_Check(PyObject *)
    bint PyUnicode_CheckExact(PyObject *)
    bint PyTuple_CheckExact(PyObject *)
    bint PyList_CheckExact(PyObject *)
    long long PyLong_AsLongLongAndOverflow(PyObject *, int *)
    double PyFloat_AS_DOUBLE(PyObject *)

cdef enum:
    KIND_ROOM = 64  # words that a kind of calls is told by
    MOST_GIVEN = 16  # tensors of a call
    MOST_PLAIN = 8  # classes of tensors
    MOST_KEPT_BYTES = 4096  # of a tensor that a program always has
    BEFORE_NOTING = 2  # calls after which a function is watched: the operations in it are known then

cdef enum:  # the first word of what was given, where that is no tensor
    KIND_INT = 16
    KIND_FLOAT
    KIND_OBJECT  # a name, None, True or False: itself
    KIND_LIST
    KIND_TUPLE
    KIND_AGAIN  # a tensor that was given before


cdef struct Asked:  # what a call is of
    uint64_t words[KIND_ROOM]
    PyObject *given[MOST_GIVEN]
    int length
    int count  # of given


cdef PyTypeObject *_plain_types[MOST_PLAIN]  # whose operations are those of Tensor
cdef int _plain_count = 0
cdef list _noted = [None] * PLACES


def also_plain(type kind) -> None:
    """Tell that a class of tensors changes no operation."""
    global _plain_count
    if _plain_count == MOST_PLAIN:
        raise ValueError("no room for another class of tensors")
    Py_INCREF(kind)
    _plain_types[_plain_count] = <PyTypeObject *>kind
    _plain_count += 1


cdef inline bint _is_of_plain_type(PyObject *x) noexcept:
    cdef int i
    for i in range(_plain_count):
        if Py_TYPE(x) == _plain_types[i]:
            return True
    return False


cdef bint _add_given(Asked *asked, PyObject *x, int depth) except -1:
    """Adds what tells the kind of an argument. False where nothing does."""
    cdef uint64_t *word = &asked.words[asked.length]
    cdef Held tensor
    cdef Py_ssize_t i
    cdef int overflow = 0
    cdef double number
    if asked.length + 3 > KIND_ROOM:
        return False
    if _is_of_plain_type(x):
        for i in range(asked.count):
            if asked.given[i] == x:
                word[0], word[1] = KIND_AGAIN, i
                asked.length += 2
                return True
        if asked.count == MOST_GIVEN:
            return False
        tensor = <Held>x
        asked.given[asked.count] = x
        asked.count += 1
        word[0], word[1], word[2] = tensor.requires_grad, <uint64_t><PyObject *>tensor.shape, <uint64_t><PyObject *>tensor.dtype
        asked.length += 3
    elif PyLong_CheckExact(x):
        word[0], word[1] = KIND_INT, <uint64_t>PyLong_AsLongLongAndOverflow(x, &overflow)
        asked.length += 2
        return overflow == 0
    elif PyFloat_CheckExact(x):
        number = PyFloat_AS_DOUBLE(x)
        word[0] = KIND_FLOAT
        memcpy(&word[1], &number, 8)
        asked.length += 2
    elif x == <PyObject *>None or PyBool_Check(x) or PyUnicode_CheckExact(x):
        word[0], word[1] = KIND_OBJECT, <uint64_t>x
        asked.length += 2
    elif depth < 2 and PyTuple_CheckExact(x):
        word[0], word[1] = KIND_TUPLE, len(<tuple>x)
        asked.length += 2
        for i in range(len(<tuple>x)):
            if not _add_given(asked, <PyObject *>(<tuple>x)[i], depth + 1):
                return False
    elif depth < 2 and PyList_CheckExact(x):
        word[0], word[1] = KIND_LIST, len(<list>x)
        asked.length += 2
        for i in range(len(<list>x)):
            if not _add_given(asked, <PyObject *>(<list>x)[i], depth + 1):
                return False
    else:
        return False
    return True


cdef bint _told(Dispatched function, PyObject **args, Py_ssize_t count, PyObject *names, Asked *asked) except -1:
    """Fills in what a call is of. False where it is not of what can be told, or of no tensor."""
    cdef Py_ssize_t i, named = 0 if names == NULL else len(<tuple>names)
    asked.words[0], asked.words[1] = <uint64_t><PyObject *>function, (<uint64_t>count << 1) | (_recording != 0)
    asked.length, asked.count = 2, 0
    for i in range(count):
        if not _add_given(asked, args[i], 0):
            return False
    for i in range(named):
        if asked.length == KIND_ROOM:
            return False
        asked.words[asked.length] = <uint64_t><PyObject *>(<tuple>names)[i]
        asked.length += 1
        if not _add_given(asked, args[count + i], 0):
            return False
    return asked.count > 0


@cython.final
cdef class CallKind:
    """Calls of a function whose arguments are of the same kinds."""

    cdef Asked asked  # `given` is only of the moment
    cdef list held  # what the words are addresses of
    cdef int calls  # until it is watched; afterwards how often it was
    cdef Program program  # None: not watched yet, or it has none
    cdef object composed  # what makes the one call of several operations that it is; or None
    cdef list places  # of the inputs of that, among what is given
    cdef object several  # what results are put into; None: there is one


cdef inline size_t _place_of(Asked *asked) noexcept:
    cdef size_t found = 0
    cdef int i
    for i in range(asked.length):
        found = (found ^ <size_t>(asked.words[i] ^ asked.words[i] >> 4)) * <size_t>0x9E3779B97F4A7C15
        found ^= found >> 32
    return found >> 52 ^ found & (PLACES - 1)


cdef inline CallKind _kind_at(size_t place, Asked *asked):
    cdef object found = _noted[place]
    if found is None or (<CallKind>found).asked.length != asked.length:
        return None
    if memcmp((<CallKind>found).asked.words, asked.words, asked.length * sizeof(uint64_t)):
        return None
    return <CallKind>found


cdef bint _made_the_same(Asked *asked) except -1:
    """Lets equal shapes and dtypes be the same objects. Whether one was not."""
    cdef Held tensor
    cdef bint changed = False
    cdef int i
    for i in range(asked.count):
        tensor = <Held>asked.given[i]
        shape, dtype = _same(tensor.shape), _FROM_NAMES.get(tensor.dtype, tensor.dtype)
        if shape is not tensor.shape or dtype is not tensor.dtype:
            tensor.shape, tensor.dtype, changed = shape, dtype, True
    return changed


cdef CallKind _new_kind(Dispatched function, PyObject **args, Py_ssize_t count, PyObject *names, Asked *asked):
    cdef CallKind made = CallKind.__new__(CallKind)
    cdef Py_ssize_t i
    made.asked = asked[0]
    made.held = [function, None if names == NULL else <object>names]
    for i in range(count + (0 if names == NULL else len(<tuple>names))):
        _hold(made.held, <object>args[i])
    return made


cdef int _hold(list held, object x) except -1:
    """Keeps the objects whose addresses tell of an argument, not tensors themselves."""
    if isinstance(x, Held):
        held.append(((<Held>x).shape, (<Held>x).dtype))
    elif type(x) is tuple or type(x) is list:
        for part in x:
            _hold(held, part)
    else:
        held.append(x)
    return 0


cdef object _called_again(CallKind kind, PyObject **given, bint *is_made):
    """A known call of these tensors. is_made: False where it must go the general way."""
    cdef PyObject *slots[MOST_SLOTS]
    cdef Program program = kind.program
    cdef Held tensor
    cdef int i
    is_made[0] = False
    if not PyByteArray_AS_STRING(_straight)[0]:
        return None
    for i in range(program.given):
        tensor = <Held>given[i]
        if not _is_here(tensor) or (tensor._view is not None and not _as_it_is(tensor)):
            return None
        slots[i] = given[i]
    memset(&slots[program.given], 0, (program.slot_count - program.given) * sizeof(PyObject *))
    try:
        if not _played(program, slots, _recording != 0):
            return None
        is_made[0] = True
        if kind.several is None:
            return <object>slots[program.only]
        results = [<object>slots[<Py_ssize_t>place] for place in program.outcomes]
        return results if kind.several is list else tuple.__new__(kind.several, results)
    finally:
        _let_go(program, slots)


cdef object _composed_again(CallKind kind, PyObject **given):
    """The call of several operations that a known call is; None where it must go the general way."""
    cdef list inputs = []
    cdef Held tensor
    for place in kind.places:
        tensor = <Held>given[<Py_ssize_t>place]
        if not tensor._is_on_host() or (tensor._view is not None and not _as_it_is(tensor)):
            return None
        inputs.append(tensor)
    return kind.composed(inputs)


cdef list _places_among(list given, list inputs):
    """Of inputs, each itself; None where one is not there."""
    cdef dict places = {id(tensor): place for place, tensor in enumerate(given)}
    found = [places.get(id(tensor)) for tensor in inputs]
    return None if None in found else found


def is_watched() -> bool:
    """Whether somebody watches what this thread calls."""
    return _recorder != NULL


def noted(again, list inputs):
    """What `again` makes of the inputs: one call of several operations, of which who watches this thread is told."""
    cdef Recorder watching = <Recorder>_recorder
    set_recorder(NULL)
    try:
        result = again(inputs)
    finally:
        set_recorder(<void *>watching)
    if watching.composed is not None:
        watching.spoiled = True
    watching.composed = (again, inputs, result)
    return result


cdef object _noted_call(Dispatched function, CallKind kind, PyObject **args, size_t flags, PyObject *names, Asked *asked):
    """The call by the function, which is watched."""
    cdef Recorder watched = Recorder.__new__(Recorder)
    cdef void *before = _recorder
    cdef int recording = _recording, i
    cdef Program made
    cdef list outcomes
    given = [<object>asked.given[i] for i in range(asked.count)]
    watched.notes = []
    watched.recording = recording
    kind.calls += 1
    set_recorder(<void *>watched)
    try:
        result = PyObject_Vectorcall(function.function, args, flags, names)
    finally:
        set_recorder(before)
    if watched.composed is not None:
        again, inputs, made_by_it = watched.composed
        if not watched.spoiled and not watched.notes and made_by_it is result and _recording == recording:
            kind.places = _places_among(given, inputs)
            kind.composed = again if kind.places is not None else None
        return result
    if isinstance(result, Held):
        outcomes, kind.several = [result], None
    elif result and (isinstance(result, tuple) or type(result) is list):
        outcomes, kind.several = list(result), type(result)
    else:
        return result
    for outcome in outcomes:
        if not isinstance(outcome, Held):
            return result
    made = _program_of(watched, given, outcomes)
    if made is None or _recording != recording or not _is_pure(made):
        return result
    made.joined = made.joined and not any([x.requires_grad for x in outcomes])
    made.only = made.outcomes[0]
    kind.program = made
    return result


cdef bint _is_pure(Program program) except -1:
    """Whether it writes nothing into what it is given, and keeps little."""
    cdef int i
    for i in range(program.step_count):
        if program.steps[i].place == NOWHERE:
            return False
    for place in program.outcomes:
        if place < program.given and program.step_count:  # maybe another now than it was
            return False
    for tensor in program.kept:
        if (<Held>tensor).requires_grad or _bytes_of(<Held>tensor) > MOST_KEPT_BYTES:
            return False
    return True


cdef object _dispatched(Dispatched function, PyObject **args, size_t flags, PyObject *names):
    cdef Asked asked
    cdef CallKind kind
    cdef size_t place
    cdef bint is_made = False
    cdef Py_ssize_t count = PyVectorcall_NARGS(flags)
    # within autocast functions cast what they are given
    if _recorder != NULL or _is_casting() or not _told(function, args, count, names, &asked):
        return PyObject_Vectorcall(function.function, args, flags, names)
    place = _place_of(&asked)
    kind = _kind_at(place, &asked)
    if kind is None:
        if _made_the_same(&asked):
            _told(function, args, count, names, &asked)
            place = _place_of(&asked)
            kind = _kind_at(place, &asked)
        if kind is None:
            _noted[place] = kind = _new_kind(function, args, count, names, &asked)
    if kind.program is not None:
        result = _called_again(kind, asked.given, &is_made)
        if is_made:
            return result
    elif kind.composed is not None:
        result = _composed_again(kind, asked.given)
        if result is not None:
            return result
    elif kind.calls < BEFORE_NOTING:
        kind.calls += 1
    elif kind.calls < BEFORE_NOTING + MOST_TRIES:
        return _noted_call(function, kind, args, flags, names, &asked)
    return PyObject_Vectorcall(function.function, args, flags, names)


cdef class Dispatched:
    """A function whose calls are known after a few of a kind; to everybody else it is the function.

    It must depend on nothing but the kinds of its arguments, and numbers and names among these: not on what tensors
    hold, unless it looks at that; not on what may be set elsewhere; and it draws no random numbers.
    """

    cdef void *vector  # the interpreter calls it
    cdef readonly object function
    cdef dict __dict__
    cdef object __weakref__

    def __init__(self, function):
        self.function = function
        self.vector = <void *><vectorcallfunc>_dispatched

    def __get__(self, instance, owner):
        return self if instance is None else PyMethod_New(self, instance)

    def __repr__(self):
        return repr(self.function)

    def __reduce__(self):
        return self.__qualname__  # the name it is found by, as of a function

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


cdef Dispatched _any_of_them = Dispatched.__new__(Dispatched)
cyx_as_function(
    <PyTypeObject *>Dispatched, <char *>&_any_of_them.vector - <char *><PyObject *>_any_of_them
)
