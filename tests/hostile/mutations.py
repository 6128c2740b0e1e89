"""What a hostile client or node sends: a message of the protocol, spoilt in one or more ways. Pure: from dice alone.

`certain` marks what must be refused whatever it happens to mean, by how it was spoilt. Of all else nobody can tell
before: a flipped bit in a name is another name.
"""

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from cyxnet import subjects
from cyxnet.codec import JSON, MSGPACK, BadMessage, decode

Tree = Any  # what msgspec makes of bytes without a type
Ed25519_ORDER = 2**252 + 27742317777372353535851937790883648493
GROWN_CHARS = (101, 2_001, 20_001, 400_000)
LIMIT_BYTES, PAYLOAD_BYTES = 1_000_000, 2 * 2**20  # of a message to us, of one to the broker


class Kind(Struct, frozen=True):
    """One kind of message: as whom it is said and where, and which Struct it is. asks: an answer comes back."""

    role: str  # client or node
    verb: str
    type: type
    asks: bool = True
    signed: tuple[str, ...] = ()  # paths of what its signature covers

    @property
    def is_raw(self) -> bool:
        return self.type is bytes


KINDS = [
    *(
        Kind("client", verb.name, verb.request)
        for verb in subjects.VERBS.values()
        if not verb.operator
    ),
    *(Kind("node", verb.name, verb.request) for verb in subjects.VERBS.values() if verb.name.startswith("artifact.")),
    *(
        Kind(
            "node",
            verb,
            request,
            signed={
                "register": ("node_id", "session", "public_key", "wallet", "began_ms"),
                "checkpoint": ("session", "job_id", "attempt", "checkpoint.step", "checkpoint.state.sha256",
                               "checkpoint.state.size", "checkpoint.steps"),
                "completed": ("session", "job_id", "attempt", "model.sha256", "model.size", "graph_sha256"),
                "segment": ("session", "job_id", "attempt", "segment.end_step", "segment.start.step",
                            "segment.start.state.sha256", "end.sha256", "end.size"),
            }.get(verb, ()),
        )
        for verb, (request, _) in subjects.NODE_VERBS.items()
    ),
    *(Kind("node", verb, request, asks=False) for verb, request in subjects.NODE_TELEMETRY.items()),
]  # fmt: skip


class Base(Struct, frozen=True):
    """A message that is right, and who may say it."""

    kind: Kind
    speaker: str  # the caller or node in its subject
    tree: bytes  # MessagePack, without types; of a raw verb the bytes themselves


class Shot(Struct):
    """What is sent. answered: whether an answer must come; it comes to `reply`, where that is not another's."""

    base: Base
    subject: str
    reply: str | None  # None: the next own inbox
    block: bytes  # headers as on the wire, b"" for none
    payload: bytes
    content_type: str
    spoilt: list[str]
    certain: bool = False
    answered: bool = True
    rude: bytes | None = None  # instead of a message: bytes upon which the broker hangs up

    def is_certain(self) -> bool:
        """Whether it must be refused: by how it was made, or because these bytes are no such message."""
        if self.certain or self.base.kind.is_raw:
            return self.certain
        try:
            decode(self.base.kind.type, self.payload or b"{}", self.content_type)
        except BadMessage:
            return True
        return False


class Others(Struct, frozen=True):
    """What belongs to others, and ids that nobody has."""

    speakers: tuple[str, ...]  # callers and nodes
    jobs: tuple[str, ...]
    sessions: tuple[str, ...]


