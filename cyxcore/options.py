"""The options of a layer or node: what each accepts, and the normal form that it is kept in."""

from collections.abc import Callable
from typing import Any, NamedTuple

REQUIRED = object()


class Option(NamedTuple):
    check: Callable[[Any], Any]  # returns the normal form or raises ValueError(what was expected)
    default: Any = REQUIRED


def natural(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"an integer of at least {least}")
        if value >= 2**31:
            raise ValueError(f"an integer from {least} to {2**31 - 1}")
        return value

    return check


def between(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"an integer from {least} to {most}")
        return value

    return check


def pair(least: int) -> Callable[[Any], tuple[int, int]]:
    def check(value: Any) -> tuple[int, int]:
        both = [value, value] if isinstance(value, int) else value
        if not isinstance(both, (list, tuple)) or len(both) != 2:
            raise ValueError("an integer or [height, width]")
        return natural(least)(both[0]), natural(least)(both[1])

    return check


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
            raise ValueError(f"a number from {low} to below {high}")
        return float(value)

    return check


def sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= 15 or list(value).count(-1) > 1:
        raise ValueError("a list of 1 to 15 sizes, at most one of them -1")
    return tuple(-1 if size == -1 else natural(1)(size) for size in value)


def choice(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return str(value)

    return check


def axes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= 15:
        raise ValueError("a list of 1 to 15 axes")
    return tuple(natural(0)(axis) for axis in value)


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**31:
        raise ValueError("an integer")
    return value


def each(rank: int, least: int) -> Callable[[Any], tuple[int, ...]]:
    """One integer for each of `rank` axes; a single one stands for all."""

    def check(value: Any) -> tuple[int, ...]:
        row = [value] * rank if isinstance(value, int) else value
        if not isinstance(row, (list, tuple)) or len(row) != rank:
            raise ValueError("an integer" + (f" or a list of {rank}, one for each axis" if rank > 1 else ""))
        return tuple(natural(least)(one) for one in row)

    return check


def padding(rank: int) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        return value if value in ("same", "valid") else each(rank, 0)(value)

    def told(value: Any) -> Any:
        try:
            return check(value)
        except ValueError as error:
            raise ValueError(f'"same", "valid" or {error}') from None

    return told


def counts(value: Any) -> tuple[int, ...]:
    """A shape without an unknown size."""
    row = [value] if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(row, (list, tuple)) or not 0 < len(row) <= 15:
        raise ValueError("a list of 1 to 15 sizes")
    return tuple(natural(1)(size) for size in row)


def finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise ValueError("a number")
    return float(value)


def numbers(value: Any) -> tuple[float, ...]:
    row = value if isinstance(value, (list, tuple)) else [value]
    if not 0 < len(row) <= 65_536:
        raise ValueError("a number, or a list of 1 to 65536")
    return tuple(finite(one) for one in row)


def nested(value: Any) -> Any:
    """A number, or lists of lists of them of equal lengths."""
    if not isinstance(value, (list, tuple)):
        return finite(value)
    rows = [nested(one) for one in value]
    if not 0 < len(rows) <= 65_536:
        raise ValueError("a number, or lists of numbers that are not empty")
    return rows


def text(most: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            raise ValueError(f"text of at most {most} letters")
        return value

    return check


def texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not len(value) <= 100_000:
        raise ValueError("a list of names")
    return tuple(text(256)(one) for one in value)


def table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("an object")
    return value
