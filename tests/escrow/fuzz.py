"""Random lives of escrows, in the real virtual machine and in the model at once: both must say the same.

A sequence is a handful of transactions among the same few people, most of them honest and then spoilt a little: another
account, another order, a signature or a byte less. After each one the machine's accounts must be the model's to the
byte, or both must have refused, the program with the number that the model gives.
"""

from __future__ import annotations

import functools
import random
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.token import ID as TOKEN_PROGRAM
from solders.transaction import VersionedTransaction

from cyxcentral.program import program
from tests.escrow import model
from tests.escrow.machine import SOL, Machine, Refused
from tests.escrow.model import Chain, Meta, Mint, Refusal, State, Token, Wallet

NOW_S = 1_700_000_000
TOKEN_RENT, MINT_RENT = model.rent(model.TOKEN_BYTES), model.rent(82)
ASSOCIATED = bytes(Pubkey.from_string("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL"))
WALLETS = ("client", "other client", "authority", "assigner", "platform", "node 0", "node 1", "node 2", "node 3",
           "node 4", "poor")  # fmt: skip
AMOUNTS = (1, 2, 9, 10, 9_999, 10_000, 10_001, 12_345_678_901, 2**63, 2**64 - 1)
Sent = tuple[bytes, list[Meta]]


@functools.lru_cache(maxsize=1 << 16)
def derive(seeds: tuple[bytes, ...], program_id: bytes) -> tuple[bytes, int]:
    key, bump = Pubkey.find_program_address(list(seeds), Pubkey.from_bytes(program_id))
    return bytes(key), bump


class Divergence(AssertionError):
    """The machine and the model do not agree."""


class Arena:
    """The machine, with the program deployed once; every sequence puts its own people and accounts into it."""

    def __init__(self) -> None:
        self.machine = Machine(signatures=False)
        self.payer = Keypair.from_seed(b"fee payer, who is nobody else 32")
        self.machine.give(self.payer.pubkey(), 10**9 * SOL)
        deployed = Keypair.from_seed(b"the address of the program, 32 b")
        self.machine.deploy(program(), self.payer, deployed)
        self.program = bytes(deployed.pubkey())
        self.owners = {
            Wallet: bytes(32), Mint: bytes(TOKEN_PROGRAM), Token: bytes(TOKEN_PROGRAM), State: self.program
        }  # fmt: skip
        self.wallets = {name: bytes(Keypair.from_seed(name.encode().ljust(32)).pubkey()) for name in WALLETS}
        self.mints = [bytes(Keypair.from_seed(bytes([n]) * 32).pubkey()) for n in (1, 2)]
        self.outcomes: Counter[str] = Counter()
        self.transactions = 0

    def put(self, key: bytes, thing: model.Thing | None) -> None:
        account = Account(0, b"", Pubkey.from_bytes(bytes(32)), False, 0)
        if thing is not None:
            account = Account(thing.lamports, thing.encode(), Pubkey.from_bytes(self.owners[type(thing)]), False, 0)
        self.machine.svm.set_account(Pubkey.from_bytes(key), account)

    def compare(self, key: bytes, thing: model.Thing | None) -> None:
        """Raises Divergence unless the machine's account is what the model says."""
        account = self.machine.svm.get_account(Pubkey.from_bytes(key))
        found = None if account is None or not account.lamports else account
        if thing is not None and thing.lamports == 0:
            thing = None
        if (found is None) != (thing is None):
            raise Divergence(f"{Pubkey.from_bytes(key)}: the machine has {found}, the model {thing}")
        if found is None or thing is None:
            return
        seen = found.lamports, bytes(found.owner), bytes(found.data)
        said = thing.lamports, self.owners[type(thing)], thing.encode()
        if seen != said:
            raise Divergence(f"{Pubkey.from_bytes(key)}: the machine has {seen}, the model {said}: {thing}")

    def run(self, sent: Sequence[Sent]) -> Refused | None:
        instructions = [
            Instruction(
                Pubkey.from_bytes(self.program),
                data,
                [AccountMeta(Pubkey.from_bytes(meta.key), meta.signer, meta.writable) for meta in metas],
            )
            for data, metas in sent
        ]
        message = MessageV0.try_compile(self.payer.pubkey(), instructions, [], self.machine.svm.latest_blockhash())
        signatures = [Signature.default()] * message.header.num_required_signatures
        try:
            self.machine.land(VersionedTransaction.populate(message, signatures))
        except Refused as refused:
            return refused
        return None


