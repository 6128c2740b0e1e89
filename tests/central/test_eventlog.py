"""The event log: many at once, three outcomes, a chain, a quarantine, and when to stop."""

import asyncio
import functools
import hashlib
import math
import random
import resource
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from msgspec.structs import replace

from cyxcentral import eventlog, groupcommit
from cyxcentral.eventlog import EventLog, LogError, Sequel, unsafe
from cyxcentral.groupcommit import GroupCommit
from cyxcentral.records import read
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects, watchdog
from cyxnet.broker import Broker
from cyxnet.bus import Bus, BusError
from cyxnet.codec import BadMessage, encode
from cyxnet.outcomes import AppendUnknown, Conflict, StorageFull, Stored
from tests.central import facts as f
from tests.central.memory_log import MemoryLog

SAFE = SimpleNamespace(
    deny_delete=True,
    deny_purge=True,
    allow_atomic=True,
    allow_rollup_hdrs=False,
    allow_msg_ttl=False,
    max_age=0,
    max_msgs=-1,
    max_msgs_per_subject=-1,
    max_bytes=-1,
    discard="old",
    retention="limits",
    storage="file",
)


@pytest.fixture
async def core(broker):
    bus = await Bus.connect(broker.url("core"), name="test-core")
    yield bus
    await bus.close()


@pytest.fixture
async def log(core):
    opened = EventLog(core, "central-a", World())
    await opened.open(0)
    return opened


async def opened(core, name="central-b"):
    """Another central's view of the same log."""
    other = EventLog(core, name, World())
    await other.open(0)
    return other


def job(number):
    return subjects.job_event(f"job-{number}")


def record_of(event, prev="", command_id="c" * 32, at_ms=1):
    return encode(m.Record(command_id=command_id, at_ms=at_ms, by="somebody", event=event, prev=prev))


def deaf(core, log):
    """From now on the log hears nothing of the stream until the event returned is set."""
    hear = asyncio.Event()

    async def later(stored):
        await hear.wait()
        await log._apply(stored)

    core._followers[-1]._handler = later
    return hear


def same(one, other):
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("seq", "jobs", "nodes", "mints", "last_seq", "last_sha256", "quarantined", "damaged", "active")
    )


# -- many at once ------------------------------------------------------------------------------------------


async def test_hundreds_of_appends_at_once_are_each_stored_once_and_known_to_everybody(core, log):
    events = await asyncio.gather(
        *(log.record(job(n), lambda n=n: f.submitted(f"job-{n}")) for n in range(300)),
    )
    assert [event.terms.job_id for event in events] == [f"job-{n}" for n in range(300)]
    other = await opened(core)
    assert (log.world.seq, len(log.world.jobs), log.world.quarantined) == (300, 300, 0)
    assert same(log.world, other.world)


async def test_a_conflict_of_one_append_costs_the_others_in_its_batch_nothing(core, log):
    decided, hear = [], deaf(core, log)
    await core.append(job(7), record_of(f.submitted("job-7")), 0)  # the log does not know of it when it decides

    def decide(n):
        decided.append(n)
        if len(decided) == 100:
            hear.set()
        return None if f"job-{n}" in log.world.jobs else f.submitted(f"job-{n}")

    events = await asyncio.gather(*(log.record(job(n), lambda n=n: decide(n)) for n in range(100)))
    assert [n for n in range(100) if events[n] is None] == [7]
    assert sorted(decided) == sorted([*range(100), 7])
    assert len(log.world.jobs) == 100


async def test_who_appends_is_told_of_it_as_the_acknowledgement_is_read(core, log):
    stored = []
    append = asyncio.create_task(core.append(job(7), record_of(f.submitted("job-7")), 0, stored=stored.append))
    while not stored:
        await asyncio.sleep(0)
    assert not append.done() and stored == [await append]
    with pytest.raises(Conflict):
        await core.append(job(7), record_of(f.FUNDED), 0, stored=stored.append)
    assert len(stored) == 1


async def test_two_commands_on_one_subject_are_decided_one_after_the_other(core, log):
    await log.record(job(1), lambda: f.submitted("job-1"))
    await log.record(job(1), lambda: f.FUNDED)
    seen = []

    def lease():
        seen.append(log.world.jobs["job-1"].status)
        return f.leased() if seen[-1] == "queued" else None

    outcomes = await asyncio.gather(log.record(job(1), lease), log.record(job(1), lease))
    assert seen == ["queued", "leased"]
    assert [outcome is None for outcome in outcomes] == [False, True]


