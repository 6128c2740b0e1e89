"""What an element is: names, sizes, promotion. NumPy's names are used everywhere, as plain strings."""

from typing import Any, NamedTuple

from cyxcore.errors import DtypeError


class Dtype(NamedTuple):
    name: str
    item_bytes: int
    kind: str  # as the array API standard says: "bool", "signed integer", "unsigned integer", "real floating", ...


DTYPES: dict[str, Dtype] = {
    row.name: row
    for row in (
        Dtype("bool", 1, "bool"),
        Dtype("int8", 1, "signed integer"),
        Dtype("int16", 2, "signed integer"),
        Dtype("int32", 4, "signed integer"),
        Dtype("int64", 8, "signed integer"),
        Dtype("uint8", 1, "unsigned integer"),
        Dtype("uint16", 2, "unsigned integer"),
        Dtype("uint32", 4, "unsigned integer"),
        Dtype("uint64", 8, "unsigned integer"),
        Dtype("float16", 2, "real floating"),
        Dtype("bfloat16", 2, "real floating"),
        Dtype("float32", 4, "real floating"),
        Dtype("float64", 8, "real floating"),
        Dtype("complex64", 8, "complex floating"),
        Dtype("complex128", 16, "complex floating"),
    )
}

# PyTorch's other names for some: cx.long, x.long().
PYTORCHS = {
    **{"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16"},
    **{"byte": "uint8", "bool": "bool", "bfloat16": "bfloat16"},
}

# The groups isdtype knows.
_KINDS: dict[str, tuple[str, ...]] = {
    "bool": ("bool",),
    "signed integer": ("signed integer",),
    "unsigned integer": ("unsigned integer",),
    "integral": ("signed integer", "unsigned integer"),
    "real floating": ("real floating",),
    "complex floating": ("complex floating",),
    "numeric": ("signed integer", "unsigned integer", "real floating", "complex floating"),
}


def _of_kind(kind: str) -> tuple[str, ...]:
    return tuple(row.name for row in DTYPES.values() if row.kind in _KINDS[kind])


INTEGERS = _of_kind("integral")
FLOATS = _of_kind("real floating")
COMPLEX = _of_kind("complex floating")
REAL = INTEGERS + FLOATS
INEXACT = FLOATS + COMPLEX
NUMBERS = REAL + COMPLEX
ALL = ("bool", *NUMBERS)
INDICES = ("int64",)

# A graph holds what every device trains with, and uint64 as the (seed, step) key of the random ops.
IN_GRAPHS = frozenset(("bool", "uint8", "int32", "int64", "float32", "float64", "uint64"))

DEFAULTS = {bool: "bool", int: "int64", float: "float32", complex: "complex64"}  # of Python's numbers


def dtype_name(dtype: object) -> str:
    """The name of a dtype given as a name, a NumPy dtype, a scalar type or bool/int/float/complex.

    Raises DtypeError for an element type Cyx does not have.
    """
    if isinstance(dtype, type) and dtype in DEFAULTS:
        return DEFAULTS[dtype]
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    if name not in DTYPES:
        if type(dtype) is int:
            raise DtypeError(
                f"dtype: expected one of {', '.join(ALL)}, got the number {dtype}; sizes are given to cx.empty: "
                "cx.empty(2, 3), where PyTorch has Tensor(2, 3)"
            )
        remedy = "convert the array with astype first"
        if name == "object":  # of a DataFrame, mostly
            remedy = "make numbers of what is text, a date or missing first: cx.preprocessing, docs/tutorials/tables.md"
        raise DtypeError(f"dtype: expected one of {', '.join(ALL)}, got {dtype!r}; {remedy}")
    return str(name)


def item_bytes(name: str) -> int:
    return DTYPES[name].item_bytes


def is_float(name: str) -> bool:
    return name in FLOATS


def is_integer(name: str) -> bool:
    return name in INTEGERS


def is_complex(name: str) -> bool:
    return name in COMPLEX


def real_dtype(name: str) -> str:
    """The dtype of the real part: float32 for complex64, float64 for complex128, else the dtype itself."""
    return {"complex64": "float32", "complex128": "float64"}.get(name, name)


def complex_dtype(name: str) -> str:
    """The complex dtype that holds a float dtype without loss."""
    return "complex128" if name in ("float64", "complex128") else "complex64"


def described(dtypes: tuple[str, ...]) -> str:
    """A group of dtypes in words, for messages."""
    words = {
        INTEGERS: "an integer dtype",
        FLOATS: "a float dtype",
        REAL: "an integer or float dtype",
        INEXACT: "a float or complex dtype",
        NUMBERS: "a numeric dtype",
        ALL: "any dtype",
    }
    return words.get(dtypes) or " or ".join(dtypes)


# promotion ----------------------------------------------------------------------------------------


def _widest(kind: str, item_size: int) -> str | None:
    return next((row.name for row in DTYPES.values() if row.kind == kind and row.item_bytes == item_size), None)


def _standard(left: str, right: str) -> str | None:
    """The array API standard's table, completed for bfloat16; None where it has no answer."""
    a, b = sorted((DTYPES[left], DTYPES[right]), key=lambda row: (row.kind, row.item_bytes))
    if a == b:
        return a.name
    if a.kind == b.kind:
        return "float32" if a.item_bytes == b.item_bytes else b.name  # only float16 and bfloat16 are of one size
    if (a.kind, b.kind) == ("signed integer", "unsigned integer"):
        return _widest("signed integer", max(a.item_bytes, 2 * b.item_bytes))
    if (a.kind, b.kind) == ("complex floating", "real floating"):
        return "complex128" if b.name == "float64" else a.name
    return None


