"""The registry from a shell: ``raytag registry VERB …`` in, tables for people or JSON out.

Knows arguments and columns, and leaves the rest to :class:`Registry`.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from raytag.errors import SettingsError
from raytag.registry.names import check_name, split_name
from raytag.registry.records import Move, Version
from raytag.registry.registry import Registry
from raytag.registry.sweep import LEASE
from raytag.report.terminal import visible

ROOT = "registry"
"""Where a registry is if --registry does not say so."""


def main(arguments: Sequence[str], description: str | None) -> int:
    """Do one verb. Raises RaytagError."""
    parser = argparse.ArgumentParser(prog="raytag registry", description=description)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (do, what, add) in VERBS.items():
        verb = verbs.add_parser(name, help=what, description=what)
        add(verb)
        verb.add_argument("--registry", default=ROOT, help="a folder or s3://bucket/prefix")
        verb.add_argument("--json", action="store_true", help="for programs instead of people")
        verb.set_defaults(do=do)
    given = parser.parse_args(arguments)
    given.do(Registry(given.registry), given)
    return 0


def _publish(registry: Registry, given: argparse.Namespace) -> None:
    tenant, domain = split_name(given.name)
    texts = None
    if given.data:
        from raytag.text.formats import read_examples

        texts = [example.text for example in read_examples(given.data).examples]
    version = registry.publish(
        given.folder, tenant, domain, note=given.note, parent=given.parent, training_texts=texts
    )
    _say(given, asdict(version), f"published: {version}\nfiles: {version.uri}")


def _list(registry: Registry, given: argparse.Namespace) -> None:
    if "/" not in given.name:
        tenant = check_name("tenant", given.name)
        found = registry.domains(tenant)
        rows = [(d.domain, d.latest or "", _pointers(d.aliases)) for d in found]
        table = _table(("domain", "latest", "aliases"), rows)
        _say(given, [asdict(domain) for domain in found], table or f"{tenant} has no domains")
        return
    tenant, domain = split_name(given.name)
    listed = registry.versions(tenant, domain, given.limit or None)
    table = _table(
        ("version", "published", "F1", "points to it", "tags", "note"),
        [
            (
                one.version.number,
                one.version.created_at,
                "deleted" if one.deleted else _figure(one.version.f1),
                ", ".join(one.aliases),
                ", ".join(one.tags),
                one.version.note,
            )
            for one in listed
        ],
    )
    _say(given, [asdict(one) for one in listed], table or f"{given.name} has no versions")


def _show(registry: Registry, given: argparse.Namespace) -> None:
    version = registry.resolve(given.ref)
    rows = [
        ("version", version),
        ("published", version.created_at),
        ("head", version.head),
        ("labels", ", ".join(version.labels)),
        ("base", f"{version.base} {version.revision or ''}".rstrip()),
        ("base fingerprint", version.base_fingerprint),
        ("data fingerprint", version.data.get("fingerprint", "")),
        ("data", _counts(version)),
        ("parent", version.parent or ""),
        ("code", version.code_version),
        ("note", version.note),
        ("files", version.uri),
        *((f"  {name}", f"{file.size:,} bytes") for name, file in version.files.items()),
        *((f"F1 {label}", _figure(f1)) for label, f1 in version.f1_per_type.items()),
        ("F1 all types", _figure(version.f1)),
    ]
    _say(given, asdict(version), _table((), rows))


def _compare(registry: Registry, given: argparse.Namespace) -> None:
    found = registry.compare(given.first, given.second)
    names = (str(found.first), str(found.second))
    scores = [
        (label, _figure(a), _figure(b), "" if a is None or b is None else f"{b - a:+.4f}")
        for label, (a, b) in found.f1.items()
    ]
    heads = [f"{one} on {one.scored_on}" for one in (found.first, found.second)]
    text = _table(("F1", *heads, "difference"), scores)
    settings = [(name, json.dumps(a), json.dumps(b)) for name, (a, b) in found.settings.items()]
    text += "\n\n" + (_table(("setting", *names), settings) or "no setting differs")
    _say(given, asdict(found), text)


def _promote(registry: Registry, given: argparse.Namespace) -> None:
    move = registry.promote(
        given.ref,
        given.alias,
        replaces=given.replaces,
        if_better=given.if_better,
        base=given.base,
    )
    text = f"{given.alias} points to version {move.version}"
    if move.merit and move.merit.get("incumbent"):
        merit = move.merit
        text += (
            f"\nF1 {merit['f1']:.4f}, of {merit['incumbent']} {merit['incumbent_f1']:.4f}: "
            f"a difference between {merit['low']:+.4f} and {merit['high']:+.4f} "
            f"on {merit['sentences']:,} sentences"
        )
    elif move.merit:
        text += "\nthere was none before it to compare it with"
    _say(given, asdict(move), text)


def _rollback(registry: Registry, given: argparse.Namespace) -> None:
    move = registry.rollback(given.ref)
    _say(given, asdict(move), f"{given.ref} points to version {move.version} again")


def _history(registry: Registry, given: argparse.Namespace) -> None:
    moves = registry.history(given.ref)
    rows = [
        (m.number, m.at, m.action, m.version or "none", m.replaced or "none", _merit(m))
        for m in moves
    ]
    table = _table(("move", "at", "action", "to", "from", "merit"), rows)
    _say(given, [asdict(move) for move in moves], table or f"{given.ref} was never moved")


def _tag(registry: Registry, given: argparse.Namespace) -> None:
    version = registry.tag(given.ref, given.word)
    _say(given, {"version": str(version), "tag": given.word}, f"{version} is tagged {given.word}")


def _delete(registry: Registry, given: argparse.Namespace) -> None:
    version = registry.delete(given.ref)
    _say(given, {"deleted": str(version)}, f"deleted: {version}; gc removes its files")


def _verify(registry: Registry, given: argparse.Namespace) -> None:
    version = registry.verify(given.ref)
    total = sum(file.size for file in version.files.values())
    text = f"{version}: {len(version.files)} files, {total:,} bytes, all as published"
    _say(given, {"version": str(version), "files": len(version.files), "bytes": total}, text)


def _gc(registry: Registry, given: argparse.Namespace) -> None:
    tenant, _, domain = given.name.partition("/")
    if given.lease_hours < 0:
        raise SettingsError(f"--lease-hours must not be negative, not {given.lease_hours:g}")
    swept = registry.gc(
        tenant, domain if "/" in given.name else None, lease=given.lease_hours * 3600
    )
    rows = [(one.reason, one.files, f"{one.bytes:,}", one.uri) for one in swept]
    table = _table(("reason", "files", "bytes", "removed"), rows)
    _say(given, [asdict(one) for one in swept], table or "nothing to remove")


def _say(given: argparse.Namespace, content: Any, text: str) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False) if given.json else text)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under their heads, two spaces apart; nothing where there are no rows."""
    cells = [[visible(str(value)) for value in row] for row in rows]
    if not cells:
        return ""
    lines = [list(heads), *cells] if heads else cells
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _figure(f1: float | None) -> str:
    return "" if f1 is None else f"{f1:.4f}"