async def test_facts_about_several_subjects_are_stored_together(core, log):
    await log.record_all([(job(1), lambda: f.submitted("job-1")), (job(2), lambda: f.submitted("job-2"))])
    other = await opened(core)
    assert sorted(other.world.jobs) == ["job-1", "job-2"]


async def test_facts_of_which_one_meets_a_conflict_are_all_decided_again(core, log):
    asked, hear = [], deaf(core, log)
    await core.append(job(2), record_of(f.submitted("job-2")), 0)

    def decide(n):
        asked.append(n)
        if len(asked) == 3:
            hear.set()
        return None if f"job-{n}" in log.world.jobs else f.submitted(f"job-{n}")

    events = await log.record_all([(job(n), lambda n=n: decide(n)) for n in (1, 2, 3)])
    assert asked == [1, 2, 3, 1, 2, 3]
    assert [event is None for event in events] == [False, True, False]
    assert log.world.seq == 3


def behind(event, ended):
    """A sequel that is always there, and tells when it ended."""
    return Sequel(lambda first, at_ms: event, ended.set)


async def test_what_follows_at_once_stands_right_behind_its_event_everywhere(core, log):
    ended = asyncio.Event()
    await log.record(job(1), lambda: f.submitted("job-1"), behind(f.leased(), ended))
    await ended.wait()
    other = await opened(core)
    assert log.world.jobs["job-1"].status == "leased" and same(log.world, other.world)
    assert log.world.last_seq[job(1)] == 2 and not other.world.quarantined


async def test_what_follows_is_decided_while_its_event_is_on_its_way(core, log, monkeypatch):
    sent, append = [], core._nc.send

    def send(subject, *rest, **options):
        sent.append(subject)
        append(subject, *rest, **options)

    monkeypatch.setattr(core._nc, "send", send)
    ended, seen = asyncio.Event(), []

    def decide(first, at_ms):
        seen.extend(sent)
        return f.leased()

    await log.record(job(1), lambda: f.submitted("job-1"), Sequel(decide, ended.set))
    await ended.wait()
    assert job(1) in seen and log.world.jobs["job-1"].status == "leased"


async def test_an_event_is_stored_and_said_so_whatever_goes_wrong_with_what_may_follow(core, log, caplog):
    # its outcome was lost: who asked was told of an error in central, and nobody waited for the append any more
    def wrong(first, at_ms):
        raise KeyError("not foreseen")

    submitted = f.submitted("job-1")
    assert await log.record(job(1), lambda: submitted, Sequel(wrong, None)) == submitted
    assert log.world.jobs["job-1"].status == "funding"
    assert "nothing follows" in caplog.text


async def test_with_anything_between_the_two_what_follows_is_not_stored(core, log, monkeypatch):
    ended, begin = asyncio.Event(), core.begin_append

    def late(subject, payload, *expected, right_after="", **names):
        async def second():
            await core.append(job(2), record_of(f.submitted("job-2")), 0)
            return await core.append(subject, payload, *expected, right_after=right_after, **names)

        return second() if right_after else begin(subject, payload, *expected, **names)

    monkeypatch.setattr(core, "begin_append", late)
    await log.record(job(1), lambda: f.submitted("job-1"), behind(f.leased(), ended))
    await ended.wait()
    await log.catch_up()
    assert [log.world.jobs[name].status for name in ("job-1", "job-2")] == ["funding", "funding"]
    assert log.world.seq == 2


async def test_behind_an_event_that_another_central_wrote_nothing_follows(core, log):
    """The other one's submission of the same job lies exactly where ours was expected."""
    ended, hear = asyncio.Event(), deaf(core, log)
    await core.append(job(1), record_of(f.submitted("job-1")), 0)
    recording = asyncio.create_task(
        log.record(
            job(1),
            lambda: None if "job-1" in log.world.jobs else f.submitted("job-1"),
            behind(f.leased(), ended),
        )
    )
    await ended.wait()
    hear.set()
    assert await recording is None
    assert (log.world.seq, log.world.quarantined, log.world.jobs["job-1"].status) == (1, 0, "funding")


async def test_while_others_append_nothing_is_sent_ahead(core, log):
    asked = []
    busy = [asyncio.create_task(log.record(job(n), lambda n=n: f.submitted(f"job-{n}"))) for n in range(2, 5)]
    await asyncio.sleep(0)
    await log.record(job(1), lambda: f.submitted("job-1"), Sequel(lambda first, at_ms: asked.append(1), None))
    await asyncio.gather(*busy)
    assert not asked


