"""The process that alone holds the platform's keys, and signs the shapes it knows (cyxnet/shapes.py).

    python -m cyxcentral.signer --dir DIR                  a child of central: asked on standard input
    python -m cyxcentral.signer --dir DIR --socket PATH    by itself, perhaps of another user: see network.json

Central asks with the facts of a transaction; the message is built here. The escrow that it fills or settles must be one
of this network's, under its program, with its own platform. What is paid out in an hour is limited, by
DIR/signed.jsonl, which holds a line of all that was ever signed. That is written before the signature is given away, so
a restart forgets nothing, and signers of one folder share the limit.

Frames on both sides: a length (4 bytes, big-endian) and a MessagePack value: Ask one way, Answer the other.
"""

import argparse
import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet import identity
from cyxnet.amounts import format_cyx
from cyxnet.commands import Commanding, commanding
from cyxnet.config import DEFAULT_FOLDER, NetworkFile, read_network
from cyxnet.escrow import LOCAL_PROGRAM
from cyxnet.instructions import SettlementError
from cyxnet.messages import EscrowTerms, SignedTransaction
from cyxnet.messages.money import MOST_LAMPORTS
from cyxnet.shapes import Deposit, Faucet, MakeMint, Settle, Shape, sign_shape
from cyxnet.wallet import Wallet

HANDED_OVER = (
    "nats-issuer",
    "nats-system",
    "quote",
    "http-token",
    "http-nonce",
    "http-refresh",
    "checks",
)  # keys of central that own no money
HOUR_MS = 3_600_000
LENGTH_BYTES, LARGEST_FRAME, READ_BYTES = 4, 1_000_000, 1 << 18


class Hello(Struct, frozen=True, tag="hello"):
    """The first thing that is asked."""


class Custody(Struct, frozen=True, tag="custody"):
    """The address of the wallet that is kept for a caller."""

    caller: str


class Ask(Struct, frozen=True):
    id: int
    what: Hello | Custody | Shape


class Welcome(Struct, frozen=True, tag="welcome"):
    """address: of the wallet that settles. keys: of HANDED_OVER, 32 bytes each. commanding: None from older signers."""

    address: str
    platform: str
    keys: dict[str, bytes]
    commanding: Commanding | None = None


class Address(Struct, frozen=True, tag="address"):
    address: str


class Signed(Struct, frozen=True, tag="signed"):
    signed: SignedTransaction


class No(Struct, frozen=True, tag="no"):
    """code: of a SettlementError, or "cannot_start"."""

    code: str
    message: str


class Answer(Struct, frozen=True):
    id: int
    what: Welcome | Address | Signed | No


def _no(error: Exception) -> No:
    """Why nothing is signed. signer_gone: what was asked may be right, and be signed later."""
    if isinstance(error, CyxError):
        return No(error.code, str(error))
    if isinstance(error, OSError):  # only the journal is a file
        return No("signer_gone", f"the signer cannot write its signed.jsonl ({error.strerror or error})")
    return No("signer_refused", f"{type(error).__name__}: {error}")


ASKED, ANSWERED = msgspec.msgpack.Decoder(Ask), msgspec.msgpack.Decoder(Answer)


def frame(said: Ask | Answer) -> bytes:
    body = msgspec.msgpack.encode(said)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class Spent(Struct, frozen=True):
    """The most that was signed for an escrow, and when last."""

    at_ms: int
    pay_base_units: int


class _Line(Struct):
    at_ms: int
    job_id: str = ""
    escrow: str = ""  # "": of an older version
    pay_base_units: int = 0


_LINE = msgspec.json.Decoder(_Line)


def _lines_of(lines: list[bytes]) -> Iterator[_Line]:
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):  # cut by the edge of a block, or by a crash
            yield _LINE.decode(line)


