"""Questions to deployed models on a real broker, with replicas made of their words alone."""

import asyncio

import pytest

from cyxnet import asking, questions, subjects
from cyxnet.asking import Part, Question
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.connection import Message
from cyxnet.questions import MOST_WAITING, BrokenOff, NoReplica, Questions, _Try
from tests.net.brokers import restarted

DEPLOYMENT = "digits-0123456789ab"
CALLER = "c-1"


class Replica:
    """Answers each question with the next of `answers`: parts, or None for silence."""

    name = "r-1"

    def __init__(self, bus, answers):
        self.bus, self.answers = bus, list(answers)
        self.asked, self.told = [], []

    @classmethod
    async def start(cls, broker, answers, **options):
        self = cls(await Bus.connect(broker.url("edge"), name="replica"), answers)
        await self.bus.attend(subjects.taken(DEPLOYMENT, "*", "*"), self.hear)
        await self.serve()
        return self

    async def serve(self):
        self.subscription = await self.bus.attend(subjects.infer(DEPLOYMENT, "*"), self.take, subjects.REPLICAS)

    def hear(self, message):
        token, parts = asking.progress_of(message.data)
        self.told.append((subjects.last_token(message.subject), parts))

    def take(self, message):
        self.asked.append(asking.question_of(message.data, message.headers))
        for part in self.answers.pop(0) or ():
            taken = "" if part.end else subjects.taken(DEPLOYMENT, CALLER, self.name)
            self.bus.send(message.reply, part.body, asking.part_headers(part), taken)


@pytest.fixture
async def replicas(broker):
    """replicas(answers…) starts one that gives these."""
    running = []

    async def start(*answers):
        running.append(await Replica.start(broker, answers))
        return running[-1]

    yield start
    for each in running:
        await each.bus.close()


@pytest.fixture
async def asker(broker):
    bus = await Bus.connect(broker.url("edge"), name="client")
    yield Questions(bus, CALLER)
    await bus.close()


def whole(body, **fields):
    return [Part(body=body, **fields)]


async def test_a_question_gets_the_answer_that_the_replica_made(replicas, asker):
    replica = await replicas(whole(b'{"a":1}', status=200))
    answer = await asker.answer(DEPLOYMENT, Question(body=b"[1]", route="/v1/embeddings"))
    assert (answer.body, answer.status) == (b'{"a":1}', 200)
    assert (replica.asked[0].body, replica.asked[0].route) == (b"[1]", "/v1/embeddings")


async def test_a_large_answer_comes_whole(replicas, asker):
    body = bytes(range(256)) * 4096
    await replicas(list(asking.parts_of(Part(body=body, content_type="application/x-npy"))))
    answer = await asker.answer(DEPLOYMENT, Question())
    assert (answer.body, answer.content_type) == (body, "application/x-npy")


async def test_a_stream_comes_part_by_part_and_says_how_many_were_taken(replicas, asker):
    parts = [Part(body=b"%d" % n, number=n, end=n == 39) for n in range(40)]
    replica = await replicas(parts)
    assert [part.body async for part in asker.ask(DEPLOYMENT, Question())] == [part.body for part in parts]
    await asker._bus.round_trip()
    await replica.bus.round_trip()
    assert replica.told == [("r-1", 8), ("r-1", 16), ("r-1", 24), ("r-1", 32)]


async def test_whoever_stops_early_tells_the_replica(replicas, asker):
    replica = await replicas([Part(body=b"0", end=False), Part(body=b"1", number=1, end=False)])
    parts = asker.ask(DEPLOYMENT, Question())
    assert (await anext(parts)).body == b"0"
    await parts.aclose()
    await asker._bus.round_trip()
    await replica.bus.round_trip()
    assert replica.told == [("r-1", None)] and not asker._open


async def test_a_refusal_is_an_answer(replicas, asker):
    await replicas(whole(b"no", status=404))
    assert (await asker.answer(DEPLOYMENT, Question())).status == 404


