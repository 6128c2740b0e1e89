"""Tables by the names of their columns, whatever made them: pandas, polars, or anything that answers as they do."""

from typing import Any

from cyxcore.errors import ShapeError


def are_named(x: Any) -> bool:
    """Whether x is a table whose columns have names; numbers, as pandas gives an array's, are none."""
    return any(isinstance(column, str) for column in getattr(x, "columns", ()))


def by_name(x: Any, names: list[str] | None) -> Any:
    """The columns `names` of a table, in that order; x itself where one side has no names. Raises ShapeError."""
    if names is None or not are_named(x):
        return x
    there = set(x.columns)
    if missing := [name for name in names if name not in there]:
        wanted = ", ".join(map(repr, names[:8])) + (", …" if names[8:] else "")
        raise ShapeError(
            f"model: expected a table with the columns {wanted}, got none called {missing[0]!r} ({len(missing)} of "
            f"{len(names)} missing); rename them, or pass an array"
        )
    return x[names]
