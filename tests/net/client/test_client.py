"""The client before a fake central, on a real broker: it follows without gap or duplicate, blocking or not."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import cyxnet
from cyxcore import nn
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.broker import Broker, Passwords
from cyxnet.bus import ApiError, Bus, BusError, NotAdmitted
from cyxnet.caller import Caller, retry_pause_s
from cyxnet.client import AsyncClient, NoModel
from cyxnet.codec import decode
from cyxnet.config import ConfigError
from cyxnet.follow import Merge
from cyxnet.outbox import KeptForLater
from tests.doorkeeper import CENTRAL, opened
from tests.net.client.requests import JOB, busy, collect, places, request_for
from tests.net.fake_api import FakeCentral

# -- following ------------------------------------------------------------------------------------------


@pytest.fixture
def looks_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no live message told is looked for in the log at once."""
    monkeypatch.setattr("cyxnet.client.QUIET_S", (0.05,))


async def test_a_job_that_has_ended_is_told_from_its_first_event(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"})
    await central.emit(JOB, "epoch", {"epoch": 1}, "telemetry")
    await central.end(JOB)
    assert [update.kind for update in await collect(client)] == ["Funded", "epoch", "Settled"]


async def test_pages_are_read_until_there_are_no_more(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    central.page_limit = 7
    for number in range(30):
        await central.emit(JOB, "batch", {"step": number}, "telemetry")
    last = await central.end(JOB)
    told = await collect(client)
    assert [update.data.get("step") for update in told[:-1]] == list(range(30))
    assert told[-1] == last


async def test_what_happens_live_while_a_page_is_read_is_told_once(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"}, live=False)

    async def race(job_id: str) -> None:
        """Before the first page leaves: its own update comes live too, and newer ones that it does not hold."""
        central.before_page = None
        await central.publish(central.updates[job_id][0])
        for number in range(5):
            await central.emit(job_id, "batch", {"step": number}, "telemetry")
        await central.end(job_id)

    central.before_page = race
    told = await collect(client)
    assert sorted(places(told)) == sorted(places(central.updates[JOB]))
    assert [update.kind for update in told] == ["Funded", *["batch"] * 5, "Settled"]


async def test_an_update_whose_live_message_was_lost_is_told_late_and_once(
    central: FakeCentral, client: AsyncClient
) -> None:
    central.add_job(JOB)
    watching = client.watch(JOB)
    first = asyncio.ensure_future(anext(watching))
    while not central.asked["job.updates"]:
        await asyncio.sleep(0)
    await central.emit(JOB, "batch", {"step": 1}, "telemetry")
    told = [await first]
    await central.emit(JOB, "batch", {"step": 2}, "telemetry", live=False)
    await central.emit(JOB, "batch", {"step": 3}, "telemetry")
    await central.end(JOB)
    async with asyncio.timeout(60):
        told += [update async for update in watching]
    assert sorted(places(told)) == sorted(places(central.updates[JOB]))
    assert [update.data.get("step") for update in told] == [1, 3, None, 2]


@pytest.mark.usefixtures("looks_soon")
async def test_live_updates_that_nobody_reads_fill_no_memory(
    central: FakeCentral, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cyxnet.client.MOST_LIVE", 3)
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"})
    watching = client.watch(JOB)
    assert (await anext(watching)).kind == "Funded"
    for step in range(10):
        only_live = m.Update(job_id=JOB, source="telemetry", seq=100 + step, at_ms=0, kind="batch", data={"step": step})
        await central.publish(only_live)  # so what is passed over does not come with a page either
    await central.bus.round_trip()
    await client.bus.round_trip()
    await central.end(JOB, live=False)
    async with asyncio.timeout(60):
        told = [update async for update in watching]
    assert [update.data.get("step") for update in told if update.kind == "batch"] == [0, 1, 2]
    assert told[-1].kind == "Settled"


@pytest.mark.usefixtures("looks_soon")
async def test_an_end_whose_live_message_was_lost_is_found_after_silence(
    central: FakeCentral, client: AsyncClient
) -> None:
    central.add_job(JOB)
    watching = client.watch(JOB)
    first = asyncio.ensure_future(anext(watching))
    while not central.asked["job.updates"]:
        await asyncio.sleep(0)
    await central.end(JOB, live=False)
    async with asyncio.timeout(60):
        assert (await first).kind == "Settled"
        assert [update async for update in watching] == []


async def test_a_status_that_runs_ahead_of_the_log_loses_nothing(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"}, live=False)
    central.status[JOB] = "completed"

    async def settle_late(job_id: str) -> None:
        central.before_page = None
        await central.end(job_id, live=False)

    central.before_page = settle_late
    assert [update.kind for update in await collect(client)] == ["Funded", "Settled"]


@pytest.mark.usefixtures("looks_soon")
async def test_watching_goes_on_after_the_broker_was_restarted(tmp_path: Path) -> None:
    passwords = Passwords.fresh(CENTRAL)
    first = Broker.start(tmp_path / "broker", passwords)
    system, _ = await opened(first.url("client"))
    core = await Bus.connect(first.url("edge"), name="fake-central")
    central = FakeCentral(core)
    await central.serve()
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"})
    try:
        async with await AsyncClient.connect(tmp_path, url=first.url("client")) as client:
            client.retry_delays_s = (0.2,) * 50
            watching = client.watch(JOB)
            assert (await anext(watching)).kind == "Funded"
            rest = asyncio.ensure_future(anext(watching))
            await asyncio.to_thread(first.stop)
            await central.emit(JOB, "epoch", {"epoch": 1}, "telemetry", live=False)  # said to nobody
            first = await asyncio.to_thread(Broker.start, tmp_path / "broker", passwords, first.port)
            async with asyncio.timeout(60):
                assert (await rest).kind == "epoch"
                await central.end(JOB, live=False)
                assert [update.kind async for update in watching] == ["Settled"]
    finally:
        await core.close()
        await system.close()
        first.process.kill()  # it would wait for the answer about a client that came before the door stood open again
        first.stop()


async def test_a_prefix_is_watched_as_the_job_it_stands_for(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.end(JOB)
    assert [update.job_id for update in await collect(client, "digits-01")] == [JOB]


async def test_watching_an_unknown_job_is_refused(central: FakeCentral, client: AsyncClient) -> None:
    with pytest.raises(ApiError) as caught:
        await collect(client, "nothing")
    assert caught.value.code == "unknown_job"


async def test_a_cancel_that_meets_an_update_is_not_lost(
    central: FakeCentral, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "s"})
    told = asyncio.Event()

    async def follow() -> None:
        async for _ in client.watch(JOB):
            told.set()

    watching = asyncio.create_task(follow())
    await told.wait()
    told.clear()
    await central.emit(JOB, "Leased", {"attempt": 1})
    await told.wait()  # told live: it waits for the next one now

    def decode_and_cancel(*arguments: Any, **more: Any) -> Any:
        asyncio.get_running_loop().call_soon(watching.cancel)  # right behind the update that this returns
        return decode(*arguments, **more)

    monkeypatch.setattr("cyxnet.client.decode", decode_and_cancel)
    await central.emit(JOB, "Started", {"attempt": 1})
    await asyncio.wait({watching}, timeout=60)
    assert watching.cancelled()


async def test_a_cancel_that_a_request_has_dropped_is_raised(client: AsyncClient) -> None:
    asked = asyncio.Event()

    async def deaf() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            asked.set()
            await asyncio.Event().wait()
        return "an answer"

    asking = asyncio.create_task(client._persist(deaf))
    await asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_wait_returns_the_job_as_it_ended(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.end(JOB, "failed")
    assert (await client.wait(JOB)).status == "failed"


async def test_wait_asks_again_when_a_central_answers_that_lags_behind(central, client, monkeypatch) -> None:
    # one central told the end, another, which was stopped for a moment, still said leased
    central.add_job(JOB)
    await central.end(JOB, "completed")
    answer, asked = client.job, []

    async def job(job_id: str) -> m.JobView:
        view = await answer(job_id)
        asked.append(view.status)
        return replace(view, status="leased") if len(asked) == 2 else view

    monkeypatch.setattr(client, "job", job)
    assert (await client.wait(JOB)).status == "completed"


@given(st.lists(st.tuples(st.sampled_from(["event", "telemetry"]), st.booleans(), st.booleans()), max_size=40))
def test_any_mix_of_live_and_pages_tells_each_update_once(steps: list[tuple[str, bool, bool]]) -> None:
    """steps: an update of a source, whether its live message arrives, whether a page is read afterwards."""
    merge, log, told = Merge(), [], []
    for seq, (source, live, page) in enumerate(steps, 1):
        update = m.Update(job_id=JOB, source=source, seq=seq, at_ms=0, kind="x", data={})  # type: ignore[arg-type]
        log.append(update)
        if live and merge.live(update):
            told.append(update)
        if page:
            told += merge.page([u for u in log if u.seq > merge.confirmed[u.source]])
    told += merge.page([u for u in log if u.seq > merge.confirmed[u.source]])
    assert sorted(places(told)) == sorted(places(log))


async def test_a_model_is_downloaded_whole(central: FakeCentral, client: AsyncClient, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    central.add_job(JOB)
    view = central.view(JOB)
    view.model = central.store(content)
    central.views[JOB] = view
    await client.download(JOB, str(tmp_path / "model.bin"))
    assert (tmp_path / "model.bin").read_bytes() == content


async def test_a_job_without_a_model_says_why(central: FakeCentral, client: AsyncClient, tmp_path: Path) -> None:
    central.add_job(JOB)
    with pytest.raises(NoModel, match=f"{JOB} is queued and has no model; wait"):
        await client.download(JOB, tmp_path / "model.bin")
    central.views[JOB], central.status[JOB] = replace(central.view(JOB), error="out of memory"), "leased"
    again = rf"{JOB} is leased and has no model; wait for its end \(an attempt before: out of memory\)"
    for ask in (client.download(JOB, tmp_path / "model.bin"), client.deployments.source(JOB)):
        with pytest.raises(CyxError, match=again):
            await ask
    central.status[JOB] = "failed"
    with pytest.raises(NoModel, match=f"{JOB} is failed and has no model: out of memory"):
        await client.download(JOB, tmp_path / "model.bin")


# -- the world fails ------------------------------------------------------------------------------------


async def test_when_nobody_serves_the_error_says_so_after_every_try(client: AsyncClient) -> None:
    with pytest.raises(BusError, match="nobody serves"):
        await client.info()


async def test_what_nobody_answers_is_asked_again_after_1_2_4_8_and_16_s(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_s: list[float] = []

    async def pause(seconds: float) -> None:
        pauses_s.append(seconds)

    monkeypatch.setattr(client.bus, "pause", pause)
    with pytest.raises(BusError, match="nobody serves"):
        await Caller(client.bus, client.keys, client.caller).info()
    assert pauses_s == [0.1, 1, 2, 4, 8, 16]  # the first for who has just missed a central that comes up


async def test_each_long_pause_before_another_try_is_told(client: AsyncClient) -> None:
    told: list[float] = []
    client.retry_delays_s = (0.0, 1.0)
    client.on_retry = lambda why, pause_s: told.append(pause_s)
    with pytest.raises(BusError):
        await client.info()
    assert told == [1.0]


async def test_a_folder_without_a_network_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cyx up"):
        await AsyncClient.connect(tmp_path / "empty")


async def test_a_broker_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="no Cyx broker answers at 127.0.0.1:9"):
        await AsyncClient.connect(tmp_path, url="nats://client:secret@127.0.0.1:9")


@pytest.mark.parametrize(
    ("error", "pause_s"),
    [
        (BusError("no answer"), 2.0),
        (NotAdmitted("banned"), None),
        (ApiError("busy", "later", 429, retry_after_ms=5000), 5.0),
        (ApiError("append_unknown", "?", 503), 2.0),
        (ApiError("unknown_job", "no", 404), None),
        (ValueError(), None),
    ],
)
def test_only_silence_and_busyness_are_tried_again(error: Exception, pause_s: float | None) -> None:
    assert retry_pause_s(error, 2.0) == pause_s


def test_a_price_that_expired_is_sent_twice_more_and_not_for_half_a_minute():
    expired = ApiError("price_expired", "the price expired 9 s ago", 503)
    assert [retry_pause_s(expired, delay_s) for delay_s in (0.1, 1.0, 2.0, 4.0)] == [0.1, 1.0, None, None]


@pytest.mark.parametrize(
    ("name", "slug"), [("Digits: a test!", "digits-a-test"), ("日本", "job"), ("x" * 90, "x" * 40), ("--", "job")]
)
def test_a_job_id_is_the_name_and_ten_random_digits(name: str, slug: str) -> None:
    job_id = subjects.new_job_id(name)
    assert job_id.startswith(f"{slug}-") and len(job_id) == len(slug) + 11 and job_id != subjects.new_job_id(name)


# -- without async --------------------------------------------------------------------------------------


async def test_the_blocking_client_submits_and_follows(
    paying: FakeCentral, client: AsyncClient, broker: Broker, tmp_path: Path, data_path: Path
) -> None:
    def work() -> tuple[str, list[str], str]:
        with cyxnet.Client(tmp_path, url=broker.url("client")) as blocking:  # the same folder: the same wallet
            job = blocking.submit(request_for(data_path), data_path)
            future = asyncio.run_coroutine_threadsafe(paying.end(job.id), loop)
            future.result()
            return job.id, [update.kind for update in job.watch()], job.wait().status

    loop = asyncio.get_running_loop()
    job_id, kinds, status = await asyncio.to_thread(work)
    assert (job_id in paying.submitted, kinds, status) == (True, ["Settled"], "completed")


async def test_the_blocking_client_submits_a_module_with_arrays(
    paying: FakeCentral, client: AsyncClient, broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "data.csv").write_text("a,label\n1,0\n2,1\n3,0\n4,1\n")
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\namount = "1"\ndata = { path = "data.csv" }\n'
        'model = { layers = [{ kind = "Linear", out_features = 2 }] }\n'
    )

    def work() -> tuple[str, str]:
        with cyxnet.Client(tmp_path, url=broker.url("client")) as blocking:
            with pytest.warns(UserWarning, match="module: batch_size 32 is more than the 4 rows"):
                job = blocking.submit(nn.Linear(1, 2), ([[1.0], [2.0], [3.0], [4.0]], [0, 1, 0, 1]), "1")
            with pytest.warns(UserWarning, match="tiny: batch_size 32 is more than"):
                blocking.submit(tmp_path / "tiny.toml")
            with pytest.raises(TypeError, match="arrays go with a module"):
                blocking.submit(request_for(tmp_path / "client.key"), ([[1.0]], [0]))
            with pytest.raises(TypeError, match="expected the path of a job file, .* got int"):
                blocking.submit(3)
            with pytest.raises(TypeError, match="data goes with a module or a JobRequest; a job file names its own"):
                blocking.submit(tmp_path / "tiny.toml", tmp_path / "data.csv")
            with pytest.raises(TypeError, match="keep goes with a job file"):
                blocking.submit(nn.Linear(1, 2), ([[1.0]], [0]), "1", keep=True)
            paying.before_submit, blocking._client.retry_delays_s = busy, (0.01,)
            with pytest.raises(KeptForLater), pytest.warns(UserWarning, match="tiny: batch_size"):
                blocking.submit(tmp_path / "tiny.toml", keep=True)
            paying.before_submit = None
            [kept] = blocking.kept()
            blocking.forget_kept(replace(kept, job_id="another-0123456789"))
            assert blocking.send_kept(kept).id == kept.job_id and blocking.kept() == []
            shown = repr(blocking)
        return job.id, f"{shown} {blocking!r}"

    job_id, shown = await asyncio.to_thread(work)
    assert paying.submitted[job_id].job.data.target == "y"
    assert shown == f"Client({client.caller!r}) Client({client.caller!r}, closed)"


@pytest.fixture
def packed_job(tmp_path: Path) -> Path:
    """A job file whose data is packed to be sent."""
    np.save(tmp_path / "x.npy", np.arange(8, dtype=np.float32).reshape(4, 2))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0, 1]))
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\namount = "1"\ndata = { path = "x.npy", target_path = "y.npy" }\n'
        'training = { batch_size = 2 }\nmodel = { layers = [{ kind = "Linear", out_features = 2 }] }\n'
    )
    return tmp_path / "tiny.toml"


async def test_data_that_was_packed_for_a_job_file_lies_in_the_folder_as_long_as_the_job_waits(
    paying: FakeCentral, broker: Broker, tmp_path: Path, packed_job: Path
) -> None:
    packed = tmp_path / "packed"

    def work() -> None:
        with cyxnet.Client(tmp_path, url=broker.url("client")) as blocking:
            blocking.submit(packed_job)
            assert list(packed.iterdir()) == []
            paying.before_submit, blocking._client.retry_delays_s = busy, ()
            with pytest.raises(KeptForLater):
                blocking.submit(packed_job, keep=True)
            [kept] = blocking.kept()
            assert Path(kept.data_path).is_relative_to(packed) and Path(kept.data_path).is_file()
            paying.before_submit = None
            blocking.send_kept(kept)
            assert list(packed.iterdir()) == []

    await asyncio.to_thread(work)


async def test_ctrl_c_before_a_submit_is_answered_leaves_the_job_in_the_outbox_with_its_data(
    paying: FakeCentral, broker: Broker, tmp_path: Path, packed_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, offered = asyncio.run_coroutine_threadsafe, threading.Event()
    paying.before_submit, paying.answers_lost["job.submit"] = lambda ask: offered.set(), 1

    def interrupted(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
        def result() -> None:
            offered.wait()
            raise KeyboardInterrupt

        future: Any = begin(work, loop)
        future.result = result
        return future

    def work() -> None:
        with cyxnet.Client(tmp_path, url=broker.url("client")) as blocking:
            blocking._client.retry_delays_s = (60.0,)
            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
                blocking.submit(packed_job, keep=True)
            [kept] = blocking.kept()
            assert Path(kept.data_path).is_file()
            assert blocking.submit(packed_job, keep=True).id == kept.job_id
            assert [*paying.submitted] == [kept.job_id] and list((tmp_path / "packed").iterdir()) == []

    await asyncio.to_thread(work)


def test_a_blocking_client_without_a_network_leaves_no_thread(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        cyxnet.Client(tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name == "cyx-client"]
