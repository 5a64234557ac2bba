"""What is counted is what Prometheus reads, for one process and for many; and what the dashboard
asks for is there."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from raytag.serve.metrics import (
    EngineMetrics,
    IngressMetrics,
    Metrics,
    SwitchMetrics,
    merged,
)

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"


@dataclass
class Stats:
    resident: int = 2
    bytes: int = 1000
    hits: int = 5
    misses: int = 3
    evictions: int = 1
    failures: int = 1


def read(exposition: bytes) -> dict[str, Metric]:
    """Families by name. A family that stands twice would be read wrongly by Prometheus."""
    families = list(text_string_to_metric_families(exposition.decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return {family.name: family for family in families}


def value(exposition: bytes, name: str, **labels: str) -> float | None:
    """The sample's value, None if there is none with these labels."""
    found = [
        sample.value
        for family in read(exposition).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


def ingress() -> IngressMetrics:
    metrics = IngressMetrics()
    metrics.requested("acme", "news", 3, 200, 0.04)
    metrics.requested("acme", "news", 3, 503, 0.001)
    metrics.extracted("acme", "news", 3, 120, 4)
    return metrics


def engine(stats: Stats | None = None) -> EngineMetrics:
    held = stats or Stats()
    metrics = EngineMetrics(lambda: 77, lambda: held)
    metrics.batch(8, 200, 56, 0.03)
    metrics.waited(0.002)
    metrics.loaded(0.01)
    return metrics


def switch() -> SwitchMetrics:
    metrics = SwitchMetrics()
    metrics.moved("acme", "news", "production")
    metrics.refused("acme", "news")
    metrics.canary_ended("acme", "news", "back")
    return metrics


def test_requests_count_by_tenant_domain_version_and_status() -> None:
    metrics = ingress()
    metrics.requested("acme", "news", 3, 200, 0.04)
    seen = metrics.snapshot()
    model = {"tenant": "acme", "domain": "news", "version": "3"}
    assert value(seen, "raytag_requests_total", **model, status="200") == 2
    assert value(seen, "raytag_requests_total", **model, status="503") == 1
    assert value(seen, "raytag_request_seconds_bucket", **model, le="0.035") == 0
    assert value(seen, "raytag_request_seconds_bucket", **model, le="0.05") == 2
    assert value(seen, "raytag_characters_total", **model) == 120
    assert value(seen, "raytag_entities_total", **model) == 4
    assert value(seen, "raytag_refused_total", tenant="acme", reason="overloaded") == 1


def test_quick_refusals_do_not_make_a_service_look_quick() -> None:
    metrics = IngressMetrics()
    for status in (200, 429, 500, 503, 504):
        metrics.requested("acme", "news", 1, status, 0.02)
    metrics.requested("", "", "", 200, 0.001)  # the page
    count = read(metrics.snapshot())["raytag_request_seconds"].samples
    assert [(s.labels["tenant"], s.value) for s in count if s.name.endswith("_count")] == [
        ("acme", 2)
    ]


def test_requests_in_flight_come_and_go() -> None:
    metrics = IngressMetrics()
    with metrics.in_flight.track_inprogress():
        assert value(metrics.snapshot(), "raytag_requests_in_flight") == 1
    assert value(metrics.snapshot(), "raytag_requests_in_flight") == 0


def test_made_up_names_make_no_series() -> None:
    metrics = IngressMetrics()
    for i in range(100):
        metrics.requested("", f"domain{i}", i, 401, 0.001)
        metrics.requested("acme", f"domain{i}", i, 404, 0.001)
    seen = read(metrics.snapshot())
    samples = [s for s in seen["raytag_requests"].samples if s.labels["status"] in {"401", "404"}]
    assert {(s.labels["tenant"], s.labels["domain"], s.value) for s in samples} == {
        ("", "", 100),
        ("acme", "", 100),
    }
    assert not seen["raytag_request_seconds"].samples
    assert {s.labels["reason"] for s in seen["raytag_refused"].samples} == {
        "unauthorized",
        "not_found",
    }


def test_series_are_bounded_and_the_longest_idle_is_forgotten() -> None:
    metrics = IngressMetrics(most_series=3)
    for version in (1, 2, 3, 1, 4):
        metrics.requested("acme", "news", version, 200, 0.01)
        metrics.requested("acme", "news", version, 503, 0.01)
        metrics.extracted("acme", "news", version, 10, 1)
    seen = read(metrics.snapshot())
    for name in ("raytag_requests", "raytag_request_seconds", "raytag_characters"):
        assert {s.labels["version"] for s in seen[name].samples} == {"1", "3", "4"}
    for version in range(5, 200):
        metrics.extracted("acme", "news", version, 10, 1)
    assert len(read(metrics.snapshot())["raytag_entities"].samples) == 3
    assert not read(metrics.snapshot())["raytag_requests"].samples


def test_an_engine_tells_of_batches_queue_and_cache() -> None:
    stats = Stats()
    metrics = engine(stats)
    seen = metrics.snapshot()
    assert value(seen, "raytag_batch_rows_sum") == 8
    assert value(seen, "raytag_batch_tokens_sum") == 200
    assert value(seen, "raytag_padding_tokens_total") == 56
    assert value(seen, "raytag_model_seconds_sum") == 0.03
    assert value(seen, "raytag_queue_seconds_count") == 1
    assert value(seen, "raytag_queue_tokens") == 77
    assert value(seen, "raytag_adapters_resident") == 2
    assert value(seen, "raytag_adapters_bytes") == 1000
    assert value(seen, "raytag_adapter_load_seconds_count") == 1
    assert value(seen, "raytag_adapter_load_failures_total") == 1
    stats.hits = 9
    assert value(metrics.snapshot(), "raytag_adapter_hits_total") == 9


def test_a_switch_tells_of_moves_refusals_and_canaries() -> None:
    seen = switch().snapshot()
    domain = {"tenant": "acme", "domain": "news"}
    assert value(seen, "raytag_alias_moves_total", **domain, alias="production") == 1
    assert value(seen, "raytag_versions_refused_total", **domain) == 1
    assert value(seen, "raytag_canaries_total", **domain, outcome="back") == 1


def test_processes_count_apart() -> None:
    first, second = IngressMetrics(), IngressMetrics()
    first.requested("acme", "news", 1, 200, 0.01)
    assert not read(second.snapshot())["raytag_requests"].samples


def test_a_merger_keeps_every_sample_of_every_replica() -> None:
    parts = {
        "ingress-1": ingress().snapshot(),
        "ingress-2": ingress().snapshot(),
        "engine-1": engine().snapshot(),
        "engine-2": engine(Stats(hits=50)).snapshot(),
        "switch": switch().snapshot(),
    }
    seen = merged(parts)
    wanted = sorted(
        (sample.name, sorted({**sample.labels, "replica": replica}.items()), sample.value)
        for replica, part in parts.items()
        for family in read(part).values()
        for sample in family.samples
    )
    families = read(seen)
    assert wanted == sorted(
        (sample.name, sorted(sample.labels.items()), sample.value)
        for family in families.values()
        for sample in family.samples
    )
    for part in parts.values():
        for name, family in read(part).items():
            assert (family.type, family.documentation) == (
                families[name].type,
                families[name].documentation,
            )
    text = seen.decode()
    heads = re.findall(r"^# (?:HELP|TYPE) \S+", text, re.MULTILINE)
    assert len(heads) == len(set(heads)) == 2 * len(families)
    assert "_created" not in text
    assert text.endswith("\n")


def test_nothing_merged_is_nothing() -> None:
    assert merged({}) == b""
    assert merged({"a": b""}) == b""


def test_releases_side_by_side_that_differ_still_merge() -> None:
    old, new = Metrics(), Metrics()
    Gauge("x_total", "Old.", registry=old.registry).set(1)
    Gauge("y", "Old.", registry=old.registry).set(5)
    Counter("x", "New.", registry=new.registry).inc(2)
    Counter("y", "New.", registry=new.registry).inc(2)
    for parts in ({"old": old, "new": new}, {"new": new, "old": old}):
        seen = merged({name: part.snapshot() for name, part in parts.items()})
        types = re.findall(r"^# TYPE (\S+) (\S+)$", seen.decode(), re.MULTILINE)
        assert len(types) == len(dict(types))


@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4),
    st.text(max_size=20),
    st.floats(allow_nan=False),
)
def test_any_label_value_and_help_survives(
    labels: dict[str, str], help_text: str, number: float
) -> None:
    """Line ends and quotes included: names of replicas are not ours."""
    metrics = Metrics()
    help_text = f"a{' '.join(help_text.split())}b"  # the parser strips its ends
    gauge = Gauge("any_value", help_text, ["name"], registry=metrics.registry)
    for replica, label in labels.items():
        gauge.labels(f"{replica}/{label}").set(number)
    seen = merged({replica: metrics.snapshot() for replica in labels})
    if not labels:
        assert seen == b""
        return
    family = read(seen)["any_value"]
    assert family.documentation == help_text
    assert {(s.labels["replica"], s.labels["name"], s.value) for s in family.samples} == {
        (replica, f"{other}/{label}", number)
        for replica in labels
        for other, label in labels.items()
    }


