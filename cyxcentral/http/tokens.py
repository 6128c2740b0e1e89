"""Access tokens and nonces: made here, and believed only when every bit is as it was made.

A token is a JWT signed with EdDSA by a key that all centrals of a network derive from central.key. There is one header,
compared as bytes: nothing in a token chooses an algorithm or a key. The claims must be the bytes that they have here,
so there is no second way to write them: no member twice, none more, no other type.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from cyxcentral.access import Refused
from cyxcentral.keys import Keys
from cyxnet.identity import Identity
from cyxnet.messages import HttpSession, Role

TOKEN_S = 900  # the longest that a token is good
LEEWAY_S = 5  # by how much centrals may differ over the time
LONGEST_TOKEN = 4096
NONCE_S = 60
ALGORITHM = "EdDSA"
REQUIRED = ["iss", "aud", "sub", "sid", "role", "iat", "nbf", "exp", "jti"]


class Claims(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token says, in the order in which it says it. Times in Unix seconds."""

    iss: str
    aud: str
    sub: str  # the identity
    sid: str  # the session, which may be revoked
    role: Role
    iat: int
    nbf: int
    exp: int
    jti: str


class Tokens:
    """keys: of the platform, by purpose. network_id: tokens are good on this network only.

    now_ms: Unix ms, the same at all centrals but for LEEWAY_S. token_hex: this many random bytes, in hex.
    """

    def __init__(
        self, keys: Keys | Identity, network_id: str, now_ms: Callable[[], int], token_hex: Callable[[int], str]
    ):
        self._key = Ed25519PrivateKey.from_private_bytes(keys.child("http-token"))
        self._public_key = self._key.public_key()
        self._nonce_key = keys.child("http-nonce")
        self._now_ms, self._token_hex = now_ms, token_hex
        self.issuer, self.audience = f"cyx/{network_id}", f"cyx-http/{network_id}"
        key_id = hashlib.sha256(self._public_key.public_bytes_raw()).hexdigest()[:16]
        self._headers = {"typ": "at+jwt", "kid": key_id}
        self._header = jwt.encode({}, self._key, ALGORITHM, self._headers).split(".")[0]

    def issue(self, session: HttpSession) -> tuple[str, int]:
        """A token for a session, and for how many seconds it is good."""
        now_s = self._now_ms() // 1000
        lasts_s = max(0, min(TOKEN_S, session.ends_at_ms // 1000 - now_s))
        claims = Claims(
            iss=self.issuer,
            aud=self.audience,
            sub=session.identity,
            sid=session.id,
            role=session.role,
            iat=now_s,
            nbf=now_s,
            exp=now_s + lasts_s,
            jti=self._token_hex(16),
        )
        return jwt.encode(msgspec.to_builtins(claims), self._key, ALGORITHM, self._headers), lasts_s

    def check(self, token: str) -> Claims:
        """The claims of a token that is good now. Whether its session is, is not known here. Raises Refused."""
        if len(token) > LONGEST_TOKEN:
            raise Refused(f"the token has more than {LONGEST_TOKEN} characters")
        parts = token.split(".")
        if len(parts) != 3 or parts[0] != self._header:
            raise Refused("this is not an access token of this network")
        try:
            said = jwt.decode(
                token,
                self._public_key,
                algorithms=[ALGORITHM],
                audience=self.audience,
                issuer=self.issuer,
                # the times are looked at below: the library would go by the clock of this machine
                options={"require": REQUIRED, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
            claims = msgspec.convert(said, Claims)
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError) as error:
            raise Refused(f"the access token is not good: {error}"[:200]) from None
        if ".".join(parts[1:]) != f"{_segment(claims)}.{_base64(_raw(parts[2]))}":
            raise Refused("the access token is not written as this network writes it")
        if not claims.iat <= claims.exp <= claims.iat + TOKEN_S:
            raise Refused(f"the access token is good for longer than {TOKEN_S} s")
        now_s = self._now_ms() // 1000
        if now_s >= claims.exp + LEEWAY_S:
            raise Refused("the access token is over; get the next one with the refresh token")
        if now_s < max(claims.iat, claims.nbf) - LEEWAY_S:
            raise Refused("the access token is not good yet")
        return claims

    # -- nonces --------------------------------------------------------------------------------------

    def nonce(self) -> str:
        """Something to sign that has not been signed before. Nothing is kept: it proves itself."""
        drawn = f"{self._now_ms() // 1000:010x}{self._token_hex(16)}"
        return drawn + self._mark(drawn)

    def check_nonce(self, nonce: str) -> None:
        """Raises Refused unless a central of this network drew it less than NONCE_S ago. It may have been used."""
        drawn, mark = nonce[:42], nonce[42:]
        if not hmac.compare_digest(mark.encode(), self._mark(drawn).encode()):
            raise Refused("the nonce is not of this network")
        age_s = self._now_ms() // 1000 - int(drawn[:10], 16)
        if not -LEEWAY_S <= age_s <= NONCE_S:
            raise Refused(f"the nonce is {age_s} s old, it is good for {NONCE_S} s: ask for a new one")

    def _mark(self, drawn: str) -> str:
        return hmac.new(self._nonce_key, drawn.encode(), hashlib.sha256).hexdigest()[:32]


def _segment(claims: Claims) -> str:
    """The claims as the library writes them into a token."""
    return _base64(json.dumps(msgspec.to_builtins(claims), separators=(",", ":")).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