async def test_who_gives_up_waiting_leaves_no_hole(core, log):
    waiting = [asyncio.create_task(log.record(job(n), lambda n=n: f.submitted(f"job-{n}"))) for n in range(100)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await log.record(job("after"), lambda: f.submitted("job-after"))
    assert {f"job-{n}" for n in range(1, 100, 2)} <= set(log.world.jobs)


async def test_the_log_is_read_no_faster_than_there_is_room_for(core, log):
    for n in range(3):
        await log.record(job(n), lambda n=n: f.submitted(f"job-{n}"))
    full, free = asyncio.Event(), asyncio.Event()

    async def room():
        full.set()
        await free.wait()

    other = EventLog(core, "central-b", World())
    other.room = room
    opening = asyncio.create_task(other.open(0))
    await asyncio.wait_for(full.wait(), 60)
    assert other.world.seq == 1
    free.set()
    await opening
    assert same(log.world, other.world)


# -- three outcomes ----------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "real"])
async def either(request):
    """The stream in memory and the real one: what is said of one is said of both."""
    if request.param == "memory":
        stream = MemoryLog()
        yield stream
        await stream.close()
    else:
        bus = await Bus.connect(request.getfixturevalue("broker").url("core"), name="test")
        await bus.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS], allow_atomic=True)
        yield bus
        await bus.close()


async def test_a_batch_is_stored_whole_or_not_at_all(either):
    assert await either.append_all([(job(1), b"1", 0), (job(2), b"2", 0)]) == [1, 2]
    with pytest.raises(Conflict):
        await either.append_all([(job(3), b"3", 0), (job(2), b"2", 0), (job(4), b"4", 0)])
    assert await either.last_seq(subjects.EVENTS) == 2
    assert await either.append_all([(job(3), b"3", 0), (job(2), b"2", 2)]) == [3, 4]
    assert (await either.last(subjects.EVENTS, job(2))).payload == b"2"
    assert await either.last(subjects.EVENTS, job(9)) is None
    assert (await either.at(subjects.EVENTS, 3)).payload == b"3"


async def two_logs(dice):
    stream = MemoryLog(dice)
    stream.config = SAFE
    return stream, [await opened(stream, name) for name in ("central-a", "central-b")]


async def work_through(dice):
    """40 jobs, each brought to its lease by two centrals that race for every step."""
    stream, logs = await two_logs(dice)
    stored, unknown = [], set()  # what record() said it stored, and of what it could not say whether it is
    steps = [("funding", f.FUNDED), ("queued", f.leased()), ("leased", f.STARTED)]

    async def bring(log, n):
        async def say(name, decide):
            while True:
                try:
                    event = await log.record(job(n), decide)
                    break
                except AppendUnknown:
                    unknown.add((n, name))  # asked five times and never answered: ask again, as callers do
            if event is not None:
                stored.append((n, type(event).__name__, log))

        await say("Submitted", lambda: None if f"job-{n}" in log.world.jobs else f.submitted(f"job-{n}"))
        for status, event in steps:
            await say(
                type(event).__name__,
                lambda status=status, event=event: (
                    event
                    if log.world.jobs[f"job-{n}"].status == status and log.world.jobs[f"job-{n}"].attempt < 2
                    else None
                ),
            )

    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(bring(log, n) for n in range(40) for log in logs))
            for log in logs:
                await log.catch_up()
    finally:
        await stream.close()
    return stream, logs, stored, unknown


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_answers_are_lost_every_command_happens_once_and_its_caller_knows(seed, monkeypatch):
    monkeypatch.setattr("cyxcentral.eventlog.retry", lambda work: work())
    stream, logs, stored, unknown = await work_through(random.Random(seed))
    assert same(logs[0].world, logs[1].world)
    assert logs[0].world.quarantined == 0 and not logs[0].broken.done()
    commands = [read(each.payload).command_id for each in stream.messages]
    assert len(set(commands)) == len(commands)
    said = [(n, name) for n, name, _ in stored if name != "Started"]
    wanted = {(n, name) for n in range(40) for name in ("Submitted", "Funded", "Leased")}
    there = {(each.subject, type(read(each.payload).event).__name__) for each in stream.messages}
    assert {(job(n), name) for n, name in wanted} <= there
    # each of them was stored once, and exactly one caller was told that it was its own; none if that could not be told
    assert len(set(said)) == len(said) and wanted - unknown <= set(said) <= wanted


