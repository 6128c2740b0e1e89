"""Who may ask a served model, and how often: API keys, which are kept as hashes, each with a rate of its own."""

import hashlib
import os
import stat
import time
from pathlib import Path

from msgspec import Struct

from cyxcore.errors import SpecError
from cyxnet.outcomes import ApiError
from cyxnet.ratelimit import Rate, RateLimiter
from cyxnode.serving.figures import Figure

KEY_VARIABLE = "CYX_API_KEY"
PREFIX_LETTERS = 8
SHORTEST_KEY, LONGEST_KEY = 16, 512


class ApiKey(Struct, kw_only=True):
    """A key as the server knows it. prefix: what is told of it; per_minute: 0 for as often as one likes."""

    name: str
    prefix: str
    sha256: bytes
    per_minute: int = 0
    requests: int = 0
    last_used_at_s: float = 0.0


class Gate:
    """Lets in who shows one of the keys; everybody where there are none."""

    def __init__(self, keys: list[ApiKey]):
        self._keys = {key.sha256: key for key in keys}
        said = "expected Authorization: Bearer KEY, with a key of this server"
        self._stranger = ApiError("invalid_api_key", said, 401)  # told to many
        self._limits = {
            key.sha256: RateLimiter(Rate(per_s=key.per_minute / 60, burst=max(1.0, key.per_minute / 6)), identities=1)
            for key in keys
            if key.per_minute
        }

    @property
    def is_open(self) -> bool:
        return not self._keys

    def figures(self) -> list[Figure]:
        about = "Requests that were let in, by the name and the beginning of their key."
        return [
            Figure(
                "cyx_serve_key_requests",
                about,
                "counter",
                lambda key=key: key.requests,  # type: ignore[misc]
                {"name": key.name, "prefix": key.prefix},
            )
            for key in self._keys.values()
        ]

    def check(self, authorization: bytes | None) -> None:
        """Raises ApiError: 401 without a good key, 429 when it is used too often."""
        if (error := self.refusal(authorization)) is not None:
            raise ApiError(error.code, str(error), error.status, error.retry_after_ms)

    def refusal(self, authorization: bytes | None) -> ApiError | None:
        """What check() raises. Not to be raised, it is told to many; and an error that was raised holds the key."""
        if not self._keys:
            return None
        scheme, _, shown = (authorization or b"").partition(b" ")
        # who is looked up by a hash learns nothing from how long it took
        key = self._keys.get(hashlib.sha256(shown.strip()).digest()) if scheme.lower() == b"bearer" else None
        if key is None:
            return self._stranger
        limit = self._limits.get(key.sha256)
        if limit is not None and (wait_ms := limit.wait_ms("", time.monotonic())):
            said = f"the key {key.prefix}… may ask {key.per_minute} times a minute; again in {wait_ms} ms"
            return ApiError("rate_limit_exceeded", said, 429, wait_ms)
        key.requests += 1
        key.last_used_at_s = time.time()
        return None


def read_keys(path: Path | None) -> list[ApiKey]:
    """The keys of a file and of the variable CYX_API_KEY. Raises SpecError.

    A line of the file is KEY [NAME [REQUESTS_A_MINUTE]]; # begins a comment. Only its owner may read the file.
    """
    lines = [(KEY_VARIABLE, value)] if (value := os.environ.get(KEY_VARIABLE)) else []
    if path:
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise SpecError(f"{path}: expected a file of API keys, a line each; this is a folder")
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SpecError(f"{path}: others may read these keys; run: chmod 600 {path}")
            text = path.read_text("utf-8-sig")  # an editor's mark at the beginning is not part of the first key
        except OSError as error:
            raise SpecError(f"{path}: the API keys cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SpecError(f"{path}: expected API keys as text, a line each; this is no text in UTF-8") from None
        for number, line in enumerate(text.splitlines(), 1):
            lines.append((f"{path}, line {number}", line.partition("#")[0]))
    keys = [_key(where, line.split()) for where, line in lines if line.strip()]
    if path and not keys:
        raise SpecError(f"{path}: expected at least one API key, a line each")
    if len({key.sha256 for key in keys}) != len(keys):
        raise SpecError(f"{path or KEY_VARIABLE}: the same API key is there twice")
    return keys


def _key(where: str, words: list[str]) -> ApiKey:
    key, name, per_minute = [*words, "", "0"][:3] if len(words) == 1 else [*words, "0"][:3]
    if len(words) > 3 or not (per_minute.isascii() and per_minute.isdigit() and int(per_minute) <= 10**6):
        raise SpecError(f"{where}: expected KEY [NAME [REQUESTS_A_MINUTE]]")
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
        raise SpecError(f"{where}: expected a key of {SHORTEST_KEY} to {LONGEST_KEY} letters, got {len(key)}")
    digest = hashlib.sha256(key.encode()).digest()
    return ApiKey(name=name or "key", prefix=key[:PREFIX_LETTERS], sha256=digest, per_minute=int(per_minute))
