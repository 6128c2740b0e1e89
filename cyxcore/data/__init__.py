"""Datasets: what is in a file, whether a job can train on it, and the arrays to train with.

Only CSV, Parquet, JSON lines and NPZ travel; `pack` and `pack_images` turn NPY pairs and folders of
images into NPZ on the submitter's machine. Importing this loads no NumPy, no DuckDB and no kernel.
"""

from cyxcore.data.arrays import pack
from cyxcore.data.checks import MAX_BYTES
from cyxcore.data.dataset import Dataset, DatasetInfo, check_labels, inspect, load, task_of
from cyxcore.data.formats import detect_format
from cyxcore.data.images import pack_images

__all__ = [
    "MAX_BYTES",
    "Dataset",
    "DatasetInfo",
    "check_labels",
    "detect_format",
    "inspect",
    "load",
    "pack",
    "pack_images",
    "task_of",
]
