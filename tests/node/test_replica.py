"""A replica's process as the agent meets it: what it answers, what it waits for, how it ends, what it is not let do."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from cyxcore.model import save_model
from cyxnet.asking import WINDOW
from cyxnode import exchange as x
from cyxnode import replica as replica_process
from cyxnode import replicas
from cyxnode.pipe import Failed, Halted, Serve, Serving
from cyxnode.process import Launch, TrainingProcess
from cyxnode.replica import Desk
from cyxnode.replicas import Replica
from cyxnode.serving.app import Begun
from cyxnode.serving.asgi import Answer
from tests.core import llamas
from tests.node.serving.models import mlp, samples
from tests.node.serving.test_gguf import SIZES, TEMPLATE, vocabulary

ORDER = Serve(model_path="", name="small", threads=1, memory_bytes=2**28, file_bytes=1_000_000)
JSON = "application/json"


class Asking:
    """Replicas, and what they answered, in order."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.replicas: list[Replica] = []

    async def load(self, path: Path, order: Serve = ORDER) -> tuple[Replica, Serving | Failed]:
        replica = await Replica.start(Launch(work_folder=self.folder / "work"))
        self.replicas.append(replica)
        return replica, await replica.load(path, order, path.suffix.removeprefix("."))


async def whole(replica: Replica, route: str, body: bytes = b"", method: str = "") -> tuple[int, bytes]:
    """Status and body of an answer, taken as it comes."""
    found: asyncio.Queue[Any] = asyncio.Queue()
    number = replica.exchange.ask(method or ("POST" if body else "GET"), route, JSON, "", body, found.put_nowait)
    reply = await found.get()
    content, more = reply.body, reply.more
    while more:
        part = await found.get()
        replica.exchange.took(number, 1)
        content, more = content + part.body, part.more
    return reply.status, content


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    made = Asking(tmp_path)
    yield made
    for replica in made.replicas:
        await replica.close()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    held = mlp()
    path = tmp_path_factory.mktemp("model") / "small.cyxmodel"
    save_model(path, held.graph, held.weights, classes=held.classes)
    return path


@pytest.fixture(scope="module")
def language_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    more = vocabulary(**{"tokenizer.chat_template": TEMPLATE})
    return llamas.write(path, llamas.sizes(vocabulary=257, **SIZES), "Q8_0", **more)


async def test_a_replica_answers_with_the_bits_of_the_model(asking: Asking, model_file: Path) -> None:
    replica, said = await asking.load(model_file, replace(ORDER, name="my job (1)"))
    assert isinstance(said, Serving) and json.loads(said.card)["classes"] == ["zero", "one", "two"]
    assert json.loads(said.card)["name"] == "my-job-1"  # it failed on every node
    asked = json.dumps({"input": samples(5).tolist()}).encode()
    status, body = await whole(replica, "/v1/predict", asked)
    assert status == 200 and json.loads(body)["output"] == mlp().predict(samples(5)).tolist()


ROUTES = [
    ("/v1/model", b"", 200),
    ("/health", b"", 200),
    ("/metrics", b"", 200),
    ("/openapi.json", b"", 200),
    ("/v1/predict", b"", 405),
    ("/v1/predict", b"{", 400),
    ("/v1/predict", b'{"input": "much"}', 400),
    ("/v1/predict", b"[" * 200_000, 400),
    ("/v1/chat/completions", b"{}", 404),
    ("/../../etc/passwd", b"", 404),
    ("/v1/predict\x00", b"{}", 404),
    ("/\u2603", b"{}", 404),
]


async def test_every_route_answers_with_the_status_that_it_has_over_http(asking: Asking, model_file: Path) -> None:
    replica, _ = await asking.load(model_file)
    assert [(route, body, (await whole(replica, route, body))[0]) for route, body, _ in ROUTES] == ROUTES


async def test_what_it_has_taken_is_answered_before_it_halts_and_it_says_how_much_it_did(
    asking: Asking, model_file: Path
) -> None:
    replica, _ = await asking.load(model_file)
    body = json.dumps({"input": samples(8).tolist()}).encode()
    answers = [asyncio.ensure_future(whole(replica, "/v1/predict", body)) for _ in range(20)]
    await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
    replica.halt()
    end = asyncio.ensure_future(replica.until_end())
    assert {status for status, _ in await asyncio.gather(*answers)} == {200}
    assert await end == Halted()
    assert replica.figures and replica.figures.requests == 20 and replica.figures.rss_bytes > 2**20


