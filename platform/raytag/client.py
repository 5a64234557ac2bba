"""A client of a running Raytag service: texts in, entities out, over HTTP.

Knows the service's addresses, answers and errors, and when asking again helps; nothing of models.
When to send and how long to pause is said by a generator, which knows neither sockets nor a clock.
:class:`AsyncClient` carries it out, and :class:`Client` does the same on an event loop in a thread
beside: a thread that itself waits for bytes, for a name or for a connection cannot be called back
when the time is over.
"""

import asyncio
import concurrent.futures
import ipaddress
import json
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import inf
from typing import Any, Self, TypeVar

import httpx

from raytag import __version__
from raytag.errors import DataError, RaytagError, SettingsError
from raytag.registry.names import LAST_NUMBER, check_name, check_word
from raytag.spare import Spare
from raytag.text.spans import Entity

TEXTS_A_REQUEST = 100
CHARACTERS_A_REQUEST = 100_000
"""A longer list of texts goes as several requests; a longer text goes alone."""
REQUESTS_AT_ONCE = 4
"""How many of these a call of :class:`AsyncClient` has in flight."""
CONNECTIONS = 100
"""Most that a client has open, all kept for the next request; a try beside another has its own."""
RETRIED = frozenset({429, 502, 503})
"""Statuses after which the same request may well be answered. No other is asked again, 504 neither:
the time that the service was given was all there is, and it has done the work once."""
CONNECT_SECONDS = 2.0
"""A host that is there has taken a connection by then, a first packet lost included."""
SILENT_SECONDS = 3
"""A connection whose host acknowledges nothing for so long is broken: where the system can tell,
which is Linux for all of them, and others for a host that had taken the request."""
LONGEST_BACKOFF = 2.0
"""Seconds."""
ASKED_TWICE, ASKED_TWICE_AT_ONCE = 0.1, 10
"""Of all requests, those that may be sent a second time beside the first, and how many in a row:
enough for a host that is gone, and no more than a service that is slow for everybody can bear."""
LONGEST_TIMEOUT = 3600.0
"""Seconds; the service takes no more in a Raytag-Timeout."""
LATE = "no answer in time"

_LEAST = 0.001  # seconds; the header says no less

_KEY = re.compile(r"rt~([^~]+)~[A-Za-z0-9_-]+~[A-Za-z0-9_-]+", re.ASCII)

_LIVELY: list[tuple[int, int, int]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 1),
            ("TCP_KEEPALIVE", 1),  # what macOS calls it
            ("TCP_KEEPINTVL", 1),
            ("TCP_KEEPCNT", SILENT_SECONDS - 1),
            ("TCP_USER_TIMEOUT", SILENT_SECONDS * 1000),  # while a request is not acknowledged
        )
        if hasattr(socket, name)
    ),
]
"""What has the kernel ask each second whether a host is there, for :data:`SILENT_SECONDS`."""

T = TypeVar("T")


class ServiceError(RaytagError):
    """The service did not answer as asked, for all the tries that were made.

    ``status`` is that of the last answer, None where there was none; ``problem`` its problem
    details (RFC 9457), empty where it had none; ``request_id`` names the request in its logs.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = dict(problem or {})
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Request:
    """One request; its id stays the same over all tries."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request and read its answer, in at most so many seconds.

    A connection, where there is none, is to be had in ``connect`` seconds, and so is its TLS.
    After ``alone`` seconds without an outcome what is next is to be said while it goes on.
    """

    request: Request
    seconds: float
    connect: float
    alone: float
    anew: bool
    """On a connection of its own: those at hand may lead to where another try got stuck."""

    @property
    def arguments(self) -> dict[str, Any]:
        """As httpx names them."""
        seconds = min(self.seconds, LONGEST_TIMEOUT)
        return {
            "method": self.request.method,
            "url": self.request.path,
            "params": self.request.query,
            "content": self.request.content,
            "headers": {
                "Content-Type": "application/json",
                "Raytag-Timeout": f"{seconds:.3f}",
                "X-Request-Id": self.request.id,
            },
            "timeout": httpx.Timeout(None, connect=self.connect),
            "extensions": {"trace": _watch_over},
        }


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so many seconds, unless something under way has its outcome before."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer, or not all of it."""

    reason: str


