"""What can come of asking the broker: a stored message, or one of these errors."""

import hashlib
import logging

import msgspec

from cyxcore.errors import CyxError
from cyxnet.messages import ErrorBody

log = logging.getLogger(__name__)
TEMPORARY_CODES = {
    "chain_unreachable",
    "signer_gone",
    "clocks_differ",
}  # not the caller's mistake: the same request may be answered later
STORAGE_RETRY_MS = 2_000


class BusError(CyxError):
    """The broker cannot be reached, or did not answer in time."""

    code = "broker_unreachable"


class LinkLost(BusError):
    """The link to the broker is lost, so nothing was sent. It is made again, unless who has it closes it."""


class NobodyServes(BusError):
    """The broker said that nobody listens there: what was asked reached nobody."""


class NotTrusted(BusError):
    """The broker's certificate is not one that this network's authority has signed, or is for another host."""

    code = "not_trusted"


class NotAdmitted(BusError):
    """The broker does not let this identity in. Asking again helps only when central changes its mind."""

    code = "not_admitted"


class Conflict(CyxError):
    """Somebody else appended to this subject first. Reload and decide again."""

    code = "conflict"


class AppendUnknown(BusError):
    """No answer to an append: it may be stored or not. Read the subject's tail to find out."""

    code = "append_unknown"


class StorageFull(BusError):
    """The broker has no room for another message. Nothing was stored; ask again when there is room."""

    code = "storage_full"
    status = 507
    retry_after_ms = STORAGE_RETRY_MS


class ApiError(CyxError):
    """Central refused a request. `code` is stable; `status` is the HTTP-like number. now_ms: by central's clock."""

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 400,
        retry_after_ms: int | None = None,
        now_ms: int | None = None,
    ):
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after_ms = retry_after_ms
        self.now_ms = now_ms


def refuse_encoded(encoding: str) -> None:
    """Raise ApiError (415) for a body over HTTP that is packed: how large it is unpacked nothing says beforehand.

    encoding: its Content-Encoding; "" when there is none.
    """
    if encoding.strip().lower() not in ("", "identity"):
        raise ApiError("bad_content_type", f"expected a body as it is, got Content-Encoding {encoding[:80]!r}", 415)


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message of a stream: where it lies and what it holds."""

    subject: str
    seq: int
    payload: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.payload).hexdigest()


def refusal(error: Exception, asked: str) -> tuple[int, ErrorBody]:
    """The HTTP-like status and the body of a refusal, whichever way the request came. asked: where, for the log."""
    if isinstance(error, CyxError):
        temporary = isinstance(error, BusError) or error.code in TEMPORARY_CODES
        status = getattr(error, "status", 503 if temporary else 400)
        code, text = error.code, str(error)
    else:
        log.error("%s failed", asked, exc_info=error)
        status, code, text = 500, "internal", "central failed on this request; its log says why"
    more = {name: getattr(error, name, None) for name in ("retry_after_ms", "now_ms")}
    return status, ErrorBody(err_code=code, message=text, **more)
