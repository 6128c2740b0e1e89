from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PANEL_ROWS: int
BLOCK_COLUMNS: int
SUPER_COLUMNS: int
PAGE_TOKENS: int
KINDS: dict[str, tuple[int, int, int, int, int]]

class Matrix:
    kind: str
    shape: tuple[int, int]
    nbytes: int
    def __init__(
        self,
        kind: str,
        rows: int,
        columns: int,
        values: NDArray[np.uint8],
        halves: NDArray[np.uint8],
        subs: NDArray[np.uint8],
    ) -> None: ...
    def multiply(self, x: Floats, out: Floats, accumulate: bool = False) -> None: ...

def rms_norm(out: Floats, x: Floats, weight: Floats, eps: float) -> None: ...
def swiglu(out: Floats, both: Floats) -> None: ...
def place(
    qkv: Floats,
    cosine: Floats,
    sine: Floats,
    slots: NDArray[np.int64],
    q: Floats,
    k: Floats,
    v: Floats,
    kv_heads: int,
    halves: bool,
    q_norm: Floats | None,
    k_norm: Floats | None,
    eps: float,
) -> None: ...
def attend(
    out: Floats,
    q: Floats,
    k: Floats,
    v: Floats,
    stretches: list[tuple[int, int, int, NDArray[Any]]],
    kv_heads: int,
    window: int,
    scale: float,
) -> None: ...
