"""Who asks: many connections to one server, each asking again when it is answered, or at a rate that does not care.

    python -m benchmarks.serving.load URL BODY --connections 64 --seconds 5
    python -m benchmarks.serving.load URL BODY --connections 192 --seconds 5 --rate 9000

Prints one JSON object. With --rate requests are due at even times; one that is due while all connections wait for an
answer is late, and its latency counts from when it was due, as for somebody who waits.
"""

import argparse
import asyncio
import json
import math
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

TICK_S = 0.001  # the least that uvloop sleeps: of less it makes nothing, and would use up a core


class Connection(asyncio.Protocol):
    """Sends the same bytes again and again. Understands answers with a Content-Length only."""

    def __init__(self, load: "Load"):
        self._load, self._rest, self._begun_s = load, b"", 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._load.free(self)

    def ask(self, due_s: float) -> None:
        self._begun_s = due_s
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        head = data.find(b"\r\n\r\n")
        if head < 0:
            self._rest = data
            return
        at = data.find(b"ontent-length: ")
        if at < 0 or at > head:
            at = data.find(b"ontent-Length: ")
        length = int(data[at + 15 : data.find(b"\r\n", at)])
        if len(data) < head + 4 + length:
            self._rest = data
            return
        self._rest = b""
        self._load.answered(int(data[9:12]), time.perf_counter() - self._begun_s)
        self._load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost += 1


class Load:
    def __init__(self, request: bytes, rate: float):
        self.request, self.rate = request, rate
        self.lost = self.asked = 0
        self.statuses: Counter[int] = Counter()
        self.latencies_s: list[float] = []  # of answers with status 200
        self.counting = False
        self._idle: deque[Connection] = deque()
        self._due: deque[float] = deque()

    def answered(self, status: int, took_s: float) -> None:
        if self.counting:
            self.statuses[status] += 1
            if status == 200:
                self.latencies_s.append(took_s)

    def free(self, connection: Connection) -> None:
        if not self.rate:
            self._ask(connection, time.perf_counter())
        elif self._due:
            self._ask(connection, self._due.popleft())
        else:
            self._idle.append(connection)

    def _ask(self, connection: Connection, due_s: float) -> None:
        self.asked += self.counting
        connection.ask(due_s)

    async def be_due(self) -> None:
        next_s = time.perf_counter()
        while True:
            now_s = time.perf_counter()
            while next_s <= now_s:
                if self._idle:
                    self._ask(self._idle.popleft(), next_s)
                else:
                    self._due.append(next_s)
                next_s += 1 / self.rate
            await asyncio.sleep(TICK_S)


async def run(
    url: str, body: bytes, content_type: str, connections: int, seconds: float, rate: float
) -> dict[str, Any]:
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\n"
    load = Load(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, rate)
    loop = asyncio.get_running_loop()
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    made = [await loop.create_connection(lambda: Connection(load), host, port) for _ in range(connections)]
    ticking = asyncio.create_task(load.be_due()) if rate else None
    await asyncio.sleep(min(1.0, seconds / 3))  # warm
    load.counting = True
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    load.counting = False
    took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    if ticking:
        ticking.cancel()
    for transport, _ in made:
        transport.abort()
    found = sorted(load.latencies_s)

    def at(share: float) -> float:
        return round(1000 * found[min(len(found) - 1, math.ceil(share * len(found)) - 1)], 3) if found else 0.0

    return {
        "good_per_s": round(load.statuses[200] / took_s, 1),
        "per_s": round(load.statuses.total() / took_s, 1),
        "offered_per_s": round(load.asked / took_s, 1),
        "statuses": {str(status): count for status, count in load.statuses.items()},
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "client_cores": round(cpu_s / took_s, 2),
        "lost": load.lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("body", type=Path)
    parser.add_argument("--content-type", default="application/json")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: as fast as they are answered")
    args = parser.parse_args()
    wanted = args.url, args.body.read_bytes(), args.content_type, args.connections, args.seconds, args.rate
    print(json.dumps(uvloop.run(run(*wanted))))


if __name__ == "__main__":
    main()