async def test_an_append_that_was_given_up_and_arrives_after_all_is_the_callers_own():
    stream, [log, _] = await two_logs(None)
    real, held = stream.append_all, []

    async def late(messages):
        if not held:
            held.extend(messages)
            raise AppendUnknown("no answer")
        if held != [None]:
            stream._store(held[:])  # the first one overtakes the second on the way
            held[:] = [None]
        return await real(messages)

    stream.append_all = late
    event = await log.record(job(1), lambda: None if "job-1" in log.world.jobs else f.submitted("job-1"))
    assert event is not None
    assert len(stream.messages) == 1
    await stream.close()


async def test_an_append_never_answered_is_reported_as_unknown(monkeypatch):
    monkeypatch.setattr("cyxcentral.eventlog.retry", lambda work: work())
    stream, [log, _] = await two_logs(None)

    async def nothing(messages):
        raise AppendUnknown("no answer")

    stream.append_all = nothing
    with pytest.raises(AppendUnknown):
        await log.record(job(1), lambda: f.submitted("job-1"))
    await stream.close()


async def test_many_appends_share_batches_and_few_do_not():
    stream, [log, _] = await two_logs(None)
    await asyncio.gather(*(log.record(job(n), lambda n=n: f.submitted(f"job-{n}")) for n in range(10)))
    assert stream.batches == 0
    await asyncio.gather(*(log.record(job(n), lambda n=n: f.submitted(f"job-{n}")) for n in range(10, 510)))
    assert 0 < stream.batches <= 4
    assert len(log.world.jobs) == 510
    await stream.close()


class Held:
    """A broker that stores what it is sent when it is told to."""

    def __init__(self):
        self.sent: list[tuple[int, asyncio.Future]] = []  # how many messages, and their answer

    async def append(self, subject, payload, expected_seq=None):
        return (await self._answer(1))[0]

    async def append_all(self, messages):
        return await self._answer(len(messages))

    def _answer(self, count):
        self.sent.append((count, asyncio.get_running_loop().create_future()))
        return self.sent[-1][1]

    def store(self, at):
        count, answer = self.sent[at]
        answer.set_result([0] * count)

    def fail(self, at, error):
        self.sent[at][1].set_exception(error)

    @property
    def sizes(self):
        return [count for count, _ in self.sent]


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_appends_that_come_during_a_batch_share_the_next_one(monkeypatch):
    """They were sent one by one, a third of all in a burst: each cost the broker a sync and ten times the time."""
    monkeypatch.setattr(groupcommit, "SLOW_S", math.inf)
    broker, appends = Held(), []
    commits = GroupCommit(broker)

    def come(count):
        appends.extend(asyncio.ensure_future(commits.append("s", b"", 0)) for _ in range(count))

    with commits.alone():
        come(100)
        await turns()
    assert broker.sizes == [100]
    come(99)
    await turns()
    assert broker.sizes == [100]
    come(1)  # as many as are on their way
    await turns()
    assert broker.sizes == [100, 100]
    come(250)
    await turns()
    assert broker.sizes == [100, 100]  # two are enough
    broker.store(0)
    await turns()
    assert broker.sizes == [100, 100, 250]
    come(20)
    broker.store(1)
    await turns()
    assert broker.sizes == [100, 100, 250]
    broker.store(2)
    await turns()
    assert broker.sizes == [100, 100, 250] + [1] * groupcommit.SINGLES_IN_FLIGHT  # too few for a batch
    for at in range(3, 23):
        broker.store(at)
        await turns()
    assert await asyncio.gather(*appends) == [0] * 470
    assert commits.idle


async def test_the_next_batch_is_sent_before_those_of_the_one_before_go_on(monkeypatch):
    """It was sent behind them, which take central ten milliseconds: so long the broker had nothing to do."""
    monkeypatch.setattr(groupcommit, "SLOW_S", math.inf)
    broker = Held()
    commits = GroupCommit(broker)
    seen = []

    async def append():
        await commits.append("s", b"", 0)
        seen.append(broker.sizes)

    with commits.alone():
        first = [asyncio.ensure_future(append()) for _ in range(100)]
        await turns()
    later = [asyncio.ensure_future(append()) for _ in range(80)]
    await turns()
    assert broker.sizes == [100]
    broker.store(0)
    await asyncio.gather(*first)
    assert seen == [[100, 80]] * 100
    broker.store(1)
    await asyncio.gather(*later)


