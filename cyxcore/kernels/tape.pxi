# The walk back over what results remember, and gradient rules that are known (tensors.pyx, cyxcore/tape.py).
#
# A rule of gradients.py is Python, and asks nobody for numbers: what it does depends on the call it is the gradient of
# only. So it is watched once, and what it did is made again as a row of calls: a Program. Rules that go the general way
# somewhere, or look at a number, are asked every time.

cdef enum:
    MOST_SLOTS = 128  # of a program
    BEFORE_WATCHING = 2  # backward passes of a call after which its rule is watched: the calls in it are known then
    MOST_TRIES = 3
    MOST_JOINED = 8  # calls of a program that are made tile by tile
    LEAST_JOINED = 65536  # elements of these: smaller ones stay in the cache
    NOWHERE = -1
    EITHER = -1

cdef extern from *:
    """
    static __thread void *recorder = 0; /* a thread's own: what others do meanwhile is none of its rule's */
    """
    void *_recorder "recorder"


cdef inline void _spoil() noexcept:
    """What is watched did something that a program cannot make again."""
    if _recorder != NULL:
        (<Recorder>_recorder).spoiled = True


@cython.final
cdef class Recorder:
    """Watches the calls of this thread."""

    cdef list notes  # of each call: it, its inputs, its result (None: it was written into the first input)
    cdef tuple composed  # of a call of several operations: what makes it again, its inputs, its result; None: there is none
    cdef bint spoiled
    cdef int recording  # what all calls must have in common; EITHER: it is not asked

    cdef int note(self, Call call, PyObject **tensors, Py_ssize_t count, Held result) except -1:
        if self.recording != EITHER and self.recording != _recording:
            self.spoiled = True
        self.notes.append((call, tuple([<object>tensors[i] for i in range(count)]), result))
        return 0


cdef struct Step:
    PyObject *call  # the program has it
    int count
    int place  # of the result; NOWHERE: it is written into the first input
    int inputs[5]
    uint64_t last  # which of the inputs nobody needs afterwards


@cython.final
cdef class Program:
    """Calls in a row. Slots: what is given, then tensors that are always the same, then results of the calls."""

    cdef Step *steps
    cdef int step_count, given, slot_count
    cdef int only  # the slot of the first outcome, where a function has results of its own
    cdef uint64_t used  # which of the given a call needs
    cdef list calls
    cdef list kept  # the tensors that are always the same
    cdef list shapes  # of these, and their dtypes
    cdef list outcomes  # a slot, None, or (slot, starts, stops) of a Piece
    cdef cyx_call *group  # records of the calls, where they are made in one loop; otherwise NULL
    cdef bint joined  # whether they are made tile by tile, and only what the last one makes is stored (fused.c)

    def __dealloc__(self):
        free(self.steps)
        free(self.group)


