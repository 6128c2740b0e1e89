"""What a served model is asked and answers, beside the OpenAI API (cyxnet/openai.py): one Struct each.

Numbers of a tensor travel as nested JSON lists or as one NPY array; JSON has the exact float32 values, written as the
float64 that equals them.
"""

import re
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Raw, Struct

from cyxnet.messages import Request

NPY = "application/x-npy"
KEPT_HEADS, KEPT_HEAD_BYTES = 1_024, 1_024
_SECRET = re.compile(rb"\r\n[^\r:]*(?:auth|cookie|key|token|secret|password|session|credential)", re.IGNORECASE)
T = TypeVar("T")


def remember(known: dict[bytes, T], head: bytes, found: T) -> T:
    """Keep what the head of a request says, since those of one client are mostly the same: unless it is a long one, or
    holds a secret, which is not to stay in memory.
    """
    if len(head) <= KEPT_HEAD_BYTES and not _SECRET.search(head):
        if len(known) >= KEPT_HEADS:
            known.clear()
        known[head] = found
    return found


class PredictRequest(Request, kw_only=True, frozen=True):
    """input: one sample, or a list of samples. classes: whether the most likely class of each sample is wanted too."""

    input: Raw
    model: Annotated[str, Meta(max_length=200)] = ""
    classes: bool = False


class PredictReply(Struct, kw_only=True, omit_defaults=True):
    """output: of one sample, or of each. shape: of output. latency_ms: from the whole request to its answer."""

    output: Any
    shape: list[int]
    latency_ms: float
    model: str
    classes: list[str] | None = None


class TensorCard(Struct, kw_only=True):
    """shape: of one sample."""

    shape: list[int]
    dtype: str


class ModelCard(Struct, kw_only=True, omit_defaults=True):
    """What is served. rows_independent: whether a sample's answer has the same bits alone and beside others."""

    name: str
    kind: str
    parameters: int
    weights_bytes: int
    numerics: str
    input: TensorCard | None = None
    output: TensorCard | None = None
    classes: list[str] | None = None
    feature_names: list[str] | None = None
    graph_sha256: str | None = None
    rows_independent: bool | None = None
    max_batch: int | None = None
    context_length: int | None = None


class Health(Struct, kw_only=True):
    """latency_ms: mean of all answers so far."""

    status: str
    version: str
    model: str
    uptime_s: float
    requests: int
    errors: int
    in_flight: int
    latency_ms: float


class Fault(Struct, kw_only=True):
    """type: which kind of status; code: stable, for programs; param: the field at fault, where one is."""

    message: str
    type: str
    param: str | None
    code: str


FAULT_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def fault_type(status: int) -> str:
    """The type of the Fault of an answer with this status."""
    return FAULT_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


class Refusal(Struct, kw_only=True):
    """Every answer that is a no, in the shape of the OpenAI API."""

    error: Fault
