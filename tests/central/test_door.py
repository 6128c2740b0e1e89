"""Who may come in and what they may do then: on a real broker whose door is central's."""

import asyncio
import base64
import contextlib
import inspect
import json
import time
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from cyxcentral.admission import Admitted, Proof, Refused, decide
from cyxcentral.central import Central
from cyxcentral.door import CAME, Door
from cyxcentral.machine import Machine
from cyxcentral.nodes import evolve
from cyxcentral.world import World
from cyxnet import credentials as c
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.broker import MAX_PAYLOAD_BYTES, MAX_SUBSCRIPTIONS, Broker, Passwords
from cyxnet.bus import Bus, BusError, NotAdmitted
from cyxnet.caller import Caller
from cyxnet.codec import MSGPACK, encode
from cyxnet.identity import Identity
from cyxnet.ratelimit import Newcomers
from tests.central import facts as f
from tests.doorkeeper import CENTRAL, opened

ALICE, MALLORY = c.as_client(Identity(b"a" * 32)), c.as_client(Identity(b"m" * 32))
KEYS = {name: Identity(name.encode().ljust(32)) for name in ("one", "two")}
ONE, TWO = (c.as_node(keys, f"{name}-{keys.short_id}") for name, keys in KEYS.items())
OPERATOR = c.as_client(Identity(b"o" * 32))
ROLES = {"client": ALICE, "node": ONE, "operator": OPERATOR}


DIGITS, CATS = (subjects.deployment_id(name, ALICE.id) for name in ("digits", "cats"))
REPLICA = c.as_replica(KEYS["one"], ONE.id, "job-1", 3)


class Gate:
    """What admission knows: which nodes there are, and which leases. `lasts_s`: of a connection."""

    def __init__(self):
        self.nodes = {}
        self.leases = {(ONE.id, "job-1", 3): DIGITS}
        self.banned = {}
        self.lasts_s = 900

    def banned_until_ms(self, client_id):
        return self.banned.get(client_id, 0)

    def __call__(self, proof):
        def serves(*lease):
            return self.leases.get(lease)

        now_ms = time.time_ns() // 1_000_000
        return decide(proof, self.nodes.get, [OPERATOR.id], self.lasts_s, now_ms, self.banned_until_ms, serves)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
async def network(tmp_path, gate):
    """(broker, door, central's bus in EDGE)"""
    broker = await asyncio.to_thread(Broker.start, tmp_path / "broker", Passwords.fresh(CENTRAL))
    system, door = await opened(broker.url("client"), gate)
    edge = await Bus.connect(broker.url("edge"), name="central")
    yield broker, door, edge
    for bus in (edge, system):
        await bus.close()
    await asyncio.to_thread(broker.stop)


@pytest.fixture
async def join(network):
    """join(credentials) is a connection of theirs."""
    async with contextlib.AsyncExitStack() as stack:

        async def join(who, **options):
            bus = await Bus.connect(network[0].url("client"), name=who.id, credentials=who, **options)
            stack.push_async_callback(bus.close)
            return bus

        yield join


class Ears:
    """Central, hearing all that is said."""

    def __init__(self, edge):
        self.edge, self.heard = edge, []

    @classmethod
    async def open(cls, edge):
        ears = cls(edge)
        await edge.subscribe(">", ears._take)
        return ears

    async def _take(self, subject, payload, headers):
        self.heard.append((subject, payload))

    async def settle(self, bus):
        """Everything that this connection said before has been heard."""
        await bus.round_trip()
        await self.edge.round_trip()
        await self.edge.publish("settled", b"")
        async with asyncio.timeout(60):
            while not any(subject == "settled" for subject, _ in self.heard):
                await self.edge.round_trip()
        heard = [subject for subject, _ in self.heard if not subject.startswith("settled")]
        self.heard.clear()
        return heard


# -- the table of all there is to say and to hear --------------------------------------------------------------

OWN = {"client": ALICE.id, "node": ONE.id, "operator": OPERATOR.id}


