"""Aliases that move under load: promotions, rollbacks, versions that are broken, canaries."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from serve_cases import Served

from raytag.model.adapter import WEIGHTS

TEXT = "Zoë Müller met Tim Cook in Seoul, and Apple opened an office in Paris."


@dataclass
class Load:
    """What came back of requests that were sent one after the other by several threads."""

    answers: list[tuple[float, float, int, int | None]] = field(default_factory=list)
    """(sent, answered, status, version)."""

    @property
    def failed(self) -> list[tuple[float, float, int, int | None]]:
        return [answer for answer in self.answers if answer[2] != 200]


@contextmanager
def load(served: Served, domain: str, threads: int = 4) -> Iterator[Load]:
    """Requests for the domain's production, until the block ends."""
    found, stop = Load(), threading.Event()
    headers = {"Authorization": f"Bearer {served.keys['acme']}"}

    def work() -> None:
        with httpx.Client(base_url=served.url, headers=headers, timeout=30) as client:
            while not stop.is_set():
                sent = time.monotonic()
                answer = client.post(f"/v1/acme/{domain}/entities", json={"texts": [TEXT]})
                content = answer.json()
                version = content.get("model", {}).get("version")
                found.answers.append((sent, time.monotonic(), answer.status_code, version))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield found
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)


def release(served: Served, domain: str, rest: str = "", method: str = "POST", **body: Any) -> Any:
    """What an alias's route answers to a key that may move it."""
    answer = httpx.request(
        method,
        f"{served.url}/v1/acme/{domain}/aliases/production{rest}",
        headers={"Authorization": f"Bearer {served.keys['release']}"},
        timeout=60,
        **({"json": body} if body else {}),
    )
    return answer.json()


