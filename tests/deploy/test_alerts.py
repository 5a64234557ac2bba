"""Alerts ask only for what is counted, by labels it has, and each is explained."""

import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from raytag.serve.metrics import REASONS, EngineMetrics, IngressMetrics, SwitchMetrics, merged

ROOT = Path(__file__).resolve().parents[2]


class Cache:
    resident = bytes = hits = misses = evictions = failures = 1


def counted() -> dict[str, set[str]]:
    """Sample -> its labels, of all that a service exposes."""
    ingress, switch = IngressMetrics(), SwitchMetrics()
    ingress.requested("acme", "news", 3, 503, 0.04)
    ingress.requested("acme", "news", 3, 200, 0.04)
    ingress.extracted("acme", "news", 3, 120, 4)
    engine = EngineMetrics(lambda: 1, Cache)
    switch.moved("acme", "news", "production")
    switch.refused("acme", "news")
    switch.canary_ended("acme", "news", "back")
    parts = {"a": ingress.snapshot(), "b": engine.snapshot(), "c": switch.snapshot()}
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(merged(parts).decode())
        for sample in family.samples
    }


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def test_alerts_ask_only_for_what_there_is() -> None:
    known = counted()
    for rule in rules():
        names = re.findall(r"raytag_\w+", rule["expr"])
        assert names, rule["alert"]
        assert set(names) <= known.keys(), rule["alert"]
        for name, matchers in re.findall(r"(raytag_\w+)\{([^}]*)\}", rule["expr"]):
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers)) <= known[name]
        own = set().union(*(known[name] for name in names))
        for grouped in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            assert set(re.findall(r"\w+", grouped)) <= own, rule["alert"]
        told = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", told)) <= own
        for reason in re.findall(r'reason="(\w+)"', rule["expr"]):
            assert reason in REASONS.values()


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) > 5
    for rule in rules():
        assert rule["annotations"].keys() == {"summary", "do"}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert f"| `{rule['alert']}` |" in page
    assert set(re.findall(r"^\| `(Raytag\w+)` \|", page, re.MULTILINE)) == set(names)