async def test_on_a_slow_disk_few_appends_share_a_batch_too(monkeypatch):
    broker, slow = Held(), groupcommit.BATCH_WHEN_SLOW
    monkeypatch.setattr(groupcommit, "SLOW_S", math.inf)
    commits = GroupCommit(broker)
    appends = [asyncio.ensure_future(commits.append("s", b"", 0)) for _ in range(groupcommit.SINGLES_IN_FLIGHT + slow)]
    await turns()
    alone = [1] * groupcommit.SINGLES_IN_FLIGHT
    assert broker.sizes == alone
    monkeypatch.setattr(groupcommit, "SLOW_S", 0.0)  # by now they have waited for long
    broker.store(0)
    await turns()
    assert broker.sizes == [*alone, slow]
    appends += [asyncio.ensure_future(commits.append("s", b"", 0)) for _ in range(slow - 1)]
    for at in range(1, len(alone) + 1):
        broker.store(at)
        await turns()
    assert broker.sizes == [*alone, slow, *alone]  # these are too few even so
    for at in range(len(alone) + 1, len(alone) + slow):
        broker.store(at)
        await turns()
    assert await asyncio.gather(*appends) == [0] * (len(alone) + 2 * slow - 1)


@pytest.mark.parametrize("count", [1, 100], ids=["alone", "in a batch"])
async def test_an_error_that_nobody_expects_ends_no_append_that_waits_behind_it(count, monkeypatch):
    """They waited until somebody else appended something."""
    monkeypatch.setattr(groupcommit, "SLOW_S", math.inf)
    broker = Held()
    commits = GroupCommit(broker)
    with commits.alone():
        first = [asyncio.ensure_future(commits.append("s", b"", 0)) for _ in range(count)]
        await turns()
    behind = [asyncio.ensure_future(commits.append("s", b"", 0)) for _ in range(groupcommit.SINGLES_IN_FLIGHT)]
    await turns()
    sent = len(broker.sent)
    assert sent <= groupcommit.SINGLES_IN_FLIGHT
    unexpected: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unexpected.append(context))
    broker.fail(0, ZeroDivisionError("a bug"))
    await turns()
    assert [type(append.exception()) for append in first] == [AppendUnknown] * count
    assert len(broker.sent) == 1 + len(behind)
    for at in range(1, len(broker.sent)):
        broker.store(at)
    assert await asyncio.gather(*behind) == [0] * len(behind)
    assert commits.idle


async def test_when_its_tasks_are_cancelled_all_who_wait_hear_it(monkeypatch):
    monkeypatch.setattr(groupcommit, "SLOW_S", math.inf)
    broker = Held()
    commits = GroupCommit(broker)
    appends = [asyncio.ensure_future(commits.append("s", b"", 0)) for _ in range(groupcommit.SINGLES_IN_FLIGHT + 5)]
    await turns()
    broker.sent[1][1].cancel()
    await turns()
    heard = [append for append in appends if append.done()]
    assert [type(append.exception()) for append in heard] == [AppendUnknown] * 6
    assert broker.sizes == [1] * groupcommit.SINGLES_IN_FLIGHT


# -- the chain and the quarantine --------------------------------------------------------------------------


async def test_each_record_names_the_one_before_it_on_its_subject(core, log):
    await log.record(job(1), lambda: f.submitted("job-1"))
    await log.record(job(2), lambda: f.submitted("job-2"))
    await log.record(job(1), lambda: f.FUNDED)
    first, second, third = [await core.at(subjects.EVENTS, seq) for seq in (1, 2, 3)]
    assert read(first.payload).prev == read(second.payload).prev == ""
    assert read(third.payload).prev == hashlib.sha256(first.payload).hexdigest()


def test_records_from_before_there_was_a_chain_are_still_true():
    world = World()
    for seq, event in enumerate([f.submitted("job-1"), f.FUNDED, f.leased()], start=1):
        payload = record_of(event)
        assert world.apply(seq, job(1), read(payload), hashlib.sha256(payload).digest()) is None
    assert world.apply(4, job(1), read(record_of(f.STARTED, prev=world.prev(job(1)))), b"") is None
    assert world.jobs["job-1"].attempts[0].started_at_ms == 1