def spoil(base: Base, dice: random.Random, others: Others) -> Shot:
    """One message of this kind, spoilt."""
    content_type = dice.choice((JSON, MSGPACK))
    kind = base.kind
    subject = (
        subjects.api(base.speaker, kind.verb) if kind.verb in subjects.VERBS else subjects.node(base.speaker, kind.verb)
    )
    shot = Shot(base, subject, None, b"", b"", content_type, [], answered=kind.asks)
    if kind.is_raw:
        shot.payload = base.tree
        shot.block = header({"Content-Type": "application/octet-stream"})
    else:
        tree = msgspec.msgpack.decode(base.tree)
        spoil_fields = dice.random() < 0.7
        if spoil_fields:
            for _ in range(dice.choice((1, 1, 1, 2, 3))):
                tree = spoil_tree(tree, dice, others, shot)
                if shot.certain:  # what comes after it might take it away again
                    break
        try:
            shot.payload = encoded(tree, content_type)
        except OverflowError:  # MessagePack has no number as large
            shot.payload, spoil_fields, shot.certain = base.tree, False, False
        shot.block = header({"Content-Type": content_type})
        if not spoil_fields:
            spoil_bytes(dice, shot)
    if kind.is_raw or dice.random() < 0.12:
        dice.choices(ENVELOPE, ENVELOPE_WEIGHTS)[0](dice, shot, others)
    if (room := PAYLOAD_BYTES - len(shot.block)) < len(shot.payload):  # the broker would hang up
        shot.payload, shot.certain = shot.payload[:room], True
    return shot


# -- values --------------------------------------------------------------------------------------------------------


def encoded(tree: Tree, content_type: str) -> bytes:
    return msgspec.json.encode(tree) if content_type == JSON else msgspec.msgpack.encode(tree)


def header(lines: dict[str, str]) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in lines.items()) + b"\r\n"


def raw(content_type: str, json: bytes, msgpack: bytes) -> msgspec.Raw:
    return msgspec.Raw(json if content_type == JSON else msgpack)