def spoken(role):
    """subject -> whether this role may publish there."""
    me, other = OWN[role], MALLORY.id
    table = {}
    for name, verb in subjects.VERBS.items():
        allowed = name.startswith(("artifact.", "key.")) if role == "node" else role == "operator" or not verb.operator
        table[subjects.api(me, name)] = allowed
        table[subjects.api(other, name)] = False
    for verb in [*subjects.NODE_VERBS, *subjects.NODE_TELEMETRY]:
        table[subjects.node(me, verb)] = role == "node"
        table[subjects.node(TWO.id, verb)] = False
    table |= dict.fromkeys([f"$SRV.{verb}{name}" for verb in ("PING", "INFO", "STATS") for name in ("", ".cyx")], True)
    if role == "node":
        table |= {subject: False for subject in table if subject.startswith("$SRV")}
    table[subjects.infer("digits-0123456789ab", me)] = role != "node"
    table[subjects.taken("digits-0123456789ab", me, "token")] = role != "node"
    never = [
        subjects.infer("digits-0123456789ab", other),
        subjects.taken("digits-0123456789ab", other, "token"),
        subjects.ping(REPLICA.id),
        subjects.reply(subjects.CENTRAL, "token"),
        subjects.reply(me, "token"),
        subjects.reply(other, "token"),
        subjects.command(me),
        subjects.command(TWO.id),
        subjects.update("job-1"),
        subjects.job_event("job-1"),
        subjects.node_event(me),
        subjects.client_event(me),
        subjects.mint_event("mint-1"),
        subjects.PAYOUTS_EVENT,
        subjects.telemetry(me),
        subjects.chunk("0" * 64),
        subjects.manifest("0" * 64),
        subjects.condemned("0" * 64),
        subjects.sent("0" * 64, me),
        subjects.access("0" * 12),
        f"_INBOX_{other}.x",
        f"_INBOX_{me}.x",
        "_INBOX.x",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.CYX_EVENTS",
        "$JS.ACK.CYX_EVENTS.x.1.1.1.1.1",
        "$KV.x.y",
        "$O.x.y",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.USER.AUTH",
        "anything",
    ]
    return table | dict.fromkeys(never, False)


def listened(role):
    """subject -> whether this role may subscribe there."""
    me = OWN[role]
    return {
        f"_INBOX_{me}.>": True,
        f"_INBOX_{me}.x": True,
        subjects.reply(me, ">"): role != "node",
        subjects.reply(me, "token"): role != "node",
        subjects.update("*"): role != "node",
        subjects.update("job-1"): role != "node",
        subjects.command(me): role == "node",
    } | dict.fromkeys(
        [
            ">",
            "*",
            "_INBOX.>",
            f"_INBOX_{MALLORY.id}.>",
            "cyx.v1.>",
            subjects.infer("*", "*"),
            subjects.infer(DIGITS, "*"),
            subjects.reply("*", ">"),
            subjects.reply(MALLORY.id, ">"),
            subjects.reply(subjects.CENTRAL, ">"),
            subjects.taken("*", "*", "*"),
            subjects.taken(DIGITS, me, "token"),
            subjects.ping("*/*/*"),
            subjects.ping(REPLICA.id),
            subjects.command("*"),
            subjects.command(TWO.id),
            subjects.api("*", "job.submit"),
            subjects.api(me, "job.submit"),
            subjects.node("*", "heartbeat"),
            subjects.EVENT_SUBJECTS,
            subjects.TELEMETRY_SUBJECTS,
            subjects.BLOB_SUBJECTS,
            subjects.ACCESS_SUBJECTS,
            "$JS.>",
            "$SYS.>",
            "$SRV.>",
        ],
        False,
    )


@pytest.mark.parametrize("role", ROLES)
def test_the_tables_have_every_kind_of_subject_that_there_is(role):
    """A kind that is added to cyxnet/subjects.py without a row here would be promised nothing."""
    made = [
        each(*["hole"] * len(inspect.signature(each).parameters))
        for each in vars(subjects).values()
        if inspect.isfunction(each) and inspect.signature(each).return_annotation is str
    ]
    kinds = {text.split(".hole")[0] for text in (*made, subjects.PAYOUTS_EVENT) if text.startswith(subjects.ROOT)}
    assert len(kinds) > 15
    for kind in kinds:
        assert any(subject.startswith(f"{kind}.") or subject == kind for subject in spoken(role)), kind
        covers = (subject.rstrip("*>.") for subject in listened(role) if subject not in (">", "*", "cyx.v1.>"))
        assert any(kind.startswith(each) or each.startswith(kind) for each in covers if each), kind


