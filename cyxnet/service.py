"""Who serves what, said the way NATS micro-services say it (NATS architecture decision record 32). Pure data.

Any NATS client that knows that protocol lists our verbs with $SRV.PING, $SRV.INFO and $SRV.STATS.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

QUEUE = "q"  # the queue group of every service, unless it says otherwise
TYPES = {
    "PING": "io.nats.micro.v1.ping_response",
    "INFO": "io.nats.micro.v1.info_response",
    "STATS": "io.nats.micro.v1.stats_response",
}


class Endpoint(Struct, kw_only=True):
    """One kind of request that is served, and how often it was."""

    name: str
    subject: str
    metadata: dict[str, str]
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_ns: int = 0

    def ended(self, took_ns: int, error: Exception | None = None) -> None:
        """One request was answered. error: why it was refused."""
        self.requests += 1
        self.processing_ns += took_ns
        if error is not None:
            self.errors += 1
            self.last_error = f"{type(error).__name__}: {error}"[:400]

    def info(self) -> dict[str, Any]:
        return {"name": self.name, "subject": self.subject, "queue_group": QUEUE, "metadata": self.metadata}

    def stats(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "subject": self.subject,
            "queue_group": QUEUE,
            "num_requests": self.requests,
            "num_errors": self.errors,
            "last_error": self.last_error,
            "processing_time": self.processing_ns,
            "average_processing_time": self.processing_ns // max(1, self.requests),
        }


class Service(Struct, kw_only=True):
    """One process that serves."""

    id: str
    name: str
    version: str
    description: str
    started: str
    endpoints: list[Endpoint] = []

    def subjects(self, verb: str) -> list[str]:
        """Where it is asked: every service, those of its name, and this one."""
        return [f"$SRV.{verb}", f"$SRV.{verb}.{self.name}", f"$SRV.{verb}.{self.name}.{self.id}"]

    def answer(self, verb: str) -> bytes:
        """What it says to PING, INFO or STATS, as JSON."""
        said: dict[str, Any] = {
            "type": TYPES[verb],
            "name": self.name,
            "id": self.id,
            "version": self.version,
            "metadata": {},
        }
        if verb == "INFO":
            said |= {"description": self.description, "endpoints": [each.info() for each in self.endpoints]}
        if verb == "STATS":
            said |= {"started": self.started, "endpoints": [each.stats() for each in self.endpoints]}
        return msgspec.json.encode(said)


def now() -> str:
    """The present time as the protocol writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
