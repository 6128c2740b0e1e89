"""Datasets: what is in a file, whether a job can train on it, the arrays to train with, and batches of them.

Only CSV, Parquet, JSON lines and NPZ travel; `pack` and `pack_images` turn NPY pairs and folders of
images into NPZ on the submitter's machine. Importing this loads no NumPy, no DuckDB and no kernel: what makes tensors
(datasets, loaders) is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cyxcore.data.arrays import pack
from cyxcore.data.checks import MAX_BYTES
from cyxcore.data.formats import detect_format
from cyxcore.data.images import pack_images
from cyxcore.data.loading import DatasetInfo, LoadedData, check_labels, inspect, load, task_of

_NAMES: dict[str, str] = {
    **dict.fromkeys(
        ("ConcatDataset", "Dataset", "IterableDataset", "Subset", "TensorDataset", "random_split", "stratified_split"),
        "datasets",
    ),
    **dict.fromkeys(
        (
            "BatchSampler RandomSampler Sampler SequentialSampler ShuffleBuffer SubsetRandomSampler "
            "WeightedRandomSampler class_weights"
        ).split(),
        "samplers",
    ),
    **dict.fromkeys(("default_collate", "packed_collate", "pad_collate"), "collate"),
    **dict.fromkeys(("DataLoader", "get_worker_info"), "loader"),
    **dict.fromkeys(("BPETokenizer", "ByteTokenizer", "CharTokenizer", "load_tokenizer"), "tokenizers"),
    **dict.fromkeys(("TableStream", "TextLines", "TokenStream", "read_text"), "streams"),
    **dict.fromkeys(("open_npy", "read_npz"), "arrayfiles"),
    **dict.fromkeys(("ImageCSV", "ImageFolder"), "imagefiles"),
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "MNIST", "read_idx"), "classics"),
    **dict.fromkeys(("TokenWindows", "join_documents"), "windows"),
}

__all__ = [  # noqa: PLE0604
    *_NAMES,
    "MAX_BYTES",
    "DatasetInfo",
    "LoadedData",
    "check_labels",
    "detect_format",
    "inspect",
    "load",
    "pack",
    "pack_images",
    "task_of",
]

if TYPE_CHECKING:
    from cyxcore.data.arrayfiles import open_npy as open_npy
    from cyxcore.data.arrayfiles import read_npz as read_npz
    from cyxcore.data.classics import CIFAR10 as CIFAR10
    from cyxcore.data.classics import CIFAR100 as CIFAR100
    from cyxcore.data.classics import MNIST as MNIST
    from cyxcore.data.classics import FashionMNIST as FashionMNIST
    from cyxcore.data.classics import read_idx as read_idx
    from cyxcore.data.collate import default_collate as default_collate
    from cyxcore.data.collate import packed_collate as packed_collate
    from cyxcore.data.collate import pad_collate as pad_collate
    from cyxcore.data.datasets import ConcatDataset as ConcatDataset
    from cyxcore.data.datasets import Dataset as Dataset
    from cyxcore.data.datasets import IterableDataset as IterableDataset
    from cyxcore.data.datasets import Subset as Subset
    from cyxcore.data.datasets import TensorDataset as TensorDataset
    from cyxcore.data.datasets import random_split as random_split
    from cyxcore.data.datasets import stratified_split as stratified_split
    from cyxcore.data.imagefiles import ImageCSV as ImageCSV
    from cyxcore.data.imagefiles import ImageFolder as ImageFolder
    from cyxcore.data.loader import DataLoader as DataLoader
    from cyxcore.data.loader import get_worker_info as get_worker_info
    from cyxcore.data.samplers import BatchSampler as BatchSampler
    from cyxcore.data.samplers import RandomSampler as RandomSampler
    from cyxcore.data.samplers import Sampler as Sampler
    from cyxcore.data.samplers import SequentialSampler as SequentialSampler
    from cyxcore.data.samplers import ShuffleBuffer as ShuffleBuffer
    from cyxcore.data.samplers import SubsetRandomSampler as SubsetRandomSampler
    from cyxcore.data.samplers import WeightedRandomSampler as WeightedRandomSampler
    from cyxcore.data.samplers import class_weights as class_weights
    from cyxcore.data.streams import TableStream as TableStream
    from cyxcore.data.streams import TextLines as TextLines
    from cyxcore.data.streams import TokenStream as TokenStream
    from cyxcore.data.streams import read_text as read_text
    from cyxcore.data.tokenizers import BPETokenizer as BPETokenizer
    from cyxcore.data.tokenizers import ByteTokenizer as ByteTokenizer
    from cyxcore.data.tokenizers import CharTokenizer as CharTokenizer
    from cyxcore.data.tokenizers import load_tokenizer as load_tokenizer
    from cyxcore.data.windows import TokenWindows as TokenWindows
    from cyxcore.data.windows import join_documents as join_documents


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"cyxcore.data has no {name!r}; it has: {', '.join(sorted(__all__))}")
    value = globals()[name] = getattr(importlib.import_module(f"cyxcore.data.{_NAMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
