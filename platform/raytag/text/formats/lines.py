"""The lines of a file as text: compression, byte order marks, line ends and encoding.

Knows bytes and lines, nothing of what they mean.
"""

import gzip
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from raytag.errors import DataError

_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")


class Line(NamedTuple):
    """A line of a file, counted from 1, without its end.

    ``trouble`` says why its bytes are not UTF-8; its text then shows them as U+FFFD.
    """

    number: int
    text: str
    trouble: str = ""


def unpacked(data: bytes, file: str) -> bytes:
    """The bytes of a file, decompressed where they are gzip."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"{file}: its gzip stream is broken ({exc}); fetch it again") from exc


def lines(data: bytes, file: str) -> Iterator[Line]:
    """The lines of a file; only \\n and \\r\\n end a line, whatever Unicode calls a line break."""
    if data.startswith(_OTHER_BOMS):
        raise DataError(f"{file}:1: this is UTF-16; save it as UTF-8")
    rows = data.removeprefix(_BOM).split(b"\n")
    if rows[-1] == b"":
        rows.pop()
    for number, row in enumerate(rows, 1):
        row = row.removesuffix(b"\r")
        try:
            yield Line(number, row.decode())
        except UnicodeDecodeError as exc:
            why = f"byte {row[exc.start]:#04x} at column {exc.start + 1} is not UTF-8"
            yield Line(number, row.decode(errors="replace"), f"{why}; save the file as UTF-8")
