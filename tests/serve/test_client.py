"""The client against a real server on loopback that answers as it is told to, or does not."""

import asyncio
import json
import logging
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import raytag
from raytag.client import (
    ASKED_TWICE_AT_ONCE,
    CHARACTERS_A_REQUEST,
    CONNECT_SECONDS,
    LATE,
    RETRIED,
    TEXTS_A_REQUEST,
    Lost,
    Patience,
    Pause,
    Reply,
    Request,
    Send,
    ServiceError,
    Steps,
)
from raytag.errors import DataError, RaytagError, SettingsError
from raytag.spare import Spare
from raytag.text.spans import Entity

SECRET = "c2VjcmV0LXNlY3JldA"
KEY = f"rt~acme~k1~{SECRET}"
TEXT = "Apple's CEO Tim was in Seoul 🙂 and in Zu\u0308rich."
FOUND = [Entity(0, 5, "X"), Entity(12, 15, "X"), Entity(23, 28, "X"), Entity(38, 45, "X")]

Act = Callable[["Handler"], None]


def entities(text: str) -> list[dict[str, Any]]:
    """Every word with a capital letter."""
    return [
        {"start": m.start(), "end": m.end(), "label": "X", "text": m[0], "score": 0.5}
        for m in re.finditer(r"[A-Z][a-zu\u0308]+", text)
    ]


class Seen(NamedTuple):
    """A request as it arrived; a handler lives as long as its connection."""

    command: str
    path: str
    headers: Message
    body: bytes
    peer: tuple[str, int]


class Handler(BaseHTTPRequestHandler):
    """Does what comes next in its server's script, or answers as Raytag does."""

    protocol_version = "HTTP/1.1"
    server: "Service"

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            seen = Seen(self.command, self.path, self.headers, self.body, self.client_address)
            self.server.seen.append(seen)
            act = self.server.script.pop(0) if self.server.script else good
        act(self)

    do_GET = do_POST  # noqa: N815

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(content)), **given}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


