"""How a deployed model is asked over the network, and answers. Pure: bytes and headers in, Structs out, and back.

A question is a message to cyx.v1.infer.<deployment>.<caller> whose reply subject is cyx.v1.reply.<caller>.<token>. Its
payload is the body that the same route takes over HTTP (cyxnet/inference.py, cyxnet/openai.py); what HTTP says beside
the body stands in headers. The answer is one part or more, numbered from 0; the last one says so. What is whole over
HTTP comes in parts only where it is larger than a message; a stream of server-sent events comes as it is made.

Headers of a question: Cyx-Route (default /v1/predict), Content-Type, Accept, Cyx-Timeout-Ms, and Cyx-Alive where who
asks wants to hear, every quarter of a second, that the replica is still at it: an empty message with that header, which
is no part of the answer. So who hears nothing for longer knows that nobody answers, and asks another.
Headers of a part: Cyx-Status (as over HTTP), Content-Type, Cyx-Part, and Cyx-End on the last. A last part whose status
is 400 or more, after others, says that the answer broke off.

Every part but the last has a reply subject, cyx.v1.taken.<deployment>.<caller>.<replica>, which that replica alone
hears: who asks says there `<token> <count>`, how many parts of the answer it has taken in all, or `<token> stop` when
it wants no more. Who does not know yet which replica answers says `stop` at `all` instead. A replica sends WINDOW parts
beyond what was taken, and waits; when it waited for PATIENCE_S, the asker is gone.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from msgspec import Meta, Struct

from cyxcore.errors import CyxError
from cyxnet import subjects
from cyxnet.outcomes import ApiError

JSON, EVENTS = "application/json", "text/event-stream"
PREDICT, CARD, PING = "/v1/predict", "/v1/model", "/readyz"
PART_BYTES = 256 * 1024  # of one part of an answer
LARGEST_QUESTION_BYTES = 2**20  # of its body: the broker takes messages of 2 MiB, headers included
TIMEOUT_MS = 60_000  # of a question that names none
WINDOW, PATIENCE_S = 32, 10.0
ALIVE, ALIVE_EVERY_S = {"Cyx-Alive": "1"}, 0.25
LONGEST_HEADER_CHARS, MOST_HEADER_BYTES = 200, 4096  # of one header, and of all together
ROUTE = re.compile(r"/[a-z0-9_/.-]{0,100}")
_PROGRESS = re.compile(rb"([!-~]{1,100}) (?:([0-9]{1,9})|stop)")
Status = Annotated[int, Meta(ge=200, le=599)]


class BadQuestion(CyxError):
    """A message is no question, or no part of an answer."""

    code = "bad_question"


class Question(Struct, frozen=True, kw_only=True):
    """What a model is asked. route: as over HTTP; its method is POST where there is a body, else GET."""

    body: bytes = b""
    route: str = PREDICT
    content_type: str = JSON
    accept: str = JSON
    timeout_ms: int = TIMEOUT_MS  # how long who asks waits for the first part
    alive: bool = False  # who asks wants to hear that the replica is at it


class Part(Struct, frozen=True, kw_only=True):
    """A piece of an answer. number: from 0; end: nothing comes after it."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    number: int = 0
    end: bool = True
    headers: dict[str, str] = {}  # others of HTTP that matter to who asks, such as Retry-After


KEPT = ("Retry-After", "Retry-After-Ms")  # of the headers of an answer over HTTP


def question_headers(question: Question) -> dict[str, str]:
    said = ALIVE if question.alive else {}
    return said | {
        "Cyx-Route": question.route,
        "Content-Type": question.content_type,
        "Accept": question.accept,
        "Cyx-Timeout-Ms": str(question.timeout_ms),
    }


