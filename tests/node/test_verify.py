"""What of a job is right is told segment by segment: by the log, and by training it again."""

import hashlib
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cyxcore import checkpoint
from cyxcore.spec import ModelSpec, TrainingSummary
from cyxnet import messages as m
from cyxnet.bus import ApiError
from cyxnet.cli.screen import PlainScreen
from cyxnode import verify
from cyxnode.chain import History, NotVerified, Part, history_of
from cyxnode.pipe import Done, Order, Saved
from cyxnode.runs import MODEL_FILE, Share, order_for
from cyxnode.train import Unattended, train
from tests.node.test_segments import LAYERS, TABLE, TRAINING

REQUEST = m.JobRequest(
    name="tiny",
    model=ModelSpec(input=[2], layers=LAYERS),
    dataset=m.ArtifactRef(sha256=hashlib.sha256(TABLE).hexdigest(), size=len(TABLE)),
    training=replace(TRAINING, epochs=4),  # 24 steps
    amount_base_units=1,
)
SUMMARY = TrainingSummary(
    total_time_ms=1.0,
    steps=30,
    final_loss=0.1,
    best_epoch=1,
    delivered_epoch=1,
    train_rows=8,
    validation_rows=2,
    parameters=6,
)


# -- what the log says --------------------------------------------------------------------------------------


def state(step: int, of: str = "") -> m.Checkpoint:
    return m.Checkpoint(step=step, steps=30, state=m.ArtifactRef(sha256=f"{step:02}{of or 'a'}" * 21 + "0", size=9))


def said(event: Any) -> tuple[str, dict[str, Any]]:
    return type(event).__name__, msgspec.to_builtins(event)


def leased(attempt: int, resume: m.Checkpoint | None = None) -> tuple[str, dict[str, Any]]:
    who = {"node_id": f"node-{attempt}", "session": "s", "wallet": "w", "lease_ms": 1}
    return said(m.Leased(attempt=attempt, resume=resume, **who))


def stored(attempt: int, *states: m.Checkpoint) -> list[tuple[str, dict[str, Any]]]:
    who = {"attempt": attempt, "node_id": f"node-{attempt}", "signature": "0"}
    return [said(m.Checkpointed(checkpoint=each, **who)) for each in states]


MODEL = m.ArtifactRef(sha256="ff" * 32, size=9)
SUBMITTED = ("Submitted", {"job": msgspec.to_builtins(REQUEST)})


def completed(attempt: int) -> tuple[str, dict[str, Any]]:
    who = {"attempt": attempt, "node_id": f"node-{attempt}", "signature": "0"}
    return said(m.Completed(model=MODEL, graph_sha256="", summary=SUMMARY, **who))


def steps(history: History) -> list[tuple[int, int, int]]:
    return [(part.from_step, part.segment.end_step, part.attempt) for part in history.parts]


def test_the_parts_of_a_job_that_went_straight_through() -> None:
    history = history_of([SUBMITTED, leased(1), *stored(1, state(4), state(9)), completed(1)])
    assert steps(history) == [(0, 4, 1), (4, 9, 1), (9, 0, 1)]
    assert [part.end for part in history.parts] == [state(4).state, state(9).state, MODEL]
    assert [part.segment.start for part in history.parts] == [None, state(4), state(9)]


def test_a_job_without_a_state_is_one_part() -> None:
    assert steps(history_of([SUBMITTED, leased(1), completed(1)])) == [(0, 0, 1)]


def test_the_parts_of_a_job_that_was_resumed_name_who_trained_each() -> None:
    first = stored(1, state(4), state(9))
    history = history_of([SUBMITTED, leased(1), *first, leased(2, state(9)), leased(3, state(9)), completed(3)])
    assert steps(history) == [(0, 4, 1), (4, 9, 1), (9, 0, 3)]
    assert [part.node_id for part in history.parts] == ["node-1", "node-1", "node-3"]


def test_a_state_that_was_given_up_is_no_part() -> None:
    first, second = stored(1, state(4), state(9)), stored(2, state(9, "b"))
    history = history_of([SUBMITTED, leased(1), *first, leased(2, state(4)), *second, completed(2)])
    assert steps(history) == [(0, 4, 1), (4, 9, 2), (9, 0, 2)]


def test_a_job_that_began_anew_keeps_nothing_of_what_was_before() -> None:
    history = history_of([SUBMITTED, leased(1), *stored(1, state(4)), completed(1), leased(2), completed(2)])
    assert steps(history) == [(0, 0, 2)]


