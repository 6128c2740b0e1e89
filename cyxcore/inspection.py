"""What this namespace can do, asked the way the array API standard says: `cx.__array_namespace_info__()`."""

from typing import Any

from cyxcore.device import DEVICES, OWN_MEMORY, default_device, missing
from cyxcore.dtype import DEFAULTS, DTYPES, isdtype
from cyxcore.errors import SpecError

# The compiled kernels address at most this many axes (CYX_MAX_NDIM).
MAX_DIMENSIONS = 8

# The standard's reader of dtypes() knows the standard's names.
_BEYOND = ("float16", "bfloat16")


def _check(device: str | None) -> None:
    if device not in (None, *DEVICES):
        raise SpecError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")


class NamespaceInfo:
    """Every device has the same dtypes and defaults. Raises SpecError for a device that is not there."""

    def capabilities(self) -> dict[str, Any]:
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": MAX_DIMENSIONS}

    def default_device(self) -> str:
        return default_device()

    def devices(self) -> list[str]:
        """Where tensors can be on this machine. The host's memory has one name: "cpu", or the default device's."""
        host = default_device() if default_device() not in OWN_MEMORY else "cpu"
        return [host, *[name for name in OWN_MEMORY if not missing(name)]]

    def default_dtypes(self, *, device: str | None = None) -> dict[str, str]:
        _check(device)
        return {
            "real floating": DEFAULTS[float],
            "complex floating": DEFAULTS[complex],
            "integral": DEFAULTS[int],
            "indexing": DEFAULTS[int],
        }

    def dtypes(self, *, device: str | None = None, kind: str | tuple[str, ...] | None = None) -> dict[str, str]:
        """The standard's dtypes of a kind (of isdtype's), all without one. float16 and bfloat16 are none of them."""
        _check(device)
        return {name: name for name in DTYPES if name not in _BEYOND and (kind is None or isdtype(name, kind))}


def __array_namespace_info__() -> NamespaceInfo:
    """What this library is to the array API standard: capabilities, devices, dtypes."""
    return NamespaceInfo()
