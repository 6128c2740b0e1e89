"""What the escrow program must do, said a second time and in other words: pure functions over a small world.

Written from the table at the head of cyxcentral/program/escrow.c. Where two rules are broken at once, the one that
stands first here is the one that is named. Addresses are bytes; `derive` is the runtime's search for an address.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

SYSTEM = bytes(32)
MAX_NODES, MAX_ACCOUNTS = 4, 16
LONGEST_S = 400 * 86_400
STATE_BYTES, TOKEN_BYTES = 376, 165
WALLET_RENT = 890_880

ERRORS = (
    "data", "accounts", "not signed", "program", "address", "mint", "terms", "deadline", "not open", "destination",
    "nodes", "pay", "not allowed", "too early", "too little",
)  # fmt: skip
CODES = {name: 1000 + at for at, name in enumerate(ERRORS)}

Derive = Callable[[Sequence[bytes], bytes], tuple[bytes, int]]


def rent(size: int) -> int:
    return (128 + size) * 6_960


class Refusal(Exception):
    """why: one of ERRORS, or "" when it is the runtime or another program that refuses."""

    def __init__(self, why: str = ""):
        super().__init__(why)
        self.code = CODES.get(why)


class Meta(NamedTuple):
    key: bytes
    signer: bool
    writable: bool


@dataclass(frozen=True)
class Wallet:
    lamports: int

    def encode(self) -> bytes:
        return b""


@dataclass(frozen=True)
class Mint:
    lamports: int
    decimals: int

    def encode(self) -> bytes:
        return bytes(36) + (2**63).to_bytes(8, "little") + bytes([self.decimals, 1]) + bytes(36)


@dataclass(frozen=True)
class Token:
    lamports: int
    mint: bytes
    owner: bytes
    amount: int

    def encode(self) -> bytes:
        return self.mint + self.owner + self.amount.to_bytes(8, "little") + bytes(36) + b"\x01" + bytes(56)


@dataclass(frozen=True)
class State:
    lamports: int
    vault_bump: int
    fee_basis_points: int
    amount: int
    deadline_s: int
    client: bytes
    payer: bytes
    authority: bytes
    assigner: bytes
    mint: bytes
    platform_token: bytes
    client_token: bytes
    nodes: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        head = struct.pack("<BBB3xHQq", 1, self.vault_bump, len(self.nodes), self.fee_basis_points, self.amount,
                           self.deadline_s)  # fmt: skip
        keys = (self.client, self.payer, self.authority, self.assigner, self.mint, self.platform_token)
        return (head + b"".join(keys) + self.client_token + b"".join(self.nodes)).ljust(STATE_BYTES, b"\0")


Thing = Wallet | Mint | Token | State
World = dict[bytes, Thing]


class Chain(NamedTuple):
    """What surrounds a call: the program's own address and those it knows, the time, the search for addresses."""

    program: bytes
    token_program: bytes
    associated_program: bytes
    derive: Derive
    now_s: int

    def token_of(self, wallet: bytes, mint: bytes) -> bytes:
        return self.derive((wallet, self.token_program, mint), self.associated_program)[0]


def require(condition: object, why: str = "") -> None:
    if not condition:
        raise Refusal(why)


def transact(chain: Chain, world: World, instructions: Sequence[tuple[bytes, Sequence[Meta]]]) -> World:
    """The world after a transaction, all of it or none. Raises Refusal.

    An account that one instruction names as a signer, or as writable, is so for all of them.
    """
    signers = {meta.key for _, metas in instructions for meta in metas if meta.signer}
    writable = {meta.key for _, metas in instructions for meta in metas if meta.writable}
    after = dict(world)
    for data, metas in instructions:
        call = Call(chain, after, data, [meta.key for meta in metas], signers, writable)
        require(len(call.keys) <= MAX_ACCOUNTS, "accounts")
        require(data, "data")
        rule = RULES.get(data[0])
        require(rule, "data")
        assert rule is not None
        rule(call)
    for key, thing in after.items():  # nobody may be left with too little to stay
        require(not isinstance(thing, Wallet) or thing == world.get(key) or thing.lamports >= WALLET_RENT)
    return after