cdef Program _program_of(Recorder watched, list given, list outcomes):
    """What was watched as a program; None where it is none. given: tensors that are of nobody else."""
    cdef Program made = Program.__new__(Program)
    cdef dict places = {id(tensor): place for place, tensor in enumerate(given)}
    cdef Step *step
    cdef Call call
    cdef int i, k
    if watched.spoiled or watched.composed is not None:
        return None
    made.calls, made.kept, made.outcomes, made.given = [], [], [], len(given)
    results = {id(note[2]) for note in watched.notes if note[2] is not None}
    for _, inputs, _ in watched.notes:
        for tensor in inputs:
            if id(tensor) not in places and id(tensor) not in results:
                places[id(tensor)] = made.given + len(made.kept)
                made.kept.append(tensor)
    made.shapes = [((<Held>tensor).shape, (<Held>tensor).dtype) for tensor in made.kept]
    made.slot_count = made.given + len(made.kept)
    if made.slot_count + len(watched.notes) > MOST_SLOTS:
        return None
    made.steps = <Step *>calloc(len(watched.notes) + 1, sizeof(Step))
    if made.steps == NULL:
        raise MemoryError
    for call, inputs, result in watched.notes:
        step = &made.steps[made.step_count]
        made.calls.append(call)
        step.call, step.count, step.last = <PyObject *>call, len(inputs), 0
        for i in range(step.count):
            place = places.get(id(inputs[i]))
            if place is None:  # made of something that is not known any more
                return None
            step.inputs[i] = place
            if place < made.given:
                made.used |= <uint64_t>1 << <int>place
        step.place = NOWHERE
        if result is not None:
            places[id(result)] = step.place = made.slot_count
            made.slot_count += 1
        made.step_count += 1
    wanted = set()
    for outcome in outcomes:
        found = None
        if outcome is not None:
            tensor = outcome.g if type(outcome) is _piece else outcome
            found = places.get(id(tensor))
            if found is None or made.given <= found < made.given + len(made.kept):
                return None
            wanted.add(found)
            if found < made.given:
                made.used |= <uint64_t>1 << <int>found
            if type(outcome) is _piece:
                found = (found, outcome.starts, outcome.stops)
        made.outcomes.append(found)
    for k in range(made.step_count - 1, -1, -1):
        for i in range(made.steps[k].count):
            place = made.steps[k].inputs[i]
            if place >= made.given + len(made.kept) and place not in wanted:
                wanted.add(place)
                made.steps[k].last |= <uint64_t>1 << i
    if [(<Call>one).op for one in made.calls] == ["adam_m", "adam_v", "adam_update"]:
        made.group = <cyx_call *>malloc(3 * sizeof(cyx_call))
        if made.group == NULL:
            raise MemoryError
        for k in range(3):
            made.group[k] = (<Call>made.calls[k]).record
            made.group[k].inputs = made.group[k].own_in
        made.group[0].group = 3
    made.joined = _is_one_pass(made)
    return made


JOINED = frozenset("neg abs exp square sign sin cos add sub mul div".split())  # these can be in a group, in any dtype


cdef bint _is_one_pass(Program made):
    """Whether the calls are element-wise, of one size, and what the last one makes is all that anybody wants of them."""
    cdef int k, last = made.step_count - 1
    cdef Call call
    if not 1 <= last < MOST_JOINED or [x for x in made.outcomes if x is not None] != [made.steps[last].place]:
        return False
    for k in range(made.step_count):
        call = made.calls[k]
        if call.op not in JOINED or made.steps[k].place != made.given + <int>len(made.kept) + k:
            return False
        if call.record.out.size < LEAST_JOINED or call.record.out.size != (<Call>made.calls[last]).record.out.size:
            return False
    return True


cdef bint _is_plain(Held tensor, tuple shape, str dtype) except -1:
    """Whether a tensor is here, up to date, and of a shape and dtype; there may be gaps in its memory."""
    if not _is_here(tensor) or tensor.dtype is not dtype or (tensor._view is not None and not _as_it_is(tensor)):
        return False
    return tensor.shape is shape or tensor.shape == shape


cdef bint _played(Program program, PyObject **slots, bint recording) except -1:
    """Makes the calls. slots: the given ones filled, borrowed; others NULL, owned afterwards. False: one failed.

    recording: whether results remember what they came from.
    """
    cdef PyObject *tensors[5]
    cdef Step *step
    cdef Call call
    cdef Held result
    cdef uint64_t asked
    cdef int i, k
    for i in range(len(program.kept)):
        slots[program.given + i] = <PyObject *>program.kept[i]
        Py_INCREF(<object>slots[program.given + i])
    if program.group != NULL and _has_no_gaps(program, slots):
        return _made_together(program, slots)
    if program.joined and _has_no_gaps(program, slots):
        return _made_in_one_pass(program, slots)
    for k in range(program.step_count):
        step = &program.steps[k]
        call = <Call>step.call
        for i in range(step.count):
            tensors[i] = slots[step.inputs[i]]
        if step.place == NOWHERE:
            if (<Held>tensors[0])._pointer == NULL or not _ran(call, (<Held>tensors[0])._pointer, tensors, step.count):
                return False
            _memory_of(<Held>tensors[0]).written = now()
        else:
            if call.view:
                result = _seen(call, <Held>tensors[0])
            else:
                result = _result(call)
                if not _ran(call, result._pointer, tensors, step.count):
                    return False
            if recording and call.differentiable:
                asked = 0
                for i in range(step.count):
                    asked |= <uint64_t>(<Held>tensors[i]).requires_grad << i
                if asked:
                    _remember(result, call, tensors, step.count, asked)
            Py_INCREF(result)
            slots[step.place] = <PyObject *>result
        if step.last:
            for i in range(step.count):
                if step.last >> i & 1:
                    Py_XDECREF(slots[step.inputs[i]])
                    slots[step.inputs[i]] = NULL
    return True


