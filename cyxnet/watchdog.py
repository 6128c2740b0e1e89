"""Notices a nats-server that lives but does not serve, and says when it has to be started again.

Two ways to be stuck need a new process: it answers nothing at all (frozen, or drowned), or a write failed while the
disk was full, after which nats-server refuses every further write until its next start, also when there is room
again. Everything else that makes it unhealthy (looking for the other members, catching up) is left alone for long: a
restart would only begin the wait anew.
"""

import contextlib
import json

from msgspec import Struct

from cyxnet import tls

PROBE_EVERY_S = 1.0
PROBE_TIMEOUT_S = 2.0
ROOM_TO_WRITE_BYTES = 16 * 2**20

HEALTHY, SILENT, CANNOT_WRITE, NOT_READY = "healthy", "answers nothing", "cannot write", "not ready"
PATIENCE_S = {SILENT: 5.0, CANNOT_WRITE: 1.0, NOT_READY: 120.0}  # how long it may be so before it is started again


class Health(Struct, frozen=True):
    """What a probe found: one of the states above, and the server's own words."""

    state: str
    said: str = ""


class Watchdog(Struct):
    """What is remembered of one server. `said` is for people, `restart` for who supervises."""

    state: str = HEALTHY
    since_s: float = 0.0
    told: bool = False


class Verdict(Struct, frozen=True):
    restart: bool = False
    note: str = ""


def probe(monitor_url: str, tls_ca: str = "") -> Health:
    """Ask a server how it is. tls_ca: who signed its certificate. Blocks for at most PROBE_TIMEOUT_S."""
    try:
        with tls.get(f"{monitor_url}/healthz", tls_ca, PROBE_TIMEOUT_S) as answer:
            if answer.status == 200:
                return Health(HEALTHY)
            said = ""
            with contextlib.suppress(OSError, ValueError, AttributeError):
                said = str(json.loads(answer.read(10_000)).get("error", ""))
            return Health(CANNOT_WRITE if "write error" in said else NOT_READY, said)
    except OSError as error:
        return Health(SILENT, str(error))


def full(monitor_url: str, tls_ca: str = "") -> str:
    """The words of a broker that cannot write, when most of those named (with commas between) cannot; else empty.

    Blocks for at most PROBE_TIMEOUT_S for each.
    """
    urls = monitor_url.split(",")
    stuck = [health.said for health in (probe(url, tls_ca) for url in urls) if health.state == CANNOT_WRITE]
    return stuck[0] if 2 * len(stuck) > len(urls) else ""


def judge(dog: Watchdog, health: Health, free_bytes: int, now_s: float) -> Verdict:
    """Take in what a probe found at `now_s` and decide. free_bytes: of the disk the server writes to."""
    if health.state != dog.state:
        dog.state, dog.since_s, dog.told = health.state, now_s, False
    if health.state == HEALTHY or now_s - dog.since_s < PATIENCE_S[health.state]:
        return Verdict()
    if health.state == CANNOT_WRITE and free_bytes < ROOM_TO_WRITE_BYTES:
        if dog.told:
            return Verdict()
        dog.told = True
        return Verdict(note="cannot write, the disk is full; free some space, and it is started again by itself")
    dog.state, dog.since_s, dog.told = HEALTHY, now_s, False
    why = f"{health.state} for {PATIENCE_S[health.state]:g} s" + (f" ({health.said})" if health.said else "")
    return Verdict(restart=True, note=f"{why}; starting it again")
