"""Random training steps, run plain and compiled: what a program is made of, every bit it gives, and shrinking it."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

import cyxcore as cx
from cyxcore import bands, composed, eager, nn, onepass, optim, passes, recompute
from cyxcore.kernels import cpu
from tests.bits.operations import MOST_ELEMENTS, RULES, WEIGHTS, Instruction, Program, Scene

ISAS = ("avx512", "avx2", "portable")
# What a pass does to large arrays only it does to small ones too.
LOWERED = (
    (onepass, "LEAST_ELEMENTS", 64),
    (recompute, "LEAST_ELEMENTS", 64),
    (bands, "BAND_BYTES", 2048),
    (bands, "LEAST_BYTES", 4096),
    (bands, "LEAST_ROWS", 4),
    (bands, "LEAST_SHORT_ROWS", 2),
    (passes, "LONG_ROWS", 16),
)

COMPOSED = ((eager, "LEAST_COMPOSED", 0), (composed, "LEAST_USES", 0))

OPTIMIZERS: list[Callable[[Any], optim.Optimizer]] = [
    lambda p: optim.SGD(p, lr=0.05),
    lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda p: optim.SGD(p, lr=0.05, weight_decay=0.1),
    lambda p: optim.Adam(p, lr=0.01),
    lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.99)),
    lambda p: optim.AdamW(p, lr=0.01),
    lambda p: optim.NAdam(p, lr=0.01),
    lambda p: optim.RMSprop(p, lr=0.01),
    lambda p: optim.RMSprop(p, lr=0.01, centered=True, momentum=0.9),
    lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    lambda p: optim.Lion(p, lr=0.01, weight_decay=0.1),
    lambda p: optim.Adamax(p, lr=0.01),
    lambda p: optim.RAdam(p, lr=0.01),
    lambda p: optim.Adadelta(p, lr=1.0),
    lambda p: optim.Adafactor(p, lr=0.01),
    lambda p: optim.Rprop(p, lr=0.01),
    lambda p: optim.ASGD(p, lr=0.01),
]


def drawn(seed: int) -> Program:
    """The program of a seed."""
    dice = random.Random(seed)
    ops, weights = list(WEIGHTS), list(WEIGHTS.values())
    body = [
        Instruction(op, dice.randrange(1000), dice.randrange(1000), dice.randrange(1000))
        for op in dice.choices(ops, weights, k=dice.choice([3, 6, 10, 16, 30]))
    ]
    rows, width = (
        dice.choice([1, 2, 3, 5, 8, 16, 17, 33, 64, 130]),
        dice.choice([1, 2, 3, 4, 7, 8, 12, 16, 31, 33, 64, 70]),
    )
    return Program(rows, width, dice.randrange(1000), dice.randrange(1000), dice.randrange(2**16), tuple(body))


class Setting(NamedTuple):
    """How a program is run: which of its steps are compiled, with which kernels."""

    compiled: Callable[[int], bool]
    isa: str = ""
    threads: int = 1
    lowered: bool = False  # the bounds of the passes
    composed: bool = False  # whether functions of plain steps are one on the tape however small their tensors are


@contextmanager
def _set(setting: Setting) -> Iterator[None]:
    isa, threads = cpu.isa(), cpu.get_num_threads()
    changed = (LOWERED if setting.lowered else ()) + (COMPOSED if setting.composed else ())
    bounds = [(module, name, getattr(module, name)) for module, name, _ in changed]
    with suppress(ValueError):  # a machine without them
        cpu.set_isa(setting.isa or isa)
    cpu.set_num_threads(setting.threads)
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        cpu.set_isa(isa)
        cpu.set_num_threads(threads)
        for module, name, value in bounds:
            setattr(module, name, value)


def _forward(scene: Scene, x: Any, labels: Any) -> tuple[list[Any], Any]:
    """The losses of a program as one, and its last value."""
    p = scene.program
    scene.labels = labels
    scene.values, scene.losses, scene.done = [x], [], []
    scene.values.append(scene.part(lambda: nn.Linear(p.width, p.width), "first")(x))
    first = scene.values[-1].mean() * 0.1
    for number, instruction in enumerate(p.body):
        scene.number = number
        of = scene.pick(instruction.a, lambda value: True)
        made = RULES[instruction.op](scene, of, instruction)
        scene.done.append((instruction, of, list(scene.values)))
        if made is not None and made.size and made.size <= MOST_ELEMENTS and made.dtype == x.dtype:
            scene.values.append(made)
    last = scene.values[-1]
    losses = [first, *scene.losses, last.square().mean()]
    return losses, last


def _total(losses: Sequence[Any], how: int) -> Any:
    total = losses[0]
    for place, loss in enumerate(losses[1:]):
        match how % 4:
            case 0:
                total = total + loss
            case 1:
                total = total + 0.5 * loss
            case 2:
                total = (total + loss) / 2
            case 3:
                total = loss * 0.01 - total if place % 2 else total - loss * 0.1
    return total


def _steppers(scene: Scene, optimizer: optim.Optimizer) -> list[Callable[[Any, Any], Any]]:
    """A whole step; and one that leaves its gradients to the next."""
    how, model = scene.program.training, scene.model
    adds = bool(how & 6144)  # to gradients that are there

    def gather(x: Any, labels: Any) -> Any:
        losses, last = _forward(scene, x, labels)
        total = _total(losses, how)
        if how & 4 and len(losses) > 1:  # two walks back, whose gradients are added up
            losses[0].backward(retain_graph=True)
            total.backward()
        else:
            total.backward()
        if how & 16:  # the gradients of another batch on top
            more, _ = _forward(scene, x * 0.5, labels)
            _total(more, how).backward()
        return total, last

    def step(x: Any, labels: Any) -> Any:
        if not adds:
            optimizer.zero_grad()
        total, last = gather(x, labels)
        if how & 8:
            optim.clip_grad_norm_(model.parameters(), 0.5)
        elif how & 32:
            optim.clip_grad_value_(model.parameters(), 0.1)
        optimizer.step()
        if adds:
            optimizer.zero_grad()
        return total, last

    return [step, gather] if how & 4096 else [step]


def outcome(program: Program, setting: Setting, steps: int = 3) -> list[Any]:
    """Every bit of a few steps: losses, the last value, then weights, buffers and the optimiser's state."""
    with _set(setting):
        return _outcome(program, setting, steps)


