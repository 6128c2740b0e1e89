"""Lists of nodes and jobs: what is in them, in which order, and that their pages miss and repeat nothing."""

from types import SimpleNamespace

import msgspec
import pytest

from cyxcentral import jobfold
from cyxcentral.machine import MACHINE
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError
from cyxnet.codec import MAX_MESSAGE_BYTES
from tests.central import facts as f
from tests.central.test_api import api_of

GPU = m.Gpu(name="H200", memory_bytes=141 * 2**30)
SMALL, FAST, CARD, DEAR, GONE = "node-0-small", "node-1-fast", "node-2-card", "node-3-dear", "node-4-gone"


class OnlyAWorld:
    """What an Api needs of a central to make lists: a world of things that were said, and when nodes were seen."""

    def __init__(self):
        self.world, self.log = World(), SimpleNamespace(machine=MACHINE)
        self.dispatch = SimpleNamespace(seen_at_ms={})

    def say(self, subject, event):
        record = m.Record(command_id="0" * 32, at_ms=1, by="test", event=event)
        assert self.world.apply(self.world.seq + 1, subject, record) is None

    def job(self, job_id, *events):
        for event in (f.submitted(job_id), *events):
            self.say(subjects.job_event(job_id), event)


@pytest.fixture
def central():
    found = OnlyAWorld()
    found.say(subjects.node_event(SMALL), f.registered(SMALL, region="eu", price_per_hour_base_units=5))
    found.say(subjects.node_event(FAST), f.registered(FAST, region="us", hardware={"cores": 64, "flops_per_s": 1e13}))
    found.say(subjects.node_event(CARD), f.registered(CARD, region="eu", hardware={"gpus": [GPU]}, max_runs=2))
    dear = f.registered(DEAR, price_per_hour_base_units=10**9, hardware={"memory_bytes": 2**40})
    found.say(subjects.node_event(DEAR), dear)
    found.say(subjects.node_event(GONE), f.registered(GONE))
    found.say(subjects.node_event(GONE), f.node_lost(GONE))
    found.job("job-1", f.FUNDED, f.leased(node_id=FAST))
    return found


@pytest.mark.parametrize(
    "ask, ids",
    [
        ({}, [SMALL, FAST, CARD, DEAR, GONE]),
        ({"online": True}, [SMALL, FAST, CARD, DEAR]),
        ({"idle": True}, [SMALL, CARD, DEAR]),
        ({"device": "cuda"}, [CARD]),
        ({"min_gpu_memory_bytes": 2**37}, [CARD]),
        ({"min_cores": 3}, [FAST]),
        ({"min_memory_free_bytes": 2**39}, [DEAR]),
        ({"max_price_per_hour_base_units": 5, "online": True}, [SMALL, FAST, CARD]),
        ({"regions": ["eu", "asia"]}, [SMALL, CARD]),
        ({"other_regions": ["eu", ""]}, [FAST]),
        ({"min_reputation": 75.5}, []),
        ({"sort_by": "price", "online": True}, [FAST, CARD, SMALL, DEAR]),
        ({"sort_by": "speed", "limit": 1}, [FAST]),
        ({"sort_by": "memory", "limit": 1}, [DEAR]),
        ({"sort_by": "queue", "online": True}, [SMALL, CARD, DEAR, FAST]),
        ({"sort_by": "price", "online": True, "after": CARD}, [SMALL, DEAR]),
    ],
)
async def test_nodes_are_found_by_what_they_are_and_the_best_come_first(central, ask, ids):
    found = await api_of(central)._nodes("me", m.NodeListRequest(**ask))
    assert [view.node_id for view in found.nodes] == ids


async def test_the_answer_says_how_many_there_are_and_what_they_ask_for(central):
    found = await api_of(central)._nodes("me", m.NodeListRequest(limit=2))
    assert (found.total, found.online, found.more) == (5, 4, True)
    assert found.price_per_hour_base_units == [0, (5 + 10**9) // 4, 10**9]
    none = await api_of(central)._nodes("me", m.NodeListRequest(min_cores=1000))
    assert (none.nodes, none.total, none.more, none.price_per_hour_base_units) == ([], 0, False, [])


async def test_thousands_of_nodes_come_in_pages_that_fit_a_message_and_miss_none(central):
    for number in range(2000):
        node_id = f"node-{number:05d}"
        hardware = {"cpu": "x" * 200, "gpus": [GPU] * 8}
        central.say(subjects.node_event(node_id), f.registered(node_id, hardware=hardware))
    api, seen, after, more = api_of(central), [], None, True
    while more:
        page = await api._nodes("me", m.NodeListRequest(after=after))
        assert len(msgspec.json.encode(page)) < MAX_MESSAGE_BYTES
        seen += [view.node_id for view in page.nodes]
        after, more = seen[-1], page.more
    assert len(seen) == len(set(seen)) == 2005


async def test_pages_of_jobs_go_on_behind_a_job_also_within_a_millisecond(central):
    del central.world.jobs["job-1"]
    for number, at_ms in enumerate([1, 5, 5, 5, 5, 9]):
        central.world.jobs[f"job-{number}"] = jobfold.evolve(None, f.submitted(f"job-{number}"), at_ms)
    api, seen, last, more = api_of(central), [], {}, True
    while more:
        page = await api._list("me", m.JobListRequest(limit=2, **last))
        seen += [view.job_id for view in page.jobs]
        last = {"before": page.jobs[-1].submitted_at_ms, "before_id": seen[-1]}
        more = page.more
    assert seen[-1] == "job-0" and sorted(seen) == [f"job-{number}" for number in range(6)]
    assert page.total == 6


async def test_a_page_goes_on_behind_a_node_that_is_no_longer_what_is_asked_for(central):
    # it began anew, and who read page by page was told all of them twice
    api, ask = api_of(central), {"sort_by": "price", "online": True}
    central.say(subjects.node_event(CARD), f.node_lost(CARD))
    found = await api._nodes("me", m.NodeListRequest(after=CARD, **ask))
    assert [view.node_id for view in found.nodes] == [SMALL, DEAR]


async def test_a_page_behind_a_node_that_never_was_is_refused(central):
    with pytest.raises(ApiError, match="no node is called node-9-none") as refused:
        await api_of(central)._nodes("me", m.NodeListRequest(after="node-9-none"))
    assert refused.value.code == "unknown_node"