@pytest.mark.parametrize("status", [429, 503])
async def test_who_cannot_answer_now_is_passed_over_for_the_next(replicas, asker, status):
    replica = await replicas(whole(b"no", status=status, headers={"Retry-After-Ms": "1"}), whole(b"yes"))
    assert (await asker.answer(DEPLOYMENT, Question())).body == b"yes"
    assert len(replica.asked) == 2


async def test_a_refusal_that_outlasts_the_patience_is_the_answer(replicas, asker):
    replica = await replicas(whole(b"no", status=429, headers={"Retry-After": "61"}))
    answer = await asker.answer(DEPLOYMENT, Question(), patience_s=60)
    assert (answer.status, answer.body, len(replica.asked)) == (429, b"no", 1)


async def test_a_replica_that_says_nothing_is_given_up_for_the_next(replicas, asker, monkeypatch):
    monkeypatch.setattr(asker, "_silence_s", lambda deployment, longest_s, silences: 60.0 if silences else 0.05)
    replica = await replicas(None, whole(b"yes"))
    assert (await asker.answer(DEPLOYMENT, Question())).body == b"yes"
    await asker._bus.round_trip()
    await replica.bus.round_trip()
    assert replica.told == [(subjects.EVERY, None)]


async def test_a_deployment_that_nobody_serves_is_waited_for(broker, replicas, asker):
    replica = await replicas(whole(b"yes"))
    await replica.subscription.unsubscribe()
    await replica.bus.round_trip()
    answer = asyncio.create_task(asker.answer(DEPLOYMENT, Question()))
    while not asker._open:
        await asker._bus.round_trip()
    await replica.serve()
    assert (await answer).body == b"yes"


async def test_a_deployment_that_nobody_serves_is_one_clear_error(asker):
    with pytest.raises(NoReplica, match=r"no replica of digits-0123456789ab .*nobody serves it.*cyx deployments"):
        await asker.answer(DEPLOYMENT, Question(), patience_s=0.1)


@pytest.mark.parametrize("whole", [True, False])
async def test_a_question_whose_link_is_gone_is_asked_when_it_is_back(mortal, whole):
    # it was an error at once, however short a restart of the broker was
    running, _ = mortal
    bus = await Bus.connect(running[0].url("edge"), name="client")
    asker = Questions(bus, CALLER)
    with pytest.raises(NoReplica, match="nobody serves it"):
        await asker.answer(DEPLOYMENT, Question(), patience_s=0.01)
    running[-1].process.kill()
    async with asyncio.timeout(60):
        while bus.connected:
            await asyncio.sleep(0)
    with pytest.raises(NoReplica, match=r"within 0.01 s \(the link to the broker is lost\)"):
        await asker.answer(DEPLOYMENT, Question(), patience_s=0.01)

    async def bodies():
        if whole:
            return [(await asker.answer(DEPLOYMENT, Question())).body]
        return [part.body async for part in asker.ask(DEPLOYMENT, Question(accept=asking.EVENTS))]

    asked = asyncio.create_task(bodies())
    running.append(await asyncio.to_thread(restarted, running[-1]))
    replica = await Replica.start(running[-1], [[Part(body=b"1")]])
    assert await asked == [b"1"]
    await replica.bus.close()
    await bus.close()


async def test_a_question_of_who_has_closed_his_connection_is_an_error_at_once(broker):
    bus = await Bus.connect(broker.url("edge"), name="client")
    asker = Questions(bus, CALLER)
    await asker._listen()
    await bus.close()
    with pytest.raises(BusError, match="nats: connection closed"):
        await asker.answer(DEPLOYMENT, Question())


async def test_a_whole_answer_that_breaks_off_is_asked_for_again(replicas, asker):
    broken = [Part(body=b"ha", end=False), Part(body=b"", status=503, number=1)]
    await replicas(broken, whole(b"whole"))
    assert (await asker.answer(DEPLOYMENT, Question())).body == b"whole"


async def test_a_stream_that_breaks_off_is_an_error_and_nothing_is_said_twice(replicas, asker):
    await replicas([Part(body=b"ha", end=False), Part(body=b"", status=503, number=1)])
    seen = []
    with pytest.raises(BrokenOff):
        async for part in asker.ask(DEPLOYMENT, Question()):
            seen.append(part.body)
    assert seen == [b"ha"]