def _outcome(program: Program, setting: Setting, steps: int) -> list[Any]:
    cx.manual_seed(program.seed)
    scene, how = Scene(program), program.training
    rng = np.random.default_rng(program.seed)

    def batch() -> tuple[Any, Any]:
        x = rng.normal(size=(program.rows, program.width)).astype(dtype)
        return cx.tensor(x), cx.tensor(rng.integers(0, 50, program.rows))

    dtype: Any = np.float32
    with cx.no_grad():
        _forward(scene, *batch())
    if how & 1536 == 1536:
        scene.model.double()
        dtype = np.float64
    parameters = list(scene.model.parameters())
    if how & 64 and len(parameters) > 2:
        parameters[how % len(parameters)].requires_grad_(False)
    half = len(parameters) // 2
    groups: Any = parameters
    if how & 128 and half:
        groups = [{"params": parameters[:half], "lr": 0.002}, {"params": parameters[half:]}]
    optimizer = OPTIMIZERS[program.optimizer % len(OPTIMIZERS)](groups)
    schedule = cx.lr_scheduler.ExponentialLR(optimizer, 0.7) if how & 256 else None
    both = [(step, cx.compile(step)) for step in _steppers(scene, optimizer)]
    found: list[Any] = []
    for number in range(steps):
        step, ready = both[(number + 1) % len(both)]
        made = (ready if setting.compiled(number) else step)(*batch())
        found += [_bits(value) for value in made]
        if schedule is not None:
            schedule.step()
    found += [(name, _bits(value)) for name, value in scene.model.state_dict().items()]
    state = optimizer.state
    found += [(place, name, _bits(value)) for place in sorted(state) for name, value in sorted(state[place].items())]
    return found


def _bits(value: Any) -> bytes:
    """The bits of an array; which NaN one is does not count."""
    array = np.array(value.numpy() if hasattr(value, "numpy") else value)
    array[np.isnan(array)] = np.nan
    return array.tobytes()


def setting_of(seed: int) -> Setting:
    """How the program of a seed is compiled: other kernels and threads than those of its plain steps, or the same."""
    dice = random.Random(-seed - 1)
    every = dice.choice([1, 1, 2, 3])
    isa, threads = dice.choice(ISAS), dice.choice([1, 1, 2, 3])
    lowered, composed = dice.random() < 0.5, dice.random() < 0.5
    return Setting(lambda number: number % every == every - 1, isa, threads, lowered, composed)


def difference(program: Program, setting: Setting) -> str:
    """What differs between the plain steps and the compiled ones; empty where nothing does."""
    plainly = Setting(lambda number: False, composed=setting.composed)
    plain, made = outcome(program, plainly), outcome(program, setting)
    if len(plain) != len(made):
        return "other state"
    return ", ".join(
        str(one[:-1] if isinstance(one, tuple) else f"result {place}")
        for place, (one, other) in enumerate(zip(plain, made, strict=True))
        if one != other
    )


def shrunk(program: Program, fails: Callable[[Program], bool]) -> Program:
    """A smaller program that fails too."""
    smaller = True
    while smaller:
        smaller = False
        for tried in _simpler(program):
            if fails(tried):
                program, smaller = tried, True
                break
    return program


def _simpler(program: Program) -> Iterator[Program]:
    body = program.body
    size = len(body) // 2
    while size:
        for start in range(0, len(body) - size + 1, size):
            yield program._replace(body=(*body[:start], *body[start + size :]))
        size //= 2
    for bit in range(16):
        if program.training >> bit & 1:
            yield program._replace(training=program.training & ~(1 << bit))
    if program.optimizer:
        yield program._replace(optimizer=0)
    yield from (program._replace(rows=rows) for rows in (1, 2, 3, 8) if rows < program.rows)
    yield from (program._replace(width=width) for width in (1, 2, 4, 8) if width < program.width)
    for place, each in enumerate(body):
        for changed in (each._replace(a=0), each._replace(b=0), each._replace(c=0)):
            if changed != each:
                yield program._replace(body=(*body[:place], changed, *body[place + 1 :]))
