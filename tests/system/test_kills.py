"""kill -9 in the middle of a job: it finishes, and it is paid once."""

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest

from cyxnet import jobfile
from cyxnet.local import LocalNetwork
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, training_processes, until


async def assert_paid_once(client, network, job_id):
    reply = await client.ledger(f"select kind, count(*) from events where about = '{job_id}' group by 1")
    assert dict(reply.rows)["Settled"] == 1
    await assert_money_is_conserved(client, network)


def process_of(network, victim):
    """The process id of a part of the network, or of the run that is training."""
    if victim == "training process":
        return training_processes(network)[0].pid
    return network.process_ids[victim]


@pytest.mark.parametrize(
    "victim, attempts",
    [("training process", {2}), ("node-1", {2}), ("central", {1}), ("broker", {1, 2})],
)
async def test_a_job_outlives_a_kill_and_is_paid_once(client, network, standing, victim, attempts):
    standing.after(epoch=3)
    submitted = await client.submit(jobfile.load(EXAMPLES / "digits.toml"))
    await until(client, submitted.job_id, "epoch", count=3)
    os.kill(process_of(network, victim), signal.SIGKILL)
    standing.go_on()
    view = await client.wait(submitted.job_id)
    assert view.status == "completed", view.error
    assert view.attempt in attempts
    await assert_paid_once(client, network, submitted.job_id)


def lives(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


async def test_no_process_is_left_behind(tmp_path):
    async with LocalNetwork(tmp_path / "net", nodes=2) as network:
        pids = list(network.process_ids.values())
        family = [p for pid in pids for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]]
        assert len(family) > len(pids)  # the warm training processes
    assert [process for process in family if lives(process)] == []
    assert not Path(tmp_path / "net" / "network.json").exists()
