"""Programs that are run compiled and plain: what is the same to the last bit, and what a compiled step refuses."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim

How = Callable[[Any], Any]  # compiles a step, or leaves it as it is
Program = TypeVar("Program", bound=Callable[..., Any])


class Programs(Generic[Program]):
    """Of one file, by their names: a program is marked as one that must be the same, or that is refused."""

    def __init__(self) -> None:
        self.equal: dict[str, Program] = {}
        self.unfit: dict[str, tuple[Program, str]] = {}

    def same(self, program: Program) -> Program:
        self.equal[program.__name__] = program
        return program

    def refused(self, said: str) -> Callable[[Program], Program]:
        """said: a regular expression of the error."""

        def put(program: Program) -> Program:
            self.unfit[program.__name__] = program, said
            return program

        return put


def plain(step: Any) -> Any:
    return step


def bits(value: Any) -> Any:
    """What of results is compared: every bit of tensors and arrays, in lists and dicts too."""
    if isinstance(value, (list, tuple)):
        return [bits(part) for part in value]
    if isinstance(value, dict):
        return {name: bits(part) for name, part in value.items()}
    if isinstance(value, (cx.Tensor, np.ndarray)):
        array = np.asarray(value.detach().numpy() if isinstance(value, cx.Tensor) else value)
        return array.shape, str(array.dtype), array.tobytes()
    return repr(value)


def run(program: Callable[[How], Any], how: How) -> Any:
    """The bits of what a program returns that is given `how`."""
    cx.manual_seed(0)
    return bits(program(how))


def batch(number: int, rows: int = 6) -> tuple[Any, Any]:
    drawn = np.random.default_rng(number)
    return cx.tensor(drawn.normal(size=(rows, 8)).astype(np.float32)), cx.tensor(drawn.integers(0, 3, rows))


def net(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), *(between or (nn.ReLU(),)), nn.Linear(16, 3))


def sgd(model: nn.Module, **options: Any) -> optim.Optimizer:
    return optim.SGD(model.parameters(), lr=0.1, **options)


def update(optimizer: optim.Optimizer, loss: Any) -> Any:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def train(
    how: How,
    model: nn.Module,
    output: Callable[[Any], Any],
    before: Callable[[int], Any] = lambda number: None,
    calls: int = 6,
) -> list[Any]:
    """A step of cross-entropy in calls; before(number of the call) changes something outside."""
    optimizer = sgd(model)
    step = how(lambda x, y: update(optimizer, F.cross_entropy(output(x), y)))
    found = []
    for number in range(calls):
        before(number)
        found.append(step(*batch(number)))
    return [found, model.state_dict()]
