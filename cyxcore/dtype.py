"""What an element is: names, sizes, promotion. NumPy's names are used everywhere, as plain strings."""

from typing import NamedTuple

from cyxcore.errors import DtypeError


class Dtype(NamedTuple):
    name: str
    item_bytes: int
    kind: str  # "bool" | "integer" | "float" | "key"


DTYPES: dict[str, Dtype] = {
    row.name: row
    for row in (
        Dtype("bool", 1, "bool"),
        Dtype("uint8", 1, "integer"),
        Dtype("int32", 4, "integer"),
        Dtype("int64", 8, "integer"),
        Dtype("float32", 4, "float"),
        Dtype("float64", 8, "float"),
        Dtype("uint64", 8, "key"),  # only the (seed, step) key of the random ops; never promoted
    )
}

FLOATS = ("float32", "float64")
INTEGERS = ("uint8", "int32", "int64")
NUMBERS = INTEGERS + FLOATS
INDICES = ("int64",)
ALL = ("bool", *NUMBERS)
_ORDER = {name: place for place, name in enumerate(ALL)}


def dtype_name(dtype: object) -> str:
    """The name of a dtype given as a name, a NumPy dtype, a scalar type or bool/int/float.

    Raises DtypeError for an element type Cyx does not have.
    """
    if dtype is bool:
        return "bool"
    if dtype is int:
        return "int64"
    if dtype is float:
        return "float32"
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    if name not in DTYPES:
        raise DtypeError(f"dtype: expected one of {', '.join(ALL)}, got {dtype!r}; convert the array with astype first")
    return str(name)


def item_bytes(name: str) -> int:
    return DTYPES[name].item_bytes


def is_float(name: str) -> bool:
    return DTYPES[name].kind == "float"


def is_integer(name: str) -> bool:
    return DTYPES[name].kind == "integer"


def promote(left: str, right: str) -> str:
    """The dtype two operands meet in: the later of bool, uint8, int32, int64, float32, float64.

    Unlike NumPy an integer array meeting a float32 array gives float32 (as torch and JAX do), so
    that no computation turns double by accident. Raises DtypeError for random keys.
    """
    if left not in _ORDER or right not in _ORDER:
        raise DtypeError(f"promotion: {left} and {right} have no common dtype; random keys take part in no arithmetic")
    return max(left, right, key=_ORDER.__getitem__)
