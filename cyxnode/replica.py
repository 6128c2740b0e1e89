"""The process of a replica: `python -m cyxnode.replica AGENT_PID SOCKET`, started by the agent.

It takes its network away, loads one model file, and answers what comes over the socket (cyxnode/exchange.py) with the
application of `cyx serve`: one contract, however a request came. The agent hears from it over its pipes.
"""

import argparse
import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import psutil

from cyxcore.errors import CyxError
from cyxnet.asking import ALIVE_EVERY_S, PART_BYTES, PATIENCE_S, WINDOW
from cyxnode import sandbox
from cyxnode.exchange import Ask, Beat, Drop, Frame, Part, Reply, Took, Wire
from cyxnode.pipe import Channel, Figures, Halted, Ready, Serve, Serving
from cyxnode.train import failure, kernel_isa, out_of_memory, ran_out_of_memory, take_pipes

log = logging.getLogger(__name__)
FIGURES_S = 1.0
GOODBYE_S = 3.0  # for the agent to take the last answers; it gives the process longer to end
ADVICE = "deploy it with more --memory"
LARGEST_CACHE_BYTES = 512 * 2**20  # of the keys and values of a language model, where there is memory for more


def main() -> int:
    channel = take_pipes()
    begun_s = time.perf_counter()
    try:
        isolated = sandbox.isolate(parent_pid=int(sys.argv[1]))
    except ProcessLookupError:
        return 0
    held = socket.socket(fileno=int(sys.argv[2]))
    try:
        # What takes long is done before there is a model; what is loaded later has to fit into the memory of one.
        import encodings.cp437  # noqa: F401  (of names in an archive)

        import numpy.random  # noqa: F401

        from cyxnode.serving import app, loading  # noqa: F401

        channel.send(Ready(isolated=isolated, warm_ms=(time.perf_counter() - begun_s) * 1000, isa=kernel_isa("cpu")))
        order = channel.receive()
        return serve(channel, held, order) if isinstance(order, Serve) else 0
    except CyxError as error:
        channel.send(failure(error, ADVICE))
        return 1
    except BrokenPipeError:  # the agent is gone
        return 0


def serve(channel: Channel, held: socket.socket, order: Serve) -> int:
    """Load the model and answer until told to halt. Returns the exit status; errors of the world become Failed."""
    from cyxnode.serving.loop import runner, settle

    begun_s = time.perf_counter()
    try:
        sandbox.limit(order.memory_bytes, order.file_bytes)
        served = load(order)
        settle()
        with runner() as running:
            running.run(answer(channel, held, order, served, begun_s))
        channel.send(Halted())
    except CyxError as error:
        channel.send(failure(error, ADVICE, {order.model_path: "the model"}))
    except BrokenPipeError:
        pass
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        channel.send(out_of_memory(f"{order.memory_bytes} bytes" if order.memory_bytes else "all of it", ADVICE))
    return 0


