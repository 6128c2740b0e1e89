"""An escrow as the chain alone tells of it, and the refund that anybody may send after its deadline.

Nobody has to be asked for terms: what the program wrote down when the escrow was opened names every account.
"""

from __future__ import annotations

import struct

from msgspec import Struct

from cyxnet.escrow import REFUND, STATE_BYTES
from cyxnet.instructions import (
    SettlementError,
    associated_account,
    compile_message,
    create_associated,
    instruction,
    memo,
    public_key,
    sign_message,
    solders,
    to_blockhash,
)
from cyxnet.messages import SignedTransaction
from cyxnet.wallet import Wallet, base58_encode

_HEAD = struct.Struct("<BBB3xHQq")  # as `State` in escrow.c begins: version, bump, nodes, fee, amount, deadline
_KEYS = ("payer", "client", "authority", "assigner", "mint", "platform_token", "client_token")  # 32 bytes each


class OpenEscrow(Struct, frozen=True, kw_only=True):
    """An escrow that is open. deadline_s: Unix seconds; from then on anybody may send everything back to the client."""

    address: str
    program: str
    payer: str  # of the rent, which goes back to it
    client: str
    mint: str
    platform_token: str
    client_token: str
    amount_base_units: int
    deadline_s: int


def read_escrow(address: str, program: str, data: bytes) -> OpenEscrow | None:
    """The escrow in a state account of the program; None when the bytes are no open escrow of this version."""
    if len(data) != STATE_BYTES or data[0] != 1:
        return None
    _, _, _, _, amount, deadline_s = _HEAD.unpack_from(data)
    found = {
        name: base58_encode(data[at : at + 32])
        for name, at in zip(_KEYS, range(_HEAD.size, STATE_BYTES, 32), strict=False)
    }
    wanted = {name: found[name] for name in OpenEscrow.__struct_fields__ if name in found}
    return OpenEscrow(address=address, program=program, amount_base_units=amount, deadline_s=deadline_s, **wanted)


def build_refund(sender: Wallet, escrow: OpenEscrow, blockhash: str, last_valid_block_height: int) -> SignedTransaction:
    """Everything back to the client, signed by anybody, who pays the fee.

    A client that closed its token account gets it again: the money has nowhere else to go. Raises SettlementError
    bad_terms when the escrow pays back into an account that is not the client's associated one.
    """
    who, client, mint = map(public_key, (sender.address, escrow.client, escrow.mint))
    if str(associated_account(client, mint)) != escrow.client_token:
        raise SettlementError("bad_terms", f"refund: {escrow.address} pays back into {escrow.client_token}, not ours")
    state, program = public_key(escrow.address), public_key(escrow.program)
    vault, _ = solders().Pubkey.find_program_address([b"vault", bytes(state)], program)
    accounts = [
        (who, ""), (state, "w"), (vault, "w"), (mint, ""), (public_key(escrow.platform_token), "w"),
        (public_key(escrow.client_token), "w"), (public_key(escrow.payer), "w"), (solders().TOKEN, ""),
    ]  # fmt: skip
    calls = [
        create_associated(who, client, mint),
        instruction(program, REFUND, accounts),
        memo(who, "cyx/2 refund"),
    ]
    message = compile_message(who, calls, to_blockhash(blockhash))
    return sign_message(sender, message, last_valid_block_height)
