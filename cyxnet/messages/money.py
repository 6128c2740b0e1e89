"""Balances, the ledger, and whether payments are as they should be."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from cyxnet.messages.fields import Address, Request, RequestId


class WalletRequest(Request, kw_only=True, frozen=True):
    """The balances of an address, or of the caller's custodial wallet."""

    address: Address | None = None


class WalletReply(Struct, kw_only=True):
    address: str
    token_base_units: int
    lamports: int
    custodial: bool


MOST_LAMPORTS = 10**10  # of a wish: test money


class FaucetRequest(Request, kw_only=True, frozen=True):
    """Local networks give test money. lamports pay the chain's own fees.

    request_id: chosen by the caller and the same in every try of one wish, which is paid once.
    """

    address: Address | None = None
    amount_base_units: Annotated[int, Meta(ge=1, le=10**15)] = 100_000_000_000
    lamports: Annotated[int, Meta(ge=0, le=MOST_LAMPORTS)] = 1_000_000_000
    request_id: RequestId = ""


class FaucetReply(Struct, kw_only=True):
    address: str
    signature: str
    token_base_units: int
    lamports: int


class LedgerRequest(Request, kw_only=True, frozen=True):
    """One SELECT over nodes, jobs, events, metrics, entries."""

    sql: Annotated[str, Meta(min_length=1, max_length=20_000)]
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class LedgerReply(Struct, kw_only=True):
    columns: list[str]
    rows: list[list[Any]]
    truncated: bool


class AuditRequest(Request, kw_only=True, frozen=True):
    """Compare the log, the ledger and the chain, all of each."""


class AuditCheck(Struct, kw_only=True):
    """One comparison: of how many things, and which of them differ. more: differences that are not listed."""

    name: str
    compared: int
    differences: list[str]
    more: int = 0


class AuditReply(Struct, kw_only=True):
    checks: list[AuditCheck]


class PayoutsRequest(Request, kw_only=True, frozen=True):
    """An operator stops all payments, or lets them go on and takes the differences that were found as they are."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class PayoutsReply(Struct, kw_only=True):
    """frozen: why nothing is paid; empty when it is. since_ms: of the last change, 0 when there was none."""

    frozen: str
    since_ms: int = 0
    differences: list[str] = []
