"""Metrics: from the nodes into the telemetry stream, from there to the ledger, the cache and whoever watches.

Losing a metric costs a point on a curve, so nothing here is waited for; but what is stored has a sequence, so a
watcher that lost its connection asks for what came after the last one it saw.
"""

import logging
from typing import Any

import msgspec

from cyxcentral import cache as keys
from cyxcentral.cache import Cache
from cyxcentral.dispatch import Dispatch
from cyxcentral.ledger import Ledger, telemetry_kind
from cyxcentral.machine import Machine
from cyxcentral.recent import Recent
from cyxcore.errors import CyxError
from cyxcore.spec import BatchMetrics, EpochMetrics
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import Bus
from cyxnet.codec import JSON, MSGPACK, BadMessage, decode, encode
from cyxnet.outcomes import Stored

log = logging.getLogger(__name__)
MOST_WAITING = 10_000  # metrics; more are lost, which costs points on curves


class Telemetry:
    def __init__(
        self,
        core: Bus,
        edge: Bus,
        dispatch: Dispatch,
        ledger: Ledger,
        cache: Cache,
        machine: Machine,
        recent: Recent,
    ):
        self._core = core
        self._edge = edge
        self._dispatch = dispatch
        self._ledger = ledger
        self._cache = cache
        self._machine = machine
        self._recent = recent
        self.refused = 0

    async def start(self, after_seq: int, after_sha256: str = "", replicas: int = 1) -> None:
        """Follow the stream from the ledger's place in it: a sequence, and the hash of the message there."""
        options: dict[str, Any] = {"persist_mode": "async"} if replicas == 1 else {}
        await self._core.ensure_stream(subjects.TELEMETRY, [subjects.TELEMETRY_SUBJECTS], replicas=replicas, **options)
        await self._core.follow(
            subjects.TELEMETRY,
            subjects.TELEMETRY_SUBJECTS,
            after_seq,
            self._stored,
            self._rewound,
            after_sha256=after_sha256,
        )
        for verb in subjects.NODE_TELEMETRY:  # one of several centrals stores each metric
            await self._edge.subscribe(
                subjects.node("*", verb), self._said, queue="central", max_pending=MOST_WAITING, strangers=True
            )

    def _rewound(self, same_until: int) -> None:
        """The broker lost its newest metrics, and gives their sequences to others."""
        self._ledger.telemetry_rewound(same_until)
        self._recent.clear()

    async def _said(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """A node reports: take what is well-formed and comes from who trains the job."""
        try:
            _, _, _, node_id, verb = subject.split(".")
            kind: type[m.Progress | m.HardwareMetrics] = subjects.NODE_TELEMETRY[verb]
            message = decode(kind, payload, headers.get("Content-Type", MSGPACK))
            if message.node_id != node_id:
                raise BadMessage(f"{message.node_id} spoke on the subject of another node")
            for record in self._records(message):
                await self._core.publish(subjects.telemetry(node_id), encode(record))
        except (CyxError, ValueError) as error:
            self.refused += 1
            log.info("metrics on %s not stored: %s", subject, error)

    def _records(self, said: m.Progress | m.HardwareMetrics) -> list[m.TelemetryRecord]:
        now = self._machine.wall_ms()
        if isinstance(said, m.Progress):
            if (said.batch is None) == (said.epoch is None):
                raise BadMessage("expected either batch or epoch metrics")
            if not self._dispatch.trains(said.node_id, said.session, said.job_id, said.attempt):
                return []  # a fenced attempt still talking: its next heartbeat stops it
            return [
                m.TelemetryRecord(
                    at_ms=now,
                    node_id=said.node_id,
                    job_id=said.job_id,
                    attempt=said.attempt,
                    batch=said.batch,
                    epoch=said.epoch,
                )
            ]
        if not self._dispatch.session_is_current(said.node_id, said.session):
            return []
        held = [r for r in said.runs if self._dispatch.holds(said.node_id, said.session, r.job_id, r.attempt)]
        if not held:
            return [m.TelemetryRecord(at_ms=now, node_id=said.node_id, hardware=said)]
        return [
            m.TelemetryRecord(at_ms=now, node_id=said.node_id, job_id=run.job_id, attempt=run.attempt, hardware=said)
            for run in held
        ]

    async def _stored(self, stored: Stored) -> None:
        try:
            record = decode(m.TelemetryRecord, stored.payload, MSGPACK)
        except BadMessage as error:
            log.warning("telemetry %d cannot be read: %s", stored.seq, error)
            return
        self._ledger.add_telemetry(subjects.TELEMETRY, stored.seq, record, stored.sha256)
        await self._ledger.room()
        what = record.batch or record.epoch or record.hardware
        if isinstance(what, BatchMetrics | EpochMetrics):
            self._dispatch.advanced(record.job_id, record.attempt, ("training", what.step))
        data = msgspec.to_builtins(what) | {"attempt": record.attempt}
        if record.hardware:
            await self._cache.set(keys.node_info(record.node_id), msgspec.json.encode(data), keys.NODE_INFO_TTL_S)
        elif record.job_id:
            await self._cache.set(keys.latest_metrics(record.job_id), msgspec.json.encode(data))
            await self._cache.delete(keys.job_status(record.job_id))
        if record.job_id:
            update = m.Update(
                job_id=record.job_id,
                source="telemetry",
                seq=stored.seq,
                at_ms=record.at_ms,
                kind=telemetry_kind(record),
                data=data,
            )
            self._recent.add(update)
            broadcast(self._edge, update)


def broadcast(edge: Bus, update: m.Update) -> None:
    """Tell whoever watches; who misses it reads it later from the ledger."""
    try:
        edge.say(subjects.update(update.job_id), encode(update, JSON), JSON)
    except CyxError as error:
        log.info("update of %s not sent: %s", update.job_id, error)
