"""What an operator may do to nodes, and nobody else."""

import pytest
from msgspec.structs import replace

from cyxcentral import clients, jobs, nodes
from cyxcentral.machine import Machine
from cyxcentral.operators import Operators
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError
from tests.central import facts as f
from tests.central.centrals import NODE, SESSION, SmallCentral, leased, register

HOUR_MS = 3_600_000
ME = "c-operator"


@pytest.fixture
async def central(broker):
    running = await SmallCentral.start(broker, "central-a")
    await running.dispatch._register(register())
    yield running
    await running.close()


@pytest.fixture
def operators(central):
    return Operators(central.log, central.world, central.dispatch, [ME])


def ban(**changes):
    return replace(m.NodeBanRequest(node_id=NODE, reason="wrong models"), **changes)


def history(central):
    return [change.reason for change in central.world.nodes[NODE].changes]


@pytest.fixture
def now_ms(central, monkeypatch):
    """A time that does not pass: the machine's own may be set back meanwhile."""
    now_ms = central.log.machine.wall_ms()
    monkeypatch.setattr(central.log, "machine", Machine(wall_ms=lambda: now_ms))
    return now_ms


async def test_a_ban_lasts_as_long_as_the_operator_says_and_names_its_reason(operators, now_ms):
    view = await operators.ban(ME, ban(for_s=60))
    assert view.banned_until_ms == now_ms + 60_000
    assert (view.state, view.tier, view.changes[-1].reason) == ("banned", "banned", "banned: wrong models")


async def test_a_ban_without_an_end_lasts_longer_each_time(operators, now_ms):
    lasting = []
    for _ in range(3):
        lasting.append((await operators.ban(ME, ban())).banned_until_ms - now_ms)
        await operators.pardon(ME, m.NodePardonRequest(node_id=NODE))
    assert lasting == [24 * HOUR_MS, 48 * HOUR_MS, 168 * HOUR_MS]


async def test_a_second_ban_replaces_the_end_of_the_first_and_counts_as_the_same(central, operators):
    long = await operators.ban(ME, ban(for_s=86_400))
    short = await operators.ban(ME, ban(for_s=60))
    assert short.banned_until_ms < long.banned_until_ms
    assert central.world.nodes[NODE].bans == 1


async def test_a_request_that_is_repeated_changes_nothing_also_after_the_opposite(central, operators):
    asked = ban(request_id="first")
    await operators.ban(ME, asked)
    await operators.ban(ME, asked)
    await operators.pardon(ME, m.NodePardonRequest(node_id=NODE, request_id="second"))
    assert (await operators.ban(ME, asked)).banned_until_ms == 0
    assert len(history(central)) == 2


async def test_no_word_of_the_node_ends_a_ban(central, operators):
    await operators.ban(ME, ban())
    await central.dispatch._heartbeat(m.Heartbeat(node_id=NODE, session=SESSION))
    await central.dispatch._register(register("f" * 32))
    assert nodes.state(central.world.nodes[NODE]) == "banned"


async def test_the_leases_of_a_node_that_is_shut_out_go_to_others_at_once(central, operators):
    await central.job("job-1", f.FUNDED, leased())
    await operators.ban(ME, ban())
    reputation = central.world.nodes[NODE].reputation
    await central.dispatch.shut_out(NODE)
    job, node = central.world.jobs["job-1"], central.world.nodes[NODE]
    assert (job.status, job.current, nodes.state(node)) == ("queued", None, "banned_offline")
    assert (jobs.tried(job), node.reputation) == (0, reputation)


async def test_a_pardon_of_a_node_that_is_not_banned_changes_nothing(central, operators):
    await operators.pardon(ME, m.NodePardonRequest(node_id=NODE))
    assert history(central) == []


@pytest.mark.parametrize("verb", ["ban", "pardon"])
async def test_who_is_no_operator_is_refused(central, operators, verb):
    ask = ban() if verb == "ban" else m.NodePardonRequest(node_id=NODE)
    with pytest.raises(ApiError, match="c-mallory is no operator") as refused:
        await getattr(operators, verb)("c-mallory", ask)
    assert (refused.value.code, refused.value.status) == ("not_operator", 403)
    assert history(central) == []