class Journal:
    """All that was signed, a line each, and what of it was paid out in the last hour.

    An escrow counts once, however often its settlement is signed: only one of those can land.
    """

    def __init__(self, path: Path, limit_base_units: int, now_ms: int):
        """limit_base_units: in an hour; 0 for no limit. now_ms: the wall clock. Raises OSError."""
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._limit = limit_base_units
        self._read_to = self._begin_of_hour(now_ms)
        self._rest = b""
        self._hour: dict[str, Spent] = {}  # by escrow
        self._spent = 0  # the sum of it
        self._ends: deque[tuple[int, str]] = (
            deque()
        )  # when an escrow was signed for, about in order; not the newest: old
        self._lock = threading.Lock()
        self._unsynced = False
        with self.alone():
            pass  # it has been read

    def _begin_of_hour(self, now_ms: int) -> int:
        """A place in the file with nothing of the last hour before it: that of a block with older lines only.

        A single older line proves nothing: a clock may once have been wrong.
        """
        at = os.fstat(self._file).st_size
        while at > 0:
            at = max(0, at - READ_BYTES)
            dates = [line.at_ms for line in _lines_of(os.pread(self._file, READ_BYTES, at).split(b"\n"))]
            if dates and max(dates) <= now_ms - HOUR_MS:
                break
        return at

    @contextlib.contextmanager
    def alone(self):  # type: ignore[no-untyped-def]
        """Nobody else reads, decides and writes meanwhile, in this process or another. Raises SettlementError."""
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._refuse_moved()
                self._catch_up()
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _refuse_moved(self) -> None:
        """Signers with different files would each pay out what all of them may."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._file)):
                return
        raise SettlementError(
            "signer_gone",
            f"{self._path}: expected the journal that this signer has open, got another file or none; move it back, or "
            "stop all signers of this folder and start them an hour later",
        )

    def _catch_up(self) -> None:
        size = os.fstat(self._file).st_size
        if size < self._read_to:  # somebody began it anew
            self._read_to, self._rest = 0, b""
        while self._read_to < size:
            some = os.pread(self._file, READ_BYTES, self._read_to)
            self._read_to += len(some)
            *lines, self._rest = (self._rest + some).split(b"\n")
            for said in _lines_of(lines):
                if said.pay_base_units:
                    escrow = said.escrow or said.job_id
                    before = self._hour.get(escrow, Spent(0, 0))
                    pay_base_units = max(before.pay_base_units, said.pay_base_units)
                    self._spent += pay_base_units - before.pay_base_units
                    self._is_signed(escrow, Spent(max(before.at_ms, said.at_ms), pay_base_units))

    def _is_signed(self, escrow: str, spent: Spent) -> None:
        self._hour[escrow] = spent
        self._ends.append((spent.at_ms, escrow))

    def _forget_older(self, now_ms: int) -> None:
        """What was signed more than an hour ago. Each is looked at when it is the first, so many cost no more than few.

        A clock may have been set back: what seems to be signed later is signed now.
        """
        while self._ends:
            at_ms, escrow = self._ends[0]
            spent = self._hour.get(escrow)
            current = spent is not None and spent.at_ms == at_ms
            if current and now_ms - HOUR_MS < at_ms <= now_ms:
                return
            self._ends.popleft()
            if current and spent is not None:
                if at_ms > now_ms:
                    self._is_signed(escrow, Spent(now_ms, spent.pay_base_units))
                else:
                    del self._hour[escrow]
                    self._spent -= spent.pay_base_units

    def refuse_beyond_limit(self, terms: EscrowTerms, pay_base_units: int, now_ms: int) -> None:
        """Raises SettlementError spending_cap. Ask within alone()."""
        self._forget_older(now_ms)
        if not self._limit:
            return
        others = self._spent - self._hour.get(terms.escrow, Spent(0, 0)).pay_base_units
        if others + pay_base_units > self._limit:
            first_ms = next((at_ms for at_ms, each in self._ends if each != terms.escrow), now_ms)
            until_s = (first_ms + HOUR_MS - now_ms) // 1000 + 1
            wait = f"some of it is free again in {until_s} s" if others else "it is more than the limit by itself"
            raise SettlementError(
                "spending_cap",
                f"job {terms.job_id} is to be paid {format_cyx(pay_base_units)} CYX; of the {format_cyx(self._limit)} "
                f"CYX an hour (spend_per_hour_base_units in network.json) {format_cyx(others)} are used up; {wait}",
            )

    def add(self, line: dict[str, object]) -> None:
        """One more line; in the file, but not on the disk before sync(). Ask within alone(). Raises OSError."""
        waiting = json.dumps(line).encode() + b"\n"
        if self._rest:  # a crash or a full disk cut a line off; this one must not be taken for its end
            waiting = b"\n" + waiting
        while waiting:  # a write may be cut short
            waiting = waiting[os.write(self._file, waiting) :]
        self._catch_up()
        self._unsynced = True

    def sync(self) -> None:
        """Before a signature is given away."""
        with self._lock:  # who finds nothing to do may rely on whoever did it
            if self._unsynced:
                os.fsync(self._file)
                self._unsynced = False


class Keeper:
    """The keys, and what they may sign. now_ms: the wall clock."""

    def __init__(self, seed: identity.Identity, network: NetworkFile, journal: Journal, now_ms: Callable[[], int]):
        self._seed = seed
        self._network = network
        self._journal = journal
        self._now_ms = now_ms
        self._wallet = Wallet(seed.child("wallet"))
        self._platform = Wallet(seed.child("platform")).address

    def answer(self, asked: Ask) -> Answer:
        try:
            return Answer(asked.id, self._answer(asked.what))
        except Exception as error:  # whoever asked is waiting, and others ask through the same link
            return Answer(asked.id, _no(error))

    def _answer(self, what: Hello | Custody | Shape) -> Welcome | Address | Signed:
        match what:
            case Hello():
                keys = {purpose: self._seed.child(purpose) for purpose in HANDED_OVER}
                network = self._network
                given = commanding(self._seed, network.network_id, network.command_key)
                return Welcome(self._wallet.address, self._platform, keys, given)
            case Custody(caller):
                return Address(self._custody(caller).address)
            case _:
                return Signed(self._signed(what))

    def _custody(self, caller: str) -> Wallet:
        if not self._network.custodial_wallets:
            raise SettlementError("signer_refused", "this network keeps no wallets for callers (custodial_wallets)")
        return Wallet(self._seed.child(f"custody:{caller}"))

    def _signed(self, shape: Shape) -> SignedTransaction:
        with self._journal.alone():
            line: dict[str, object] = {"at_ms": self._now_ms(), "shape": type(shape).__name__.lower()}
            wallet = self._wallet
            match shape:
                case Settle():
                    self._check_terms("settle", shape.terms)
                    pay = sum(payee.pay_base_units for payee in shape.payees)
                    self._journal.refuse_beyond_limit(shape.terms, pay, self._now_ms())
                    paid = {payee.wallet: payee.pay_base_units for payee in shape.payees}
                    of = {"job_id": shape.terms.job_id, "escrow": shape.terms.escrow}
                    line |= of | {"pay_base_units": pay, "payees": paid}
                case Deposit():
                    wallet = self._custody(shape.caller)
                    self._check_terms("deposit", shape.terms)
                    line |= {"job_id": shape.terms.job_id, "caller": shape.caller}
                case MakeMint() | Faucet() if not self._network.faucet:
                    raise SettlementError(
                        "signer_refused",
                        "this network makes no money: in network.json name its mint, or, for test money, set faucet "
                        "to true",
                    )
                case MakeMint() | Faucet() if real := self._network.real_money:
                    raise SettlementError(
                        "signer_refused",
                        f"test money is for local networks, and network.json names a public chain ({real}): set faucet "
                        "to false there",
                    )
                case Faucet() if not 0 <= shape.lamports <= MOST_LAMPORTS:
                    raise SettlementError(
                        "signer_refused", f"faucet: expected up to {MOST_LAMPORTS} lamports, got {shape.lamports}"
                    )
                case Faucet():
                    line |= {"to": shape.to, "amount_base_units": shape.amount_base_units, "lamports": shape.lamports}
            signed = sign_shape(wallet, shape)
            self._journal.add(line | {"signature": signed.signature})
            return signed

    def _check_terms(self, of: str, terms: EscrowTerms) -> None:
        """An escrow of another network, program or platform is none of ours: money in it is out of our hands."""
        network = self._network
        for what, said, ours in (
            ("authority", terms.authority, self._wallet.address),
            ("platform", terms.platform, self._platform),
            ("program", terms.program, network.escrow_program or LOCAL_PROGRAM),
            ("mint", terms.mint, network.mint or terms.mint),
        ):
            if said != ours:
                raise SettlementError("signer_refused", f"{of}: expected the {what} {ours}, got {said}")


def serve(read: Callable[[], bytes], write: Callable[[bytes], None], keeper: Keeper, sync: Callable[[], None]) -> None:
    """Answer whoever asks until there is no more. What came together is brought to the disk together."""
    waiting = b""
    while some := read():
        waiting += some
        answers = []
        while len(waiting) >= LENGTH_BYTES:
            size = int.from_bytes(waiting[:LENGTH_BYTES], "big")
            if size > LARGEST_FRAME:
                return  # whoever says so does not speak as we do
            if len(waiting) < LENGTH_BYTES + size:
                break
            body, waiting = waiting[LENGTH_BYTES : LENGTH_BYTES + size], waiting[LENGTH_BYTES + size :]
            try:
                answers.append(keeper.answer(ASKED.decode(body)))
            except msgspec.MsgspecError as error:
                answers.append(Answer(0, No("signer_refused", f"expected a question that this signer knows: {error}")))
        if answers:
            try:
                sync()
            except OSError as error:  # what is not on the disk is not given away
                answers = [Answer(each.id, _no(error)) for each in answers]
            write(b"".join(map(frame, answers)))


def _listen(path: Path, keeper: Keeper, sync: Callable[[], None]) -> None:
    """Serve everybody who may open the socket: its file's permissions say who that is."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        old = os.umask(0o117)  # its owner and group
        try:
            listening.bind(str(path))
        finally:
            os.umask(old)
        listening.listen()
        print(json.dumps({"ready": True, "socket": str(path)}), flush=True)
        while True:
            link, _ = listening.accept()
            threading.Thread(target=_serve_link, args=(link, keeper, sync), daemon=True).start()