@dataclass
class Call:
    chain: Chain
    world: World
    data: bytes
    keys: list[bytes]
    signers: set[bytes]
    writable: set[bytes]

    def state(self, key: bytes) -> State:
        thing = self.world.get(key)
        if not isinstance(thing, State):
            raise Refusal("not open")
        return thing

    def wallet(self, key: bytes) -> Wallet:
        """An account of nobody's: with lamports, or nothing at all."""
        thing = self.world.get(key, Wallet(0))
        if not isinstance(thing, Wallet):
            raise Refusal
        return thing

    def create(self, payer: bytes, key: bytes, size: int) -> int:
        """Make room for an account that only the program can make. The lamports it then has."""
        lamports = self.world.get(key, Wallet(0)).lamports
        missing = max(0, rent(size) - lamports)
        if missing:
            require({payer, key} <= self.writable)
            purse = self.wallet(payer)
            require(purse.lamports >= missing)
            self.world[payer] = Wallet(purse.lamports - missing)
        self.wallet(key)
        require(key in self.writable)
        return lamports + missing

    def move(self, source: bytes, mint: bytes, target: bytes, owner: bytes, amount: int) -> None:
        giver, taker = self.world.get(source), self.world.get(target)
        require({source, target} <= self.writable)
        if not (isinstance(giver, Token) and isinstance(taker, Token)):
            raise Refusal
        require(giver.mint == taker.mint == mint and giver.owner == owner and giver.amount >= amount)
        self.world[source] = replace(giver, amount=giver.amount - amount)
        taker = self.world[target]  # type: ignore[assignment]  # it may be the same one
        self.world[target] = replace(taker, amount=taker.amount + amount)


def with_nodes(call: Call, state: State, wallets: Sequence[bytes]) -> State:
    nodes = state.nodes
    for wallet in wallets:
        require(len(nodes) < MAX_NODES, "nodes")
        mine = call.chain.token_of(wallet, state.mint)
        require(mine not in nodes, "nodes")
        nodes = (*nodes, mine)
    return replace(state, nodes=nodes)


def open_(call: Call) -> None:
    chain, world, data, keys = call.chain, call.world, call.data, call.keys
    require(len(data) == 51, "data")
    require(11 <= len(keys) <= 11 + MAX_NODES, "accounts")
    payer, client, state_key, vault_key, client_token, mint, authority, assigner, platform, token, system = keys[:11]
    require({payer, client} <= call.signers, "not signed")
    require((token, system) == (chain.token_program, SYSTEM), "program")
    require(isinstance(world.get(mint), Mint), "mint")
    fee, amount, deadline_s = struct.unpack_from("<HQq", data, 1)
    require(amount and fee <= 10_000, "terms")
    require(chain.now_s < deadline_s <= chain.now_s + LONGEST_S, "deadline")
    require(state_key == chain.derive((b"escrow", client, data[19:]), chain.program)[0], "address")
    state_lamports = call.create(payer, state_key, STATE_BYTES)
    expected, bump = chain.derive((b"vault", state_key), chain.program)
    require(vault_key == expected, "address")
    vault_lamports = call.create(payer, vault_key, TOKEN_BYTES)
    world[vault_key] = Token(vault_lamports, mint, vault_key, 0)
    state = State(
        lamports=state_lamports, vault_bump=bump, fee_basis_points=fee, amount=amount, deadline_s=deadline_s,
        client=client, payer=payer, authority=authority, assigner=assigner, mint=mint,
        platform_token=chain.token_of(platform, mint), client_token=chain.token_of(client, mint),
    )  # fmt: skip
    require(client_token == state.client_token, "destination")
    world[state_key] = with_nodes(call, state, keys[11:])
    call.move(client_token, mint, vault_key, client, amount)


