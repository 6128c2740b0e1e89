"""What `python -m cyxnode why` says, for each way in which a node can stand."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cyxnet import messages as m
from cyxnode.__main__ import main
from cyxnode.errors import NodeError
from cyxnode.home import kept, open_home
from cyxnode.why import Here, in_words

NOW_MS = 1_800_000_000_000
HERE = Here(options="--name desk", pid=0, disk_free_bytes=10**12, disk_least_bytes=2**27)
NODE = m.NodeView(
    node_id="desk-0123456789",
    name="desk",
    online=True,
    reputation=73.0,
    hardware=m.Hardware(cores=2, memory_bytes=8 * 10**9, memory_free_bytes=4 * 10**9),
    active_jobs=[],
    jobs_completed=3,
    jobs_failed=1,
    last_seen_ms=NOW_MS - 60_000,
    wallet="w",
    state="online",
    tier="normal",
)


def said(node: dict[str, Any] | None = None, here: Here = HERE, **reply: Any) -> str:
    facts = {"max_runs": 1, "memory_free_bytes": 4 * 10**9, "waiting": [], "placed": []} | reply
    text = in_words(m.NodeWhyReply(node=replace(NODE, **(node or {})), **facts), here, NOW_MS)
    assert all(len(line) <= 80 for line in text.splitlines())
    return " ".join(text.split())


def test_an_idle_node_is_told_that_nothing_waits() -> None:
    text = said()
    assert "is online and takes jobs: 1 of 1 slots and 4.0 GB of memory are free" in text
    assert "Reputation 73.00 of 100 (normal); 3 jobs done, 1 failed" in text and "No job waits" in text
    assert "(normal), 1 strike towards a ban; 3 jobs" in said({"strikes": 1})
    assert "(normal), 2 strikes towards a ban; 3 jobs" in said({"strikes": 2})


def test_a_banned_node_is_told_until_when_and_for_what() -> None:
    change = m.StandingChange(at_ms=NOW_MS - 1, change=-2.0, reputation=20.0, reason="the third strike")
    text = said({"state": "banned", "banned_until_ms": NOW_MS + 7_200_000, "changes": [change]})
    assert "is banned until 2027-01-15 10:00 UTC, for another 2 h 0 min: the third strike" in text
    assert "2027-01-15 07:59 UTC -2.00 to 20.00: the third strike" in text


@pytest.mark.parametrize(
    "pid, what", [(0, "start it: python -m cyxnode --name desk"), (77, "its process 77 runs here")]
)
def test_an_offline_node_is_told_when_it_was_heard_and_what_helps(pid: int, what: str) -> None:
    text = said({"online": False, "state": "offline"}, replace(HERE, pid=pid))
    assert "is offline: central last heard of it 1 min 0 s ago" in text and what in text


@pytest.mark.parametrize("free_bytes, what", [(2**20, "its disk is full (1.0 MB free"), (10**12, "--undrain")])
def test_a_draining_node_is_told_whether_its_disk_or_its_operator_wants_it(free_bytes: int, what: str) -> None:
    assert what in said({"state": "drained"}, replace(HERE, disk_free_bytes=free_bytes))


def test_a_busy_node_and_one_that_is_not_proven_are_told_so() -> None:
    text = said({"state": "busy", "active_jobs": ["job-1"], "limit_base_units": 10**10, "proofs": 1})
    assert "it runs 1 of 1 jobs. It works on job-1." in text
    assert "not proven yet (1 client has paid" in text and "10 CYX" in text


def line(node_id: str, score: float, value: float) -> dict[str, Any]:
    return {"node_id": node_id, "score": score, "terms": {"device": {"value": value, "weight": 0.25}}}


def test_of_each_job_it_is_said_what_the_node_fails_or_how_it_stands_beside_the_best() -> None:
    mine, other = line(NODE.node_id, 0.5, 0.125), line("fast-0123456789", 0.75, 1.0)
    waiting = [
        m.Prospect(job_id="job-1", refused="no CUDA GPU"),
        m.Prospect(job_id="job-2", own=mine, best=mine),
        m.Prospect(job_id="job-3", own=mine, best=mine, rests_ms=2_000),
    ]
    placed = [m.Prospect(job_id="job-4", own=mine, best=other), m.Prospect(job_id="job-5", best=other)]
    text = said(waiting=waiting, placed=placed, jobs_waiting=9)
    assert "Jobs that wait for a node: 9." in text and "job-1: not for this node: no CUDA GPU" in text
    assert "job-2: this node can take it, and none is better" in text
    assert "job-3: this node can take it, in 2.0 s" in text
    assert "job-4: fast-0123456789 scores 0.750, this node 0.500 device 0.125, there 1.000, counts 0.25" in text
    assert "job-5 went to fast-0123456789: this node was not among the best" in text


def test_the_only_node_of_a_folder_is_found_without_its_lock_and_the_one_that_runs_among_several(
    tmp_path: Path,
) -> None:
    with pytest.raises(NodeError, match="no node has a key"):
        kept(tmp_path, None)
    first = open_home(tmp_path, "desk")
    assert kept(tmp_path, None) == kept(tmp_path, "Desk") == first.folder
    open_home(tmp_path, "shelf").close()
    assert kept(tmp_path, None) == first.folder
    first.close()
    with pytest.raises(NodeError, match=r"got 2 \(desk, shelf\): choose one with --name"):
        kept(tmp_path, None)
    with pytest.raises(NodeError, match="no node named 'nobody'"):
        kept(tmp_path, "nobody")
    assert not (tmp_path / "nodes" / "nobody").exists()


def test_without_a_broker_and_without_a_node_the_reason_is_one_line(tmp_path: Path, capsys: Any) -> None:
    for expected in ("no node has a key", "127.0.0.1:1"):
        assert main(["why", "--dir", str(tmp_path), "--url", "nats://127.0.0.1:1"]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and expected in error
        open_home(tmp_path, None).close()


def test_who_asks_and_drains_at_once_is_told_that_these_do_not_go_together(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["why", "--drain"])
    assert stopped.value.code == 2 and "neither --drain nor --undrain" in capsys.readouterr().err