async def test_a_stream_waits_for_who_does_not_take_it_and_ends_when_he_drops_it(
    asking: Asking, language_file: Path
) -> None:
    replica, said = await asking.load(language_file)
    assert isinstance(said, Serving), said
    asked = {"model": "small", "prompt": "hello", "max_tokens": 100, "stream": True, "logit_bias": {"256": -100}}
    found: asyncio.Queue[Any] = asyncio.Queue()
    body = json.dumps(asked).encode()
    number = replica.exchange.ask("POST", "/v1/completions", JSON, "", body, found.put_nowait)
    assert (await found.get()).content_type == "text/event-stream"
    for _ in range(WINDOW):
        assert (await found.get()).more
    assert (await whole(replica, "/health"))[0] == 200 and found.empty()  # it was asked later, and answered
    replica.exchange.took(number, 1)
    assert b"data: " in (await found.get()).body
    assert (await whole(replica, "/health"))[0] == 200 and found.empty()
    replica.exchange.drop(number)
    while json.loads((await whole(replica, "/health"))[1])["in_flight"] > 1:  # itself
        pass


async def test_a_large_answer_comes_in_parts_that_make_the_whole(asking: Asking, model_file: Path) -> None:
    replica, _ = await asking.load(model_file)
    rows = samples(20_000)
    status, body = await whole(replica, "/v1/predict", json.dumps({"input": rows.tolist()}).encode())
    assert status == 413  # more samples than may wait
    replica, _ = await asking.load(model_file, replace(ORDER, max_queue=20_000))
    status, body = await whole(replica, "/v1/predict", json.dumps({"input": rows.tolist()}).encode())
    assert status == 200 and len(body) > 2**20
    assert json.loads(body)["output"] == mlp().predict(rows).tolist()


@pytest.mark.parametrize(
    ("name", "content", "code", "deterministic"),
    [
        ("bad.cyxmodel", b"no model", "bad_file", True),
        ("bad.gguf", b"GGUF", "bad_file", True),
        ("bad.onnx", b"\x08", "bad_file", True),
    ],
)
async def test_a_file_that_is_no_model_is_the_jobs_fault(
    asking: Asking, tmp_path: Path, name: str, content: bytes, code: str, deterministic: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    _, said = await asking.load(tmp_path / name)
    assert isinstance(said, Failed) and (said.code, said.deterministic) == (code, deterministic), said


async def test_a_model_that_is_not_loaded_in_time_is_given_up_with_the_reason(
    asking: Asking, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "LOAD_S", 0.0)
    monkeypatch.setattr(replicas, "LOAD_BYTES_PER_S", 10**15)
    replica, end = await asking.load(model_file)
    assert isinstance(end, Failed) and end.code == "load_timeout" and not end.deterministic
    assert "not loaded within 0 s" in end.message
    await replica.process.wait_end()


async def test_a_model_that_does_not_fit_may_fit_elsewhere(asking: Asking, model_file: Path) -> None:
    _, said = await asking.load(model_file, replace(ORDER, memory_bytes=1000))
    assert isinstance(said, Failed) and (said.code, said.deterministic) == ("out_of_memory", False), said


async def test_plans_get_the_memory_that_the_deployment_names_and_no_more(asking: Asking, model_file: Path) -> None:
    _, said = await asking.load(model_file, replace(ORDER, plans_bytes=1))
    assert isinstance(said, Failed) and "bytes" in said.message, said


async def test_who_waits_for_a_process_that_is_killed_is_told_so(asking: Asking, language_file: Path) -> None:
    replica, _ = await asking.load(language_file)
    found: asyncio.Queue[Any] = asyncio.Queue()
    asked = {"model": "small", "prompt": "hello", "max_tokens": 100, "stream": True, "logit_bias": {"256": -100}}
    replica.exchange.ask("POST", "/v1/completions", JSON, "", json.dumps(asked).encode(), found.put_nowait)
    await found.get()
    psutil.Process(replica.process.pid).kill()
    end = await replica.until_end()
    assert isinstance(end, Failed) and end.code == "process_died" and "the replica was killed by SIGKILL" in end.message
    while (said := await found.get()) is not None:
        assert said.more
    assert replica.exchange.in_flight == 0


async def pair(take: Callable[[Any], None]) -> tuple[Any, x.Exchange, list[str]]:
    """(the socket of a replica that is none, the agent's end, why it was given up)."""
    lost: list[str] = []
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return theirs, await x.Exchange.open(ours, lost.append), lost


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x02\x91\x09",
        b"\x00\x00\x00\x45\xdc\x00\x21" + b"\x91\x06" * 33,  # more beats than go in a list
        b"\x00\x00\x00\x1b" + x.msgspec.msgpack.encode([x.Reply(1, 200, JSON, 0, b"", True)]) + b"\x00\x00\x00\x00",
    ],
)
async def test_a_process_that_sends_what_is_no_frame_is_given_up(said: bytes) -> None:
    theirs, exchange, lost = await pair(print)
    told: asyncio.Queue[Any] = asyncio.Queue()
    exchange.ask("GET", "/health", JSON, "", b"", told.put_nowait)
    await asyncio.get_running_loop().sock_sendall(theirs, said)
    while (await told.get()) is not None:
        pass
    assert len(lost) == 1 and exchange.in_flight == 0
    theirs.close()


