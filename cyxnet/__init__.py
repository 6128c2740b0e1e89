"""The network of Cyx: messages, identity, bus, the client and the `cyx` command."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyxnet.blocking import Client, Job
    from cyxnet.client import AsyncClient

__all__ = ["AsyncClient", "Client", "Job"]

# Loaded on first use: a node or central that imports cyxnet.bus pays for no client.
_HOMES = {"AsyncClient": "cyxnet.client", "Client": "cyxnet.blocking", "Job": "cyxnet.blocking"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cyxnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
