"""Commands of central that a node can check: for one session of one node, in their order, for a while. Pure.

    platform's key ── vouches for ──▶ CommandKey ── signs ──▶ SignedCommand
    (in the signer)                   (in every central)      network, node, session, kind, job, attempt, place, end

Those that are said in one moment share a signature: it is that of the root of a tree of them, and each brings the way
from itself to the root along. What a command says and is good for does not depend on the others.

A node knows the platform's key from network.json, or keeps what the first central says that it ever registers at. All
centrals of a network have the same command key; a next one has the next number.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet.codec import MAX_MESSAGE_BYTES, MSGPACK, BadMessage, decode, encode
from cyxnet.identity import Identity, verify

VALID_MS = 120_000  # from when it is signed, by what central knows of the node's clock
LONGEST_AHEAD_MS = 600_000  # that a command is good for, by the node's clock
# Of jobs, whose newest place a session remembers; however old: who forges a heartbeat chooses until when central signs.
PLACES_KEPT = 2**16
MAX_COMMAND_BYTES = MAX_MESSAGE_BYTES + 100_000  # an Assign has a whole job in it, and was sent by nobody who may flood
OTHER_CLOCK = ("expired", "good_too_long")  # codes of refusals that a look at the node's clock mends
UNSIGNED = "0" * 128
MOST_SHARING = 2**16  # commands under one signature


class NotTaken(CyxError):
    """A command that does not count. code: why, as one of a few words that are counted."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class Commanding(Struct, frozen=True):
    """What a central needs to sign commands for a network. seed: of `key`, 32 bytes."""

    network_id: str
    platform_key: str
    key: m.CommandKey
    seed: bytes


def commanding(platform: Identity, network_id: str, number: int) -> Commanding:
    """The command key of this number, which only the platform's seed gives, and its word for it."""
    seed = platform.child(f"command-{number}")
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    key = m.CommandKey(
        public_key=public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex(), number=number, signature=UNSIGNED
    )
    vouched = replace(key, signature=platform.sign(m.command_key_bytes(network_id, key)))
    return Commanding(network_id, platform.public_key, vouched, seed)


def _about(command: m.Command | m.Orders) -> tuple[str, str, int]:
    """kind, job id and attempt, as they are signed."""
    kind = str(type(command).__struct_config__.tag)
    return (kind, "", 0) if isinstance(command, m.Orders) else (kind, command.job_id, command.attempt)


class Asked(NamedTuple):
    """A command that is to be signed, for a session of a node; sequence, expires_ms: as of SignedCommand."""

    node_id: str
    session: str
    command: m.Command | m.Orders
    sequence: int
    expires_ms: int


def tree(leaves: list[bytes]) -> tuple[bytes, list[tuple[list[bytes], int]]]:
    """The root over some leaves, and for each of them its path and turns (see SignedCommand)."""
    paths: list[list[bytes]] = [[] for _ in leaves]
    turns = [0] * len(leaves)
    level = [(leaf, [at]) for at, leaf in enumerate(leaves)]  # branches, and which leaves are under them
    while len(level) > 1:
        above = []
        for (left, under_left), (right, under_right) in zip(level[::2], level[1::2], strict=False):
            for at in under_left:
                paths[at].append(right)
            for at in under_right:
                turns[at] |= 1 << len(paths[at])
                paths[at].append(left)
            above.append((m.branch_of(left, right), under_left + under_right))
        level = above + level[len(above) * 2 :]  # one that stands alone goes up as it is
    return level[0][0], list(zip(paths, turns, strict=True))


def root_of(leaf: bytes, path: list[bytes], turns: int) -> bytes:
    """Where the way from a leaf leads."""
    for number, beside in enumerate(path):
        leaf = m.branch_of(beside, leaf) if turns >> number & 1 else m.branch_of(leaf, beside)
    return leaf


