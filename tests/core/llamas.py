"""Small random models of the llama family, as files and as PyTorch says what they mean."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cyxcore.gguf import GGUFFile, StoredTensor, quantize, save
from cyxcore.llm.architecture import FAMILIES, Sizes, optional_shapes, tensor_shapes

WORDS = [f"<{i}>" for i in range(96)]


def sizes(**other: Any) -> Sizes:
    options: dict[str, Any] = {
        "architecture": "llama",
        "layers": 2,
        "features": 256,
        "hidden": 512,
        "heads": 8,
        "kv_heads": 2,
        "head_size": 32,
        "rotated": 32,
        "rope_base": 10000.0,
        "vocabulary": len(WORDS),
        "context": 128,
        "eps": 1e-5,
    }
    return Sizes(**(options | other))


def metadata(of: Sizes) -> dict[str, Any]:
    name = of.architecture
    return {
        "general.architecture": name,
        f"{name}.block_count": of.layers,
        f"{name}.embedding_length": of.features,
        f"{name}.feed_forward_length": of.hidden,
        f"{name}.attention.head_count": of.heads,
        f"{name}.attention.head_count_kv": of.kv_heads,
        f"{name}.attention.key_length": of.head_size,
        f"{name}.attention.value_length": of.head_size,
        f"{name}.rope.dimension_count": of.rotated,
        f"{name}.rope.freq_base": of.rope_base,
        f"{name}.rope.scaling.type": "linear" if of.rope_factor != 1 else "none",
        f"{name}.rope.scaling.factor": of.rope_factor,
        f"{name}.attention.sliding_window": of.window,
        f"{name}.context_length": of.context,
        f"{name}.attention.layer_norm_rms_epsilon": of.eps,
    }


def write(
    path: Path, of: Sizes, kind: str = "F32", seed: int = 0, tied: bool = False, rope_freqs: bool = False, **more: Any
) -> Path:
    """A model of random weights. kind: how matrices are stored; "mixed": as files of mixed precision do."""
    dice = np.random.default_rng(seed)
    shapes = tensor_shapes(of) | (optional_shapes(of) if not tied else {})
    if not rope_freqs:
        shapes.pop("rope_freqs.weight", None)
    tensors = {}
    for name, shape in shapes.items():
        if name == "rope_freqs.weight":
            values = 1 + dice.random(shape)
        elif "norm" in name:
            values = 1 + 0.1 * dice.standard_normal(shape)
        else:
            values = dice.standard_normal(shape) / (1 if len(shape) == 1 else np.sqrt(shape[1]))
        stored = "F32" if len(shape) == 1 else kind
        if stored == "mixed":
            stored = "Q6_K" if "attn_v" in name or "ffn_down" in name or name == "output.weight" else "Q4_K"
        tensors[name] = StoredTensor(stored, shape, quantize(values.astype(np.float32), stored))
    save(path, metadata(of) | more, tensors)
    return path


def torch_logits(path: Path, of: Sizes, tokens: list[int]) -> np.ndarray:
    """float32 (T, vocabulary): all positions at once, from the same file's weights, without any cache."""
    file = GGUFFile(path)
    weights = {name: torch.from_numpy(file.tensor(name)) for name in file.tensors}
    family = FAMILIES[of.architecture]

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, of.eps)

    rates = of.rope_base ** (-torch.arange(0, of.rotated, 2, dtype=torch.float64) / of.rotated) / of.rope_factor
    if "rope_freqs.weight" in weights:
        rates = rates / weights["rope_freqs.weight"]
    turns = torch.polar(torch.ones(()).double(), torch.arange(len(tokens)).double()[:, None] * rates)

    def rotate(x: torch.Tensor) -> torch.Tensor:  # (T, H, D), as complex numbers
        turned, rest = x[..., : of.rotated].double(), x[..., of.rotated :]
        if family.halves:
            pairs = torch.complex(turned[..., : of.rotated // 2], turned[..., of.rotated // 2 :]) * turns[:, None]
            return torch.cat([pairs.real.float(), pairs.imag.float(), rest], -1)
        pairs = torch.view_as_complex(turned.reshape(*turned.shape[:-1], -1, 2).contiguous()) * turns[:, None]
        return torch.cat([torch.view_as_real(pairs).flatten(-2).float(), rest], -1)

    at = torch.arange(len(tokens))
    seen = at[None, :] <= at[:, None]
    if of.window:
        seen &= at[None, :] > at[:, None] - of.window
    x = weights["token_embd.weight"][tokens]
    for layer in range(of.layers):
        own = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blk.{layer}.")}
        h = norm(x, own["attn_norm.weight"])
        q, k, v = (
            torch.nn.functional.linear(h, own[f"attn_{n}.weight"], own.get(f"attn_{n}.bias")).unflatten(
                1, (-1, of.head_size)
            )
            for n in "qkv"
        )
        if family.qk_norm:
            q, k = norm(q, own["attn_q_norm.weight"]), norm(k, own["attn_k_norm.weight"])
        q, k, v = rotate(q).transpose(0, 1), rotate(k).transpose(0, 1), v.transpose(0, 1)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
        x = x + mixed.transpose(0, 1).flatten(1) @ own["attn_output.weight"].T
        h = norm(x, own["ffn_norm.weight"])
        gated = torch.nn.functional.silu(h @ own["ffn_gate.weight"].T) * (h @ own["ffn_up.weight"].T)
        x = x + gated @ own["ffn_down.weight"].T
    output = weights.get("output.weight", weights["token_embd.weight"])
    return (norm(x, weights["output_norm.weight"]) @ output.T).numpy()
