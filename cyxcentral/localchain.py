"""The embedded chain as a process: Solana's JSON-RPC over HTTP on the loopback.

    python -m cyxcentral.localchain --dir DIR --port 0

Prints one JSON line when it answers: {"ready": true, "url": "http://127.0.0.1:PORT", "ready_ms": N}.
Ends on SIGTERM and SIGINT and, with --guard-stdin, when its standard input closes (its parent died).
"""

import argparse
import asyncio
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cyxcentral.localrpc import METHODS, Params, call, decode_wire
from cyxcentral.localvm import Chain, ChainError, ChainOptions, RpcError, invalid, parse_transaction, unstored
from cyxnet.lifetime import until_stopped

BODY_LIMIT_BYTES = 50 * 1024  # the cap of a real node
HEAD_LIMIT_BYTES = 16 * 1024
BATCH_LIMIT = 100
IDLE_TIMEOUT_S = 75.0


class Fault(Struct, frozen=True, kw_only=True):
    """What goes wrong with one request. Only tests make these.

    drop: a sent transaction is accepted but never reaches a leader. lose_answer: the request is carried
    out, then the connection closes. http_status: refused with this status before anything is done.
    """

    drop: bool = False
    delay_ms: int = 0
    lose_answer: bool = False
    http_status: int = 200


FaultPlan = Callable[[str, int], Fault]  # (method, how many calls of it came before)


def no_fault(method: str, earlier_calls: int) -> Fault:
    return Fault()