def places(tree: Tree, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """(container, key, path) of every value in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key, f"{path}.{key}".lstrip(".")
        if isinstance(value, dict | list):
            yield from places(value, f"{path}.{key}")


# name -> (dice, old value, content type) -> new value
VALUES: dict[str, Callable[[random.Random, Any, str], Any]] = {
    "null": lambda dice, old, ct: None,
    "true": lambda dice, old, ct: True,
    "empty text": lambda dice, old, ct: "",
    "empty list": lambda dice, old, ct: [],
    "empty object": lambda dice, old, ct: {},
    "zero": lambda dice, old, ct: 0,
    "minus one": lambda dice, old, ct: -1,
    "a number as text": lambda dice, old, ct: str(old)[:1000],
    "a fraction": lambda dice, old, ct: 1.5,
    "a whole number as float": lambda dice, old, ct: float(old) if isinstance(old, int) else 1.0,
    "minus zero": lambda dice, old, ct: -0.0,
    "a subnormal": lambda dice, old, ct: 5e-324,
    "2^63 - 1": lambda dice, old, ct: 2**63 - 1,
    "2^63": lambda dice, old, ct: 2**63,
    "2^64 - 1": lambda dice, old, ct: 2**64 - 1,
    "-2^63": lambda dice, old, ct: -(2**63),
    "2^53": lambda dice, old, ct: 2**53,
    "1e300": lambda dice, old, ct: 1e300,
    "one more": lambda dice, old, ct: old + 1 if isinstance(old, int | float) else old,
    "one less": lambda dice, old, ct: old - 1 if isinstance(old, int | float) else old,
    "in a list": lambda dice, old, ct: [old],
    "in an object": lambda dice, old, ct: {"value": old},
    "many times": lambda dice, old, ct: [old] * dice.choice((2, 1025, 5_000)) if small(old) else [old, old],
    "a long text": lambda dice, old, ct: dice.choice("aä\x00") * dice.choice(GROWN_CHARS),
    "a line break at its end": lambda dice, old, ct: f"{old}\n"[:1000],
    "digits of another script": lambda dice, old, ct: "١٢٣-job",
    "a homoglyph": lambda dice, old, ct: str(old)[:1000].replace("a", "а").replace("e", "е") + "а",
    "a wildcard": lambda dice, old, ct: dice.choice(("*", ">", "a.>", "a.*", "cyx.v1.event.job.x")),
    "a path": lambda dice, old, ct: dice.choice(("../../etc/passwd", "/", "..", "a/b", "C:\\con")),
    "control characters": lambda dice, old, ct: "a\x00b\r\nPUB x 0\r\n\x1b[2J",
    "a statement": lambda dice, old, ct: "'); DROP TABLE jobs; --",
    "markup": lambda dice, old, ct: "<script>alert(1)</script>{{7*7}}${7*7}%s%n",
    "raw bytes": lambda dice, old, ct: b"\xff\x00" * 8,
    "an extension": lambda dice, old, ct: raw(ct, b'"ext"', b"\xd6\xff\x00\x00\x00\x01"),
    "a foreign extension": lambda dice, old, ct: raw(ct, b'{"$type":"x"}', b"\xc7\x03\x2aabc"),
    "many digits": lambda dice, old, ct: raw(ct, b"9" * dice.choice((20, 400, 30_000)), b"\xcf" + b"\xff" * 8),
    "a number as a key": lambda dice, old, ct: raw(ct, b'{"1":2}', b"\x81\x01\x02"),
}  # fmt: skip

# name -> content type -> what must be refused wherever it stands
NEVER: dict[str, Callable[[str], Any]] = {
    "NaN": lambda ct: raw(ct, b"NaN", b"\xcb" + struct.pack(">d", float("nan"))),
    "infinity": lambda ct: raw(ct, b"1e999", b"\xcb" + struct.pack(">d", float("inf"))),
    "minus infinity": lambda ct: raw(ct, b"-Infinity", b"\xca" + struct.pack(">f", float("-inf"))),
    "deep lists": lambda ct: raw(ct, b"[" * 5_000 + b"]" * 5_000, b"\x91" * 5_000 + b"\x90"),
    "deep objects": lambda ct: raw(ct, b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b"\x81\xa1a" * 5_000 + b"\x01"),
    "half a surrogate": lambda ct: raw(ct, b'"\\ud800"', b"\xa3\xed\xa0\x80"),
    "overlong UTF-8": lambda ct: raw(ct, b'"\xc0\xaf"', b"\xa2\xc0\xaf"),
    "more elements than bytes": lambda ct: raw(ct, b"[1,", b"\xdd\xff\xff\xff\xff\x01"),
    "more keys than bytes": lambda ct: raw(ct, b'{"a":1,', b"\xdf\xff\xff\xff\xff\xa1a\x01"),
    "more text than bytes": lambda ct: raw(ct, b'"abc', b"\xdb\xff\xff\xff\xffabc"),
    "a byte that means nothing": lambda ct: raw(ct, b"\x01", b"\xc1"),
}


def small(value: Any) -> bool:
    return not isinstance(value, dict | list | msgspec.Raw) and len(str(value)) < 100


def spoil_tree(tree: Tree, dice: random.Random, others: Others, shot: Shot) -> Tree:
    """The same with one thing in it wrong."""
    all_places = list(places(tree))
    if not isinstance(tree, dict) or not all_places or dice.random() < 0.06:
        return spoil_root(tree, dice, shot)
    container, key, path = dice.choice(all_places)
    old, content_type = container[key], shot.content_type
    ways = ["value"] * 10 + ["never"] * 4 + ["drop", "double", "signed", "foreign", "foreign"]
    way = dice.choice(ways)
    if way == "never":
        name = dice.choice(list(NEVER))
        container[key] = NEVER[name](content_type)
        shot.certain = True
    elif way == "drop":
        name = "dropped"
        del container[key]
    elif way == "double" and isinstance(container, dict):
        shot.spoilt.append(f"{path}: twice")
        again = VALUES[dice.choice(list(VALUES))](dice, old, content_type)
        return doubled(tree, container, key, again, content_type)
    elif way == "signed" and shot.base.kind.signed and dice.random() < 0.5:
        path = dice.choice([path for path in shot.base.kind.signed if reaches(tree, path)] or ["node_id"])
        name = "changed after it was signed"
        shot.certain = change(tree, path, dice) or shot.certain
    elif way == "signed" and reaches(tree, "payment.deposit.transaction"):
        path, name = "payment.deposit.transaction", "a bit flipped"
        deposit = tree["payment"]["deposit"]
        repeated = tree.get("job_id") in others.jobs  # a job that is known is not paid for again
        shot.certain |= flip(deposit, "transaction", dice) and not repeated
    elif way == "signed" and is_signature(tree.get("signature")):
        path, name = "signature", "another signature"
        tree["signature"], shot.certain = other_signature(tree["signature"], dice), True
    elif way == "foreign":
        path, name = foreign(tree, dice, others, shot)
    else:
        name = dice.choice(list(VALUES))
        container[key] = VALUES[name](dice, old, content_type)
    shot.spoilt.append(f"{path}: {name}")
    return tree


def spoil_root(tree: Tree, dice: random.Random, shot: Shot) -> Tree:
    """An unknown field, or something else instead of the whole message."""
    if isinstance(tree, dict) and dice.random() < 0.5:
        shot.spoilt.append("an unknown field")
        shot.certain = True
        return tree | {dice.choice(("jobid", "__proto__", "", "a" * 1000, "é", "t", "do")): 1}
    shot.spoilt.append("not an object")
    name = dice.choice(list(VALUES))
    return VALUES[name](dice, tree, shot.content_type)


def doubled(tree: Tree, container: dict[str, Any], key: str, again: Any, content_type: str) -> Tree:
    """The tree with a key twice in one of its objects: the second value counts, if any does."""
    try:
        value, name = encoded(again, content_type), encoded(key, content_type)
        whole = encoded(container, content_type)
    except (OverflowError, ValueError):
        return tree
    if content_type == JSON:
        twice = whole[:-1] + b"," + name + b":" + value + b"}"
    elif whole[0] & 0xF0 == 0x80 and whole[0] < 0x8F:
        twice = bytes([whole[0] + 1]) + whole[1:] + name + value
    else:
        return tree
    return msgspec.Raw(twice) if container is tree else replaced(tree, container, msgspec.Raw(twice))


def replaced(tree: Tree, old: Any, new: Any) -> Tree:
    for container, key, _ in places(tree):
        if container[key] is old:
            container[key] = new
            break
    return tree


def reaches(tree: Tree, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return True


def change(tree: Tree, path: str, dice: random.Random) -> bool:
    """Another value of the same form, so that only the signature tells. Whether there is one."""
    *way, name = path.split(".")
    for step in way:
        tree = tree[step]
    old = tree.get(name)
    if isinstance(old, bool) or not isinstance(old, int | str) or old == "":
        return False
    if isinstance(old, int):
        tree[name] = old + 1
    else:
        at = dice.randrange(len(old))
        tree[name] = old[:at] + ("1" if old[at] != "1" else "2") + old[at + 1 :]
    return True


def is_signature(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 128 and value.isalnum()


def flip(tree: Tree, name: str, dice: random.Random) -> bool:
    if not isinstance(tree[name], bytes) or not tree[name]:
        return False
    at = dice.randrange(len(tree[name]))
    tree[name] = tree[name][:at] + bytes([tree[name][at] ^ 1 << dice.randrange(8)]) + tree[name][at + 1 :]
    return True


def other_signature(signature: str, dice: random.Random) -> str:
    """A signature that is none, or another one for the same message as some libraries would take it (S + order)."""
    whole = bytes.fromhex(signature)
    raised = int.from_bytes(whole[32:], "little") + Ed25519_ORDER
    at = dice.randrange(64)
    return dice.choice(
        (
            (whole[:32] + raised.to_bytes(32, "little")).hex() if raised < 2**256 else "0" * 128,
            (whole[:at] + bytes([whole[at] ^ 1 << dice.randrange(8)]) + whole[at + 1 :]).hex(),
            "0" * 128,
            "01" + "0" * 126,  # the neutral element and a zero
            (whole[32:] + whole[:32]).hex(),
            (bytes(32) + whole[32:]).hex(),
        )
    )


def foreign(tree: Tree, dice: random.Random, others: Others, shot: Shot) -> tuple[str, str]:
    """Something that belongs to somebody else, or to another time."""
    pools = {"node_id": others.speakers, "session": others.sessions, "job_id": others.jobs}
    names = [name for name in pools if name in tree]
    if not names:
        return "", "nothing foreign"
    name = dice.choice(names)
    tree[name] = dice.choice(pools[name])
    # who speaks for another node is refused whatever he says
    shot.certain |= name == "node_id" and shot.base.kind.role == "node" and tree[name] != shot.base.speaker
    return name, "another's"


# -- bytes ---------------------------------------------------------------------------------------------------------


def spoil_bytes(dice: random.Random, shot: Shot) -> None:
    whole = shot.payload
    way = dice.choice(BYTES)
    shot.spoilt.append(way)
    at = dice.randrange(1, len(whole)) if len(whole) > 1 else 0
    match way:
        case "truncated":
            shot.payload, shot.certain = whole[:at], shot.certain or at > 0
        case "bits flipped":
            changed = bytearray(whole)
            for _ in range(dice.choice((1, 1, 1, 2, 8))):
                changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
            shot.payload = bytes(changed)
        case "random":
            shot.payload = dice.randbytes(dice.choice((1, 16, 300, 5_000)))
        case "empty":
            shot.payload = b""
        case "something after it":
            shot.payload = whole + dice.choice((b"\x00", b"{}", whole, b"x", b"\xc0"))
            shot.certain = True
        case "bytes left out":
            shot.payload = whole[: at // 2] + whole[at:]
        case "bytes put in":
            shot.payload = whole[:at] + dice.randbytes(dice.randrange(1, 9)) + whole[at:]
        case "a byte-order mark":
            shot.payload, shot.certain = b"\xef\xbb\xbf" + whole, True
        case "at the limit":
            size = dice.choice((LIMIT_BYTES - 1, LIMIT_BYTES, LIMIT_BYTES + 1, PAYLOAD_BYTES - len(shot.block)))
            filler = dice.choice((b" ", b"[", b"\x91", b"\x00", b"[],"))
            shot.payload, shot.certain = (filler * size)[:size], True
        case "spaces before and after":
            if shot.content_type == JSON:
                shot.payload = b" \n" * 500 + whole + b"\t" * 500


BYTES = [
    "truncated", "truncated", "bits flipped", "bits flipped", "bits flipped", "random", "empty",
    "something after it", "bytes left out", "bytes put in", "a byte-order mark", "spaces before and after",
] * 12 + ["at the limit"]  # fmt: skip


# -- the envelope: headers, subjects, replies --------------------------------------------------------------------------


def wrong_type(dice: random.Random, shot: Shot, others: Others) -> None:
    said = dice.choice(("text/html", "", "application/json; charset=utf-8", "a" * 2000, "APPLICATION/JSON", "*/*"))
    shot.block = header({"Content-Type": said})
    shot.spoilt.append("another content type")
    shot.certain |= not shot.base.kind.is_raw and said != ""


def swapped_type(dice: random.Random, shot: Shot, others: Others) -> None:
    shot.content_type = MSGPACK if shot.content_type == JSON else JSON
    shot.block = header({"Content-Type": shot.content_type})
    shot.spoilt.append("the other content type")


def no_headers(dice: random.Random, shot: Shot, others: Others) -> None:
    shot.block = b""
    shot.content_type = JSON if shot.base.kind.asks else MSGPACK
    shot.spoilt.append("no headers")


def odd_headers(dice: random.Random, shot: Shot, others: Others) -> None:
    """The message itself is none any more: whether its headers are read or not, it must be refused."""
    own = f"Content-Type: {shot.content_type}\r\n".encode()
    shot.block = dice.choice(
        (
            b"NATS/1.0\r\n" + own + b"".join(b"X-%d: y\r\n" % n for n in range(1000)) + b"\r\n",
            b"NATS/1.0\r\n" + own + b"X: " + b"y" * 60_000 + b"\r\n\r\n",
            b"NATS/1.0\r\n" + own + own + b"\r\n",
            b"NATS/1.0 503\r\n" + own + b"\r\n",
            b"NATS/1.0\r\n\r\n",
            b"NATS/1.0\r\nContent-Type\r\n\r\n",
            b"NATS/1.0\r\nContent-Type : x\r\n: y\r\n\xff\xfe\x00: z\r\n\r\n",
            b"\x00" * 12,
            b"NATS/9.9\r\n" + own,
            b"NATS/1.0\n" + own.replace(b"\r", b"") + b"\n",
            header({"Content-Type": shot.content_type, "Nats-Msg-Id": "poison", "Nats-Rollup": "all"}),
            header({"Content-Type": shot.content_type, "Nats-Expected-Last-Subject-Sequence": "0", "Nats-TTL": "1s"}),
            header({"Content-Type": shot.content_type, "Nats-Service-Error-Code": "500", "Status": "503"}),
        )
    )
    shot.payload = b"\xc1" + shot.payload[1:] if not shot.base.kind.is_raw else b""
    shot.spoilt.append("odd headers")
    shot.certain = True


def another_subject(dice: random.Random, shot: Shot, others: Others) -> None:
    """Where this identity may not speak: the broker keeps it out, and nobody answers."""
    own, other = shot.base.speaker, dice.choice([each for each in others.speakers if each != shot.base.speaker])
    verb = shot.base.kind.verb
    shot.subject = dice.choice(
        (
            shot.subject.replace(own, other),
            shot.subject + ".x",
            shot.subject.removesuffix(verb) + "job.destroy",
            shot.subject.removesuffix(verb) + "*",
            f"cyx.v1.node.{own}.>",
            subjects.command(other),
            subjects.job_event(dice.choice(others.jobs)),
            subjects.node_event(own),
            subjects.telemetry(own),
            subjects.update(dice.choice(others.jobs)),
            subjects.chunk("0" * 64),
            f"_INBOX_{other}.1",
            "$JS.API.STREAM.DELETE.CYX_EVENTS",
            "$JS.API.STREAM.PURGE.CYX_EVENTS",
            "$SYS.REQ.USER.AUTH",
            "$KV.x.y",
            "cyx",
            "CYX.V1.API." + own + ".job.submit",
        )
    )
    shot.spoilt.append("another subject")
    shot.answered, shot.certain = False, True


def another_reply(dice: random.Random, shot: Shot, others: Others) -> None:
    """Where central's answer would do harm: it answers in the asker's inbox only."""
    other = dice.choice([each for each in others.speakers if each != shot.base.speaker])
    shot.reply = dice.choice(
        (
            subjects.command(other),
            subjects.job_event(dice.choice(others.jobs)),
            subjects.node(other, "heartbeat"),
            f"_INBOX_{other}.1",
            "_INBOX.x",
            "$JS.API.STREAM.PURGE.CYX_EVENTS",
            f"_INBOX_{shot.base.speaker}x.1",
            "x",
            shot.subject,
            "",
        )
    )
    shot.spoilt.append("another reply subject")
    shot.answered = False
    shot.certain |= shot.base.kind.asks  # metrics are answered nowhere


def rude(dice: random.Random, shot: Shot, others: Others) -> None:
    """What is not the broker's protocol at all, or more than it allows: it hangs up."""
    shot.rude = dice.choice(
        (
            f"PUB {shot.subject} {PAYLOAD_BYTES + 1}\r\n".encode() + b"x" * 1000,
            f"PUB {shot.subject} -1\r\n\r\n".encode(),
            f"PUB {shot.subject} 5\r\nmore than five\r\n".encode(),
            f"HPUB {shot.subject} 99 5\r\n".encode() + b"x" * 5 + b"\r\n",
            b"PUB " + b"a" * 5000 + b" 0\r\n\r\n",
            b"\x00\xff\xfe\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT {\r\n",
        )
    )
    shot.spoilt.append("not the broker's protocol")
    shot.answered, shot.certain = False, True


ENVELOPE = [wrong_type, swapped_type, no_headers, odd_headers, another_subject, another_reply, rude]
ENVELOPE_WEIGHTS = [20, 20, 10, 20, 20, 20, 1]
