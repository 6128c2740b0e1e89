"""Attention and transformer modules: torch's constructors, parameter names and results; and encodings of positions."""

import copy
import math
from collections.abc import Callable
from typing import Any

from cyxcore import functional as F
from cyxcore.creation import full, triu
from cyxcore.errors import SpecError
from cyxcore.functional.attention import attended_as_given
from cyxcore.nn.containers import ModuleList
from cyxcore.nn.dropouts import Dropout
from cyxcore.nn.layers import Linear
from cyxcore.nn.module import Module, Parameter, check_sizes
from cyxcore.nn.norms import LayerNorm


class MultiheadAttention(Module):
    """Heads of scaled dot-product attention: returns (result, weights).

    query: (T, N, E), key: (S, N, kdim) and value: (S, N, vdim); with batch_first (N, T, E), (N, S, kdim) and
    (N, S, vdim); or without N. In masks True (or -inf) is not to be seen, and other floats are added, as in torch. A
    position that sees nothing sees everything alike, where torch has NaN.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
    ) -> None:
        """add_bias_kv: a learnt key and value more. add_zero_attn: one more of zeros. kdim, vdim: embed_dim if None."""
        super().__init__()
        check_sizes(self, embed_dim=embed_dim, num_heads=num_heads)
        if embed_dim % num_heads:
            raise SpecError(f"MultiheadAttention: {num_heads} heads do not divide {embed_dim} features")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        self.add_zero_attn = add_zero_attn
        self.in_proj_weight: Parameter | None = None
        if self.kdim == self.vdim == embed_dim:
            self.in_proj_weight = _xavier(3 * embed_dim, embed_dim)
        else:
            self.q_proj_weight = _xavier(embed_dim, embed_dim)
            self.k_proj_weight = _xavier(embed_dim, self.kdim)
            self.v_proj_weight = _xavier(embed_dim, self.vdim)
        self.in_proj_bias = Parameter.drawn((3 * embed_dim,), {"kind": "zeros"}) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias)
        if self.out_proj.bias is not None:
            self.out_proj.bias = Parameter.drawn((embed_dim,), {"kind": "zeros"})
        init = {"kind": "normal", "std": math.sqrt(1.0 / embed_dim)}  # Xavier's of (1, 1, E)
        self.bias_k, self.bias_v = (Parameter.drawn((1, 1, embed_dim), init) if add_bias_kv else None for _ in range(2))

    def forward(
        self,
        query: Any,
        key: Any = None,
        value: Any = None,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, Any]:
        """Without key and value: self-attention.

        Returns (result of query's shape, weights): (N, T, S), the mean over the heads, or (N, heads, T, S) without
        average_attn_weights; None without need_weights. key_padding_mask: (N, S), attn_mask: (T, S) or
        (N * heads, T, S). is_causal: position t sees up to t; no attn_mask is needed for it.
        """
        key = query if key is None else key
        value = key if value is None else value
        if self.in_proj_weight is None:
            projections = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            projections = self.in_proj_weight
        return attended_as_given(
            query,
            key,
            value,
            self.num_heads,
            projections,
            self.in_proj_bias,
            self.out_proj.weight,
            self.out_proj.bias,
            batch_first=self.batch_first,
            average_attn_weights=average_attn_weights,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            is_causal=is_causal,
            dropout_p=self.dropout,
            training=self.training,
            bias_k=self.bias_k,
            bias_v=self.bias_v,
            add_zero_attn=self.add_zero_attn,
            need_weights=need_weights,
        )

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, batch_first={self.batch_first}"


def _xavier(outputs: int, inputs: int) -> Parameter:
    return Parameter.drawn((outputs, inputs), {"kind": "uniform", "bound": math.sqrt(6.0 / (outputs + inputs))})


class LinearAttention(Module):
    """Self-attention in time linear in T: φ(q) (φ(k)ᵀ v), φ = elu + 1. x: (N, T, E)."""

    def __init__(self, embed_dim: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        check_sizes(self, embed_dim=embed_dim, num_heads=num_heads)
        if embed_dim % num_heads:
            raise SpecError(f"LinearAttention: {num_heads} heads do not divide {embed_dim} features")
        self.num_heads = num_heads
        self.in_proj = Linear(embed_dim, 3 * embed_dim, bias)
        self.out_proj = Linear(embed_dim, embed_dim, bias)

    def forward(self, x: Any) -> Any:
        size = x.shape[-1]
        both = self.in_proj(x)
        q, k, v = (F.split_heads(both[:, :, n * size : (n + 1) * size], self.num_heads) for n in range(3))
        return self.out_proj(F.join_heads(F.linear_attention(q, k, v)))


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class _TransformerLayer(Module):
    """What an encoder's and a decoder's layer share: self-attention and a feed-forward part, each with a norm."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Any], Any] = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
    ) -> None:
        """activation: a name, or a function or module of one tensor."""
        super().__init__()
        if not callable(activation) and activation not in _ACTIVATIONS:
            names = ", ".join(_ACTIVATIONS)
            raise SpecError(f"transformer: expected activation {names} or a function, got {activation!r}")
        self.activation, self.norm_first, self.batch_first = activation, norm_first, batch_first
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first)
        self.linear1 = Linear(d_model, dim_feedforward, bias)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias)
        self.norm1, self.norm2 = (LayerNorm(d_model, layer_norm_eps, bias=bias) for _ in range(2))
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)

    def _feed_forward(self, x: Any) -> Any:
        activation = self.activation if callable(self.activation) else _ACTIVATIONS[self.activation]
        return self.linear2(self.dropout(activation(self.linear1(x))))

    def _around(self, x: Any, part: Callable[[Any], Any], norm: Module, drop: Module) -> Any:
        """A part with its residual: normalised before (norm_first) or after the sum."""
        return x + drop(part(norm(x))) if self.norm_first else norm(x + drop(part(x)))


