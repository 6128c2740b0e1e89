"""Values with $names in them: "$units" is the value of units, "$units*2" twice it. In patterns and in subgraphs."""

import re
from collections.abc import Mapping
from typing import Any

from cyxcore.errors import SpecError

_WORD = re.compile(r"\$([A-Za-z_]\w*)(?:([*/+-])(?:(\d{1,9})|\$([A-Za-z_]\w*)))?\Z")

_BEYOND = 2**63


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """The value with every $name, at any depth, replaced. A quotient is a whole number. Raises SpecError."""
    if isinstance(value, str) and value.startswith("$"):
        return _filled(value, values)
    if isinstance(value, dict):
        return {key: fill(one, values) for key, one in value.items()}
    if isinstance(value, list):
        return [fill(one, values) for one in value]
    return value


def _filled(text: str, values: Mapping[str, Any]) -> Any:
    match = _WORD.match(text)
    if match is None:
        raise SpecError(f'expected "$name", or "$name" times, over, plus or minus a number, got {text[:60]!r}')
    for name in (match[1], match[4]):
        if name is not None and name not in values:
            raise SpecError(f"there is no ${name} here; known: {', '.join('$' + one for one in values) or 'none'}")
    left = values[match[1]]
    if match[2] is None:
        return left
    right = int(match[3]) if match[3] else values[match[4]]
    for one in (left, right):
        _check_number(text, one)
    if match[2] == "/":
        if not right or left % right:
            raise SpecError(f"{text}: {left} is not divisible by {right}")
        return left // right
    result = {"*": left * right, "+": left + right, "-": left - right}[match[2]]
    _check_number(text, result)
    return result


def _check_number(text: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _BEYOND:
        raise SpecError(f"{text}: expected numbers below 2^63, got {repr(value)[:60]}")