def question_of(payload: bytes, headers: Mapping[str, str]) -> Question:
    """The question that a message is. Raises BadQuestion."""
    route = headers.get("Cyx-Route", PREDICT)
    if not ROUTE.fullmatch(route):
        raise BadQuestion(f"Cyx-Route: expected a path such as {PREDICT}, got {route[:100]!r}")
    return Question(
        body=payload,
        route=route,
        content_type=_text(headers, "Content-Type", JSON),
        accept=_text(headers, "Accept", JSON),
        timeout_ms=_whole(headers, "Cyx-Timeout-Ms", 1, 3_600_000, TIMEOUT_MS),
        alive="Cyx-Alive" in headers,
    )


def part_headers(part: Part) -> dict[str, str]:
    end = {"Cyx-End": "1"} if part.end else {}
    said = {"Cyx-Status": str(part.status), "Content-Type": part.content_type, "Cyx-Part": str(part.number)}
    return said | end | part.headers


def part_of(payload: bytes, headers: Mapping[str, str]) -> Part:
    """The part of an answer that a message is. Raises BadQuestion."""
    return Part(
        body=payload,
        status=_whole(headers, "Cyx-Status", 200, 599),
        content_type=_text(headers, "Content-Type", JSON),
        number=_whole(headers, "Cyx-Part", 0, 2**53),
        end="Cyx-End" in headers,
        headers={name: _text(headers, name) for name in KEPT if name in headers},
    )


def says_alive(payload: bytes, headers: Mapping[str, str]) -> bool:
    """Whether a message says that an answer is being made, and is no part of it."""
    return not payload and "Cyx-Alive" in headers


def parts_of(whole: Part) -> Iterator[Part]:
    """An answer that is ready, as parts that the broker takes."""
    bodies = [whole.body[at : at + PART_BYTES] for at in range(0, len(whole.body), PART_BYTES)] or [b""]
    for number, body in enumerate(bodies):
        yield Part(
            body=body,
            status=whole.status,
            content_type=whole.content_type,
            number=number,
            end=number == len(bodies) - 1,
            headers=whole.headers,
        )


def progress(token: str, parts: int | None) -> bytes:
    """What who asks says of an answer: how many parts of it were taken in all; None: it wants no more."""
    return f"{token} {'stop' if parts is None else parts}".encode()


def progress_of(payload: bytes) -> tuple[str, int | None] | None:
    """Token and parts of what progress() wrote; None for anything else."""
    found = _PROGRESS.fullmatch(payload)
    return found and (found[1].decode(), None if found[2] is None else int(found[2]))


@functools.lru_cache(maxsize=1024)  # they are mostly the same, over and over
def asker(subject: str) -> tuple[str, str]:
    """Who asks on this subject, as the broker has let them; and how the subjects begin on which they alone hear."""
    caller = subjects.last_token(subject)
    return caller, subjects.reply(caller, "")


def refuse_large(size_bytes: int) -> None:
    """Raises ApiError, 413, for a question whose body has so many bytes."""
    if size_bytes > LARGEST_QUESTION_BYTES:
        why = f"expected a question of at most {LARGEST_QUESTION_BYTES} bytes over the network, got {size_bytes}"
        raise ApiError("too_large", why, 413)


def refuse_many_headers(block: bytes) -> None:
    """Raises BadQuestion for headers that are not worth reading. block: as they travel."""
    if len(block) > MOST_HEADER_BYTES:
        raise BadQuestion(f"expected at most {MOST_HEADER_BYTES} bytes of headers, got {len(block)}")


def _text(headers: Mapping[str, str], name: str, default: str = "") -> str:
    """What a header says, which may go on over HTTP: nothing in it may end a line there."""
    text = headers.get(name, default)
    if not (text.isascii() and text.isprintable() and len(text) <= LONGEST_HEADER_CHARS):
        raise BadQuestion(f"{name}: expected at most {LONGEST_HEADER_CHARS} letters of ASCII, got {text[:40]!r}")
    return text


def _whole(headers: Mapping[str, str], name: str, least: int, most: int, default: int | None = None) -> int:
    text = headers.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"[0-9]{1,16}", text) or not least <= int(text) <= most:
        raise BadQuestion(f"{name}: expected a whole number from {least} to {most}, got {(text or 'nothing')[:40]!r}")
    return int(text)