class Life:
    """One seed's people, accounts and transactions."""

    def __init__(self, arena: Arena, seed: int) -> None:
        self.arena = arena
        self.dice = random.Random(seed)
        self.now_s = NOW_S
        self.mint, self.other_mint = arena.mints
        self.jobs = [self.dice.randbytes(32) for _ in range(2)]
        who = arena.wallets
        self.states = [derive((b"escrow", who["client"], job), arena.program)[0] for job in self.jobs]
        self.vaults = [derive((b"vault", state), arena.program)[0] for state in self.states]
        self.world: model.World = {key: Wallet(1_000_000 if name == "poor" else 10 * SOL) for name, key in who.items()}
        for mint in arena.mints:
            self.world[mint] = Mint(MINT_RENT, 9 if mint == self.mint else 6)
            for key in who.values():
                self.world[self.token(key, mint)] = Token(TOKEN_RENT, mint, key, 0)
        self.give_client(self.dice.choice((10**12, 10**12, 2**64 - 1, 5)))
        self.keys = [*self.world, *self.states, *self.vaults, bytes(32), bytes(TOKEN_PROGRAM), arena.program]
        for key in (*self.world, *self.states, *self.vaults):
            arena.put(key, self.world.get(key))
        self.set_time(NOW_S)
        self.supply = self.base_units()

    def token(self, wallet: bytes, mint: bytes) -> bytes:
        return derive((wallet, bytes(TOKEN_PROGRAM), mint), ASSOCIATED)[0]

    def give_client(self, amount: int) -> None:
        client = self.arena.wallets["client"]
        self.world[self.token(client, self.mint)] = Token(TOKEN_RENT, self.mint, client, amount)

    def base_units(self) -> dict[bytes, int]:
        held = dict.fromkeys(self.arena.mints, 0)
        for thing in self.world.values():
            if isinstance(thing, Token):
                held[thing.mint] += thing.amount
        return held

    def lamports(self) -> int:
        return sum(thing.lamports for thing in self.world.values())

    def set_time(self, now_s: int) -> None:
        self.now_s = now_s
        self.arena.machine.set_time(now_s)

    def play(self) -> None:
        """Raises Divergence."""
        for _ in range(self.dice.randint(3, 8)):
            if self.dice.random() < 0.25:
                self.meddle()
            self.step()
        for key in (*self.states, *self.vaults):
            self.arena.put(key, None)

    def step(self) -> None:
        sent = [self.instruction() for _ in range(self.dice.choice((1, 1, 1, 2, 3)))]
        chain = Chain(self.arena.program, bytes(TOKEN_PROGRAM), ASSOCIATED, derive, self.now_s)
        after, expected = self.world, None
        lamports = self.lamports()
        try:
            after = model.transact(chain, self.world, sent)
        except Refusal as refusal:
            expected = refusal
        refused = self.arena.run(sent)
        self.arena.transactions += 1
        name = "+".join(NAMES.get(data[:1], "?") for data, _ in sent) if expected is None else (
            f"refused {expected.code or 'by another'}"
        )  # fmt: skip
        self.arena.outcomes[name] += 1
        if (refused is None) != (expected is None):
            raise Divergence(f"the machine: {refused or 'done'}; the model: {expected.code if expected else 'done'}")
        if refused is not None and expected is not None:
            code = refused.code if refused.code is not None and refused.code >= 1000 else None
            if code != expected.code:
                raise Divergence(f"the machine refused with {refused}, the model with {expected.code}")
        for key in {meta.key for _, metas in sent for meta in metas} - {bytes(32), bytes(TOKEN_PROGRAM)}:
            if key != self.arena.program:
                self.arena.compare(key, after.get(key))
        self.world = after
        if self.base_units() != self.supply or self.lamports() != lamports:
            raise Divergence("something was made or lost")

    # What others do meanwhile.

    def meddle(self) -> None:
        what = self.dice.randrange(5)
        at = self.dice.randrange(2)
        if what == 0:
            self.set_time(self.dice.choice((NOW_S, NOW_S + 3_600, NOW_S + 86_399, NOW_S + 86_400, NOW_S + 10**7)))
        elif what == 1:  # dust into the vault, while there can be more of the token
            vault = self.world.get(self.vaults[at])
            if isinstance(vault, Token) and self.supply[vault.mint] < 2**64 - 10:
                self.change(self.vaults[at], replace(vault, amount=vault.amount + self.dice.randint(1, 9)))
        elif what == 2:  # lamports sent ahead
            key = self.dice.choice((self.states[at], self.vaults[at]))
            if key not in self.world:
                self.change(key, Wallet(self.dice.choice((890_880, 2_039_280, 3_000_000, 10**7))))
        else:  # a recipient closes its empty account, gives it away, or has it again
            wallet = self.arena.wallets[self.dice.choice(WALLETS)]
            key = self.token(wallet, self.mint)
            owner = wallet if what == 3 else self.arena.wallets[self.dice.choice(WALLETS)]
            held = self.world.get(key)
            if held is None or (isinstance(held, Token) and held.amount):
                amount = held.amount if isinstance(held, Token) else 0
                self.change(key, Token(TOKEN_RENT, self.mint, owner, amount))
            else:
                self.change(key, None)

    def change(self, key: bytes, thing: model.Thing | None) -> None:
        self.world = {k: v for k, v in self.world.items() if k != key} | ({} if thing is None else {key: thing})
        self.arena.put(key, thing)
        self.supply = self.base_units()

    # What is sent.

    def instruction(self) -> Sent:
        at = self.dice.randrange(2) if self.dice.random() < 0.3 else 0
        state = self.world.get(self.states[at])
        makers = (self.assign, self.settle, self.settle, self.release, self.refund, self.give_up)
        make = self.open if not isinstance(state, State) else self.dice.choice(makers)
        if self.dice.random() < 0.1:
            make = self.dice.choice((self.open, *makers))
        data, metas = make(at, state if isinstance(state, State) else self.blank(at))
        spoilt = self.dice.choice((0, 0, 0, 0, 0, 1, 1, 2, 5))
        for _ in range(spoilt):
            data, metas = self.spoil(data, metas)
        wallets = set(self.arena.wallets.values())  # nobody signs for what has no key
        return data, [meta if meta.key in wallets else meta._replace(signer=False) for meta in metas]

    def blank(self, at: int) -> State:
        """What a state could look like that is not there."""
        who = self.arena.wallets
        tokens = (self.token(who["platform"], self.mint), self.token(who["client"], self.mint))
        return State(0, 0, 0, 1, 0, who["client"], who["client"], who["authority"], who["assigner"], self.mint, *tokens)

    def open(self, at: int, _: State) -> Sent:
        who, dice = self.arena.wallets, self.dice
        client_token = self.token(who["client"], self.mint)
        held = self.world.get(client_token)
        most = held.amount if isinstance(held, Token) else 1
        amount = dice.choice((most, *(amount for amount in AMOUNTS if amount <= most or dice.random() < 0.05)))
        fee = dice.choice((0, 1, 1000, 1000, 9_999, 10_000))
        deadline_s = self.now_s + dice.choice((1, 3_600, 86_400, 86_400, model.LONGEST_S))
        if dice.random() < 0.1:
            amount, fee = dice.choice(((0, fee), (amount, 10_001), (amount, 65_535)))
        if dice.random() < 0.1:
            deadline_s = dice.choice((self.now_s, self.now_s - 1, self.now_s + model.LONGEST_S + 1, -1, 2**63 - 1))
        nodes = dice.sample(WALLETS[5:10], dice.choice((0, 0, 1, 1, 2, 4)))
        assigner = dice.choice((who["assigner"], who["assigner"], who["authority"], who["client"], bytes(32)))
        payer = dice.choice(
            (who["client"], who["client"], who["client"], who["authority"], who["authority"], who["poor"])
        )
        metas = [
            Meta(payer, True, True), Meta(who["client"], True, False), Meta(self.states[at], False, True),
            Meta(self.vaults[at], False, True), Meta(client_token, False, True), Meta(self.mint, False, False),
            Meta(who["authority"], False, False), Meta(assigner, False, False), Meta(who["platform"], False, False),
            Meta(bytes(TOKEN_PROGRAM), False, False), Meta(bytes(32), False, False),
            *(Meta(who[name], False, False) for name in nodes),
        ]  # fmt: skip
        return b"\0" + struct.pack("<HQq", fee, amount, deadline_s) + self.jobs[at], metas

    def assign(self, at: int, state: State) -> Sent:
        nodes = self.dice.choices(WALLETS[5:10], k=self.dice.choice((1, 1, 2, 3, 4)))
        metas = [Meta(state.assigner, True, False), Meta(self.states[at], False, True)]
        return b"\1", metas + [Meta(self.arena.wallets[name], False, False) for name in nodes]

    def closing(self, who: bytes, signs: bool, at: int, state: State, nodes: Sequence[bytes]) -> list[Meta]:
        middle = [(self.states[at], 1), (self.vaults[at], 1), (state.mint, 0), (state.platform_token, 1),
                  (state.client_token, 1), (state.payer, 1), (bytes(TOKEN_PROGRAM), 0)]  # fmt: skip
        middle += [(node, 1) for node in nodes]
        return [Meta(who, signs, False), *(Meta(key, False, bool(writable)) for key, writable in middle)]

    def settle(self, at: int, state: State) -> Sent:
        left, pays = state.amount, []
        for _ in state.nodes:
            pay = self.dice.choice((0, left, left // 2, self.dice.randint(0, left)))
            left -= pay
            pays.append(pay)
        if pays and self.dice.random() < 0.15:
            pays[self.dice.randrange(len(pays))] += self.dice.choice((1, 2**63, 2**64 - 1))
        data = b"\2" + b"".join((pay % 2**64).to_bytes(8, "little") for pay in pays)
        return data, self.closing(state.authority, True, at, state, state.nodes)

    def release(self, at: int, state: State) -> Sent:
        return b"\3", self.closing(state.client, True, at, state, state.nodes)

    def refund(self, at: int, state: State) -> Sent:
        if self.dice.random() < 0.3:
            self.set_time(max(self.now_s, min(state.deadline_s, NOW_S + 10**9)))
        return b"\4", self.closing(self.dice.choice(list(self.arena.wallets.values())), False, at, state, ())

    def give_up(self, at: int, state: State) -> Sent:
        named = [key for key in self.arena.wallets.values() if self.token(key, state.mint) in state.nodes]
        node = self.dice.choice(named or list(self.arena.wallets.values()))
        return b"\5", [Meta(node, True, False), Meta(self.states[at], False, True)]

    def spoil(self, data: bytes, metas: list[Meta]) -> Sent:
        dice, metas = self.dice, list(metas)
        i = dice.randrange(len(metas)) if metas else 0
        j = dice.randrange(len(metas)) if metas else 0
        how = dice.randrange(10) if metas else 9
        if how <= 2:
            metas[i] = metas[i]._replace(key=dice.choice(self.keys))
        elif how == 3:
            metas[i], metas[j] = metas[j], metas[i]
        elif how == 4:
            metas[i] = metas[i]._replace(key=metas[j].key)
        elif how == 5:
            metas[i] = metas[i]._replace(signer=not metas[i].signer)
        elif how == 6:
            metas[i] = metas[i]._replace(writable=not metas[i].writable)
        elif how == 7:
            del metas[i]
        elif how == 8:
            metas.insert(i, Meta(dice.choice(self.keys), False, dice.random() < 0.5))
        else:
            data = dice.choice(
                (
                    data[: dice.randint(0, len(data))],
                    data + dice.randbytes(dice.choice((1, 8))),
                    bytes(byte ^ (1 << dice.randrange(8)) if k == 0 else byte for k, byte in enumerate(data)),
                    data[:1] + dice.randbytes(len(data) - 1) if data else b"",
                )
            )
        return data, metas


NAMES = {b"\0": "open", b"\1": "assign", b"\2": "settle", b"\3": "release", b"\4": "refund", b"\5": "give up"}