@pytest.mark.parametrize("role", ROLES)
async def test_nobody_but_a_replica_takes_a_turn_in_answering(network, join, role):
    bus, edge, heard = await join(ROLES[role]), network[2], []
    for subject in (subjects.infer("*", "*"), subjects.infer(DIGITS, "*"), subjects.infer(DIGITS, OWN[role])):
        await bus.attend(subject, heard.append, subjects.REPLICAS)
    await edge.publish(subjects.infer(DIGITS, OWN[role]), b"x")
    await edge.round_trip()
    await bus.round_trip()
    assert heard == []


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_publish_exactly_what_the_table_says(network, join, role):
    bus = await join(ROLES[role])
    ears = await Ears.open(network[2])
    for subject in (table := spoken(role)):
        await bus.publish(subject, b"x")
    assert sorted(set(await ears.settle(bus))) == sorted(subject for subject, allowed in table.items() if allowed)


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_request_exactly_what_the_table_says(network, join, role):
    bus = await join(ROLES[role])
    ears = await Ears.open(network[2])
    for subject in (table := spoken(role)):
        await bus.publish(subject, b"x", reply=f"_INBOX_{OWN[role]}.1")
    assert sorted(set(await ears.settle(bus))) == sorted(subject for subject, allowed in table.items() if allowed)


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_subscribe_to_exactly_what_the_table_says(network, join, role):
    bus, edge = await join(ROLES[role]), network[2]
    for subject, allowed in listened(role).items():
        heard = []

        async def take(said_on, payload, headers, heard=heard):
            heard.append(said_on)

        subscription = await bus.subscribe(subject, take)
        await edge.publish(subject.replace("*", "x").replace(">", "x.y"), b"x")
        await edge.round_trip()
        await bus.round_trip()
        await asyncio.sleep(0)  # the callback's turn
        assert bool(heard) == allowed, subject
        await subscription.unsubscribe()


# -- replicas --------------------------------------------------------------------------------------------------


async def test_a_replica_may_publish_answers_and_nothing_else(network, join):
    bus = await join(REPLICA)
    ears = await Ears.open(network[2])
    elsewhere = {subject for role in ROLES for subject in spoken(role)} | {f"_INBOX_{ALICE.id}.x", "cyx.v1.reply.x"}
    answers = {subject for subject in elsewhere if subject.startswith("cyx.v1.reply.") and subject.count(".") == 4}
    for subject in elsewhere:
        await bus.publish(subject, b"x")
        await bus.publish(subject, b"x", reply=f"_INBOX_{ONE.id}.1")
    assert set(await ears.settle(bus)) == answers and subjects.reply(ALICE.id, "token") in answers


async def test_a_replica_hears_the_questions_to_its_own_deployment_and_only_in_its_turn(network, join):
    bus, edge, heard = await join(REPLICA), network[2], []
    mine = subjects.infer(DIGITS, "*")
    for subject, queue in [
        (subjects.ping("node-2/job-1/3"), ""),  # what central asks another one
        (mine, ""),  # a copy of what other replicas answer
        (mine, "others"),
        (subjects.infer(CATS, "*"), subjects.REPLICAS),
        (subjects.infer("*", "*"), subjects.REPLICAS),
        (subjects.command(ONE.id), ""),
        (subjects.reply("*", ">"), ""),
        (f"_INBOX_{ONE.id}.>", ""),
        (">", ""),
        (">", subjects.REPLICAS),
    ]:
        await bus.attend(subject, heard.append, queue)
    others = subjects.ping("node-2/job-1/3")
    for subject in (subjects.infer(DIGITS, ALICE.id), subjects.infer(CATS, ALICE.id), subjects.command(ONE.id), others):
        await edge.publish(subject, b"x", reply=subjects.reply(ALICE.id, "token"))
    await edge.round_trip()
    await bus.round_trip()
    assert heard == []
    await bus.attend(mine, heard.append, subjects.REPLICAS)
    await edge.publish(subjects.infer(DIGITS, ALICE.id), b"x")
    await edge.round_trip()
    await bus.round_trip()
    assert [message.subject for message in heard] == [subjects.infer(DIGITS, ALICE.id)]


@pytest.mark.parametrize(
    "who",
    [
        c.as_replica(KEYS["two"], TWO.id, "job-1", 3),
        c.as_replica(KEYS["one"], ONE.id, "job-1", 2),
        c.as_replica(KEYS["one"], ONE.id, "job-2", 3),
        c.as_replica(KEYS["two"], ONE.id, "job-1", 3),
    ],
    ids=["another node", "an attempt that is over", "another job", "another key"],
)
async def test_who_does_not_hold_the_lease_is_no_replica(network, join, who):
    with pytest.raises(NotAdmitted):
        await join(who)


async def test_a_replica_whose_lease_is_over_is_thrown_out_and_the_node_stays(network, join, gate):
    _, door, edge = network
    node, replica, heard = await join(ONE), await join(REPLICA), []
    await replica.attend(subjects.infer(DIGITS, "*"), heard.append, subjects.REPLICAS)
    gate.leases.clear()
    await door.throw_out(REPLICA.id)
    async with asyncio.timeout(60):
        while replica.connected:
            await edge.round_trip()
    await node.round_trip()
    assert node.connected
    with pytest.raises(NotAdmitted):
        await join(REPLICA)


