"""The attributes an op may carry: what each accepts and the one normal form it is stored in.

A value that came from a file or another machine passes through here before anything looks at it,
so every check raises GraphError and nothing else. Lists become tuples; the normal form hashes.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cyxcore.dtype import DTYPES
from cyxcore.errors import GraphError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

MAX_RANK = 16
MAX_DIM = 2**31 - 1
MAX_CONST_ELEMENTS = 65_536
MAX_NAME_CHARS = 256

REQUIRED = object()  # marks an attribute without a default

Check = Callable[[str, Any], Any]  # (where, value) -> normal form


class Attr(NamedTuple):
    check: Check
    default: Any = REQUIRED


def _refuse(where: str, expected: str, value: Any) -> GraphError:
    shown = repr(value)
    return GraphError(f"{where}: expected {expected}, got {shown if len(shown) <= 80 else shown[:77] + '...'}")


def is_whole(value: Any) -> "TypeIs[int]":
    """Whether it is an integer: Python's, NumPy's or a tensor's. No bool is."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return hasattr(value, "__index__") and not getattr(value, "shape", ())


def several(given: Any) -> tuple[Any, ...]:
    """One axis or size, or as many as there are, as a tuple."""
    return (operator.index(given),) if is_whole(given) else tuple(given)


def integer(where: str, value: Any) -> int:
    if not is_whole(value) or not -MAX_DIM <= value <= MAX_DIM:
        raise _refuse(where, f"an integer within ±{MAX_DIM}", value)
    return operator.index(value)


def natural(where: str, value: Any) -> int:
    if not is_whole(value) or not 0 <= value <= MAX_DIM:
        raise _refuse(where, f"an integer 0..{MAX_DIM}", value)
    return operator.index(value)


def positive(where: str, value: Any) -> int:
    if natural(where, value) == 0:
        raise _refuse(where, f"an integer 1..{MAX_DIM}", value)
    return int(value)


def flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(where, "true or false", value)
    return value


def finite(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refuse(where, "a finite number", value)
    try:
        number = float(value)
    except OverflowError:
        raise _refuse(where, "a finite number", value) from None
    if not math.isfinite(number):
        raise _refuse(where, "a finite number", value)
    return number


def dtype(where: str, value: Any) -> str:
    if not isinstance(value, str) or value not in DTYPES:
        raise _refuse(where, f"one of {', '.join(DTYPES)}", value)
    return value


def name(where: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS or not value.isprintable():
        raise _refuse(where, f"a printable name of 1..{MAX_NAME_CHARS} characters", value)
    return value


def function(where: str, value: Any) -> Callable[..., Any]:
    """Python code, which comes from no file."""
    if not callable(value):
        raise _refuse(where, "a function", value)
    return value


def function_or_none(where: str, value: Any) -> Callable[..., Any] | None:
    return None if value is None else function(where, value)


def choice(*names: str) -> Check:
    def check(where: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise _refuse(where, f"one of {', '.join(names)}", value)
        return value

    return check


def _row(where: str, value: Any, check: Check, most: int = MAX_RANK) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > most:
        raise _refuse(where, f"a list of at most {most} entries", value)
    return tuple([check(where, entry) for entry in value])


def naturals(where: str, value: Any) -> tuple[int, ...]:
    return _row(where, value, natural)


def positives(where: str, value: Any) -> tuple[int, ...]:
    return _row(where, value, positive)


def natural_pair(where: str, value: Any) -> tuple[int, int]:
    row = _row(where, value, natural)
    if len(row) != 2:
        raise _refuse(where, "two integers [height, width]", value)
    return row[0], row[1]


def positive_pair(where: str, value: Any) -> tuple[int, int]:
    row = _row(where, value, positive)
    if len(row) != 2:
        raise _refuse(where, "two positive integers [height, width]", value)
    return row[0], row[1]


def axes(where: str, value: Any) -> tuple[int, ...]:
    row = _row(where, value, natural)
    if list(row) != sorted(set(row)):
        raise _refuse(where, "ascending, distinct, non-negative axes", value)
    return row


def permutation(where: str, value: Any) -> tuple[int, ...]:
    row = _row(where, value, natural)
    if sorted(row) != list(range(len(row))):
        raise _refuse(where, "a permutation of 0..rank-1", value)
    return row


def _size_or_batch(where: str, value: Any) -> int | None:
    return None if value is None else natural(where, value)


def _size_batch_or_rest(where: str, value: Any) -> int | None:
    return -1 if value == -1 and not isinstance(value, bool) else _size_or_batch(where, value)


def shape(where: str, value: Any) -> tuple[int | None, ...]:
    """Sizes; null stands for the batch size."""
    return _row(where, value, _size_or_batch)


def new_shape(where: str, value: Any) -> tuple[int | None, ...]:
    """Sizes for reshape; null stands for the batch size, one -1 for whatever is left."""
    row = _row(where, value, _size_batch_or_rest)
    if row.count(-1) > 1:
        raise _refuse(where, "at most one -1", value)
    return row


def pads(where: str, value: Any) -> tuple[tuple[int, int], ...]:
    return _row(where, value, natural_pair)


def numbers(where: str, value: Any) -> tuple[complex | float | int | bool, ...]:
    """The flat values of a constant: finite, at most MAX_CONST_ELEMENTS. Complex ones are in no graph that travels."""
    return _row(where, value, _constant, MAX_CONST_ELEMENTS)


def _constant(where: str, value: Any) -> complex | float | int | bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise _refuse(where, "an integer of 64 bits", value)
        return value
    if isinstance(value, complex):
        return complex(finite(where, value.real), finite(where, value.imag))
    return finite(where, value)


# Each rule: the numbers it takes. How they are drawn is cyxcore/drawing.py's business.
INIT_RULES: dict[str, dict[str, Check]] = {
    "zeros": {},
    "ones": {},
    "constant": {"value": finite},
    "kaiming_uniform": {"fan_in": positive},  # U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's default for layers
    "uniform": {"bound": finite},
    "normal": {"std": finite},
    # Filled from the training rows before the first step:
    "input_mean": {},
    "input_std": {},
    "input_min": {},
    "input_range": {},
    "target_mean": {},
    "target_std": {},
}


def init_rule(where: str, value: Any) -> dict[str, Any]:
    """How a parameter gets its first value: {"kind": ..., and that rule's numbers}."""
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str) or value["kind"] not in INIT_RULES:
        raise _refuse(where, f"{{'kind': one of {', '.join(INIT_RULES)}}}", value)
    fields = INIT_RULES[value["kind"]]
    if set(value) != {"kind", *fields}:
        raise _refuse(where, f"the fields kind, {', '.join(fields) or 'and no others'} for {value['kind']}", value)
    return {
        "kind": value["kind"],
        **{key: check(f"{where}.{key}", value[key]) for key, check in fields.items()},
    }


def normalise(op: str, schema: Mapping[str, Attr], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` in normal form with defaults filled in.

    Raises GraphError for an unknown, missing or bad attribute.
    """
    if not schema and not given:  # most ops have none
        return {}
    for key in given:
        if key not in schema:
            known = ", ".join(schema) or "none"
            raise GraphError(f"{op}: unknown attribute {key!r}; it has: {known}")
    attrs = {}
    for key, attr in schema.items():
        if key in given:
            attrs[key] = attr.check(f"{op}.{key}", given[key])
        elif attr.default is REQUIRED:
            raise GraphError(f"{op}: attribute {key!r} is missing")
        else:
            attrs[key] = attr.default
    return attrs
