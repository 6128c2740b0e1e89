"""Asking a server that speaks the OpenAI API for the next message of a conversation, as it is written."""

import http.client
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from cyxcore.errors import CyxError
from cyxnet.codec import JSON

TIMEOUT_S = 600.0  # between two words: a long prompt is read before the first one
LONGEST_LINE_BYTES = 2**20


class ChatError(CyxError):
    """The server refused, or cannot be reached. The message says why, in its words where it has some."""

    code = "chat_failed"


class Unusable(ChatError, ValueError):
    """The server will refuse this whenever it is asked."""


class Server:
    """url: http(s)://host:port, with or without /v1. api_key: shown to it where there is one."""

    def __init__(self, url: str, api_key: str = ""):
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port beyond all, half an IPv6 address
            good = False
        if not good:
            raise Unusable(f"expected an address such as http://127.0.0.1:8000, got {url[:200]!r}")
        self.url = url
        self._parts = parts
        self._base = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": JSON} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})

    def models(self) -> list[str]:
        """The names of what it serves. Raises ChatError."""
        connection, answer = self._ask("GET", "/models", None)
        with connection:
            found = _decoded(answer.read(LONGEST_LINE_BYTES))
        return [str(each["id"]) for each in found.get("data", []) if isinstance(each, dict) and "id" in each]

    def answer(self, request: dict[str, Any]) -> Iterator[str]:
        """The pieces of the next message. Who stops iterating hangs up. Raises ChatError."""
        connection, answer = self._ask("POST", "/chat/completions", request | {"stream": True})
        with connection:
            for data in _events(answer):
                if data == b"[DONE]":
                    return
                chunk = _decoded(data)
                if "error" in chunk:
                    raise ChatError(_why(chunk))
                for choice in chunk.get("choices", []):
                    if text := choice.get("delta", {}).get("content"):
                        yield str(text)
        raise ChatError("the server hung up in the middle of its answer")

    def _ask(self, method: str, path: str, body: Any) -> "tuple[_Connection, http.client.HTTPResponse]":
        host, port = self._parts.hostname or "", self._parts.port
        connection = _Connection(
            http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=ssl.create_default_context())
            if self._parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        )
        try:
            payload = None if body is None else msgspec.json.encode(body)
            connection.held.request(method, self._base + path, payload, self._headers)
            answer = connection.held.getresponse()
            if answer.status == 200:
                return connection, answer
            said = answer.read(LONGEST_LINE_BYTES)
        except (OSError, http.client.HTTPException) as error:
            connection.held.close()
            raise ChatError(f"{self.url} cannot be asked: {error or type(error).__name__}") from None
        connection.held.close()
        kind = Unusable if 400 <= answer.status < 500 and answer.status != 429 else ChatError
        try:
            why = _why(_decoded(said))
        except ChatError:
            why = answer.reason
        raise kind(f"{self.url} answered {answer.status}: {why}")


class _Connection:
    """Closed at the end of a with block, whatever became of the answer."""

    def __init__(self, held: http.client.HTTPConnection):
        self.held = held

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.held.close()


def _events(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of each server-sent event. Raises ChatError."""
    while True:
        try:
            line = answer.readline(LONGEST_LINE_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise ChatError(f"the server hung up in the middle of its answer: {error}") from None
        if not line:
            return
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ChatError("the server answered with something that is no JSON; does it speak the OpenAI API?") from None


def _why(said: dict[str, Any]) -> str:
    fault = said.get("error")
    return str(fault.get("message", fault) if isinstance(fault, dict) else fault or said)[:500]
