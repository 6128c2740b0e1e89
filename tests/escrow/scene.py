"""One escrow and everybody around it, on the real virtual machine: the honest form of every instruction, and ways to
send it wrong."""

import struct
from collections.abc import Mapping, Sequence

from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM
from solders.token import ID as TOKEN
from solders.token.associated import get_associated_token_address
from solders.transaction_metadata import TransactionMetadata

from cyxcentral.program import program
from tests.escrow.machine import SOL, Machine, mint_bytes, token_account

RICH_BASE_UNITS = 1_000 * 10**9
AMOUNT = 100 * 10**9
DAY_S = 86_400

CLOSING = (
    ("state", "w"), ("vault", "w"), ("mint", ""), ("platform_token", "w"), ("client_token", "w"), ("payer", "w"),
    ("token_program", ""),
)  # fmt: skip
# The accounts of each instruction: role and flags, s for a signer and w for writable. Nodes come after them.
ACCOUNTS: dict[str, tuple[tuple[str, str], ...]] = {
    "open": (
        ("payer", "sw"), ("client", "s"), ("state", "w"), ("vault", "w"), ("client_token", "w"), ("mint", ""),
        ("authority", ""), ("assigner", ""), ("platform", ""), ("token_program", ""), ("system_program", ""),
    ),
    "assign": (("assigner", "s"), ("state", "w")),
    "settle": (("authority", "s"), *CLOSING),
    "release": (("client", "s"), *CLOSING),
    "refund": (("stranger", ""), *CLOSING),
    "give_up": (("node", "s"), ("state", "w")),
}  # fmt: skip
TAGS = {"open": 0, "assign": 1, "settle": 2, "release": 3, "refund": 4, "give_up": 5}


def open_data(fee_basis_points: int, amount: int, deadline_s: int, job: bytes) -> bytes:
    return bytes([TAGS["open"]]) + struct.pack("<HQq", fee_basis_points, amount, deadline_s) + job


def settle_data(*pays: int) -> bytes:
    return bytes([TAGS["settle"]]) + b"".join(pay.to_bytes(8, "little") for pay in pays)