async def test_a_part_that_is_missing_breaks_the_answer_off(replicas, asker):
    await replicas([Part(body=b"0", end=False), Part(body=b"2", number=2)], whole(b"again"))
    assert (await asker.answer(DEPLOYMENT, Question())).body == b"again"


async def test_many_questions_at_once_get_each_their_own_answer(broker, asker):
    bus = await Bus.connect(broker.url("edge"), name="echo")

    def echo(message):
        bus.send(message.reply, message.data, asking.part_headers(Part()))

    await bus.attend(subjects.infer(DEPLOYMENT, "*"), echo, subjects.REPLICAS)
    bodies = [b"%d" % n for n in range(200)]
    answers = await asyncio.gather(*(asker.answer(DEPLOYMENT, Question(body=body)) for body in bodies))
    assert [answer.body for answer in answers] == bodies
    await bus.close()


async def test_a_question_that_is_too_large_is_refused_here(asker):
    with pytest.raises(ApiError, match="at most 1048576 bytes"):
        await asker.answer(DEPLOYMENT, Question(body=bytes(2**20 + 1)))


async def test_garbage_for_an_answer_is_no_answer(broker, replicas, asker):
    replica = await replicas(None, whole(b"yes"))
    take = replica.take

    def garbage(message):
        if not replica.asked:
            replica.bus.send(message.reply, b"x", {"Cyx-Status": "many"})
        take(message)

    await replica.subscription.unsubscribe()
    replica.take = garbage
    await replica.serve()
    assert (await asker.answer(DEPLOYMENT, Question())).body == b"yes"


async def test_a_broker_that_speaks_in_the_middle_of_an_answer_is_no_broker(replicas, asker):
    """A replica may send what looks like the broker's word that nobody listens."""
    replica = await replicas(None)
    begun = asking.part_headers(Part(end=False))

    def take(message):
        replica.bus.send(message.reply, b"ha", begun)
        replica.bus.send(message.reply, b"", b"NATS/1.0 503\r\n\r\n")

    await replica.subscription.unsubscribe()
    replica.take = take
    await replica.serve()
    with pytest.raises(BrokenOff):
        async for part in asker.ask(DEPLOYMENT, Question()):
            assert part.body == b"ha"


async def test_only_silence_makes_the_wait_for_the_next_replica_longer(asker, monkeypatch):
    """What comes of each try is made up: that a silence is one is another test's matter."""
    waits, copies = [], []
    found = [Part(body=b"no", status=429)] * 2 + [None] * 11 + whole(b"yes")

    async def seen(one, within_s, silence_s):
        waits.append(silence_s)
        copies.append(one._copies)
        first = found.pop(0)
        one.ended = first is not None
        return first

    monkeypatch.setattr(_Try, "next", seen)
    assert (await asker.answer(DEPLOYMENT, Question(), silence_s=0.05)).body == b"yes"
    assert waits == [0.05] * 10 + [0.1, 0.2, 0.4, 0.8]
    assert copies == [1, 1, 1, 2] + [questions.MOST_COPIES] * 10  # each time more are asked at once


class Slow(Replica):
    """Says for a while that it is at it, as often as the broker takes it, and gives the parts of its answer then; to
    whom it has no answer left it says nothing.
    """

    def __init__(self, bus, answers):
        super().__init__(bus, answers)
        self.answering = []

    def take(self, message):
        self.asked.append(asking.question_of(message.data, message.headers))
        if self.answers:
            self.answering.append(asyncio.create_task(self.answer(message, *self.answers.pop(0))))

    async def answer(self, message, while_s, parts):
        clock = asyncio.get_running_loop().time
        until_s = clock() + while_s
        while clock() < until_s:
            self.bus.send(message.reply, b"", asking.ALIVE)
            await self.bus.round_trip()
        for part in parts:
            taken = "" if part.end else subjects.taken(DEPLOYMENT, CALLER, self.name)
            self.bus.send(message.reply, part.body, asking.part_headers(part), taken)