# -- attacks ---------------------------------------------------------------------------------------------------


async def test_an_answer_of_central_is_not_laundered_into_a_command_for_another_node(network, join):
    """The bytes of a chunk come from the attacker, and central may publish everywhere."""
    edge = network[2]
    forged = encode(m.Stop(job_id="job-1", attempt=1, session="0" * 32, reason="forged"), MSGPACK)

    async def chunk(caller, ask):
        return forged

    await edge.serve("0.1.0", "test", {"artifact.chunk": chunk})
    victim, attacker, commands = await join(TWO), await join(ONE), []

    async def take(subject, payload, headers):
        commands.append(payload)

    await victim.subscribe(subjects.command(TWO.id), take)
    asked = encode(m.ArtifactRefRequest(sha256="0" * 64), MSGPACK)
    subject = subjects.api(ONE.id, "artifact.chunk")
    await attacker.publish(subject, asked, reply=subjects.command(TWO.id))
    got, _ = await attacker.request(subject, asked, content_type=MSGPACK)  # asked after it, and in its own inbox
    await victim.round_trip()
    assert (got, commands, edge.foreign_replies) == (forged, [], 1)


async def test_an_answer_of_central_to_a_node_is_not_laundered_into_another_nodes_words(network, join):
    edge, heard = network[2], []

    async def answer(subject, said):
        heard.append(subject)
        return {}

    await edge.answer(subjects.node("*", "heartbeat"), dict, answer, strangers=True)
    attacker = await join(ONE)
    mine = subjects.node(ONE.id, "heartbeat")
    await attacker.publish(mine, encode({}, MSGPACK), reply=subjects.node(TWO.id, "heartbeat"))
    await attacker.ask(mine, {}, dict)
    assert heard == [mine]


async def test_discovery_answers_into_inboxes_only(network, join):
    edge = network[2]
    await edge.serve("0.1.0", "test", {})
    ears, attacker = await Ears.open(edge), await join(MALLORY)
    await attacker.publish("$SRV.PING", b"", reply=subjects.command(TWO.id))
    assert await ears.settle(attacker) == ["$SRV.PING"]


async def test_a_reply_subject_reaches_no_stream_of_core(network, join):
    broker, _, _ = network
    core = await Bus.connect(broker.url("core"), name="core")
    await core.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS])
    attacker = await join(ONE)
    for subject in (subjects.node(ONE.id, "heartbeat"), "$JS.API.STREAM.INFO.CYX_EVENTS"):
        await attacker.publish(subject, b"x", reply=subjects.job_event("forged"))
    await attacker.round_trip()
    assert await core.last_seq(subjects.EVENTS) == 0
    await core.close()


async def test_a_message_id_of_a_stranger_keeps_no_event_out(network, join):
    broker, _, _ = network
    core = await Bus.connect(broker.url("core"), name="core")
    await core.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS])
    attacker = await join(ONE)
    poison = {"Nats-Msg-Id": "job-1:1"}
    await attacker._nc.publish(subjects.node(ONE.id, "progress"), b"x", headers=poison)
    await attacker._nc.publish(subjects.job_event("job-1"), b"x", headers=poison)
    await attacker.round_trip()
    assert await core.append(subjects.job_event("job-1"), b"true", expected_seq=0) == 1
    await core.close()


@pytest.mark.parametrize("wild", ["*", ">", f"{ONE.id}.>"])
async def test_a_literal_wildcard_is_nobodys_subject(network, join, wild):
    attacker = await join(ONE)
    ears = await Ears.open(network[2])
    await attacker.publish(f"cyx.v1.node.{wild}", b"x")
    assert await ears.settle(attacker) == []


# -- limits ----------------------------------------------------------------------------------------------------


