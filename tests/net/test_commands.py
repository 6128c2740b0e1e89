"""What a node takes for a command of its network, and what it does not."""

import hashlib
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from cyxnet import commands
from cyxnet import messages as m
from cyxnet.codec import MSGPACK, BadMessage, decode, encode
from cyxnet.commands import (
    LONGEST_AHEAD_MS,
    UNSIGNED,
    VALID_MS,
    Commander,
    Commanding,
    Guard,
    NotTaken,
    Trust,
    commanding,
)
from cyxnet.identity import Identity

PLATFORM, STRANGER = Identity(b"p" * 32), Identity(b"s" * 32)
NETWORK, NODE, OTHER = "net-1", "node-a-0123456789", "node-b-0123456789"
SESSION, NEXT_SESSION = "0" * 32, "1" * 32
NOW_MS, HOUR_MS = 1_800_000_000_000, 3_600_000
ORDER_OF_THE_CURVE = 2**252 + 27742317777372353535851937790883648493
TRUST = Trust(network_id=NETWORK, platform_key=PLATFORM.public_key)
STOP = m.Stop(job_id="job-1", attempt=1, session=SESSION)


class Node:
    """A node's guard, whose clock is moved by hand."""

    def __init__(self, trust=TRUST, session=SESSION):
        self.now_ms = NOW_MS
        self.kept = []
        self.guard = Guard(NODE, session, trust, lambda: self.now_ms, self.kept.append)

    def take(self, said):
        """As the agent does; "" or the code of the refusal."""
        try:
            command = self.guard.opened(said)
        except NotTaken as error:
            assert self.guard.refused[error.code] > 0
            return error.code
        self.guard.took(command, said)
        return ""


@pytest.fixture
def node():
    return Node()


def central(number=1, network=NETWORK, platform=PLATFORM):
    return Commander(commanding(platform, network, number))


def signed(command=STOP, sequence=7, until_ms=NOW_MS + VALID_MS, node_id=NODE, by=None):
    session = SESSION if isinstance(command, m.Orders) else command.session
    return (by or central()).signed(node_id, session, command, sequence, until_ms)


COMMANDS = [
    STOP,
    m.Begin(job_id="job-1", attempt=1, session=SESSION),
    m.Pause(job_id="job-1", attempt=1, session=SESSION),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: type(each).__name__)
def test_what_central_signed_for_this_session_is_taken(node, command):
    assert node.guard.opened(signed(command)) == command
    assert node.guard.refused == {}


def test_the_bytes_that_are_signed_are_these():
    said = signed()
    words = "cyx/v1/command net-1 node-a-0123456789 00000000000000000000000000000000 stop job-1 1 7 1800000120000"
    payload = encode(STOP, MSGPACK)
    assert m.command_bytes(said, SESSION, "stop", "job-1", 1).decode().split("\n") == [
        *words.split(),
        hashlib.sha256(payload).hexdigest(),
    ]
    assert m.command_key_bytes(NETWORK, said.key).decode().split("\n") == [
        "cyx/v1/command-key",
        "net-1",
        "1",
        said.key.public_key,
    ]


def test_the_key_of_a_number_and_its_signatures_are_these():
    """Every central of a network has to come to the same, in every version."""
    said = signed()
    assert said.key.public_key == "1e0ea3a4a678482944c29ae5aa31cd975b03af0c5f7b5d43549c2588fce35a14"
    assert said.signature == (
        "6ce63e493373b9239bdc016d2308253a1b6effc72d00300463e528d6abdde4bb"
        "1f6a82d9c395d415e19dbd9dbd0a3cefb3550aef9cd52d6b5b5bbe4fbbad760f"
    )
    assert said.key.signature == (
        "b5e8741e38f3bfb585dc4bd52a50736e47867185ef3767a65260664d2222c72c"
        "aac938422b019930f2bb9d76e0a51739f0bcce593613f5438d077804b841bc03"
    )


def test_what_is_not_signed_is_never_taken_whatever_came_before(node):
    assert node.take(STOP) == "unsigned"
    assert node.take(signed()) == ""
    assert node.take(STOP) == "unsigned"
    assert node.guard.refused == {"unsigned": 2}


