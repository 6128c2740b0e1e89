"""Questions from a real broker, and a replica made of its words alone."""

import asyncio
import math

import pytest
from msgspec.structs import replace

from cyxnet import asking, subjects
from cyxnet.bus import Bus
from cyxnet.ratelimit import Places
from cyxnode import exchange as x
from cyxnode.answering import KEPT_HEADERS, Answering, Mine
from cyxnode.exchange import Reply

CALLER = "c-1"
MINE = Mine(deployment="digits-0123456789ab", owner=CALLER, public=False, replica="node-1/job-1/1")


class Silent:
    """An exchange with a replica that answers nothing."""

    is_full = False
    beat_s = -math.inf

    def __init__(self):
        self.asked, self.dropped, self.more, self.paths = asyncio.Queue(), [], asyncio.Queue(), []

    def ask(self, method, path, content_type, accept, body, tell, caller=""):
        self.paths.append(path)
        self.asked.put_nowait(tell)
        return 1

    def took(self, number, parts):
        self.more.put_nowait(parts)

    def drop(self, number):
        self.dropped.append(number)


class Asker:
    """Sends questions, and keeps what it hears."""

    def __init__(self, bus):
        self.bus, self.heard = bus, asyncio.Queue()

    def ask(self, token, headers=None, body=b"1", caller=CALLER):
        self.bus.send(subjects.infer(MINE.deployment, caller), body, headers or {}, subjects.reply(caller, token))

    async def status(self):
        message = await self.heard.get()
        return message.headers.get("Cyx-Status"), message.data


@pytest.fixture
async def asker(broker):
    made = Asker(await Bus.connect(broker.url("edge"), name="client"))
    await made.bus.attend(subjects.reply(CALLER, "*"), made.heard.put_nowait)
    yield made
    await made.bus.close()


@pytest.fixture
async def answering(broker):
    bus = await Bus.connect(broker.url("edge"), name="replica")
    made = Answering(bus, Silent(), MINE)
    await made.open()
    yield made
    await made.close()
    await bus.close()


async def test_who_waits_for_a_replica_that_ends_is_told_at_once(answering, asker):
    asker.ask("a")
    await answering._replica.asked.get()
    await answering.close()
    await answering._bus.close()
    status, said = await asker.status()
    assert status == "503" and b"broken_off" in said
    assert answering.in_flight == 0 and answering._replica.dropped == [1]


async def test_a_question_that_comes_while_it_ends_is_refused_at_once(answering, asker):
    take_no_more, held = answering._take_no_more, asyncio.Event()

    async def later():
        await held.wait()
        await take_no_more()

    answering._take_no_more = later
    closing = asyncio.ensure_future(answering.close())
    await asyncio.sleep(0)
    asker.ask("a")
    assert (await asker.status())[0] == "503" and answering._replica.asked.empty()
    held.set()
    await closing


async def test_it_is_asked_nothing_once_it_has_stopped(answering, asker):
    await answering.stop(30.0)
    asker.ask("a")
    assert (await asker.heard.get()).status == "503"  # of the broker: nobody listens


async def test_who_wants_to_is_told_that_the_replica_is_at_it_as_long_as_that_says_so(answering, asker):
    asker.ask("a")
    asker.ask("b", asking.ALIVE)
    for _ in range(2):
        await answering._replica.asked.get()
    answering._replica.beat_s = math.inf  # it is at it, however long this machine pauses
    for _ in range(3):
        said = await asker.heard.get()
        assert subjects.last_token(said.subject) == "b" and asking.says_alive(said.data, said.headers)
    answering._replica.beat_s = -math.inf  # its process stands still
    await answering._bus.round_trip()  # what was said before is heard
    await asker.bus.round_trip()
    while not asker.heard.empty():
        asker.heard.get_nowait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3 * asking.ALIVE_EVERY_S):
            await asker.heard.get()


async def test_central_and_nobody_else_is_told_whether_the_models_process_answers(answering, asker):
    heard = asyncio.Queue()
    await asker.bus.attend(subjects.reply(subjects.CENTRAL, "*"), heard.put_nowait)
    for reply in (subjects.reply(CALLER, "a"), subjects.reply(subjects.CENTRAL, "b")):
        asker.bus.send(subjects.ping("node-1/job-1/1"), b"", {}, reply)
    tell = await answering._replica.asked.get()
    tell(Reply(1, 200, "application/json", 0, b"{}", False))
    said = await heard.get()
    assert (subjects.last_token(said.subject), said.headers["Cyx-Status"]) == ("b", "200")
    assert answering._replica.paths == ["/readyz"] and answering.in_flight == 0


