"""What a GGUF file says about its model: the sizes of a decoder of the llama family.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md names the keys. What is not understood is refused by name: a
model that is run in another way than it was trained answers nonsense without any sign of it.
"""

import re
from typing import NamedTuple

import msgspec

from cyxcore.errors import FormatError
from cyxcore.gguf import GGUFFile


class Family(NamedTuple):
    """How the decoders of one architecture differ."""

    halves: bool
    """Rotated pairs are (i, i + size / 2) instead of (2 i, 2 i + 1)."""
    qkv_bias: bool = False
    qk_norm: bool = False


FAMILIES = {
    "llama": Family(halves=False),  # Llama 1 to 3, Mistral, and the many of their shape
    "qwen2": Family(halves=True, qkv_bias=True),
    "qwen3": Family(halves=True, qk_norm=True),
}

MAX_LAYERS, MAX_SIZE, MAX_HEADS = 1024, 1 << 20, 4096


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a model."""

    architecture: str
    layers: int
    features: int
    """Numbers in the state of a token."""
    hidden: int
    """Features inside of a feed-forward part."""
    heads: int
    kv_heads: int
    head_size: int
    rotated: int
    """How many numbers of a head carry its position."""
    rope_base: float
    rope_factor: float = 1.0
    """Positions are divided by it."""
    window: int = 0
    """How many positions back are seen; 0: all."""
    vocabulary: int
    context: int
    """The most tokens the model was trained for."""
    eps: float

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    @property
    def kv_bytes_per_token(self) -> int:
        padded = -(-self.head_size // 16) * 16
        return self.layers * self.kv_heads * (self.head_size + padded) * 4


def read_sizes(file: GGUFFile) -> Sizes:
    """Raises FormatError for another architecture, and for sizes that are missing or cannot be."""
    name = file.text("general.architecture")
    if name not in FAMILIES:
        raise FormatError(f"{file.where}: expected an architecture of {', '.join(FAMILIES)}, got {name[:40]!r}")

    def integer(key: str, low: int, high: int, default: int | None = None) -> int:
        return file.number(f"{name}.{key}", low, high, default)

    if integer("expert_count", 0, MAX_SIZE, 0):
        raise FormatError(f"{file.where}: mixtures of experts are not supported")
    features = integer("embedding_length", 1, MAX_SIZE)
    heads = integer("attention.head_count", 1, MAX_HEADS)
    kv_heads = integer("attention.head_count_kv", 1, heads, heads)
    if heads % kv_heads:
        raise FormatError(f"{file.where}: {kv_heads} heads of keys do not divide {heads} heads of queries")
    if features % heads and f"{name}.attention.key_length" not in file.metadata:
        raise FormatError(f"{file.where}: {heads} heads do not divide {features} features")
    head_size = integer("attention.key_length", 1, MAX_SIZE, features // heads)
    if integer("attention.value_length", 1, MAX_SIZE, head_size) != head_size:
        raise FormatError(f"{file.where}: values that are not as long as keys are not supported")
    rotated = integer("rope.dimension_count", 2, head_size, head_size)
    if rotated % 2:
        raise FormatError(f"{file.where}: {name}.rope.dimension_count: expected an even number, got {rotated}")
    scaling = file.text(f"{name}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise FormatError(f"{file.where}: rotated positions scaled by {scaling[:40]!r} are not supported")
    plain = file.number(f"{name}.rope.scale_linear", 1e-6, 1e6, 1.0)
    factor = file.number(f"{name}.rope.scaling.factor", 1e-6, 1e6, plain) if scaling == "linear" else plain
    return Sizes(
        architecture=name,
        layers=integer("block_count", 1, MAX_LAYERS),
        features=features,
        hidden=integer("feed_forward_length", 1, MAX_SIZE),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        rotated=rotated,
        rope_base=float(file.number(f"{name}.rope.freq_base", 1.0, 1e12, 10000.0)),
        rope_factor=float(factor),
        window=integer("attention.sliding_window", 0, 2**31, 0),
        vocabulary=_rows_of_embedding(file),
        context=integer("context_length", 1, 2**31),
        eps=float(file.number(f"{name}.attention.layer_norm_rms_epsilon", 0.0, 1.0)),
    )


def _rows_of_embedding(file: GGUFFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise FormatError(f"{file.where}: the tensor 'token_embd.weight' is missing")
    return file.tensors["token_embd.weight"].shape[0]


def layer_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The tensors of each layer, by their names behind "blk.N."."""
    q_rows, kv_rows = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (sizes.features,),
        "attn_q.weight": (q_rows, sizes.features),
        "attn_k.weight": (kv_rows, sizes.features),
        "attn_v.weight": (kv_rows, sizes.features),
        "attn_output.weight": (sizes.features, q_rows),
        "ffn_norm.weight": (sizes.features,),
        "ffn_gate.weight": (sizes.hidden, sizes.features),
        "ffn_up.weight": (sizes.hidden, sizes.features),
        "ffn_down.weight": (sizes.features, sizes.hidden),
    }
    if sizes.family.qkv_bias:
        shapes |= {"attn_q.bias": (q_rows,), "attn_k.bias": (kv_rows,), "attn_v.bias": (kv_rows,)}
    if sizes.family.qk_norm:
        shapes |= {"attn_q_norm.weight": (sizes.head_size,), "attn_k_norm.weight": (sizes.head_size,)}
    return shapes


def tensor_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """All tensors a model must have. Beside them it may have OPTIONAL ones."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (sizes.vocabulary, sizes.features),
        "output_norm.weight": (sizes.features,),
    }
    for layer in range(sizes.layers):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in layer_shapes(sizes).items()}
    return shapes


def optional_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The output matrix where it is not the embedding itself; what divides the rates of rotation (Llama 3)."""
    return {"output.weight": (sizes.vocabulary, sizes.features), "rope_freqs.weight": (sizes.rotated // 2,)}


def check_tensors(file: GGUFFile, sizes: Sizes) -> None:
    """Raises FormatError naming a tensor that is missing, has another shape, or that no part of the model would use."""
    wanted, optional = tensor_shapes(sizes), optional_shapes(sizes)
    missing = [name for name in wanted if name not in file.tensors]
    if missing:
        raise FormatError(f"{file.where}: the tensor {missing[0]!r} is missing")
    for name, info in file.tensors.items():
        expected = wanted.get(name) or optional.get(name)
        if expected is None:
            kind = re.sub(r"\d+", "N", name)[:80]
            raise FormatError(f"{file.where}: a model of architecture {sizes.architecture} has no tensor {kind!r}")
        if info.shape != expected:
            raise FormatError(f"{file.where}: {name}: expected shape {list(expected)}, got {list(info.shape)}")