class Commander:
    """Signs for a central."""

    def __init__(self, given: Commanding):
        self.network_id = given.network_id
        self.platform_key = given.platform_key
        self._key = given.key
        self._sign = Ed25519PrivateKey.from_private_bytes(given.seed).sign

    def signed(
        self, node_id: str, session: str, command: m.Command | m.Orders, sequence: int, expires_ms: int
    ) -> m.SignedCommand:
        """One command, with a signature of its own."""
        [said] = self.all_signed([Asked(node_id, session, command, sequence, expires_ms)])
        return said

    def all_signed(self, asked: list[Asked]) -> list[m.SignedCommand]:
        """Up to MOST_SHARING commands, of which several share one signature: for sessions that know such."""
        drafts = [
            m.SignedCommand(
                network_id=self.network_id,
                node_id=each.node_id,
                key=self._key,
                sequence=each.sequence,
                expires_ms=each.expires_ms,
                payload=encode(each.command, MSGPACK),
                signature=UNSIGNED,
            )
            for each in asked
        ]
        bytes_ = [
            m.command_bytes(draft, each.session, *_about(each.command))
            for draft, each in zip(drafts, asked, strict=True)
        ]
        if len(drafts) == 1:
            return [replace(drafts[0], signature=self._sign(bytes_[0]).hex())]
        root, ways = tree([m.leaf_of(each) for each in bytes_])
        signature = self._sign(m.shared_bytes(self.network_id, root)).hex()
        return [
            replace(draft, signature=signature, path=path, turns=turns)
            for draft, (path, turns) in zip(drafts, ways, strict=True)
        ]


class Trust(Struct, frozen=True, kw_only=True):
    """Whom a node takes commands from. "" for what it does not know yet; key_number: the largest it has seen."""

    network_id: str = ""
    platform_key: str = ""
    key_number: int = 0


