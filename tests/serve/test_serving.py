"""The service over HTTP: what it answers, whom it refuses, and that it tells why."""

import time
from collections import Counter
from typing import Any

import httpx
import pytest
from serve_cases import STEADY, Served

from raytag.model.adapter import load_adapter
from raytag.model.tagger import Tagger

TEXT = "Zoë Müller met Tim Cook in Seoul 🙂, and Apple opened an office in 東京."


def ask(served: Served, path: str, key: str | None = "acme", **given: Any) -> httpx.Response:
    """POST where there is a body, else GET."""
    headers = {"Authorization": f"Bearer {served.keys[key]}"} if key else {}
    method = given.pop("method", "POST" if "json" in given or "content" in given else "GET")
    if "content" in given:
        headers["Content-Type"] = "application/json"
    headers |= given.pop("headers", {})
    return httpx.request(method, served.url + path, headers=headers, timeout=30, **given)


def test_entities_are_those_of_a_single_call(served: Served) -> None:
    tagger = Tagger.of(load_adapter(served.adapters / "0"))
    answer = ask(served, "/v1/acme/news/entities", json={"texts": [TEXT, "", TEXT * 20]})
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert content["model"] == {
        "tenant": "acme",
        "domain": "news",
        "version": 1,
        "alias": "production",
    }
    expected = tagger.tag([TEXT, "", TEXT * 20])
    assert sum(map(len, expected)) > 3
    for text, document, entities in zip(
        [TEXT, "", TEXT * 20], content["documents"], expected, strict=True
    ):
        assert [(e["start"], e["end"], e["label"]) for e in document["entities"]] == [
            (e.start, e.end, e.label) for e in entities
        ]
        for found, entity in zip(document["entities"], entities, strict=True):
            assert found["text"] == text[found["start"] : found["end"]]
            assert found["score"] == pytest.approx(entity.score, abs=1e-5)


def test_documents_keep_their_ids(served: Served) -> None:
    documents = [{"id": "a", "text": TEXT}, {"id": "a", "text": "Seoul"}]
    answer = ask(served, "/v1/acme/news/entities?version=2", json={"documents": documents}).json()
    assert [document["id"] for document in answer["documents"]] == ["a", "a"]
    assert answer["model"]["version"] == 2
    assert answer["model"]["alias"] is None


def test_models_are_listed(served: Served) -> None:
    answer = ask(served, "/v1/acme/models").json()
    (news,) = [domain for domain in answer["domains"] if domain["domain"] == "news"]
    assert {"alias": "candidate", "version": 2} in news["aliases"]
    assert [version["version"] for version in news["versions"]][-2:] == [2, 1]
    assert ask(served, "/v1/globex/models", "globex").json()["domains"][0]["domain"] == "news"


@pytest.mark.parametrize(
    ("path", "key", "status", "said"),
    [
        ("/v1/acme/news/entities", None, 401, "no key"),
        ("/v1/acme/news/entities", "wrong", 401, "not known"),
        ("/v1/acme/news/entities", "globex", 403, "globex"),
        ("/v1/acme/news/entities", "operator", 403, "operators"),
        ("/v1/acme/nothing/entities", "acme", 404, "points nowhere"),
        ("/v1/acme/news/entities?alias=staging", "acme", 404, "points nowhere"),
        ("/v1/acme/news/entities?version=99", "acme", 404, "no acme/news@99"),
        ("/v1/acme/news/entities?version=0", "acme", 422, "version"),
        ("/v1/acme/news/entities?version=1&alias=candidate", "acme", 422, "not both"),
        ("/v1/acme/no%2e%2e%2fnews/entities", "acme", 404, "no such path"),
        ("/v1/acme/No_Such/entities", "acme", 404, "domain name"),
        ("/v1/acme/news/entities?alias=..%2f..%2fglobex", "acme", 404, "alias name"),
        ("/v1/acme/../globex/news/entities", "acme", 403, "acme"),
        ("/v1/acme/news/aliases/production", None, 401, "no key"),
        ("/nothing", None, 401, "no key"),
        ("/nothing", "acme", 404, "no such path"),
        ("/metrics", "acme", 403, "operators"),
        ("/metrics%0a", "acme", 404, "such characters"),
        ("/v1/globex/models%0a", "acme", 404, "such characters"),
    ],
)
def test_what_is_refused_and_why(
    served: Served, path: str, key: str | None, status: int, said: str
) -> None:
    answer = ask(served, path, key, json={"texts": [TEXT]})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert said in problem["detail"]
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'{"texts": "x"}', b'{"texts": [1]}', b"\xff\xfe"),
        b'{"texts": ["\\ud800"]}',
        b'{"texts": ["x"], "documents": []}',
        b'{"texts": ["x"], "more": 1}',
        b'{"documents": [{"id": 1, "text": "x"}]}',
        b'{"texts": [' + b'["' * 5000,
        b'{"texts": ["x"], "' + b"k" * 100_000 + b'": 1}',
        b'{"documents": [{"id": "a", "text": "x", ' + b'"k": 1, ' * 9 + b'"l": 1}]}',
    ],
)
def test_a_malformed_body_is_told_so(served: Served, body: bytes) -> None:
    answer = ask(served, "/v1/acme/news/entities", content=body)
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.json()["detail"]) < 500