cdef bint _has_no_gaps(Program program, PyObject **slots) noexcept:
    """Whether all that a program is given, and has, is in one piece."""
    cdef int i
    for i in range(program.given + <int>len(program.kept)):
        if (<Held>slots[i])._pointer == NULL:
            return False
    return True


cdef bint _made_together(Program program, PyObject **slots) except -1:
    """The calls of a program that all write into what they are given, in one loop."""
    cdef cyx_call own[3]  # while others run, the program may be made by them
    cdef cyx_message message
    cdef int64_t failed = 0
    cdef double work = 0
    cdef Held tensor
    cdef cyx_status status
    cdef int i, k
    for k in range(program.step_count):
        for i in range(program.steps[k].count):
            tensor = <Held>slots[program.steps[k].inputs[i]]
            program.group[k].own_in[i].data = tensor._pointer
        program.group[k].out.data = program.group[k].own_in[0].data
        work += program.group[k].work
    if work < 20000.0:
        status = _run(program.group, 3, &failed, &message)
    else:
        for k in range(program.step_count):
            own[k] = program.group[k]
            own[k].inputs = own[k].own_in
        with nogil:
            status = _run(own, 3, &failed, &message)
    for k in range(program.step_count):
        _memory_of(<Held>slots[program.steps[k].inputs[0]]).written = now()
    return status == CYX_OK


cdef bint _made_in_one_pass(Program program, PyObject **slots) except -1:
    """The calls of a program that is `joined`."""
    cdef cyx_call own[MOST_JOINED]
    cdef cyx_message message
    cdef int64_t failed = 0
    cdef cyx_status status
    cdef int i, k, first = program.given + <int>len(program.kept), last = program.step_count - 1
    cdef Step *step
    cdef Held result = _result(<Call>program.steps[last].call)
    for k in range(program.step_count):
        step = &program.steps[k]
        own[k] = (<Call>step.call).record
        own[k].inputs = own[k].own_in
        for i in range(step.count):
            if step.inputs[i] >= first:  # an address that names what is stored nowhere
                own[k].own_in[i].data = &program.steps[step.inputs[i] - first]
            else:
                own[k].own_in[i].data = (<Held>slots[step.inputs[i]])._pointer
        own[k].out.data = result._pointer if k == last else <void *>step
        own[k].elided = k < last
    own[0].group = program.step_count
    with nogil:
        status = _run(own, program.step_count, &failed, &message)
    Py_INCREF(result)
    slots[program.steps[last].place] = <PyObject *>result
    return status == CYX_OK


cdef inline void _let_go(Program program, PyObject **slots) noexcept:
    cdef int i
    for i in range(program.given, program.slot_count):
        Py_XDECREF(slots[i])


# gradient rules -------------------------------------------------------------------------------------

# what cyxcore/tape.py gives, once
cdef object _backwards = None  # (tensor, its gradient) -> of each input its gradient, None where nobody asks
cdef object _rules = None  # gradients.input_gradients
cdef object _joined = None  # (gradient so far, new) -> a Sum
cdef object _whole = None  # (Sum or Piece, tensor) -> a tensor
cdef object _piece = None  # the class
cdef object _composed = None  # the class of operations that are several
cdef object _forget = None  # tape.forget
cdef object _check_kept = None  # tape.check_kept


def connect_tape(backwards, rules, joined, whole, piece, composed, forget, check_kept):
    """Tell this module of the general way back."""
    global _backwards, _rules, _joined, _whole, _piece, _composed, _forget, _check_kept
    _backwards, _rules, _joined, _whole, _piece, _composed = backwards, rules, joined, whole, piece, composed
    _forget, _check_kept = forget, check_kept


