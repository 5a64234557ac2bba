"""What moves an alias, and what does not: promotions and trials that meet, models that end."""

import asyncio
import re
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from raytag.errors import StorageError
from raytag.registry.names import Ref
from raytag.registry.registry import Registry
from raytag.serve.canary import Canary
from raytag.serve.front import Away
from raytag.serve.settings import ServeSettings
from raytag.serve.switchboard import Switchboard

ALIAS = Ref("acme", "news", "production")
CANARY = Canary(id="c", version=2, share=1.0)


class Models:
    """Load what they are told to, at once unless it is held."""

    def __init__(self) -> None:
        self.held: dict[str, asyncio.Event] = {}
        self.asked: set[str] = set()
        self.raises: Exception | None = None

    def broadcast(self, method: str, version: str) -> "Loads":
        assert method == "load"
        return Loads(self, version)


class Loads:
    def __init__(self, models: Models, version: str) -> None:
        self.models, self.version = models, version

    async def results_async(self, *, timeout_s: float | None) -> list[None]:
        self.models.asked.add(self.version)
        if self.models.raises:
            raise self.models.raises
        if held := self.models.held.get(self.version):
            await asyncio.wait_for(held.wait(), timeout_s)
        return [None]


class Boards:
    """Switchboards of one registry that has four versions, production at the first."""

    def __init__(self, adapters: Path, folder: Path) -> None:
        self.settings = ServeSettings(base="base", registry=str(folder / "registry"), lease=1)
        self.registry = Registry(self.settings.registry)
        self.models = Models()
        for _ in range(4):
            self.registry.publish(str(adapters / "0"), "acme", "news")
        self.registry.promote("acme/news@1", "production")

    def begin(self) -> Switchboard:
        """One that follows the registry only when it is asked."""
        board = Switchboard(self.settings, self.models)  # type: ignore[arg-type]
        board._watching.cancel()
        return board

    async def trying(self) -> Switchboard:
        """One with a trial of version 2, that would go forward."""
        board = self.begin()
        started = await board.start_canary(ALIAS, CANARY, 0.5)
        assert isinstance(started, dict), started
        return board

    async def forward(self, board: Switchboard) -> None:
        await board._carry_out(ALIAS, CANARY, "forward", "it holds")

    @property
    def version(self) -> int:
        return self.registry.resolve(ALIAS).number


@pytest.fixture
def boards(adapters: Path, tmp_path: Path) -> Boards:
    return Boards(adapters, tmp_path)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def asked(boards: Boards, version: str) -> None:
    while version not in boards.models.asked:
        await asyncio.sleep(0)


def test_a_promotion_that_took_long_does_not_undo_what_was_promoted_meanwhile(
    boards: Boards,
) -> None:
    async def work() -> None:
        held = boards.models.held["acme/news@3"] = asyncio.Event()
        old, new = boards.begin(), boards.begin()
        slow = asyncio.create_task(old.promote(ALIAS, 3, 30.0))
        await asked(boards, "acme/news@3")
        await new.promote(ALIAS, 4, 0.1)
        held.set()
        refused = await slow
        assert isinstance(refused, StorageError)
        assert "was moved to version 4 meanwhile and stays there" in str(refused)
        assert boards.version == 4

    run(work())


def test_a_promotion_that_another_has_done_already_is_done(boards: Boards) -> None:
    async def work() -> None:
        held = boards.models.held["acme/news@3"] = asyncio.Event()
        board = boards.begin()
        twice = [asyncio.create_task(board.promote(ALIAS, 3, 5.0)) for _ in range(2)]
        await asked(boards, "acme/news@3")
        held.set()
        for answer in await asyncio.gather(*twice):
            assert isinstance(answer, dict), answer
        assert boards.version == 3
        assert len(boards.registry.history(ALIAS)) == 2

    run(work())


def test_a_canary_that_holds_takes_the_alias(boards: Boards) -> None:
    async def work() -> None:
        board = await boards.trying()
        await boards.forward(board)
        assert boards.version == 2

    run(work())


def test_a_canary_does_not_undo_a_move_that_was_not_seen_yet(boards: Boards) -> None:
    async def work() -> None:
        board = await boards.trying()
        boards.registry.promote("acme/news@3", "production")
        await boards.forward(board)
        assert boards.version == 3
        # Away and back is a move as well.
        board = await boards.trying()
        for number in (4, 3):
            boards.registry.promote(f"acme/news@{number}", "production")
        await boards.forward(board)
        assert boards.version == 3

    run(work())


def test_a_canary_that_was_stopped_meanwhile_moves_nothing(boards: Boards) -> None:
    async def work() -> None:
        board = await boards.trying()
        await board.stop_canary(ALIAS)
        await boards.forward(board)
        assert boards.version == 1

    run(work())


def test_who_stops_a_canary_that_is_going_forward_is_told_so(boards: Boards) -> None:
    async def work() -> None:
        board = await boards.trying()
        going = asyncio.create_task(boards.forward(board))
        await asyncio.sleep(0)
        stopped = await board.stop_canary(ALIAS)
        await going
        assert isinstance(stopped, dict)
        assert (boards.version, stopped["canary"]["state"]) == (2, "forward")

    run(work())


def test_a_canary_does_not_go_before_a_promotion_that_is_under_way(boards: Boards) -> None:
    async def work() -> None:
        board = await boards.trying()
        held = boards.models.held["acme/news@3"] = asyncio.Event()
        promotion = asyncio.create_task(board.promote(ALIAS, 3, 5.0))
        await asked(boards, "acme/news@3")
        await boards.forward(board)
        assert boards.version == 1
        held.set()
        assert isinstance(await promotion, dict)
        assert boards.version == 3

    run(work())


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (RayActorError(), "a model ended while acme/news@3 was loaded; try again"),
        (ObjectLostError("00" * 28, None, ""), "a model ended"),
        (
            RayTaskError("load", "a traceback", StorageError("s3://served is away")),
            "acme/news@3 cannot be read at the moment; try again: s3://served is away$",
        ),
    ],
)
def test_where_models_end_or_cannot_read_nothing_moves_and_another_try_may_help(
    boards: Boards, raised: Exception, message: str
) -> None:
    async def work() -> None:
        board = boards.begin()
        boards.models.raises = raised
        answer = await board.promote(ALIAS, 3, 5.0)
        assert isinstance(answer, Away)
        assert re.match(message, str(answer))
        assert boards.version == 1

    run(work())


def test_a_load_is_waited_for_as_long_as_was_asked_and_no_longer(boards: Boards) -> None:
    async def work() -> None:
        board = boards.begin()
        boards.models.held["acme/news@3"] = asyncio.Event()
        answer = await board.promote(ALIAS, 3, 0.05)
        assert isinstance(answer, Away)
        assert "not loaded within 0.05 s, and nothing was moved" in str(answer)
        assert boards.version == 1

    run(work())
