"""array-api-strict as the oracle: the same call on both, and the same answer."""

import inspect
from typing import Any

import array_api_strict as strict
import numpy as np

import cyxcore as cx

Array = np.ndarray[Any, Any]

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float32", "float64")
COMPLEX = ("complex64", "complex128")
REAL = INTEGERS + FLOATS
NUMBERS = REAL + COMPLEX
ALL = ("bool", *NUMBERS)

# Of the last place: kernels of ours and of NumPy round differently by a few units.
TOLERANCE = {"float32": 2e-6, "complex64": 4e-6, "float64": 1e-13, "complex128": 1e-13}


def _theirs(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return strict.asarray(value)
    if isinstance(value, str) and hasattr(strict, value):
        return getattr(strict, value)
    return type(value)(map(_theirs, value)) if type(value) in (list, tuple) else value


def _ours(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return cx.asarray(value)
    return type(value)(map(_ours, value)) if type(value) in (list, tuple) else value


def same(got: Any, wanted: Any, about: Any = "", scale: float = 1.0) -> None:
    """Equal dtype, shape and values (NaN equals NaN), part by part for tuples."""
    if isinstance(wanted, (tuple, list)):
        assert len(got) == len(wanted), about
        for one, other in zip(got, wanted, strict=True):
            same(one, other, about, scale)
        return
    if not isinstance(got, cx.Tensor):
        assert got == wanted and not hasattr(wanted, "dtype"), about
        return
    expected = np.asarray(wanted)
    assert got.dtype == expected.dtype.name and got.shape == expected.shape, (about, got, expected)
    tolerance = scale * TOLERANCE.get(got.dtype, 0.0)
    np.testing.assert_allclose(got.numpy(), expected, rtol=tolerance, atol=tolerance, err_msg=str(about))


def agree(path: str, *args: Any, scale: float = 1.0, **options: Any) -> None:
    """cx.path(*args) is strict.path(*args); NumPy arrays among the arguments stand for tensors."""
    ours: Any = cx
    theirs: Any = strict
    for name in path.split("."):
        ours, theirs = getattr(ours, name), getattr(theirs, name)
    with np.errstate(all="ignore"):
        wanted = theirs(*_theirs(args), **{key: _theirs(value) for key, value in options.items()})
    got = ours(*_ours(args), **{key: _ours(value) for key, value in options.items()})
    same(got, wanted, (path, args, options), scale)


def signature_differences(path: str) -> list[str]:
    """How our parameters differ from the standard's: ours may have more, with defaults, by keyword, and need fewer."""
    ours: Any = cx
    theirs: Any = strict
    for name in path.split("."):
        ours, theirs = getattr(ours, name), getattr(theirs, name)
    mine = inspect.signature(ours).parameters
    found = []
    for place, (name, parameter) in enumerate(inspect.signature(theirs).parameters.items()):
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            same_place = list(mine.values())[place : place + 1]
            if not same_place or same_place[0].kind is inspect.Parameter.KEYWORD_ONLY:
                found.append(f"{name} is not at place {place}")
        elif name not in mine:
            found.append(f"{name} is missing")
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY and mine[name].kind is not parameter.kind:
            found.append(f"{name} is {mine[name].kind.description}")
        elif parameter.default is inspect.Parameter.empty or "UNDEF" in repr(parameter.default):
            continue
        elif mine[name].default != parameter.default:
            found.append(f"{name} defaults to {mine[name].default!r}, not {parameter.default!r}")
    return found


def numbers(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Ordinary values of a dtype, few enough kinds that some are equal."""
    drawn = np.asarray(np.random.default_rng(seed).integers(-9, 10, shape))
    if dtype == "bool":
        return np.asarray(drawn > 0)
    if dtype.startswith("uint"):
        return np.asarray(np.abs(drawn)).astype(dtype)
    if dtype.startswith("int"):
        return drawn.astype(dtype)
    part = drawn / 4
    return np.asarray(part + 1j * np.roll(part, 1) if dtype.startswith("complex") else part).astype(dtype)


def specials(dtype: str) -> Array:
    """Every odd value of a dtype beside some ordinary ones."""
    if dtype == "bool":
        return np.array([False, True])
    if dtype in INTEGERS:
        limits = np.iinfo(dtype)
        return np.array([0, 1, 2, 3, 7, limits.max, limits.min, *([] if limits.min == 0 else [-1, -2, -7])], dtype)
    real = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.5, 7.0, np.inf, -np.inf, np.nan]
    if dtype in FLOATS:
        return np.array([*real, np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal], dtype)
    finite = [part for part in real if np.isfinite(part)]
    return np.array([complex(a, b) for a in finite for b in finite], dtype)