def until(check: Callable[[], bool], seconds: float = 20) -> None:
    """Ask again until it holds."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it never came to hold"
        threading.Event().wait(0.05)


def publish(served: Served, domain: str, *adapters: int) -> None:
    for adapter in adapters:
        served.registry.publish(str(served.adapters / str(adapter)), "acme", domain)
    served.registry.promote(f"acme/{domain}@1", "production")


def broken(served: Served, folder: Path, how: str) -> Path:
    """An adapter as somebody might publish by mistake."""
    shutil.copytree(served.adapters / "0", folder)
    tensors = load_file(folder / WEIGHTS)
    if how == "not numbers":
        tensors = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
    else:
        del tensors[sorted(tensors)[0]]
    save_file(tensors, folder / WEIGHTS)
    return folder


def test_promotions_and_rollbacks_lose_no_request_and_leave_no_old_answer(served: Served) -> None:
    publish(served, "moving", 0, 2)
    moves: list[tuple[float, float, int]] = []
    with load(served, "moving") as found:
        until(lambda: len(found.answers) > 20)
        for version in (2, 1, 2):
            began = time.monotonic()
            if version == 1:
                state = release(served, "moving", "/rollback")
            else:
                state = release(served, "moving", version=version, wait_seconds=30)
            assert state["state"] == "live", state
            assert state["version"] == version
            moves.append((began, time.monotonic(), version))
            seen = len(found.answers)
            until(lambda seen=seen: len(found.answers) > seen + 20)
    assert not found.failed
    assert {version for *_, version in found.answers} == {1, 2}
    later = [began for began, _, _ in moves[1:]] + [float("inf")]
    for (_, acknowledged, version), next_began in zip(moves, later, strict=True):
        after = [a for a in found.answers if a[0] > acknowledged and a[1] < next_began]
        assert len(after) >= 10
        assert {v for *_, v in after} == {version}


def test_a_move_in_the_registry_alone_is_followed(served: Served) -> None:
    publish(served, "followed", 0, 2)
    with load(served, "followed", threads=2) as found:
        until(lambda: len(found.answers) > 5)
        served.registry.promote("acme/followed@2", "production")
        until(lambda: bool(found.answers) and found.answers[-1][3] == 2)
        until(lambda: release(served, "followed", method="GET")["state"] == "live")
        acknowledged = time.monotonic()
        seen = len(found.answers)
        until(lambda: len(found.answers) > seen + 10)
    assert not found.failed
    assert {version for sent, *_, version in found.answers if sent > acknowledged} == {2}


@pytest.mark.parametrize("how", ["not numbers", "not whole"])
def test_a_broken_version_is_left_out_and_the_reason_is_to_be_seen(
    served: Served, tmp_path: Path, how: str
) -> None:
    domain = how.replace(" ", "-")
    publish(served, domain, 0)
    served.registry.publish(str(broken(served, tmp_path / "broken", how)), "acme", domain)
    with load(served, domain, threads=2) as found:
        until(lambda: len(found.answers) > 5)
        refused = release(served, domain, version=2, wait_seconds=10)
        assert refused["status"] == 409
        assert "does not load" in refused["detail"]
        # By hand, past the service: the registry points to it then.
        served.registry.promote(f"acme/{domain}@2", "production")
        until(lambda: release(served, domain, method="GET")["state"] == "refused")
        seen = len(found.answers)
        until(lambda: len(found.answers) > seen + 10)
    state = release(served, domain, method="GET")
    assert state["version"] == 1
    assert state["wanted"] == 2
    assert "card.json" not in state["reason"]
    assert ("NaN" in state["reason"]) == (how == "not numbers")
    assert not found.failed
    assert {version for *_, version in found.answers} == {1}


def test_a_canary_that_holds_goes_forward_and_one_that_does_not_goes_back(served: Served) -> None:
    publish(served, "tried", 0, 0, 1)
    rule = {"share": 0.5, "min_requests": 10, "max_latency_ratio": 50.0}
    with load(served, "tried") as found:
        until(lambda: len(found.answers) > 5)
        assert release(served, "tried", "/canary", version=2, **rule)["canary"]["version"] == 2
        until(lambda: release(served, "tried", method="GET")["version"] == 2)
        until(lambda: release(served, "tried", method="GET")["state"] == "live")
        # Version 3 has other labels: it can agree with nothing.
        assert release(served, "tried", "/canary", version=3, **rule)["canary"]["version"] == 3
        until(lambda: release(served, "tried", method="GET")["canary"]["state"] == "back")
    state = release(served, "tried", method="GET")
    assert "agreement" in state["canary"]["reason"]
    assert state["version"] == 2
    assert not found.failed
    assert served.registry.resolve("acme/tried@production").number == 2
    assert 3 in {version for *_, version in found.answers}


def test_a_shadow_never_answers(served: Served) -> None:
    publish(served, "shadowed", 0, 1)
    with load(served, "shadowed", threads=2) as found:
        until(lambda: len(found.answers) > 5)
        release(served, "shadowed", "/canary", version=2, share=1.0, shadow=True, min_requests=1)
        until(lambda: release(served, "shadowed", method="GET")["canary"]["seen"]["compared"] >= 5)
        ended = release(served, "shadowed", "/canary", method="DELETE")
    assert ended["canary"]["state"] == "back"
    assert {version for *_, version in found.answers} == {1}
    assert not found.failed


@pytest.mark.parametrize("rule", ['"min_requests": 1' + 400 * "0", '"max_latency_ratio": 1e999'])
def test_a_rule_beyond_all_numbers_is_refused(served: Served, rule: str) -> None:
    answer = httpx.post(
        f"{served.url}/v1/acme/news/aliases/production/canary",
        content='{"version": 2, "share": 0.5, ' + rule + "}",
        headers={
            "Authorization": f"Bearer {served.keys['release']}",
            "Content-Type": "application/json",
        },
    )
    assert answer.status_code == 422, answer.text
    assert release(served, "news", method="GET")["canary"] is None


def test_an_alias_moves_only_for_a_key_that_may(served: Served) -> None:
    answer = httpx.post(
        f"{served.url}/v1/acme/news/aliases/production",
        json={"version": 2},
        headers={"Authorization": f"Bearer {served.keys['acme']}"},
    )
    assert answer.status_code == 403
    assert "release" in answer.json()["detail"]