cdef object _gradients(Held tensor, object g, uint64_t wanted):
    """Of each input of what a tensor was made by, its gradient; None where nobody asks."""
    cdef Node node = tensor._op
    cdef Call call = node.call
    if call is None or _recording or not isinstance(g, Held) or not PyByteArray_AS_STRING(_straight)[0]:
        return _backwards(tensor, g)
    if not _is_plain(<Held>g, call.shape, call.dtype):
        return _backwards(tensor, g)
    if call.backs is None:
        call.backs = {}
    known = call.backs.get(wanted, 0)
    if type(known) is Program:
        found = _by_program(<Program>known, tensor, node, call, <Held>g)
        if found is not None:
            return found
    elif known is not None:
        call.backs[wanted] = known + 1
        if known >= BEFORE_WATCHING:
            program = _watched_rule(tensor, node, call, <Held>g, wanted)
            if program is not None:
                call.backs[wanted] = program
            elif known >= BEFORE_WATCHING + MOST_TRIES:
                call.backs[wanted] = None
    return _backwards(tensor, g)


cdef object _by_program(Program program, Held tensor, Node node, Call call, Held g):
    cdef PyObject *slots[MOST_SLOTS]
    cdef Held x
    cdef int i, place, count = node.count
    if node.forgotten:
        return None
    memset(slots, 0, program.slot_count * sizeof(PyObject *))
    slots[0] = <PyObject *>g
    for i in range(count):
        slots[1 + i] = _input_of(node, i)
        Py_INCREF(<object>slots[1 + i])  # the walk of another thread may let the node forget it
    slots[1 + count] = <PyObject *>tensor
    try:
        for i in range(1, 2 + count):
            if not program.used >> i & 1:
                continue
            x = <Held>slots[i]
            if x._memory is not None and x._memory.written > node.time:
                return None  # the general way says what is missing
            if i <= count:
                if not _is_plain(x, <tuple>call.key[2 * i - 1], <str>call.key[2 * i]):
                    return None
            elif not _is_plain(x, call.shape, call.dtype):
                return None
        if not _played(program, slots, False):
            return None
        found = []
        for outcome in program.outcomes:
            if type(outcome) is int:
                place = outcome
                found.append(<object>slots[place])
            elif outcome is None:
                found.append(None)
            else:
                place = outcome[0]
                found.append(_piece(<object>slots[place], outcome[1], outcome[2]))
        return found
    finally:
        _let_go(program, slots)
        for i in range(count):
            Py_DECREF(<object>slots[1 + i])


cdef Program _watched_rule(Held tensor, Node node, Call call, Held g, uint64_t wanted):
    """The program of a rule, or None where it has none (yet). The rule is asked about other tensors in the same memory."""
    cdef Recorder watched = Recorder.__new__(Recorder)
    cdef list given = [g, *node.inputs, tensor]
    cdef void *before = _recorder
    cdef Held alias
    for place, x in enumerate(given):
        if not _is_here(<Held>x):
            return None
        alias = _new()
        alias._array = _array_of(<Held>x)
        alias._pointer, alias._numpy_type = (<Held>x)._pointer, (<Held>x)._numpy_type
        alias.shape, alias.dtype = (<Held>x).shape, (<Held>x).dtype
        given[place] = alias
    watched.notes, watched.recording = [], EITHER
    set_recorder(<void *>watched)
    try:
        asked = [bool(wanted >> i & 1) for i in range(node.count)]
        outcomes = _rules(call.op, given[0], given[1 : 1 + node.count], given[1 + node.count], call.attrs, asked)
    except Exception:
        return None
    finally:
        set_recorder(before)
    outcomes = [one if asked[i] else None for i, one in enumerate(outcomes)]
    return _program_of(watched, given, outcomes)


cdef inline void set_recorder(void *recorder) noexcept:
    global _recorder
    _recorder = recorder


# updates -----------------------------------------------------------------------------------------------


