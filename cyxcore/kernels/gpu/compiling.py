"""Triton as a compiler: a kernel and the types of its arguments in, machine code out. No torch, no driver."""

import functools
import linecache
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cyxcore.errors import KernelError
from cyxcore.kernels.gpu import chains, helpers

# dynamic shared memory a block may have, by compute capability (CUDA programming guide, technical specifications)
SHARED_BYTES = {
    80: 166_912,
    86: 101_376,
    87: 166_912,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    103: 232_448,
    120: 101_376,
}
POINTERS = {
    "bool": "*u8",  # one byte; Triton's own i1 would be read as a signed bit
    "uint8": "*u8",
    "int32": "*i32",
    "int64": "*i64",
    "uint64": "*u64",
    "float32": "*fp32",
    "float64": "*fp64",
}
FORMATS = {"i32": "i", "i64": "q"}
_PARAM = re.compile(r"\.param (?:\.align \d+ )?\.[a-z]+(\d+)(?: \.ptr \S+ \.align \d+)? \S+?_param_\d+(?:\[(\d+)\])?")


class Binary(NamedTuple):
    """A compiled kernel. `types`: of the arguments it is launched with, in order, before the trailing pointers."""

    name: str
    code: bytes
    types: tuple[str, ...]
    warps: int
    shared_bytes: int
    trailing: int  # pointers Triton adds for scratch memory none of our kernels uses
    ptx: str


def argument_type(value: Any) -> str:
    """The type of one argument as part of a kernel's key: "*fp32", "i32", ...; "!" follows what 16 divides."""
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64") + "!" * (value % 16 == 0)
    return POINTERS[value.dtype.name] + "!" * (pointer(value) % 16 == 0)


def pointer(array: Any) -> int:
    """The address of an array's first element, wherever that is."""
    data = getattr(array, "data", None)
    found = getattr(data, "ptr", None)
    return int(found if found is not None else array.__array_interface__["data"][0])


def split_arguments(
    function: Any, args: Sequence[Any], constants: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any], list[Any]]:
    """(type by name, constants by name, values to launch with): `inner` is a constant where it is 1."""
    types, fixed, values = {}, dict(constants), []
    names = [name for name in function.arg_names if name not in constants]
    for name, value in zip(names, args, strict=True):
        if name == "inner" and value == 1:
            fixed[name] = 1
        else:
            types[name] = argument_type(value)
            values.append(value)
    return types, fixed, values


def compiled(
    function: Any, types: Mapping[str, str], constants: Mapping[str, Any], arch: int, warps: int, contract: bool
) -> Binary:
    """Machine code for compute capability `arch` (90: 9.0). contract: whether a * b + c may be one rounding.

    Raises KernelError when the kernel takes more of a device than there is, or does not look as expected.
    """
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types[name].rstrip("!") for name in names}
    divisible = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if types.get(name, "")[-1:] == "!"
    }
    made = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=dict(constants), attrs=divisible),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "num_stages": 3, "enable_fp_fusion": contract},
    )
    about, ptx = made.metadata, made.asm["ptx"]
    real = tuple(kind for kind in signature.values() if kind != "constexpr")
    sizes = _parameter_bytes(ptx)
    wanted = [8 if kind[0] == "*" else struct.calcsize(FORMATS[kind]) for kind in real]
    trailing = len(sizes) - len(real)
    if not 0 <= trailing <= 2 or sizes != wanted + [8] * trailing or about.global_scratch_size:
        raise KernelError(
            f"cuda: triton {triton.__version__} compiled {about.name} with parameters of {sizes} bytes, not {wanted} "
            "and at most two unused pointers; install a version that pyproject.toml names"
        )
    limit = SHARED_BYTES.get(arch, 49_152)
    if about.shared > limit:
        raise KernelError(
            f"cuda: {about.name} needs {about.shared} bytes of shared memory, compute capability {arch} has {limit}"
        )
    return Binary(about.name, made.asm["cubin"], real, about.num_warps, about.shared, trailing, ptx)


def _parameter_bytes(ptx: str) -> list[int]:
    head = ptx[ptx.index(".entry") :].split("\n)")[0]
    return [int(bits) // 8 * int(count or 1) for bits, count in _PARAM.findall(head)]


@functools.lru_cache(4096)
def chain_function(chain: chains.Chain) -> Callable[..., Any]:
    """The Triton function of a chain."""
    text = chains.source(chain, "chain")
    name = f"<chain {abs(hash(chain)):x}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # where inspect looks for source
    space: dict[str, Any] = {"triton": triton, "tl": tl, "__name__": chains.__name__}
    space.update((one, getattr(helpers, one)) for one in chains.FUNCTIONS)
    exec(compile(text, name, "exec"), space)
    found: Callable[..., Any] = space["chain"]
    return found