def _serve_link(link: socket.socket, keeper: Keeper, sync: Callable[[], None]) -> None:
    with link, contextlib.suppress(ConnectionError):  # whatever happens, nobody waits at a link that none serves
        serve(lambda: link.recv(READ_BYTES), link.sendall, keeper, sync)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m cyxcentral.signer", description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="folder of the platform's key (default .cyx)")
    parser.add_argument("--socket", type=Path, help="serve there, instead of standard input")
    options = parser.parse_args(arguments)

    def write(answers: bytes) -> None:
        sys.stdout.buffer.write(answers)
        sys.stdout.buffer.flush()

    try:
        network = read_network(options.dir)
        seed = identity.load_or_create(options.dir / "central.key")
        journal = Journal(options.dir / "signed.jsonl", network.spend_per_hour_base_units, wall_ms())
    except (CyxError, OSError) as error:
        if options.socket is None:
            write(frame(Answer(0, No("cannot_start", str(error)))))
        else:
            print(f"cyxcentral.signer: {error}", file=sys.stderr)
        return 1
    keeper = Keeper(seed, network, journal, wall_ms)
    try:
        if options.socket is not None:
            _listen(options.socket, keeper, journal.sync)
        serve(lambda: os.read(0, READ_BYTES), write, keeper, journal.sync)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    except OSError as error:
        print(f"cyxcentral.signer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