@pytest.mark.parametrize(
    ("code", "said"),
    {
        "another network": ("wrong_network", signed(by=central(network="net-2"))),
        "another node": ("wrong_node", signed(node_id=OTHER)),
        "another session": ("wrong_session", signed(replace(STOP, session=NEXT_SESSION))),
        "a stranger's platform": ("unknown_key", signed(by=central(platform=STRANGER))),
        "no command": ("bad_payload", signed(m.Orders(stop=[m.RunRef(job_id="job-1", attempt=1)]))),
        "over": ("expired", signed(until_ms=NOW_MS - 1)),
        "good for ever": ("good_too_long", signed(until_ms=NOW_MS + LONGEST_AHEAD_MS + 1)),
    }.values(),
)
def test_what_is_signed_for_others_or_another_time_is_not_taken(node, code, said):
    assert node.take(said) == code
    assert node.take(signed()) == ""  # and has done no harm


def inside(command):
    return {"payload": encode(command, MSGPACK)}


CHANGES = {
    "another job": inside(replace(STOP, job_id="job-2")),
    "another attempt": inside(replace(STOP, attempt=2)),
    "another reason": inside(replace(STOP, reason="forged")),
    "another command": inside(COMMANDS[1]),
    "a later place": {"sequence": 8},
    "a later end": {"expires_ms": NOW_MS + VALID_MS + 1},
    "no signature": {"signature": UNSIGNED},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_after_it_was_signed_is_not_taken(node, changes):
    assert node.take(replace(signed(), **changes)) == "bad_signature"


@pytest.mark.parametrize(("what", "code"), [("node_id", "bad_signature"), ("network_id", "unknown_key")])
def test_a_command_of_somebody_else_is_not_taken_under_another_name(what, code):
    theirs = signed(node_id=OTHER) if what == "node_id" else signed(by=central(network="net-2"))
    assert Node().take(replace(theirs, node_id=NODE, network_id=NETWORK)) == code


def test_a_second_form_of_a_signature_is_none(node):
    said = signed()
    first, s = said.signature[:64], int.from_bytes(bytes.fromhex(said.signature[64:]), "little")
    again = (s + ORDER_OF_THE_CURVE).to_bytes(32, "little").hex()
    assert node.take(replace(said, signature=first + again)) == "bad_signature"
    vouched = said.key.signature
    s = int.from_bytes(bytes.fromhex(vouched[64:]), "little")
    other = vouched[:64] + (s + ORDER_OF_THE_CURVE).to_bytes(32, "little").hex()
    assert node.take(replace(said, key=replace(said.key, signature=other))) == "unknown_key"


def test_any_bytes_are_a_command_of_central_or_no_command(node):
    """Whatever comes, nothing but BadMessage and NotTaken is raised, and only the very bytes that were signed pass."""
    dice, good = Random(7), encode(signed(), MSGPACK)
    passed = 0
    for _ in range(3_000):
        raw = bytearray(good)
        for _ in range(dice.choice((1, 1, 2, 8))):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        if dice.random() < 0.2:
            del raw[dice.randrange(len(raw)) :]
        try:
            said = decode(m.Command | m.SignedCommand, bytes(raw), MSGPACK)
            assert node.guard.opened(said) == STOP
        except (BadMessage, NotTaken):
            continue
        assert encode(said, MSGPACK) == good
        passed += 1
    assert passed < 100


def test_a_command_again_is_no_mistake_and_an_older_one_of_its_job_is_a_replay(node):
    begin, stop = signed(COMMANDS[1], 5), signed(STOP, 7)
    assert [node.take(said) for said in (begin, begin, stop, stop, begin)] == ["", "", "", "", "replayed"]
    elsewhere = m.Begin(job_id="job-2", attempt=1, session=SESSION)
    assert node.take(signed(elsewhere, 6)) == ""  # each job has a place of its own


def test_two_centrals_are_heard_in_the_order_of_what_they_had_read(node):
    ahead, behind = central(), central()
    assert node.take(signed(STOP, 9, by=ahead)) == ""
    assert node.take(signed(STOP, 8, by=behind)) == "replayed"
    assert node.take(signed(STOP, 9, by=behind)) == ""


def test_what_was_not_carried_out_makes_nothing_older_than_it_a_replay(node):
    assert node.guard.opened(signed(COMMANDS[1], 9)) == COMMANDS[1]  # and its run is not there yet
    assert node.take(signed(COMMANDS[1], 8)) == ""


def test_a_command_that_a_false_clock_made_good_for_long_is_a_replay_after_a_newer_one_however_late(node):
    """Heartbeats are not signed: who carries them can have central sign until whenever he likes."""
    kept_back = signed(STOP, 7, NOW_MS + HOUR_MS)
    assert node.take(signed(COMMANDS[1], 8)) == ""
    node.now_ms = NOW_MS + HOUR_MS - 1000
    assert node.take(signed(replace(STOP, job_id="job-2"), 9, node.now_ms + VALID_MS)) == ""
    assert node.take(kept_back) == "replayed"


def test_the_places_of_so_many_jobs_are_remembered_and_of_no_more(node, monkeypatch):
    monkeypatch.setattr(commands, "PLACES_KEPT", 3)
    for number in range(5):
        assert node.take(signed(replace(STOP, job_id=f"job-{number}"), 5 + number)) == ""
    assert list(node.guard._newest) == ["job-2", "job-3", "job-4"]


# -- many under one signature ------------------------------------------------------------------------------


def together(count, by=None):
    stops = [replace(STOP, job_id=f"job-{number}") for number in range(count)]
    return stops, (by or central()).all_signed(
        [commands.Asked(NODE, SESSION, stop, 7, NOW_MS + VALID_MS) for stop in stops]
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 33])
def test_commands_of_one_moment_share_a_signature_and_each_is_taken_by_itself(count):
    stops, said = together(count)
    assert len({each.signature for each in said}) == 1
    assert max(len(each.path) for each in said) == (count - 1).bit_length()
    for number in Random(count).sample(range(count), count):
        assert Node().guard.opened(decode(m.SignedCommand, encode(said[number]), MSGPACK)) == stops[number]


