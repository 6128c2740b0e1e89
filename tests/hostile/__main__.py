"""Sends malformed messages into a real network, as clients and nodes that it knows: python -m tests.hostile

Every message is made from the seed and its number. What should not have been is printed with the command that sends
the message again, and the exit status is 1.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from pathlib import Path

from cyxnet.lifetime import run
from tests.hostile.campaign import Campaign, Found, Options, play
from tests.hostile.scene import Scene

BAR_CHARS = 40


def main(argv: list[str] | None = None) -> int:
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--messages", type=int, default=defaults.messages, help="how many (default 20000)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of all dice (default 1)")
    parser.add_argument("--callers", type=int, default=defaults.callers, help="hostile clients (default 8)")
    parser.add_argument("--nodes", type=int, default=defaults.nodes, help="hostile nodes (default 4)")
    parser.add_argument("--replay", type=int, metavar="NUMBER", help="this message alone, and what was answered")
    parser.add_argument("--keep", type=Path, help="folder of the network, kept afterwards")
    parser.add_argument("--json", action="store_true", help="one JSON line at the end instead of a table")
    arguments = parser.parse_args(argv)
    options = Options(
        messages=arguments.messages, seed=arguments.seed, callers=arguments.callers, nodes=arguments.nodes
    )
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="cyx-hostile-") as temporary:
        folder = arguments.keep or Path(temporary) / "net"
        if arguments.replay is not None:
            run(replay(folder, options, arguments.replay))
            return 0
        found, _ = run(play(folder, options, bar))
    print(file=sys.stderr)
    for violation in found.violations:
        print(f"VIOLATION: {violation}", file=sys.stderr)
    if found.violations:
        print(f"again: python -m tests.hostile --seed {options.seed} --replay NUMBER", file=sys.stderr)
    print(json.dumps(as_json(found)) if arguments.json else table(found))
    return 1 if found.violations else 0


async def replay(folder: Path, options: Options, number: int) -> None:
    async with Scene(folder, options.seed, options.callers, options.nodes) as scene:
        shot, answer = await Campaign(scene, options).alone(number)
        print(f"{shot.base.kind.verb} by {shot.base.speaker}: {'; '.join(shot.spoilt)}")
        print(f"to {shot.subject}, reply {shot.reply or 'its own inbox'}, must be refused: {shot.is_certain()}")
        print(f"headers {shot.block[:2000]!r}\npayload {shot.payload[:4000]!r}")
        print(f"answer  {answer.block!r} {answer.payload[:4000]!r}" if answer else "no answer")
        await asyncio.to_thread(print, (scene.network.folder / "logs" / "central.log").read_text()[-4000:])


def bar(done: int, total: int, found: Found) -> None:
    if not sys.stderr.isatty():
        return
    filled = done * BAR_CHARS // total
    print(
        f"\r[{'#' * filled}{'.' * (BAR_CHARS - filled)}] {done:,}/{total:,}  honest p99 {p99(found.honest_ms):.0f} ms, "
        f"{len(found.violations)} violations",
        end="",
        file=sys.stderr,
        flush=True,
    )


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0


def as_json(found: Found) -> dict[str, object]:
    return {
        "messages": found.sent,
        "violations": found.violations,
        "layers": dict(found.layers.most_common()),
        "codes": dict(found.codes.most_common()),
        "accepted": dict(found.accepted.most_common()),
        "honest_p99_ms": round(p99(found.honest_ms), 1),
        "growth_bytes": found.growth_bytes,
        "seconds": round(found.seconds, 1),
        "central_cpu_s": round(found.central_cpu_s, 1),
    }


def table(found: Found) -> str:
    lines = [f"{found.sent:,} messages in {found.seconds:.0f} s, {found.central_cpu_s:.0f} s of central's processor"]
    lines += [f"  {count:>9,}  {layer}" for layer, count in found.layers.most_common()]
    lines += ["refused with:  " + ", ".join(f"{code} {count:,}" for code, count in found.codes.most_common())]
    lines += ["right by accident:  " + (", ".join(f"{v} {n:,}" for v, n in found.accepted.most_common()) or "none")]
    for stream, (first, *middle, last) in found.grown.items():
        refused = middle[-1] if middle else last
        lines.append(f"{stream}: {first} before, {refused} after all that must be refused, {last} in the end")
    rss = " → ".join(f"{size / 2**20:.0f}" for size in found.central_bytes)
    lines += [
        f"{found.explained_events} events, each explained by an accepted message",
        f"an honest job then: {found.honest_job}",
        f"honest questions: {len(found.honest_ms):,}, p99 {p99(found.honest_ms):.1f} ms, "
        f"longest {max(found.honest_ms, default=0):.1f} ms; the broker hung up {found.hang_ups} times",
        f"central's memory: {rss} MiB (start, a quarter in, end)",
        f"{len(found.violations)} violations",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
