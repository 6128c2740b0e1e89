"""Followers of a stream: every message once and in its order, whatever becomes of the broker in between."""

import asyncio

import pytest

from cyxcentral.eventlog import retry
from cyxnet import subjects
from cyxnet.connection import Message
from cyxnet.follower import Follower, place_of
from tests.net.brokers import never, restarted


async def test_a_follower_sees_what_was_and_what_comes_in_order(core):
    seen, enough = [], asyncio.Event()

    async def handler(stored):
        seen.append((stored.seq, stored.payload))
        if len(seen) == 4:
            enough.set()

    for number in range(3):
        await core.append(subjects.job_event("abc"), b"%d" % number)
    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, never)
    await core.append(subjects.job_event("abc"), b"3")
    await asyncio.wait_for(enough.wait(), 60)
    assert seen == [(1, b"0"), (2, b"1"), (3, b"2"), (4, b"3")]


async def test_a_follower_goes_on_at_once_when_a_killed_broker_is_back(mortal, monkeypatch):
    # nats-py's ordered consumer noticed after eight seconds; every decision waited for it
    monkeypatch.setattr("cyxnet.follower.HEARTBEAT_S", 1000)  # so it is the new link that tells it, and no silence
    running, bus = mortal
    seen, three = [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        if len(seen) == 3:
            three.set()

    await bus.append(subjects.job_event("abc"), b"1")
    await bus.append(subjects.job_event("abc"), b"2")
    await bus.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, never, stall_s=1000)
    running.append(await asyncio.to_thread(restarted, running[-1]))
    await retry(lambda: bus.append(subjects.job_event("abc"), b"3"))
    await asyncio.wait_for(three.wait(), 60)
    assert seen == [1, 2, 3]


async def test_a_pause_before_the_next_try_ends_when_the_link_is_back(mortal):
    # who had tried for long waited up to 16 s more for a broker that was there again
    running, bus = mortal
    pausing, back = asyncio.create_task(bus.pause(1e6)), asyncio.Event()
    bus.on_link_back = back.set
    await bus.pause(0.01)  # it ends by itself too
    assert not pausing.done()
    running.append(await asyncio.to_thread(restarted, running[-1]))
    await asyncio.wait_for(asyncio.gather(pausing, back.wait()), 60)


async def test_a_follower_that_heard_nothing_yet_does_not_begin_again_at_the_first_message(mortal):
    # it did: the ledger was given every old metric again, refused the keys, and lost events written with them
    running, bus = mortal
    seen, heard = [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        heard.set()

    for number in range(3):
        await bus.append(subjects.job_event("abc"), b"%d" % number)
    await bus.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 3, handler, never)
    bus._followers[0].doubt()
    await bus.append(subjects.job_event("abc"), b"4")
    await asyncio.wait_for(heard.wait(), 60)
    assert seen == [4]


async def test_a_follower_whose_consumer_was_taken_away_goes_on_where_it_was(core, monkeypatch):
    monkeypatch.setattr("cyxnet.follower.HEARTBEAT_S", 0.2)
    seen, two = [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        if len(seen) == 2:
            two.set()

    await core.append(subjects.job_event("abc"), b"1")
    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, never)
    [consumer] = await core._js.consumers_info(subjects.EVENTS)
    await core._js.delete_consumer(subjects.EVENTS, consumer.name)
    await core.append(subjects.job_event("abc"), b"2")
    await asyncio.wait_for(two.wait(), 60)
    assert seen == [1, 2]


class Deaf:
    """A link whose first consumer delivers nothing, though it seems alive."""

    connected = True

    def __init__(self):
        self.asked = []
        self.again = asyncio.Event()

    async def last_seq(self, stream):
        return 7

    async def consume(self, stream, subject, first_seq, deliver, heartbeat_s):
        self.asked.append(first_seq)
        if len(self.asked) == 2:
            self.again.set()

    async def reply(self, subject):
        pass


async def test_the_watchdog_replaces_a_consumer_that_brings_nothing_though_the_stream_has_grown():
    link = Deaf()
    follower = Follower(link, subjects.EVENTS, subjects.EVENT_SUBJECTS, 4, never, never, stall_s=0.05)
    await follower.start()
    await asyncio.wait_for(link.again.wait(), 60)
    follower.close()
    assert link.asked == [5, 5]


class Talks(Deaf):
    """A link whose consumer brings one more message while the stream is asked how long it is."""

    deliver = follower = None

    async def last_seq(self, stream):
        if self.deliver:
            self.deliver(Message(subjects.job_event("abc"), "$JS.ACK.S.C.1.5.1.1700.0", b"5", b""))
            while self.follower.seen_seq < 5:
                await asyncio.sleep(0)
        return 4

    async def at(self, stream, seq):
        return None

    async def consume(self, stream, subject, first_seq, deliver, heartbeat_s):
        await super().consume(stream, subject, first_seq, deliver, heartbeat_s)
        self.deliver = deliver


