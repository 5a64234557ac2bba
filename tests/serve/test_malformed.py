"""Requests that are malformed or odd: each is refused or answered, and harms nothing."""

import io
import json
import random
import re
import socket
import struct
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from replicas import replicas
from requests.exceptions import InvalidHeader, InvalidURL
from serve_cases import Served

from raytag.local import LocalCluster

AT_ONCE = 4
QUIET = 0.25
"""Seconds without an answer after which it is said that nothing more comes: the server may be
waiting for it."""
BODY = b'{"texts": ["Tim Cook was in Seoul."]}'
PATH = b"/v1/acme/news/entities"
UNREAD = b"Invalid HTTP request received."
"""What the HTTP server says of what is none: no application sees it, and there is no id."""
ODD = (
    *(
        b"\x00",
        b"\x01",
        b"\r",
        b"\n",
        b"\t",
        b"\x7f",
        b"\x80",
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
    ),
    *(
        "é".encode(),
        "🙂".encode(),
        b"%",
        b"%%",
        b"%00",
        b"%zz",
        b"%ff",
        b"%2e%2e%2f",
        b"../",
        b"//",
    ),
    *(
        b"\\",
        b"'",
        b'"',
        b"{{7*7}}",
        b"${x}",
        b"; rm",
        b"*",
        b":",
        b"#",
        b"?",
        b"&",
        b"=",
        b" ",
        b"",
    ),
)
NUMBERS = (
    *(
        b"0",
        b"-1",
        b"+5",
        b"1e400",
        b"-1e400",
        b"NaN",
        b"nan",
        b"inf",
        b"-Infinity",
        b"0x10",
        b"1_0",
    ),
    *(b"1, 1", b"5;5", b"", b" ", b"9" * 30, b"9" * 5000, "１".encode(), b"\xb2", b"1.5", b"true"),
)


@dataclass(frozen=True)
class Raw:
    """Bytes for a connection of their own.

    ``whole``: some of it is a request that must get an answer. ``ends``: how the sender goes on
    when all is sent: it waits for answers, closes its side, or breaks the connection off.
    """

    content: bytes
    method: str = "POST"
    whole: bool = False
    ends: str = "waits"


@dataclass(frozen=True)
class Sent:
    """Who makes requests, from a seed."""

    rng: random.Random
    key: bytes

    def request(
        self,
        path: bytes = PATH,
        headers: bytes = b"",
        body: bytes = BODY,
        *,
        method: bytes = b"POST",
        version: bytes = b"HTTP/1.1",
        length: bytes | None = None,
        last: bool = True,
    ) -> bytes:
        """One that is right where nothing else is said."""
        length = str(len(body)).encode() if length is None else length
        return b"".join(
            (
                *(method, b" ", path, b" ", version, b"\r\nHost: localhost\r\n"),
                *(b"Authorization: Bearer ", self.key, b"\r\nContent-Type: application/json\r\n"),
                b"Content-Length: " + length + b"\r\n" if length else b"",
                b"Connection: close\r\n" if last else b"",
                *(headers, b"\r\n", body),
            )
        )

    def odd(self, most: int = 4) -> bytes:
        """A few bytes that may not belong together."""
        return b"".join(self.rng.choices((*ODD, b"a", b"news", b"1"), k=self.rng.randint(1, most)))


def request_lines(sent: Sent) -> Raw:
    rng = sent.rng
    method = rng.choice((b"", b"post", b"BREW", b"P\x00ST", b"G" * 5000, sent.odd()))
    version = rng.choice(
        (b"", b"HTTP/0.9", b"HTTP/9.9", b"HTTP/1", b"http/1.1", b"HTTP/2", sent.odd())
    )
    line = rng.choice(
        (
            sent.request(method=method),
            sent.request(version=version),
            sent.request().replace(b" ", rng.choice((b"  ", b"\t", b"", b"\x0b", b"\x00")), 2),
            sent.request().replace(b"\r\n", rng.choice((b"\n", b"\r", b"\n\r")), rng.randint(1, 9)),
            b"\r\n" * rng.randint(1, 50) + sent.request(),
        )
    )
    return Raw(line, ends=rng.choice(("waits", "closes")))