class TransformerEncoderLayer(_TransformerLayer):
    """Self-attention, then two linear layers (Vaswani 2017, arXiv 1706.03762)."""

    def forward(self, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False) -> Any:
        def attend(x: Any) -> Any:
            options = {"key_padding_mask": src_key_padding_mask, "attn_mask": src_mask, "is_causal": is_causal}
            return self.self_attn(x, x, x, need_weights=False, **options)[0]

        x = self._around(src, attend, self.norm1, self.dropout1)
        return self._around(x, self._feed_forward, self.norm2, self.dropout2)


class TransformerDecoderLayer(_TransformerLayer):
    """Self-attention, attention to `memory`, then two linear layers."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Any], Any] = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
    ) -> None:
        options = (activation, layer_norm_eps, batch_first, norm_first, bias)
        super().__init__(d_model, nhead, dim_feedforward, dropout, *options)
        self.multihead_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first)
        self.norm3, self.dropout3 = LayerNorm(d_model, layer_norm_eps, bias=bias), Dropout(dropout)

    def forward(
        self,
        tgt: Any,
        memory: Any,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool = False,
    ) -> Any:
        def attend(x: Any) -> Any:
            options = {"key_padding_mask": tgt_key_padding_mask, "attn_mask": tgt_mask, "is_causal": tgt_is_causal}
            return self.self_attn(x, x, x, need_weights=False, **options)[0]

        def look(x: Any) -> Any:
            options = {"key_padding_mask": memory_key_padding_mask, "attn_mask": memory_mask}
            return self.multihead_attn(x, memory, memory, need_weights=False, **options)[0]

        x = self._around(tgt, attend, self.norm1, self.dropout1)
        x = self._around(x, look, self.norm2, self.dropout2)
        return self._around(x, self._feed_forward, self.norm3, self.dropout3)


class TransformerEncoder(Module):
    """Copies of a layer one after another, and a last norm where one is given."""

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        """enable_nested_tensor and mask_check say how to be fast in PyTorch, and change nothing here."""
        super().__init__()
        self.layers = ModuleList(copy.deepcopy(encoder_layer) for _ in range(num_layers))
        self.norm = norm

    def forward(self, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False) -> Any:
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, is_causal)
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(Module):
    """Copies of a layer one after another, each looking at `memory`, and a last norm where one is given."""

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        self.layers = ModuleList(copy.deepcopy(decoder_layer) for _ in range(num_layers))
        self.norm = norm

    def forward(self, tgt: Any, memory: Any, tgt_mask: Any = None, memory_mask: Any = None, **masks: Any) -> Any:
        for layer in self.layers:
            tgt = layer(tgt, memory, tgt_mask, memory_mask, **masks)
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Module):
    """An encoder and a decoder with a norm after each (Vaswani 2017). src: (S, N, E), tgt: (T, N, E) -> (T, N, E)."""

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Any], Any] = "relu",
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
    ) -> None:
        """custom_encoder, custom_decoder: modules called as TransformerEncoder and TransformerDecoder are."""
        super().__init__()
        options = (activation, layer_norm_eps, batch_first, norm_first, bias)
        given = (d_model, nhead, dim_feedforward, dropout, *options)
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first
        encoder = TransformerEncoderLayer(*given) if custom_encoder is None else None
        decoder = TransformerDecoderLayer(*given) if custom_decoder is None else None
        if encoder is not None:
            last = LayerNorm(d_model, layer_norm_eps, bias=bias)
            custom_encoder = TransformerEncoder(encoder, num_encoder_layers, last)
        if decoder is not None:
            last = LayerNorm(d_model, layer_norm_eps, bias=bias)
            custom_decoder = TransformerDecoder(decoder, num_decoder_layers, last)
        self.encoder: Any = custom_encoder
        self.decoder: Any = custom_decoder

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Any:
        """float (sz, sz): 0 where a place may look, up to itself, and -infinity after it."""
        mask = triu(full((sz, sz), -math.inf, dtype=dtype), k=1)
        return mask if device is None else mask.to(device)

    def forward(
        self,
        src: Any,
        tgt: Any,
        src_mask: Any = None,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        src_key_padding_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
    ) -> Any:
        memory = self.encoder(src, src_mask, src_key_padding_mask)
        masks = {"tgt_key_padding_mask": tgt_key_padding_mask, "memory_key_padding_mask": memory_key_padding_mask}
        return self.decoder(tgt, memory, tgt_mask, memory_mask, **masks)


class PositionalEncoding(Module):
    """x (N, T, E) plus sines and cosines of the position, then dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.p = dropout

    def forward(self, x: Any) -> Any:
        return F.dropout(x + F.sinusoidal_positions(x, x.shape[1], x.shape[2]), self.p, self.training)


class RotaryEmbedding(Module):
    """x (..., T, E) with pairs of features turned by the position; for queries and keys of attention."""

    def __init__(self, base: float = 10000.0) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Any) -> Any:
        return F.rotary(x, self.base)