async def test_what_comes_while_a_follower_asks_anew_is_not_taken_for_lost():
    # an answer that was older than what had come meanwhile ended central: the log seemed to be rewound
    async def handler(stored):
        seen.append(stored.seq)

    link, seen, lost = Talks(), [], []
    link.follower = Follower(link, subjects.EVENTS, subjects.EVENT_SUBJECTS, 4, handler, lost.append)
    await link.follower.start()
    link.follower.doubt()
    await asyncio.wait_for(link.again.wait(), 60)
    link.follower.close()
    assert (seen, lost, link.asked) == ([5], [], [5, 6])


class Away(Deaf):
    """A link that is down whenever it is looked at, and counts how often that is."""

    looks = 0

    @property
    def connected(self):
        self.looks += 1
        if self.looks > 1_000:
            raise AssertionError("looked a thousand times, and let nobody else run")
        return False


async def test_a_follower_in_doubt_lets_others_run_while_the_link_is_down():
    # the link broke while a consumer was made anew: the follower looked for it for ever, and nothing else ran
    link = Away()
    follower = Follower(link, subjects.EVENTS, subjects.EVENT_SUBJECTS, 4, never, never)
    await follower.start()
    follower.doubt()
    while not link.looks:
        await asyncio.sleep(0)
    follower.close()
    assert link.looks == 1


async def test_a_delivery_that_was_dropped_is_asked_for_again(core):
    seen, three = [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        if stored.seq == 3:
            three.set()

    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, never)
    [follower] = core._followers
    real, dropped = follower._deliver, []

    def lossy(renewal, message):
        if message.reply.startswith("$JS.ACK") and not dropped:
            dropped.append(message.reply)
        else:
            real(renewal, message)

    follower._deliver = lossy
    await follower._renew()
    for number in range(3):
        await core.append(subjects.job_event("abc"), b"%d" % number)
    await asyncio.wait_for(three.wait(), 60)
    assert (len(dropped), seen) == (1, [1, 2, 3])


@pytest.mark.parametrize(
    "reply",
    ["$JS.ACK.S.C.1.42.7.1700.3", "$JS.ACK.hub.ABC.S.C.1.42.7.1700.3.x"],
)
def test_the_place_of_a_delivery_is_read_with_and_without_domains(reply):
    assert place_of(reply) == (42, 7, 3)


async def test_a_follower_is_told_when_the_stream_lost_what_it_has_seen(core):
    lost, seen, heard = [], [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        heard.set()

    await core.append(subjects.job_event("abc"), b"1")
    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 7, handler, lost.append)
    await core.append(subjects.job_event("abc"), b"2")
    await asyncio.wait_for(heard.wait(), 60)
    assert (lost, seen) == ([1], [2])


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
async def test_a_follower_notices_that_lost_messages_were_replaced_before_it_looked(core, kept):
    # the stream was as long as before, so nothing seemed lost; metrics of both lives stayed in one ledger
    stream, name = subjects.TELEMETRY, subjects.telemetry("node-a")

    async def written(payloads):
        await core.ensure_stream(stream, [subjects.TELEMETRY_SUBJECTS])
        for payload in payloads:
            await core.append(name, payload)

    heard, same = asyncio.Queue(), []

    async def handler(stored):
        heard.put_nowait((stored.seq, stored.payload))

    async def next_ones(count):
        return [await asyncio.wait_for(heard.get(), 60) for _ in range(count)]

    old = [b"old %d" % number for number in range(1, 6)]
    await written(old)
    await core.follow(stream, subjects.TELEMETRY_SUBJECTS, 0, handler, same.append)
    await next_ones(5)
    await core.request(f"$JS.API.STREAM.DELETE.{stream}", b"")
    await written([*old[:kept], *[b"new %d" % number for number in range(kept + 1, 8)]])
    core._followers[-1].doubt()
    assert await next_ones(7 - kept) == [(number, b"new %d" % number) for number in range(kept + 1, 8)]
    assert same == ([kept] if kept < 5 else [])


async def test_a_follower_compares_the_place_it_begins_at_with_what_its_owner_saw_there(core):
    stream, same, seen, last = subjects.TELEMETRY, [], [], asyncio.Event()
    await core.ensure_stream(stream, [subjects.TELEMETRY_SUBJECTS])
    for payload in (b"1", b"2", b"3"):
        stored_at = await core.append(subjects.telemetry("node-a"), payload)

    async def handler(stored):
        seen.append(stored.seq)
        if stored.seq == stored_at:
            last.set()

    await core.follow(stream, subjects.TELEMETRY_SUBJECTS, 2, handler, same.append, after_sha256="0" * 64)
    await asyncio.wait_for(last.wait(), 60)
    assert (same, seen) == ([0], [1, 2, 3])