def headers(sent: Sent) -> Raw:
    rng = sent.rng
    name = rng.choice((b"X-Odd", b"", b"X Odd", b"X-Odd ", b" X-Odd", sent.odd(), b"X" * 70_000))
    value = rng.choice((sent.odd(), sent.odd(9), b"v" * 200_000, b"a\r\n b", b"a\rb", b"a\x00b"))
    lines = rng.choice(
        (
            name + b": " + value + b"\r\n",
            b"no colon at all\r\n",
            b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(rng.choice((10, 500, 3000)))),
            b"Host: elsewhere\r\n" * rng.randint(1, 3),
            b"Content-Length: " + rng.choice(NUMBERS) + b"\r\n",
            b"Authorization: " + sent.odd() + b"\r\n",
            b"Transfer-Encoding: "
            + rng.choice((b"chunked", b"gzip, chunked", sent.odd()))
            + b"\r\n",
        )
    )
    return Raw(sent.request(headers=lines), ends=rng.choice(("waits", "closes")))


def read_headers(sent: Sent) -> Raw:
    """Values that somebody on the way reads, in headers that are whole."""
    rng = sent.rng
    name = rng.choice(
        (
            *(b"X-Request-Id", b"Raytag-Timeout", b"Content-Type", b"Accept", b"Cookie", b"Expect"),
            *(b"Content-Encoding", b"Accept-Encoding", b"Origin", b"Forwarded", b"X-Forwarded-For"),
            *(b"X-Request-Timeout-Seconds", b"X-Request-Disconnect-Disabled", b"traceparent"),
            *(b"serve_multiplexed_model_id", b"Serve-Multiplexed-Model-Id", b"X-Session-Id"),
            *(
                b"Session-Id",
                b"serve_session_id",
                b"Upgrade",
                b"Range",
                b"If-Match",
                b"X-HTTP-Method",
            ),
        )
    )
    unread = rng.choice((b"\xff\xfe", "é".encode(), b"\xed\xa0\x80"))
    value = rng.choice((rng.choice(NUMBERS), sent.odd(), unread, b"0.0001", b"?1", b"a" * 5000))
    for unsendable in (b"\r", b"\n", b"\x00", b"\x01", b"\x7f"):
        value = value.replace(unsendable, b"")
    return Raw(sent.request(headers=name + b": " + value + b"\r\n"), whole=True)


def unauthorized(sent: Sent) -> Raw:
    rng = sent.rng
    key = (
        sent.odd(6)
        if rng.random() < 0.5
        else sent.key.replace(b"~", rng.choice((b"~~", b"", b"/")))
    )
    for unsendable in (b"\r", b"\n", b"\x00", b"\x01", b"\x7f"):
        key = key.replace(unsendable, b"")
    scheme = rng.choice((b"Bearer", b"bearer", b"Basic", b"", b"Bearer Bearer"))
    right = b"Authorization: Bearer " + sent.key
    return Raw(sent.request().replace(right, b"Authorization: " + scheme + b" " + key), whole=True)


def lengths(sent: Sent) -> Raw:
    rng = sent.rng
    wrong = rng.choice((*NUMBERS, b"1", str(len(BODY) + rng.randint(1, 9999)).encode()))
    return Raw(sent.request(length=wrong), ends=rng.choice(("closes", "closes", "breaks")))


def chunks(sent: Sent) -> Raw:
    rng = sent.rng
    cuts = sorted(rng.choices(range(len(BODY)), k=2))
    parts = [BODY[: cuts[0]], BODY[cuts[0] : cuts[1]], BODY[cuts[1] :]]
    content = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)
    whole = content + b"0\r\n\r\n"
    coded = rng.choice(
        (
            whole,
            whole[: rng.randrange(len(whole))],
            content,
            content + b"0\r\nX-Trailer: " + sent.odd() + b"\r\n\r\n",
            content + b"0;" + sent.odd() + b"\r\n\r\n",
            rng.choice(NUMBERS) + b"\r\n" + whole,
            b"f" * rng.choice((8, 16, 17, 300)) + b"\r\n" + BODY,
            b"-1\r\n" + whole,
            whole.replace(b"\r\n", b"\n"),
        )
    )
    head = b"Transfer-Encoding: chunked\r\n"
    request = sent.request(headers=head, body=coded, length=b"")
    if coded is whole:
        return Raw(request, whole=True)
    return Raw(request, ends=rng.choice(("waits", "closes", "breaks")))