SILENT_S = 0.5


@pytest.fixture
async def slow(broker):
    """slow(answers…) starts a replica that is at each of them for a while."""
    running = []

    async def start(*answers):
        running.append(await Slow.start(broker, answers))
        return running[-1]

    yield start
    for each in running:
        for task in each.answering:
            task.cancel()
        await asyncio.gather(*each.answering, return_exceptions=True)
        await each.bus.close()


async def test_who_says_that_it_is_at_it_is_waited_for_and_who_stops_saying_so_is_given_up(slow, asker, monkeypatch):
    monkeypatch.setattr(questions, "EQUAL_SILENCES", 1000)  # none is waited for longer because of those before it
    replica = await slow((2 * SILENT_S, ()), *[(2 * SILENT_S, whole(b"yes"))] * 100)
    assert (await asker.answer(DEPLOYMENT, Question(), silence_s=SILENT_S)).body == b"yes"
    assert len(replica.asked) > 1 and all(question.alive for question in replica.asked)


async def test_a_stream_whose_replica_falls_silent_breaks_off_before_long(slow, asker, monkeypatch):
    monkeypatch.setattr(questions, "LONG_SILENCE_S", 0.05)
    await slow((0.001, [Part(body=b"a", end=False)]))
    with pytest.raises(BrokenOff, match=r"nothing came for 0\.05 s"):
        async for part in asker.ask(DEPLOYMENT, Question()):
            assert part.body == b"a"


@pytest.mark.parametrize("later_s", [0.0, 0.05])
async def test_what_comes_while_who_asks_does_not_listen_is_no_silence(asker, later_s):
    """Its loop is busy for longer than the silence; the answer is read only after that."""
    loop = asyncio.get_running_loop()
    answer = Message("s", "", b"yes", b"")

    def busy():
        until_s = loop.time() + 0.4
        while loop.time() < until_s:
            pass
        loop.call_later(later_s, one.take, answer)

    one = _Try(asker, DEPLOYMENT, Question(), 9.0)
    loop.call_soon(busy)
    assert await one._heard(9.0, 0.1) is answer


async def test_where_answers_come_at_once_silence_is_noticed_sooner(asker):
    assert asker._silence_s("d", 2.0, 0) == 2.0
    asker._took("d", 0.005)
    assert asker._silence_s("d", 2.0, 0) == questions.SHORTEST_SILENCE_S
    for _ in range(50):
        asker._took("d", 9.0)
    assert asker._silence_s("d", 2.0, 0) == 2.0
    assert asker._silence_s("d", 2.0, 20) == questions.LONGEST_SILENCE_S


async def test_who_breaks_off_again_and_again_is_not_asked_without_a_pause(replicas, asker, monkeypatch):
    monkeypatch.setattr(questions, "PAUSES_S", (0.0, 0.0, 61.0))
    broken = [Part(body=b"ha", end=False), Part(body=b"", status=503, number=1)]
    replica = await replicas(*[broken] * 50)
    with pytest.raises(BrokenOff):
        await asker.answer(DEPLOYMENT, Question(), patience_s=60)
    assert len(replica.asked) == 3  # the pause before a fourth time is longer than the patience


async def test_a_replica_that_does_not_wait_for_its_asker_fills_no_memory(replicas, asker):
    await replicas([Part(body=b"x", number=n, end=False) for n in range(MOST_WAITING + 100)])
    parts = asker.ask(DEPLOYMENT, Question())
    await anext(parts)
    await asker._bus.round_trip()
    (one,) = asker._open.values()
    assert one._arrived.qsize() <= MOST_WAITING + 1
    await parts.aclose()


async def test_an_answer_that_is_too_large_to_be_kept_is_one_clear_error(replicas, asker, monkeypatch):
    monkeypatch.setattr(questions, "LARGEST_ANSWER_BYTES", 10)
    await replicas(list(asking.parts_of(Part(body=bytes(2**19)))))
    with pytest.raises(ApiError, match="more than 10 bytes"):
        await asker.answer(DEPLOYMENT, Question())
