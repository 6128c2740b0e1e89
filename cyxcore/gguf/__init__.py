"""GGUF: the files language models are passed around in. `GGUFFile` reads one, `save` writes one."""

from cyxcore.gguf.blocks import READABLE, TensorType, dequantize, quantize
from cyxcore.gguf.file import GGUFFile, StoredTensor, Strings, TensorInfo, Value, save

__all__ = [
    "READABLE",
    "GGUFFile",
    "StoredTensor",
    "Strings",
    "TensorInfo",
    "TensorType",
    "Value",
    "dequantize",
    "quantize",
    "save",
]
