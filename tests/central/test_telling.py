"""How central commands: signed to nodes that take nothing else, by the clock of the node, as the log has it."""

import asyncio

import pytest
from msgspec.structs import replace

from cyxcentral.machine import MACHINE
from cyxcentral.telling import Telling
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError, Bus
from cyxnet.commands import VALID_MS, Guard, NotTaken, Trust
from cyxnet.credentials import as_node
from tests.central import facts as f
from tests.central.centrals import (
    COMMANDER,
    KEY,
    NETWORK,
    NEXT_SESSION,
    NODE,
    SESSION,
    behind,
    heartbeat,
    leased,
    register,
)

HOUR_MS = 3_600_000
TRUST = Trust(network_id=NETWORK, platform_key=COMMANDER.platform_key)


class SignedNode:
    """The gate of a node on its real subject, and what came through it. ahead_ms: of its clock, to the machine's."""

    def __init__(self, bus):
        self.bus = bus
        self.ahead_ms = 0
        self.guard = Guard(NODE, SESSION, TRUST, self.clock_ms)
        self.said, self.taken = [], asyncio.Queue()

    def clock_ms(self):
        return MACHINE.wall_ms() + self.ahead_ms

    async def answer(self, subject, said):
        self.said.append(said)
        try:
            command = self.guard.opened(said)
        except NotTaken as error:
            return m.CommandReply(accepted=False, reason=str(error), code=error.code, now_ms=self.clock_ms())
        self.guard.took(command, said)
        self.taken.put_nowait(command)
        return m.CommandReply(accepted=True)

    async def told(self):
        return await asyncio.wait_for(self.taken.get(), 60)

    def beat(self, *runs, number=1, tells_clock=True):
        return replace(heartbeat(*runs), number=number, now_ms=self.clock_ms() if tells_clock else 0)


@pytest.fixture
async def node(broker):
    bus = await Bus.connect(broker.url("node"), name="node", credentials=as_node(KEY, NODE))
    made = SignedNode(bus)
    await bus.answer(subjects.command(NODE), m.Command | m.SignedCommand, made.answer)
    yield made
    await bus.close()


def asks_for_signed(**changes):
    return register(signed_commands=True, **changes)


async def test_a_node_that_asks_for_it_hears_signed_commands_only(scheduling, node):
    reply = await scheduling.dispatch._register(asks_for_signed())
    assert reply.platform_key == COMMANDER.platform_key
    assert scheduling.world.nodes[NODE].signed_commands
    await scheduling.job("job-1")
    assign = await node.told()
    assert (type(assign), assign.funded) == (m.Assign, False)
    await scheduling.say(subjects.job_event("job-1"), f.FUNDED)
    assert isinstance(await node.told(), m.Begin)
    await scheduling.say(subjects.job_event("job-1"), f.PAUSED)
    assert isinstance(await node.told(), m.Pause)
    await scheduling.dispatch.stop_run("job-1", scheduling.world.jobs["job-1"].attempts[-1], "cancelled")
    assert (await node.told()).reason == "cancelled"
    assert {type(said) for said in node.said} == {m.SignedCommand}
    places = [said.sequence for said in node.said]
    assert places == sorted(places) and places[0] < places[1] < places[2] == places[3]
    assert node.guard.refused == {}


async def test_an_older_node_hears_what_it_always_heard(scheduling, node):
    reply = await scheduling.dispatch._register(register())
    assert reply.platform_key == ""
    assert not scheduling.world.nodes[NODE].signed_commands
    await scheduling.job("job-1", f.FUNDED)
    await scheduling.until(lambda: node.said)
    assert isinstance(node.said[0], m.Assign)
    reply = await scheduling.dispatch._heartbeat(heartbeat(("job-9", 1)))
    assert ([run.job_id for run in reply.stop], reply.orders) == (["job-9"], None)


async def test_that_a_node_takes_signed_commands_only_is_signed_by_it(central):
    said = asks_for_signed()
    with pytest.raises(ApiError, match="is not signed by the node's key"):
        await central.dispatch._register(replace(said, signed_commands=False))