@cython.final
cdef class Replay:
    """An update of a parameter, as it was made when it was watched."""

    cdef Program program
    cdef list given  # the shape and dtype of what is new each time
    cdef list targets  # what an outcome of the program is written into
    cdef tuple state

    def run(self, tuple given, state) -> bool:
        """Make the update of other gradients and scalars. False, and nothing is done, where it would not be the same."""
        cdef PyObject *slots[MOST_SLOTS]
        cdef Program program = self.program
        cdef Held target
        cdef tuple kind
        cdef Py_ssize_t place = 0
        cdef PyObject *name
        cdef PyObject *held
        cdef int i = 0, kept = <int>len(program.kept)
        memset(slots, 0, program.slot_count * sizeof(PyObject *))
        if not isinstance(state, dict) or len(given) != program.given or len(state) != len(self.state):
            return False
        while PyDict_Next(state, &place, &name, &held):
            if held != <PyObject *>self.state[i]:
                return False
            i += 1
        for i in range(program.given):
            kind = <tuple>self.given[i]
            if not isinstance(given[i], Held) or not _is_plain(<Held>given[i], <tuple>kind[0], <str>kind[1]):
                return False
            slots[i] = <PyObject *>given[i]
        for i in range(len(program.shapes)):
            kind = <tuple>program.shapes[i]
            target = <Held>program.kept[i] if i < kept else <Held>self.targets[i - kept]
            if target._pointer == NULL or not _is_plain(target, <tuple>kind[0], <str>kind[1]) or not _is_open(target):
                return False
        try:
            if not PyByteArray_AS_STRING(_straight)[0]:
                return False
            if not _played(program, slots, False):
                raise KernelError("optimizer: a kernel failed in the middle of a step")
            for i, target in zip(program.outcomes, self.targets):
                memcpy(target._pointer, (<Held>slots[i])._pointer, _bytes_of(target))
                _memory_of(target).written = now()
            return True
        finally:
            _let_go(program, slots)


cdef size_t _bytes_of(Held tensor) except? 0:
    cdef size_t found = _item_bytes(tensor._numpy_type)
    for size in tensor.shape:
        found *= <size_t>size
    return found


def watched(update, tuple given, states, place):
    """(what update(*given) gives, {old: new}; a Replay of it, or None).

    update: writes into tensors that are always the same, and computes what to write into others. states[place]: what
    state it has afterwards.
    """
    cdef Recorder watching = Recorder.__new__(Recorder)
    cdef Replay made
    cdef void *before = _recorder
    watching.notes, watching.recording = [], EITHER
    set_recorder(<void *>watching)
    try:
        changed = update(*given)
    finally:
        set_recorder(before)
    pairs = [(old, new) for old, new in changed.items() if new is not old]
    if {id(old) for old in changed} & {id(x) for x in given}:  # a parameter as its own gradient: not so the next time
        return changed, None
    for old, new in pairs:
        if not isinstance(old, Held) or not isinstance(new, Held) or (<Held>old).shape != (<Held>new).shape:
            return changed, None
        if (<Held>old).dtype is not (<Held>new).dtype or not _item_bytes((<Held>old)._numpy_type):
            return changed, None
    made = Replay.__new__(Replay)
    made.program = _program_of(watching, list(given), [new for _, new in pairs])
    if made.program is None:
        return changed, None
    made.targets, made.state = [old for old, _ in pairs], tuple(states.get(place, {}).values())
    made.given = [((<Held>x).shape, (<Held>x).dtype) for x in given]
    made.program.shapes += [((<Held>x).shape, (<Held>x).dtype) for x in made.targets]
    return changed, made


def scalar(double number, str dtype):
    """A number as a tensor, or None where it is no float32 or float64."""
    cdef bint single = dtype == "float32"
    cdef Held made
    if not single and dtype != "float64":
        return None
    made = _new()
    made._pointer, made._block = _taken(8, 0), 1
    made.shape, made.dtype = (), dtype
    if single:
        (<float *>made._pointer)[0] = <float>number
    else:
        (<double *>made._pointer)[0] = number
    made._numpy_type = cnp.NPY_FLOAT32 if single else cnp.NPY_FLOAT64
    return made


# the walk --------------------------------------------------------------------------------------------

cdef struct Found:
    int64_t time
    PyObject *tensor

cdef Found *_found = NULL  # results, then what is left to look at; used while nobody else can run
cdef Py_ssize_t _room = 0
cdef int64_t _walks = 0