Steps = Generator[Send | Pause, Reply | Lost | None, Reply]
"""What to do next, answered by the first outcome of all that is under way, or by None where there
is none in time."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long a call is tried."""

    tries: int
    timeout: float
    """Seconds for all of a call: its requests, their tries and the pauses between."""
    backoff: float
    """Seconds the first pause may take; each further one may take twice as long."""

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise SettingsError(f"tries must be at least 1, not {self.tries}")
        if not 0 < self.timeout < inf:
            raise SettingsError(f"timeout must be above 0 seconds, not {self.timeout}")
        if not 0 <= self.backoff < inf:
            raise SettingsError(f"backoff must be at least 0 seconds, not {self.backoff}")

    def ask(
        self,
        request: Request,
        deadline: float,
        spare: Spare,
        clock: Callable[[], float] = time.monotonic,
    ) -> Steps:
        """Try until there is a good answer (2xx) or no use in more. Raises ServiceError.

        Extraction changes nothing at the service, so a request whose answer was lost is asked
        again too. Pauses grow exponentially, with full jitter [1], on top of what a Retry-After
        asks for; one that does not fit into what is left fails at once.

        Each try may take all that is left. None is cut short to leave room for another: a model's
        first byte comes when it is done, so nothing in an answer tells a slow service from a host
        that is gone, and a slow one that is asked anew begins anew. The connection tells. A host
        that takes none within CONNECT_SECONDS is asked again, sooner where less is left: each try
        has its share, and the answer one. A host that is alive acknowledges what it is sent,
        however busy it is; where one falls silent, the connection breaks after SILENT_SECONDS.

        A proxy between acknowledges for hosts that are gone. So a try without an answer after half
        of the time that is left is joined by the next one, beside it, if ``spare`` has one: for
        the service that is another request, by its limits and its figures. While there are two, a
        failure of one that says nothing of the other ends neither, and the next try may take its
        place.

        [1] M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
        """
        spare.asked()
        made = under_way = 0
        not_before = -inf
        while True:
            left = deadline - clock()
            if left < _LEAST:
                raise self._late(request, made)
            made += 1
            under_way += 1
            is_joined = made < self.tries and under_way == 1
            connect = min(CONNECT_SECONDS, left / (self.tries - made + 2))
            alone = left / 2 if is_joined else left
            outcome = yield Send(request, left, connect, alone, anew=under_way > 1)
            if outcome is None and is_joined and spare.take():
                continue
            while True:
                while outcome is None:
                    left = deadline - clock()
                    if left < _LEAST:
                        raise self._late(request, made)
                    outcome = yield Pause(left)
                under_way -= 1
                if isinstance(outcome, Reply) and 200 <= outcome.status < 300:
                    return outcome
                left = deadline - clock()
                if isinstance(outcome, Lost) and left < _LEAST:
                    raise self._late(request, made)
                # What one of two was told holds for the other as well.
                not_before = max(not_before, clock() + _retry_after(outcome))
                least = max(0.0, not_before - clock())
                if made < self.tries and least < left and _may_pass(outcome):
                    longest = min(self.backoff * 2 ** (made - 1), LONGEST_BACKOFF)
                    most = min(longest, (left - least) / 2)
                    outcome = yield Pause(least + random.uniform(0, most))
                    if outcome is None:
                        break
                elif under_way and not _is_about_request(outcome):
                    outcome = None  # the one beside it may still be answered
                else:
                    raise _failure(request, outcome, made)

    def _late(self, request: Request, made: int) -> ServiceError:
        return ServiceError(
            f"{LATE}: {self.timeout:g} seconds are over; give a longer timeout or fewer texts"
            f"{_named(request.id, made)}",
            request_id=request.id,
        )


def _may_pass(outcome: Reply | Lost) -> bool:
    return isinstance(outcome, Lost) or outcome.status in RETRIED


def _is_about_request(outcome: Reply | Lost) -> bool:
    """Whether every try would have it."""
    return isinstance(outcome, Reply) and outcome.status < 500 and outcome.status not in RETRIED


def _retry_after(outcome: Reply | Lost) -> float:
    """Seconds, 0 if nothing is said; the header says them or a date (RFC 9110, 10.2.3)."""
    said = outcome.headers.get("retry-after", "") if isinstance(outcome, Reply) else ""
    try:
        if said.isdecimal():
            return float(said)
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _failure(request: Request, outcome: Reply | Lost, made: int) -> ServiceError:
    if isinstance(outcome, Lost):
        return ServiceError(f"{outcome.reason}{_named(request.id, made)}", request_id=request.id)
    problem = _problem(outcome)
    id = str(problem.get("request_id") or request.id)
    if 300 <= outcome.status < 400:
        said = (
            f"the service sends elsewhere, to {outcome.headers.get('location')!r}; the "
            "key is not sent there: give that service's address as url if it is yours"
        )
    else:
        phrases = {status.value: status.phrase for status in HTTPStatus}
        phrase = phrases.get(outcome.status, "an unknown status")
        said = str(problem.get("detail") or problem.get("title") or phrase)
    return ServiceError(
        f"{said}{_named(id, made, outcome.status)}", outcome.status, problem, request_id=id
    )


