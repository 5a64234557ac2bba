"""How an alias moves: by a record with the next number, which only one writer can create.

The log is the alias: its last record counts, all of them are its history. Each names the record
below it, to which a rollback goes back, so that rollbacks can follow one another.

An alias must not point to a deleted version. Whoever promotes looks for a tombstone after the
move is written, whoever deletes looks at the aliases after the tombstone is (``registry.py``):
of two at once at least one sees the other, and takes back what it did.
"""

from collections.abc import Mapping
from typing import Any

from raytag import storage
from raytag.errors import SettingsError, StorageError
from raytag.registry.layout import Domain, key
from raytag.registry.records import Action, Move, now


def point(
    domain: Domain,
    alias: str,
    last: Move | None,
    number: int,
    merit: Mapping[str, Any] | None = None,
) -> Move:
    """Move an alias to a version; ``last`` is the move that was seen to count.

    Raises StorageError where another has moved it meanwhile, and SettingsError where the version
    was deleted meanwhile: nothing has changed then.
    """
    # What was taken back, and left nothing below it, is nothing to go back to.
    below = last.number if last and last.version else None
    return _moved(domain, alias, last, _next(last, "promote", number, below, merit))


def roll_back(domain: Domain, alias: str) -> Move:
    """Move an alias back to what the move that counts had replaced, passing over what is deleted.

    Raises as :func:`point`, and SettingsError where there is nothing to go back to.
    """
    last = domain.last_move(alias)
    target = domain.move(alias, last.below) if last else None
    while target and (target.version is None or domain.is_deleted(target.version)):
        target = domain.move(alias, target.below)
    if target is None:
        raise SettingsError(f"{domain}@{alias} has nothing to go back to; promote a version")
    return _moved(domain, alias, last, _next(last, "rollback", target.version, target.below))


def _moved(domain: Domain, alias: str, last: Move | None, move: Move) -> Move:
    if not _create(domain, alias, move):
        raise StorageError(
            f"{domain}@{alias} was moved by another meanwhile and nothing was changed; look at its "
            "history, then try again"
        )
    assert move.version
    if domain.is_deleted(move.version):
        before = last.version if last else None
        undo = _next(move, "undo", before, last.below if last else None)
        _create(domain, alias, undo)  # or another has moved it on, and it needs none
        raise SettingsError(
            f"{domain}@{move.version} was deleted meanwhile and {alias} stays where it was; "
            "promote another version"
        )
    return move


def _next(
    last: Move | None,
    action: Action,
    version: int | None,
    below: int | None,
    merit: Mapping[str, Any] | None = None,
) -> Move:
    return Move(
        number=last.number + 1 if last else 1,
        action=action,
        version=version,
        replaced=last.version if last else None,
        below=below,
        at=now(),
        merit=merit,
    )


def _create(domain: Domain, alias: str, move: Move) -> bool:
    return storage.create(domain.uri("aliases", alias, f"{key(move.number)}.json"), move.to_json())