cdef bint _is_of_nobody_else(PyObject *g) except -1:
    """Whether a gradient that only the walk has is in memory that is no other tensor's: what is written to the gradient
    of a leaf must not change that of another, nor what backward() was given.
    """
    cdef Held tensor = <Held>g
    cdef PyObject *holder = <PyObject *>tensor._keeper  # of the memory: a Buffer, or an array
    cdef Py_ssize_t holders = 1
    if Py_REFCNT(g) > 2:  # the walk's, and the one of this function
        return False
    if tensor._block:
        return True
    if tensor._pointer == NULL or not _is_open(tensor):
        return False
    if tensor._view is not None and tensor._view.base is not None:  # of a tensor that nothing but this view has
        if Py_REFCNT(<PyObject *>tensor._view.base) > 1:
            return False
        if _array_users(<Held>tensor._view.base) > 1 + (holder == <PyObject *>(<Held>tensor._view.base)._array):
            return False
        holders = 2
    if tensor._keeper is None:
        if type(tensor._array) is not cnp.ndarray or _array_users(tensor) > 1:
            return False
        holder = cnp.PyArray_BASE(<cnp.ndarray>tensor._array)
        if holder == NULL:
            return True
    elif type(tensor._keeper) is cnp.ndarray and cnp.PyArray_BASE(<cnp.ndarray>tensor._keeper) != NULL:
        if Py_REFCNT(cnp.PyArray_BASE(<cnp.ndarray>tensor._keeper)) > 1:
            return False
    return Py_REFCNT(holder) == holders


cdef inline Py_ssize_t _array_users(Held tensor) noexcept:
    return Py_REFCNT(<PyObject *>tensor._array) if tensor._array is not None else 0


cdef int _later(const void *a, const void *b) noexcept nogil:
    return ((<const Found *>a).time < (<const Found *>b).time) - ((<const Found *>a).time > (<const Found *>b).time)


cdef int _grow() except -1:
    global _found, _room
    cdef Py_ssize_t room = 2 * _room if _room else 1024
    cdef Found *made = <Found *>realloc(_found, room * sizeof(Found))
    if made == NULL:
        raise MemoryError
    _found, _room = made, room
    return 0