def test_a_node_checks_a_signature_that_many_share_once(node, monkeypatch):
    checked = []
    monkeypatch.setattr(commands, "verify", lambda *what: checked.append(what) or True)
    _, said = together(9)
    assert [node.take(each) for each in said] == [""] * 9
    assert len(checked) == 2  # the platform's word for the key, and what the key signed


def test_a_shared_signature_is_of_these_bytes():
    _, [one, two, three] = together(3)
    leaves = [
        hashlib.sha256(b"\0" + m.command_bytes(said, SESSION, "stop", f"job-{number}", 1)).digest()
        for number, said in enumerate((one, two, three))
    ]
    pair = hashlib.sha256(b"\1" + leaves[0] + leaves[1]).digest()
    root = hashlib.sha256(b"\1" + pair + leaves[2]).digest()
    assert [(said.path, said.turns) for said in (one, two, three)] == [
        ([leaves[1], leaves[2]], 0),
        ([leaves[0], leaves[2]], 1),
        ([pair], 1),
    ]
    assert m.shared_bytes(NETWORK, root).decode() == f"cyx/v1/commands\nnet-1\n{root.hex()}"
    key = Ed25519PrivateKey.from_private_bytes(commanding(PLATFORM, NETWORK, 1).seed)
    assert key.sign(m.shared_bytes(NETWORK, root)).hex() == one.signature


ONE, TWO, *_ = together(4)[1]
UNDER_ONE_SIGNATURE = {
    "of another job": replace(ONE, payload=TWO.payload),
    "at another place": replace(ONE, sequence=8),
    "good for longer": replace(ONE, expires_ms=ONE.expires_ms + 1),
    "another's way": replace(ONE, path=TWO.path, turns=TWO.turns),
    "another turn": replace(ONE, turns=ONE.turns ^ 1),
    "no way": replace(ONE, path=[], turns=0),
    "half of the way": replace(ONE, path=ONE.path[:1]),
    "too long a way": replace(ONE, path=[*ONE.path, b"\0" * 32]),
    "a turn too many": replace(ONE, turns=ONE.turns | 4),
    "a turn without a way": replace(signed(), turns=1),
    "a way beside a signature of one's own": replace(signed(), path=ONE.path),
}


@pytest.mark.parametrize("said", UNDER_ONE_SIGNATURE.values(), ids=list(UNDER_ONE_SIGNATURE))
def test_under_a_shared_signature_nothing_else_is_taken(node, said):
    assert node.take(ONE) == ""  # which the node remembers
    assert node.take(said) == "bad_signature"
    assert Node().take(said) == "bad_signature"