def assign(call: Call) -> None:
    require(len(call.data) == 1, "data")
    require(3 <= len(call.keys) <= 2 + MAX_NODES, "accounts")
    assigner, key = call.keys[:2]
    state = call.state(key)
    require(assigner in call.signers, "not signed")
    require(assigner == state.assigner, "not allowed")
    call.world[key] = with_nodes(call, state, call.keys[2:])
    require(key in call.writable)


def give_up(call: Call) -> None:
    require(len(call.data) == 1, "data")
    require(len(call.keys) == 2, "accounts")
    node, key = call.keys
    state = call.state(key)
    require(node in call.signers, "not signed")
    mine = call.chain.token_of(node, state.mint)
    require(mine in state.nodes, "nodes")
    require(key in call.writable)
    call.world[key] = replace(state, nodes=tuple(each for each in state.nodes if each != mine))


def settle(call: Call) -> None:
    state, nodes = begin_closing(call, 8)
    require(len(call.data) == 1 + 8 * len(nodes), "data")
    require(len(call.keys) == 8 + len(nodes), "accounts")
    require(call.keys[0] in call.signers, "not signed")
    require(call.keys[0] == state.authority, "not allowed")
    close(call, state, [int.from_bytes(call.data[at : at + 8], "little") for at in range(1, len(call.data), 8)])


def release(call: Call) -> None:
    state, nodes = begin_closing(call, 8)
    require(len(call.data) == 1, "data")
    require(len(call.keys) == 8 + len(nodes), "accounts")
    require(call.keys[0] in call.signers, "not signed")
    require(call.keys[0] == state.client, "not allowed")
    require(len(nodes) == 1, "nodes")
    close(call, state, [state.amount])


def refund(call: Call) -> None:
    state, nodes = begin_closing(call, 8)
    require(len(call.data) == 1, "data")
    require(len(call.keys) == 8, "accounts")
    nobody_left = not nodes and state.assigner == SYSTEM
    require(nobody_left or call.chain.now_s >= state.deadline_s, "too early")
    close(call, state, [])


def begin_closing(call: Call, fewest: int) -> tuple[State, tuple[bytes, ...]]:
    require(len(call.keys) >= fewest, "accounts")
    state = call.state(call.keys[1])
    return state, state.nodes


def close(call: Call, state: State, pays: list[int]) -> None:
    """Empty the vault: to the nodes their pay less the platform's part, to the client whatever else there is."""
    chain, world = call.chain, call.world
    key, vault_key, mint, platform_token, client_token, payer, token_program = call.keys[1:8]
    require(token_program == chain.token_program, "program")
    require(mint == state.mint, "mint")
    destinations = [platform_token, client_token, payer, *call.keys[8:]]
    pinned = [state.platform_token, state.client_token, state.payer, *state.nodes[: len(pays)]]
    require(destinations == pinned, "destination")
    require(vault_key == chain.derive((b"vault", key), chain.program)[0], "address")
    require(sum(pays) <= state.amount, "pay")
    vault = world[vault_key]
    assert isinstance(vault, Token)
    require(vault.amount >= state.amount, "too little")
    fees = [pay * state.fee_basis_points // 10_000 for pay in pays]
    shares = [
        *((node, pay - fee) for node, pay, fee in zip(state.nodes, pays, fees, strict=False)),
        (platform_token, sum(fees)),
        (client_token, vault.amount - sum(pays)),
    ]
    for target, amount in shares:
        if amount:
            call.move(vault_key, mint, target, vault_key, amount)
    require({key, vault_key, payer} <= call.writable)
    del world[vault_key], world[key]
    purse = call.wallet(payer)
    world[payer] = Wallet(purse.lamports + vault.lamports + state.lamports)


RULES: dict[int, Callable[[Call], None]] = {0: open_, 1: assign, 2: settle, 3: release, 4: refund, 5: give_up}
