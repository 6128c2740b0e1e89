"""GGUF: the files language models are passed around in. `GGUFFile` reads, `save` writes, `rewrite_gguf` converts."""

from cyxcore.gguf.blocks import READABLE, TensorType, dequantize, quantize
from cyxcore.gguf.file import GGUFFile, StoredTensor, Strings, TensorInfo, Value, save
from cyxcore.gguf.rewriting import KINDS, rewrite_gguf

__all__ = [
    "KINDS",
    "READABLE",
    "GGUFFile",
    "StoredTensor",
    "Strings",
    "TensorInfo",
    "TensorType",
    "Value",
    "dequantize",
    "quantize",
    "rewrite_gguf",
    "save",
]
