"""The API keys from a shell: ``raytag keys VERB …`` in, lines for people or JSON out.

Knows arguments and columns, and leaves the rest to :class:`Keys`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from raytag.errors import SettingsError
from raytag.registry.names import check_name
from raytag.report.terminal import visible
from raytag.serve.keys import ANY, Key, Keys, Role

ROOT = "keys"
"""Where the keys are if --keys does not say so."""
_LONGEST = 36_500  # days


def main(arguments: Sequence[str], description: str | None) -> int:
    """Do one verb. Raises RaytagError."""
    parser = argparse.ArgumentParser(prog="raytag keys", description=description)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    create = verbs.add_parser("create", help="make a key and show it, this once")
    create.add_argument("tenant", nargs="?", help="whose it is; none for an operator's")
    create.add_argument("--role", choices=get_args(Role), default="extract")
    create.add_argument("--note", default="", help="a line about it")
    create.add_argument("--days", type=int, help="how long it is valid; for good if not given")
    create.set_defaults(do=_create)

    show = verbs.add_parser("list", help="the keys there are, never their secrets")
    show.add_argument("tenant", nargs="?", help="only this tenant's")
    show.set_defaults(do=_list)

    revoke = verbs.add_parser("revoke", help="refuse a key from now on, for good")
    revoke.add_argument("id", help="as the list shows it")
    revoke.set_defaults(do=_revoke)

    for verb in (create, show, revoke):
        verb.add_argument("--keys", default=ROOT, help="a folder or s3://bucket/prefix")
        verb.add_argument("--json", action="store_true", help="for programs instead of people")
    given = parser.parse_args(arguments)
    given.do(Keys(given.keys), given)
    return 0


def _create(keys: Keys, given: argparse.Namespace) -> None:
    operator = given.role == "operator"
    if given.tenant is None and not operator:
        raise SettingsError("name the tenant whose key it is: raytag keys create TENANT")
    expires_at = None
    if given.days is not None:
        if not 1 <= given.days <= _LONGEST:
            raise SettingsError(f"--days must be from 1 to {_LONGEST}, not {given.days}")
        expires_at = datetime.now(UTC) + timedelta(days=given.days)
    made = keys.create(given.tenant or ANY, given.role, note=given.note, expires_at=expires_at)
    if given.json:
        print(json.dumps({**_facts(made.key), "key": made.text}, indent=2))
        return
    print(made.text)
    whose = "an operator" if operator else made.key.tenant
    print(
        f"key {made.key.id} of {whose}, role {made.key.role}; keep it, it is not shown again",
        file=sys.stderr,
    )


def _list(keys: Keys, given: argparse.Namespace) -> None:
    if given.tenant is not None:
        check_name("tenant", given.tenant)
    folder = keys.list()
    now = datetime.now(UTC).timestamp()
    listed = [
        (key, folder.state(key, now))
        for key in folder.keys.values()
        if given.tenant in (None, key.tenant)
    ]
    if given.json:
        rows = [{**_facts(key), "state": state} for key, state in listed]
        content = {"keys": rows, "problems": dict(folder.problems)}
        print(json.dumps(content, indent=2))
        return
    line = "{:16}  {:7}  {:8}  {:25}  {:25}  {}"
    if listed:
        print(line.format("id", "state", "role", "created", "expires", "tenant, note"))
    for key, state in listed:
        end = f"{key.tenant}  {visible(key.note)}".rstrip()
        print(line.format(key.id, state, key.role, key.created_at, key.expires_at or "never", end))
    if not listed:
        print("there are no keys" if given.tenant is None else f"{given.tenant} has no keys")
    for name, why in folder.problems.items():
        print(f"not taken for a key: {visible(name)}: {visible(why)}", file=sys.stderr)


def _revoke(keys: Keys, given: argparse.Namespace) -> None:
    is_new = keys.revoke(given.id)
    if given.json:
        print(json.dumps({"id": given.id, "revoked": True}, indent=2))
    elif is_new:
        print(f"revoked: {given.id}; servers refuse it once they have read the keys again")
    else:
        print(f"{given.id} was revoked before")


def _facts(key: Key) -> dict[str, Any]:
    facts = asdict(key)
    del facts["sha256"]
    return facts
