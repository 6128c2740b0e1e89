"""Training processes as the agent sees them: what they say, how they die, what they may touch."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from cyxcore.spec import DataSpec, ModelSpec, TrainingSpec
from cyxnode.errors import NodeError
from cyxnode.pipe import Batch, Done, Epoch, Failed, Go, Halt, Halted, Order, Prepared, Said
from cyxnode.process import Launch, Pool, TrainingProcess, describe_end
from cyxnode.sandbox import works_in_a_copy

STANDIN = str(Path(__file__).with_name("standin.py"))
ORDER = Order(
    model=ModelSpec(input=[2], layers=[]),
    data=DataSpec(),
    training=TrainingSpec(),
    data_path="data",
    out_path="model",
    threads=1,
    memory_bytes=0,
    file_bytes=1_000_000,
)
Starter = Callable[..., Any]


def launch(folder: Path, behaviour: str, **options: Any) -> Launch:
    return Launch(work_folder=folder, command=(sys.executable, "-P", STANDIN, behaviour), **options)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Starter]:
    """start(behaviour) gives a warm process; every one is closed at the end."""
    started: list[TrainingProcess] = []

    async def begin(behaviour: str, **options: Any) -> TrainingProcess:
        process = await TrainingProcess.start(launch(tmp_path / "work", behaviour, **options))
        started.append(process)
        await process.wait_ready()
        return process

    yield begin
    for process in started:
        await process.close()


async def all_said(process: TrainingProcess, order: Order = ORDER) -> list[Said]:
    process.tell(order)
    process.tell(Go())
    return [said async for said in process.said()]


async def end_of(process: TrainingProcess, order: Order = ORDER) -> Failed:
    last = (await all_said(process, order))[-1]
    assert isinstance(last, Failed)
    return last


async def test_batches_epochs_and_the_end_arrive_in_order(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"rows")
    order = replace(ORDER, data_path=str(tmp_path / "data"))
    assert [type(said) for said in await all_said(await start("learn"), order)] == [*(Prepared, Batch, Epoch, Done)]


async def test_a_prepared_process_waits_for_the_word_and_ends_when_it_is_halt(start: Starter) -> None:
    process = await start("learn")
    process.tell(ORDER)
    saying = process.said()
    assert isinstance(await anext(saying), Prepared)
    process.tell(Halt())
    assert await anext(saying) == Halted(step=0, steps=9)
    assert await process.wait_end() == 0


async def test_a_process_killed_from_outside_is_known_dead_though_it_says_nothing(start: Starter) -> None:
    process = await start("hang")
    saying = process.said()
    process.tell(ORDER)
    process.tell(Go())
    assert [type(await anext(saying)) for _ in range(2)] == [Prepared, Batch]
    os.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        end = await anext(saying)
    assert isinstance(end, Failed)
    assert (end.code, end.deterministic) == ("process_died", False)
    assert "SIGKILL" in end.message


async def test_the_last_words_of_a_dead_process_are_in_the_report(start: Starter) -> None:
    assert "out of ideas" in (await end_of(await start("die"))).message


async def test_a_bug_in_training_is_reported_with_its_exit_status_and_traceback(start: Starter) -> None:
    end = await end_of(await start("crash"))
    assert end.code == "process_died"
    assert "exit status 1" in end.message and "RuntimeError: a bug of ours" in end.message


async def test_a_full_disk_of_the_node_is_said_in_one_line(start: Starter) -> None:
    # it was the end of a traceback
    end = await end_of(await start("find_no_room"))
    assert (end.code, end.deterministic) == ("disk_error", False)
    assert end.message == "the node's disk: No space left on device; its operator should free some space on it"


async def test_bad_data_is_a_deterministic_failure_with_its_own_code(start: Starter) -> None:
    end = await end_of(await start("refuse"))
    assert (end.code, end.deterministic) == ("bad_data", True)
    assert "column label, row 3" in end.message


async def test_memory_beyond_the_limit_is_out_of_memory_and_may_succeed_elsewhere(start: Starter) -> None:
    end = await end_of(await start("eat"), replace(ORDER, memory_bytes=50_000_000))
    assert (end.code, end.deterministic) == ("out_of_memory", False)


async def test_a_file_beyond_the_limit_ends_the_process(start: Starter) -> None:
    end = await end_of(await start("write_much"))
    assert end.code == "process_died" and "File too large" in end.message


async def test_what_is_no_message_on_the_pipe_is_refused_and_the_process_ended(start: Starter) -> None:
    process = await start("garble")
    end = await end_of(process)
    assert end.code == "process_garbled"
    await process.close()
    assert not process.alive


async def test_what_a_library_prints_does_not_disturb_the_messages(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"rows")
    order = replace(ORDER, data_path=str(tmp_path / "data"))
    assert isinstance((await all_said(await start("chatter"), order))[-1], Done)


async def test_a_closed_process_leaves_no_process_and_no_folder(start: Starter) -> None:
    process = await start("hang")
    await process.close()
    assert not psutil.pid_exists(process.pid) and not process.folder.exists()


async def test_secrets_of_the_agents_environment_are_not_handed_on(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_TOKEN", "secret")
    names = (await end_of(await start("tell_environment"))).message.split()
    assert "PATH" in names and "CLOUD_TOKEN" not in names


async def test_an_isolated_process_reaches_no_network(start: Starter) -> None:
    process = await start("call_out")
    if not process.ready.isolated:
        pytest.skip("this kernel gives no network namespace to an ordinary process")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert (await end_of(process, replace(ORDER, data_path=str(port)))).code == "no_network"


def test_what_the_kernel_may_refuse_is_tried_in_a_copy_of_the_process_first() -> None:
    assert works_in_a_copy(lambda: None)
    assert not works_in_a_copy(lambda: Path("/proc/self/no-such-file").write_text("deny"))


async def test_niceness_reaches_the_training_process(start: Starter) -> None:
    assert psutil.Process((await start("hang", niceness=7)).pid).nice() == os.nice(0) + 7


async def test_a_process_that_cannot_train_says_so_instead_of_ready(start: Starter) -> None:
    with pytest.raises(NodeError, match="a training process does not work on this node: the kernels are not built"):
        await start("never_ready")


async def test_a_command_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="cannot start /no/python"):
        await TrainingProcess.start(Launch(work_folder=tmp_path, command=("/no/python",)))


async def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match=r"cannot make .*; the disk may be full"):
        await TrainingProcess.start(Launch(work_folder=tmp_path / "file", command=("true",)))


async def test_the_pool_gives_each_taker_a_process_of_its_own(tmp_path: Path) -> None:
    pool = Pool(launch(tmp_path, "hang"))
    first, second = await pool.take(), await pool.take()
    try:
        assert first.pid != second.pid
    finally:
        await asyncio.gather(first.close(), second.close(), pool.close())


async def test_two_who_wait_for_a_process_at_once_get_one_each(tmp_path: Path) -> None:
    pool = Pool(launch(tmp_path, "hang"))
    first, second = await asyncio.gather(pool.take(), pool.take())
    try:
        assert first.pid != second.pid
    finally:
        await asyncio.gather(first.close(), second.close(), pool.close())


async def test_a_taker_who_gives_up_leaves_the_process_to_the_next(tmp_path: Path) -> None:
    pool = Pool(launch(tmp_path, "hang"))
    giving_up = asyncio.create_task(pool.take())
    await asyncio.sleep(0)  # now it waits
    giving_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giving_up
    warm = await pool.wait_warm()
    process = await pool.take()
    try:
        assert process is warm
    finally:
        await asyncio.gather(process.close(), pool.close())


async def test_the_pool_keeps_a_second_one_warm_which_needs_no_wait_when_the_first_is_killed(tmp_path: Path) -> None:
    pool = Pool(launch(tmp_path, "hang"))
    await pool.wait_warm()
    pool.keep_full()
    pool.fill_up()
    pool.fill_up()  # one at a time, and no more than there shall be
    killed = await pool.take()
    spare = await pool.wait_warm()
    killed.kill()
    process = await pool.take()
    try:
        assert process is spare and process.alive
    finally:
        await asyncio.gather(killed.close(), process.close(), pool.close())
    assert standins() == []


async def test_takers_who_give_up_leave_no_more_than_are_kept(tmp_path: Path) -> None:
    # each had begun one, and all of them stayed
    pool = Pool(launch(tmp_path, "hang"))
    takers = [asyncio.create_task(pool.take()) for _ in range(4)]
    await asyncio.sleep(0)
    pool.keep_full()
    for taker in takers:
        taker.cancel()
    await asyncio.gather(*takers, return_exceptions=True)
    assert len(pool._spares) == 2
    await asyncio.gather(*pool._ending)
    await asyncio.gather(*pool._spares)
    assert len(standins()) == 2
    await pool.close()
    assert standins() == []


def standins() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "standin.py" in " ".join(child.cmdline())]


async def test_one_is_kept_while_the_machine_is_measured_however_many_jobs_end(tmp_path: Path) -> None:
    pool = Pool(launch(tmp_path, "hang"))
    await pool.wait_warm()
    pool.fill_up()  # as at the end of a job
    assert len(pool._spares) == 1
    await pool.close()


async def timers_without_delay() -> None:
    for _ in range(10):  # turns of the loop; they are over after two or three
        await asyncio.sleep(0)


async def test_the_pool_forks_for_a_second_one_only_when_it_shall_be_kept_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it did a second after the first, while a thread measured the machine by BLAS: one node in twelve never started
    monkeypatch.setattr("cyxnode.process.REFILL_DELAY_S", 0.0)
    pool = Pool(launch(tmp_path, "hang"))
    try:
        first = await pool.wait_warm()
        await timers_without_delay()
        assert len(pool._spares) == 1
        pool.keep_full()
        await timers_without_delay()
        assert (await pool._spares[1]).pid != first.pid
    finally:
        await pool.close()


async def test_the_pool_does_not_hand_out_a_process_that_died_while_it_waited(tmp_path: Path) -> None:
    pool = Pool(launch(tmp_path, "hang"))
    dead = await pool.wait_warm()
    os.kill(dead.pid, signal.SIGKILL)
    await dead.wait_end()
    process = await pool.take()
    try:
        assert process.pid != dead.pid and psutil.pid_exists(process.pid)
    finally:
        await asyncio.gather(process.close(), pool.close())


async def test_a_closed_pool_leaves_no_process(tmp_path: Path) -> None:
    pool = Pool(launch(tmp_path, "hang"))
    pool.warm_up()
    await pool.close()
    assert standins() == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [(-9, "was killed by SIGKILL"), (-11, "was killed by SIGSEGV"), (-99, "signal 99"), (3, "exit status 3")],
)
def test_the_end_of_a_process_is_told_in_words(status: int, expected: str) -> None:
    assert expected in describe_end(status, [])
