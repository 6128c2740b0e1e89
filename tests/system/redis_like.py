"""Servers that speak Redis and cannot be relied on: one forgets every write, one answers with garbage."""

import asyncio
import contextlib
import itertools
import json

GARBAGE = (
    b"",
    b"\x00\xff\xfe not text",
    b"null",
    b"[1, 2, 3]",
    b'{"attempt": 1, "epoch": "x", "epochs": null, "batch": [], "batches": "y", "step": -1}',
    b'{"attempt": 1, "epochs": 9e999}',
    json.dumps({"job_id": "another", "status": "completed", "progress": 7}).encode(),
    b"[" * 5000,
    b"9" * 5000,
)


class RedisLike:
    """`async with RedisLike("empty" | "garbage") as url:` a server on a free port of this machine."""

    def __init__(self, kind: str):
        self._answers = itertools.cycle(GARBAGE) if kind == "garbage" else itertools.repeat(None)
        self._connections: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "RedisLike":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._connections:
            writer.close()
        with contextlib.suppress(Exception):
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                count = int((await reader.readuntil(b"\r\n"))[1:])
                words = []
                for _ in range(count):
                    size = int((await reader.readuntil(b"\r\n"))[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                writer.write(self._answer(words[0].upper()))
                await writer.drain()
        self._connections.discard(writer)
        writer.close()

    def _answer(self, command: bytes) -> bytes:
        """In the third version of the protocol, which today's clients open with HELLO."""
        if command == b"HELLO":
            return b"%1\r\n$5\r\nproto\r\n:3\r\n"
        if command == b"GET":
            value = next(self._answers)
            return b"_\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)
        return b":1\r\n" if command == b"DEL" else b"+OK\r\n"