def bodies(sent: Sent) -> Raw:
    rng = sent.rng
    deep = rng.choice((100, 1_000, 20_000, 200_000))
    text = rng.choice(
        (*ODD, b"\\ud800", b"\\udc00\\ud800", b"\\u0000", b"\\x", b"\\", b"a" * 50_000)
    )
    texts = b'{"texts": ['
    body = rng.choice(
        (
            *(b"[" * deep, b'{"a":' * deep, texts + b"[" * deep, b"[" * deep + b"]" * deep),
            texts + b'"' + text + b'"]}',
            texts + rng.choice((*NUMBERS, b"null", b"{}", b"[]")) + b"]}",
            b'{"documents": [{"id": "' + text + b'", "text": "x"}]}',
            b'{"documents": [{"id": "a", "text": "' + text + b'"}], "documents": [1]}',
            b'{"texts": ["a"], "texts": ["b"], "texts": ' + rng.choice((b"1", b'["c"]')) + b"}",
            b'{"version": ' + rng.choice(NUMBERS) + b"}",
            rng.choice(
                (b"", b" ", b"null", b"1", b'"x"', b"[]", b"{}", b"{", b"}", b"\xef\xbb\xbf{}")
            ),
            b"\xef\xbb\xbf" + BODY,
            BODY.decode().encode(rng.choice(("utf-16", "utf-32", "utf-16-be"))),
            BODY[: rng.randrange(len(BODY))],
            BODY + sent.odd(),
            rng.randbytes(rng.choice((1, 30, 3000))),
        )
    )
    return Raw(sent.request(body=body), whole=True)


def targets(sent: Sent) -> Raw:
    rng = sent.rng
    part = sent.odd()
    path = rng.choice(
        (
            *(b"/v1/acme/" + part + b"/entities", b"/v1/acme/news/aliases/" + part),
            *(b"/v1/" + part + b"/models", b"/" + part, part, b"*", b"//", b"/v1//news/entities"),
            *(b"/v1/acme/news/entities/", b"/docs/files/" + part, b"/docs/redirect", b"/v1/acme"),
            *(b"http://elsewhere" + PATH, b"https://" + part + PATH, b"localhost:1"),
            *(b"/" + b"a" * rng.choice((300, 8_000, 70_000)), b"/a" * 5_000, b"/%41" * 1_000),
            *(
                b"/v1/acme/%2e%2e%2fglobex/entities",
                b"/v1/acme/../../etc/passwd",
                b"/V1/ACME/models",
            ),
            PATH + b"?version=" + rng.choice(NUMBERS),
            PATH + b"?alias=" + part,
            PATH + b"?version=1&version=2&version=" + rng.choice(NUMBERS),
            PATH + b"?" + part + b"&" * rng.choice((0, 5, 3_000)) + b"=1",
        )
    )
    method = rng.choice((b"GET", b"POST"))
    return Raw(sent.request(path, method=method), method=method.decode())


def methods(sent: Sent) -> Raw:
    rng = sent.rng
    method = rng.choice(
        (
            *(b"HEAD", b"OPTIONS", b"PUT", b"PATCH", b"DELETE", b"TRACE", b"PROPFIND", b"QUERY"),
            *(b"PURGE", b"LOCK", b"SEARCH", b"M-SEARCH", b"SUBSCRIBE", b"PRI"),
        )
    )
    path = rng.choice((PATH, b"/", b"/docs", b"/metrics", b"/healthz", b"/v1/acme/models", b"*"))
    return Raw(sent.request(path, method=method), method=method.decode())


