"""A sealed job at its node: it trains what its client sealed with the data, and nothing that was put in its place."""

import asyncio
import contextlib
import errno
import hashlib
import threading

import pytest
from msgspec.structs import replace

from cyxcore.spec import ModelSpec, TrainingSpec
from cyxnet import envelope
from cyxnet.envelope import About, SealError
from cyxnet.identity import Identity
from cyxnet.messages import ArtifactRef, Assign, JobRequest, Needs
from cyxnode.runs import SEALED_FAILURE, opened_for, to_its_end
from tests.node.fake_central import make_assign

CLIENT, NODE = Identity(b"client".ljust(32)), Identity(b"node".ljust(32))
ROWS = b"a,label\n1,0\n2,1\n"
PLAIN = JobRequest(
    name="secret",
    model=ModelSpec(input=[1], layers=[{"kind": "Linear", "out_features": 2}]),
    dataset=ArtifactRef(sha256=hashlib.sha256(ROWS).hexdigest(), size=len(ROWS)),
    amount_base_units=1,
    needs=Needs(node_id="node-a-0123456789"),
    sealed=True,
)


OTHER = replace(PLAIN, model=ModelSpec(input=[1], layers=[{"kind": "Linear", "out_features": 3}]))


@pytest.fixture
def common():
    """What the files of one job have in common."""
    return envelope.new_envelope(CLIENT, envelope.node_key(NODE))


def opening(folder, common, job=PLAIN, said=PLAIN, state=None, job_id="job-1"):
    """What the node makes of a job that it is given, where its client said another one (or the same) with the data."""
    (folder / "rows").write_bytes(ROWS)
    (folder / "work").mkdir(exist_ok=True)
    envelope.seal(folder / "rows", folder / "sealed", common, "data", About(job=said, job_id=job_id))
    job = replace(job, dataset=ArtifactRef(sha256="e" * 64, size=(folder / "sealed").stat().st_size))
    assign = Assign(job_id="job-1", attempt=1, session="0" * 32, job=job, lease_ms=1000)
    return opened_for(assign, folder / "sealed", state, folder / "work", envelope.as_node(NODE))


def state_of(folder, common, job_id):
    (folder / "state").write_bytes(b"weights")
    envelope.seal(folder / "state", folder / "sealed-state", common, "state", About(job_id=job_id))
    return folder / "sealed-state"


def test_the_job_is_trained_as_its_client_sealed_it(tmp_path, common):
    job, data_path, resume_path, seal = opening(tmp_path, common)
    assert (job, data_path.read_bytes(), resume_path, seal) == (PLAIN, ROWS, None, common)
    assert data_path.parent == tmp_path / "work"  # goes with the process
    job, _, resume_path, _ = opening(tmp_path, common, state=state_of(tmp_path, common, "job-1"))
    assert resume_path.read_bytes() == b"weights"


@pytest.mark.parametrize(
    "changed",
    [
        {"model": OTHER.model},
        {"training": TrainingSpec(epochs=77)},
        {"facts": None, "data": replace(PLAIN.data, target="another")},
        {"sealed": False},
    ],
)
def test_another_job_over_the_same_data_is_refused(tmp_path, common, changed):
    """Central could have a stranger's data trained into a model that tells it."""
    with pytest.raises(SealError, match="not the one that its client sealed"):
        opening(tmp_path, common, job=replace(PLAIN, **changed))


def test_what_decides_nothing_about_the_data_may_differ(tmp_path, common):
    assert opening(tmp_path, common, job=replace(PLAIN, priority=9, max_attempts=1))[0] == PLAIN


@pytest.mark.parametrize("job_id", ["job-2", ""])
def test_data_that_was_sealed_for_another_job_is_refused(tmp_path, common, job_id):
    """Of two jobs of one client that differ in their data only, central could give each the data of the other."""
    with pytest.raises(SealError, match="job-1: the data is that of"):
        opening(tmp_path, common, job_id=job_id)


def test_data_that_is_not_what_it_is_called_is_refused(tmp_path, common):
    wrong = replace(PLAIN, dataset=ArtifactRef(sha256="0" * 64, size=len(ROWS)))
    with pytest.raises(SealError, match="not the one"):
        opening(tmp_path, common, said=wrong)


def test_a_state_of_another_job_or_maker_is_refused(tmp_path, common):
    with pytest.raises(SealError, match="is that of job-2"):
        opening(tmp_path, common, state=state_of(tmp_path, common, "job-2"))
    other = envelope.new_envelope(Identity(b"central".ljust(32)), envelope.node_key(NODE))
    with pytest.raises(SealError, match="another job"):
        opening(tmp_path, common, state=state_of(tmp_path, other, "job-1"))


@pytest.mark.parametrize(("behaviour", "code"), [("refuse", "bad_data"), ("die", "process_died")])
async def test_what_a_failure_says_of_sealed_data_stays_on_the_node(
    central, start_node, tmp_path, caplog, behaviour, code
):
    """A data error quotes the cell that it is about, and last words of a process may quote anything."""
    await take_a_sealed_job(central, await start_node(behaviour), tmp_path)
    failed = await central.wait_for("failed")
    assert (failed.code, failed.message, failed.deterministic) == (code, SEALED_FAILURE, behaviour == "refuse")
    quoted = {"refuse": "got 'x'", "die": "out of ideas"}[behaviour]
    assert any(quoted in record.getMessage() for record in caplog.records)


async def test_a_full_disk_of_the_node_does_not_end_a_sealed_job_for_good(central, start_node, tmp_path, monkeypatch):
    node = await start_node("train")

    @contextlib.contextmanager
    def full(target):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    await take_a_sealed_job(central, node, tmp_path, lambda: monkeypatch.setattr(envelope, "_draft", full))
    failed = await central.wait_for("failed")
    assert (failed.code, failed.deterministic) == ("disk_error", False)


async def take_a_sealed_job(central, node, tmp_path, before=lambda: None):
    """before: done when it is sealed, and not sent yet."""
    register = await central.wait_for("register")
    await asyncio.wait_for(node.ready.wait(), 60)
    (tmp_path / "rows").write_bytes(ROWS)
    plain = ArtifactRef(sha256=hashlib.sha256(ROWS).hexdigest(), size=len(ROWS))
    said = make_assign(register, plain, sealed=True).job
    envelope.seal(
        tmp_path / "rows",
        tmp_path / "sealed",
        envelope.new_envelope(CLIENT, envelope.node_key(node.home.key)),
        "data",
        About(job=said, job_id="job-1"),
    )
    dataset = central.store.add((tmp_path / "sealed").read_bytes())
    before()
    assert (await central.command(register.node_id, make_assign(register, dataset, sealed=True))).accepted


async def test_a_run_that_is_ended_waits_for_what_writes_into_its_folder():
    began, may_end, ended = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def write():
        loop.call_soon_threadsafe(began.set)
        may_end.wait(10)
        ended.append(True)

    task = asyncio.create_task(to_its_end(write))
    await began.wait()
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
