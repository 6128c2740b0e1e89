"""Models of the llama family against PyTorch and NumPy; their bits against themselves under other circumstances."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cyxcore.errors import FormatError
from cyxcore.gguf import GGUFFile, StoredTensor, dequantize, quantize, save
from cyxcore.kernels import cpu
from cyxcore.kernels.language import KINDS
from cyxcore.llm.llama import KVPages, Llama, Stretch
from cyxcore.llm.weights import pack, quantised_activations
from tests.core import llamas

DICE = np.random.default_rng(5)
TOKENS = DICE.integers(0, len(llamas.WORDS), 45).tolist()
PAGES = np.array([7, 2, 9, 0], np.int32)


@pytest.fixture(params=["avx512", "avx2", "portable"])
def each_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu.isa()
    try:
        cpu.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this machine lacks {request.param}")
    yield request.param
    cpu.set_isa(before)


def logits(path: Path, cuts: list[int], threads: int = 1) -> np.ndarray:
    """All positions, the prompt cut into pieces at `cuts`."""
    model = Llama(path)
    cache, before = KVPages(model.sizes, 10), cpu.get_num_threads()
    cpu.set_num_threads(threads)
    try:
        parts = []
        for start, stop in zip([0, *cuts], [*cuts, len(TOKENS)], strict=True):
            states = model.forward([Stretch(TOKENS[start:stop], start, PAGES)], cache, range(stop - start))
            parts.append(model.logits(states))
        return np.concatenate(parts)
    finally:
        cpu.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5, 26])
def test_products_are_those_of_the_dequantised_matrix(kind: str, count: int) -> None:
    weights = DICE.standard_normal((83, 512)).astype(np.float32)
    x = DICE.standard_normal((count, 512)).astype(np.float32)
    x[0, :32] = 0
    raw, out = quantize(weights, kind), np.full((count, 83), np.nan, np.float32)
    pack(raw, kind, 83, 512).multiply(x, out)
    taken = x.astype(np.float64)
    if kind.startswith("Q"):
        q, scale = quantised_activations(x)
        taken = (q.reshape(count, -1, 32) * scale[:, :, None].astype(np.float64)).reshape(x.shape)
    expected = taken @ dequantize(raw, kind).reshape(83, 512).astype(np.float64).T
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_products_have_the_same_bits_on_every_instruction_set(kind: str, each_isa: str) -> None:
    dice = np.random.default_rng(3)
    x = (dice.standard_normal((17, 512)) * 10.0 ** dice.integers(-30, 20, (17, 1))).astype(np.float32)
    matrix = pack(quantize(dice.standard_normal((83, 512)).astype(np.float32), kind), kind, 83, 512)
    out, plain, one = (np.ones((17, 83), np.float32) for _ in range(3))
    matrix.multiply(x, out, accumulate=True)
    for row in range(17):
        matrix.multiply(x[row : row + 1], one[row : row + 1], accumulate=True)
    cpu.set_isa("portable")
    matrix.multiply(x, plain, accumulate=True)
    np.testing.assert_array_equal(out.view(np.uint32), plain.view(np.uint32))
    np.testing.assert_array_equal(out.view(np.uint32), one.view(np.uint32))


def test_what_is_no_number_makes_none(each_isa: str) -> None:
    matrix = pack(quantize(np.ones((16, 256), np.float32), "Q8_0"), "Q8_0", 16, 256)
    x = np.ones((3, 256), np.float32)
    x[0, 5], x[1, 200] = np.nan, np.inf
    out = np.zeros((3, 16), np.float32)
    matrix.multiply(x, out)
    assert np.isnan(out[:2]).all() and np.isfinite(out[2]).all()


VARIANTS = {
    "llama": llamas.sizes(),
    "no groups": llamas.sizes(kv_heads=8),
    "one head of keys": llamas.sizes(kv_heads=1),
    "odd heads": llamas.sizes(heads=6, kv_heads=2, head_size=40, rotated=40),
    "partly rotated": llamas.sizes(rotated=16),
    "window": llamas.sizes(window=11),
    "scaled": llamas.sizes(rope_factor=4.0, rope_base=500000.0),
    "qwen2": llamas.sizes(architecture="qwen2"),
    "qwen3": llamas.sizes(architecture="qwen3", head_size=64, rotated=64),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_pytorch(name: str, tied: bool, tmp_path: Path) -> None:
    of = VARIANTS[name]
    path = llamas.write(tmp_path / "a.gguf", of, tied=tied, rope_freqs=not tied)
    expected = llamas.torch_logits(path, of, TOKENS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits(path, [20, 21]), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_logits_of_halves_are_those_of_pytorch(kind: str, tmp_path: Path) -> None:
    path = llamas.write(tmp_path / "a.gguf", llamas.sizes(), kind)
    np.testing.assert_allclose(logits(path, []), llamas.torch_logits(path, llamas.sizes(), TOKENS), atol=1e-4)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "mixed"])
def test_logits_of_quantised_weights_are_near_those_of_pytorch(kind: str, tmp_path: Path) -> None:
    """Activations are rounded to 8 bits, weights are what the file says; the difference is of that rounding's size."""
    path = llamas.write(tmp_path / "a.gguf", llamas.sizes(), kind)
    expected = llamas.torch_logits(path, llamas.sizes(), TOKENS)
    assert np.sqrt(((logits(path, []) - expected) ** 2).mean() / (expected**2).mean()) < 0.03