class Service(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.script: list[Act] = []
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.over = threading.Event()

    def handle_error(self, *_: object) -> None:
        """A client that hung up is no news."""


@pytest.fixture
def service() -> Iterator[Service]:
    yield from serving()


@pytest.fixture
def other() -> Iterator[Service]:
    yield from serving()


def serving() -> Iterator[Service]:
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


def good(handler: Handler) -> None:
    if handler.command == "GET":
        handler.answer(
            200, json.dumps({"tenant": "acme", "domains": [{"domain": "news"}]}).encode()
        )
        return
    texts = json.loads(handler.body)["texts"]
    documents = [{"entities": entities(text)} for text in texts]
    handler.answer(200, json.dumps({"model": {}, "documents": documents}).encode())


def refusing(status: int, detail: str = "too much at once", **headers: str) -> Act:
    problem = {"title": "No", "status": status, "detail": detail, "request_id": "theirs"}
    kind = {"Content-Type": "application/problem+json; charset=utf-8"}
    return lambda handler: handler.answer(status, json.dumps(problem).encode(), **kind, **headers)


def answering(content: object) -> Act:
    return lambda handler: handler.answer(200, json.dumps(content).encode())


def reset(handler: Handler) -> None:
    """The connection ends at once, without an answer."""
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.rfile.close()
    handler.wfile.close()
    handler.connection.close()
    handler.close_connection = True


def cut(handler: Handler) -> None:
    """The answer ends in the middle."""
    handler.answer(200, b'{"model": {}, "docu', Content_Length="1000")
    handler.close_connection = True


def hang(handler: Handler) -> None:
    handler.server.over.wait(30)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then, for ever."""
    handler.answer(200, b"", Content_Length="1000000")
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b" ")


def drip_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b"x")


def slowly(handler: Handler) -> None:
    handler.server.over.wait(1.4)
    good(handler)


def extract_now(url: str, texts: Any, options: dict[str, Any], asked: dict[str, Any]) -> Any:
    with raytag.Client(url, KEY, **options) as client:
        return client.extract(texts, **asked)


def extract_async(url: str, texts: Any, options: dict[str, Any], asked: dict[str, Any]) -> Any:
    async def extract() -> list[list[Entity]]:
        async with raytag.AsyncClient(url, KEY, **options) as client:
            return await client.extract(texts, **asked)

    return asyncio.run(extract())


@pytest.fixture(params=[extract_now, extract_async], ids=["sync", "async"])
def extract(request: pytest.FixtureRequest) -> Callable[..., list[list[Entity]]]:
    """``extract(url, texts, **asked)`` by either client; quick to try again."""

    def call(url: str, texts: Any, **asked: Any) -> list[list[Entity]]:
        names = {"tries", "timeout", "backoff"} & asked.keys()
        options = {"domain": "news", "backoff": 0.01} | {name: asked.pop(name) for name in names}
        found: list[list[Entity]] = request.param(url, texts, options, asked)
        return found

    return call


Extract = Callable[..., list[list[Entity]]]


def test_entities_come_with_offsets_into_the_text_as_sent(
    service: Service, extract: Extract
) -> None:
    assert extract(service.url, [TEXT, "", "none here"]) == [FOUND, [], []]
    (seen,) = service.seen
    assert (seen.command, seen.path) == ("POST", "/v1/acme/news/entities")
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    assert 9 < float(seen.headers["Raytag-Timeout"]) <= 10
    assert extract(service.url, [TEXT])[0][0].score == 0.5


def test_a_call_may_name_domain_version_and_alias(service: Service, extract: Extract) -> None:
    extract(service.url + "/ner/", [TEXT], domain="law", version=3)
    extract(service.url, [TEXT], alias="candidate")
    assert [seen.path for seen in service.seen] == [
        "/ner/v1/acme/law/entities?version=3",
        "/v1/acme/news/entities?alias=candidate",
    ]


def test_models_are_those_of_the_keys_tenant(service: Service) -> None:
    async def models() -> list[dict[str, Any]]:
        async with raytag.AsyncClient(service.url, KEY) as client:
            return await client.models()

    with raytag.Client(service.url, KEY) as client:
        assert client.models() == asyncio.run(models()) == [{"domain": "news"}]
    assert {seen.path for seen in service.seen} == {"/v1/acme/models"}


@pytest.mark.parametrize(
    "failing",
    [
        *(refusing(status, Retry_After="0") for status in (429, 503)),
        *(refusing(status) for status in (429, 502, 503)),
        refusing(503, Retry_After="Thu, 01 Jan 2026 00:00:00 GMT"),
        refusing(503, Retry_After="soon"),
        reset,
        cut,
    ],
)
def test_what_may_pass_is_asked_again(service: Service, extract: Extract, failing: Act) -> None:
    service.script = [failing, failing]
    assert extract(service.url, [TEXT]) == [FOUND]
    assert len(service.seen) == 3
    assert len({seen.headers["X-Request-Id"] for seen in service.seen}) == 1
    first, second, last = (float(seen.headers["Raytag-Timeout"]) for seen in service.seen)
    assert 10 >= first > second > last > 8, "each may take all that is left"
    assert len({seen.body for seen in service.seen}) == 1


def test_a_refusal_that_stays_is_told_as_the_service_tells_it(
    service: Service, extract: Extract
) -> None:
    service.script = [refusing(503, "the model is busy")] * 3
    with pytest.raises(
        ServiceError, match="the model is busy .status 503, request theirs, 3 tries"
    ):
        extract(service.url, [TEXT])
    assert len(service.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500, 504])
def test_what_will_not_pass_is_asked_once(service: Service, extract: Extract, status: int) -> None:
    service.script = [refusing(status, "it is so")]
    with pytest.raises(ServiceError, match=f"it is so .status {status}, request theirs") as caught:
        extract(service.url, [TEXT])
    assert len(service.seen) == 1
    assert caught.value.status == status
    assert caught.value.problem["title"] == "No"
    assert caught.value.request_id == "theirs"


def test_an_error_page_of_a_proxy_is_named_by_its_status(
    service: Service, extract: Extract
) -> None:
    service.script = [lambda handler: handler.answer(413, b"<html>", Content_Type="text/html")]
    with pytest.raises(ServiceError, match=r"Too Large \(status 413, request [0-9a-f]{32}, 1 try"):
        extract(service.url, [TEXT])


def test_a_pause_that_does_not_fit_is_not_begun(service: Service, extract: Extract) -> None:
    service.script = [refusing(429, Retry_After="60")]
    with pytest.raises(ServiceError, match="too much at once"):
        extract(service.url, [TEXT], timeout=30)
    assert len(service.seen) == 1


def test_a_slow_service_is_waited_for(service: Service, extract: Extract) -> None:
    service.script = [slowly, hang]
    assert extract(service.url, [TEXT], timeout=2) == [FOUND]
    assert len(service.seen) == 2


def test_where_a_proxy_hides_that_a_host_is_gone_another_is_asked_beside_it(
    service: Service, extract: Extract
) -> None:
    service.script = [hang]
    assert extract(service.url, [TEXT], timeout=1) == [FOUND]
    stuck, answered = service.seen
    assert stuck.peer != answered.peer
    assert stuck.headers["X-Request-Id"] == answered.headers["X-Request-Id"]


@pytest.mark.parametrize("failing", [refusing(503), refusing(429, Retry_After="60"), reset])
def test_that_the_one_beside_it_fails_ends_no_request(
    service: Service, extract: Extract, failing: Act
) -> None:
    service.script = [slowly, failing]
    assert extract(service.url, [TEXT], timeout=2, tries=2) == [FOUND]
    assert len(service.seen) == 2


def test_a_service_that_is_slow_for_everybody_is_not_asked_for_twice_the_work(
    service: Service,
) -> None:
    calls, most = 30, 30 + ASKED_TWICE_AT_ONCE

    def when_all_are_there(handler: Handler) -> None:
        while len(service.seen) < most and not service.over.wait(0.01):
            pass
        good(handler)

    service.script = [when_all_are_there] * 100
    with (
        raytag.Client(service.url, KEY, domain="news", timeout=6) as client,
        ThreadPoolExecutor(calls) as pool,
    ):
        assert list(pool.map(client.extract, [[TEXT]] * calls)) == [[FOUND]] * calls
    assert len(service.seen) == most


@pytest.mark.parametrize("act", [hang, drip, drip_headers])
def test_a_call_ends_when_its_time_is_over(service: Service, extract: Extract, act: Act) -> None:
    service.script = [refusing(503), act, act]
    began = time.monotonic()
    with pytest.raises(ServiceError, match=f"{LATE}: 0.5 seconds are over.*longer timeout"):
        extract(service.url, [TEXT], timeout=0.5)
    assert 0.45 < time.monotonic() - began < 1.5
    assert len(service.seen) == 3


def test_a_service_that_is_not_there_is_said_to_be_so(extract: Extract) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        said = f"no answer from {url}.*: Connection refused; is the service there.*, 3 tries"
        with pytest.raises(ServiceError, match=said) as caught:
            extract(url, [TEXT])
    assert caught.value.status is None


def test_a_host_that_takes_no_connection_is_asked_again(extract: Extract) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:  # the queue of those not accepted is full, and more are not answered
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        try:
            with pytest.raises(ServiceError, match="no connection within 0.. s.*2 tries"):
                extract(f"http://127.0.0.1:{full.getsockname()[1]}", [TEXT], tries=2, timeout=0.6)
        finally:
            for one in waiting:
                one.close()


def test_a_key_does_not_follow_a_redirect(
    service: Service, other: Service, extract: Extract
) -> None:
    service.script = [lambda handler: handler.answer(307, b"", Location=other.url)]
    with pytest.raises(ServiceError, match=f"elsewhere, to '{other.url}'"):
        extract(service.url, [TEXT])
    assert len(service.seen) == 1
    assert not other.seen


def test_a_proxy_of_the_environment_sees_no_key(
    service: Service, other: Service, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.url)
    assert extract(service.url, [TEXT]) == [FOUND]
    assert not other.seen


def test_long_lists_go_in_several_requests_and_keep_their_order(
    service: Service, extract: Extract
) -> None:
    texts = [f"Word{'s' * (i % 7)} {i}" for i in range(2 * TEXTS_A_REQUEST + 1)]
    texts.insert(3, "A" + "b" * 2 * CHARACTERS_A_REQUEST)
    assert extract(service.url, iter(texts)) == [
        [Entity(e["start"], e["end"], "X") for e in entities(text)] for text in texts
    ]
    sent = [json.loads(seen.body)["texts"] for seen in service.seen]
    sent.sort(key=lambda part: texts.index(part[0]))
    assert [text for part in sent for text in part] == texts
    assert [len(part) for part in sent] == [3, 1, TEXTS_A_REQUEST, TEXTS_A_REQUEST - 2]
    assert len({seen.headers["X-Request-Id"] for seen in service.seen}) == 4


def test_the_async_clients_requests_are_in_flight_together(service: Service) -> None:
    meeting = threading.Barrier(2)

    def meet(handler: Handler) -> None:
        meeting.wait(10)
        good(handler)

    service.script = [meet, meet]
    texts = ["Text"] * 2 * TEXTS_A_REQUEST
    assert len(extract_async(service.url, texts, {"domain": "news", "tries": 1}, {})) == len(texts)


def test_connections_of_many_at_once_are_used_again(service: Service) -> None:
    many = 40
    meeting = threading.Barrier(many)

    def meet(handler: Handler) -> None:
        meeting.wait(20)
        good(handler)

    with (
        raytag.Client(service.url, KEY, domain="news", timeout=30) as client,
        ThreadPoolExecutor(many) as pool,
    ):
        for _ in range(3):
            service.script = [meet] * many
            assert list(pool.map(client.extract, [[TEXT]] * many)) == [[FOUND]] * many
    assert len({seen.peer for seen in service.seen}) == many


class Interrupted(Exception):  # noqa: N818
    pass


def test_a_request_that_nobody_waits_for_is_ended(service: Service) -> None:
    ended = threading.Event()

    def interrupt(handler: Handler) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        handler.rfile.read(1)
        ended.set()

    def raise_it(*_: object) -> None:
        raise Interrupted

    service.script = [interrupt]
    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        with raytag.Client(service.url, KEY, domain="news", timeout=60) as client:
            with pytest.raises(Interrupted):
                client.extract([TEXT])
            assert ended.wait(20)
            assert client.extract([TEXT]) == [FOUND]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(service.seen) == 2


def test_a_client_that_is_closed_says_so(service: Service) -> None:
    client = raytag.Client(service.url, KEY, domain="news")
    assert client.extract([TEXT]) == [FOUND]
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.extract([TEXT])


@pytest.mark.parametrize(
    "do",
    [
        "process = multiprocessing.get_context('fork').Process(target=ask); process.start(); "
        "process.join(30); assert process.exitcode == 0, process.exitcode",
        "threading.Thread(target=lambda: (threading.main_thread().join(), ask())).start()",
    ],
    ids=["in a fork", "after the main thread"],
)
def test_a_client_goes_on_elsewhere(service: Service, do: str) -> None:
    code = (
        "import multiprocessing, threading, raytag\n"
        f"url = 'http://localhost:{service.server_port}'\n"
        "def client(): return raytag.Client(url, " + repr(KEY) + ", domain='news', timeout=20)\n"
        "used, new = client(), client()\n"
        "def ask(): print(used.extract(['Text']), new.extract(['Text']), flush=True)\n"
        "used.extract(['Text'])\n" + do
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout.count("label='X'") == 2, ran.stderr
    assert len(service.seen) == 3
    assert len({seen.peer for seen in service.seen[:2]}) == (2 if "fork" in do else 1)


def test_one_failing_request_of_many_fails_the_call(service: Service, extract: Extract) -> None:
    service.script = [refusing(422, "not this one")]
    with pytest.raises(ServiceError, match="not this one"):
        extract(service.url, ["Text"] * 10 * TEXTS_A_REQUEST)
    assert len(service.seen) < 10


def test_nothing_asked_is_nothing_sent(service: Service, extract: Extract) -> None:
    assert extract(service.url, []) == []
    assert not service.seen


SPAN = {"start": 0, "end": 5, "label": "ORG", "text": "Apple", "score": 0.9}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"documents": None},
        {"documents": []},
        {"documents": [{"entities": []}] * 2},
        {"documents": [{}]},
        {"documents": [{"entities": ["Apple"]}]},
        *(
            {"documents": [{"entities": [SPAN | wrong]}]}
            for wrong in (
                {"start": 1, "end": 6},
                {"start": -5},
                {"end": 0},
                {"end": 5.0},
                {"start": False},
                {"start": "0"},
                {"end": 10_000},
                {"text": "apple"},
                {"text": None},
                {"label": ""},
                {"label": 7},
                {"score": "high"},
                {"score": [1]},
            )
        ),
        {"documents": [{"entities": [{k: v for k, v in SPAN.items() if k != "text"}]}]},
    ],
)
def test_an_answer_that_is_not_of_what_was_sent_is_no_answer(
    service: Service, extract: Extract, content: object
) -> None:
    service.script = [answering(content)]
    with pytest.raises(ServiceError, match="something else") as caught:
        extract(service.url, [TEXT])
    assert caught.value.status == 200
    assert len(service.seen) == 1


def test_an_answer_that_is_no_json_is_no_answer(service: Service, extract: Extract) -> None:
    service.script = [lambda handler: handler.answer(200, b"<html>")]
    with pytest.raises(ServiceError, match="something else"):
        extract(service.url, [TEXT])


def test_the_key_is_nowhere_to_be_seen(
    service: Service, extract: Extract, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service.script = [refusing(401, "this key is not known"), reset, reset, reset]
    for _ in range(2):
        with pytest.raises(ServiceError) as caught:
            extract(service.url, [TEXT])
        assert SECRET not in str(caught.value) + repr(caught.value)
    assert caplog.records
    assert SECRET not in caplog.text
    for client in (raytag.Client(service.url, KEY), raytag.AsyncClient(service.url, KEY)):
        assert repr(client) == f"{type(client).__name__}('{service.url}', tenant='acme')"
        assert SECRET not in str(vars(client))


@pytest.mark.parametrize(
    "key",
    ["", SECRET, f"rt~acme~{SECRET}", f"{KEY}\n", f" {KEY}", f"rt~../x~k1~{SECRET}", f"{KEY}é"],
)
def test_what_is_no_key_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        raytag.Client("https://ner.example.com", key)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://ner.example.com", "http://10.0.0.1:8000", "http://[2001:db8::1]/", "http://0.0.0.0"],
)
def test_a_key_leaves_the_machine_only_encrypted(url: str) -> None:
    with pytest.raises(SettingsError, match="plain http .* read the key"):
        raytag.Client(url, KEY)
    raytag.Client(url, KEY, insecure=True).close()
    raytag.Client(url.replace("http:", "https:"), KEY).close()


@pytest.mark.parametrize("url", ["http://localhost:8000", "http://127.1.2.3", "http://[::1]:8000"])
def test_on_one_machine_plain_http_will_do(url: str) -> None:
    raytag.Client(url, KEY).close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ner.example.com",
        "ftp://x",
        "https://",
        "https://user:pw@x",
        "https://x?a=b",
        "https://x:y",
    ],
)
def test_what_is_no_url_of_a_service_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="url") as caught:
        raytag.Client(url, KEY)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "asked", "message"),
    [
        ("a text", {}, "a list of texts"),
        (["fine", b"bytes"], {}, "texts.1. is no text but bytes"),
        (["fine", "half \ud83d"], {}, "texts.1. is no valid text.* character 5"),
        ([TEXT], {"domain": "../models"}, "no domain name"),
        ([TEXT], {"alias": "3"}, "no alias name"),
        ([TEXT], {"version": 0}, "no version number"),
        ([TEXT], {"version": 1, "alias": "production"}, "not both"),
    ],
)
def test_what_cannot_be_asked_is_not_sent(
    service: Service, extract: Extract, texts: Any, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(RaytagError, match=message) as caught:
        extract(service.url, texts, **asked)
    assert isinstance(caught.value, DataError | SettingsError)
    assert not service.seen


def test_a_domain_must_be_named_once(service: Service) -> None:
    with pytest.raises(SettingsError, match="which domain"):
        extract_now(service.url, [TEXT], {}, {})
    assert extract_now(service.url, [TEXT], {}, {"domain": "news"}) == [FOUND]


@pytest.mark.parametrize(
    "wrong", [{"tries": 0}, {"timeout": 0}, {"timeout": float("nan")}, {"backoff": -1}]
)
def test_patience_must_make_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        raytag.Client("https://ner.example.com", KEY, **wrong)


def test_an_error_survives_a_way_between_processes() -> None:
    error = ServiceError("said", 503, {"title": "Busy"}, "id")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == ("said", vars(error))


def test_importing_the_package_reads_no_client() -> None:
    code = (
        "import sys, raytag; assert 'httpx' not in sys.modules; raytag.__version__; "
        "from raytag import Client, ServiceError; raytag.AsyncClient; "
        "assert 'httpx' in sys.modules; "
        "assert not {'torch', 'ray'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        raytag.Clint  # noqa: B018


def test_a_pause_is_as_long_as_asked_for_and_a_little_more() -> None:
    now = 0.0
    steps = Patience(4, 10, 0.25).ask(Request("GET", "/"), 10, Spare(0.1, 10), lambda: now)
    next(steps)
    pauses = []
    for after in ("", "2", "3"):
        pause = steps.send(Reply(503, {"retry-after": after}, b""))
        assert isinstance(pause, Pause)
        pauses.append(pause.seconds)
        now += pause.seconds
        next_try = steps.send(None)
        assert isinstance(next_try, Send)
        assert next_try.seconds == 10 - now
        assert next_try.connect == min(CONNECT_SECONDS, (10 - now) / (5 - len(pauses)))
    assert 0 <= pauses[0] <= 0.25
    assert 2 <= pauses[1] <= 2.5
    assert 3 <= pauses[2] <= 4
    with pytest.raises(StopIteration):
        steps.send(Reply(200, {}, b""))


def two_under_way(clock: list[float]) -> Steps:
    """A call of 10 seconds whose second try has begun, at 5; ``clock`` holds what time it is."""
    steps = Patience(3, 10, 0.25).ask(Request("GET", "/"), 10, Spare(0.1, 1), lambda: clock[0])
    next(steps)
    clock[0] = 5.0
    second = steps.send(None)
    assert isinstance(second, Send)
    assert second.anew
    return steps


def test_where_the_second_try_fails_a_third_takes_its_place_beside_the_first() -> None:
    clock = [0.0]
    steps = two_under_way(clock)
    pause = steps.send(Reply(503, {"retry-after": "1"}, b""))
    assert isinstance(pause, Pause)
    clock[0] += pause.seconds
    third = steps.send(None)
    assert isinstance(third, Send)
    assert third.anew
    assert isinstance(steps.send(Reply(504, {}, b"")), Pause)  # what a proxy says of the first
    with pytest.raises(StopIteration) as done:
        steps.send(Reply(200, {}, b""))
    assert done.value.value.status == 200


def test_a_pause_asked_for_holds_where_the_other_try_is_lost_meanwhile() -> None:
    clock = [0.0]
    steps = two_under_way(clock)
    steps.send(Reply(503, {"retry-after": "3"}, b""))
    clock[0] = 6.0
    pause = steps.send(Lost("reset"))
    assert isinstance(pause, Pause)
    assert 2 <= pause.seconds <= 2.5


outcomes = st.one_of(
    st.builds(Lost, st.just("reset")),
    st.builds(
        lambda status, after: Reply(status, {"retry-after": after}, b""),
        st.sampled_from([429, 502, 503, 504, 200, 301, 401, 422, 500]),
        st.sampled_from(["", "0", "1", "3", "9", "-1", "1e9", "nan", "9" * 400, "soon"]),
    ),
)


@given(
    st.lists(st.tuples(outcomes, st.floats(0, 25) | st.just(0.01)), min_size=6, max_size=6),
    st.integers(1, 6),
    st.floats(0.01, 20),
    st.floats(0, 100),
    st.integers(0, 3),
)
def test_however_it_goes_a_call_keeps_to_its_time_and_tries(
    script: list[tuple[Reply | Lost, float]],
    tries: int,
    timeout: float,
    backoff: float,
    twice: int,
) -> None:
    now, sent, joined, asked_for = 100.0, 0, 0, 0.0
    just_failed = False
    last: Reply | Lost | None = None
    under_way: list[tuple[float, Reply | Lost]] = []
    end: Reply | ServiceError
    spare = Spare(0.0, twice)
    steps = Patience(tries, timeout, backoff).ask(
        Request("GET", "/"), now + timeout, spare, lambda: now
    )
    try:
        step = next(steps)
        while True:
            wait = step.seconds
            if isinstance(step, Send):
                assert now >= asked_for - 1e-9
                assert 0 < step.connect <= step.seconds <= 100 + timeout - now + 1e-9
                assert step.anew == bool(under_way)
                joined += step.anew and not just_failed
                just_failed = False
                wait = step.alone
                outcome, took = script[sent]
                sent += 1
                if took >= step.seconds:
                    outcome, took = Lost(LATE), step.seconds
                under_way.append((now + took, outcome))
                assert len(under_way) <= 2
            first = min(under_way, key=lambda one: one[0], default=None)
            if first is None or first[0] > now + wait:
                now += wait
                step = steps.send(None)
                continue
            under_way.remove(first)
            now, last = first
            if isinstance(last, Reply):
                after = last.headers["retry-after"]
                asked_for = max(asked_for, now + (float(after) if after.isdecimal() else 0.0))
            step = steps.send(last)
            just_failed = True
            may_pass = isinstance(last, Lost) or last.status in RETRIED
            assert may_pass or (under_way and last.status >= 500)
    except StopIteration as done:
        end = done.value
    except ServiceError as exc:
        end = exc
    status = last.status if isinstance(last, Reply) else None
    if isinstance(end, ServiceError):
        assert status != 200
        assert end.status == status or LATE in str(end)
        # One that is under way is given up for what would be answered to it as well, or for time.
        about_request = status is not None and status < 500 and status not in RETRIED
        assert not under_way or about_request or now >= 100 + timeout - 0.002
    else:
        assert end is last
        assert status == 200
    assert 1 <= sent <= tries
    assert joined <= twice
    assert now <= 100 + timeout + 1e-9