def expressions(node: Any) -> list[str]:
    """Every PromQL expression below a node of the dashboard, those of its variables too."""
    if isinstance(node, list):
        return [found for part in node for found in expressions(part)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in ("expr", "definition") if node.get(key)]
    return own + expressions([part for key, part in node.items() if key != "definition"])


def labels_of_samples() -> dict[str, set[str]]:
    """Sample name -> its labels, of all that a service exposes."""
    parts = {"a": ingress().snapshot(), "b": engine().snapshot(), "c": switch().snapshot()}
    return {
        sample.name: set(sample.labels)
        for family in read(merged(parts)).values()
        for sample in family.samples
    }


def test_the_dashboard_asks_only_for_what_there_is() -> None:
    known = labels_of_samples()
    asked = expressions(json.loads(DASHBOARD.read_text(encoding="utf-8")))
    names = {name for expr in asked for name in re.findall(r"raytag_\w+", expr)}
    assert names <= known.keys()
    assert len(names) > 15
    for expr in asked:
        for name, matchers in re.findall(r"(raytag_\w+)\{([^}]*)\}", expr):
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers)) <= known[name], expr
        own = set().union(*(known[name] for name in re.findall(r"raytag_\w+", expr)))
        for grouped in re.findall(r"by \(([^)]*)\)", expr):
            assert set(re.findall(r"\w+", grouped)) <= own, expr


def test_the_dashboard_shows_all_there_is() -> None:
    asked = " ".join(expressions(json.loads(DASHBOARD.read_text(encoding="utf-8"))))
    for sample in labels_of_samples():
        family = re.sub(r"_(bucket|sum|count)$", "", sample)
        assert re.search(rf"\b{family}(_bucket|_sum|_count)?\b", asked), f"{sample} is not shown"


def test_the_dashboard_is_bound_to_no_source_of_its_own() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["source"]["type"] == "datasource"
    assert {"tenant", "domain", "version"} <= variables.keys()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(p["datasource"]["uid"] == "${source}" for p in panels if p["type"] != "row")
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