def _promoted(left: str, right: str) -> str | None:
    found = _standard(left, right)
    if found is not None:
        return found
    if "bool" in (left, right):
        return right if left == "bool" else left
    inexact = [name for name in (left, right) if name in INEXACT]
    return inexact[0] if inexact else None


_PROMOTED = {(a, b): _promoted(a, b) for a in ALL for b in ALL}


def promote(left: str, right: str) -> str:
    """The dtype two operands meet in: the array API standard's table.

    Where the standard leaves it open, a bool array takes the other's dtype, and an integer array
    meeting a float or complex one takes that dtype (as in torch and JAX, unlike NumPy), so that no
    computation turns double by accident. Raises DtypeError for uint64 with a signed integer.
    """
    found = _PROMOTED[left, right]
    if found is None:
        raise DtypeError(f"promotion: no integer dtype holds both {left} and {right}; convert one of them with astype")
    return found


def scalar_dtype(number: bool | int | float | complex, beside: str) -> str:
    """A plain number takes the dtype of the array beside it, unless that cannot hold its kind."""
    if isinstance(number, complex):
        return complex_dtype(beside)
    if beside in INEXACT:
        return beside
    if isinstance(number, float):
        return "float32"
    if beside == "bool" and not isinstance(number, bool):
        return "int64"
    return beside


# Kinds, each held by those after it.
_LADDER = ("bool", "unsigned integer", "signed integer", "real floating", "complex floating")


def holds_kind(dtype: str, other: str) -> bool:
    """Whether values of another dtype may be written into one, whatever their sizes: NumPy's same_kind."""
    return _LADDER.index(DTYPES[other].kind) <= _LADDER.index(DTYPES[dtype].kind)


# the data type functions of the standard ----------------------------------------------------------


class FloatInfo(NamedTuple):
    bits: int  # of the whole element, or of one part of a complex one
    eps: float  # from 1 to the next number
    max: float
    min: float
    smallest_normal: float
    dtype: str

    @property
    def tiny(self) -> float:
        """smallest_normal, by its older name."""
        return self.smallest_normal


class IntegerInfo(NamedTuple):
    bits: int
    max: int
    min: int
    dtype: str


# name: bits of the significand without the leading one, largest exponent
_IEEE = {"float16": (10, 15), "bfloat16": (7, 127), "float32": (23, 127), "float64": (52, 1023)}


def _dtype_of(value: Any) -> str:
    found = getattr(value, "dtype", None)
    return found if isinstance(found, str) else dtype_name(value)


def finfo(type: Any, /) -> FloatInfo:
    """The limits of a float or complex dtype (or of a tensor's). Raises DtypeError for others."""
    name = real_dtype(_dtype_of(type))
    if name not in FLOATS:
        raise DtypeError(f"finfo: expected {described(INEXACT)}, got {name}; iinfo has the limits of integers")
    digits, exponent = _IEEE[name]
    largest = (2.0 - 2.0**-digits) * 2.0**exponent
    return FloatInfo(8 * item_bytes(name), 2.0**-digits, largest, -largest, 2.0 ** (1 - exponent), name)


def iinfo(type: Any, /) -> IntegerInfo:
    """The limits of an integer dtype (or of a tensor's). Raises DtypeError for others."""
    name = _dtype_of(type)
    if name not in INTEGERS:
        raise DtypeError(f"iinfo: expected {described(INTEGERS)}, got {name}; finfo has the limits of floats")
    bits = 8 * item_bytes(name)
    if DTYPES[name].kind == "unsigned integer":
        return IntegerInfo(bits, 2**bits - 1, 0, name)
    return IntegerInfo(bits, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), name)


def out_of_range(number: Any, dtype: str) -> DtypeError:
    """What to raise for a Python number beside a tensor whose dtype cannot hold it. Of floats only integers come to it:
    what a float32 has no room for is infinite, as the result of an operation would be.
    """
    if dtype in INTEGERS:
        low, high = iinfo(dtype)[2:0:-1]
        return DtypeError(f"{dtype} holds {low}..{high}, got {number}; use astype on the tensor")
    size = int(number).bit_length()
    return DtypeError(
        f"expected a number of up to 1.797e+308 beside {dtype}, got an integer of {size} bits; use math.inf"
    )


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether the standard's promotion leads from a dtype (or a tensor's) to another."""
    wanted = dtype_name(to)
    return _standard(_dtype_of(from_), wanted) == wanted


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether a dtype is of a kind: a dtype, one of the standard's names for groups, or a tuple of them."""
    name = dtype_name(dtype)
    if isinstance(kind, tuple):
        return any(isdtype(name, one) for one in kind)
    if isinstance(kind, str) and kind in _KINDS and kind != "bool":
        return DTYPES[name].kind in _KINDS[kind]
    if isinstance(kind, str) and kind not in DTYPES:
        raise DtypeError(f"isdtype: expected a dtype or one of {', '.join(_KINDS)}, got {kind!r}")
    return name == dtype_name(kind)


def result_type(*arrays_and_dtypes: Any) -> str:
    """The dtype tensors, dtypes and Python numbers meet in. Raises DtypeError."""
    numbers = [value for value in arrays_and_dtypes if isinstance(value, (bool, int, float, complex))]
    found: str | None = None
    for value in arrays_and_dtypes:
        if not isinstance(value, (bool, int, float, complex)):
            found = _dtype_of(value) if found is None else promote(found, _dtype_of(value))
    if found is None:
        raise DtypeError(f"result_type: expected at least one tensor or dtype, got {arrays_and_dtypes}")
    for number in numbers:
        found = scalar_dtype(number, found)
    return found