async def test_one_identity_has_so_many_connections_and_not_one_more(tmp_path, gate):
    broker = await asyncio.to_thread(Broker.start, tmp_path / "broker", Passwords.fresh(CENTRAL))
    system, door = await opened(broker.url("client"), gate, connections=3)

    async def come(who):
        return await Bus.connect(broker.url("client"), name=who.id, credentials=who)

    try:
        flood = await asyncio.gather(*(come(MALLORY) for _ in range(12)), return_exceptions=True)
        inside = [each for each in flood if isinstance(each, Bus)]
        refused = [each for each in flood if isinstance(each, NotAdmitted)]
        assert (len(inside), len(refused)) == (3, 9)
        assert "too many connections" in str(refused[0])
        await (await come(ALICE)).close()  # others come and go meanwhile
        await inside[0].close()
        async with asyncio.timeout(60):
            while door._crowd.count(MALLORY.id, door._clock()) == 3:
                await system.round_trip()
        inside[0] = await come(MALLORY)
        for bus in inside:
            await bus.close()
    finally:
        await system.close()
        await asyncio.to_thread(broker.stop)


async def test_a_connection_too_many_that_another_central_let_in_is_thrown_out(network, join):
    system = await Bus.connect(network[0].url("client"), name="another", credentials=c.as_system(CENTRAL))
    other = Door(system, CENTRAL, decide, connections=1)  # it was not asked, and hears who comes
    await system.subscribe(CAME, other._on_news)
    first = await join(MALLORY)
    with contextlib.suppress(BusError):  # thrown out before it was quite inside
        second = await join(MALLORY)
        async with asyncio.timeout(60):
            while not second._nc.stats["reconnects"]:
                await network[2].round_trip()
    assert first._nc.stats["reconnects"] == 0
    await system.close()


async def test_connections_of_a_broker_that_died_keep_nobody_out(network, join):
    # it says nothing of their end, and each of its deaths would have cost everybody a connection
    _, door, edge = network
    for number in range(door._connections - 1):
        door._crowd.came(ALICE.id, ("a broker that died", number), 900.0, door._clock())
    await join(ALICE)
    async with asyncio.timeout(60):
        while door._crowd.count(ALICE.id, door._clock()) != 1:
            await edge.round_trip()


async def test_connections_that_say_nothing_keep_nobody_out_and_are_ended(network, join):
    async with contextlib.AsyncExitStack() as stack:
        silent = []
        for _ in range(100):
            reader, writer = await asyncio.open_connection("127.0.0.1", network[0].port)
            stack.callback(writer.close)
            silent.append(reader)
        alice = await join(ALICE)
        await alice.round_trip()
        async with asyncio.timeout(60):
            for reader in silent:
                assert b"Authentication Timeout" in await reader.read()  # to the end: the broker hung up


async def test_who_does_not_read_is_dropped_and_others_hear_all(network, join):
    _, door, edge = network
    attacker, alice = await join(MALLORY), await join(ALICE)
    heard, enough, block = 0, asyncio.Event(), bytes(2**20)

    async def take(subject, payload, headers):
        nonlocal heard
        heard += 1
        if heard == 150:
            enough.set()

    async def never(subject, payload, headers):
        raise AssertionError("it reads nothing")

    await alice.subscribe(subjects.update("*"), take)
    await attacker.subscribe(subjects.update("*"), never)
    attacker._nc._transport._io_writer.transport.pause_reading()
    for _ in range(150):
        await edge.publish(subjects.update("job-1"), block)
        await edge.round_trip()
    async with asyncio.timeout(60):
        await enough.wait()
        while door._crowd.count(MALLORY.id, door._clock()):
            await edge.round_trip()
    attacker._nc._transport._io_writer.transport.abort()  # what it has not read yet is of no use


async def test_subscriptions_beyond_the_limit_are_refused_and_the_link_stays(network, join):
    # nats-server does not apply the limits in the answer of an auth callout
    client, said = await join(ALICE), asyncio.Event()

    async def tell(error):
        if "maximum subscriptions exceeded" in str(error):
            said.set()

    client._nc._error_cb = tell
    for number in range(MAX_SUBSCRIPTIONS + 1):
        await client._nc.subscribe(f"_INBOX_{ALICE.id}.{number}")
    async with asyncio.timeout(60):
        await said.wait()
    await client.round_trip()
    assert client.connected and not client._nc.stats["reconnects"]


async def test_a_payload_beyond_the_limit_is_heard_by_nobody_and_ends_the_link(network, join):
    node = await join(ONE)
    ears = await Ears.open(network[2])
    node._nc._max_payload = 2 * MAX_PAYLOAD_BYTES  # what a client of somebody else may do
    await node.publish(subjects.node(ONE.id, "progress"), bytes(MAX_PAYLOAD_BYTES + 1))
    async with asyncio.timeout(60):
        while not node._nc.stats["reconnects"]:
            await network[2].round_trip()
    assert await ears.settle(node) == []


