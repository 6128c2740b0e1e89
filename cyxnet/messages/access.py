"""Access over HTTP: API keys and sessions (docs/http.md)."""

from typing import Annotated

from msgspec import Meta, Struct

from cyxnet.messages.fields import AccessId, CallerId, PublicKey, Request, Role, SeedSignature

SLOWEST_PER_S = 0.001  # a rate of an API key: one request in a quarter of an hour


class KeyNewRequest(Request, kw_only=True, frozen=True):
    """Make an API key that acts for the caller. requests_per_s: 0 as often as the caller; days: 0 until revoked.

    Raises ValueError for a rate between 0 and SLOWEST_PER_S.
    """

    name: Annotated[str, Meta(max_length=100)] = ""
    role: Role = "client"
    requests_per_s: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    days: Annotated[int, Meta(ge=0, le=3650)] = 0

    def __post_init__(self) -> None:
        if 0.0 < self.requests_per_s < SLOWEST_PER_S:
            raise ValueError(f"expected requests_per_s 0 or from {SLOWEST_PER_S:g} on, got {self.requests_per_s:g}")


class KeyView(Struct, kw_only=True, omit_defaults=True):
    """An API key as its owner sees it: all but the secret. ends_at_ms, revoked_at_ms: 0 for not."""

    id: str
    identity: str
    role: Role
    name: str = ""
    requests_per_s: float = 0.0
    made_at_ms: int
    ends_at_ms: int = 0
    revoked_at_ms: int = 0


class HttpSessionView(Struct, kw_only=True, omit_defaults=True):
    """A session as its owner sees it. refreshed_at_ms: when its newest refresh token was given out."""

    id: str
    identity: str
    role: Role
    opened_at_ms: int
    refreshed_at_ms: int
    ends_at_ms: int
    revoked_at_ms: int = 0
    reason: str = ""  # why it was revoked


class NewKey(Struct, kw_only=True):
    """`key` is shown this once: it is not stored, only its SHA-256."""

    key: str
    view: KeyView


class KeyListRequest(Request, kw_only=True, frozen=True):
    """The caller's API keys and sessions, the newest first. as_operator: everybody's.

    limit: of one answer. after: as the page before says.
    """

    as_operator: bool = False
    limit: Annotated[int, Meta(ge=1, le=500)] = 500
    after: AccessId | None = None


class KeyList(Struct, kw_only=True, omit_defaults=True):
    """after: to be asked for the next page with; "" when there is none."""

    keys: list[KeyView]
    sessions: list[HttpSessionView]
    after: str = ""


class KeyRevokeRequest(Request, kw_only=True, frozen=True):
    """Refuse a key or a session from now on. as_operator: it may be anybody's."""

    id: AccessId
    as_operator: bool = False


class NonceReply(Struct, kw_only=True):
    """What to sign to open a session, and for which network. expires_in: seconds."""

    nonce: str
    network_id: str
    expires_in: int


class HttpSessionRequest(Request, kw_only=True, frozen=True):
    """Open a session: the key proves itself by its signature over cyxnet.credentials.session_bytes().

    identity: who the session is for. A client's is the digest of `nkey`, which has signed for `public_key` (binding),
    or of the public key itself where that is empty; a node's id ends with the digest of its public key.
    """

    nonce: Annotated[str, Meta(max_length=200)]
    public_key: PublicKey
    signature: SeedSignature
    identity: CallerId
    role: Role = "client"
    nkey: Annotated[str, Meta(max_length=56)] = ""
    binding: Annotated[str, Meta(max_length=128)] = ""


class RefreshRequest(Request, kw_only=True, frozen=True):
    refresh_token: Annotated[str, Meta(max_length=200)]


class SessionTokens(Struct, kw_only=True):
    """An access token for `expires_in` seconds, and the refresh token that gets the next one, once."""

    access_token: str
    token_type: str
    expires_in: int
    refresh_token: str
    session_id: str
    identity: str
    role: Role


class ApiKey(Struct, kw_only=True, frozen=True, omit_defaults=True, tag=True, tag_field="t"):
    """An API key as it is stored. sha256: of its secret, hex. Times in Unix milliseconds, 0 for never."""

    id: str
    identity: str
    role: Role
    sha256: str
    name: str = ""
    requests_per_s: float = 0.0
    made_at_ms: int
    ends_at_ms: int = 0
    revoked_at_ms: int = 0


class HttpSession(Struct, kw_only=True, frozen=True, omit_defaults=True, tag=True, tag_field="t"):
    """A session as it is stored. generation: the number of its refresh token that is good now.

    change: drawn for each rotation, so that who made it can tell.
    """

    id: str
    identity: str
    role: Role
    public_key: str
    generation: int
    opened_at_ms: int
    refreshed_at_ms: int
    ends_at_ms: int
    revoked_at_ms: int = 0
    reason: str = ""
    change: str = ""


Grant = ApiKey | HttpSession
