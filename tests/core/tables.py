"""A table with named columns, as pandas and polars have them."""

from typing import Any

import numpy as np


class Table:
    """An array only when asked, and columns by a list of names."""

    def __init__(self, columns: dict[Any, Any]) -> None:
        self.data, self.columns = columns, list(columns)

    def __getitem__(self, names: list[str]) -> "Table":
        return Table({name: self.data[name] for name in names})

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(list(self.data.values()), dtype).T