async def told_at_once(central, *job_ids):
    """What two commands look like that are said in one turn of the loop."""
    asks = [m.Stop(job_id=job_id, attempt=1, session=SESSION, reason="over") for job_id in job_ids]
    return await asyncio.gather(*(central.dispatch._nodes.ask(NODE, ask) for ask in asks))


@pytest.mark.parametrize("knows", [True, False])
async def test_what_is_said_in_one_moment_shares_a_signature_with_who_knows_such(central, node, knows):
    await central.dispatch._register(asks_for_signed(shared_signatures=knows))
    assert central.world.nodes[NODE].shared_signatures is knows
    for job_id in ("job-1", "job-2"):
        await central.job(job_id, leased())
    assert [reply.accepted for reply in await told_at_once(central, "job-1", "job-2")] == [True, True]
    assert len({said.signature for said in node.said}) == (1 if knows else 2)
    assert [bool(said.path) for said in node.said] == [knows, knows]
    await told_at_once(central, "job-1")
    assert not node.said[-1].path  # alone it is signed as ever


async def test_who_gives_up_before_a_command_is_signed_costs_the_others_nothing(central, node):
    await central.dispatch._register(asks_for_signed(shared_signatures=True))
    for job_id in ("job-1", "job-2"):
        await central.job(job_id, leased())
    first, second = (asyncio.ensure_future(told_at_once(central, job_id)) for job_id in ("job-1", "job-2"))
    await asyncio.sleep(0)
    first.cancel()
    assert [reply.accepted for reply in await second] == [True]
    assert [said.path for said in node.said] == [[]]


async def test_what_a_heartbeat_is_answered_is_signed_for_that_heartbeat(central, node):
    await central.dispatch._register(asks_for_signed())
    await central.job("job-1", leased(), f.FUNDED)
    reply = await central.dispatch._heartbeat(node.beat(("job-1", 1, "ready"), ("job-9", 1), number=4))
    assert (reply.stop, reply.begin, reply.pause) == ([], [], [])
    orders = node.guard.orders(reply, 4)
    assert [[run.job_id for run in runs] for runs in (orders.stop, orders.begin, orders.pause)] == [
        ["job-9"],
        ["job-1"],
        [],
    ]
    with pytest.raises(NotTaken, match="it answers heartbeat 4, not 5"):
        node.guard.orders(reply, 5)
    usual = await central.dispatch._heartbeat(node.beat(("job-1", 1, "training"), number=5))
    assert (usual.known, usual.orders) == (True, None)


@pytest.mark.parametrize("hours", [-1, 1, 20])
async def test_a_clock_that_is_hours_off_costs_nothing_once_the_node_has_told_it(scheduling, node, hours):
    node.ahead_ms = hours * HOUR_MS
    await scheduling.dispatch._register(asks_for_signed(now_ms=node.clock_ms()))
    await scheduling.job("job-1", f.FUNDED)
    assert isinstance(await node.told(), m.Assign)
    assert node.guard.refused == {}


@pytest.mark.parametrize(("hours", "code"), [(1, "expired"), (-1, "good_too_long")])
async def test_a_central_that_has_not_heard_the_clock_of_a_node_is_told_it_and_says_it_again(
    scheduling, node, hours, code
):
    node.ahead_ms = hours * HOUR_MS
    await scheduling.dispatch._register(asks_for_signed())  # as after a restart: nobody told this central
    await scheduling.job("job-1", f.FUNDED)
    assert isinstance(await node.told(), m.Assign)
    assert node.guard.refused == {code: 1}
    first, second = (said.expires_ms for said in node.said)
    assert abs(second - first - hours * HOUR_MS) < 60_000
    await scheduling.until(lambda: ("job-1", 1) in scheduling.dispatch._unnamed)
    assert scheduling.world.jobs["job-1"].current  # a clock loses no lease


