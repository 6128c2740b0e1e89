"""What the `cyx` command shows of a job: lines, a live screen, JSON; progress, sizes and times in words."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Literal, cast

import msgspec
import pytest
from msgspec.structs import replace

from cyxcore.wording import human_bytes, human_duration, sparkline
from cyxnet.bus import BusError
from cyxnet.cli import jobs
from cyxnet.cli.screen import JsonScreen, LiveScreen, PlainScreen, clean, open_screen
from cyxnet.client import AsyncClient
from cyxnet.display import Tally, human_age, node_names, tell
from cyxnet.messages import ArtifactRef, Checkpoint, ExplainReply, JobView, Update
from tests.net.recorded import JOB, SIGNATURE, TRAIN_SCREEN, updates

# -- what a person reads --------------------------------------------------------------------------------


def test_a_refund_by_somebody_is_told_in_words() -> None:
    out = io.StringIO()
    data = {"signature": SIGNATURE, "client_base_units": 2_500_000_000}
    PlainScreen(out).update(Update(job_id=JOB, source="event", seq=1, at_ms=1, kind="Refunded", data=data))
    said = "the escrow was refunded after its deadline: 2.5 CYX back to the client, nobody was paid"
    assert out.getvalue() == f"refunded  {said}; {SIGNATURE}\n"


def test_a_job_in_a_pipe_is_one_plain_line_for_each_thing_that_happened() -> None:
    out = io.StringIO()
    screen = PlainScreen(out)
    for update in updates():
        screen.update(update)
    assert out.getvalue() == TRAIN_SCREEN


def test_the_first_step_is_not_told_behind_an_epoch_that_was_faster() -> None:
    shown = updates()
    started = next(number for number, update in enumerate(shown) if update.kind == "Started")
    shown.insert(next(n for n, u in enumerate(shown) if u.kind == "epoch") + 1, shown.pop(started))
    out = io.StringIO()
    screen = PlainScreen(out)
    for update in shown:
        screen.update(update)
    assert out.getvalue() == TRAIN_SCREEN.replace("training  attempt 2 made its first step\n", "")


class Queued:
    """A client whose job waits for a node, and then for its first step, until its reasons are used up."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons, self.asked = reasons, 0
        self._told = asyncio.Event()

    async def explain(self, job_id: str) -> ExplainReply:
        self.asked += 1
        if self.asked == 2:
            raise BusError("no answer")
        reason = self.reasons.pop(0) if self.reasons else None
        if reason is None:
            self._told.set()
        status: Literal["queued", "leased"] = "queued" if reason and "free" in reason else "leased"
        return ExplainReply(job_id=job_id, status=status, decisions=[], waiting_for=reason)

    async def watch(self, job_id: str) -> AsyncIterator[Update]:
        funded, leased, _, _, started, *_ = updates()
        yield funded
        yield leased
        await self._told.wait()
        yield started
        asked = self.asked
        for _ in range(100):  # time enough to be asked again
            await asyncio.sleep(0)
        assert self.asked == asked


async def test_who_follows_a_job_that_waits_is_told_why_each_reason_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "WAIT_TOLD_S", 0.0)
    out = io.StringIO()
    busy, begins = "a free node (node-1: busy with 1 of 1 runs)", "node node-1-aa to fetch the data"
    client = cast(AsyncClient, Queued([busy, begins, begins, busy]))
    followed = [update.kind async for update in jobs.watched(client, JOB, PlainScreen(out))]
    assert followed == ["Funded", "Leased", "Started"]
    assert out.getvalue() == f"waits     for {busy}\nwaits     for {begins}\n"


def test_a_job_as_json_is_every_update_as_it_came() -> None:
    out = io.StringIO()
    screen = JsonScreen(out)
    for update in updates():
        screen.update(update)
    lines = [msgspec.json.decode(line, type=Update) for line in out.getvalue().splitlines()]
    assert lines == updates()


def test_every_json_line_has_kind_and_data() -> None:
    out = io.StringIO()
    screen = JsonScreen(out)
    screen.say("quote", "2.5 CYX", amount=1)
    screen.update(updates()[0])
    screen.result("done", {"a": 1})
    assert [sorted({"kind", "data"} & set(json.loads(line))) for line in out.getvalue().splitlines()] == [
        ["data", "kind"]
    ] * 3


def test_quiet_shows_the_result_only() -> None:
    out = io.StringIO()
    screen = PlainScreen(out, quiet=True)
    for update in updates():
        screen.update(update)
    screen.say("a", "b")
    screen.result("the end", None)
    screen.result("digits-0a is submitted", None, "digits-0a")
    assert out.getvalue() == "the end\ndigits-0a\n"


def test_a_terminal_shows_the_newest_epochs_the_loss_and_the_moment() -> None:
    out = io.StringIO()
    screen = LiveScreen(out, color=False, width=100)
    for update in updates()[:9]:
        screen.update(update)
    screen.console.print(screen.render())
    screen.close()
    shown = out.getvalue()
    moment = "epoch 2/2  batch 18/45  loss 0.5000"
    assert all(words in shown for words in ["validation loss", "0.5120", "█▁", "70.0 %", moment])