def test_of_a_job_without_a_model_the_parts_end_with_its_newest_state() -> None:
    events = [SUBMITTED, leased(1), *stored(1, state(4), state(9)), leased(2, state(9))]
    assert steps(history_of(events, newest=state(9))) == [(0, 4, 1), (4, 9, 1)]


def test_a_state_that_nobody_made_is_not_passed_over() -> None:
    with pytest.raises(NotVerified, match="where the state of step 9 came from"):
        history_of([SUBMITTED, leased(1), leased(2, state(9)), completed(2)])


def test_what_was_rejected_is_no_model_of_a_job_that_failed_then() -> None:
    events = [SUBMITTED, leased(1), *stored(1, state(4)), leased(2, state(4)), completed(2), ("Rejected", {})]
    assert steps(history_of(events, newest=state(4))) == [(0, 4, 1)]


# -- training it again --------------------------------------------------------------------------------------


class Store:
    """A client as far as it is asked here: what it has by digest."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def add(self, content: bytes) -> m.ArtifactRef:
        sha256 = hashlib.sha256(content).hexdigest()
        self.held[sha256] = content
        return m.ArtifactRef(sha256=sha256, size=len(content))

    async def fetch(self, sha256: str, path: Path, progress: Any = None) -> None:
        if sha256 not in self.held:
            raise ApiError("not_found", "it is not stored", 404)
        path.write_bytes(self.held[sha256])

    async def download(self, job_id: str, path: Path) -> None:
        path.write_bytes(self.delivered)


class Run:
    """A job that was trained here, as its node says it was: a state every four steps, and the model."""

    def __init__(self, folder: Path):
        self.store, self.folder = Store(), folder
        self.store.add(TABLE)
        (folder / "data").write_bytes(TABLE)
        self.parts: list[Part] = []

    def order(self, start: bytes) -> Order:
        (self.folder / "start").write_bytes(start)
        out_path, start_path = self.folder / MODEL_FILE, self.folder / "start" if start else None
        whole = order_for(
            REQUEST, Share(threads=1, memory_bytes=2**30), self.folder / "data", None, start_path, out_path
        )
        return replace(whole, every_steps=4, every_s=0.0, memory_bytes=0)

    def train(self, forge_at: tuple[int, ...]) -> History:
        """As an honest node does, but for the states of some steps: there one weight is another."""
        start, before, going = b"", None, True
        while going:
            going = False
            for said in train(self.order(start), Unattended()):
                if isinstance(said, Saved):
                    path = self.folder / said.file
                    if forged := said.step in forge_at:
                        forge(path)
                    start = path.read_bytes()
                    path.unlink()
                    after = m.Checkpoint(step=said.step, steps=said.steps, state=self.store.add(start))
                    self.parts.append(part(before, after))
                    before = after
                    if forged:  # it goes on from that
                        going = True
                        break
                elif isinstance(said, Done):
                    model = (self.folder / MODEL_FILE).read_bytes()
                    self.store.delivered = model
                    self.parts.append(part(before, self.store.add(model)))
        completed = m.Completed(
            attempt=1,
            node_id="node-1",
            model=self.parts[-1].end,
            graph_sha256="",
            summary=SUMMARY,
            signature="0",
        )
        return History(request=REQUEST, completed=completed, parts=self.parts)

    async def verdict(self, history: History, **options: Any) -> verify.Verdict:
        folder = self.folder / "verify"
        folder.mkdir(exist_ok=True)
        how = verify.Options(threads=1, **options)
        screen = PlainScreen(io.StringIO())
        return await verify.verdict_of(self.store, "job-1", history, folder, how, screen)  # type: ignore[arg-type]


def part(start: m.Checkpoint | None, end: m.Checkpoint | m.ArtifactRef) -> Part:
    segment = m.Segment(start=start, end_step=end.step if isinstance(end, m.Checkpoint) else 0)
    return Part(segment=segment, end=end.state if isinstance(end, m.Checkpoint) else end, attempt=1, node_id="node-1")


def forge(path: Path) -> None:
    """One weight is another: as if the steps before had not been made."""
    found = checkpoint.load(path)
    name = sorted(found.state)[0]
    changed = found.state[name].copy()
    changed.flat[0] += 0.25
    checkpoint.save(path, replace(found, state={**found.state, name: changed}))


def told(found: list[verify.Found]) -> list[tuple[int, int]]:
    return [(each.from_step, each.to_step) for each in found]


async def test_an_honest_job_is_verified_state_by_state(tmp_path: Path) -> None:
    run = Run(tmp_path)
    history = run.train(forge_at=())
    found = await run.verdict(history)
    assert found.same and found.segments == len(history.parts) == 6
    assert found.trained_sha256 == found.delivered_sha256 == history.parts[-1].end.sha256
    assert "so have the 5 states before it" in verify.in_words(found)


async def test_which_segments_are_wrong_is_said_and_what_came_of_them_is_right(tmp_path: Path) -> None:
    run = Run(tmp_path)
    found = await run.verdict(run.train(forge_at=(8, 16)))
    assert not found.same and not found.unknown
    assert told(found.wrong) == [(4, 8), (12, 16)]
    assert found.segments == 6 and found.trained_sha256 == found.delivered_sha256  # from what it was made of
    words = verify.in_words(found)
    assert "wrong from step 4 to step 8, which node-1 signed in attempt 1; wrong from step 12 to step 16" in words


async def test_what_follows_a_wrong_state_that_is_gone_is_said_to_be_unknown(tmp_path: Path) -> None:
    run = Run(tmp_path)
    history = run.train(forge_at=(8,))
    del run.store.held[history.parts[1].end.sha256]
    found = await run.verdict(history)
    assert told(found.wrong) == [(4, 8)] and told(found.unknown) == [(8, 12)]
    assert found.segments == 5  # the others begin with states that are there
    assert "1 of its segments, the first from step 8 on, cannot be told" in verify.in_words(found)


async def test_what_was_signed_as_a_state_and_is_none_is_wrong_and_ends_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    history = run.train(forge_at=())
    rubbish = m.Checkpoint(step=8, steps=24, state=run.store.add(b"rubbish"))
    history.parts[1] = part(history.parts[1].segment.start, rubbish)
    history.parts[2] = replace(history.parts[2], segment=m.Segment(start=rubbish, end_step=12))
    found = await run.verdict(history)
    assert told(found.wrong) == [(4, 8)] and told(found.unknown) == [(8, 12)] and found.segments == 5


@pytest.mark.parametrize("options", [{"segment": "12"}, {"tail": True}])
async def test_what_could_not_be_trained_again_is_not_verified(tmp_path: Path, options: dict[str, Any]) -> None:
    run = Run(tmp_path)
    history = run.train(forge_at=())
    rubbish = m.Checkpoint(step=8, steps=24, state=run.store.add(b"rubbish"))
    history.parts[2] = replace(history.parts[2], segment=m.Segment(start=rubbish, end_step=12))
    del history.parts[3:]
    for gone in history.parts[0], history.parts[1]:
        del run.store.held[gone.end.sha256]
    found = await run.verdict(history, **options)
    assert not found.same and not found.wrong and told(found.unknown) == [(8, 12)] and found.segments == 0
    words = verify.in_words(found)
    assert words.startswith("job-1 is not proven: nothing of it could be trained again; 1 of its segments, ")
    assert "the first from step 8 on, cannot be told" in words


async def test_one_segment_is_trained_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    history = run.train(forge_at=(8,))
    assert told((await run.verdict(history, segment="8")).wrong) == [(4, 8)]
    right = await run.verdict(history, segment="12")
    assert right.same and (right.from_step, right.to_step, right.segments) == (8, 12, 1)
    assert "trained from step 8 to step 12 again, 4 steps" in verify.in_words(right)
    last = await run.verdict(history, segment="model")
    assert last.same and last.from_step == 20 and last.trained_sha256 == last.delivered_sha256


async def test_any_segment_is_one_of_those_that_can_be_trained(tmp_path: Path) -> None:
    run = Run(tmp_path)
    history = run.train(forge_at=())
    for part in history.parts[:-1]:
        del run.store.held[part.end.sha256]
    found = await run.verdict(history, segment="any")
    assert found.same and (found.from_step, found.to_step) == (0, 4)


async def test_a_segment_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    history = run.train(forge_at=())
    with pytest.raises(NotVerified, match="no segment of the job ends at 7; .* end at 4, 8, 12, 16, 20, model"):
        await run.verdict(history, segment="7")
    for part in history.parts[:-1]:
        del run.store.held[part.end.sha256]
    with pytest.raises(NotVerified, match="the state of step 4, with which that segment begins, is not stored"):
        await run.verdict(history, segment="8")
    with pytest.raises(NotVerified, match="none of the job's 5 checkpoints is stored any more"):
        await run.verdict(history, tail=True)


async def test_a_job_that_ended_without_a_model_is_verified_up_to_its_newest_state(tmp_path: Path) -> None:
    run = Run(tmp_path)
    history = run.train(forge_at=())
    history.parts.pop()
    found = await run.verdict(replace(history, completed=None))
    assert found.same and found.to_step == 20 and found.segments == 5
    assert "the state of step 20 has the same bytes" in verify.in_words(found)
