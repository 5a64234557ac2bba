"""Pieces of many requests, put together to batches for one model.

Knows how many tokens a piece has, whose it is and how long batches took; not what a piece is, nor
the model. Lives in one event loop; the model runs in one thread of its own.

Tenants take turns by tokens, in the order of start-time fair queueing (Goyal et al. 1996,
SIGCOMM, section 2): each has a tag that grows with the tokens it was given, and the lowest is due.
Within a tenant requests go by arrival, but in rounds: a request larger than a batch has one
batch's worth of pieces in each, and what came meanwhile goes between.
"""

import asyncio
import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from raytag.errors import RaytagError

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")

_AHEAD = 2
"""Batches' worth of pieces, in fair order, among which like lengths are sought: more of them pad
less, and let the unlike wait longer."""
_RATE = 0.3
"""How far an estimate follows the last batch."""


class Overloaded(RaytagError):  # noqa: N818
    """Too much is waiting; ``retry_after`` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"too many texts are waiting here; ask again in {self.retry_after:.1f} s"


class NoTime(Overloaded):
    """A request whose own deadline is too near for what runs and waits; one with more time would
    be taken, so nothing is wrong with the service."""

    def __str__(self) -> str:
        return (
            f"{self.retry_after:.1f} s more than the time given would be needed now; give more, or "
            "ask again"
        )


class Draining(Overloaded):
    """This replica is about to end; another may take the request at once."""

    def __init__(self, retry_after: float = 0.0) -> None:
        super().__init__(retry_after)

    def __str__(self) -> str:
        return "this replica is about to end and takes nothing new; ask again"


class DeadlineExceeded(RaytagError):  # noqa: N818
    """The request's deadline passed before all of it was read."""


@dataclass(frozen=True)
class BatchStats:
    """What one run of the model was given, and how long it took."""

    rows: int
    tokens: int
    padded: int
    """Rows times the longest: what the model reads, padding included."""
    seconds: float
    waits: tuple[float, ...]
    """Seconds from asking until here, of each request whose last pieces went into this batch."""


@dataclass(eq=False)
class _Request(Generic[Piece, Answer]):
    line: "_Line[Piece, Answer]"
    deadline: float | None
    asked_at: float
    unanswered: int
    ended: "asyncio.Future[None]"
    waiting: "dict[_Waiting[Piece, Answer], None]" = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)
    error: Exception | None = None


@dataclass(eq=False)
class _Waiting(Generic[Piece, Answer]):
    request: _Request[Piece, Answer]
    index: int
    piece: Piece
    tokens: int
    round: "_Round[Piece, Answer]"


class _Round(Generic[Piece, Answer]):
    """Waiting pieces in order, and their tokens."""

    def __init__(self) -> None:
        self.pieces: dict[_Waiting[Piece, Answer], None] = {}
        self.tokens = 0