def test_a_terminal_breaks_lines_between_words_and_keeps_signatures_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # in a dumb one rich keeps to no width
    out = io.StringIO()
    LiveScreen(out, color=False, width=40).say("settled", f"2.25 CYX to the node, 0.25 to the platform; {SIGNATURE}")
    lines = [re.sub("\x1b\\[[0-9]*m", "", line).rstrip() for line in out.getvalue().splitlines()]
    assert lines == [
        "settled   2.25 CYX to the node, 0.25 to",
        "          the platform;",
        f"          {SIGNATURE}",
    ]


@pytest.mark.parametrize("width", [40, 60, 74, 80, 200])
def test_no_word_of_a_table_is_broken_however_narrow_the_terminal(width: int) -> None:
    out = io.StringIO()
    columns = ["job", "status", "node", "result", "amount", "submitted"]
    row = ["digits-by-hand-a1c2b18f25", "completed", "node-1", "accuracy 95.5 %", "2.5 CYX", "4 min 18 s ago"]
    LiveScreen(out, color=False, width=width).table(columns, [row], None)
    lines = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert sorted(" ".join(lines).split()) == sorted(" ".join([*columns, *row]).split())
    assert all(len(line) <= width for line in lines) == (
        width >= 74
    )  # below, words alone need more: the terminal breaks
    assert len(lines) == (3 if width == 74 else 2) or width == 80


def test_a_narrow_terminal_keeps_the_values_of_a_job_whole() -> None:
    out = io.StringIO()
    rows = [["metrics", "validation loss 0.02, validation accuracy 99.4 %"], ["settlement", SIGNATURE]]
    LiveScreen(out, color=False, width=36).table(["", ""], rows, None)
    assert out.getvalue().splitlines() == [
        "metrics     validation loss 0.02,",
        "            validation accuracy",
        "            99.4 %",
        f"settlement  {SIGNATURE}",
    ]


BAR = "━" * 40


def test_of_a_transfer_that_is_over_nothing_stays() -> None:
    # behind it stood: waiting for the first step
    out = io.StringIO()
    screen = LiveScreen(out, color=False, width=60)
    screen.advance("upload", 1, 4)
    screen.advance("upload", 4, 4)
    screen.result("the end", None)
    assert "upload" in out.getvalue() and "step" not in out.getvalue()
    assert "\x1b[2K" in out.getvalue()[out.getvalue().rindex("upload") :]  # erased


def test_what_is_under_way_side_by_side_has_a_bar_each_and_nothing_of_it_stays() -> None:
    out = io.StringIO()
    screen = LiveScreen(out, color=False, width=100)
    screen.working([("rates-1", 0.25, "epoch 1/4"), ("b", 1.0, "epoch 4/4")])
    shown = [line.plain for line in screen.render().renderables]
    assert shown == [f"rates-1  {BAR} 25.0 %  epoch 1/4", f"b        {BAR} 100.0 %  epoch 4/4"]
    screen.working([])
    screen.result("done", None)
    assert "waiting for the first step" not in out.getvalue()


def test_epochs_that_are_faster_than_batches_are_told_draw_the_loss() -> None:
    tally = Tally()
    for number in (1, 2, 3):
        data = {"attempt": 1, "epoch": number, "epochs": 3, "epoch_loss": 1.0 / number}
        tally.add(Update(job_id=JOB, source="telemetry", seq=number, at_ms=number, kind="epoch", data=data))
    assert tally.course == [1.0, 1.0 / 2, 1.0 / 3]


def test_a_pipe_gets_no_control_codes() -> None:
    out = io.StringIO()
    screen = open_screen(as_json=False, quiet=False, color=True, out=out)
    for update in updates():
        screen.update(update)
    screen.table(["a"], [["b"]], None)
    assert "\x1b" not in out.getvalue()


def test_a_name_cannot_move_the_cursor() -> None:
    assert clean("evil\x1b[2J\r\nname") == "evil [2J  name"


def test_an_update_of_a_later_version_is_shown_as_it_came() -> None:
    update = Update(job_id=JOB, source="event", seq=1, at_ms=0, kind="Paused", data={"by": "x"})
    assert tell(update) == ("paused", "by x")


