"""GGUF files: what the gguf package writes is read and the other way round, to the bit; damaged ones are one error."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from cyxcore import safetensors
from cyxcore.errors import DataError, FormatError
from cyxcore.gguf import KINDS, GGUFFile, StoredTensor, Strings, Value, dequantize, quantize, rewrite_gguf, save
from cyxcore.gguf.blocks import BY_NAME, QUANTIZE, UNPACK

DICE = np.random.default_rng(7)
ROWS = DICE.standard_normal((6, 512)).astype(np.float32)
MUTATIONS = int(os.environ.get("CYX_FUZZ_EXAMPLES", "2000"))

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.u8": Value("u8", 200),
    "a.i8": Value("i8", -3),
    "a.u16": Value("u16", 65535),
    "a.i16": Value("i16", -32768),
    "a.u32": 7,
    "a.i32": Value("i32", -7),
    "a.f32": 0.5,
    "a.bool": True,
    "a.u64": Value("u64", 2**64 - 1),
    "a.i64": Value("i64", -(2**63)),
    "a.f64": Value("f64", 1e300),
    "a.texts": ["", "ä", "two words", "x" * 300],
    "a.numbers": np.array([1.5, -2.0], np.float32),
    "a.counts": np.array([1, 2, 3], np.int32),
    "a.flags": np.array([True, False]),
}


def stored(values: np.ndarray, kind: str) -> StoredTensor:
    return StoredTensor(kind, values.shape, quantize(values, kind))


TENSORS = {
    "one": stored(ROWS[0], "F32"),
    "half": stored(ROWS[:, :33], "F16"),
    "brain": stored(ROWS[:, :5], "BF16"),
    **{kind.lower(): stored(ROWS, kind) for kind in UNPACK},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(tmp_path / "a.gguf", METADATA, TENSORS)
    return tmp_path / "a.gguf"


def random_blocks(kind: str, count: int) -> np.ndarray:
    """Any bits are a block, but scales should be numbers."""
    raw = DICE.integers(0, 256, (count, BY_NAME[kind].block_bytes), np.uint8)
    halves = {"Q6_K": [208], "Q4_K": [0, 2], "Q5_K": [0, 2]}.get(kind, [0])
    for at in halves:
        raw[:, at : at + 2] = DICE.standard_normal((count, 1)).astype("<f2").view(np.uint8)
    return raw


@pytest.mark.parametrize("kind", UNPACK)
def test_blocks_are_read_as_the_gguf_package_reads_them(kind: str) -> None:
    raw = random_blocks(kind, 5000)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(dequantize(raw, kind).view(np.uint32), theirs.reshape(-1).view(np.uint32))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("scale", [1.0, 1e-7, 300.0])
def test_blocks_are_written_as_the_gguf_package_writes_them(kind: str, scale: float) -> None:
    values = (DICE.standard_normal((2000, 256)) * scale).astype(np.float32)
    values[3], values[4, :32], values[5, 0] = 0, 127.0 * scale, -8.5 * scale
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(quantize(values, kind), np.ascontiguousarray(theirs).view(np.uint8).reshape(-1))


def test_bfloat16_rounds_ties_to_even_and_keeps_what_is_no_number() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, np.inf, -np.inf, np.nan, 3.4e38], np.float32)
    got = dequantize(quantize(values, "BF16"), "BF16")
    np.testing.assert_array_equal(got, np.array([1, 1 + 2**-6, np.inf, -np.inf, np.nan, np.inf], np.float32))


@pytest.mark.parametrize(
    ("kind", "most"), [("Q8_0", 0.006), ("Q6_K", 0.02), ("Q5_K", 0.04), ("Q4_K", 0.075), ("Q4_0", 0.1)]
)
def test_quantised_values_are_near(kind: str, most: float) -> None:
    values = DICE.standard_normal((64, 512)).astype(np.float32)
    off = dequantize(quantize(values, kind), kind).reshape(values.shape) - values
    assert np.sqrt((off**2).mean() / (values**2).mean()) < most


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_one_value_and_of_zeros_survive(kind: str) -> None:
    values = np.zeros((3, 256), np.float32)
    values[1], values[2] = 0.25, -0.25
    np.testing.assert_allclose(dequantize(quantize(values, kind), kind).reshape(3, 256), values, atol=0.002)


def test_what_we_write_the_gguf_package_reads(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    for key, value in METADATA.items():
        theirs = reader.fields[key].contents()
        ours = value.value if isinstance(value, Value) else value
        assert theirs == (ours.tolist() if isinstance(ours, np.ndarray) else ours), key
    assert [tensor.name for tensor in reader.tensors] == list(TENSORS)
    for tensor in reader.tensors:
        assert tensor.tensor_type.name == TENSORS[tensor.name].type
        assert tuple(tensor.shape.tolist()[::-1]) == TENSORS[tensor.name].shape
        assert tensor.data.tobytes() == TENSORS[tensor.name].raw.tobytes()


def test_what_the_gguf_package_writes_we_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_uint64("n", 2**40)
    writer.add_array("words", ["a", "bc"])
    writer.add_array("scores", [0.5, -1.0])
    writer.add_tensor("x", ROWS)
    writer.add_tensor(
        "q", gguf.quants.quantize(ROWS, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "b.gguf")
    assert file.alignment == 64 and file.number("n", 0, 2**50) == 2**40
    assert list(file.texts("words")) == ["a", "bc"] and file.numbers("scores").tolist() == [0.5, -1.0]
    np.testing.assert_array_equal(file.tensor("x"), ROWS)
    assert file.tensor("q").shape == ROWS.shape and np.abs(file.tensor("q") - ROWS).max() < 0.02


def test_a_file_written_from_what_was_read_has_the_same_bytes(path: Path, tmp_path: Path) -> None:
    file = GGUFFile(path)
    again = {name: StoredTensor(info.type.name, info.shape, file.raw(name)) for name, info in file.tensors.items()}
    seen: list[tuple[int, int]] = []
    save(tmp_path / "again.gguf", file.metadata, again, progress=lambda done, total: seen.append((done, total)))
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    assert seen[-1][0] <= seen[-1][1] == path.stat().st_size


def test_texts_are_a_sequence() -> None:
    texts = Strings.of(["a", "", "ü"])
    assert texts[2] == "ü" and texts[-1] == "ü" and texts[0:2] == ["a", ""] and list(texts) == ["a", "", "ü"]
    with pytest.raises(IndexError):
        texts[3]


def header(values: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0), version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + values + tensors


def named(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def described(shape: tuple[int, ...], kind: int = 0, offset: int = 0, name: bytes = b"t") -> bytes:
    return named(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


F32 = struct.pack("<If", 6, 1.0)
NESTED = named(b"k") + struct.pack("<IIQ", 9, 9, 1)
OVERLAPPING = described((9,)) + described((9,), offset=32, name=b"u")
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "at least 24 bytes"),
    "magic": (b"GGML" + bytes(40), "beginning with"),
    "version 1": (header(version=1), "version 2 or 3"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "tensor count": (header(counts=(2**63, 0)), "claims"),
    "value count": (header(counts=(0, 2**63)), "claims"),
    "long text": (header(struct.pack("<Q", 2**64 - 1) + bytes(40), counts=(0, 1)), "claims 18446744073709551615 bytes"),
    "array in array": (header(NESTED + bytes(40), counts=(0, 1)), "arrays in arrays"),
    "long array": (header(named(b"k") + struct.pack("<IIQ", 9, 4, 2**62) + bytes(40), counts=(0, 1)), "takes"),
    "many texts": (header(named(b"k") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(40), counts=(0, 1)), "claims"),
    "text no UTF-8": (header(named(b"k") + struct.pack("<I", 8) + named(b"\xff"), counts=(0, 1)), "no UTF-8"),
    "key twice": (header(2 * (named(b"k") + F32), counts=(0, 2)), "twice"),
    "value type": (header(named(b"k") + struct.pack("<I", 13) + bytes(8), counts=(0, 1)), "type of value"),
    "bool": (header(named(b"k") + struct.pack("<IB", 7, 2), counts=(0, 1)), "is a bool"),
    "rank 0": (header(tensors=described(()) + bytes(64), counts=(1, 0)), "1 to 4 dimensions"),
    "rank 5": (header(tensors=described((1,) * 5) + bytes(64), counts=(1, 0)), "1 to 4 dimensions"),
    "size 0": (header(tensors=described((0,)) + bytes(64), counts=(1, 0)), "at least 1"),
    "overflow": (header(tensors=described((2**40, 2**40)) + bytes(64), counts=(1, 0)), "less than 2"),
    "removed type": (header(tensors=described((32,), kind=4) + bytes(64), counts=(1, 0)), "unknown tensor type 4"),
    "broken block": (header(tensors=described((33,), kind=8) + bytes(64), counts=(1, 0)), "blocks of 32"),
    "behind the end": (header(tensors=described((2**30,)) + bytes(64), counts=(1, 0)), "the file ends at"),
    "unaligned": (header(tensors=described((1,), offset=4) + bytes(64), counts=(1, 0)), "no multiple of 32"),
    "tensor twice": (header(tensors=2 * described((1,)) + bytes(64), counts=(2, 0)), "appears twice"),
    "overlap": (header(tensors=OVERLAPPING + bytes(256), counts=(2, 0)), "overlap"),
    "alignment": (header(named(b"general.alignment") + struct.pack("<II", 4, 24), counts=(0, 1)), "power of two"),
    "alignment 0": (header(named(b"general.alignment") + struct.pack("<II", 4, 0), counts=(0, 1)), "expected 1 to"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_clear_error(name: str, tmp_path: Path) -> None:
    raw, expected = DAMAGED[name]
    (tmp_path / "bad.gguf").write_bytes(raw)
    with pytest.raises(FormatError, match=expected):
        GGUFFile(tmp_path / "bad.gguf")


def test_every_beginning_of_a_file_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 1200), *range(1200, len(whole) - 32, 997)]:
        cut.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            GGUFFile(cut)


def test_mutated_files_are_read_or_refused(path: Path, tmp_path: Path) -> None:
    """CYX_FUZZ_EXAMPLES sets how many."""
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    header_bytes = min(info.start for info in GGUFFile(path).tensors.values())
    dice, bad = np.random.default_rng(11), tmp_path / "bad.gguf"
    refused = 0
    for _ in range(MUTATIONS):
        raw = whole.copy()
        for _ in range(dice.integers(1, 4)):
            at, size = dice.integers(0, header_bytes), dice.integers(1, 9)
            raw[at : at + size] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.integers(256)])
        bad.write_bytes(raw[: dice.integers(1, len(raw)) if dice.random() < 0.1 else len(raw)].tobytes())
        try:
            file = GGUFFile(bad)
            for name, info in file.tensors.items():
                if info.type.name in UNPACK:
                    with np.errstate(all="ignore"):
                        file.tensor(name)
        except FormatError as error:
            refused += 1
            assert str(error).startswith("gguf ") and len(str(error)) < 600
    assert refused > MUTATIONS / 2


def test_values_have_checked_types(path: Path) -> None:
    file = GGUFFile(path)
    assert file.number("a.i8", -10, 10) == -3 and file.number("not there", 0, 9, 5) == 5
    for ask, expected in [
        (lambda: file.number("a.i8", 0, 10), "expected 0 to 10, got -3"),
        (lambda: file.number("a.texts", 0, 10), "expected a number, got an array of string"),
        (lambda: file.number("a.f32", 0, 10), "expected a number"),
        (lambda: file.number("missing", 0, 10), "'missing' is missing"),
        (lambda: file.text("a.bool"), "expected a string, got bool"),
        (lambda: file.texts("a.numbers"), "expected an array of strings"),
        (lambda: file.numbers("a.texts"), "expected an array of numbers"),
        (lambda: file.tensor("nowhere"), "the tensor 'nowhere' is missing"),
    ]:
        with pytest.raises(FormatError, match=expected):
            ask()


@pytest.mark.parametrize("kind", set(QUANTIZE) - {"F32", "BF16"})
def test_what_cannot_be_stored_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="no number"):
        quantize(np.full(256, np.nan, np.float32), kind)
    with pytest.raises(DataError, match="as large as"):
        quantize(np.full(256, 3e38, np.float32), kind)


def test_a_tensor_of_an_unreadable_type_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "c.gguf", {}, {"x": StoredTensor("Q2_K", (256,), np.zeros(84, np.uint8))})
    with pytest.raises(FormatError, match="cannot read Q2_K; those that can be read are F32"):
        GGUFFile(tmp_path / "c.gguf").tensor("x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_rewritten_file_holds_what_the_gguf_package_reads(kind: str, path: Path, tmp_path: Path) -> None:
    done = rewrite_gguf(path, tmp_path / "b.gguf", kind)
    before, after = GGUFFile(path), GGUFFile(tmp_path / "b.gguf")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    changed = 0
    for name, info in before.tensors.items():
        whole = len(info.shape) > 1 and info.shape[-1] % BY_NAME[kind].block_size == 0
        wanted = kind if whole else info.type.name
        changed += whole and info.type.name != kind
        assert after.tensors[name].type.name == theirs[name].tensor_type.name == wanted
        if wanted != info.type.name:
            assert np.array_equal(after.raw(name), quantize(before.tensor(name), kind))
        else:
            assert np.array_equal(after.raw(name), before.raw(name))
        read = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
        assert np.array_equal(read, after.tensor(name))
    assert done["changed"] == changed
    for key, value in before.metadata.items():
        assert np.array_equal(after.metadata[key].value, value.value), key


def test_metadata_and_numbers_survive_the_way_to_safetensors_and_back(path: Path, tmp_path: Path) -> None:
    rewrite_gguf(path, tmp_path / "a.safetensors")
    rewrite_gguf(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    before, after = GGUFFile(path), GGUFFile(tmp_path / "b.gguf")
    assert list(before.tensors) == list(after.tensors)
    for name in before.tensors:
        assert np.array_equal(before.tensor(name), after.tensor(name))
    for key, value in before.metadata.items():
        assert value.kind == after.metadata[key].kind and np.array_equal(value.value, after.metadata[key].value), key


@pytest.mark.parametrize(
    "held", ["no JSON", "[]", '{"metadata": {"a": ["u8"]}, "kinds": {}}', '{"kinds": {"x": "F32"}}']
)
def test_metadata_that_no_gguf_file_had_is_one_error(held: str, tmp_path: Path) -> None:
    safetensors.save(tmp_path / "a.safetensors", {"x": ROWS}, {"gguf": held})
    with pytest.raises(FormatError, match="gguf"):
        rewrite_gguf(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").exists()


@pytest.mark.parametrize("said", [["string", "\ud800"], ["u32", True], ["u32", -1], ["nothing", 1]])
def test_metadata_that_somebody_altered_in_a_safetensors_is_one_error(tmp_path, said):
    metadata = json.dumps({"metadata": {"general.x": said}, "kinds": {"a": "F32"}})
    safetensors.save(tmp_path / "a.safetensors", {"a": np.zeros((2, 2), np.float32)}, {"gguf": metadata})
    with pytest.raises(FormatError, match="gguf: "):
        rewrite_gguf(tmp_path / "a.safetensors", tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
