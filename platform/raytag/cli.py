"""Settings from YAML and flags, errors as one line, and the exit status: what every job shares.

0    done
1    a bug, with its traceback
2    a mistake of the user's, said in one line
130  stopped with Ctrl-C
"""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from raytag.errors import RaytagError, SettingsError

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], arguments: Sequence[str], program: str) -> Settings:
    """Settings from ``--config FILE.yaml`` with flags over it; ``--a-flag`` equals ``--a_flag``.

    Raises SettingsError for an unknown key, a value of the wrong type, or a contradiction.
    """
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=program, description=kind.__doc__, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_class_arguments(kind, as_group=False)
    try:
        parsed = parser.parse_args([_underscored(argument) for argument in arguments])
        del parsed["config"]
        return kind(**parsed.as_dict())
    except jsonargparse.ArgumentError as exc:
        raise SettingsError(f"{_first_line(exc)} (--help lists the settings)") from exc


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """``main``'s exit status, with the user's mistakes as one line on stderr."""
    # It warns of a missing optional kernel whenever peft imports it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except RaytagError as exc:
        print(f"error: {' '.join(str(exc).split())}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _first_line(exc: Exception) -> str:
    lines = [line.strip(" -") for line in str(exc).splitlines() if line.strip()]
    return " ".join(lines[:3])