@pytest.mark.parametrize("kind", ["F32", "F16", "mixed", "Q8_0"])
def test_bits_depend_on_nothing_but_the_sequence(kind: str, tmp_path: Path, each_isa: str) -> None:
    """Not on the instruction set, the threads, or how a prompt is cut into pieces."""
    path = llamas.write(tmp_path / "a.gguf", llamas.sizes(window=21), kind)
    got = logits(path, [1, 2, 18, 30, 44], threads=2)
    cpu.set_isa("portable")
    np.testing.assert_array_equal(got.view(np.uint32), logits(path, []).view(np.uint32))


def test_sequences_in_one_batch_do_not_touch_each_other(tmp_path: Path) -> None:
    model = Llama(llamas.write(tmp_path / "a.gguf", llamas.sizes(), "Q4_0"))
    cache = KVPages(model.sizes, 10)
    alone = model.forward([Stretch(TOKENS, 0, PAGES)], cache)
    model.forward([Stretch(TOKENS[:30], 0, PAGES)], cache)
    other = np.array([1, 5, 3], np.int32)
    states = model.forward([Stretch(TOKENS[::-1], 0, other), Stretch(TOKENS[30:], 30, PAGES)], cache)
    np.testing.assert_array_equal(states[1].view(np.uint32), alone[0].view(np.uint32))
    assert (states[0] != states[1]).any()


BROKEN: dict[str, tuple[dict, str]] = {
    "architecture": ({"general.architecture": "rwkv"}, "expected an architecture of llama, qwen2, qwen3, got 'rwkv'"),
    "experts": ({"llama.expert_count": 8}, "mixtures of experts are not supported"),
    "no heads": ({"llama.attention.head_count": 0}, "head_count: expected 1 to 4096, got 0"),
    "layers": ({"llama.block_count": 10**9}, "block_count: expected 1 to 1024"),
    "negative": ({"llama.block_count": -1}, "block_count: expected 1 to 1024, got -1"),
    "wrong kind": ({"llama.block_count": "two"}, "expected a number, got string 'two'"),
    "uneven heads": ({"llama.attention.head_count_kv": 3}, "3 heads of keys do not divide 8"),
    "rotation": ({"llama.rope.dimension_count": 31}, "expected an even number, got 31"),
    "scaling": ({"llama.rope.scaling.type": "yarn"}, "'yarn' are not supported"),
    "eps": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "expected 0.0 to 1.0, got nan"),
    "missing layer": ({"llama.block_count": 3}, "the tensor 'blk.2.attn_norm.weight' is missing"),
    "extra layer": ({"llama.block_count": 1}, "has no tensor 'blk.N.attn_norm.weight'"),
    "shape": ({"llama.feed_forward_length": 256}, r"expected shape \[256, 256\], got \[512, 256\]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_run_is_refused_by_name(name: str, tmp_path: Path) -> None:
    changes, expected = BROKEN[name]
    path = llamas.write(tmp_path / "a.gguf", llamas.sizes(), **changes)
    with pytest.raises(FormatError, match=expected):
        Llama(path)


def test_a_type_that_no_kernel_multiplies_with_is_refused(tmp_path: Path) -> None:
    path = llamas.write(tmp_path / "a.gguf", llamas.sizes())
    file = GGUFFile(path)
    tensors = {name: StoredTensor("F32", info.shape, file.raw(name)) for name, info in file.tensors.items()}
    down = tensors["blk.1.ffn_down.weight"]
    tensors["blk.1.ffn_down.weight"] = StoredTensor("F64", down.shape, np.zeros(down.raw.size * 2, np.uint8))
    save(path, file.metadata, tensors)
    with pytest.raises(FormatError, match="blk.1.ffn_down.weight: llm: cannot multiply with F64"):
        Llama(path)