def test_a_chain_that_began_may_not_stop():
    world = World()
    world.apply(1, job(1), read(record_of(f.submitted("job-1"))), b"1" * 32)
    world.apply(2, job(1), read(record_of(f.FUNDED, prev=world.prev(job(1)))), b"2" * 32)
    assert "does not name" in world.apply(3, job(1), read(record_of(f.leased())), b"3" * 32)
    assert "event 3 does not name" in world.why_damaged[job(1)]


def of_the_future():
    """A record whose event no version of today knows."""
    return msgspec.msgpack.encode(
        {"command_id": "c" * 32, "at_ms": 1, "by": "newer", "event": {"t": "Teleported", "to": "moon"}}
    )


async def test_what_a_newer_central_said_of_a_job_is_not_decided_over(core, log):
    await log.record(job(1), lambda: f.submitted("job-1"))
    await core.append(job(1), of_the_future())
    await log.catch_up()
    with pytest.raises(LogError, match="event 2 is of a version newer than this central: upgrade"):
        await log.record(job(1), lambda: f.FUNDED)
    assert await log.record(job(2), lambda: f.submitted("job-2"))
    assert not log.broken.done()


async def test_on_an_altered_history_nothing_is_decided_and_everything_else_goes_on(core, log):
    await log.record(job(1), lambda: f.submitted("job-1"))
    await core.append(job(1), record_of(f.FUNDED, prev="ab" * 32))
    await log.record(job(2), lambda: f.submitted("job-2"))
    await log.catch_up()
    assert log.world.jobs["job-1"].status == "funding"
    with pytest.raises(LogError, match="nothing is decided on .*job-1, .*event 2 does not name"):
        await log.record(job(1), lambda: f.FUNDED)
    await core.append(job(1), record_of(f.FUNDED, prev=log.world.prev(job(1))))
    await log.record(job(2), lambda: f.FUNDED)
    await log.catch_up()
    assert (log.world.jobs["job-1"].status, log.world.jobs["job-2"].status) == ("funding", "queued")
    assert log.world.quarantined == 2


STRANGE = {
    "random bytes": (job(1), b"\x93not a record"),
    "no bytes": (job(1), b""),
    "a number that is not finite": (
        job(1),
        record_of(msgspec.structs.replace(f.leased(), explanation={"score": float("nan")})),
    ),
    "a number no ledger can hold": (job(3), record_of(f.submitted("job-3"), at_ms=2**64 - 1)),
    "an event that cannot follow": (job(1), record_of(f.settled())),
    "a job that is there already": (job(1), record_of(f.submitted("job-1"))),
    "an event of no job": (job(2), record_of(f.FUNDED)),
    "the terms of another job": (job(2), record_of(f.submitted("job-9"))),
    "a job on a node's subject": (subjects.node_event("node-a"), record_of(f.submitted("node-a"))),
    "another node": (subjects.node_event("node-a"), record_of(f.registered("node-b"))),
    "a node lost that never was": (
        subjects.node_event("node-a"),
        record_of(m.NodeLost(node_id="node-a", session="0" * 32, reason="x")),
    ),
    "a mint that ended before it began": (subjects.mint_event("1"), record_of(m.MintFailed(reason="x"))),
    "a subject of no kind": ("cyx.v1.event.moon.1", record_of(f.FUNDED)),
    "a subject that is too short": ("cyx.v1.event.job", record_of(f.FUNDED)),
}


@pytest.mark.parametrize("what", STRANGE)
async def test_a_message_that_cannot_have_happened_counts_for_nothing_on_every_central(core, log, what):
    await log.record(job(1), lambda: f.submitted("job-1"))
    noted = []
    log.quarantined.append(lambda stored, why: noted.append((stored.seq, why)))
    subject, payload = STRANGE[what]
    before = dict(log.world.jobs), dict(log.world.nodes), dict(log.world.mints)
    await core.append(subject, payload)
    await log.catch_up()
    assert (log.world.jobs, log.world.nodes, log.world.mints) == before
    assert log.world.quarantined == 1 and [seq for seq, _ in noted] == [2]
    assert await log.record(job(1), lambda: f.FUNDED)  # on top of it, where that is its subject
    other = await opened(core)
    assert same(log.world, other.world)
    assert log.world.jobs["job-1"].status == "queued"


