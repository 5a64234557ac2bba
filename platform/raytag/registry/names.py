"""Names of tenants, domains, aliases and tags, and references such as ``acme/news@production``.

Knows what a name may be, nothing of storage: every name is judged here before it becomes part of
a path.
"""

import re
from dataclasses import dataclass

from raytag.errors import SettingsError

LAST_NUMBER = 99_999_998
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,7}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ref:
    """A version by its number, or by the alias that points to it."""

    tenant: str
    domain: str
    version: int | str

    def __post_init__(self) -> None:
        check_name("tenant", self.tenant)
        check_name("domain", self.domain)
        if isinstance(self.version, str):
            check_word("alias", self.version)
        elif not 1 <= self.version <= LAST_NUMBER:
            raise SettingsError(f"{self.version} is no version number; they count from 1")

    def __str__(self) -> str:
        return f"{self.tenant}/{self.domain}@{self.version}"

    @classmethod
    def parse(cls, text: "str | Ref") -> "Ref":
        """Raises SettingsError for what is no reference."""
        if isinstance(text, Ref):
            return text
        name, at, version = text.partition("@")
        if not at:
            raise SettingsError(
                f"{_shown(text)} names no version; write tenant/domain@3 or tenant/domain@alias"
            )
        tenant, domain = split_name(name)
        return cls(tenant, domain, int(version) if _NUMBER.fullmatch(version) else version)


def split_name(text: str) -> tuple[str, str]:
    """(tenant, domain) of ``tenant/domain``. Raises SettingsError."""
    tenant, slash, domain = text.partition("/")
    if not slash:
        raise SettingsError(f"{_shown(text)} names no domain; write tenant/domain")
    return check_name("tenant", tenant), check_name("domain", domain)


def check_name(kind: str, name: str) -> str:
    """The name. Raises SettingsError, with ``kind`` in its line, where it is none."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise SettingsError(
            f"{_shown(name)} is no {kind} name; take up to 63 of a-z and 0-9, with . _ - only "
            "inside and never two dots in a row"
        )
    return name


def check_word(kind: str, name: str) -> str:
    """As :func:`check_name`, for names that must not be taken for a version's number."""
    if check_name(kind, name).isdigit():
        raise SettingsError(f"{_shown(name)} is no {kind} name; it needs a letter")
    return name


def _shown(name: str) -> str:
    """So that look-alikes and controls are seen for what they are."""
    return ascii(name if len(name) <= 60 else f"{name[:60]}...")