async def test_nobodys_inbox_is_flooded_with_what_another_asked_for(network, join):
    edge, got = network[2], []
    await edge.serve("0.1.0", "test", {})
    victim, attacker = await join(TWO), await join(MALLORY)

    async def take(subject, payload, headers):
        got.append(subject)

    await victim.subscribe(f"_INBOX_{TWO.id}.>", take)
    for number in range(1_000):
        await attacker.publish("$SRV.INFO", b"", reply=f"_INBOX_{TWO.id}.{number}")
    for bus in (attacker, edge, victim):
        await bus.round_trip()
    answer = json.loads((await attacker._nc.request("$SRV.PING.cyx", b"", timeout=5)).data)  # others still may ask
    await victim.round_trip()
    assert answer["name"] == "cyx"
    assert 0 < len(got) <= 100


# -- at the door -----------------------------------------------------------------------------------------------


def proof(who, nonce="n-1", **changes):
    return replace(
        Proof(nkey=who.nkey, sig=who.sign(nonce).decode(), auth_token=who.token or "", nonce=nonce), **changes
    )


def admitted(shown, nodes=None):
    return decide(shown, (nodes or {}).get, [OPERATOR.id], 900, now_ms=1)


def test_who_shows_a_key_is_who_the_key_stands_for():
    assert admitted(proof(ALICE)) == Admitted(role="client", identity=ALICE.id, lasts_s=900)
    assert admitted(proof(OPERATOR)) == Admitted(role="operator", identity=OPERATOR.id, lasts_s=900)
    assert admitted(proof(ONE)) == Admitted(role="node", identity=ONE.id, lasts_s=900)


STOLEN = proof(ALICE, nonce="n-2")
WRONG = {
    "no key": Proof(nonce="n-1"),
    "no nonce": proof(ALICE, nonce=""),
    "no signature": proof(ALICE, sig=""),
    "another nonce's signature": proof(ALICE, sig=STOLEN.sig),
    "another key's signature": proof(ALICE, sig=proof(MALLORY).sig),
    "a signature with one bit flipped": proof(
        ALICE, sig=base64.b64encode(bytes([1 ^ (raw := base64.b64decode(proof(ALICE).sig))[0]]) + raw[1:]).decode()
    ),
    "no base 64": proof(ALICE, sig="ä"),
    "an account's key": proof(ALICE, nkey=c.nkey(c.ACCOUNT, c.nkey_bytes(c.USER, ALICE.nkey))),
    "a key with a typo": proof(ALICE, nkey=ALICE.nkey[:-1] + ("A" if ALICE.nkey[-1] != "A" else "B")),
    "a key of small order, for which anybody signs": proof(
        ALICE,
        nkey=c.nkey(c.USER, bytes([1]) + bytes(31)),
        sig=base64.b64encode(bytes([1]) + bytes(63)).decode(),
    ),
    "another node's token": proof(ONE, auth_token=TWO.token),
    "a token that is none": proof(ONE, auth_token="{}"),
    "a token too deep": proof(ONE, auth_token="[" * 100_000),
    "another node's id": proof(ONE, auth_token=ONE.token.replace(ONE.id, TWO.id)),
}


@pytest.mark.parametrize("what", WRONG)
def test_who_proves_nothing_is_refused(what):
    assert isinstance(admitted(WRONG[what]), Refused)


def test_a_node_that_is_registered_with_another_key_is_refused():
    node = evolve(None, replace(f.registered(), node_id=ONE.id, public_key="ab" * 32), 0)
    assert "another key" in admitted(proof(ONE), {ONE.id: node}).reason


async def test_a_wrong_key_is_told_so_at_once(network, join):
    with pytest.raises(NotAdmitted, match="does not let .* in"):
        await join(replace(ALICE, sign=MALLORY.sign))


async def test_without_a_central_nobody_comes_in_and_who_is_in_stays(network, join):
    broker, door, edge = network
    inside = await join(ALICE)
    await door._system.close()
    with pytest.raises(BusError, match="no central lets anybody in"):
        await join(MALLORY, patience_s=0.5)
    ears = await Ears.open(edge)
    await inside.publish(mine := subjects.api(ALICE.id, "job.list"), b"x")
    assert await ears.settle(inside) == [mine]
    broker.process.kill()  # it would wait for the central's answer about Mallory


def test_a_connection_ends_by_the_clock_of_its_broker():
    # a central whose clock was an hour behind let nobody in: what it gave was over when its broker read it
    door = Door(None, CENTRAL, lambda proof: Admitted(role="client", identity=ALICE.id, lasts_s=900))
    asked = {"iat": 5_000, "nats": {"user_nkey": "U", "server_id": {"id": "N"}}}
    answer = claims_of(door.answer(b"e30." + base64.urlsafe_b64encode(json.dumps(asked).encode()) + b".e30"))
    permit = claims_of(answer["nats"]["jwt"].encode())
    assert (answer["iat"], permit["iat"], permit["exp"]) == (5_000, 5_000, 5_900)


