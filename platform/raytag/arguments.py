"""Settings from YAML and flags: one way for all jobs.

Knows how a dataclass of settings is read, and values that several jobs take; not which jobs there
are.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from raytag.errors import SettingsError

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], arguments: Sequence[str], program: str) -> Settings:
    """Settings from ``--config FILE.yaml`` with flags over it; ``--a-flag`` equals ``--a_flag``.

    Raises SettingsError for an unknown key, a value of the wrong type, or a contradiction.
    """
    return _read(kind, program, [_underscored(argument) for argument in arguments])


def settings_from(kind: type[Settings], content: Mapping[str, Any]) -> Settings:
    """As :func:`read_settings`, from what a YAML file held."""
    return _read(kind, "", dict(content))


def read_range(name: str, said: str, alternative: str = "") -> tuple[int, int]:
    """(fewest, most) of a setting such as ``4`` or ``2:8``, at least 1. Raises SettingsError.

    ``alternative`` is what else the setting may say, for the message.
    """
    found = re.fullmatch(r"(\d+)(?::(\d+))?", said, re.ASCII)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise SettingsError(
            f"{name} must be {alternative}a number or a range such as 2:8, not {said}"
        )
    return low, high


def check_accelerator(accelerator: str | None, device: str) -> None:
    """Raises SettingsError where a kind of GPU is asked for on CPUs."""
    if accelerator is not None and device == "cpu":
        raise SettingsError(
            f"--accelerator {accelerator} is a kind of GPU, and --device cpu takes none; leave one "
            "of them away"
        )


def _read(kind: type[Settings], program: str, given: list[str] | dict[str, Any]) -> Settings:
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=program, description=kind.__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_class_arguments(kind, as_group=False)
    try:
        parsed = parser.parse_object(given) if isinstance(given, dict) else parser.parse_args(given)
        made = parser.instantiate(parsed).as_dict()
        del made["config"]
        return kind(**made)
    except jsonargparse.ArgumentError as exc:
        hint = " (--help lists the settings)" if program else ""
        raise SettingsError(f"{_first_line(exc)}{hint}") from exc


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _first_line(exc: Exception) -> str:
    lines = [line.strip(" -") for line in str(exc).splitlines() if line.strip()]
    return " ".join(lines[:3])