class Guard:
    """What one session of a node takes for a command of its network.

    now_ms: the node's clock, as it tells it in heartbeats. keep: called with what has to be known in later sessions.
    """

    def __init__(
        self,
        node_id: str,
        session: str,
        trust: Trust,
        now_ms: Callable[[], int],
        keep: Callable[[Trust], None] = lambda trust: None,
    ):
        self.trust = trust
        self.refused: Counter[str] = Counter()
        self._node_id = node_id
        self._session = session
        self._now_ms = now_ms
        self._keep = keep
        self._vouched: m.CommandKey | None = None  # the one that was checked last
        self._shared = ("", b"", "")  # key, what it signed for many commands, and the signature, that were good last
        self._newest: OrderedDict[str, int] = OrderedDict()  # job -> its newest place; last the job that was last meant

    def told(self, network_id: str, platform_key: str) -> str:
        """What a central said when it took the node in: believed by who does not know better.

        Returns why the node cannot work for it; "" when it can.
        """
        for what, known, said in (
            ("network", self.trust.network_id, network_id),
            ("platform key", self.trust.platform_key, platform_key),
        ):
            if known and said and known != said:
                return f"expected the {what} {known}, got {said}: ask the platform's operator which is right"
        if not (self.trust.platform_key or platform_key):
            return "it names no key that its commands can be checked by: upgrade central first"
        self._learn(
            replace(
                self.trust,
                network_id=self.trust.network_id or network_id,
                platform_key=self.trust.platform_key or platform_key,
            )
        )
        return ""

    def opened(self, said: m.Command | m.SignedCommand) -> m.Command:
        """The command that central gave. Raises NotTaken, counted, for all that it did not give, or not now.

        Call took() when it was carried out: until then it counts for nothing.
        """
        try:
            if not isinstance(said, m.SignedCommand):
                raise NotTaken("unsigned", "it is not signed")
            command: m.Command = self._checked(said, m.Command)
            newest = self._newest.get(command.job_id, 0)
            if said.sequence < newest:
                why = f"it was given at event {said.sequence}; one that was given at {newest} has been taken"
                raise NotTaken("replayed", why)
        except NotTaken as error:
            self.refused[error.code] += 1
            raise
        return command

    def took(self, command: m.Command, said: m.Command | m.SignedCommand) -> None:
        """It was carried out: older ones about its job are not taken from now on."""
        if not isinstance(said, m.SignedCommand):
            return
        newest = self._newest.pop(command.job_id, 0)
        self._newest[command.job_id] = max(newest, said.sequence)
        if len(self._newest) > PLACES_KEPT:
            self._newest.popitem(last=False)

    def orders(self, reply: m.HeartbeatReply, number: int) -> m.Orders:
        """What the answer to heartbeat `number` orders. What is not signed, or not that answer, orders nothing."""
        try:
            if reply.stop or reply.begin or reply.pause:
                raise NotTaken("unsigned", "the answer to a heartbeat is not signed")
            if reply.orders is None:
                return m.Orders()
            orders: m.Orders = self._checked(reply.orders, m.Orders)
            if reply.orders.sequence != number:
                raise NotTaken("replayed", f"it answers heartbeat {reply.orders.sequence}, not {number}")
        except NotTaken as error:
            self.refused[error.code] += 1
            raise
        return orders

    def _checked(self, said: m.SignedCommand, kind: Any) -> Any:
        """The command inside, signed by this network's platform for this session and now. Raises NotTaken."""
        if not (self.trust.network_id and self.trust.platform_key):
            raise NotTaken("untold", "the node has not been told yet whose commands to take")
        if said.network_id != self.trust.network_id:
            raise NotTaken("wrong_network", f"it is of the network {said.network_id!r}, not {self.trust.network_id!r}")
        if said.node_id != self._node_id:
            raise NotTaken("wrong_node", f"it is for {said.node_id}")
        try:
            command = decode(kind, said.payload, MSGPACK, MAX_COMMAND_BYTES)
        except BadMessage as error:
            raise NotTaken("bad_payload", str(error)) from None
        session = self._session if isinstance(command, m.Orders) else command.session
        if session != self._session:
            raise NotTaken("wrong_session", f"it is for the session {session}: the node was restarted")
        if said.key.number < self.trust.key_number:
            why = f"it is signed with key {said.key.number}; one with key {self.trust.key_number} has been seen"
            raise NotTaken("old_key", why)
        if said.key != self._vouched:
            vouched = m.command_key_bytes(said.network_id, said.key)
            if not verify(self.trust.platform_key, vouched, said.key.signature):
                raise NotTaken("unknown_key", "the platform's key does not vouch for the key that signed it")
        if not self._signed(said, m.command_bytes(said, session, *_about(command))):
            raise NotTaken("bad_signature", "it is not signed by the key it names, or was signed for something else")
        self._vouched = said.key
        self._learn(replace(self.trust, key_number=said.key.number))
        left_ms = said.expires_ms - self._now_ms()
        if left_ms < 0:
            raise NotTaken("expired", f"it was good until {-left_ms // 1000} s ago by the node's clock")
        if left_ms > LONGEST_AHEAD_MS:
            raise NotTaken("good_too_long", f"it is good for {left_ms // 1000} more s by the node's clock")
        return command

    def _signed(self, said: m.SignedCommand, command: bytes) -> bool:
        """Whether the key that it names signed these bytes, alone or with others."""
        if said.turns >> len(said.path):
            return False  # there would be several ways to write the same
        if not said.path:
            return verify(said.key.public_key, command, said.signature)
        root = root_of(m.leaf_of(command), said.path, said.turns)
        shared = (said.key.public_key, m.shared_bytes(said.network_id, root), said.signature)
        if shared != self._shared:
            if not verify(*shared):
                return False
            self._shared = shared
        return True

    def _learn(self, trust: Trust) -> None:
        if trust != self.trust:
            self.trust = trust
            self._keep(trust)