def claims_of(token):
    """What a JWT says."""
    return json.loads(base64.urlsafe_b64decode(token.split(b".")[1] + b"=="))


async def test_who_asked_longer_ago_than_his_broker_waits_is_not_let_in_when_the_door_opens(monkeypatch):
    # each of them counted as a connection on its way, and an honest try was one too many
    monkeypatch.setattr("cyxcentral.door.ADMISSION_TIMEOUT_S", 0.0)
    asked = []
    door = Door(None, CENTRAL, asked.append)
    async with asyncio.timeout(60):
        assert await door._on_asked(b"e30.e30.e30") == b""
    assert asked == []


async def test_a_request_that_waits_makes_no_other_wait(network):
    _, door, edge = network
    go_on = asyncio.Event()

    async def answer(payload):
        if payload == b"first":
            await go_on.wait()
        return payload

    await edge.answer_raw("asked", answer)
    first = asyncio.create_task(edge._nc.request("asked", b"first", timeout=10))
    await edge.round_trip()
    assert (await edge._nc.request("asked", b"second", timeout=10)).data == b"second"
    go_on.set()
    assert (await first).data == b"first"


async def test_a_banned_node_is_thrown_out_at_once_and_let_in_when_it_is_pardoned(network, join, gate, caplog):
    _, door, edge = network
    node = await join(ONE)
    known = evolve(None, replace(f.registered(), node_id=ONE.id, public_key=KEYS["one"].public_key), 0)
    gate.nodes[ONE.id] = evolve(known, m.NodeBanned(until_ms=2**53, reason="test"), 1)
    await door.throw_out(ONE.id)
    async with asyncio.timeout(60):
        while node.connected:
            await edge.round_trip()
    with pytest.raises(NotAdmitted):
        await join(ONE)
    async with asyncio.timeout(60):
        while f"does not let {ONE.id} in any more: it is banned, has " not in caplog.text:
            await edge.round_trip()
    gate.nodes[ONE.id] = known
    async with asyncio.timeout(60):
        while not node.connected:
            await edge.round_trip()


async def test_who_is_thrown_out_hears_why_with_what_he_asked_and_asks_again_in_vain_no_more(network, join, gate):
    # the link was lost, it seemed to him: he looked for the broker for half a minute
    _, door, edge = network
    bus, heard, told = await join(ALICE), asyncio.Event(), []

    async def status(caller, ask):
        heard.set()
        await asyncio.Event().wait()

    await edge.serve("1.2.3", "test", {"job.status": status})
    alice = Caller(bus, Identity(b"a" * 32), ALICE.id)
    alice.retry_delays_s, alice.on_retry = (3600.0, 3600.0), lambda *pause: told.append(pause)
    async with asyncio.timeout(60):
        asking = asyncio.create_task(alice._ask("job.status", m.JobRef(job_id="1"), m.JobView, timeout_s=3600))
        await heard.wait()
        waiting = asyncio.create_task(bus.pause(3600))
        gate.banned[ALICE.id] = 2**53
        await door.throw_out(ALICE.id)
        with pytest.raises(NotAdmitted, match=f"does not let {ALICE.id} in: it is banned"):
            await asking
        await waiting
        with pytest.raises(NotAdmitted):
            await alice.job("1")
        with pytest.raises(NotAdmitted):
            bus.say(subjects.api(ALICE.id, "job.status"), b"")
        assert told == []
        gate.banned.clear()
        while not bus.connected:
            await edge.round_trip()
        bus.say(subjects.api(ALICE.id, "job.status"), b"")


async def test_who_is_known_to_be_inside_is_thrown_out_before_a_broker_says_where_he_is(
    network, join, gate, monkeypatch
):
    # a broker that is flooded answered a tenth of a second late, and passed on the flood meanwhile
    monkeypatch.setattr("cyxcentral.door.EVERY_SERVER", "$SYS.REQ.SERVER.PING.NOTHING")
    _, door, edge = network
    node, bystander = await join(ONE), await join(TWO)
    async with asyncio.timeout(60):
        while not door._crowd.inside(ONE.id):
            await edge.round_trip()
    known = evolve(None, replace(f.registered(), node_id=ONE.id, public_key=KEYS["one"].public_key), 0)
    gate.nodes[ONE.id] = evolve(known, m.NodeBanned(until_ms=2**53, reason="test"), 1)
    await door.throw_out(ONE.id)
    async with asyncio.timeout(60):
        while node.connected:
            await edge.round_trip()
    await bystander.round_trip()
    assert bystander.connected