class _Line(Generic[Piece, Answer]):
    """What waits of one tenant. ``tag`` grows with the tokens it was given."""

    def __init__(self) -> None:
        self.tag = 0
        self.tokens = 0
        self.requests: dict[_Request[Piece, Answer], None] = {}
        self._rounds: deque[_Round[Piece, Answer]] = deque()

    def __iter__(self) -> Iterator[_Waiting[Piece, Answer]]:
        return itertools.chain.from_iterable(one.pieces for one in self._rounds)

    def ahead(self, tokens: Sequence[int], quantum: int) -> int:
        """Tokens that would go before the last piece of a request with these, its own left out."""
        last = self._places(tokens, quantum)[-1]
        return sum(one.tokens for one in itertools.islice(self._rounds, last + 1))

    def add(
        self,
        request: _Request[Piece, Answer],
        pieces: Sequence[Piece],
        tokens: Sequence[int],
        quantum: int,
    ) -> None:
        places = self._places(tokens, quantum)
        while len(self._rounds) <= places[-1]:
            self._rounds.append(_Round())
        for index, (piece, size, place) in enumerate(zip(pieces, tokens, places, strict=True)):
            waiting = _Waiting(request, index, piece, size, self._rounds[place])
            waiting.round.pieces[waiting] = request.waiting[waiting] = None
            waiting.round.tokens += size
        self.tokens += sum(tokens)
        self.requests[request] = None

    def remove(self, waiting: _Waiting[Piece, Answer]) -> None:
        del waiting.round.pieces[waiting], waiting.request.waiting[waiting]
        waiting.round.tokens -= waiting.tokens
        self.tokens -= waiting.tokens
        if not waiting.request.waiting:
            del self.requests[waiting.request]
        while self._rounds and not self._rounds[0].pieces:
            self._rounds.popleft()

    def _places(self, tokens: Sequence[int], quantum: int) -> list[int]:
        """The round of each piece. A newcomer begins after the round that is being served, so
        neither it nor the larger ones before it are passed over for ever."""
        first = 1 if self._rounds else 0
        before = itertools.accumulate(tokens[:-1], initial=0)
        return [first + count // quantum for count in before]


class _Speed:
    """Seconds of a batch: a fixed part and one by padded tokens, both learned from each batch by
    normalised least mean squares, which leaves alone what batches of one size don't tell."""

    def __init__(self, batch_tokens: int) -> None:
        # In this unit a small batch speaks for the fixed part and a full one for the other.
        self._unit = batch_tokens / 8
        self._fixed = 0.0
        self._per_unit = 0.0
        self._padding = 1.0
        self._rate = 1.0

    @property
    def overhead(self) -> float:
        """The padded tokens that take as long as the fixed part."""
        return self._fixed * self._unit / self._per_unit if self._per_unit else 0.0

    def learn(self, tokens: int, padded: int, seconds: float) -> None:
        units = padded / self._unit
        step = self._rate * (seconds - self.batch(padded)) / (1 + units * units)
        self._fixed = max(0.0, self._fixed + step)
        self._per_unit = max(0.0, self._per_unit + step * units)
        self._padding += self._rate * (padded / tokens - self._padding)
        self._rate = _RATE

    def batch(self, padded: float) -> float:
        """Expected seconds of one batch."""
        return self._fixed + self._per_unit * padded / self._unit

    def queue(self, tokens: int, room: float) -> float:
        """Expected seconds of as many batches of ``room`` padded tokens as these need."""
        padded = tokens * self._padding
        return self.batch(padded) + self._fixed * max(0.0, padded / room - 1)

    def room(self, seconds: float) -> float:
        """Padded tokens of a batch that takes this long. The tokens get half of it at least:
        where the fixed part is that large, smaller batches would make all slower."""
        if not self._per_unit:
            return math.inf
        return max(seconds - self._fixed, seconds / 2) * self._unit / self._per_unit


class Batcher(Generic[Piece, Answer]):
    """Asks a model in batches that gather while it runs; an idle model starts at once.

    ``run`` takes the pieces of a batch, in a thread of its own, and gives an answer for each, or
    an Exception for one that failed; what it raises is for all of them. A batch's rows times its
    longest piece are at most ``batch_tokens``, and it is expected to take at most
    ``batch_seconds``, but it always holds the piece that is due first. Where something waits, no
    request is taken that is expected to wait longer than ``queue_seconds`` for others, and no
    more than ``most_tokens`` in all.
    ``on_batch`` is called in the event loop after each run.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Piece]], Sequence[Answer | Exception]],
        *,
        batch_tokens: int,
        batch_seconds: float,
        queue_seconds: float,
        most_tokens: int = 1_000_000,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchStats], None] | None = None,
    ) -> None:
        self._run = run
        self._batch_tokens = batch_tokens
        self._batch_seconds = batch_seconds
        self._queue_seconds = queue_seconds
        self._most_tokens = most_tokens
        self._clock = clock
        self._on_batch = on_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._speed = _Speed(batch_tokens)
        self._lines: dict[str, _Line[Piece, Answer]] = {}
        self._tag = 0  # of the piece that was due last: where a newcomer's line begins
        self._waiting_tokens = 0
        self._working: asyncio.Task[None] | None = None
        self._running: tuple[float, float] | None = None
        self._draining = False

    @property
    def waiting_tokens(self) -> int:
        """Of pieces that are in no batch yet."""
        return self._waiting_tokens

    async def ask(
        self,
        pieces: Sequence[Piece],
        tokens: Sequence[int],
        tenant: str,
        deadline: float | None = None,
    ) -> list[Answer]:
        """The answers for all pieces of a request, in their order.

        ``tokens`` are those of each piece, at least 1; ``deadline`` is a time of the clock, which
        is the event loop's own unless another was given. Raises Overloaded, NoTime or Draining at
        once, with nothing queued (Overloaded later too, where others' requests need the place
        that the tenant with the most waiting takes), DeadlineExceeded, or what ``run`` gave or
        raised for a piece. Cancelling it takes out what waits.
        """
        if len(tokens) != len(pieces) or min(tokens, default=1) < 1:
            raise ValueError("each piece needs its number of tokens, at least 1")
        if not pieces:
            return []
        now = self._clock()
        line = self._lines.get(tenant) or _Line[Piece, Answer]()
        self._admit(line, tokens, deadline, now)
        loop = asyncio.get_running_loop()
        request = _Request(line, deadline, now, len(pieces), loop.create_future())
        if not line.tokens:
            line.tag = max(line.tag, self._tag)
        line.add(request, pieces, tokens, self._batch_tokens)
        self._lines[tenant] = line
        self._waiting_tokens += sum(tokens)
        if self._working is None:
            self._working = loop.create_task(self._work())
        try:
            await request.ended
        finally:
            self._end(request)
        if request.error is not None:
            raise request.error
        return [request.answers[index] for index in range(len(pieces))]

    async def drain(self) -> None:
        """Take nothing new and finish what is there. There is no way back."""
        self._draining = True
        if self._working is not None:
            await asyncio.wait([self._working])
        self._thread.shutdown(wait=False)

    def _admit(
        self,
        line: _Line[Piece, Answer],
        tokens: Sequence[int],
        deadline: float | None,
        now: float,
    ) -> None:
        if self._draining:
            raise Draining
        if deadline is not None and deadline <= now:
            raise DeadlineExceeded("the deadline had passed when the request came")
        if not self._waiting_tokens:
            return  # whatever is expected: only a batch can show that it was wrong
        asked, room = sum(tokens), self._room()
        own = line.ahead(tokens, self._batch_tokens) + asked
        others = [one for one in self._lines.values() if one is not line]
        # Until these are read, any other tenant is given as much at most. It takes whole batches.
        before = own + sum(min(one.tokens, own) for one in others)
        before = max(before, min(self._waiting_tokens + asked, int(room)))
        ends = self._running_for(now) + self._speed.queue(before, room)
        late = ends - self._speed.queue(asked, room) - self._queue_seconds
        missing = 0.0 if deadline is None else ends - (deadline - now)
        if late > 0:
            raise Overloaded(max(late, missing))
        if missing > 0:
            raise NoTime(missing)
        self._make_place(line.tokens + asked, asked, [one.tokens for one in others])

    def _make_place(self, own: int, asked: int, others: Sequence[int]) -> None:
        """Keep to ``most_tokens``, at the cost of tenants with more waiting than ``own``."""
        excess = self._waiting_tokens + asked - self._most_tokens
        retry_after = self._speed.queue(max(excess, 0), self._room())
        if excess > sum(max(0, tokens - own) for tokens in others):
            raise Overloaded(retry_after)
        while self._waiting_tokens + asked > self._most_tokens:
            longest = max(self._lines.values(), key=lambda one: one.tokens)
            self._end(next(reversed(longest.requests)), Overloaded(retry_after))

    def _running_for(self, now: float) -> float:
        """Expected seconds until the batch that runs is done: one that is overdue is thought to
        take as much longer again."""
        if self._running is None:
            return 0.0
        started, expected = self._running
        return abs(expected - (now - started))

    def _room(self) -> float:
        return min(self._batch_tokens, self._speed.room(self._batch_seconds))

    async def _work(self) -> None:
        while batch := self._next_batch():
            shares: dict[_Request[Piece, Answer], list[_Waiting[Piece, Answer]]] = {}
            for waiting in batch:
                shares.setdefault(waiting.request, []).append(waiting)
            outcome = await self._run_batch(batch)
            if not isinstance(outcome, Exception):
                self._settle(batch, outcome)
            elif len(shares) == 1:
                self._end(batch[0].request, outcome)
            else:
                await self._run_apart(list(shares.values()))
        self._working = None

    async def _run_apart(self, shares: Sequence[list[_Waiting[Piece, Answer]]]) -> None:
        """One request at a time: whose fault it was is not known."""
        for share in shares:
            if share[0].request.ended.done():
                continue
            outcome = await self._run_batch(share)
            if isinstance(outcome, Exception):
                self._end(share[0].request, outcome)
            else:
                self._settle(share, outcome)

    def _next_batch(self) -> list[_Waiting[Piece, Answer]]:
        """The pieces to run next; none where nothing waits."""
        now = self._clock()
        requests = [request for line in self._lines.values() for request in line.requests]
        for request in requests:
            if request.deadline is not None and request.deadline <= now:
                self._end(request, DeadlineExceeded("the deadline passed while it waited"))
        if not self._waiting_tokens:
            self._lines.clear()
            self._tag = 0
            return []
        room = self._room()
        upcoming = self._upcoming(_AHEAD * room)
        self._tag = upcoming[0].request.line.tag
        batch = _alike(upcoming, room, self._speed.overhead)
        for waiting in batch:
            waiting.request.line.tag += waiting.tokens
            self._remove(waiting)
        self._lines = {
            tenant: line
            for tenant, line in self._lines.items()
            if line.tokens or line.tag > self._tag
        }
        return batch

    def _upcoming(self, tokens: float) -> list[_Waiting[Piece, Answer]]:
        """The pieces that are due next, in fair order, up to that many tokens."""
        found: list[_Waiting[Piece, Answer]] = []
        turns = [
            (line.tag, number, iter(line))
            for number, line in enumerate(self._lines.values())
            if line.tokens
        ]
        heapq.heapify(turns)
        while turns and tokens > 0:
            tag, number, pieces = turns[0]
            waiting = next(pieces, None)
            if waiting is None:
                heapq.heappop(turns)
                continue
            found.append(waiting)
            tokens -= waiting.tokens
            heapq.heapreplace(turns, (tag + waiting.tokens, number, pieces))
        return found

    async def _run_batch(
        self, batch: Sequence[_Waiting[Piece, Answer]]
    ) -> Sequence[Answer | Exception] | Exception:
        tokens = sum(waiting.tokens for waiting in batch)
        padded = len(batch) * max(waiting.tokens for waiting in batch)
        started = self._clock()
        self._running = started, self._speed.batch(padded)
        pieces = [waiting.piece for waiting in batch]
        loop = asyncio.get_running_loop()
        outcome, seconds = await loop.run_in_executor(self._thread, self._timed, pieces)
        self._running = None
        if not isinstance(outcome, Exception):
            self._speed.learn(tokens, padded, seconds)
        if self._on_batch is not None:
            complete = {w.request: None for w in batch if not w.request.waiting}
            waits = tuple(started - request.asked_at for request in complete)
            # By the loop, so that its errors are the loop's to report and end nothing here.
            loop.call_soon(self._on_batch, BatchStats(len(batch), tokens, padded, seconds, waits))
        return outcome

    def _timed(
        self, pieces: Sequence[Piece]
    ) -> tuple[Sequence[Answer | Exception] | Exception, float]:
        """In the thread."""
        started = self._clock()
        outcome: Sequence[Answer | Exception] | Exception
        try:
            outcome = self._run(pieces)
            if len(outcome) != len(pieces):
                raise ValueError(f"{len(outcome)} answers for {len(pieces)} pieces")
        except Exception as exc:
            outcome = exc
        return outcome, self._clock() - started

    def _settle(
        self,
        batch: Sequence[_Waiting[Piece, Answer]],
        answers: Sequence[Answer | Exception],
    ) -> None:
        for waiting, answer in zip(batch, answers, strict=True):
            request = waiting.request
            if isinstance(answer, Exception):
                self._end(request, answer)
                continue
            request.answers[waiting.index] = answer
            request.unanswered -= 1
            if not request.unanswered:
                self._end(request)

    def _end(self, request: _Request[Piece, Answer], error: Exception | None = None) -> None:
        """The first end of a request counts; what waits of it goes."""
        for waiting in list(request.waiting):
            self._remove(waiting)
        if not request.ended.done():
            request.error = error
            request.ended.set_result(None)

    def _remove(self, waiting: _Waiting[Piece, Answer]) -> None:
        waiting.request.line.remove(waiting)
        self._waiting_tokens -= waiting.tokens


def _alike(
    upcoming: Sequence[_Waiting[Piece, Answer]], room: float, overhead: float
) -> list[_Waiting[Piece, Answer]]:
    """The first piece and those that go with it for the least padding, within ``room`` padded
    tokens. A piece that would cost more padding than its own tokens, and than the ``overhead`` of
    a batch, is left for another."""
    due, *others = upcoming
    shorter = deque(sorted((w for w in others if w.tokens < due.tokens), key=lambda w: -w.tokens))
    longer = deque(sorted((w for w in others if w.tokens >= due.tokens), key=lambda w: w.tokens))
    batch, longest = [due], due.tokens
    while shorter or longer:
        below = longest - shorter[0].tokens if shorter else math.inf
        above = len(batch) * (longer[0].tokens - longest) if longer else math.inf
        side, padding = (longer, above) if above <= below else (shorter, below)
        tokens = side[0].tokens
        fits = (len(batch) + 1) * max(longest, tokens) <= room
        if fits and padding <= max(tokens, overhead):
            batch.append(side.popleft())
            longest = max(longest, tokens)
        else:
            side.clear()  # what comes after it costs no less
    return batch