def old_versions(sent: Sent) -> Raw:
    rng = sent.rng
    keep = rng.choice((b"", b"Connection: keep-alive\r\n"))
    old = sent.request(headers=keep, version=b"HTTP/1.0", last=not keep)
    return Raw(
        rng.choice((old, b"GET /healthz\r\n\r\n", b"GET /healthz HTTP/1.0\r\n\r\n")), ends="waits"
    )


def upgrades(sent: Sent) -> Raw:
    rng = sent.rng
    lines = (
        b"Upgrade: " + rng.choice((b"websocket", b"h2c", sent.odd())) + b"\r\n",
        b"Connection: Upgrade\r\n",
        b"Sec-WebSocket-Version: " + rng.choice((b"13", b"8", *NUMBERS)) + b"\r\n",
        b"Sec-WebSocket-Key: " + rng.choice((b"dGhlIHNhbXBsZSBub25jZQ==", sent.odd())) + b"\r\n",
    )
    chosen = b"".join(line for line in lines if rng.random() < 0.8)
    request = sent.request(rng.choice((PATH, b"/")), chosen, b"", method=b"GET", last=False)
    return Raw(request + rng.randbytes(rng.choice((0, 50))), method="GET", ends="closes")


def pipelined(sent: Sent) -> Raw:
    rng = sent.rng
    several = [sent.request(last=False) for _ in range(rng.randint(1, 8))]
    several += [sent.request(b"/healthz", body=b"", method=b"GET", last=False)]
    rng.shuffle(several)
    if rng.random() < 0.5:
        return Raw(b"".join(several) + sent.request(), whole=True)
    several.insert(rng.randrange(len(several)), sent.odd(9))
    return Raw(b"".join(several), ends=rng.choice(("waits", "closes", "breaks")))


def mutations(sent: Sent) -> Raw:
    """A right request of which some bytes are others."""
    rng, content = sent.rng, bytearray(sent.request())
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        at = rng.randrange(len(content))
        change = rng.randrange(4)
        if change == 0:
            content[at] = rng.randrange(256)
        elif change == 1:
            del content[at : at + rng.randint(1, 20)]
        elif change == 2:
            content[at:at] = sent.odd()
        else:
            content[at:at] = content[at : at + rng.randint(1, 60)]
        if not content:
            break
    return Raw(bytes(content), ends=rng.choice(("waits", "closes")))


def noise(sent: Sent) -> Raw:
    return Raw(sent.rng.randbytes(sent.rng.choice((1, 10, 1000, 100_000))), ends="closes")


MAKERS: tuple[Callable[[Sent], Raw], ...] = (
    *(
        request_lines,
        headers,
        read_headers,
        unauthorized,
        lengths,
        chunks,
        bodies,
        targets,
        methods,
    ),
    *(old_versions, upgrades, pipelined, mutations, noise),
)


class _Kept(io.BytesIO):
    """Stays open when an answer was read from it."""

    def close(self) -> None:
        pass

    def makefile(self, *_: Any) -> "_Kept":
        return self


def answers(received: bytes, method: str) -> Iterator[tuple[int, dict[str, str], bytes]]:
    """(status, headers by names in lower case, body) of each answer. Raises HTTPException."""
    stream = _Kept(received)
    while stream.tell() < len(received):
        response = HTTPResponse(stream, method=method)  # type: ignore[arg-type]
        response.begin()
        body = response.read()
        yield response.status, {k.lower(): v for k, v in response.getheaders()}, body


def hurried(request: bytes) -> bool:
    """Whether it gives so little time that 504 is the right answer."""
    found = re.search(rb"raytag-timeout: *([0-9.e+-]+)", request.lower())
    try:
        return found is not None and float(found[1]) < 1
    except ValueError:
        return False