async def say(theirs: socket.socket, frames: list[Any]) -> None:
    encoded = x.msgspec.msgpack.encode(frames)
    await asyncio.get_running_loop().sock_sendall(theirs, len(encoded).to_bytes(4, "big") + encoded)


async def test_a_process_that_sends_more_than_was_asked_for_is_given_up() -> None:
    theirs, exchange, lost = await pair(print)
    told: asyncio.Queue[Any] = asyncio.Queue()
    number = exchange.ask("GET", "/health", JSON, "", b"", told.put_nowait)
    await say(theirs, [x.Reply(number, 200, JSON, 0, b"", True)])
    for count in (WINDOW, 1):
        await say(theirs, [x.Part(number, b"x", True)] * count)
    parts = 0
    while (said := await told.get()) is not None:
        parts += isinstance(said, x.Part)
    assert parts == WINDOW and "more parts" in lost[0]
    theirs.close()


async def test_frames_of_one_turn_go_in_lists_that_arrive_in_order() -> None:
    ours, theirs = socket.socketpair()
    heard: asyncio.Queue[Any] = asyncio.Queue()
    lost: list[str] = []
    one = await x.Wire.open(ours, x.Reply | x.Part, print, lost.append)
    other = await x.Wire.open(theirs, x.Ask | x.Took | x.Drop, heard.put_nowait, lost.append)
    bodies = [b"", b"x" * x.LIST_BYTES, b"y", b"z" * (5 * x.PART_BYTES), b"", b"w"]
    for number, body in enumerate(bodies):
        one.send(x.Ask(number, "POST", "/", JSON, "", body), len(body))
        one.send(x.Drop(number))
    for number, body in enumerate(bodies):
        assert await heard.get() == x.Ask(number, "POST", "/", JSON, "", body)
        assert await heard.get() == x.Drop(number)
    one.close()
    other.close()


async def test_a_list_of_frames_is_taken_in_a_turn_of_its_own() -> None:
    theirs, exchange, _ = await pair(print)
    turns: list[str] = []

    def told(reply: Any) -> None:
        turns.append("reply")
        asyncio.get_running_loop().call_soon(turns.append, "turn")

    numbers = [exchange.ask("GET", "/health", JSON, "", b"", told) for _ in range(3)]
    replies = [x.msgspec.msgpack.encode([x.Reply(number, 200, JSON, 0, b"", False)]) for number in numbers]
    theirs.send(b"".join(len(reply).to_bytes(4, "big") + reply for reply in replies))
    while exchange.in_flight or turns[-1:] != ["turn"]:
        await asyncio.sleep(0)
    assert turns == ["reply", "turn"] * 3
    exchange.close()
    theirs.close()