class Scene:
    """A deployed program, a token, and wallets. The client opens an escrow of AMOUNT at 10 % for one day."""

    def __init__(self, machine: Machine | None = None, program_id: Pubkey | None = None):
        self.machine = machine or Machine()
        self.sponsor = Keypair()
        self.machine.give(self.sponsor.pubkey(), 1_000 * SOL)
        if program_id is None:
            deployed = Keypair()
            self.machine.deploy(program(), self.sponsor, deployed)
            program_id = deployed.pubkey()
        self.program = program_id
        self.mint = Pubkey.new_unique()
        self.machine.svm.set_account(self.mint, Account(1_461_600, mint_bytes(), TOKEN, False, 0))
        self.keys = {name: Keypair() for name in ("client", "authority", "assigner", "platform", "node", "stranger")}
        self.nodes = [self.keys["node"], *(Keypair() for _ in range(4))]
        for keypair in (*self.keys.values(), *self.nodes):
            self.machine.give(keypair.pubkey(), 10 * SOL)
            held = RICH_BASE_UNITS if keypair is self.keys["client"] else 0
            self.set_token(keypair.pubkey(), held)
        self.job = bytes(range(32))
        self.deadline_s = self.machine.now_s + DAY_S
        client = self.keys["client"].pubkey()
        self.places = {name: keypair.pubkey() for name, keypair in self.keys.items()} | {
            "payer": client,
            "mint": self.mint,
            "client_token": self.token(client),
            "platform_token": self.token(self.keys["platform"].pubkey()),
            "token_program": TOKEN,
            "system_program": SYSTEM,
        }
        self.find_places()

    def find_places(self) -> None:
        """Derive state and vault; again after the client or the job changed."""
        state = Pubkey.find_program_address([b"escrow", bytes(self.places["client"]), self.job], self.program)[0]
        vault = Pubkey.find_program_address([b"vault", bytes(state)], self.program)[0]
        self.places |= {"state": state, "vault": vault}

    # What is there.

    def token(self, owner: Pubkey, mint: Pubkey | None = None) -> Pubkey:
        return get_associated_token_address(owner, mint or self.mint)

    def set_token(self, owner: Pubkey, amount: int, mint: Pubkey | None = None) -> Pubkey:
        address = self.token(owner, mint)
        self.machine.svm.set_account(address, token_account(mint or self.mint, owner, amount))
        return address

    def set_vault(self, amount: int) -> None:
        """As if somebody had sent it something."""
        account = self.machine.svm.get_account(self.places["vault"])
        assert account is not None
        data = bytes(account.data)[:64] + amount.to_bytes(8, "little") + bytes(account.data)[72:]
        self.machine.svm.set_account(self.places["vault"], Account(account.lamports, data, TOKEN, False, 0))

    def held(self, name: str) -> int:
        """Base units in the token account of a wallet, or in the vault."""
        address = self.places["vault"] if name == "vault" else self.token(self.places[name])
        account = self.machine.svm.get_account(address)
        return 0 if account is None else int.from_bytes(bytes(account.data)[64:72], "little")

    def node_held(self, at: int) -> int:
        account = self.machine.svm.get_account(self.token(self.nodes[at].pubkey()))
        assert account is not None
        return int.from_bytes(bytes(account.data)[64:72], "little")

    def lamports(self, name: str) -> int:
        return self.machine.svm.get_balance(self.places[name]) or 0

    def state(self) -> bytes:
        account = self.machine.svm.get_account(self.places["state"])
        return b"" if account is None else bytes(account.data)

    # What is sent.

    def instruction(
        self,
        name: str,
        data: bytes | None = None,
        nodes: Sequence[Pubkey] = (),
        swap: Mapping[str, Pubkey] | None = None,
        unsigned: Sequence[str] = (),
    ) -> Instruction:
        """An instruction with every account in its place, but for those in `swap`."""
        places = self.places | dict(swap or {})
        metas = [
            AccountMeta(places[role], "s" in flags and role not in unsigned, "w" in flags)
            for role, flags in ACCOUNTS[name]
        ]
        writable = name in ("settle", "release")
        metas += [AccountMeta(key, False, writable) for key in nodes]
        return Instruction(self.program, bytes([TAGS[name]]) if data is None else data, metas)

    def send(self, *instructions: Instruction) -> TransactionMetadata:
        """Land them in one transaction, signed by whoever they name as signers of those that are here."""
        known = {keypair.pubkey(): keypair for keypair in (*self.keys.values(), *self.nodes, self.sponsor)}
        wanted = {meta.pubkey for each in instructions for meta in each.accounts if meta.is_signer}
        signers = [known[key] for key in sorted(wanted, key=str) if key != self.sponsor.pubkey()]
        return self.machine.run(self.sponsor, list(instructions), *signers)

    def opening(
        self, *, fee: int = 1000, amount: int = AMOUNT, nodes: Sequence[Keypair] = (), **options: object
    ) -> Instruction:
        data = open_data(fee, amount, self.deadline_s, self.job)
        keys = [node.pubkey() for node in nodes]
        return self.instruction("open", data, keys, **options)  # type: ignore[arg-type]

    def opened(self, *, assigned: int = 0, **options: object) -> "Scene":
        """The escrow, open, with the first nodes assigned."""
        self.send(self.opening(**options))  # type: ignore[arg-type]
        if assigned:
            self.send(self.assigning(*self.nodes[:assigned]))
        return self

    def assigning(self, *nodes: Keypair) -> Instruction:
        return self.instruction("assign", nodes=[node.pubkey() for node in nodes])

    def settling(self, *pays: int, **options: object) -> Instruction:
        """Pay the first so many nodes."""
        nodes = [self.token(node.pubkey()) for node in self.nodes[: len(pays)]]
        return self.instruction("settle", settle_data(*pays), nodes, **options)  # type: ignore[arg-type]

    def releasing(self, **options: object) -> Instruction:
        return self.instruction("release", nodes=[self.token(self.nodes[0].pubkey())], **options)  # type: ignore[arg-type]
