"""CoNLL files: a token per line, its tag in the last column, a blank line between sentences.

Any number of columns, parted by tabs or else by spaces. ``-DOCSTART-`` begins a document;
without it every sentence is its own. Comment lines (``# id ...``) before a sentence are passed
over.
"""

from collections.abc import Iterator

from raytag.text.formats.intake import BadRowError, Intake
from raytag.text.formats.lines import Line, lines
from raytag.text.labels import is_tag

_DOCUMENT = "-DOCSTART-"


def looks_like(line: str) -> bool:
    """Whether a line could be a token and its tag."""
    columns = _columns(line)
    return len(columns) > 1 and (is_tag(columns[-1]) or columns[0] == _DOCUMENT)


def read(data: bytes, file: str, stem: str, intake: Intake) -> None:
    """Hands every sentence to the intake; a bad line spoils its whole sentence."""
    document = 0
    for block in _blocks(lines(data, file)):
        if _columns(block[0].text)[:1] == [_DOCUMENT]:
            document += 1
            block = block[1:]
        while block and _is_comment(block[0].text):
            intake.counts["comment lines passed over"] += 1
            block = block[1:]
        if not block:
            continue
        where = block[0].number
        try:
            tokens: list[str] = []
            tags: list[str] = []
            for line in block:
                where = line.number
                token, tag = _token_and_tag(line)
                if token:
                    tokens.append(token)
                    tags.append(tag)
                elif tag == "O":
                    intake.counts["rows without a token, tagged O, passed over"] += 1
                else:
                    raise BadRowError(f"no token before the tag {tag}; give the row its token")
            if tokens:
                group = f"{stem}#{document}" if document else ""
                intake.add_tokens(f"{stem}:{block[0].number}", tokens, tags, group)
            else:
                intake.counts["sentences without a token passed over"] += 1
        except BadRowError as bad:
            intake.reject(file, where, str(bad), "\n".join(line.text for line in block))


def _blocks(rows: Iterator[Line]) -> Iterator[list[Line]]:
    """Lines between blank ones; a document's first line is always first of its block."""
    block: list[Line] = []
    for line in rows:
        starts = _columns(line.text)[:1] == [_DOCUMENT]
        if block and (starts or _is_blank(line)):
            yield block
            block = []
        if not _is_blank(line):
            block.append(line)
    if block:
        yield block


def _is_blank(line: Line) -> bool:
    return not line.text.strip() and not line.trouble


def _columns(line: str) -> list[str]:
    if "\t" in line:
        return line.split("\t")
    return [column for column in line.split(" ") if column]


def _is_comment(line: str) -> bool:
    return line.startswith("# ") and not looks_like(line)


def _token_and_tag(line: Line) -> tuple[str, str]:
    if line.trouble:
        raise BadRowError(line.trouble)
    columns = _columns(line.text)
    if len(columns) < 2:
        raise BadRowError(f"{line.text.strip()!r} has one column; write a token, then its tag")
    tag = columns[-1].strip()
    if not is_tag(tag):
        raise BadRowError(f"{tag!r} is not a tag; write O, or a prefix and a type like B-PER")
    return columns[0].strip(), tag