async def test_lists_that_come_faster_than_they_are_taken_do_not_pile_up() -> None:
    lost: list[str] = []
    wire = x.Wire(x.Reply, print, lost.append)
    some = (b"\x00\x00\x00\x01\x90" * (x.MOST_WAITING_BYTES // 2))[: 2 * x.MOST_WAITING_BYTES + 1]
    for _ in range(3):
        wire.data_received(some)
        assert len(wire._came) - wire._taken <= x.MOST_WAITING_BYTES
    await asyncio.sleep(0)
    assert lost  # a list began in the middle of another
    wire.close()


async def test_all_answers_that_came_before_the_end_of_a_replica_are_told() -> None:
    theirs, exchange, lost = await pair(print)
    told: list[Any] = []
    numbers = [exchange.ask("GET", "/health", JSON, "", b"", told.append) for _ in range(2)]
    exchange.ask("GET", "/health", JSON, "", b"", told.append)
    wire = await x.Wire.open(theirs, x.Ask, lambda frame: None, lambda why: None)
    for number in numbers:
        wire.send(x.Reply(number, 200, JSON, 0, b"x" * x.LIST_BYTES, False), x.LIST_BYTES)
    wire.close()
    while not lost:
        await asyncio.sleep(0)
    assert [reply and reply.status for reply in told] == [200, 200, None]


async def test_large_questions_of_one_caller_do_not_stand_before_those_of_another() -> None:
    theirs, exchange, lost = await pair(print)
    told: list[Any] = []

    def ask(size: int, caller: str) -> int:
        return exchange.ask("POST", "/v1/predict", JSON, "", bytes(size), told.append, caller)

    numbers = [ask(x.AHEAD_BYTES // 2, "a") for _ in range(6)]
    other, small = ask(x.LARGE_BYTES + 1, "b"), ask(1, "a")
    heard: asyncio.Queue[Any] = asyncio.Queue()
    wire = await x.Wire.open(theirs, x.Ask | x.Took | x.Drop, heard.put_nowait, lost.append)
    assert [(await heard.get()).number for _ in range(4)] == [*numbers[:2], other, small]
    exchange.drop(numbers[2])  # which the replica never has
    assert await heard.get() == x.Drop(numbers[2])
    wire.send(x.Reply(numbers[1], 200, JSON, 0, b"", False))
    assert (await heard.get()).number == numbers[3]
    exchange.drop(numbers[0])
    assert [(await heard.get()).number for _ in range(2)] == [numbers[0], numbers[4]]
    for number in (*numbers[3:5], other, small):
        wire.send(x.Reply(number, 200, JSON, 0, b"", False))
    assert (await heard.get()).number == numbers[5] and exchange.in_flight == 1
    assert set(exchange._ahead) == {"a"} and exchange._ahead["a"] == x.AHEAD_BYTES // 2 and not exchange._held
    ask(x.AHEAD_BYTES, "a")
    wire.close()  # what is held is told so too
    while exchange.in_flight:
        await asyncio.sleep(0)
    assert told[-2:] == [None, None] and not (exchange._ahead or exchange._held or exchange._large)


async def test_only_many_large_questions_are_too_much_for_a_replica_that_does_not_read() -> None:
    theirs, exchange, _ = await pair(print)
    exchange.ask("POST", "/v1/predict", JSON, "", bytes(2**20), lambda said: None)
    assert not exchange.is_full
    for caller in range(x.MOST_UNREAD_BYTES // 2**20):
        exchange.ask("POST", "/v1/predict", JSON, "", bytes(2**20), lambda said: None, f"{caller}")
    assert exchange.is_full
    theirs.close()
    exchange.close()


async def test_a_replica_ends_when_its_last_answers_have_gone_out_or_nobody_takes_them() -> None:
    theirs, exchange, lost = await pair(print)
    told: list[Any] = []
    numbers = [exchange.ask("GET", "/health", JSON, "", b"", told.append) for _ in range(40)]
    transport: Any = exchange._wire._transport
    transport.pause_reading()
    wire = await x.Wire.open(theirs, x.Ask, lambda frame: None, lost.append)
    for number in numbers:
        wire.send(x.Reply(number, 200, JSON, 0, bytes(x.PART_BYTES), False), x.PART_BYTES)
    ending = asyncio.ensure_future(wire.until_sent(60.0))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not ending.done()
    await wire.until_sent(0.0)
    transport.resume_reading()
    await ending
    while exchange.in_flight:
        await asyncio.sleep(0)
    assert [reply.status for reply in told] == [200] * 40


async def test_who_asks_a_replica_that_is_gone_is_told_so() -> None:
    theirs, exchange, lost = await pair(print)
    theirs.close()
    while not lost:
        await asyncio.sleep(0)
    told: asyncio.Queue[Any] = asyncio.Queue()
    exchange.ask("GET", "/health", JSON, "", b"", told.put_nowait)
    assert await told.get() is None and exchange.in_flight == 0


async def test_a_replica_is_let_send_no_more_than_it_is_given_up_for() -> None:
    theirs, exchange, lost = await pair(print)
    told: asyncio.Queue[Any] = asyncio.Queue()
    number = exchange.ask("GET", "/health", JSON, "", b"", told.put_nowait)
    sent = [x.Reply(number, 200, JSON, 0, b"", True), *[x.Part(number, b"x", True)] * 7]
    await say(theirs, sent)
    for _ in sent:
        await told.get()
    exchange.took(number, len(sent))  # who asked counts the Reply too, which no window does
    exchange.took(number, 0)
    heard: asyncio.Queue[Any] = asyncio.Queue()
    wire = await x.Wire.open(theirs, x.Ask | x.Took | x.Drop, heard.put_nowait, lost.append)
    assert isinstance(await heard.get(), x.Ask)
    assert await heard.get() == x.Took(number, 7) and lost == []
    wire.close()
    exchange.close()


class Begins:
    """An application that begins to answer whatever is asked, and a wire that keeps what is sent."""

    def __init__(self) -> None:
        self.begun: list[tuple[Begun, Callable[[Answer | None], None]]] = []
        self.sent: list[object] = []

    def begin(self, path, content_type, accept, authorization, body, told):  # type: ignore[no-untyped-def]
        assert (content_type, accept, authorization) == (b"application/json", b"a/b", None)
        self.begun.append((Begun(None, path, told), told))  # type: ignore[arg-type]
        return self.begun[-1][0]

    def send(self, frame: object, body_bytes: int = 0) -> None:
        self.sent.append(frame)


async def test_what_is_answered_at_once_is_dropped_and_waited_for_like_everything_else() -> None:
    made = Begins()
    desk = Desk(made)
    desk.wire = made  # type: ignore[assignment]
    for number in (1, 2):
        desk.take(x.Ask(number, "POST", "/v1/predict", JSON, "a/b", b"x"))
    desk.take(x.Drop(1))
    assert [begun.gone for begun, _ in made.begun] == [True, False]
    idle = asyncio.ensure_future(desk.idle())
    made.begun[0][1](None)
    assert not made.sent
    made.begun[1][1](Answer(b"no", 429, headers=[(b"retry-after-ms", b"7")]))
    await idle
    assert made.sent == [x.Reply(2, 429, JSON, 7, b"no", False)]


async def test_it_says_that_it_is_at_it_also_while_it_answers_without_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    # silence for two seconds is taken for death: a question to a slow model was asked again and again, of everybody
    monkeypatch.setattr(replica_process, "ALIVE_EVERY_S", 0)
    made = Begins()
    desk = Desk(made)
    desk.wire = made  # type: ignore[assignment]
    beating = asyncio.ensure_future(desk.beat())
    desk.take(x.Ask(1, "POST", "/v1/predict", JSON, "a/b", b"x"))
    for _ in range(100):
        await asyncio.sleep(0)
    made.begun[0][1](None)
    said = len(made.sent)
    for _ in range(100):
        await asyncio.sleep(0)
    beating.cancel()
    assert made.sent[:1] == [x.Beat()] and len(made.sent) == said


async def test_a_replica_that_nobody_can_talk_to_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[TrainingProcess] = []
    real = TrainingProcess.start

    async def start(launch: Launch) -> TrainingProcess:
        started.append(await real(launch))
        return started[0]

    async def fails(*_: object) -> None:
        raise OSError("no more descriptors")

    monkeypatch.setattr(TrainingProcess, "start", start)
    monkeypatch.setattr("cyxnode.exchange.Exchange.open", fails)
    with pytest.raises(OSError, match="descriptors"):
        await Replica.start(Launch(work_folder=tmp_path / "work"))
    assert not started[0].alive and not started[0].folder.exists()