class Server:
    """HTTP/1.1 around one chain: POST / with JSON, GET /health. Loopback only.

    faults: what goes wrong with each request, for tests.
    """

    def __init__(self, chain: Chain, faults: FaultPlan = no_fault) -> None:
        self.chain = chain
        self.chain.gathers = True
        self._storing: asyncio.Future[None] | None = None  # for all who wait for it
        self.failed = asyncio.Event()  # the disk took something not, and the chain stands
        self.faults = faults
        self.calls: dict[str, int] = {}
        self.connections: set[asyncio.Task[None]] = set()
        self.url = ""

    async def start(self, port: int = 0) -> None:
        """Listen. port 0 takes a free one. Raises ChainError when the port is taken."""
        try:
            self.listener = await asyncio.start_server(self._connection, "127.0.0.1", port, limit=HEAD_LIMIT_BYTES)
        except OSError as error:
            raise ChainError(
                f"chain: expected port {port} of 127.0.0.1 to be free, got: {error.strerror}; "
                "give another --port, or 0 for any"
            ) from None
        self.url = f"http://127.0.0.1:{self.listener.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.listener.close()
        for task in self.connections:
            task.cancel()
        await asyncio.gather(*self.connections, return_exceptions=True)
        # not wait_closed(): from Python 3.12.1 on it waits for peers that do not read what was written to them

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            pass  # the peer left, stalled, or sent a head without end: there is no one to answer
        except asyncio.CancelledError:
            pass  # the server stops; asyncio would log the cancellation of a stream callback
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. Returns False when the connection is to close."""
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            verb, target = (lines[0].split(" ") + ["", ""])[:2]
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines[1:])
            }
            status = refusal(verb, target, headers)
            if status != 200 or verb == "GET":
                await respond(writer, status, b"ok" if status == 200 else b"", close=True)
                return False
            body = await reader.readexactly(int(headers["content-length"]))
        answer = await self.handle(body)
        if answer is None:
            return False
        keep = headers.get("connection", "").lower() != "close" and answer[0] == 200
        await respond(writer, *answer, close=not keep)
        return keep

    async def handle(self, body: bytes) -> tuple[int, bytes] | None:
        """HTTP status and body for a JSON-RPC body, or None when a fault eats the answer."""
        try:
            request = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return 200, msgspec.json.encode(failure(None, -32700, "Parse error"))
        if not isinstance(request, list):
            return await self._one(request)
        if not 0 < len(request) <= BATCH_LIMIT:
            text = f"Invalid request: expected 1 to {BATCH_LIMIT} calls in a batch, got {len(request)}"
            return 200, msgspec.json.encode(failure(None, -32600, text))
        answers = [await self._one(each) for each in request]
        return 200, b"[" + b",".join(answer[1] for answer in answers if answer) + b"]"

    async def _one(self, request: Any) -> tuple[int, bytes] | None:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return 200, msgspec.json.encode(failure(None, -32600, "Invalid request"))
        name, params, identifier = request["method"], request.get("params") or [], request.get("id")
        earlier_calls = self.calls.get(name, 0)
        fault = self.faults(name, earlier_calls)
        if name in METHODS:  # made-up names must not fill the memory
            self.calls[name] = earlier_calls + 1
        if fault.http_status != 200:
            return fault.http_status, b""
        if fault.delay_ms:
            await asyncio.sleep(fault.delay_ms / 1_000)
        try:
            if not isinstance(params, list):
                raise invalid("expected a list of positional parameters")
            if fault.drop:
                config = Params(params).config(1)
                raw = decode_wire(Params(params).get(0, str, "a transaction"), config)
                result: Any = str(parse_transaction(raw).signatures[0])
            else:
                result = call(self.chain, name, params)
            answer = msgspec.json.encode({"jsonrpc": "2.0", "result": result, "id": identifier})
        except RpcError as error:
            answer = msgspec.json.encode({"jsonrpc": "2.0", "error": error.body, "id": identifier})
        except Exception as error:  # a mistake of ours must not take the chain from everyone else
            print(f"chain: {name}: {type(error).__name__}: {error}", file=sys.stderr)
            answer = msgspec.json.encode(failure(identifier, -32603, "Internal error"))
        if self.chain.unstored:  # also by somebody else: what is said here must not be forgotten again
            try:
                await self._stored()
            except sqlite3.Error as error:
                answer = msgspec.json.encode(failure(identifier, -32603, f"Internal error: storage failed ({error})"))
        if self.chain.storage_failure is not None:
            self.failed.set()
        return None if fault.lose_answer else (200, answer)

    async def _stored(self) -> None:
        """Wait until all that was written is on disk: once for all who wrote in this turn of the loop."""
        if self._storing is None:
            loop = asyncio.get_running_loop()
            self._storing = loop.create_future()
            loop.call_soon(self._store)
        await asyncio.shield(self._storing)

    def _store(self) -> None:
        storing, self._storing = self._storing, None
        assert storing is not None
        try:
            self.chain.store()
        except sqlite3.Error as error:
            storing.set_exception(error)
        else:
            storing.set_result(None)


def failure(identifier: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": identifier}


REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 411: "Length Required",
           413: "Content Too Large", 415: "Unsupported Media Type", 429: "Too Many Requests",
           503: "Service Unavailable"}  # fmt: skip


def refusal(verb: str, target: str, headers: dict[str, str]) -> int:
    """The HTTP status this head deserves; 200 lets it pass."""
    if verb == "GET":
        return 200 if target == "/health" else 404
    if verb != "POST":
        return 405
    # A web page can post text to the loopback but not JSON, unless we invited its origin.
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return 415
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or "transfer-encoding" in headers:
        return 411
    return 200 if len(length) < 10 and int(length) <= BODY_LIMIT_BYTES else 413


async def respond(writer: asyncio.StreamWriter, status: int, body: bytes, *, close: bool) -> None:
    head = (
        f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: {'close' if close else 'keep-alive'}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()


def options_of(arguments: argparse.Namespace) -> ChainOptions:
    values = {name: getattr(arguments, name) for name in ChainOptions.__struct_fields__}
    for name, value in values.items():
        if value < 1:
            raise ChainError(f"chain: expected --{name.replace('_', '-')} of at least 1, got {value}")
    return ChainOptions(**values)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m cyxcentral.localchain", description=__doc__)
    result.add_argument("--dir", type=Path, required=True, help="the chain's own folder")
    result.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    result.add_argument("--guard-stdin", action="store_true", help="end when standard input closes")
    for name, default in msgspec.structs.asdict(ChainOptions()).items():
        result.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    return result


async def serve(arguments: argparse.Namespace) -> None:
    """Run until a signal or the end of standard input. Raises ChainError when it cannot start, or not be stored.

    Whoever starts it again has it go on from what is on the disk: the machine in memory is ahead of that.
    """
    # Before this line the process only imported, which is computing: its CPU time is its duration.
    started_s, imported_s = time.perf_counter(), time.process_time()
    ended = asyncio.create_task(until_stopped(arguments.guard_stdin))
    await asyncio.sleep(0)  # its signal handlers are in place before anyone is told that we are ready
    chain = Chain(arguments.dir / "chain.db", options_of(arguments))
    server = Server(chain)
    failed = asyncio.create_task(server.failed.wait())
    try:
        await server.start(arguments.port)
        ready_ms = round((time.perf_counter() - started_s + imported_s) * 1_000)
        print(msgspec.json.encode({"ready": True, "url": server.url, "ready_ms": ready_ms}).decode(), flush=True)
        await asyncio.wait({ended, failed}, return_when=asyncio.FIRST_COMPLETED)
        await server.stop()
    finally:
        ended.cancel()
        failed.cancel()
        chain.close()
    if chain.storage_failure is not None:
        raise unstored(arguments.dir, chain.storage_failure)


def main(argv: list[str] | None = None) -> int:
    """The process. Returns its exit status: 0 after a clean end, 1 with one line on stderr."""
    try:
        asyncio.run(serve(parser().parse_args(argv)))
    except ChainError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
