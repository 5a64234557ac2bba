"""What a serving process counts and times, and one exposition of many processes for Prometheus.

Knows names, labels and buckets; nothing of requests, models or Ray. Every process has a registry
of its own, and nothing is counted that no one asked to count: there is no global state.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of a snapshot, and of several merged."""
MOST_SERIES = 2_000
"""Triples of tenant, domain and version that an ingress keeps counts of."""
REASONS: Mapping[int, str] = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    413: "too_large",
    422: "malformed",
    429: "over_limit",
    503: "overloaded",
    504: "deadline",
}
"""Status -> the reason a refusal is counted under."""

_WAIT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LATENCY = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.35, 0.5, 1, 2.5, 5, 10)
_MODEL = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_LOAD = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Metrics:
    """What one process has counted so far."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def snapshot(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(_Families(_without_created(self.registry.collect())))


class IngressMetrics(Metrics):
    """What came over HTTP.

    Labels come from the outside, so their number is bounded: a request refused with 4xx counts
    without its domain and version, which may be made up, and beyond ``most_series`` triples of
    tenant, domain and version the one that was idle longest is forgotten. ``tenant`` must be that
    of a checked key, or empty.
    """

    def __init__(self, most_series: int = MOST_SERIES) -> None:
        super().__init__()
        model = ("tenant", "domain", "version")
        self.in_flight = Gauge(
            "raytag_requests_in_flight", "Requests being worked on.", registry=self.registry
        )
        """Use as ``with metrics.in_flight.track_inprogress():``."""
        self._requests = Counter(
            "raytag_requests", "Requests answered.", (*model, "status"), registry=self.registry
        )
        self._latency = Histogram(
            "raytag_request_seconds",
            "Seconds to an answer by a version, or to the end of the time for it.",
            model,
            buckets=_LATENCY,
            registry=self.registry,
        )
        self._entities = Counter(
            "raytag_entities", "Entities answered.", model, registry=self.registry
        )
        self._characters = Counter(
            "raytag_characters", "Characters read.", model, registry=self.registry
        )
        self._refused = Counter(
            "raytag_refused",
            "Requests refused, by reason.",
            ("tenant", "reason"),
            registry=self.registry,
        )
        self._most_series = most_series
        self._series: OrderedDict[tuple[str, str, str], set[str]] = OrderedDict()

    def requested(
        self, tenant: str, domain: str, version: int | str, status: int, seconds: float
    ) -> None:
        """A request was answered; domain and version are empty where it never got to one."""
        if 400 <= status < 500:
            domain = version = ""
        labels = self._bounded(tenant, domain, version)
        # The fast refusals of an overloaded service would make it look fast.
        if labels[2] and (status < 400 or status == 504):
            self._latency.labels(*labels).observe(seconds)
        self._series[labels].add(str(status))
        self._requests.labels(*labels, str(status)).inc()
        if reason := REASONS.get(status):
            self._refused.labels(tenant, reason).inc()

    def extracted(
        self, tenant: str, domain: str, version: int | str, characters: int, entities: int
    ) -> None:
        """A version has read so many characters and found so many entities in them."""
        labels = self._bounded(tenant, domain, version)
        self._characters.labels(*labels).inc(characters)
        self._entities.labels(*labels).inc(entities)

    def _bounded(self, *labels: object) -> tuple[str, str, str]:
        tenant, domain, version = map(str, labels)
        series = (tenant, domain, version)
        self._series.setdefault(series, set())
        self._series.move_to_end(series)
        if len(self._series) > self._most_series:
            idle, statuses = self._series.popitem(last=False)
            for status in statuses:
                self._requests.remove(*idle, status)
            for counted in (self._latency, self._entities, self._characters):
                counted.remove(*idle)
        return series


class CacheStats(Protocol):
    """What a cache of adapters says of itself: what is in it, and totals since it began."""

    @property
    def resident(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def evictions(self) -> int: ...
    @property
    def failures(self) -> int: ...


class EngineMetrics(Metrics):
    """What the model did.

    ``queue_tokens`` and ``cache`` are asked whenever a snapshot is taken, in its thread.
    """

    def __init__(self, queue_tokens: Callable[[], float], cache: Callable[[], CacheStats]) -> None:
        super().__init__()

        def histogram(name: str, said: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(name, said, buckets=tuple(buckets), registry=self.registry)

        self._rows = histogram("raytag_batch_rows", "Rows of a batch.", _ROWS)
        self._tokens = histogram(
            "raytag_batch_tokens", "Tokens of a batch, without padding.", _TOKENS
        )
        self._padding = Counter(
            "raytag_padding_tokens", "Tokens of padding in batches.", registry=self.registry
        )
        self._seconds = histogram("raytag_model_seconds", "Seconds a batch took.", _MODEL)
        self._waited = histogram(
            "raytag_queue_seconds", "Seconds from a request to its last batch.", _WAIT
        )
        self._load = histogram("raytag_adapter_load_seconds", "Seconds to load an adapter.", _LOAD)
        queue = Gauge("raytag_queue_tokens", "Tokens waiting for a batch.", registry=self.registry)
        queue.set_function(queue_tokens)
        self.registry.register(_Cache(cache))

    def batch(self, rows: int, tokens: int, padding: int, seconds: float) -> None:
        """The model has run a batch of ``tokens`` tokens, and ``padding`` more to make it even."""
        self._rows.observe(rows)
        self._tokens.observe(tokens)
        self._padding.inc(padding)
        self._seconds.observe(seconds)

    def waited(self, seconds: float) -> None:
        """A request has waited so long until the last of its pieces was in a batch."""
        self._waited.observe(seconds)

    def loaded(self, seconds: float) -> None:
        """An adapter was loaded in so many seconds."""
        self._load.observe(seconds)


class SwitchMetrics(Metrics):
    """What happened to aliases. All names are those of the registry, so there are no others."""

    def __init__(self) -> None:
        super().__init__()
        domain = ("tenant", "domain")
        self._moves = Counter(
            "raytag_alias_moves",
            "Moves of an alias that all ingresses confirmed.",
            (*domain, "alias"),
            registry=self.registry,
        )
        self._refused = Counter(
            "raytag_versions_refused",
            "Versions that an alias moved to and that could not be loaded.",
            domain,
            registry=self.registry,
        )
        self._canaries = Counter(
            "raytag_canaries", "Canaries ended.", (*domain, "outcome"), registry=self.registry
        )

    def moved(self, tenant: str, domain: str, alias: str) -> None:
        """An alias points to another version, and every ingress uses it."""
        self._moves.labels(tenant, domain, alias).inc()

    def refused(self, tenant: str, domain: str) -> None:
        """A version an alias moved to could not be loaded."""
        self._refused.labels(tenant, domain).inc()

    def canary_ended(
        self, tenant: str, domain: str, outcome: Literal["forward", "back", "stopped"]
    ) -> None:
        """A canary took its alias over, was sent back by its rule, or was stopped by someone."""
        self._canaries.labels(tenant, domain, outcome).inc()


def merged(snapshots: Mapping[str, bytes]) -> bytes:
    """One exposition of the snapshots of several processes, by the names of these.

    Every sample gets its process's name as the label ``replica``. A family stands once, as the
    first process that has it describes it; where another gives it another type, as two releases
    side by side might, that one's samples are left out, for Prometheus would refuse them all.
    """
    families: dict[str, tuple[str, list[str]]] = {}
    for replica, snapshot in snapshots.items():
        label = "replica=" + _quoted(replica)
        head, samples = "", list[str]()
        # The format is the writer's in the library: parsing it all would take 80 times longer.
        for line in snapshot.decode().removesuffix("\n").split("\n"):
            if line.startswith("# HELP "):
                head = line
            elif line.startswith("# TYPE "):
                name = line.split(" ")[2]
                head = f"{head}\n{line}\n"
                known, samples = families.setdefault(name, (head, []))
                if known.rpartition(" ")[2] != head.rpartition(" ")[2]:
                    samples = []
            elif line:
                samples.append(_labelled(line, label))
    return "".join(head + "".join(samples) for head, samples in families.values()).encode()


def _labelled(sample: str, label: str) -> str:
    """A sample's line with one label more; values of labels may hold anything but names cannot."""
    name, brace, rest = sample.partition("{")
    if brace:
        return f"{name}{{{label},{rest}\n"
    name, _, number = sample.partition(" ")
    return f"{name}{{{label}}} {number}\n"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{escaped}"'


class _Families(Collector):
    """Families as they are, for the library to write down."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Cache(Collector):
    """Totals that the cache keeps itself, read when they are asked for."""

    def __init__(self, stats: Callable[[], CacheStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        now = self._stats()
        yield GaugeMetricFamily("raytag_adapters_resident", "Adapters in memory.", now.resident)
        yield GaugeMetricFamily("raytag_adapters_bytes", "Bytes these take.", now.bytes)
        for name, said, total in (
            ("raytag_adapter_hits", "Adapters asked for that were in memory.", now.hits),
            ("raytag_adapter_misses", "Adapters asked for that were not.", now.misses),
            ("raytag_adapter_evictions", "Adapters dropped to make room.", now.evictions),
            ("raytag_adapter_load_failures", "Adapters that could not be loaded.", now.failures),
        ):
            yield CounterMetricFamily(name, said, total)


def _without_created(families: Iterable[Metric]) -> Iterable[Metric]:
    """When a series began is as many series again, which nobody looks at."""
    for family in families:
        family.samples = [s for s in family.samples if s.name != f"{family.name}_created"]
        yield family
