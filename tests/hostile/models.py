"""Model files that were spoilt, opened: python -m tests.hostile.models --count 75000 --format onnx

Every file is made from the seed and its number: a good one with bytes, lengths or fields changed, in the container or
inside it with the checksums made right again. It must load, or be refused by one FormatError, within a few seconds and
64 MiB beyond four times its size. Files are opened in a child process with a limit on its address space: a crash of it
is found, and the number said. Exit status 1 at any violation.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cyxcore as cx
from cyxcore import cyxmodel
from cyxcore.errors import CyxError, FormatError
from cyxcore.gguf.file import ARRAY, SCALARS, STRING
from cyxcore.graphlearner import initial_weights
from cyxcore.llm.languagemodel import LanguageModel
from cyxcore.llm.llama import KVPages, Stretch
from cyxcore.llm.tokenizer import BYTE_OF
from cyxcore.onnx.proto import MESSAGES, decode, encode

SPARE_BYTES = 64 * 2**20
LIMIT_S = 10
MEMORY = Path("/dev/shm")  # a disk takes milliseconds to make a file, more than opening most of them does
BATCH = 500
RUNNABLE_FLOPS, RUNNABLE_BYTES = 10**7, 16 * 2**20  # a model that loads is also run, if that is little work

Mutation = Callable[[random.Random, bytes], bytes]

# bytes of any file --------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]


def _place(dice: random.Random, data: bytes) -> int:
    """Rather in the front, where headers are, or at the end, where a zip has its directory."""
    span = len(data) if dice.random() < 0.3 else min(len(data), 400)
    at = dice.randrange(max(span, 1))
    return at if dice.random() < 0.7 else len(data) - 1 - at


def flip(dice: random.Random, data: bytes) -> bytes:
    raw = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        raw[_place(dice, data)] ^= 1 << dice.randrange(8)
    return bytes(raw)


def cut(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data))]


def number(dice: random.Random, data: bytes) -> bytes:
    at, size = _place(dice, data), dice.choice((1, 2, 4, 8))
    value = dice.choice(NUMBERS) & (2 ** (8 * size) - 1)
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


def repeat(dice: random.Random, data: bytes) -> bytes:
    at, size = _place(dice, data), dice.choice((1, 4, 16, 64, 256))
    part = data[at : at + size]
    return data[:at] + part * dice.choice((0, 2, 3, 50)) + data[at + size :]


def splice(dice: random.Random, data: bytes) -> bytes:
    a, b = sorted((_place(dice, data), _place(dice, data)))
    return data[:a] + data[b:] + data[a:b] if dice.random() < 0.5 else data[:a] + data[b:]


BYTES: list[Mutation] = [flip, cut, number, repeat, splice]

# JSON ---------------------------------------------------------------------------------------------

STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    1e308,
    "",
    "x" * 300,
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
]


def spoil_json(dice: random.Random, value: Any) -> Any:
    """One place somewhere in a tree made something else, gone, or there twice."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        if dice.random() < 0.12:
            return {k: v for k, v in value.items() if k != key}
        if dice.random() < 0.08:
            return {**value, dice.choice(("extra", "op", "shape", "in", key + "x")): dice.choice(STRANGE)}
        return {**value, key: spoil_json(dice, value[key])}
    if isinstance(value, list) and value and dice.random() < 0.9:
        at = dice.randrange(len(value))
        if dice.random() < 0.15:
            return value[:at] + value[at + 1 :] if dice.random() < 0.5 else value[: at + 1] + value[at:]
        return [*value[:at], spoil_json(dice, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and dice.random() < 0.7:
        return dice.choice([value + 1, value - 1, -value, value * 1000, *NUMBERS])
    return dice.choice(STRANGE)


def json_bytes(dice: random.Random, raw: bytes) -> bytes:
    value = json.loads(raw)
    for _ in range(dice.choice((1, 1, 2, 4))):
        value = spoil_json(dice, value)
    return json.dumps(value).encode("utf-8", "surrogatepass")


# inside the containers ----------------------------------------------------------------------------


def safetensors_header(dice: random.Random, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json_bytes(dice, data[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def safetensors_graph(dice: random.Random, data: bytes) -> bytes:
    """The graph in the metadata spoilt, everything around it right."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    key = dice.choice(("cyx.graph", "cyx.graph", "cyx.facts"))
    header["__metadata__"][key] = json_bytes(dice, header["__metadata__"][key].encode()).decode("utf-8", "replace")
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def cyxmodel_part(dice: random.Random, data: bytes) -> bytes:
    """One part spoilt, and the manifest made right again."""
    with tempfile.NamedTemporaryFile(suffix=".cyxmodel") as file:
        file.write(data)
        file.flush()
        held = cyxmodel.load(file.name)
        small, weights = dict(held.small), held.weights()
    if dice.random() < 0.8:
        name = dice.choice(("graph.json", "graph.json", "config.json", "history.json"))
        small[name] = json_bytes(dice, small[name])
    else:
        name = dice.choice(list(weights))
        weights[name] = np.asarray(dice.choice([weights[name][:0], weights[name].astype("int64"), np.zeros((2, 2))]))
    return cyxmodel.to_bytes(small, weights)


def spoil_message(dice: random.Random, kind: str, message: dict[str, Any]) -> None:
    """One field somewhere in an ONNX message made something else."""
    filled = [row for row in MESSAGES[kind].values() if row[0] in message and not _is_empty(message[row[0]])]
    if not filled:
        return
    name, field = dice.choice(filled)
    value, inner = message[name], field.lstrip("*")
    if inner in MESSAGES:
        if field[0] != "*":
            spoil_message(dice, inner, value)
        elif dice.random() < 0.12:
            at = dice.randrange(len(value))
            message[name] = dice.choice([value[:at] + value[at + 1 :], [*value, value[at]], value[::-1]])
        else:
            spoil_message(dice, inner, dice.choice(value))
    elif field[0] == "*":
        rows = list(value)
        at = dice.randrange(len(rows))
        rows[at] = _other(dice, inner, rows[at])
        message[name] = dice.choice([rows, rows[:at], [*rows, *rows]])
    else:
        message[name] = _other(dice, inner, value)


def _is_empty(value: Any) -> bool:
    return value is None or hasattr(value, "__len__") and len(value) == 0


def _other(dice: random.Random, kind: str, value: Any) -> Any:
    if kind == "int":
        return dice.choice([int(value) + 1, int(value) - 1, -int(value), 3, 7, 16, *NUMBERS, -(2**63), -(2**31)])
    if kind in ("float", "double"):
        return dice.choice([0.0, -1.0, 1e38, float("nan"), float("inf"), 1e-40])
    if kind == "str":
        return dice.choice(
            ["", "x", "y", "w", "Loop", "If", "LSTM", "Resize", "Pad", "Conv", "Expand", "../x", "a" * 400]
        )
    raw = bytes(value)
    return dice.choice([b"", raw[:-1], raw + raw, flip(dice, raw) if raw else b"\0"])


def onnx_field(dice: random.Random, data: bytes) -> bytes:
    message = decode("Model", data, "base")
    for _ in range(dice.choice((1, 1, 2, 3))):
        spoil_message(dice, "Model", message)
    for entry in _walk(message):  # numbers beyond 64 bits cannot be written
        entry.update({k: v & (2**64 - 1) for k, v in entry.items() if isinstance(v, int)})
    return b"".join(encode("Model", message))


def _walk(value: Any) -> Any:
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _walk(part)
    elif isinstance(value, list):
        for part in value:
            yield from _walk(part)


def _gguf_numbers(data: bytes) -> list[tuple[int, int]]:
    """(where, bytes) of each count, length, type and number of a header. Raises what a spoilt one makes it."""
    found: list[tuple[int, int]] = []

    def number(size: int) -> int:
        at = sum(found[-1]) if found else 4
        if at + size > len(data):
            raise IndexError
        found.append((at, size))
        return int.from_bytes(data[at : at + size], "little")

    def text() -> None:
        """A length, and that many bytes; the next number lies behind them."""
        length = number(8)
        found.append((sum(found[-1]) + length, 0))

    def value(kind: int) -> None:
        if kind == STRING:
            text()
        elif kind == ARRAY:
            inner = number(4)
            for _ in range(number(8)):
                value(inner)
        else:
            number(np.dtype(SCALARS[kind][1]).itemsize)

    number(4)
    tensors, values = number(8), number(8)
    for _ in range(values):
        text()
        value(number(4))
    for _ in range(tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4), number(8)
    return [(at, size) for at, size in found if size]


def gguf_number(dice: random.Random, data: bytes) -> bytes:
    """One number of the header made another, near or far."""
    at, size = dice.choice(_gguf_numbers(data))
    old = int.from_bytes(data[at : at + size], "little")
    value = dice.choice([old + 1, old - 1, old * 2, old // 2, *NUMBERS]) % 2 ** (8 * size)
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


def gguf_swap(dice: random.Random, data: bytes) -> bytes:
    """Two numbers of the header in each other's place: types, sizes and places that occur in good files."""
    numbers = _gguf_numbers(data)
    first = dice.choice(numbers)
    (a, size), (b, _) = sorted([first, dice.choice([each for each in numbers if each[1] == first[1]])])
    if a == b:
        return data
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


# the formats --------------------------------------------------------------------------------------


class Kind(NamedTuple):
    suffix: str
    bases: Callable[[], list[bytes]]
    inside: list[Mutation]
    files_of_a_child: int = 5_000  # the limit is one file's: what allocators and caches keep of many is not to count


LAYERS = [
    [{"kind": "Linear", "out_features": 5}, {"kind": "BatchNorm1d"}, {"kind": "GELU"}, {"kind": "Softmax"}],
    [
        {"kind": "Reshape", "shape": [1, 4, 4]},
        {"kind": "Conv2d", "out_channels": 2, "kernel_size": 3, "padding": 1},
        {"kind": "MaxPool2d", "kernel_size": 2},
        {"kind": "Flatten"},
    ],
    [{"kind": "Reshape", "shape": [4, 4]}, {"kind": "LSTM", "hidden_size": 3}, {"kind": "LayerNorm"}],
    [{"kind": "Reshape", "shape": [4, 4]}, {"kind": "SelfAttention", "num_heads": 2, "causal": True}],
]


def _models() -> list[tuple[Any, Any]]:
    graphs = [cx.build(input_shape=[16], layers=layers) for layers in LAYERS]
    return [(graph, initial_weights(graph, 1)) for graph in graphs]


def _saved(suffix: str) -> list[bytes]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for graph, weights in _models():
            path = Path(folder) / f"m{suffix}"
            cx.save_model(path, graph, weights, classes=["a", "b"])
            found.append(path.read_bytes())
    return found


def _onnx_bases() -> list[bytes]:
    """Our own, and ONNX's node tests: an operator each, with its inputs as initializers where they are known."""
    from tests.onnx_nodes import OPERATORS, installed

    found = _saved(".onnx")
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in installed():
            message = decode("Model", case.model, "case")
            names = {node["op_type"] for node in message["graph"]["node"]}
            if names <= set(OPERATORS) and not names <= seen and len(message["graph"]["node"]) < 30:
                seen |= names
                found.append(_one_input(message, case))
    return found


def _one_input(message: dict[str, Any], case: Any) -> bytes:
    """A node test as a model of one input: the others become initializers."""
    from cyxcore.onnx.tensors import NUMBERS as KNOWN
    from cyxcore.onnx.tensors import to_proto

    graph, inputs = message["graph"], case.sets[0][0]
    for value, array in list(zip(graph["input"], inputs, strict=False))[1:]:
        if isinstance(array, np.ndarray) and array.dtype.name in KNOWN:
            graph["initializer"].append(to_proto(value["name"], array))
    return b"".join(encode("Model", message))


def _old_bases() -> list[bytes]:
    from tests.core.test_oldmodels import MODULES, binary

    return [binary(MODULES)]


def _gguf_bases() -> list[bytes]:
    """Decoders of one layer: plain and quantised, tied or not, with both kinds of tokenizer."""
    from tests.core.llamas import sizes, write

    small = sizes(layers=1, features=64, hidden=64, heads=4, kv_heads=2, head_size=16, rotated=16, vocabulary=258)
    large = sizes(layers=1, features=256, hidden=256, heads=2, kv_heads=1, head_size=128, rotated=64, vocabulary=258)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        for place, (kind, of) in enumerate([("F32", small), ("Q8_0", small), ("Q4_0", small), ("mixed", large)]):
            tokenizer = _sentencepiece() if place % 2 else _byte_pairs()
            write(path, of, kind, tied=place % 2 == 0, **tokenizer, **{"tokenizer.chat_template": TEMPLATE})
            found.append(path.read_bytes())
    return found


TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


def _byte_pairs() -> dict[str, Any]:
    letters = [char for _, char in sorted((byte, char) for char, byte in BYTE_OF.items())]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*letters, "ab", "<end>"],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        "tokenizer.ggml.eos_token_id": 257,
    }


def _sentencepiece() -> dict[str, Any]:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(255)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *bytes_],
        "tokenizer.ggml.scores": [float(-place) for place in range(258)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 255],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def use_language(path: Path) -> str:
    """Opens a GGUF file as a server does, makes tokens of a text, and asks what follows them."""
    held = LanguageModel(path)
    try:
        tokens = [token for token in held.tokens("ab") if token < held.sizes.vocabulary] or [0]
        cache = KVPages(held.sizes, 1)
        states = held.model.forward([Stretch(tokens, 0, np.zeros(1, np.int32))], cache)
        held.model.logits(states)
    except CyxError:
        return "refused when it was run"
    return "run"


KINDS: dict[str, Kind] = {
    "gguf": Kind(".gguf", _gguf_bases, [gguf_number, gguf_number, gguf_swap], files_of_a_child=1_000),
    "safetensors": Kind(".safetensors", lambda: _saved(".safetensors"), [safetensors_header, safetensors_graph]),
    "cyxmodel": Kind(".cyxmodel", lambda: _saved(".cyxmodel"), [cyxmodel_part]),
    "cyxmodel2": Kind(".cyxmodel", _old_bases, []),
    "onnx": Kind(".onnx", _onnx_bases, [onnx_field, onnx_field, onnx_field]),
}


def spoilt(kind: Kind, bases: list[bytes], seed: int, place: int) -> tuple[bytes, str]:
    """(file `place` of a seed, what was done to it)."""
    dice = random.Random(f"{seed} {place}")
    data, done = dice.choice(bases), []
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        mutation = dice.choice([*BYTES, *kind.inside, *kind.inside, *kind.inside])
        try:
            data = mutation(dice, data)
        except (
            CyxError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            struct.error,
            OverflowError,
            OSError,
        ):
            continue  # what was spoilt before cannot be taken apart any more
        done.append(mutation.__name__)
        if not data:
            break
    return data, ", ".join(done)


# one file -----------------------------------------------------------------------------------------


def _too_long(*_: Any) -> None:
    raise TimeoutError


def use_model(path: Path) -> str:
    model = cx.load_model(path)
    if model.graph.flops(1) > RUNNABLE_FLOPS or model.graph.memory_bytes(1, training=False) > RUNNABLE_BYTES:
        return "loaded"
    try:
        model.predict(np.zeros((1, *model.graph.input_shape), model.graph.nodes[model.graph.input].attrs["dtype"]))
    except CyxError:
        return "refused when it was run"
    return "run"


def opened(path: Path) -> str:
    """What became of a file: loaded, run or refused; otherwise what is wrong, starting with WRONG."""
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)  # of processor time: the machine may be busy
    try:
        return use_language(path) if path.suffix == ".gguf" else use_model(path)
    except FormatError as error:
        return "refused" if len(str(error)) < 2000 else f"WRONG: a message of {len(str(error))} characters"
    except TimeoutError:
        return f"WRONG: still busy after {LIMIT_S} s"
    except BaseException as error:  # anything else is what this program looks for
        return f"WRONG: {type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _child(name: str, seed: int, first: int, count: int, said: Any) -> None:
    """Opens files first … first + count, telling each number before and the outcome after."""
    kind = KINDS[name]
    bases = kind.bases()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        path = Path(folder) / f"m{kind.suffix}"
        for data in bases[:8]:  # what is loaded once, kernels and threads, is there before the limit
            path.write_bytes(data)
            opened(path)
        largest = max(map(len, bases))
        limit = _address_space() + SPARE_BYTES + 4 * largest
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for place in range(first, first + count):
            data, done = spoilt(kind, bases, seed, place)
            path.write_bytes(data)
            said.send((place, None, done))
            said.send((place, opened(path), done))
    said.send(None)


def campaign(name: str, count: int, seed: int, bar: bool = False) -> tuple[Counter[str], list[str]]:
    """(how many ended how, the violations)."""
    context = multiprocessing.get_context("spawn")
    outcomes: Counter[str] = Counter()
    violations: list[str] = []
    first = 0
    while first < count:
        receiving, sending = context.Pipe(duplex=False)
        files = min(count - first, KINDS[name].files_of_a_child)
        child = context.Process(target=_child, args=(name, seed, first, files, sending))
        child.start()
        sending.close()
        place, done = first, ""
        try:
            while (told := receiving.recv()) is not None:
                place, outcome, done = told
                if outcome is None:
                    continue
                outcomes[outcome.split(":")[0]] += 1
                if outcome.startswith("WRONG"):
                    violations.append(f"{name} {place} ({done}): {outcome}")
                if bar and place % BATCH == 0:
                    print(f"\r{name}: {place:,}/{count:,}, {len(violations)} violations", end="", file=sys.stderr)
            place = first + files - 1
        except EOFError:
            violations.append(f"{name} {place} ({done}): the process ended")
        child.join()
        first = place + 1
    return outcomes, violations


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.models", description=__doc__)
    parser.add_argument("--format", choices=KINDS, action="append", help="which (default: all)")
    parser.add_argument("--count", type=int, default=2000, help="files of each format (default 2000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", type=int, metavar="NUMBER", help="this file alone; it is left in the folder")
    args = parser.parse_args(argv)
    bad = 0
    for name in args.format or KINDS:
        if args.replay is not None:
            kind = KINDS[name]
            data, done = spoilt(kind, kind.bases(), args.seed, args.replay)
            path = Path(f"spoilt-{args.replay}{kind.suffix}")
            path.write_bytes(data)
            print(f"{path}: {done}: {opened(path)}")
            try:
                cx.load_model(path)
            except CyxError as error:
                print(error)
            continue
        outcomes, violations = campaign(name, args.count, args.seed, bar=sys.stderr.isatty())
        print(
            f"{name}: {sum(outcomes.values()):,} files, " + ", ".join(f"{n:,} {k}" for k, n in sorted(outcomes.items()))
        )
        for violation in violations[:50]:
            print(f"VIOLATION {violation}")
        bad += len(violations)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