def test_a_settlement_that_does_not_divide_its_escrow_cannot_have_happened():
    world = World()
    history = [f.submitted("job-1"), f.FUNDED, f.leased(), f.completed(), f.SIGNED_SETTLE]
    for seq, event in enumerate(history, start=1):
        assert world.apply(seq, job(1), read(record_of(event)), b"x") is None
    assert "its parts make" in world.apply(6, job(1), read(record_of(f.settled(node=f.AMOUNT))), b"x")
    assert world.jobs["job-1"].status == "settling"


def test_a_large_number_inside_bytes_is_no_large_number():
    assert isinstance(read(record_of(f.submitted("job-1"), command_id="\u00cf\u00ff")), m.Record)
    deposit = f.signed(b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff")
    event = m.TransactionSigned(purpose="deposit", signed=deposit)
    assert isinstance(read(record_of(event)), m.Record)
    assert isinstance(read(b"\xcf" + b"\xff" * 8), BadMessage)


async def test_what_nobody_else_can_read_of_ours_is_in_quarantine_here_too(core, log):
    event = replace(f.submitted("job-1"), memory_bytes=2**63)
    await log.record(job(1), lambda: event)
    assert log.world.quarantined == 1 and not log.world.jobs
    assert same(log.world, (await opened(core)).world)


@pytest.mark.parametrize("count", [1, 200])
async def test_what_a_central_wrote_itself_it_does_not_decode(core, log, monkeypatch, count):
    monkeypatch.setattr(eventlog, "read", lambda payload, plain=None: BadMessage("nobody should have asked"))
    events = [f.submitted(f"job-{n}") for n in range(count)]  # many share batches, which come back unacknowledged
    await asyncio.gather(*(log.record(job(n), lambda n=n: events[n]) for n in range(count)))
    assert len(log.world.jobs) == count and not log.world.quarantined and not log._sent


# -- when to stop ------------------------------------------------------------------------------------------


async def test_a_missing_event_ends_the_central(log):
    await log.record(job(1), lambda: f.submitted("job-1"))
    await log.catch_up()
    await log._apply(Stored(job(1), 5, b""))
    assert "event 5 came, expected event" in log.broken.result()
    with pytest.raises(BusError, match="store is damaged"):
        await log.record(job(2), lambda: f.submitted("job-2"))


async def test_an_event_that_is_not_what_was_acknowledged_ends_the_central():
    stream, [log, _] = await two_logs(None)
    payload = record_of(f.submitted("job-1"))
    log._acknowledged(Stored(job(1), 1, payload), read(payload))
    await log._apply(Stored(job(1), 1, record_of(f.submitted("job-1"), command_id="d" * 32)))
    assert "not what the broker acknowledged" in log.broken.result()
    await stream.close()


async def test_a_callback_that_fails_ends_the_central_instead_of_its_truth(log):
    def fail(stored, record):
        raise RuntimeError("no row for it")

    log.applied.append(fail)
    assert await log.record(job(1), lambda: f.submitted("job-1"))  # it is stored, and that is true
    with pytest.raises(LogError, match="cannot be taken in: no row for it"):
        await log.record(job(2), lambda: f.submitted("job-2"))


async def test_everybody_who_waits_hears_that_the_log_broke(log):
    waiting = [asyncio.create_task(log._reached(seq)) for seq in (5, 6, 7)]
    await asyncio.sleep(0)
    log._break("the store is damaged")
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [LogError] * 3


async def test_a_log_that_ends_before_what_the_ledger_saw_is_refused(core, log):
    await log.record(job(1), lambda: f.submitted("job-1"))
    with pytest.raises(LogError, match="ends at 1, but the ledger has seen 2: .*Restore"):
        await EventLog(core, "central-b", World()).open(2, "ab" * 32)


async def test_another_log_than_the_one_the_ledger_was_made_from_is_refused(core, log):
    await log.record(job(1), lambda: f.submitted("job-1"))
    stored = await core.at(subjects.EVENTS, 1)
    await EventLog(core, "central-b", World()).open(1, stored.sha256)
    with pytest.raises(LogError, match="event 1, the last one the ledger has seen, is another .*Restore"):
        await EventLog(core, "central-c", World()).open(1, "ab" * 32)


@pytest.mark.parametrize(
    "change",
    [
        {"deny_delete": False},
        {"deny_purge": None},
        {"allow_atomic": False},
        {"max_age": 60.0},
        {"max_msgs": 10},
        {"max_msgs_per_subject": 1},
        {"retention": "workqueue"},
        {"storage": "memory"},
        {"allow_rollup_hdrs": True},
        {"max_bytes": 10**9},
    ],
)
def test_a_stream_that_may_lose_events_is_not_safe(change):
    [name] = change
    assert unsafe(SAFE) == ""
    assert name in unsafe(SimpleNamespace(**(vars(SAFE) | change)))
    assert unsafe(SimpleNamespace(**(vars(SAFE) | {"max_bytes": 10**9, "discard": "new"}))) == ""


async def test_a_stream_from_before_batches_is_brought_to_what_is_needed(core):
    await core.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS], deny_delete=True, deny_purge=True)
    log = await opened(core)
    await log.record_all([(job(1), lambda: f.submitted("job-1")), (job(2), lambda: f.submitted("job-2"))])
    assert log.world.seq == 2