def test_a_banned_client_is_refused_and_an_operator_never_is():
    mallory, operator = proof(MALLORY), proof(OPERATOR)

    def decided(proof):
        return decide(proof, {}.get, [OPERATOR.id], 900, 0, lambda client_id: 5)

    assert decided(mallory).reason == f"{MALLORY.id} is banned until 5 ms after 1970"
    assert decided(operator).role == "operator"


def test_new_nodes_of_one_address_come_in_slowly_and_those_that_are_registered_as_ever():
    central = SimpleNamespace(
        settings=SimpleNamespace(network=SimpleNamespace(operators=[], session_s=900)),
        events=SimpleNamespace(machine=Machine()),
        world=World(),
        _edge=SimpleNamespace(shut_out=lambda identity: False),
        _newcomers=Newcomers(0.001, at_once=1.0),
    )

    def come(who, host="203.0.113.9"):
        return Central._admit(central, proof(who, host=host))

    assert isinstance(come(ONE), Admitted)
    assert "too many new nodes come from 203.0.113.9" in come(TWO).reason
    assert isinstance(come(TWO, "203.0.113.10"), Admitted)
    assert isinstance(come(TWO, "127.0.0.1"), Admitted)
    central.world.nodes[TWO.id] = evolve(
        None, replace(f.registered(), node_id=TWO.id, public_key=KEYS["two"].public_key), 0
    )
    assert isinstance(come(TWO), Admitted)
    assert isinstance(come(ALICE), Admitted)  # who only comes leaves nothing behind


async def test_a_connection_whose_time_is_over_comes_again_and_hears_on(network, join, gate):
    # nats-py closed it for good
    edge = network[2]
    gate.lasts_s = 1
    node, heard = await join(ONE), asyncio.Event()

    async def take(subject, payload, headers):
        heard.set()

    await node.subscribe(subjects.command(ONE.id), take)
    async with asyncio.timeout(60):
        while node._nc.stats["reconnects"] < 2:
            await edge.round_trip()
        while not heard.is_set():
            await edge.publish(subjects.command(ONE.id), b"x")
            await edge.round_trip()


async def test_a_connection_is_renewed_before_its_time_is_over(network, join):
    node = await join(ONE, session_s=0.3)
    async with asyncio.timeout(60):
        while node._nc.stats["reconnects"] < 3:
            await network[2].round_trip()


def test_the_keys_of_a_seed_are_pinned():
    """Whoever changes one of them takes away everybody's name, money or connection."""
    keys = Identity(bytes(range(32)))
    assert keys.public_key == "68f378b19a223e1d5d1e3fc7804d5d3efbcc2598095376932e2293aca4a50cc0"
    assert keys.child("wallet").hex() == "966a3b404fdbb4892d6d760cb44d99923504589d291f5ae5ef28a70612396595"
    who = c.as_client(keys)
    assert who.nkey == "UD5H4TEPFKGD3BDNELD6KFRC5N7GH7Y6S7GTVWSGN65OZMMPZZDLU46A"
    assert who.id == "c-4744f3169ac44d4b8a7417cdf937fdc4"
    assert c.broker_nkeys(keys) == (
        "ABDLE4UMIC7EKEY6XTJASZKZC3TJJAXXDLD3TDCLJBWE5UZ44Z2I3IDR",
        "UABQHV54Z2UHMT3JK657DDX7E7KX23MFRUV2Q7CEXRNWTHDFLWYZUIPX",
    )


def test_nkeys_are_those_of_nats():
    nkeys = pytest.importorskip("nkeys")
    for seed in (bytes(range(32)), bytes(32), b"\xff" * 32):
        pair = nkeys.from_seed(bytearray(nkeys.encode_seed(seed, nkeys.PREFIX_BYTE_USER)))
        assert c.public_nkey(c.USER, seed) == pair.public_key.decode()
        assert c.nkey_seed(c.USER, seed) == pair.seed.decode()


@pytest.mark.parametrize("wanted", [c.http_binding_bytes("ab" * 32), b"cyx/v1/x y", b"a\nb", b"n" * 1000])
def test_a_broker_gets_nothing_signed_but_nonces(wanted):
    with pytest.raises(ValueError, match="no nonce"):
        ALICE.sign(wanted.decode())