def test_a_shared_signature_is_for_its_network_node_and_session():
    assert Node(replace(TRUST, network_id="net-2")).take(ONE) == "wrong_network"
    elsewhere = Node(replace(TRUST, network_id="net-2"))
    assert elsewhere.take(replace(ONE, network_id="net-2")) in ("unknown_key", "bad_signature")
    assert Node(session=NEXT_SESSION).take(ONE) == "wrong_session"
    assert Node().take(replace(ONE, node_id=OTHER)) == "wrong_node"


# -- the key -----------------------------------------------------------------------------------------------


def test_a_next_key_is_taken_as_soon_as_it_is_seen_and_the_one_before_no_more(node):
    old, new = central(1), central(2)
    assert [node.take(signed(by=by)) for by in (old, new, old, new)] == ["", "", "old_key", ""]
    assert node.kept == [replace(TRUST, key_number=n) for n in (1, 2)]
    later = Node(node.kept[-1])
    assert later.take(signed(by=old)) == "old_key"


def test_who_has_a_command_key_makes_no_next_one(node):
    stolen, own = commanding(PLATFORM, NETWORK, 1), commanding(STRANGER, NETWORK, 2)
    sign = Ed25519PrivateKey.from_private_bytes(stolen.seed).sign
    vouched = replace(own.key, signature=sign(m.command_key_bytes(NETWORK, own.key)).hex())
    for key, seed in ((vouched, own.seed), (replace(stolen.key, number=2), stolen.seed)):
        forged = Commander(Commanding(NETWORK, PLATFORM.public_key, key, seed))
        assert node.take(signed(by=forged)) == "unknown_key"


def test_a_key_that_signed_nothing_good_changes_nothing(node):
    new = replace(signed(by=central(2)), signature=UNSIGNED)
    assert node.take(new) == "bad_signature"
    assert node.take(signed(by=central(1))) == ""


def test_a_node_that_knows_no_platform_believes_the_first_central_and_no_other_after_it():
    node = Node(Trust())
    assert node.take(signed()) == "untold"
    assert node.guard.told(NETWORK, PLATFORM.public_key) == ""
    assert node.kept == [TRUST]
    assert node.take(signed()) == ""
    assert "expected the platform key" in node.guard.told(NETWORK, STRANGER.public_key)
    assert "expected the network net-1, got net-2" in node.guard.told("net-2", PLATFORM.public_key)
    assert node.take(signed(by=central(platform=STRANGER))) == "unknown_key"


def test_a_central_that_names_no_key_is_not_worked_for_unless_the_key_is_known():
    assert "upgrade central first" in Node(Trust(network_id=NETWORK)).guard.told(NETWORK, "")
    assert Node().guard.told(NETWORK, "") == ""


# -- in answers to heartbeats ----------------------------------------------------------------------------


ORDERS = m.Orders(stop=[m.RunRef(job_id="job-1", attempt=1)])


def answer(orders=ORDERS, number=3, **changes):
    return m.HeartbeatReply(known=True, orders=replace(signed(orders, number), **changes))


def refused(node, reply, number=3):
    with pytest.raises(NotTaken) as error:
        node.guard.orders(reply, number)
    assert node.guard.refused[error.value.code] == 1
    return error.value.code


def test_the_answer_to_a_heartbeat_orders_what_is_signed_for_it(node):
    assert node.guard.orders(answer(), 3) == ORDERS
    assert node.guard.orders(m.HeartbeatReply(known=True), 3) == m.Orders()  # the usual one costs no signature


@pytest.mark.parametrize("what", ["stop", "begin", "pause"])
def test_orders_that_are_not_signed_are_none(node, what):
    assert refused(node, m.HeartbeatReply(known=True, **{what: ORDERS.stop})) == "unsigned"


def test_orders_of_another_heartbeat_job_or_node_are_none():
    assert refused(Node(), answer(number=2)) == "replayed"
    assert refused(Node(), answer(sequence=4), 4) == "bad_signature"
    other = m.Orders(stop=[m.RunRef(job_id="job-2", attempt=1)])
    assert refused(Node(), answer(**inside(other))) == "bad_signature"
    assert refused(Node(), m.HeartbeatReply(known=True, orders=signed(ORDERS, 3, node_id=OTHER))) == "wrong_node"
    assert refused(Node(), m.HeartbeatReply(known=True, orders=signed(STOP, 3))) == "bad_payload"
    assert refused(Node(session=NEXT_SESSION), answer()) == "bad_signature"