async def test_a_full_store_is_said_at_once_and_appends_go_on_when_there_is_room(core):
    room = {"deny_delete": True, "deny_purge": True, "allow_atomic": True, "discard": "new"}
    await core.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS], max_bytes=4_000, **room)
    payload = b"x" * 1_000
    stored, full = 0, None
    while full is None:
        try:
            await core.append(job(stored), payload, 0)
            stored += 1
        except StorageFull as error:
            full = error
    assert (full.code, full.status, stored) == ("storage_full", 507, 3)
    with pytest.raises(StorageFull):
        await core.append_all([(job("a"), payload, 0), (job("b"), payload, 0)])
    await core.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS], max_bytes=100_000, **room)
    assert await core.append(job("c"), payload, 0) == stored + 1


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets limits of another process")
async def test_a_store_that_takes_nothing_is_logged_once_when_it_begins_and_once_when_it_ends(core, caplog):
    room = {"deny_delete": True, "deny_purge": True, "allow_atomic": True, "discard": "new"}
    await core.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS], max_bytes=1_000_000, **room)
    log = await opened(core)

    async def tried(number):
        with pytest.raises(StorageFull):
            await log.record(job(number), lambda: f.submitted(f"job-{number}"))

    for _ in range(2):
        caplog.clear()
        await core.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS], max_bytes=1, **room)
        await asyncio.gather(*map(tried, range(100)))
        assert [line.partition(":")[0] for line in caplog.messages] == ["the event log takes nothing"]
        await core.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS], max_bytes=1_000_000, **room)
        for _ in range(2):
            subject = job(f"after-{log.world.seq}")
            assert await log.record(subject, lambda subject=subject: f.submitted(subjects.last_token(subject)))
        assert caplog.messages[1:] == ["the event log takes events again"]


async def test_a_log_whose_store_answers_nobody_says_so_once(core, broker, monkeypatch, caplog):
    log = await opened(core)
    monkeypatch.setattr(eventlog.retry, "__defaults__", ((),))
    broker.stop()
    for number in range(2):
        with pytest.raises(BusError):
            await log.record(job(number), lambda number=number: f.submitted(f"job-{number}"))
    said = [record.getMessage() for record in caplog.records if record.name == eventlog.__name__]
    assert [line.partition(":")[0] for line in said] == ["the event log takes nothing"]


async def test_a_full_disk_is_said_within_five_seconds_and_loses_nothing(broker):
    # nats-server answers no append any more once a write failed, until its next start
    core = await Bus.connect(broker.url("core"), name="test")
    log = await opened(core, "central-a")
    log.why_silent = functools.partial(asyncio.to_thread, watchdog.full, broker.monitor_url)
    resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    acknowledged = []
    with pytest.raises(StorageFull, match="write error.*ask again when its disk has room"):
        for number in range(100):
            begun_s = asyncio.get_running_loop().time()
            await log.record(job(number), lambda number=number: f.submitted(f"job-{number}"))
            acknowledged.append(f"job-{number}")
    assert asyncio.get_running_loop().time() - begun_s < 5.0
    await core.close()
    broker.stop()
    folder = Path(broker.process.args[-1]).parent
    again = Broker.start(folder, broker._passwords)  # what a supervisor does, see cyxnet.watchdog
    try:
        core = await Bus.connect(again.url("core"), name="test")
        other = await opened(core)
        assert set(acknowledged) <= set(other.world.jobs) and acknowledged
        assert await other.record(job("after"), lambda: f.submitted("job-after"))
        await core.close()
    finally:
        again.stop()


async def test_a_broker_that_writes_is_not_called_full(broker):
    assert watchdog.full(broker.monitor_url) == ""