async def test_how_many_parts_were_taken_is_said_to_the_replica_that_answers_and_to_no_other(broker, answering, asker):
    other = Answering(await Bus.connect(broker.url("edge"), name="other"), Silent(), MINE)
    heard = []
    other._on_taken = heard.append
    await other.open()
    await other.stop(30.0)  # the question is not for it
    asker.ask("a")
    tell = await answering._replica.asked.get()
    for body in (b"0", b"1", b"2"):
        tell(x.Part(1, body, True) if body != b"0" else x.Reply(1, 200, "text/event-stream", 0, body, True))
    where = [(await asker.heard.get()).reply for _ in range(3)]
    assert len(set(where)) == 1 and where[0] == subjects.taken(MINE.deployment, CALLER, answering._token)
    for said in (b"a 2", b"b 2", b"a", b"a -1", b"a 1e3", b"a 2 3", b"\xff 2", b"", b"a 1", b"a 999"):
        asker.bus.send(where[0], said, {})
    taken = [await answering._replica.more.get() for _ in range(3)]
    assert taken == [2, -1, 1] and not answering._replica.dropped  # never more than there were
    asker.bus.send(subjects.taken(MINE.deployment, CALLER, subjects.EVERY), asking.progress("a", None), {})
    await asker.bus.round_trip()
    await other._bus.round_trip()
    await answering._bus.round_trip()
    assert answering._replica.dropped == [1] and answering.in_flight == 0
    assert [message.data for message in heard] == [b"a stop"]
    await other.close()
    await other._bus.close()


async def test_questions_that_no_honest_asker_sends_are_refused(answering, asker):
    # three questions with two megabytes in Content-Type made a list that was longer than a replica takes: it ended
    for name in ("Content-Type", "Accept", "Other"):
        asker.ask("a", {name: "x" * 1_800_000})
        status, said = await asker.status()
        assert status == "400" and b"bytes of headers" in said
    asker.ask("a", {"Accept": "x" * 300})
    assert (await asker.status())[0] == "400"
    asker.ask("a", body=bytes(asking.LARGEST_QUESTION_BYTES + 1))
    assert (await asker.status())[0] == "413" and answering._replica.asked.empty() and answering.in_flight == 0


async def test_no_more_headers_are_remembered_than_a_few(answering, asker):
    for number in range(2 * KEPT_HEADERS):
        asker.ask(f"{number}", {"Cyx-Timeout-Ms": f"{10_000 + number}"})
    for _ in range(2 * KEPT_HEADERS):
        await answering._replica.asked.get()
    assert 0 < len(answering._known) <= KEPT_HEADERS
    assert [known.timeout_ms for known in answering._known.values()][-1] == 10_000 + 2 * KEPT_HEADERS - 1


async def test_large_questions_of_one_caller_leave_room_for_those_of_others(broker, asker):
    bus = await Bus.connect(broker.url("edge"), name="replica")
    answering = Answering(bus, Silent(), replace(MINE, public=True))
    answering._room = Places(1000)
    await answering.open()
    for number in range(6):
        asker.ask(f"{number}", body=bytes(200))
    assert (await asker.status())[0] == "429"  # the fourth: three leave less room than he has
    asker.ask("other", body=bytes(200), caller="c-2")
    tells = [await answering._replica.asked.get() for _ in range(4)]
    for tell in tells:
        tell(Reply(1, 200, asking.JSON, 0, b"", False))
    assert answering.in_flight == answering._places.total == answering._room.total == 0
    await answering.close()
    await bus.close()


async def test_a_replica_fills_no_memory_with_the_types_of_its_answers(answering, asker):
    for number in range(2):
        asker.ask(f"{number}")
        tell = await answering._replica.asked.get()
        tell(Reply(1, 200 + number, "a" * (100 + 900 * number), 0, b"", False))
    assert [status for _, status in [await asker.status() for _ in range(2)]] == [b"", b""]
    assert len(answering._blocks) == 1
