"""What is counted of a served model, for /health and Prometheus. Counting is cheap; the text is made when asked for.

Only who asks for that text needs prometheus_client.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cyxcore.errors import MissingExtra

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Figure(NamedTuple):
    """One number that somebody else counts. labels: of this value, where there are several of the name."""

    name: str
    about: str
    kind: Literal["gauge", "counter"]
    value: Callable[[], float]
    labels: Mapping[str, str] = {}


class Figures:
    """others: what is counted elsewhere and told here too."""

    def __init__(self, others: Sequence[Figure] = ()) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()  # (route, status)
        self.seconds: dict[str, list[float]] = {}  # route -> sum, count, and the count of each bucket
        self.in_flight = 0
        self._others = others

    def answered(self, route: str, status: int, took_s: float) -> None:
        self.answers[route, status] += 1
        seen = self.seconds.get(route)
        if seen is None:
            seen = self.seconds[route] = [0.0] * (3 + len(BUCKETS_S))
        seen[0] += took_s
        seen[1] += 1
        seen[2 + bisect_left(BUCKETS_S, took_s)] += 1

    @property
    def requests(self) -> int:
        return self.answers.total()

    @property
    def errors(self) -> int:
        return sum(count for (_, status), count in self.answers.items() if status >= 500)

    def mean_ms(self) -> float:
        total_s, count = (sum(seen[place] for seen in self.seconds.values()) for place in (0, 1))
        return 1000 * total_s / count if count else 0.0

    def collect(self) -> "Iterator[Metric]":
        """As a collector of prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        kinds: dict[str, Any] = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
        answers = CounterMetricFamily("cyx_serve_requests", "Requests answered.", labels=["route", "status"])
        for (route, status), count in self.answers.items():
            answers.add_metric([route, str(status)], count)
        yield answers
        took = HistogramMetricFamily("cyx_serve_request_seconds", "Time to the end of an answer.", labels=["route"])
        for route, seen in self.seconds.items():
            sums: float = 0.0
            buckets = []
            for bucket, held in zip([*map(str, BUCKETS_S), "+Inf"], seen[2:], strict=True):
                sums += held
                buckets.append((bucket, sums))
            took.add_metric([route], buckets, seen[0])
        yield took
        yield GaugeMetricFamily("cyx_serve_in_flight", "Requests being answered.", self.in_flight)
        families: dict[str, Any] = {}
        for other in self._others:
            family = families.get(other.name)
            if family is None:
                family = families[other.name] = kinds[other.kind](other.name, other.about, labels=list(other.labels))
            family.add_metric(list(other.labels.values()), other.value())
        yield from families.values()

    def text(self) -> bytes:
        """Raises MissingExtra."""
        try:
            from prometheus_client import CollectorRegistry, generate_latest
        except ModuleNotFoundError:
            raise MissingExtra("the figures for Prometheus need prometheus_client: pip install 'cyx[http]'") from None
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)