def fault(
    status: int, headers: dict[str, str], body: bytes, method: str, request: bytes
) -> str | None:
    """What is wrong with an answer."""
    if status >= 500 and not (status == 504 and hurried(request)):
        return f"status {status}: {body[:200]!r}"
    if status < 400 or body == UNREAD:
        return None
    if headers.get("content-type") != "application/problem+json":
        return f"status {status}, no problem but {headers.get('content-type')}: {body[:200]!r}"
    if method != "HEAD" and not json.loads(body)["request_id"]:
        return f"status {status} without a request id: {body[:200]!r}"
    return None


def exchanged(served: Served, raw: Raw) -> str | None:
    """What went wrong with these bytes."""
    received = bytearray()
    address = ("127.0.0.1", served.settings.port)
    # Whether something is a request is not always known: then the end of the connection, once
    # nothing more can come, is an answer too.
    is_open = raw.ends == "waits" and not raw.whole
    with socket.create_connection(address, 10) as sock:
        sock.settimeout(QUIET if is_open else 20)
        try:
            sock.sendall(raw.content)
            if raw.ends == "breaks":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return None
            if raw.ends == "closes":
                sock.shutdown(socket.SHUT_WR)
            while True:
                try:
                    more = sock.recv(1 << 16)
                except TimeoutError:
                    if not is_open:
                        raise
                    is_open = False
                    sock.settimeout(20)
                    sock.shutdown(socket.SHUT_WR)
                    continue
                if not more:
                    break
                received += more
        except TimeoutError:
            return f"neither answer nor end in 20 s; so far {bytes(received[:200])!r}"
        except (ConnectionError, BrokenPipeError):
            pass  # it was closed on us while we wrote
    if raw.whole and not received:
        return "no answer"
    upgrading = b"upgrade:" in raw.content.lower()
    try:
        for status, headers, body in answers(bytes(received), raw.method):
            if upgrading and status < 500:  # answered by the server's WebSocket side
                continue
            if wrong := fault(status, headers, body, raw.method, raw.content):
                return wrong
    except HTTPException as exc:
        if raw.whole:
            return f"no HTTP: {exc!r} in {bytes(received[:200])!r}"
    return None


@contextmanager
def unharmed(served: Served, cluster: LocalCluster) -> Iterator[None]:
    """Checks that all processes live on, and that requests are answered after what is done."""
    before = replicas(cluster)
    assert {"Engine", "Ingress", "Switchboard"} == set(before.values())
    yield
    assert replicas(cluster) == before, "a process ended"
    answer = httpx.post(
        served.url + PATH.decode(),
        headers={"Authorization": f"Bearer {served.keys['acme']}"},
        json=json.loads(BODY),
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"]["version"] == 1


def send_raw(served: Served, count: int) -> None:
    def one(number: int) -> str | None:
        make = MAKERS[number % len(MAKERS)]
        raw = make(Sent(random.Random(number), served.keys["acme"].encode()))
        if wrong := exchanged(served, raw):
            return f"{make.__name__}, seed {number}: {wrong} to {raw.content[:400]!r}"
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = [said for said in pool.map(one, range(count)) if said]
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *sorted(wrong, key=len)[:20]])


def send_generated(served: Served, count: int) -> None:
    """What schemathesis makes of the OpenAPI document, right and wrong requests in turn.

    Paths are mostly of a tenant that exists; aliases are moved in no domain that does.
    """
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    authorized = {"Authorization": f"Bearer {served.keys['release']}"}
    wrong: list[str] = []
    for mode in schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE:

        @seed(1)
        @settings(
            max_examples=count // 2,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=schema.as_strategy(generation_mode=mode), known=st.booleans())
        def run(case: schemathesis.Case, known: bool) -> None:
            if case.path_parameters:
                moves = "/aliases/" in case.operation.path and case.method != "GET"
                case.path_parameters["tenant"] = "acme"
                if "domain" in case.path_parameters and (known or moves):
                    case.path_parameters["domain"] = "fuzz" if moves else "news"
            try:
                answer = case.call(headers=authorized, timeout=30)
            except (InvalidHeader, InvalidURL):  # cannot be sent by this library
                return
            said = {name.lower(): values[0] for name, values in answer.headers.items()}
            asked = f"Raytag-Timeout: {answer.request.headers.get('Raytag-Timeout')}".encode()
            if found := fault(answer.status_code, said, answer.content, case.method, asked):
                wrong.append(f"{found} to {case.as_curl_command()[:600]}")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *sorted(wrong, key=len)[:20]])


