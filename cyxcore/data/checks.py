"""How every defect of a dataset is told, and how much memory reading one may take."""

import difflib
from collections.abc import Iterable, Sequence
from os import PathLike

from cyxcore.errors import DataError

Path = str | PathLike[str]

MAX_BYTES = 8 * 2**30  # of arrays in memory, unless the caller says otherwise
MOST_LOST = 0.01  # of the range of a column: what rounding may take of a difference
NOISE = 2**-48  # of a number: differences that come of rounding in 64 bits (0.1 + 0.2 is not 0.3)
MAX_SHOWN = 80  # characters of a file's content repeated in a message


def shown(text: str) -> str:
    """Content of a file, quoted, escaped and cut, so that a message stays one readable line."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a message, the first few of many."""
    rest = len(names) - most
    return ", ".join(shown(name) for name in names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def nearest(name: str, names: Iterable[str]) -> str:
    """'did you mean …?' for a mistyped name, or the names there are."""
    known = list(names)
    folded = {candidate.casefold(): candidate for candidate in reversed(known[:10_000])}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"did you mean {shown(folded[close[0]])}?" if close else f"there are {listed(known)}"


def defect(
    path: Path,
    expected: str,
    got: str,
    remedy: str,
    *,
    column: str | None = None,
    array: str | None = None,
    row: int | None = None,
) -> DataError:
    """The one shape of a dataset's error. row is 1-based and counts data rows, not the header."""
    where = [str(path).encode("utf-8", "backslashreplace").decode()[-200:]]
    if column is not None:
        where.append(f"column {shown(column)}")
    if array is not None:
        where.append(f"array {shown(array)}")
    if row is not None:
        where.append(f"row {row:,}")
    return DataError(f"{', '.join(where)}: expected {expected}, got {got}; {remedy}")


def may_blur(low: float, high: float) -> bool:
    """Whether values in this range may be so close to each other that float32 rounds their differences away."""
    return max(abs(low), abs(high)) * 2**-23 > MOST_LOST * (high - low)


def refuse_blurred(
    path: Path, low: float, high: float, error: float, *, column: str | None = None, array: str | None = None
) -> None:
    """Raise DataError for numbers that float32 rounds by so much (`error`) that little of their differences is left.

    Scaling comes after: what is subtracted then cannot bring back what was rounded. A column that is constant but for
    NOISE is one constant to a model, as it should be.
    """
    if high - low > NOISE * max(abs(low), abs(high)) and 2 * error > MOST_LOST * (high - low):
        raise defect(
            path,
            "numbers that differ by more than a 32-bit float rounds them by",
            f"{low:,.15g} to {high:,.15g}, rounded by up to {error:,.3g}",
            f"subtract {low:.15g} from each (of a date the time since the first), or leave it out if it is only a name",
            column=column,
            array=array,
        )


def size_text(size_bytes: int) -> str:
    """1536 -> '1.5 KiB'."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def budget_bytes(limit_bytes: int) -> int:
    """What reading may take: the limit, and never more than this machine has free."""
    import psutil

    return min(limit_bytes, int(psutil.virtual_memory().available))


def check_budget(path: Path, needed_bytes: int, limit_bytes: int, what: str) -> None:
    """Raises DataError before memory is taken for arrays that would not fit."""
    allowed = budget_bytes(limit_bytes)
    if needed_bytes > allowed:
        raise defect(
            path,
            f"at most {size_text(allowed)} once in memory",
            f"{size_text(needed_bytes)} for {what}",
            "use fewer rows or columns, or a machine with more memory",
        ) from MemoryError()  # of this machine, and no fault of the file: see cyxnode/train.py
