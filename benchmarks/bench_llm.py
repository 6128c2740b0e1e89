"""Tokens a second of a small model of the llama family, beside llama.cpp on the same file.

    python -m benchmarks.bench_llm [--quick] [--peer PYTHON] [--one-thread] [--save benchmarks/results/llm]

Prefill is a prompt of 256 tokens taken at once; decode is 64 tokens, one after another, behind it. The weights are
random and the same for both: speed does not depend on them. Each figure is the best of interleaved rounds, since a busy
machine can only take time away; on one thread it is processor time, on more the time on the wall. PYTHON is an
interpreter that has llama-cpp-python, built for this machine; without one our own figures stand alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import add_save, beside, environment, save
from benchmarks.tables import about

PROMPT, ANSWER = 256, 64
LAYERS, FEATURES, HIDDEN, HEADS, KV_HEADS, VOCABULARY = 16, 1024, 2816, 16, 4, 32000  # 212 million parameters


def write_model(path: Path, kind: str) -> None:
    """Random weights; the rows of a matrix repeat after 256, which no kernel notices."""
    from cyxcore.gguf import StoredTensor, quantize, save
    from cyxcore.llm.architecture import Sizes, tensor_shapes

    sizes = Sizes(
        architecture="llama",
        layers=LAYERS,
        features=FEATURES,
        hidden=HIDDEN,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_size=FEATURES // HEADS,
        rotated=FEATURES // HEADS,
        rope_base=10000.0,
        vocabulary=VOCABULARY,
        context=4096,
        eps=1e-5,
    )
    metadata = {
        "general.architecture": "llama",
        "general.name": "random",
        "llama.block_count": LAYERS,
        "llama.embedding_length": FEATURES,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.dimension_count": sizes.rotated,
        "llama.context_length": sizes.context,
        "llama.attention.layer_norm_rms_epsilon": sizes.eps,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "no_vocab",
    }
    dice = np.random.default_rng(0)
    drawn: dict[int, Any] = {}
    tensors = {}
    for name, shape in tensor_shapes(sizes).items():
        if len(shape) == 1:
            tensors[name] = StoredTensor("F32", shape, quantize(np.ones(shape, np.float32), "F32"))
            continue
        if shape[1] not in drawn:
            rows = dice.standard_normal((256, shape[1])).astype(np.float32) / np.float32(shape[1] ** 0.5)
            drawn[shape[1]] = quantize(rows, kind)
        whole = np.tile(drawn[shape[1]], -(-shape[0] // 256))
        tensors[name] = StoredTensor(kind, shape, whole[: len(drawn[shape[1]]) // 256 * shape[0]])
    save(path, metadata, tensors)


def own(path: str, threads: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """What takes the prompt, and what decodes behind it."""
    from cyxcore.kernels import cpu
    from cyxcore.llm.llama import KVPages, Llama, Stretch

    cpu.set_num_threads(threads)
    model = Llama(path)
    pages = np.arange(-(-(PROMPT + ANSWER) // 16), dtype=np.int32)
    cache = KVPages(model.sizes, len(pages))
    tokens = [1 + i % 1000 for i in range(PROMPT)]

    def prefill() -> None:
        model.logits(model.forward([Stretch(tokens, 0, pages)], cache))

    def decode() -> None:
        token = 1
        for at in range(PROMPT, PROMPT + ANSWER):
            token = int(model.logits(model.forward([Stretch([token], at, pages)], cache)).argmax())

    return prefill, decode


def llama_cpp(path: str, threads: int) -> tuple[Callable[[], None], Callable[[], None]]:
    import llama_cpp as peer

    peer.llama_backend_init()
    model = peer.llama_model_load_from_file(path.encode(), peer.llama_model_default_params())
    options = peer.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = 512, PROMPT, PROMPT
    options.n_threads = options.n_threads_batch = threads
    context = peer.llama_init_from_model(model, options)
    tokens = (peer.llama_token * PROMPT)(*[1 + i % 1000 for i in range(PROMPT)])

    def run(array: Any, count: int) -> int:
        if peer.llama_decode(context, peer.llama_batch_get_one(array, count)):
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(peer.llama_get_logits_ith(context, -1), (VOCABULARY,))
        return int(logits.argmax())

    def prefill() -> None:
        peer.llama_memory_clear(peer.llama_get_memory(context), False)
        run(tokens, PROMPT)

    def decode() -> None:
        token = 1
        for _ in range(ANSWER):
            token = run((peer.llama_token * 1)(token), 1)

    return prefill, decode


SIDES = {"cyx": own, "llama.cpp": llama_cpp}


def measure(side: str, path: str, threads: int, rounds: int) -> dict[str, float]:
    """Best tokens a second of each part."""
    prefill, decode = SIDES[side](path, threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    best = {"prefill": np.inf, "decode": np.inf}
    for _ in range(rounds + 1):  # the first one warms up
        for name, part in (("prefill", prefill), ("decode", decode)):
            start = clock()
            part()
            best[name] = min(best[name], clock() - start)
    return {"prefill": PROMPT / best["prefill"], "decode": ANSWER / best["decode"]}


def child(python: str, side: str, path: Path, threads: int, rounds: int) -> dict[str, float]:
    arguments = ["--measure", side, "--model", str(path), "--threads", str(threads), "--rounds", str(rounds)]
    command = [python, str(Path(__file__)), *arguments] if side != "cyx" else [python, "-m", __spec__.name, *arguments]
    got = subprocess.run(command, capture_output=True, text=True, check=False)
    if got.returncode:
        raise SystemExit(f"{side} failed: {got.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(got.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, one type of weights")
    parser.add_argument("--peer", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--one-thread", action="store_true", help="on a busy machine: processor time only")
    add_save(parser, "NAME.json and NAME.md")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.model, options.threads, options.rounds)))
        return
    kinds, turns = (["Q8_0"], 1) if options.quick else (["Q8_0", "Q4_K"], 3)
    pythons = {"cyx": sys.executable} | ({"llama.cpp": options.peer} if options.peer else {})
    lines = (
        ["weights", "threads", "part", *[f"{side}, tokens/s" for side in pythons], "ratio"],
        ["---"] * (4 + len(pythons)),
    )
    said = ["| " + " | ".join(line) + " |" for line in lines]
    print("\n".join(said), flush=True)
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            path = Path(folder) / f"{kind}.gguf"
            write_model(path, kind)
            for threads in (1,) if options.one_thread else (1, 2):
                best: dict[tuple[str, str], float] = {}
                for _ in range(turns):
                    for side, python in pythons.items():
                        for part, speed in child(python, side, path, threads, 1 if options.quick else 3).items():
                            best[side, part] = max(best.get((side, part), 0.0), speed)
                for part in ("prefill", "decode"):
                    row = [best[side, part] for side in pythons]
                    ratio = f"{row[0] / row[1]:.2f}" if len(row) > 1 else ""
                    cells = [kind, str(threads), part, *[f"{speed:.1f}" for speed in row], ratio]
                    said.append("| " + " | ".join(cells) + " |")
                    figures.append(
                        {"weights": kind, "threads": threads, "part": part, **dict(zip(pythons, row, strict=True))}
                    )
                    print(said[-1], flush=True)
    said += [
        "",
        f"Load {os.getloadavg()[0]:.1f} at the end; one thread: processor time; two: wall.",
    ]
    print("\n".join(said[-2:]))
    if options.save:
        text = ["# A small language model", "", about(environment()), "", *said, ""]
        beside(options.save, "md").write_text("\n".join(text))
    save(options.save, {"tokens_per_s": figures})


if __name__ == "__main__":
    main()