async def test_the_clock_of_a_session_that_is_over_counts_for_none(central, node):
    telling = central.dispatch._nodes
    telling.heard(NODE, SESSION, MACHINE.wall_ms() + 20 * HOUR_MS)
    assert telling._now_ms(NODE, SESSION) > MACHINE.wall_ms() + 19 * HOUR_MS
    assert abs(telling._now_ms(NODE, NEXT_SESSION) - MACHINE.wall_ms()) < HOUR_MS


async def test_who_does_not_take_centrals_word_keeps_its_lease_and_is_told_again(scheduling, node):
    node.guard = Guard(NODE, SESSION, replace(TRUST, key_number=2), node.clock_ms)  # it has seen the next key
    await scheduling.dispatch._register(asks_for_signed())
    await scheduling.job("job-1", f.FUNDED)
    await scheduling.until(lambda: len(node.said) >= 2)
    assert set(node.guard.refused) == {"old_key"}
    assert scheduling.world.jobs["job-1"].current


async def test_a_central_that_lags_is_refused_as_a_replay_and_says_it_again_when_it_has_read_on(central, other, node):
    await central.dispatch._register(asks_for_signed())
    await central.job("job-1", leased())
    go_on = await behind(other, central)
    await central.say(subjects.job_event("job-1"), f.FUNDED)
    begin = m.Begin(job_id="job-1", attempt=1, session=SESSION)
    await central.dispatch._nodes.ask(NODE, begin)
    with pytest.raises(NotTaken) as error:
        await other.dispatch._nodes.ask(NODE, begin)
    assert error.value.code == "replayed"
    await go_on()
    assert (await other.dispatch._nodes.ask(NODE, begin)).accepted
    assert node.said[0].key == node.said[-1].key  # all centrals have one


async def test_commands_are_good_for_two_minutes_by_the_nodes_clock(central, node):
    node.ahead_ms = 5 * HOUR_MS
    await central.dispatch._register(asks_for_signed(now_ms=node.clock_ms()))
    await central.job("job-1", leased())
    await central.dispatch._nodes.ask(NODE, m.Begin(job_id="job-1", attempt=1, session=SESSION))
    assert abs(node.clock_ms() + VALID_MS - node.said[0].expires_ms) < 30_000


async def test_a_command_that_is_signed_again_keeps_its_place_whatever_happened_to_its_job_meanwhile(
    central, node, monkeypatch
):
    """It was made of what had been read then: after a newer one it has to be a replay."""
    node.ahead_ms = HOUR_MS
    await central.dispatch._register(asks_for_signed())
    await central.job("job-1", leased())
    telling, heard = central.dispatch._nodes, Telling.heard

    def heard_after_an_event(*said):
        central.world.last_seq[subjects.job_event("job-1")] += 1
        heard(telling, *said)

    monkeypatch.setattr(telling, "heard", heard_after_an_event)
    assert (await telling.ask(NODE, m.Begin(job_id="job-1", attempt=1, session=SESSION))).accepted
    first, second = node.said
    assert first.sequence == second.sequence and first.expires_ms < second.expires_ms


@pytest.mark.parametrize("now_ms", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, -1])
async def test_a_node_that_tells_an_absurd_clock_is_given_up_on_and_holds_nobody_up(broker, central, now_ms):
    said = []

    async def answer(subject, command):
        said.append(command)
        return {"accepted": False, "reason": "", "code": "expired", "now_ms": now_ms}

    bus = await Bus.connect(broker.url("node"), name="node", credentials=as_node(KEY, NODE))
    try:
        await bus.answer(subjects.command(NODE), m.Command | m.SignedCommand, answer)
        await central.dispatch._register(asks_for_signed())
        await central.job("job-1", leased())
        with pytest.raises(CyxError):
            await central.dispatch._nodes.ask(NODE, m.Begin(job_id="job-1", attempt=1, session=SESSION))
        assert 1 <= len(said) <= 2
        await central.dispatch.stop_run("job-1", central.world.jobs["job-1"].attempts[-1], "cancelled")
    finally:
        await bus.close()