HOSTILE = (
    *(b"", b" ", b"{", b"}", b"null", b"1", b'"x"', b"[]", b"[1]", b"\xff\xfe", b"\x00", b"NaN"),
    *(b'{"version": 1', b'{"version": 1}}', b'"version"', b'{"version"}', b'{"version": 01}'),
    *(b"[" * 200_000, b'{"version": ' * 200_000, b'{"version": ' + b"[" * 200_000),
    b'{"version": 1, "share": 0.1, "' + b"k" * 1_000_000 + b'": 1}',
    b'{"version": 1, "share": 0.1, "\\ud800": 1}',
    b"{" + b",".join(b'"%d": 1' % number for number in range(200_000)) + b"}",
    *(b'{"version": ' + wrong + b', "share": 0.1}' for wrong in (b'"1"', b"1.5", b"true", b"null")),
    *(b'{"version": ' + wrong + b', "share": 0.1}' for wrong in (b"0", b"-1", b"1e400", b"NaN")),
    *(b'{"version": ' + b"9" * digits + b', "share": 0.1}' for digits in (10, 30, 5000)),
    *(b'{"version": [1], "share": 0.1}', b'{"version": {}, "share": 0.1}', b'{"share": 0.1}'),
)
"""What no promotion and no canary can be."""
NO_VALUES = (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1", b"9" * 5000, b"[]", b'"\xc3"', b"")
FIELDS = {
    b"": (b"wait_seconds",),
    b"/canary": (b"share", b"max_error_rate", b"max_latency_ratio", b"min_agreement", b"shadow"),
}
"""Of a promotion and of a canary, beside the version."""


@pytest.mark.parametrize("route", FIELDS)
def test_hostile_bodies_of_moves_are_told_so(served: Served, route: bytes) -> None:
    path = b"/v1/acme/nothing/aliases/production" + route  # what is well said gets 409 there
    wrong = [
        b'{"version": 2, "share": 0.1, "%s": %s}' % (name, value)
        for name in FIELDS[route]
        for value in NO_VALUES
    ]
    sent = Sent(random.Random(0), served.keys["release"].encode())
    for body in (*HOSTILE, *wrong):
        if not route:
            body = body.replace(b', "share": 0.1', b"")
        with socket.create_connection(("127.0.0.1", served.settings.port), 30) as sock:
            sock.sendall(sent.request(path, body=body))
            (answer,) = answers(sock.makefile("rb").read(), "POST")
        status, _, content = answer
        assert status in (400, 422), (status, content[:200], body[:200])
        assert len(content) < 1000
        assert fault(*answer, "POST", b"") is None


@pytest.mark.parametrize(
    "line",
    [
        b"X-Request-Id: \xff",
        b"X-Request-Timeout-Seconds: \xff",
        b"X-Request-Timeout-Seconds: 0.0001",
        b"X-Request-Disconnect-Disabled: \xff",
        b"X-Session-Id: \xff",
        b"serve_multiplexed_model_id: \xff",
        b"Serve-Multiplexed-Model-Id: other",
    ],
)
def test_headers_that_steer_ray_serve_elsewhere_do_nothing(served: Served, line: bytes) -> None:
    sent = Sent(random.Random(0), served.keys["acme"].encode())
    with socket.create_connection(("127.0.0.1", served.settings.port), 10) as sock:
        sock.sendall(sent.request(headers=line + b"\r\n"))
        assert sock.makefile("rb").readline().split()[1] == b"200"


def test_three_hundred_malformed_requests_do_no_harm(served: Served, cluster: LocalCluster) -> None:
    with unharmed(served, cluster):
        send_raw(served, 220)
        send_generated(served, 80)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_malformed_requests_do_no_harm(served: Served, cluster: LocalCluster) -> None:
    with unharmed(served, cluster):
        send_raw(served, 5000)
        send_generated(served, 5000)