@cython.final
cdef class Walk:
    """An iterator of (tensor, its gradient) of everything a root depends on, newest first.

    Leaves come last, those that were asked for last at the very end.
    """

    cdef list tensors
    cdef list nodes  # of each result
    cdef int *first  # of each result, where its edges begin
    cdef int *edges  # for each input of a result its place among the tensors, or NOWHERE
    cdef PyObject **pending  # a gradient, a Piece of one or a Sum for each tensor
    cdef Py_ssize_t count, results, at
    cdef object g  # of the tensor at `at`
    cdef bint create_graph, retain_graph

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.pending != NULL:
            for i in range(self.count):
                Py_XDECREF(self.pending[i])
        free(self.pending)
        free(self.first)
        free(self.edges)

    def __iter__(self):
        return self

    def __next__(self):
        if not self._forward():
            raise StopIteration
        return self.tensors[self.at], self.g

    cdef bint _forward(self) except -1:
        """Whether there is another tensor with a gradient."""
        cdef Held tensor
        if self.g is not None:
            self._spread()
            self.g = None
            if not self.retain_graph:
                self._let_go()
        while self.at + 1 < self.count:
            self.at += 1
            if self.pending[self.at] == NULL:
                continue
            g = <object>self.pending[self.at]
            Py_DECREF(g)
            self.pending[self.at] = NULL
            tensor = <Held>self.tensors[self.at]
            if not isinstance(g, Held):
                g = _whole(g, tensor, self.create_graph)
            if tensor._hooks is not None:
                for hook in tensor._hooks:
                    changed = hook(g)
                    g = g if changed is None else changed
            self.g = g
            return True
        return False

    cdef int _spread(self) except -1:
        """Tell the inputs of the tensor at `at` their gradients."""
        global _recording
        cdef Held tensor = <Held>self.tensors[self.at]
        cdef Node node
        cdef bint several
        cdef uint64_t wanted = 0
        cdef bint before = _recording
        cdef int *edges
        cdef int i, count
        if self.at >= self.results or tensor._op is None:
            return 0
        node = <Node>self.nodes[self.at]
        several = node.call is None and isinstance(node.own_op, _composed)
        # The edges are not those of what it remembers now; but a hook that asks for second derivatives assigns nothing.
        if tensor._op is not node and not (several and tensor._op.time <= node.time):
            raise GradientError(
                f"backward: a tensor of shape {tensor.shape} was assigned to on the way back (by a hook, or another "
                "thread); assign before or afterwards"
            )
        edges, count = self.edges + self.first[self.at], node.count
        for i in range(min(count, 64)):
            if edges[i] != NOWHERE:
                wanted |= <uint64_t>1 << i
        _recording = before and self.create_graph
        try:
            if several:
                self._spread_several(node, edges, count)
                return 0
            found = _gradients(tensor, self.g, wanted)
            for i in range(count):
                if edges[i] != NOWHERE and found[i] is not None:
                    self._add(edges[i], found[i])
        except Exception:
            _check_kept(tensor)  # the walk of another thread gave back what was needed here
            raise
        finally:
            _recording = before
        return 0

    cdef int _let_go(self) except -1:
        """Of the tensor at `at`, whose inputs know their gradients. Where only this walk has it, its memory is free now,
        and so is what it came from; otherwise it forgets that.
        """
        cdef Held tensor
        cdef Node node
        if self.at >= self.results:
            return 0
        tensor, node = <Held>self.tensors[self.at], <Node>self.nodes[self.at]
        self.tensors[self.at] = self.nodes[self.at] = None
        if Py_REFCNT(<PyObject *>tensor) > 1 and tensor._op is node:
            if node.call is None and not isinstance(node.own_op, _composed):
                _forget(tensor)
            elif not _is_of_leaves(tensor, MOST_VIEWS):
                node.forget()
        return 0

    cdef int _spread_several(self, Node node, int *edges, int count) except -1:
        """The same where the operation is several, which add to what there is of the gradients one after the other."""
        cdef PyObject *so_far
        cdef int i
        cdef list pending = []
        for i in range(count):
            so_far = self.pending[edges[i]] if edges[i] != NOWHERE else NULL
            pending.append(<object>so_far if so_far != NULL else None)
        found = node.own_op.totals(node, self.g, pending)
        for i in range(count):
            if edges[i] != NOWHERE and found[i] is not None:
                so_far = self.pending[edges[i]]
                Py_INCREF(found[i])
                self.pending[edges[i]] = <PyObject *>found[i]
                Py_XDECREF(so_far)
        return 0

    cdef int _add(self, int place, object new) except -1:
        cdef PyObject *so_far = self.pending[place]
        if so_far != NULL:
            if isinstance(<object>so_far, Held) and isinstance(new, Held):
                new = _operated("add", <object>so_far, new)
            else:
                new = _joined(<object>so_far, new)
        Py_INCREF(new)
        self.pending[place] = <PyObject *>new
        Py_XDECREF(so_far)
        return 0

    def into_leaves(self) -> None:
        """Walk to the end, and add the gradients of leaves to theirs."""
        cdef Held leaf
        while self._forward():
            if (<Held>self.tensors[self.at])._op is None:
                leaf = <Held>self.tensors[self.at]
                if leaf.grad is not None:
                    leaf.grad = leaf.grad + self.g
                elif self.create_graph or _is_of_nobody_else(<PyObject *>self.g):
                    leaf.grad = self.g
                else:
                    leaf.grad = self.g.copy()


cdef enum:
    MOST_VIEWS = 8  # and sums and the like after each other, which are looked at

OF_SHAPES = frozenset("add sub neg sum mean reshape transpose broadcast_to slice concat flip cast".split())


cdef bint _is_of_leaves(Held x, int depth) except -1:
    """Whether for the gradient of x nothing is needed but leaves: what it was made by reads shapes alone, or one number.

    depth: how many operations may come after each other.
    """
    cdef Node node = x._op
    cdef int i
    if node is None:
        return True
    op = node.own_op if node.call is None else node.call.op
    if node.forgotten or not depth or type(op) is not str:
        return False
    if op not in OF_SHAPES:
        if not (op == "mul" or op == "div") or node.asked != 1:
            return False
        for side in (<Held>_input_of(node, 1)).shape:
            if side != 1:
                return False
    for i in range(node.count):
        if _was_asked(node, i) and not _is_of_leaves(<Held>_input_of(node, i), depth - 1):
            return False
    return True


