"""What Prometheus is told of one central."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from cyxcentral.central import Central

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Figures:
    def __init__(self, central: "Central"):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "cyx_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "cyx_http_request_seconds", "Time to an answer.", ["route"], buckets=BUCKETS_S, registry=registry
        )
        self.refused = Counter("cyx_http_credentials_refused", "Credentials that were not good.", registry=registry)
        self.streams = Gauge("cyx_http_event_streams", "Event streams that are open.", registry=registry)
        world = central.world
        for name, about, value in (
            ("cyx_log_events", "Events of the log that were read.", lambda: world.seq),
            ("cyx_log_quarantined", "Messages of the log that count for nothing.", lambda: world.quarantined),
            ("cyx_log_damaged_subjects", "Subjects whose history is not known.", lambda: len(world.damaged)),
            ("cyx_jobs", "Jobs there ever were.", lambda: len(world.jobs)),
            ("cyx_jobs_active", "Jobs that have not ended.", lambda: len(world.active)),
            ("cyx_payouts_frozen", "1 while nothing is paid.", lambda: world.payouts.frozen is not None),
            ("cyx_signer_failing", "1 while the signer signs nothing, so payments wait.", lambda: central.keys.failing),
            ("cyx_ledger_failing", "1 while the ledger cannot be written.", lambda: central.ledger.failing),
            ("cyx_nodes", "Nodes there ever were.", lambda: len(world.nodes)),
            ("cyx_nodes_online", "Nodes online.", lambda: sum(node.online for node in world.nodes.values())),
        ):
            Gauge(name, about, registry=registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
