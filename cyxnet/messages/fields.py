"""The kinds of field that messages are made of, the base of requests, and the body of an error."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

U63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[int, Meta(ge=1, le=2**63 - 1)]  # base units
JobId = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{2,62}\Z")]
NodeId = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{2,62}\Z")]
ClientId = Annotated[str, Meta(pattern=r"\Ac-[0-9a-f]{32}\Z")]
CallerId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
RunId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{10}\Z")]  # of a workflow: the ids of its jobs end in it
SessionId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Address = Annotated[str, Meta(pattern=r"\A[1-9A-HJ-NP-Za-km-z]{32,44}\Z")]  # Solana account, base58
Signature = Annotated[str, Meta(pattern=r"\A[1-9A-HJ-NP-Za-km-z]{64,88}\Z")]  # Solana transaction, base58
PublicKey = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # Ed25519, hex
SeedSignature = Annotated[str, Meta(pattern=r"\A[0-9a-f]{128}\Z")]  # Ed25519, hex
NetworkId = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]{0,200}\Z")]
RequestId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{0,64}\Z")]
DeploymentId = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,49}-[0-9a-f]{12}\Z")]  # ends with its owner's digest
AccessId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{12}([0-9a-f]{20})?\Z")]  # of an API key, or of a session
Text = Annotated[str, Meta(max_length=2000)]
Name = Annotated[str, Meta(min_length=1, max_length=100)]
Percent = Annotated[float, Meta(ge=0.0, le=100.0)]
Gauge = Annotated[float, Meta(ge=0.0, le=1e18)]
Device = Literal["cpu", "cuda"]
Role = Literal["client", "operator", "node"]


class Request(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The base of what a caller asks: unknown fields are refused, so a typo is never ignored."""


class ErrorBody(Struct, kw_only=True, omit_defaults=True):
    """What an API error carries besides its headers. err_code is stable; people read message.

    now_ms: the time by the clock of who answers, where that is why.
    """

    err_code: str
    message: str
    retry_after_ms: int | None = None
    now_ms: int | None = None
