"""Tags of tokens and the spans they mean: IOB1, IOB2, BIOES and BILOU, there and back.

Knows sequences of tags, nothing of characters or files. A span is (first token, token after the
last, label). Strict reading is seqeval's strict mode, tag for tag; lenient reading is
conlleval's, which gives every tag that is not O to some entity, and is how gold is read.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from raytag.errors import DataError, SettingsError

TagSpan = tuple[int, int, str]
_Tag = tuple[str, str]

_PREFIXES = {"IOB1": "BIO", "IOB2": "BIO", "BIOES": "BIOES", "BILOU": "BILOU"}
_SYNONYMS = {"BIO": "IOB2", "IOBES": "BIOES", "BILUO": "BILOU", "IO": "IOB1"}
_OUTSIDE: _Tag = ("O", "")


def scheme_named(name: str) -> str:
    """One of IOB1, IOB2, BIOES, BILOU, from its name or a synonym in any case."""
    scheme = _SYNONYMS.get(name.upper(), name.upper())
    if scheme not in _PREFIXES:
        raise SettingsError(
            f"{name!r} is not a tagging scheme; choose from {', '.join([*_PREFIXES, *_SYNONYMS])}"
        )
    return scheme


def parse_tag(tag: str) -> _Tag:
    """(prefix, label): ``B-PER`` is ("B", "PER"), ``O`` is ("O", "")."""
    if tag == "O":
        return _OUTSIDE
    label = tag[2:].strip("-")
    if tag[:1] not in tuple("BIESLU") or tag[1:2] != "-" or not label:
        raise DataError(f"{tag!r} is not a tag; write O, or a prefix and a type like B-PER")
    return tag[0], label


def is_tag(text: str) -> bool:
    try:
        parse_tag(text)
    except DataError:
        return False
    return True


def decode(tags: Sequence[str], scheme: str = "IOB2", *, strict: bool = True) -> list[TagSpan]:
    """The spans that tags mean, in order, disjoint.

    ``strict`` drops what breaks the scheme (an I- that follows nothing, a B- never ended in
    BIOES), as seqeval's strict mode does, and raises DataError for a prefix the scheme lacks.
    Without it the prefixes of all schemes are read alike, as conlleval does.
    """
    if not strict:
        return _lenient([_common(parse_tag(tag)) for tag in tags])
    scheme = scheme_named(scheme)
    parsed = [parse_tag(tag) for tag in tags]
    for tag, (prefix, _) in zip(tags, parsed, strict=True):
        if prefix not in _PREFIXES[scheme]:
            raise DataError(f"{tag!r} is not a tag of {scheme}; name the scheme the tags are in")
    parsed = [_common(tag) for tag in parsed]
    return _strict_iob1(parsed) if scheme == "IOB1" else _strict(parsed, ended=scheme != "IOB2")


def encode(spans: Iterable[TagSpan], length: int, scheme: str = "IOB2") -> list[str]:
    """The tags of ``length`` tokens that mean these spans; overlapping spans are a ValueError."""
    scheme = scheme_named(scheme)
    tags = ["O"] * length
    last_end, last_label = 0, ""
    for start, end, label in sorted(spans):
        if not last_end <= start < end <= length:
            raise ValueError(f"span {start}:{end} overlaps another or leaves the {length} tokens")
        tags[start:end] = [f"I-{label}"] * (end - start)
        if scheme != "IOB1" or (start and last_end == start and last_label == label):
            tags[start] = f"B-{label}"
        if scheme in ("BIOES", "BILOU"):
            tags[end - 1] = f"{'E' if scheme == 'BIOES' else 'L'}-{label}"
            if end - start == 1:
                tags[start] = f"{'S' if scheme == 'BIOES' else 'U'}-{label}"
        last_end, last_label = end, label
    return tags


def detect_scheme(sequences: Iterable[Sequence[str]]) -> str:
    """The scheme that sequences of tags are written in.

    E or S means BIOES, L or U means BILOU. Between IOB1 and IOB2 the way most entities begin
    decides: with I- in IOB1, with B- in IOB2, which is also the answer where no tag says.
    """
    seen: Counter[str] = Counter()
    for tags in sequences:
        before = _OUTSIDE
        for tag in tags:
            prefix, label = parse_tag(tag)
            seen[prefix] += 1
            if prefix in "BI" and before[1] != label:
                seen[f"{prefix} begins"] += 1
            before = prefix, label
    if seen["L"] or seen["U"]:
        return "BILOU"
    if seen["E"] or seen["S"]:
        return "BIOES"
    return "IOB1" if seen["I begins"] > seen["B begins"] else "IOB2"


def irregular(tags: Sequence[str], scheme: str) -> int:
    """How many spans of the lenient reading the strict one does not give."""
    return len(set(decode(tags, strict=False)) - set(decode(tags, scheme)))


def _common(tag: _Tag) -> _Tag:
    """BILOU's letters as those of BIOES."""
    return {"L": "E", "U": "S"}.get(tag[0], tag[0]), tag[1]


def _lenient(tags: Sequence[_Tag]) -> list[TagSpan]:
    spans: list[TagSpan] = []
    start = 0
    before = _OUTSIDE
    for i, (prefix, label) in enumerate([*tags, _OUTSIDE]):
        new = prefix in "BS" or before[0] in "ES" or before[1] != label
        if before != _OUTSIDE and (prefix == "O" or new):
            spans.append((start, i, before[1]))
        if prefix != "O" and (before == _OUTSIDE or new):
            start = i
        before = prefix, label
    return spans


def _strict(tags: Sequence[_Tag], ended: bool) -> list[TagSpan]:
    """IOB2, or with ``ended`` BIOES: B I* E or S, all of one label."""
    spans: list[TagSpan] = []
    i = 0
    while i < len(tags):
        start, (prefix, label) = i, tags[i]
        i += 1
        if prefix not in "BS":
            continue
        while prefix in "BI" and i < len(tags) and tags[i] in (("I", label), ("E", label)):
            prefix = tags[i][0]
            i += 1
        if not ended or prefix in "ES":
            spans.append((start, i, label))
    return spans


def _strict_iob1(tags: Sequence[_Tag]) -> list[TagSpan]:
    """IOB1 as seqeval has it: B- parts neighbours of one label, and means nothing elsewhere."""
    spans: list[TagSpan] = []
    before = _OUTSIDE
    i = 0
    while i < len(tags):
        start, (prefix, label) = i, tags[i]
        i += 1
        parts = prefix == "B" and before[1] == label
        opens = prefix == "I" and before != ("I", label)
        if parts or opens:
            while i < len(tags) and tags[i] == ("I", label):
                i += 1
            alone = tags[i - 1][0] == "B"
            other = i < len(tags) and tags[i][0] == "B" and tags[i][1] != label
            if not (alone and other):
                spans.append((start, i, label))
        before = tags[i - 1]
    return spans
