"""Random waiting jobs and random nodes: small numbers of values, so that ties and near misses are common."""

from msgspec.structs import replace

from cyxcentral import jobfold, jobs, nodes, schedule
from cyxnet import messages as m
from tests.central import facts as f

NOW_MS = 10_000
GPU, SMALL_GPU = m.Gpu(name="gpu", memory_bytes=2**34), m.Gpu(name="small", memory_bytes=2**33)


def candidate(dice, number):
    event = f.registered(
        f"node-{number}",
        max_runs=dice.choice([1, 1, 2, 4]),
        region=dice.choice(["", "eu", "us"]),
        price_per_hour_base_units=dice.choice([0, 0, 10**9, 5 * 10**9]),
        hardware={
            "cores": dice.choice([2, 4, 8]),
            "memory_bytes": dice.choice([1, 2, 4, 8]) * 2**30,
            "flops_per_s": dice.choice([1e9, 1e10, 1e11]),
            "gpus": dice.choice([[], [], [SMALL_GPU], [GPU, GPU], [SMALL_GPU, GPU]]),
        },
    )
    node = replace(
        nodes.evolve(None, event, 0),
        reputation=dice.choice([75.0, 75.0, 30.0, 90.5]),
        online=dice.random() > 0.1,
        draining=dice.random() > 0.9,
        banned_until_ms=dice.choice([0, 0, 0, 0, NOW_MS // 2, NOW_MS * 2]),
    )
    runs = dice.randint(0, node.max_runs)
    return schedule.Candidate(
        node=node,
        active_runs=runs,
        memory_free_bytes=node.hardware.memory_bytes - runs * dice.choice([2**27, 2**28]),
        checker=dice.random() < 0.15,
        gpu_runs=dice.randint(0, min(runs, len(node.hardware.gpus))),
    )


def job(dice, number, nodes=12):
    needs = m.Needs(
        device=dice.choice(["cpu", "any", "cuda"]),
        cores=dice.choice([1, 2, 4, 16]),
        region=dice.choice(["", "", "eu", "asia"]),
        node_id=dice.choice([*[""] * 12, f"node-{dice.randrange(nodes)}"]),
    )
    event = f.submitted(f"job-{number}", priority=dice.choice([0, 0, 1, 9]), needs=needs)
    made = replace(
        jobfold.evolve(None, event, dice.choice([0, 1_000, 600_000])),
        memory_bytes=dice.choice([0, 2**28, 2**30, 3 * 2**30]),
        gpu_memory_bytes=dice.choice([0, 2**33, 2**33 + 2**28, 2**35]),
        status="queued",
        changed_at_ms=0,
        not_before_ms=dice.choice([0, 0, NOW_MS // 2, NOW_MS * 2]),
    )
    if dice.random() < 0.3:
        lost = [lost_on(f"node-{dice.randrange(nodes)}", dice.choice(["died", "node_stopped"])) for _ in range(2)]
        made = replace(made, attempts=tuple(lost))
    return made


def lost_on(node_id, code):
    return jobs.Attempt(
        number=1,
        node_id=node_id,
        session="0" * 32,
        wallet="w",
        lease_ms=1,
        leased_at_ms=0,
        explanation={},
        lost=f.lost(code=code),
    )


ALL_ALIKE = schedule.Unproven()


def as_of(candidates, now_ms, unproven=ALL_ALIKE):
    """The same nodes once time has passed."""
    return {
        node_id: limited(replace(each, node=nodes.at(each.node, now_ms)), unproven)
        for node_id, each in candidates.items()
    }


def limited(candidate, unproven):
    return replace(candidate, limit_base_units=schedule.limit_of(candidate.node, unproven))


PAYERS = tuple(nodes.Payer(wallet=str(number), gained=1.0, at_ms=0, paid_ppm=nodes.WHOLE_PPM) for number in range(3))


def half_known(dice, found, unproven):
    """The same node, perhaps proven; and sometimes busy with one job, which is all that one may have that is not."""
    node = replace(found.node, payers=dice.choice([(), PAYERS]))
    return limited(replace(found, node=node, active_runs=min(found.active_runs, dice.choice([0, 1, 9]))), unproven)


def worth(dice, found):
    return replace(found, price_base_units=dice.choice([1, 10, 20]))
