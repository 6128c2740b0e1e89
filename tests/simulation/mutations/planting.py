"""How a bug is planted: a piece of production is replaced by another, for as long as a seed runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from cyxcentral import (
    jobrules,
)

Mutation = Callable[[], contextlib.AbstractContextManager[object]]
MUTATIONS: dict[str, Mutation] = {}


def planted(make: Callable[[], Iterator[Any]]) -> Mutation:
    """A generator of patches becomes a mutation of its name: all patches at once."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for patch in make():
                stack.enter_context(patch)
            yield

    MUTATIONS[make.__name__] = plant
    return plant


def rule(event: type, **changes: Any) -> Any:
    """Another row of the table of what may happen to a job."""
    return mock.patch.dict(jobrules.RULES, {event: jobrules.RULES[event]._replace(**changes)})


def anything(*_: Any) -> None:
    """A guard that lets everything pass."""


async def nothing(*_: Any) -> None:
    """What is not done."""
