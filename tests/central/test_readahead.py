"""A long log is read by a process of its own: the same messages, and what follows when that process fails."""

import asyncio
import contextlib
import signal

import pytest

from cyxcentral import eventlog, readahead
from cyxcentral.eventlog import EventLog
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import Bus
from cyxnet.codec import encode
from tests.central import facts as f

JOBS = 600  # more than two blocks


@pytest.fixture
async def core(broker):
    """A log of one submitted job after the other."""
    bus = await Bus.connect(broker.url("core"), name="test-core")
    await EventLog(bus, "central-a", World()).open(0)
    for first in range(0, JOBS, 200):
        await bus.append_all([submitted(number) for number in range(first, first + 200)])
    yield bus
    await bus.close()


def submitted(number: int) -> tuple[str, bytes, int]:
    job_id = f"job-{number}"
    record = m.Record(command_id=f"{number:032x}", at_ms=number, by="central-a", event=f.submitted(job_id))
    return subjects.job_event(job_id), encode(record), 0


async def test_blocks_are_the_messages_of_the_log_between_two_sequences(core, broker):
    found = [each async for block in readahead.blocks(broker.url("core"), 11, JOBS - 1) for each in block]
    there = [await core.at(subjects.EVENTS, seq) for seq in (11, 300, JOBS - 1)]
    assert len(found) == JOBS - 11
    for stored, read in zip(there, (found[0], found[300 - 11], found[-1]), strict=True):
        assert (read.subject, read.payload, read.sha256.hex()) == (stored.subject, stored.payload, stored.sha256)


async def test_a_process_that_says_nothing_is_not_waited_for_for_ever(core, broker, monkeypatch):
    monkeypatch.setattr(readahead, "SILENT_S", 0.1)
    started, start = [], asyncio.create_subprocess_exec

    async def start_and_stop(*command, **options):
        started.append(await start(*command, **options))
        started[0].send_signal(signal.SIGSTOP)
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_stop)
    said = [block async for block in readahead.blocks(broker.url("core"), 1, JOBS)]
    assert said == [] and started[0].returncode == -signal.SIGKILL


async def opened(core, monkeypatch, blocks):
    monkeypatch.setattr(eventlog, "LONG", 1)
    log = EventLog(core, "central-b", World())
    log.read_ahead = blocks
    await log.open(0)
    return log


async def test_the_world_is_the_same_whoever_reads(core, broker, monkeypatch):
    ahead = await opened(core, monkeypatch, lambda first, last: readahead.blocks(broker.url("core"), first, last))
    followed = EventLog(core, "central-c", World())
    await followed.open(0)
    assert ahead.world.seq == JOBS
    assert ahead.world.jobs == followed.world.jobs
    assert ahead.world.last_sha256 == followed.world.last_sha256


async def test_events_after_a_log_that_was_read_ahead_are_followed(core, broker, monkeypatch):
    ahead = await opened(core, monkeypatch, lambda first, last: readahead.blocks(broker.url("core"), first, last))
    await core.append(*submitted(JOBS))
    await ahead.catch_up()
    assert f"job-{JOBS}" in ahead.world.jobs


async def test_what_a_failing_process_did_not_bring_is_followed(core, broker, monkeypatch, caplog):
    async def cut(first, last):
        async with contextlib.aclosing(readahead.blocks(broker.url("core"), first, last)) as blocks:
            async for block in blocks:
                yield block
                return

    log = await opened(core, monkeypatch, cut)
    assert (log.world.seq, len(log.world.jobs)) == (JOBS, JOBS)
    assert f"up to {readahead.BLOCK_MESSAGES} of {JOBS}" in caplog.text


async def test_a_broker_that_is_not_there_ends_the_blocks():
    assert [block async for block in readahead.blocks("nats://core:x@127.0.0.1:1", 1, 5)] == []