async def test_a_node_is_named_by_a_beginning_that_only_it_has(central, operators):
    other = replace(f.registered(), node_id=f"{NODE[:-1]}x")
    await central.say(subjects.node_event(other.node_id), other)
    assert (await operators.ban(ME, ban())).node_id == NODE
    with pytest.raises(ApiError, match="2 nodes start with"):
        await operators.ban(ME, ban(node_id=NODE[:-1]))
    with pytest.raises(ApiError, match="no node is called nobody"):
        await operators.ban(ME, ban(node_id="nobody"))


# -- clients -----------------------------------------------------------------------------------------------


CLIENT = f"c-{'5' * 32}"


def ban_client(**changes):
    return replace(m.ClientBanRequest(client_id=CLIENT, reason="floods"), **changes)


def ban_ends_ms(central):
    return clients.banned_until_ms(central.world.clients, CLIENT, central.log.machine.wall_ms())


async def test_a_client_is_banned_for_so_long_and_pardoned(central, operators):
    before_ms = central.log.machine.wall_ms()
    view = await operators.ban_client(ME, ban_client(for_s=60))
    assert 60_000 <= view.banned_until_ms - before_ms <= 60_000 + (central.log.machine.wall_ms() - before_ms)
    assert (view.reason, view.by, view.bans) == ("floods", ME, 1)
    assert ban_ends_ms(central) == view.banned_until_ms
    view = await operators.pardon_client(ME, m.ClientPardonRequest(client_id=CLIENT, reason="said sorry"))
    assert (view.banned_until_ms, view.reason, ban_ends_ms(central)) == (0, "said sorry", 0)


async def test_a_client_is_banned_for_longer_each_time(central, operators):
    lasting = []
    for _ in range(4):
        before_ms = central.log.machine.wall_ms()
        lasting.append(((await operators.ban_client(ME, ban_client())).banned_until_ms - before_ms) // HOUR_MS)
        await operators.pardon_client(ME, m.ClientPardonRequest(client_id=CLIENT))
    assert lasting == [24, 48, 168, 168]


async def test_a_clients_ban_is_repeated_without_another_and_replaced_by_one(central, operators):
    asked = ban_client(request_id="first", for_s=60)
    await operators.ban_client(ME, asked)
    await operators.ban_client(ME, asked)
    assert (await operators.ban_client(ME, ban_client(for_s=3_600))).bans == 1
    await operators.pardon_client(ME, m.ClientPardonRequest(client_id=CLIENT, request_id="second"))
    assert (await operators.ban_client(ME, asked)).banned_until_ms == 0


async def test_the_pardon_of_a_client_that_is_not_banned_changes_nothing(central, operators):
    view = await operators.pardon_client(ME, m.ClientPardonRequest(client_id=CLIENT))
    assert (view, central.world.clients) == (m.ClientView(client_id=CLIENT), {})


async def test_only_operators_ban_clients_and_no_operator_is_banned(central):
    operators = Operators(central.log, central.world, central.dispatch, [CLIENT])
    for ask in (
        operators.ban_client("c-mallory", ban_client(client_id=f"c-{'6' * 32}")),
        operators.pardon_client("c-mallory", m.ClientPardonRequest(client_id=CLIENT)),
        operators.list_clients("c-mallory", m.ClientListRequest()),
    ):
        with pytest.raises(ApiError, match="c-mallory is no operator"):
            await ask
    with pytest.raises(ApiError, match="take it out of operators in network.json"):
        await operators.ban_client(CLIENT, ban_client())
    assert central.world.clients == {}


async def test_jobs_of_a_banned_client_go_on(central, operators):
    await central.say(subjects.job_event("job-1"), replace(f.submitted("job-1"), caller=CLIENT))
    await central.say(subjects.job_event("job-1"), f.FUNDED)
    assert (await operators.ban_client(ME, ban_client())).active_jobs == 1
    assert central.world.jobs["job-1"].status == "queued"
    assert [each.client_id for each in (await operators.list_clients(ME, m.ClientListRequest())).clients] == [CLIENT]