def _named(id: str, made: int, status: int | None = None) -> str:
    answered = f"status {status}, " if status else ""
    return f" ({answered}request {id}, {made} {'try' if made == 1 else 'tries'})"


def _problem(reply: Reply) -> dict[str, Any]:
    kind = reply.headers.get("content-type", "").partition(";")[0].strip()
    if kind == "application/problem+json":
        try:
            read = json.loads(reply.content)
        except ValueError:
            return {}
        if isinstance(read, dict):
            return read
    return {}


class _Service:
    """What both clients know of a service, and what their calls do."""

    _at_once: int
    """How many requests of a call are in flight."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        domain: str | None = None,
        tries: int = 3,
        timeout: float = 10.0,
        backoff: float = 0.25,
        insecure: bool = False,
    ) -> None:
        """Raises SettingsError.

        ``domain`` is taken where a call names none. ``timeout`` is in seconds, for the whole of a
        call: all requests of a long list, their tries and the pauses between. A try pauses up to
        ``backoff`` seconds before the next, doubled each time. Plain http to another host than
        this one needs ``insecure``: whoever is on the way can read the key, and use it.
        """
        self.url = _checked_url(url, insecure)
        self.tenant = _tenant_of(key)
        self.domain = None if domain is None else check_name("domain", domain)
        self._patience = Patience(tries, timeout, backoff)
        self._headers = httpx.Headers(  # which shows no key where it is printed
            {"Authorization": f"Bearer {key}", "User-Agent": f"raytag/{__version__}"}
        )
        self._certificates = httpx.create_ssl_context()  # takes 20 ms, each time
        self._http = self._new_http()
        self._spare = Spare(ASKED_TWICE, ASKED_TWICE_AT_ONCE)
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, tenant={self.tenant!r})"

    def _new_http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            verify=self._certificates,
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            follow_redirects=False,  # the key is for this service alone
            # A proxy named in the environment would see the key in a plain http request.
            trust_env=self.url.startswith("https:"),
        )

    def _requests(
        self,
        texts: Iterable[str],
        domain: str | None,
        version: int | None,
        alias: str | None,
    ) -> list[tuple[Request, list[str]]]:
        """A call's requests, each with its texts."""
        domain = self.domain if domain is None else check_name("domain", domain)
        if domain is None:
            raise SettingsError("which domain? name one to the client or to extract")
        query = _which(version, alias)
        path = f"/v1/{self.tenant}/{domain}/entities"
        return [(Request("POST", path, query, content), part) for part, content in _parts(texts)]

    async def _answers(self, requests: Sequence[tuple[Request, list[str]]]) -> list[list[Entity]]:
        deadline = time.monotonic() + self._patience.timeout
        answers: list[list[list[Entity]]] = [[] for _ in requests]
        waiting = iter(enumerate(requests))

        async def work() -> None:
            for i, (request, texts) in waiting:
                answers[i] = await self._extraction(request, texts, deadline)

        tasks = [asyncio.create_task(work()) for _ in range(min(self._at_once, len(requests)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [entities for answer in answers for entities in answer]

    async def _extraction(
        self, request: Request, texts: Sequence[str], deadline: float
    ) -> list[list[Entity]]:
        reply = await self._carry_out(self._patience.ask(request, deadline, self._spare))
        with _understood(request, reply):
            documents = json.loads(reply.content)["documents"]
            return [
                [_entity(said, text) for said in document["entities"]]
                for document, text in zip(documents, texts, strict=True)
            ]

    async def _listing(self) -> list[dict[str, Any]]:
        request = Request("GET", f"/v1/{self.tenant}/models")
        deadline = time.monotonic() + self._patience.timeout
        reply = await self._carry_out(self._patience.ask(request, deadline, self._spare))
        with _understood(request, reply):
            domains = json.loads(reply.content)["domains"]
            if not isinstance(domains, list):
                raise TypeError("domains is no list")
            return domains

    async def _carry_out(self, steps: Steps) -> Reply:
        outcome: Reply | Lost | None = None
        under_way: set[asyncio.Task[Reply | Lost]] = set()
        try:
            while True:
                try:
                    step = steps.send(outcome)
                except StopIteration as done:
                    reply: Reply = done.value
                    return reply
                if isinstance(step, Send):
                    under_way.add(asyncio.create_task(self._send(step)))
                outcome = await _first(
                    under_way, step.alone if isinstance(step, Send) else step.seconds
                )
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _send(self, send: Send) -> Reply | Lost:
        try:
            async with AsyncExitStack() as held, asyncio.timeout(send.seconds):
                http = await held.enter_async_context(self._new_http()) if send.anew else self._http
                response = await http.request(**send.arguments)
            return Reply(response.status_code, response.headers, response.content)
        except TimeoutError:
            return Lost(LATE)
        except httpx.RequestError as exc:
            return Lost(
                f"no answer from {exc.request.url.copy_with(query=None)}: {_reason(exc, send)}; is "
                "the service there, and url its address?"
            )


async def _first(under_way: set[asyncio.Task[T]], seconds: float) -> T | None:
    """The result of one that is done, which leaves the set; None where none is in time."""
    if not under_way:
        await asyncio.sleep(seconds)
        return None
    done, _ = await asyncio.wait(under_way, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if not done:
        return None
    ended = done.pop()
    under_way.remove(ended)
    return ended.result()


class Client(_Service):
    """A tenant's view of a running service. May be shared by threads.

    >>> with raytag.Client("https://ner.example.com", key, domain="news") as client:
    ...     client.extract(["Apple's CEO Tim Cook was in Seoul."])
    [[Entity(start=0, end=5, label='ORG', score=0.98), ...]]

    Certificates are checked against certifi's list, or the file that SSL_CERT_FILE names.
    """

    _at_once = 1

    def extract(
        self,
        texts: Iterable[str],
        *,
        domain: str | None = None,
        version: int | None = None,
        alias: str | None = None,
    ) -> list[list[Entity]]:
        """The entities of each text, in the texts' order; offsets count its characters.

        They come from ``version``, or from the one that ``alias`` points to, production if
        neither is given. A long list goes as several requests, one after the other, so a move of
        the alias meanwhile shows from one of them on. Raises ServiceError where the service does
        not answer in time or refuses, SettingsError and DataError for what cannot be asked.
        """
        requests = self._requests(texts, domain, version, alias)
        return self._wait_for(lambda: self._answers(requests))

    def models(self) -> list[dict[str, Any]]:
        """The tenant's domains, each with its aliases and versions, as the service says them."""
        return self._wait_for(self._listing)

    def close(self) -> None:
        self._wait_for(lambda: self._http.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _wait_for(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = _loop()
        if self._process != os.getpid():  # a fork: the connections are the parent's
            self._http, self._process = self._new_http(), os.getpid()
        future = asyncio.run_coroutine_threadsafe(call(), loop)
        try:
            return future.result()
        finally:
            future.cancel()  # nobody waits for it where this thread was interrupted


class AsyncClient(_Service):
    """As :class:`Client`, for one asyncio event loop; a long list's requests are in flight
    together."""

    _at_once = REQUESTS_AT_ONCE

    async def extract(
        self,
        texts: Iterable[str],
        *,
        domain: str | None = None,
        version: int | None = None,
        alias: str | None = None,
    ) -> list[list[Entity]]:
        """As :meth:`Client.extract`."""
        return await self._answers(self._requests(texts, domain, version, alias))

    async def models(self) -> list[dict[str, Any]]:
        """As :meth:`Client.models`."""
        return await self._listing()

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class _Loop(asyncio.SelectorEventLoop):
    """Looks names up in threads of their own. A look-up cannot be stopped: asyncio's own threads
    are waited for when the process ends, and take no more once its main thread has."""

    async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:
        found: concurrent.futures.Future[Any] = concurrent.futures.Future()
        found.set_running_or_notify_cancel()  # nor can it be said to be

        def look_up() -> None:
            try:
                found.set_result(socket.getaddrinfo(*args, **kwargs))
            except Exception as exc:
                found.set_exception(exc)

        threading.Thread(target=look_up, name="raytag-client-name", daemon=True).start()
        return await asyncio.wrap_future(found)


_loops: dict[int, asyncio.AbstractEventLoop] = {}
_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """What all :class:`Client` of a process wait for; it ends with the process. A process that was
    forked has only the thread that forked it, and so begins another."""
    with _starting:
        process = os.getpid()
        if process not in _loops:
            _loops[process] = _Loop()
            run = _loops[process].run_forever
            threading.Thread(target=run, name="raytag-client", daemon=True).start()
        return _loops[process]


async def _watch_over(event: str, info: Mapping[str, Any]) -> None:
    """Have the kernel ask over each new connection whether its host is still there."""
    if event == "connection.connect_tcp.complete":
        connection = info["return_value"].get_extra_info("socket")
        with suppress(OSError):  # it is broken already, which the next step meets
            for option in _LIVELY:
                connection.setsockopt(*option)


def _reason(exc: BaseException, send: Send) -> str:
    """What is at the bottom of it; what the libraries put on top often says nothing."""
    if isinstance(exc, httpx.ConnectTimeout):
        return f"no connection within {send.connect:.1f} s"
    while deeper := exc.__cause__ or exc.__context__:
        exc = deeper
        if isinstance(exc, BaseExceptionGroup):  # of a name's addresses
            exc = exc.exceptions[0]
    if isinstance(exc, OSError) and type(exc).__module__ == "builtins" and exc.errno:
        return os.strerror(exc.errno)
    return str(exc).rstrip(".") or repr(exc)


def _checked_url(url: str, insecure: bool) -> str:
    try:
        read = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as exc:
        raise SettingsError(f"url is none: {exc}; write https://HOST or http://HOST:PORT") from exc
    if read.scheme not in {"http", "https"} or not read.host:
        raise SettingsError("url must be of the form https://HOST or http://HOST:PORT")
    if read.userinfo or read.query or read.fragment:
        raise SettingsError("url must be no more than scheme, host, port and path")
    if read.scheme == "http" and not insecure and not _is_loopback(read.host):
        raise SettingsError(
            f"plain http to {read.host} lets anyone on the way read the key, and use it; take "
            "https, or insecure=True where the network itself is safe"
        )
    return str(read)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tenant_of(key: str) -> str:
    """Never repeats the key."""
    found = _KEY.fullmatch(key)
    if not found:
        raise SettingsError(
            "this is no key; one looks like rt~TENANT~ID~SECRET and is shown when it is made"
        )
    return check_name("tenant", found[1])


def _which(version: int | None, alias: str | None) -> dict[str, str]:
    if version is not None and alias is not None:
        raise SettingsError("give a version or an alias, not both")
    if version is not None:
        if not 1 <= version <= LAST_NUMBER:
            raise SettingsError(f"{version} is no version number; they count from 1")
        return {"version": str(version)}
    return {} if alias is None else {"alias": check_word("alias", alias)}


def _parts(texts: Iterable[str]) -> Iterator[tuple[list[str], bytes]]:
    """The texts in requests of bounded size, each with its body."""
    if isinstance(texts, str):
        raise DataError("texts is a single text; give a list of texts")
    part: list[str] = []
    characters = 0
    for i, text in enumerate(texts):
        _check_text(i, text)
        characters += len(text)
        if part and (len(part) == TEXTS_A_REQUEST or characters > CHARACTERS_A_REQUEST):
            yield part, _body(part)
            part, characters = [], len(text)
        part.append(text)
    if part:
        yield part, _body(part)


def _check_text(i: int, text: str) -> None:
    if not isinstance(text, str):
        raise DataError(f"texts[{i}] is no text but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise DataError(
            f"texts[{i}] is no valid text: half a surrogate pair at character {exc.start}"
        ) from exc


def _body(texts: Sequence[str]) -> bytes:
    return json.dumps({"texts": texts}, ensure_ascii=False).encode()


def _entity(said: Mapping[str, Any], text: str) -> Entity:
    """An entity of an answer. Raises ValueError, TypeError or KeyError if it cannot be one."""
    start, end, label, score = (said[name] for name in ("start", "end", "label", "score"))
    if type(start) is not int or type(end) is not int or not isinstance(label, str):
        raise TypeError("an entity needs whole offsets and a label")
    entity = Entity(start, end, label, None if score is None else float(score))
    if end > len(text) or text[start:end] != said["text"]:
        raise ValueError(f"the entity at {start}:{end} is not what stands there in its text")
    return entity


@contextmanager
def _understood(request: Request, reply: Reply) -> Iterator[None]:
    """Turns what goes wrong with an answer's content into a ServiceError."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as exc:
        raise ServiceError(
            f"the service answered something else than entities of what was sent: {exc!r}; is it "
            f"Raytag of the same version? (request {request.id})",
            reply.status,
            request_id=request.id,
        ) from exc
