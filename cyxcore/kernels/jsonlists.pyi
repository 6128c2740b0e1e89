import numpy as np
from numpy.typing import NDArray

def read(text: bytes, begin: int, shape: tuple[int, ...], several: bool) -> tuple[NDArray[np.float32], int] | None: ...
