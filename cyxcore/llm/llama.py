"""A decoder of the llama family: from stretches of many sequences to the logits of what comes next.

RMSNorm before each part, queries and keys turned by their position (Su 2021, arXiv 2104.09864), heads of keys shared by
groups of queries (Ainslie 2023, arXiv 2305.13245), SwiGLU (Shazeer 2020, arXiv 2002.05202). Weights stay as the file
stores them. The bits of a sequence depend neither on the machine nor on what else is in a batch.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cyxcore.errors import FormatError
from cyxcore.gguf import GGUFFile, dequantize
from cyxcore.kernels import cpu
from cyxcore.kernels.language import PAGE_TOKENS, Matrix, attend, place, rms_norm, swiglu
from cyxcore.llm.architecture import Sizes, check_tensors, read_sizes
from cyxcore.llm.weights import pack, stack

Array = np.ndarray[Any, Any]

ROPE_CHUNK = 1024  # positions whose angles are computed at once


class Stretch(NamedTuple):
    """Tokens of one sequence that follow each other."""

    tokens: Sequence[int]
    start: int
    """The position of the first."""
    pages: Array
    """int32: the numbers of the pages that hold the sequence, up to the last of these tokens."""


class Layer(NamedTuple):
    attn_norm: Array
    qkv: tuple[Matrix, ...]
    """Queries, keys and values above each other, or three matrices where their types differ."""
    qkv_bias: Array | None
    q_norm: Array | None
    k_norm: Array | None
    attn_output: Matrix
    ffn_norm: Array
    gate_up: tuple[Matrix, ...]
    down: Matrix


class KVPages:
    """Keys and values of all sequences, in pages of 16 tokens that any sequence may use."""

    def __init__(self, sizes: Sizes, pages: int) -> None:
        padded = -(-sizes.head_size // 16) * 16
        self.pages = pages
        k_shape = (pages, sizes.kv_heads, sizes.head_size, PAGE_TOKENS)
        v_shape = (pages, sizes.kv_heads, PAGE_TOKENS, padded)
        self.k = [np.zeros(k_shape, np.float32) for _ in range(sizes.layers)]
        self.v = [np.zeros(v_shape, np.float32) for _ in range(sizes.layers)]


class Llama:
    """An open model. Its methods may be called by one thread at a time."""

    def __init__(self, source: str | os.PathLike[str] | GGUFFile) -> None:
        """Raises FormatError for a file that is damaged or of a model that cannot be run."""
        self.file = source if isinstance(source, GGUFFile) else GGUFFile(source)
        self.sizes = read_sizes(self.file)
        check_tensors(self.file, self.sizes)
        self._embedding = self.file.raw("token_embd.weight")
        self._embedding_type = self.file.tensors["token_embd.weight"].type
        self.layers = [self._layer(f"blk.{number}.") for number in range(self.sizes.layers)]
        self.output_norm = self.file.tensor("output_norm.weight")
        tied = "output.weight" not in self.file.tensors
        self.output = self._matrix("token_embd.weight" if tied else "output.weight")
        self._rates = self._rotation_rates()
        self._cosines = self._sines = np.empty((0, self.sizes.rotated // 2), np.float32)

    def _layer(self, prefix: str) -> Layer:
        def vector(name: str) -> Array | None:
            return self.file.tensor(prefix + name) if prefix + name in self.file.tensors else None

        biases = [bias for which in "qkv" if (bias := vector(f"attn_{which}.bias")) is not None]
        return Layer(
            attn_norm=self.file.tensor(prefix + "attn_norm.weight"),
            qkv=self._together([f"{prefix}attn_{which}.weight" for which in "qkv"]),
            qkv_bias=np.concatenate(biases) if biases else None,
            q_norm=vector("attn_q_norm.weight"),
            k_norm=vector("attn_k_norm.weight"),
            attn_output=self._matrix(prefix + "attn_output.weight"),
            ffn_norm=self.file.tensor(prefix + "ffn_norm.weight"),
            gate_up=self._together([prefix + "ffn_gate.weight", prefix + "ffn_up.weight"]),
            down=self._matrix(prefix + "ffn_down.weight"),
        )

    def _matrix(self, name: str) -> Matrix:
        info = self.file.tensors[name]
        try:
            return pack(self.file.raw(name), info.type.name, *info.shape)
        except FormatError as error:
            raise FormatError(f"{self.file.where}: {name}: {error}") from None

    def _together(self, names: list[str]) -> tuple[Matrix, ...]:
        """One product is cheaper than several of the same input."""
        infos = [self.file.tensors[name] for name in names]
        if len({info.type.name for info in infos}) > 1:
            return tuple(self._matrix(name) for name in names)
        parts = [(self.file.raw(name), info.shape[0]) for name, info in zip(names, infos, strict=True)]
        try:
            return (stack(parts, infos[0].type.name, infos[0].shape[1]),)
        except FormatError as error:
            raise FormatError(f"{self.file.where}: {names[0]}: {error}") from None

    def _rotation_rates(self) -> Array:
        """Radians per position of each pair, float64: base^(-2 i / rotated), by a pow that is the same everywhere."""
        exponents = np.arange(0, -self.sizes.rotated, -2) / self.sizes.rotated
        rates = np.empty_like(exponents)
        cpu.call("pow", rates, [np.full_like(exponents, self.sizes.rope_base), exponents], {})
        rates /= self.sizes.rope_factor
        if "rope_freqs.weight" in self.file.tensors:
            rates /= self.file.tensor("rope_freqs.weight")
        return rates

    def _angles(self, positions: Array) -> tuple[Array, Array]:
        """Cosines and sines (N, rotated / 2), from a table that grows as far as it is needed."""
        known = len(self._cosines)
        if positions.max() >= known:
            last = -(-(int(positions.max()) + 1) // ROPE_CHUNK) * ROPE_CHUNK
            angles = np.arange(known, last, dtype=np.float64)[:, None] * self._rates
            tables = []
            for op, table in (("cos", self._cosines), ("sin", self._sines)):
                exact = np.empty_like(angles)
                cpu.call(op, exact, [angles], {})
                tables.append(np.concatenate([table, exact.astype(np.float32)]))
            self._cosines, self._sines = tables
        return self._cosines[positions], self._sines[positions]

    def embed(self, tokens: Array) -> Array:
        """float32 (N, features) of token ids (N,)."""
        row_bytes = self._embedding_type.bytes_of(self.sizes.features)
        rows = self._embedding.reshape(self.sizes.vocabulary, row_bytes)[tokens]
        return dequantize(rows.reshape(-1), self._embedding_type.name).reshape(len(tokens), self.sizes.features)

    def forward(self, stretches: Sequence[Stretch], cache: KVPages, rows: Sequence[int] | None = None) -> Array:
        """Puts the keys and values of all tokens into the cache and returns the states of some: float32 (len(rows),
        features), normalised.

        rows: which tokens, counted over all stretches; by default the last one of each.
        """
        sizes = self.sizes
        tokens = np.concatenate([np.asarray(stretch.tokens, np.int64) for stretch in stretches])
        counts = [len(stretch.tokens) for stretch in stretches]
        firsts = np.cumsum([0, *counts[:-1]])
        positions = np.concatenate([s.start + np.arange(n) for s, n in zip(stretches, counts, strict=True)])
        slots = np.concatenate(
            [
                s.pages.astype(np.int64)[at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS
                for s, at in ((s, s.start + np.arange(n)) for s, n in zip(stretches, counts, strict=True))
            ]
        )
        runs = [(int(f), n, s.start, s.pages) for f, n, s in zip(firsts, counts, stretches, strict=True)]
        cosine, sine = self._angles(positions)
        count, scale = len(tokens), float(np.float32(1) / np.sqrt(np.float32(sizes.head_size)))

        x = self.embed(tokens)
        normed = np.empty_like(x)
        q = np.empty((count, sizes.heads, sizes.head_size), np.float32)
        mixed = np.empty_like(q)
        flat = mixed.reshape(count, -1)
        active = np.empty((count, sizes.hidden), np.float32)
        for layer, k, v in zip(self.layers, cache.k, cache.v, strict=True):
            rms_norm(normed, x, layer.attn_norm, sizes.eps)
            qkv = _products(layer.qkv, normed)
            if layer.qkv_bias is not None:
                qkv += layer.qkv_bias
            norms = layer.q_norm, layer.k_norm
            place(qkv, cosine, sine, slots, q, k, v, sizes.kv_heads, sizes.family.halves, *norms, sizes.eps)
            attend(mixed, q, k, v, runs, sizes.kv_heads, sizes.window, scale)
            layer.attn_output.multiply(flat, x, accumulate=True)
            rms_norm(normed, x, layer.ffn_norm, sizes.eps)
            swiglu(active, _products(layer.gate_up, normed))
            layer.down.multiply(active, x, accumulate=True)
        wanted = firsts + np.array(counts) - 1 if rows is None else np.asarray(rows, np.int64)
        states = np.ascontiguousarray(x[wanted])
        rms_norm(states, states, self.output_norm, sizes.eps)
        return states

    def logits(self, states: Array) -> Array:
        """float32 (N, vocabulary) of states (N, features)."""
        out = np.empty((len(states), self.sizes.vocabulary), np.float32)
        self.output.multiply(states, out)
        return out


def _products(matrices: tuple[Matrix, ...], x: Array) -> Array:
    """x with each matrix, side by side."""
    parts = []
    for each in matrices:
        parts.append(np.empty((len(x), each.shape[0]), np.float32))
        each.multiply(x, parts[-1])
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
