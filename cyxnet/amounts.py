"""Money as people write it ("2.5" CYX) and as programs keep it (an integer of base units, 10**-9 CYX)."""

import re

from cyxcore.errors import CyxError

DECIMALS = 9
BASE_UNITS_PER_CYX = 10**DECIMALS
MAX_BASE_UNITS = 2**63 - 1
_PLAIN_DECIMAL = re.compile(r"(?P<whole>[0-9]{1,30})(?:\.(?P<part>[0-9]{1,30}))?", re.ASCII)


class AmountError(CyxError, ValueError):
    """Not an amount of money. The message says what an amount looks like."""

    code = "bad_amount"


def parse(value: object, what: str = "amount") -> int:
    """CYX, as text ("2.5") or a whole number (3), to base units. `what` names the value in errors.

    A float is refused even when it looks exact: 0.1 + 0.2 is not 0.3, and money must not depend on that.
    Raises AmountError for anything that is not a positive plain decimal of at most 9 decimals.
    """
    if isinstance(value, float):
        raise AmountError(f'{what}: write it in quotes, "{value!r}", so that no digit is lost')
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise AmountError(f'{what}: expected CYX such as "2.5", got {type(value).__name__}')
    text = str(value) if isinstance(value, str) or value.bit_length() < 200 else "a very large number"
    if text.startswith("-") and _PLAIN_DECIMAL.fullmatch(text[1:]):
        raise AmountError(f"{what}: expected more than 0 CYX, got {text}")
    match = _PLAIN_DECIMAL.fullmatch(text)
    if match is None:
        raise AmountError(f'{what}: expected a plain decimal number of CYX such as "2.5", got {text[:40]!r}')
    part = match["part"] or ""
    if len(part) > DECIMALS:
        raise AmountError(f"{what}: expected at most {DECIMALS} decimals, got {len(part)} in {text[:40]!r}")
    base_units = int(match["whole"]) * BASE_UNITS_PER_CYX + int(part.ljust(DECIMALS, "0"))
    if base_units == 0:
        raise AmountError(f"{what}: expected more than 0 CYX, got {text}")
    if base_units > MAX_BASE_UNITS:
        raise AmountError(f"{what}: expected at most {format_cyx(MAX_BASE_UNITS)} CYX, got {text[:40]}")
    return base_units


def format_cyx(base_units: int) -> str:
    """Base units as the shortest decimal of CYX: 2500000000 -> "2.5". Exact for any integer."""
    sign = "-" if base_units < 0 else ""
    whole, part = divmod(abs(base_units), BASE_UNITS_PER_CYX)
    decimals = f"{part:0{DECIMALS}d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"
