"""Who asks a deployment over NATS: so many at a time over one connection, each again when it is answered.

    python -m benchmarks.serving.network FOLDER DEPLOYMENT BODY --askers 64 --seconds 5

FOLDER is that of a network that runs. Prints one JSON object, as benchmarks/serving/load.py does.
"""

import argparse
import asyncio
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

from cyxnet import asking, subjects
from cyxnet.client import AsyncClient
from cyxnet.connection import Message, block_of


class Load:
    """Tokens are the numbers of the askers: each waits for one answer at a time, of one part."""

    def __init__(self, client: AsyncClient, deployment: str, body: bytes, askers: int):
        self._bus, self._caller, self._body = client.bus, client.caller, body
        self._where = subjects.infer(deployment, client.caller)
        self._headers = block_of(asking.question_headers(asking.Question()))
        self._replies = [subjects.reply(client.caller, str(number)) for number in range(askers)]
        self._begun_s = [0.0] * askers
        self.statuses: Counter[str] = Counter()
        self.latencies_s: list[float] = []
        self.counting, self._over = False, False

    async def begin(self) -> None:
        await self._bus.attend(subjects.reply(self._caller, "*"), self._take)
        for number in range(len(self._replies)):
            self._ask(number)

    def end(self) -> None:
        self._over = True

    def _ask(self, number: int) -> None:
        self._begun_s[number] = time.perf_counter()
        self._bus.send(self._where, self._body, self._headers, self._replies[number])

    def _take(self, message: Message) -> None:
        number = int(subjects.last_token(message.subject))
        if self.counting:
            status = "200" if b"\r\nCyx-Status: 200\r\n" in message.block else message.headers["Cyx-Status"]
            self.statuses[status] += 1
            if status == "200":
                self.latencies_s.append(time.perf_counter() - self._begun_s[number])
        if not self._over:
            self._ask(number)


async def run(folder: Path, deployment: str, body: bytes, askers: int, seconds: float) -> dict[str, Any]:
    async with await AsyncClient.connect(folder) as client:
        load = Load(client, deployment, body, askers)
        await load.begin()
        await asyncio.sleep(min(1.0, seconds / 3))  # warm
        load.counting = True
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        load.counting = False
        took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
        load.end()
    found = sorted(load.latencies_s)

    def at(share: float) -> float:
        return round(1000 * found[min(len(found) - 1, math.ceil(share * len(found)) - 1)], 3) if found else 0.0

    return {
        "good_per_s": round(load.statuses["200"] / took_s, 1),
        "per_s": round(load.statuses.total() / took_s, 1),
        "statuses": dict(load.statuses),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "client_cores": round(cpu_s / took_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("deployment")
    parser.add_argument("body", type=Path)
    parser.add_argument("--askers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    print(json.dumps(uvloop.run(run(args.folder, args.deployment, args.body.read_bytes(), args.askers, args.seconds))))


if __name__ == "__main__":
    main()
