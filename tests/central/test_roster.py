"""Lists of jobs: what the roster makes cheap is what looking at every job would give."""

import random
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from cyxcentral import api as verbs
from cyxcentral import jobfold, listing, roster
from cyxcentral.api import Api
from cyxcentral.cache import MemoryCache
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError
from tests.central import facts as f

RUN = "0123456789"  # of a workflow
STATUSES = (None, "funding", "queued", "leased", "completed", "failed")


async def nothing():
    pass


def api_of(world, wait_ms=0):
    asked = []

    def over_limit_ms(caller, cost):
        asked.append((caller, cost))
        return wait_ms

    central = SimpleNamespace(
        world=world, cache=MemoryCache(), settings=SimpleNamespace(network=None), over_limit_ms=over_limit_ms
    )
    central.events = SimpleNamespace(machine=SimpleNamespace(wall_ms=lambda: 0), catch_up=nothing)
    central.dispatch = SimpleNamespace(replicas={})
    return Api(central), asked


def put(world, job):
    """As if an event had made the job this one."""
    before, world.jobs[job.job_id] = world.jobs.get(job.job_id), job
    if world._roster is not None:
        world._roster.changed(before, job)


def job_of(number, at_ms, caller="alice", status="queued", name="digits"):
    job = jobfold.evolve(None, f.submitted(f"job-{number:04d}"), at_ms)
    return replace(job, caller=caller, status=status, job=replace(job.job, name=name))


async def by_looking_at_all(api, world, caller, ask):
    matching = [job for job in world.jobs.values() if listing.wanted_job(job, ask, caller)]
    begins = listing.begins_before(ask)
    behind = sorted((j for j in matching if begins is None or listing.place(j) < begins), key=listing.place)[::-1]
    page = behind[: ask.limit]
    if len(behind) > len(page) and ask.before_id is None:
        page = [job for job in behind if job.submitted_at_ms >= page[-1].submitted_at_ms]
    return [job.job_id for job in page], len(matching), len(page) < len(behind)


@pytest.mark.parametrize("seed", range(5))
async def test_every_list_is_what_looking_at_every_job_gives(monkeypatch, seed):
    dice, world = random.Random(seed), World()
    monkeypatch.setattr(verbs, "JOBS_AT_ONCE", 7)
    api, _ = api_of(world)
    for round_ in range(40):
        for _ in range(5):
            number = dice.randrange(120)
            job_id = f"job-{number:04d}" if number % 3 else f"job-{number:04d}-{RUN}"
            job = job_of(number, dice.randrange(30), dice.choice("ab"), name=dice.choice(["x", "xy"]))
            job = world.jobs.get(job_id) or replace(job, job_id=job_id)
            put(world, replace(job, status=dice.choice(STATUSES[1:])))
        last = dice.choice(list(world.jobs.values())) if dice.random() < 0.5 else None
        ask = m.JobListRequest(
            status=dice.choice(STATUSES),
            mine=dice.random() < 0.5,
            name=dice.choice([None, None, "y"]),
            run=dice.choice([None, None, RUN]),
            limit=dice.choice([1, 3, 10]),
            before=last.submitted_at_ms if last else None,
            before_id=last.job_id if last and dice.random() < 0.7 else None,
        )
        found = await api._list("a", ask)
        expected = await by_looking_at_all(api, world, "a", ask)
        assert ([view.job_id for view in found.jobs], found.total, found.more) == expected, (round_, ask)


@pytest.mark.parametrize("seed", range(5))
async def test_the_ids_that_begin_with_some_letters_are_those_that_looking_at_every_job_gives(monkeypatch, seed):
    monkeypatch.setattr(roster, "BLOCK", 6)
    dice, world = random.Random(seed), World()
    ids = ["".join(dice.choices("ab\U0010ffff-", k=dice.randint(1, 6))) for _ in range(120)]
    for job_id in ids[:60]:
        world.jobs[job_id] = replace(job_of(0, 0), job_id=job_id)
    while not world.roster.fill(7):
        pass
    for job_id in ids[60:]:
        if job_id not in world.jobs:
            put(world, replace(job_of(0, 0), job_id=job_id))
    for letters in (*ids, *(job_id[:count] for job_id in ids for count in (0, 1, 2)), "c", "aX", "\U0010ffff" * 7):
        for most in (1, 3, 200):
            expected = sorted(job_id for job_id in world.jobs if job_id.startswith(letters))[:most]
            assert world.roster.beginning_with(letters, most) == expected


async def test_the_newest_of_very_many_jobs_are_found_without_looking_at_the_others():
    world = World()
    for number in range(3 * verbs.JOBS_AT_ONCE):
        world.jobs[f"job-{number:04d}"] = job_of(number, number)
    api, charged = api_of(world)
    found = await api._list("bob", m.JobListRequest(limit=2))
    assert ([view.job_id for view in found.jobs], found.total) == (["job-2999", "job-2998"], 3000)
    assert (await api._list("bob", m.JobListRequest(status="failed"))).total == 0
    assert (await api._list("bob", m.JobListRequest(mine=True))).jobs == []
    put(world, replace(world.jobs["job-2999"], status="failed"))  # the only one: nobody looks for a second
    assert [view.job_id for view in (await api._list("bob", m.JobListRequest(status="failed"))).jobs] == ["job-2999"]
    assert charged == []


async def test_who_makes_central_look_at_very_many_jobs_is_charged_and_in_the_end_refused():
    world = World()
    for number in range(3 * verbs.JOBS_AT_ONCE):
        world.jobs[f"job-{number:04d}"] = job_of(number, number)
    api, charged = api_of(world)
    assert (await api._list("bob", m.JobListRequest(name="no such"))).total == 0
    assert charged == [("bob", verbs.JOBS_AT_ONCE / verbs.JOBS_PER_REQUEST)] * 3  # the last one saw no more
    api, _ = api_of(world, wait_ms=70)
    with pytest.raises(ApiError, match="very many jobs") as refused:
        await api._list("bob", m.JobListRequest(name="no such"))
    assert (refused.value.status, refused.value.retry_after_ms) == (429, 70)


async def test_deployments_of_others_are_not_looked_at_and_ones_own_many_replicas_are_charged(monkeypatch):
    monkeypatch.setattr(verbs, "JOBS_AT_ONCE", 3)
    world, ask = World(), m.DeploymentListRequest(ended=True)
    for number, owner in enumerate(["bob", "alice"] * 8):
        deployment = subjects.deployment_id("digits", owner)
        job = replace(job_of(number, number, owner), job=f.serve_request(deployment=deployment))
        world.take_jobs([job])
    api, charged = api_of(world)
    (found,) = (await api._deployments("alice", ask)).deployments
    assert (found.owner, len(found.replicas)) == ("alice", 8)
    assert charged == [("alice", 8 / verbs.JOBS_PER_REQUEST)]
    assert (await api._deployments("carol", ask)).deployments == [] and len(charged) == 1
    api, _ = api_of(world, wait_ms=70)
    with pytest.raises(ApiError) as refused:
        await api._deployments("bob", ask)
    assert (refused.value.status, refused.value.retry_after_ms) == (429, 70)