def load(order: Serve) -> Any:
    """What answers about the model. Raises what cyxnode.serving.loading does."""
    from cyxnode.serving import loading

    path = Path(order.model_path)
    memory_bytes = order.memory_bytes or None
    if memory_bytes and path.suffix == ".gguf":  # its weights are mapped; the rest of it is for what a step needs
        memory_bytes = min(memory_bytes // 2, order.plans_bytes or LARGEST_CACHE_BYTES)
    elif order.plans_bytes:
        memory_bytes = min(memory_bytes or order.plans_bytes, order.plans_bytes)
    return loading.load(
        argparse.Namespace(
            file=path,
            name=loading.name_of(order.name),
            threads=order.threads,
            max_batch=order.max_batch,
            max_wait_ms=order.max_wait_ms,
            max_queue=order.max_queue,
            memory=memory_bytes,
            context=order.context_tokens,
        )
    )


async def answer(channel: Channel, held: socket.socket, order: Serve, served: Any, begun_s: float) -> None:
    """Until the agent says Halt or is gone. What is being answered then is answered, for order.drain_s at most."""
    from cyxnode.serving.app import Front
    from cyxnode.serving.asgi import Limits
    from cyxnode.serving.gate import Gate

    loop, halted = asyncio.get_running_loop(), asyncio.Event()
    front = Front(served, Gate([]), Limits(send_s=PATIENCE_S))  # who may ask is the agent's to know
    desk = Desk(front)
    wire = await Wire.open(held, Ask | Took | Drop, desk.take, lambda why: halted.set())
    desk.wire = wire

    def told() -> None:
        channel.receive()  # there is only one thing that it can be told now, and one that it can mean
        loop.remove_reader(channel.read_fd)
        halted.set()

    await served.start()
    telling = [loop.create_task(tell_figures(channel, front, halted)), loop.create_task(desk.beat())]
    try:
        loop.add_reader(channel.read_fd, told)
        card = msgspec.json.encode(served.card())
        channel.send(Serving(card=card, load_ms=(time.perf_counter() - begun_s) * 1000))
        await halted.wait()
        await front.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(order.drain_s):
                await desk.idle()
        channel.send(figures_of(front, 0.0))
    finally:
        for task in telling:
            task.cancel()
        await desk.close()
        await served.close()
        await wire.until_sent(GOODBYE_S)


async def tell_figures(channel: Channel, front: Any, halted: asyncio.Event) -> None:
    """While anything changes. The agent's death ends the process."""
    told, before = None, (0.0, 0)
    try:
        while True:
            await asyncio.sleep(FIGURES_S)
            sums = totals(front)
            count = sums[1] - before[1]
            figures = figures_of(front, 1000 * (sums[0] - before[0]) / count if count else 0.0)
            if figures != told:
                channel.send(figures)
            told, before = figures, sums
    except BrokenPipeError:
        halted.set()


def totals(front: Any) -> tuple[float, int]:
    """Seconds of all answers, and how many they are."""
    seen = list(front.figures.seconds.values())
    return sum(each[0] for each in seen), int(sum(each[1] for each in seen))


def figures_of(front: Any, mean_ms: float) -> Figures:
    figures = front.figures
    return Figures(
        requests=figures.requests,
        errors=figures.errors,
        refused=sum(count for (_, status), count in figures.answers.items() if status == 429),
        in_flight=figures.in_flight,
        mean_ms=round(mean_ms, 3),
        rss_bytes=psutil.Process().memory_info().rss,
    )


class Desk:
    """Gives each request that comes to the application: at once where it can, else as an ASGI server does."""

    wire: Wire

    def __init__(self, front: Any):
        self._front = front
        self._begun: dict[int, Any] = {}  # what is answered without a task
        self._requests: dict[int, Requested] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._none_begun = asyncio.Event()
        self._none_begun.set()

    def take(self, frame: Ask | Took | Drop) -> None:
        if isinstance(frame, Ask):
            if frame.method != "POST" or not self._begin(frame):
                request = Requested(self.wire, frame.number, frame.body)
                self._answer(request, self._front(scope_of(frame), request.receive, request.send), frame.path)
        elif known := self._requests.get(frame.number):  # else its answer was on its way
            known.told(frame)
        elif isinstance(frame, Drop) and (begun := self._begun.get(frame.number)):
            begun.gone = True

    async def beat(self) -> None:
        """Say now and then that it is at it, as long as something is being answered."""
        while True:
            await asyncio.sleep(ALIVE_EVERY_S)
            if self._begun or self._requests:
                self.wire.send(Beat())

    async def idle(self) -> None:
        """Until nothing is being answered."""
        while self._begun or self._tasks:
            await self._none_begun.wait()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def close(self) -> None:
        for begun in self._begun.values():
            begun.gone = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, ask: Ask) -> bool:
        number, path = ask.number, ask.path
        begun = self._front.begin(
            path,
            _in_bytes(ask.content_type),
            _in_bytes(ask.accept),
            None,
            ask.body,
            lambda answer: self._told(number, path, answer),
        )
        if begun is None:
            return False
        self._begun[number] = begun
        self._none_begun.clear()
        return True

    def _told(self, number: int, path: str, answer: Any) -> None:
        del self._begun[number]
        if not self._begun:
            self._none_begun.set()
        if answer is None:  # nobody waits for it
            return
        size = len(answer.body)
        if size <= PART_BYTES:
            reply = reply_of(number, answer.status, answer.content_type, answer.headers, answer.body, more=False)
            self.wire.send(reply, size)
        else:
            request = Requested(self.wire, number, b"")
            self._answer(request, request.send_whole(answer), path)

    def _answer(self, request: "Requested", work: Coroutine[Any, Any, None], path: str) -> None:
        self._requests[request.number] = request
        task = asyncio.get_running_loop().create_task(self._until_answered(request, work, path))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_answered(self, request: "Requested", work: Coroutine[Any, Any, None], path: str) -> None:
        try:
            await work
        except Exception:
            log.exception("%s failed", path[:200])
        finally:
            del self._requests[request.number]
            request.break_off()