def test_too_much_at_a_time_is_refused(served: Served) -> None:
    path = "/v1/acme/news/entities"
    assert ask(served, path, json={"texts": ["x"] * 1001}).status_code == 413
    assert ask(served, path, json={"texts": ["x" * 1_000_001]}).status_code == 413
    assert ask(served, path, content=b" " * (14 << 20)).status_code == 413
    for many in (b"1," * 1_000_000, b"{}," * 1_000_000, b'"",' * 1_000_000):
        for name in (b"texts", b"documents"):
            body = b'{"%s": [%s1]}' % (name, many)
            assert "1,000,001 texts" in ask(served, path, content=body).json()["detail"]


def test_a_deadline_that_cannot_be_met_is_told(served: Served) -> None:
    answer = ask(
        served,
        "/v1/acme/news/entities",
        json={"texts": [TEXT * 500] * 20},
        headers={"Raytag-Timeout": "0.01"},
    )
    assert answer.status_code in (503, 504)


def test_a_tenant_over_its_limit_waits_and_others_do_not(served: Served) -> None:
    answers = [
        ask(served, "/v1/small/news/entities", "small", json={"texts": ["Seoul"]}) for _ in range(8)
    ]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert answers[0].status_code == 200
    assert int(refused[0].headers["retry-after"]) >= 1
    assert ask(served, "/v1/acme/news/entities", json={"texts": ["Seoul"]}).status_code == 200


def test_a_tenants_limit_is_shared_by_both_ingresses_as_they_are_asked(served: Served) -> None:
    """On one connection, which is one ingress's, more than half of it is given; on any number no
    more than all, and a burst more with each change of the shares."""
    headers = {"Authorization": f"Bearer {served.keys['steady']}"}
    path, body = "/v1/steady/news/entities", {"texts": ["Seoul"]}
    answered = Counter[int]()
    began = time.monotonic()
    half = STEADY / 2
    with httpx.Client(base_url=served.url, headers=headers, timeout=30) as client:
        while answered[200] <= half * (time.monotonic() - began) + half + 3:
            assert time.monotonic() < began + 60, f"{answered}: it stays at an equal share"
            answered[client.post(path, json=body).status_code] += 1
    for _ in range(100):
        answered[ask(served, path, "steady", json=body).status_code] += 1
    seconds = time.monotonic() - began
    assert set(answered) <= {200, 429}
    assert answered[200] <= STEADY * seconds + 3 * STEADY


def test_open_paths_are_open_and_say_what_they_should(served: Served) -> None:
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
        assert ask(served, path, None).status_code == 200, path
    page = ask(served, "/", None)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "https://" not in ask(served, "/docs", None).text
    assert ask(served, "/docs/files/swagger-ui.css", None).status_code == 200
    assert "texts" in str(ask(served, "/openapi.json", None).json()["components"])


def test_a_request_id_is_taken_over_or_made(served: Served) -> None:
    given = ask(served, "/healthz", None, headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert len(ask(served, "/healthz", None).headers["x-request-id"]) == 32
    odd = ask(served, "/nothing", None, headers={"X-Request-Id": "a b\tc"})
    assert len(odd.json()["request_id"]) == 32


def test_metrics_are_of_all_processes(served: Served) -> None:
    ask(served, "/v1/acme/news/entities", json={"texts": [TEXT]})
    answer = ask(served, "/metrics", "operator")
    assert answer.status_code == 200
    said = answer.text
    for name in ("raytag_requests_total", "raytag_batch_rows", "raytag_adapters_resident"):
        assert name in said
    for process in ("ingress-", "engine-"):
        assert f'replica="{process}' in said
    assert 'tenant="acme"' in said
    assert served.keys["acme"] not in said