def _pointers(aliases: Any) -> str:
    return ", ".join(f"{alias} = {number}" for alias, number in aliases.items())


def _counts(version: Version) -> str:
    counts = version.data.get("counts", {})
    return ", ".join(f"{name} {count.get('examples', '?')}" for name, count in counts.items())


def _merit(move: Move) -> str:
    if not move.merit:
        return ""
    if not move.merit.get("incumbent"):
        return "none before it"
    return f"{move.merit['low']:+.4f} to {move.merit['high']:+.4f}"


def _takes(*arguments: tuple[str, dict[str, Any]]) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        for name, options in arguments:
            parser.add_argument(name, **options)

    return add


_NAME = ("name", {"metavar": "TENANT/DOMAIN"})
_REF = ("ref", {"metavar": "REF", "help": "tenant/domain@3 or tenant/domain@alias"})
_ALIAS = ("ref", {"metavar": "TENANT/DOMAIN@ALIAS"})
_SCOPE = ("name", {"metavar": "TENANT[/DOMAIN]"})

VERBS: dict[str, tuple[Callable[..., None], str, Callable[[argparse.ArgumentParser], None]]] = {
    "publish": (
        _publish,
        "make an adapter's folder the next version of a domain",
        _takes(
            ("folder", {"help": "of the adapter, local or s3://"}),
            _NAME,
            ("--note", {"default": "", "help": "a line about it"}),
            ("--parent", {"metavar": "REF", "help": "the version it was trained from"}),
            ("--data", {"help": "its training data, RUN/data/train.jsonl, for --if-better"}),
        ),
    ),
    "list": (
        _list,
        "the domains of a tenant, or the versions of a domain",
        _takes(
            _SCOPE,
            ("--limit", {"type": int, "default": 20, "help": "most versions; 0 for all"}),
        ),
    ),
    "show": (_show, "what a version is, and what it came from", _takes(_REF)),
    "compare": (
        _compare,
        "two versions: F1 per type side by side, settings that differ",
        _takes(("first", {"metavar": "REF"}), ("second", {"metavar": "REF"})),
    ),
    "promote": (
        _promote,
        "point an alias to a version",
        _takes(
            _REF,
            ("alias", {"help": "such as production"}),
            ("--replaces", {"type": int, "help": "only if it points to this version, 0: none"}),
            ("--if-better", {"metavar": "FILE", "help": "only if no worse on held-out examples"}),
            ("--base", {"help": "where the base is, if elsewhere than the cards say"}),
        ),
    ),
    "rollback": (
        _rollback,
        "point an alias back to what its last promotion replaced",
        _takes(_ALIAS),
    ),
    "history": (_history, "all moves of an alias, the latest first", _takes(_ALIAS)),
    "tag": (_tag, "attach a word to a version", _takes(_REF, ("word", {}))),
    "delete": (_delete, "delete a version that no alias points to", _takes(_REF)),
    "verify": (_verify, "read a version's files and check them", _takes(_REF)),
    "gc": (
        _gc,
        "remove uploads left half and the files of deleted versions",
        _takes(
            _SCOPE,
            (
                "--lease-hours",
                {"type": float, "default": LEASE / 3600, "help": "what is younger stays"},
            ),
        ),
    ),
}