def reply_of(
    number: int, status: int, content_type: bytes, headers: list[tuple[bytes, bytes]], body: bytes, more: bool
) -> Reply:
    wait_ms = int(dict(headers).get(b"retry-after-ms", 0)) if headers else 0
    return Reply(number, status, content_type.decode("latin-1"), wait_ms, body, more)


def _in_bytes(header: str) -> bytes:
    return header.encode("latin-1", "replace")


def scope_of(ask: Ask) -> dict[str, Any]:
    headers = [(b"content-type", _in_bytes(ask.content_type))]
    if ask.accept:
        headers.append((b"accept", _in_bytes(ask.accept)))
    return {
        "type": "http",
        "method": ask.method,
        "path": ask.path,
        "query_string": b"",
        "headers": headers,
        "client": None,
    }


class Requested:
    """A request and the way of its answer, as an application of ASGI wants them. The whole body is there."""

    __slots__ = ("_body", "_head", "_left", "_more", "_wire", "disconnected", "number", "over")
    more_body = False

    def __init__(self, wire: Wire, number: int, body: bytes):
        self.number = number
        self.disconnected = False  # nobody waits for the answer
        self.over = False  # it is all sent
        self._wire, self._body = wire, body
        self._head: Any = None  # of the answer, until it is sent
        self._left = WINDOW  # parts that may be sent
        self._more: asyncio.Event | None = None  # or that nobody waits: somebody waits for one of these

    def told(self, frame: Took | Drop) -> None:
        if isinstance(frame, Took):
            self._left += frame.parts
        else:
            self.disconnected = True
        if self._more:
            self._more.set()

    async def receive(self) -> dict[str, Any]:
        body, self._body = self._body, b""
        return {"type": "http.request", "body": body, "more_body": False}

    async def send_whole(self, answer: Any) -> None:
        """An Answer that is all there; given up when it is not taken within PATIENCE_S."""
        from cyxnode.serving.batcher import ClientGone

        headers = [(b"content-type", answer.content_type), *answer.headers]
        with contextlib.suppress(ClientGone, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self.send({"status": answer.status, "headers": headers, "type": "http.response.start"})
                await self.send({"body": answer.body, "type": "http.response.body"})

    async def send(self, message: Any) -> None:
        """Waits while as many parts are on their way as may be. Raises ClientGone."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        body, more = message["body"], message.get("more_body", False)
        if len(body) <= PART_BYTES:
            return await self._put(body, more)
        for at in range(0, len(body), PART_BYTES):
            end = at + PART_BYTES
            await self._put(body[at:end], more or end < len(body))

    async def _put(self, body: bytes, more: bool) -> None:
        from cyxnode.serving.batcher import ClientGone

        if self._head is None:
            while not (self._left or self.disconnected):
                self._more = asyncio.Event()
                await self._more.wait()
        if self.disconnected:
            raise ClientGone
        self._wire.send(self._frame(body, more), len(body))
        self.over = not more

    def _frame(self, body: bytes, more: bool) -> Frame:
        if self._head is None:
            self._left -= 1
            return Part(self.number, body, more)
        head, self._head = self._head, None
        headers = head["headers"]
        return reply_of(self.number, head["status"], dict(headers)[b"content-type"], headers, body, more)

    def break_off(self) -> None:
        """The application has ended: an answer that is not whole never will be."""
        if not (self.over or self.disconnected):
            self._wire.send(Part(self.number, b"", False, broken=True))


if __name__ == "__main__":
    sys.exit(main())
