"""A short round of chaos in every run of the tests: thirty kills under a hundred jobs, one network, a fixed seed."""

import os

import pytest

from cyxnet import messages as m
from tests.chaos import checker, report
from tests.chaos.chaos import Options, play

SHORT = Options(seed=20, kills=30, jobs=100, nodes=3, clients=3, mean_gap_s=0.8)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nothing_is_lost_doubled_or_stuck_when_thirty_processes_are_killed(tmp_path):
    timeline = []
    outcome, evidence = await play(tmp_path, SHORT, timeline.append)
    said = [f"seed {SHORT.seed}, {os.cpu_count()} processors", *timeline]
    said += [report.evidence_of(violation, evidence) for violation in outcome.violations]
    said += [report.table(outcome), f"replay: {outcome.replay}"]
    assert outcome.violations == [], "\n".join(said)
    assert sum(outcome.kills.values()) == SHORT.kills, "\n".join(said)
    assert outcome.statuses["completed"] >= SHORT.jobs // 2, "\n".join(said)  # it was work, not only waiting
    begun = [entry for entry in evidence.log if entry.record and isinstance(entry.record.event, m.DependenciesMet)]
    assert len(begun) >= SHORT.jobs // 30, "\n".join(said)  # of the jobs that come after others
    compared = [what for (_, what), of_jobs in checker.trained(evidence).items() if len(dict(of_jobs)) > 1]
    assert compared.count("the model") >= SHORT.jobs // 5, "\n".join(said)
