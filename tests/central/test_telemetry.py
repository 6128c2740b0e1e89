"""Whose metrics are stored."""

import pytest
from msgspec.structs import replace

from cyxcentral.machine import MACHINE
from cyxcentral.telemetry import Telemetry
from cyxcore.spec import EpochMetrics
from cyxnet import messages as m
from cyxnet import subjects
from tests.central import facts as f
from tests.central.centrals import NEXT_SESSION, NODE, SESSION, completed, leased, register, stored_model

EPOCH = EpochMetrics(epoch=1, epochs=1, step=4, epoch_loss=0.5, epoch_time_ms=1.0, samples_per_s=1.0)
SAID = m.Progress(node_id=NODE, session=SESSION, job_id="job-1", attempt=1, epoch=EPOCH)


@pytest.fixture
def telemetry(central):
    return Telemetry(central.core, central.edge, central.dispatch, None, None, MACHINE, None)


async def test_what_was_said_before_a_delivery_and_is_heard_behind_it_is_stored(central, telemetry, tmp_path):
    # the last epochs of a short training were lost where central had much to do: 34 of 60
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), m.Started(attempt=1))
    assert len(telemetry._records(SAID)) == 1
    assert (await central.reports.completed(completed(await stored_model(central.blobs, tmp_path)))).accepted
    [record] = telemetry._records(SAID)
    assert (record.job_id, record.attempt, record.epoch) == ("job-1", 1, EPOCH)
    for other in ({"node_id": "node-b"}, {"session": NEXT_SESSION}, {"attempt": 2}, {"job_id": "job-2"}):
        assert telemetry._records(replace(SAID, **other)) == []
    await central.say(subjects.job_event("job-1"), f.signed("settle"))
    await central.say(subjects.job_event("job-1"), f.settled())
    assert central.world.jobs["job-1"].status == "completed"
    assert telemetry._records(SAID) == []


async def test_a_lost_attempt_is_heard_no_more(central, telemetry):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), m.Started(attempt=1), f.lost())
    assert telemetry._records(SAID) == []