def is_of_leaves(Held x) -> bool:
    return _is_of_leaves(x, MOST_VIEWS)


def walk(Held root, start, bint create_graph, bint retain_graph):
    """The Walk back from a root whose gradient is `start`, or None where times alone do not tell the order: a tensor
    was assigned to, or a view learned late what it is of. Unless retain_graph, what was gone back through is let go of.
    """
    cdef Walk made = Walk.__new__(Walk)
    made.tensors, made.nodes, made.at = [], [], -1
    made.create_graph, made.retain_graph = create_graph, retain_graph
    if not _is_ordered(made, root):
        return None
    made.pending = <PyObject **>calloc(made.count, sizeof(PyObject *))
    if made.pending == NULL:
        raise MemoryError
    Py_INCREF(start)
    made.pending[0] = <PyObject *>start
    return made


cdef bint _is_ordered(Walk made, Held root) except -1:
    """Finds the tensors, their order and edges. Nothing here runs anybody's code: no other walk comes between."""
    global _walks
    cdef Py_ssize_t results = 0, waiting, edges = 0, leaves, i, edge = 0
    cdef Held tensor, x
    cdef Node node
    cdef int k
    _walks += 1
    if _room < 2:
        _grow()
    # Results from the front; from the back what waits to be looked at.
    _found[_room - 1].tensor, waiting = <PyObject *>root, 1
    while waiting:
        tensor = <Held>_found[_room - waiting].tensor
        waiting -= 1
        if tensor._walk == _walks:
            continue
        tensor._walk, tensor._place = _walks, NOWHERE
        node = tensor._op
        if node is None:
            continue
        if node.forgotten:
            _check_kept(tensor)
        while results + waiting + node.count + 2 > _room:
            i = _room
            _grow()
            if waiting:
                memcpy(&_found[_room - waiting], &_found[i - waiting], waiting * sizeof(Found))
        _found[results].time, _found[results].tensor = node.time, <PyObject *>tensor
        results += 1
        edges += node.count
        for k in range(node.count):
            x = <Held>_input_of(node, k)
            if x._op is not None and x._op.time >= node.time:
                return False
            if x.requires_grad and x._walk != _walks and _was_asked(node, k):
                waiting += 1
                _found[_room - waiting].tensor = <PyObject *>x
    if not results:
        made.tensors.append(root)
        made.count = 1
        return True
    qsort(_found, results, sizeof(Found), _later)
    made.results = results
    made.first, made.edges = <int *>malloc(results * sizeof(int)), <int *>malloc((edges + 1) * sizeof(int))
    if made.first == NULL or made.edges == NULL:
        raise MemoryError
    for i in range(results):
        tensor = <Held>_found[i].tensor
        tensor._place = <int>i
        made.tensors.append(tensor)
        made.nodes.append(tensor._op)
    # Leaves in the order of who asked for them last: their place is that of the last edge to them, counted below 0.
    for i in range(results):
        node = (<Held>made.tensors[i])._op
        made.first[i] = <int>edge
        for k in range(node.count):
            x = <Held>_input_of(node, k)
            made.edges[edge + k] = NOWHERE
            if x.requires_grad and x._op is None and _was_asked(node, k):
                x._place = -2 - <int>(edge + k)
        edge += node.count
    leaves = results
    for i in range(results):
        node = (<Held>made.tensors[i])._op
        for k in range(node.count):
            x = <Held>_input_of(node, k)
            if x.requires_grad and x._place == -2 - (made.first[i] + k):
                x._place = <int>leaves
                made.tensors.append(x)
                leaves += 1
            # else: a result, a leaf whose last edge is still to come, or nothing that is followed
    for i in range(results):
        node = (<Held>made.tensors[i])._op
        for k in range(node.count):
            x = <Held>_input_of(node, k)
            if x.requires_grad and _was_asked(node, k):
                made.edges[made.first[i] + k] = x._place
    made.count = leaves
    return True
