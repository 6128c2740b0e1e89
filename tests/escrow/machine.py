"""The real virtual machine with the escrow program on it, put there as on a cluster: uploaded in pieces through the
upgradeable loader, checked by it, and final."""

import struct

from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.litesvm import LiteSVM
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM
from solders.system_program import CreateAccountParams, create_account
from solders.token import ID as TOKEN
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata, TransactionMetadata

from cyxcentral.curve import leave_mmx

LOADER = Pubkey.from_string("BPFLoaderUpgradeab1e11111111111111111111111")
RENT = Pubkey.from_string("SysvarRent111111111111111111111111111111111")
CLOCK = Pubkey.from_string("SysvarC1ock11111111111111111111111111111111")
BUFFER_HEAD_BYTES, PROGRAM_DATA_HEAD_BYTES, PROGRAM_BYTES = 37, 45, 36
PIECE_BYTES = 900  # of the program in one transaction
SOL = 10**9


class Refused(Exception):
    """A transaction failed: `code` is the number of a Custom error, or None for an error of the runtime's own."""

    def __init__(self, result: FailedTransactionMetadata):
        error = result.err()
        inner = getattr(error, "err", None)
        self.code: int | None = getattr(inner, "code", None)
        super().__init__(f"{error}: {result.meta().logs()[-3:]}")


class Machine:
    def __init__(self, *, signatures: bool = True):
        """signatures: whether they are verified. Without, a transaction claims its signers."""
        self.svm = LiteSVM().with_transaction_history(0).with_blockhash_check(False).with_sigverify(signatures)
        self.signatures = signatures
        self.set_time(1_700_000_000)

    def set_time(self, unix_s: int) -> None:
        clock = self.svm.get_clock()
        clock.unix_timestamp = unix_s
        self.svm.set_clock(clock)

    @property
    def now_s(self) -> int:
        return int(self.svm.get_clock().unix_timestamp)

    def give(self, address: Pubkey, lamports: int) -> None:
        self.svm.set_account(address, Account(lamports, b"", SYSTEM, False, 0))

    def run(self, payer: Keypair, instructions: list[Instruction], *signers: Keypair) -> TransactionMetadata:
        """Land one transaction. Raises Refused."""
        message = MessageV0.try_compile(payer.pubkey(), instructions, [], self.svm.latest_blockhash())
        signed = VersionedTransaction(message, [payer, *signers])
        return self.land(signed)

    def land(self, transaction: VersionedTransaction) -> TransactionMetadata:
        result = self.svm.send_transaction(transaction)
        leave_mmx()
        if isinstance(result, FailedTransactionMetadata):
            raise Refused(result)
        return result

    def deploy(self, elf: bytes, payer: Keypair, program: Keypair) -> int:
        """Upload, deploy, and give up the right to change it. Returns how many transactions that took."""
        buffer, owner = Keypair(), payer.pubkey()
        data_address = Pubkey.find_program_address([bytes(program.pubkey())], LOADER)[0]

        def create(new: Keypair, size: int) -> Instruction:
            rent = self.svm.minimum_balance_for_rent_exemption(size)
            return create_account(
                CreateAccountParams(from_pubkey=owner, to_pubkey=new.pubkey(), lamports=rent, space=size, owner=LOADER)
            )

        def loader(data: bytes, *accounts: tuple[Pubkey, str]) -> Instruction:
            metas = [AccountMeta(key, "s" in flags, "w" in flags) for key, flags in accounts]
            return Instruction(LOADER, data, metas)

        initialize = loader(struct.pack("<I", 0), (buffer.pubkey(), "w"), (owner, ""))
        self.run(payer, [create(buffer, BUFFER_HEAD_BYTES + len(elf)), initialize], buffer)
        pieces = range(0, len(elf), PIECE_BYTES)
        for at in pieces:
            piece = elf[at : at + PIECE_BYTES]
            data = struct.pack("<IIQ", 1, at, len(piece)) + piece
            self.run(payer, [loader(data, (buffer.pubkey(), "w"), (owner, "s"))])
        self.run(
            payer,
            [
                create(program, PROGRAM_BYTES),
                loader(
                    struct.pack("<IQ", 2, len(elf)),
                    (owner, "sw"),
                    (data_address, "w"),
                    (program.pubkey(), "w"),
                    (buffer.pubkey(), "w"),
                    (RENT, ""),
                    (CLOCK, ""),
                    (SYSTEM, ""),
                    (owner, "s"),
                ),
            ],
            program,
        )
        self.run(payer, [loader(struct.pack("<I", 4), (data_address, "w"), (owner, "s"))])  # no authority: final
        self.svm.warp_to_slot(self.svm.get_clock().slot + 1)  # a program can be called from the slot after
        return 3 + len(pieces)


def token_account_bytes(mint: Pubkey, owner: Pubkey, amount: int) -> bytes:
    return bytes(mint) + bytes(owner) + amount.to_bytes(8, "little") + bytes(36) + b"\x01" + bytes(56)


def mint_bytes(decimals: int = 9, supply: int = 2**63) -> bytes:
    """A mint that nobody can freeze or print of."""
    return bytes(36) + supply.to_bytes(8, "little") + bytes([decimals, 1]) + bytes(36)


TOKEN_RENT_LAMPORTS = 2_039_280


def token_account(mint: Pubkey, owner: Pubkey, amount: int) -> Account:
    return Account(TOKEN_RENT_LAMPORTS, token_account_bytes(mint, owner, amount), TOKEN, False, 0)