def test_a_check_is_told_from_the_delivery_to_what_was_found() -> None:
    segment = {"attempt": 1, "start": {"step": 40}, "end_step": 60}
    finding = {"node_id": "checker-1"}
    said = {
        "CheckLeased": {"number": 501, "node_id": "checker-1"},
        "CheckLost": {"number": 501, "code": "node_lost", "reason": "silent"},
        "Checked": {"finding": finding},
        "CheckDiffers": {"finding": finding},
        "Rejected": {"attempt": 1, "node_id": "node-1", "segment": segment, "findings": [finding, finding]},
        "CheckGivenUp": {"reason": "nobody came"},
    }
    told = {
        kind: tell(Update(job_id=JOB, source="event", seq=1, at_ms=0, kind=kind, data=data))
        for kind, data in said.items()
    }
    assert told["CheckLeased"] == ("check", "checker-1 trains the segment again")
    assert told["Checked"] == ("checked", "checker-1 found the same bytes: it is paid")
    rejected = (
        "the segment from step 40 to step 60 of attempt 1, by node-1: checker-1 found something else, twice; "
        "nothing of it is paid"
    )
    assert told["Rejected"] == ("rejected", rejected)
    assert told["CheckGivenUp"] == ("unchecked", "it is paid unchecked: nobody came")
    impossible = said["Rejected"] | {"findings": [], "impossible": "it is garbage"}
    words = tell(Update(job_id=JOB, source="event", seq=1, at_ms=0, kind="Rejected", data=impossible))
    assert words and "it is garbage" in words[1]


def test_batches_are_not_printed_one_by_one() -> None:
    assert [tell(update) for update in updates() if update.kind in ("batch", "hardware")] == [None] * 3


# -- progress -------------------------------------------------------------------------------------------


def tally_of(some: list[Update]) -> Tally:
    tally = Tally()
    for update in some:
        tally.add(update)
    return tally


def test_progress_is_the_share_of_all_batches() -> None:
    assert tally_of(updates()[:6]).fraction == pytest.approx((9 / 45) / 2)
    assert tally_of(updates()[:9]).fraction == pytest.approx((1 + 18 / 45) / 2)
    assert tally_of(updates()).fraction == 1.0


def test_the_time_left_is_at_the_speed_so_far() -> None:
    # from 0.1 at 6 s to 0.7 at 9 s: the last 0.3 take 1.5 s
    assert tally_of(updates()[:9]).remaining_s == pytest.approx(1.5)


def test_a_new_attempt_starts_anew_and_the_old_one_is_not_heard_again() -> None:
    tally = tally_of(updates()[:7])
    tally.add(msgspec.structs.replace(updates()[5], data=updates()[5].data | {"attempt": 3, "batch_loss": 9.0}))
    tally.add(updates()[8])
    assert (tally.attempt, tally.epochs, tally.losses) == (3, [], [9.0])


def test_an_update_that_comes_late_does_not_turn_progress_back() -> None:
    tally = tally_of([*updates()[:5], updates()[8], updates()[5]])
    assert tally.batch["step"] == 63 and tally.losses == [0.5]


# -- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")])
def test_sizes_are_readable(size: float, text: str) -> None:
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12 ms"), (2.34, "2.3 s"), (59.0, "59 s"), (75, "1 min 15 s"), (7300, "2 h 1 min"), (200_000, "2 days")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_an_age_is_never_negative() -> None:
    assert human_age(2000, now_ms=1000) == "0 ms ago"


def test_a_sparkline_fits_its_width() -> None:
    assert sparkline([float(n) for n in range(1000)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▁▁" and sparkline([]) == ""


def a_job(**changes: Any) -> JobView:
    plain = JobView(
        job_id=JOB,
        name="a",
        status="completed",
        client="c",
        amount_base_units=1,
        attempt=1,
        max_attempts=3,
        submitted_at_ms=1,
    )
    return replace(plain, **changes)


def test_how_far_a_job_is_that_waits_with_a_checkpoint() -> None:
    stored = Checkpoint(step=1, steps=4, state=ArtifactRef(sha256="a" * 64, size=1))
    views = [a_job(status=status, progress=0.25, checkpoint=stored) for status in ("paused", "queued", "cancelled")]
    assert [jobs._result(view, "submitted") for view in views] == ["25.0 % done", "25.0 % done", ""]
    assert jobs._result(a_job(status="queued"), "submitted") == ""


def test_a_replica_serves_and_no_share_of_it_is_done() -> None:
    # its progress is 0 for as long as it serves
    trains = a_job(status="leased", progress=0.5)
    serves = a_job(status="leased", deployment="digits-0123456789ab")
    assert [jobs._result(view, "submitted") for view in (trains, serves)] == ["50.0 % done", "serves"]
    facts, others = dict(jobs._facts_of(serves)), dict(jobs._facts_of(trains))
    assert "progress" not in facts and facts["replica of"] == "digits-0123456789ab"
    assert others["progress"] == "50.0 %" and "replica of" not in others


def test_nodes_of_one_name_are_told_apart_by_their_ids() -> None:
    def of(node_id: str | None, name: str | None) -> JobView:
        return a_job(node_id=node_id, node_name=name)

    views = [of("node-1-aa", "node-1"), of("node-2-bb", "node-2"), of("node-1-aa", "node-1"), of(None, None)]
    assert node_names(views) == {"node-1-aa": "node-1", "node-2-bb": "node-2"}
    alike = [*views, of("node-1-cc", "node-1"), of("node-3-dd", None)]
    told = {"node-1-aa": "node-1-aa", "node-2-bb": "node-2", "node-1-cc": "node-1-cc", "node-3-dd": "node-3-dd"}
    assert node_names(alike) == told
