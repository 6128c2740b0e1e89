"""A decoder of the llama family to train with cx.nn, and its way into a GGUF file that any tool of that format runs."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cyxcore import functional as F
from cyxcore.errors import SpecError
from cyxcore.gguf import StoredTensor, Value, quantize, save
from cyxcore.nn.containers import ModuleList
from cyxcore.nn.embeddings import Embedding
from cyxcore.nn.layers import Linear
from cyxcore.nn.module import Module
from cyxcore.nn.norms import RMSNorm

Array = np.ndarray[Any, Any]


class _Attention(Module):
    """Causal attention of rotated queries and keys; heads of keys are shared by groups of queries."""

    def __init__(self, features: int, heads: int, kv_heads: int, head_size: int, rope_base: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.rope_base = heads, kv_heads, rope_base
        self.q_proj = Linear(features, heads * head_size, bias=False)
        self.k_proj = Linear(features, kv_heads * head_size, bias=False)
        self.v_proj = Linear(features, kv_heads * head_size, bias=False)
        self.o_proj = Linear(heads * head_size, features, bias=False)

    def forward(self, x: Any) -> Any:
        q, k = F.split_heads(self.q_proj(x), self.heads), F.split_heads(self.k_proj(x), self.kv_heads)
        q, k = F.rotary(q, self.rope_base), F.rotary(k, self.rope_base)
        v = F.split_heads(self.v_proj(x), self.kv_heads)
        return self.o_proj(F.join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class _FeedForward(Module):
    """SwiGLU."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(features, hidden, bias=False)
        self.up_proj = Linear(features, hidden, bias=False)
        self.down_proj = Linear(hidden, features, bias=False)

    def forward(self, x: Any) -> Any:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(Module):
    def __init__(self, features: int, hidden: int, attention: _Attention, eps: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(features, eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(features, eps)
        self.mlp = _FeedForward(features, hidden)

    def forward(self, x: Any) -> Any:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(Module):
    """tokens int64 (N, T) -> logits (N, T, vocabulary). Parameters have the names they have in Llama's own releases for
    PyTorch (embed_tokens, layers.0.self_attn.q_proj …), and mean the same."""

    def __init__(
        self,
        vocabulary: int,
        features: int = 256,
        layers: int = 4,
        heads: int = 4,
        kv_heads: int | None = None,
        hidden: int | None = None,
        context: int = 512,
        rope_base: float = 10000.0,
        eps: float = 1e-5,
        tied: bool = False,
    ) -> None:
        """hidden: 4 features by default. context: what the model is trained for; only the file says it. tied: the
        embedding is the output matrix as well. Raises SpecError for heads that do not divide."""
        super().__init__()
        kv_heads, hidden = kv_heads or heads, hidden or 4 * features
        if features % heads or heads % kv_heads or features // heads % 2:
            raise SpecError(
                f"Decoder: expected heads that divide {features} features into even sizes, and heads of keys that "
                f"divide them, got {heads} and {kv_heads}"
            )
        self.heads, self.kv_heads, self.hidden, self.context = heads, kv_heads, hidden, context
        self.rope_base, self.eps, self.tied = rope_base, eps, tied
        size = features // heads
        self.embed_tokens = Embedding(vocabulary, features)
        self.layers = ModuleList(
            _Layer(features, hidden, _Attention(features, heads, kv_heads, size, rope_base), eps) for _ in range(layers)
        )
        self.norm = RMSNorm(features, eps)
        self.lm_head = None if tied else Linear(features, vocabulary, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return F.linear(x, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)


_TENSORS = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    """layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    stem = name.removesuffix(".weight")
    if stem.startswith("layers."):
        _, number, rest = stem.split(".", 2)
        return f"blk.{number}.{_TENSORS[rest]}.weight"
    return f"{_TENSORS[stem]}.weight"


def _neighbours(rows: Array, heads: int) -> Array:
    """Rows of queries or keys whose rotated pairs are (i, i + size / 2), as a llama file has them: (2 i, 2 i + 1)."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def save_gguf(
    path: str | os.PathLike[str],
    model: Decoder,
    kind: str = "F16",
    *,
    name: str = "cyx",
    tokenizer: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a decoder as a llama file, its matrices stored as `kind`: F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K or Q6_K.

    tokenizer: the keys behind "tokenizer." and their values ("ggml.model", "ggml.tokens", "chat_template" and so on);
    without it the file has none. Raises FormatError where the rows of a matrix are no whole blocks of `kind`.
    """
    vocabulary, features = model.embed_tokens.weight.shape
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": name,
        "llama.vocab_size": vocabulary,
        "llama.context_length": model.context,
        "llama.embedding_length": features,
        "llama.block_count": len(model.layers),
        "llama.feed_forward_length": model.hidden,
        "llama.attention.head_count": model.heads,
        "llama.attention.head_count_kv": model.kv_heads,
        "llama.rope.dimension_count": features // model.heads,
        "llama.rope.freq_base": Value("f32", model.rope_base),
        "llama.attention.layer_norm_rms_epsilon": Value("f32", model.eps),
    }
    metadata |= {f"tokenizer.{key}": value for key, value in (tokenizer or {"ggml.model": "no_vocab"}).items()}
    heads = {"q_proj": model.heads, "k_proj": model.kv_heads}
    tensors = {}
    for own, values in model.state_dict().items():
        turned = heads.get(own.split(".")[-2])
        rows = _neighbours(values, turned) if turned else values
        stored = kind if rows.ndim > 1 else "F32"
        tensors[_gguf_name(own)] = StoredTensor(stored, rows.shape, quantize(rows, stored))
    save(path, metadata, tensors, progress)
