r"""The instruction a causal model is given, and its answer: `` [ORG: Apple] [LOC: Seoul]``.

Knows strings and offsets, nothing of tokens or models. The answer's grammar, to the character:

    answer  = entity*                       a sentence without entities: the empty string
    entity  = " [" label ": " span "]"      so that prompt + answer reads as in the recipe
    label   = one of the label set, escaped
    span    = a stretch of the text from the start of a word to the end of a word, escaped
    escaped = every one of ``[ ] : \`` behind a backslash; all else, newlines too, as it is

Entities stand in the order of the text. Each span means the first stretch of whole words that
reads like it at or after the **end** of the previous entity. (After its start would do as well
for the offsets, but flat gold never overlaps, and looking from the end says more of it.) So an
answer has one reading only, and some gold cannot be said:

    overlap    it overlaps a longer entity, which is kept (``spans.without_overlaps``)
    cut        it begins or ends inside a word
    shadowed   the same string stands earlier, after the previous entity, and is not an entity

Such gold is left out of the training answer and counted, never written where it would be read
as something else. Going from left to right and writing whatever can be written loses the fewest
shadowed entities: each one written moves the point from which the next is looked for, and a
later point shadows less.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raytag.errors import DataError, SettingsError
from raytag.text.spans import Entity, Example, without_overlaps
from raytag.text.words import words

INSTRUCTION = (
    "Extract named entities from the sentence below. Format: [TYPE: entity]\n"
    "Sentence: {text}\n"
    "Answer:"
)
"""The recipe's own words (design.md, Defaults). A template needs ``{text}`` once."""

Lost = Literal["overlap", "cut", "shadowed"]
"""Why the answer cannot say an entity of the gold; what each means stands at the top."""

_ESCAPED = str.maketrans({char: "\\" + char for char in "[]:\\"})
_ENTITY = re.compile(
    r" ?\[(?P<label>(?:[^\[\]:\\]|\\[\[\]:\\])+): (?P<span>(?:[^\[\]:\\]|\\[\[\]:\\])+)\]"
)


def escape(text: str) -> str:
    """``text`` as it stands inside an answer: brackets, colons and backslashes escaped."""
    return text.translate(_ESCAPED)


def unescape(text: str) -> str:
    """What ``escape`` was given."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def ask(text: str, template: str = INSTRUCTION, labels: Sequence[str] = ()) -> str:
    """The prompt for one text: what stands before the answer.

    ``{text}`` in the template becomes the text, ``{labels}``, if it is there, the labels with
    commas between. Raises SettingsError for a template without exactly one ``{text}``.
    """
    if template.count("{text}") != 1:
        raise SettingsError(
            f"an instruction needs {{text}} exactly once, found {template.count('{text}')} in: "
            f"{template!r}"
        )
    # Split, not replaced one after the other: a text may well contain "{labels}" itself.
    before, after = (half.replace("{labels}", ", ".join(labels)) for half in _halves(template))
    return before + text + after


def _halves(template: str) -> tuple[str, str]:
    before, _, after = template.partition("{text}")
    return before, after


class Places:
    """Where the entities of one text may begin and end: its words, looked up by character."""

    def __init__(self, text: str) -> None:
        self.text = text
        ranges = words(text)
        self.starts: list[int] = [start for start, _ in ranges]
        self.ends: frozenset[int] = frozenset(end for _, end in ranges)
        self._starts = frozenset(self.starts)

    def aligned(self, start: int, end: int) -> bool:
        """Whether a range begins where a word begins and ends where a word ends."""
        return start in self._starts and end in self.ends

    def find(self, span: str, at: int) -> int | None:
        """The first start at or after ``at`` of whole words reading ``span``; None for none."""
        start = self.text.find(span, at)
        while start >= 0:
            if self.aligned(start, start + len(span)):
                return start
            start = self.text.find(span, start + 1)
        return None


def write_answer(example: Example) -> tuple[str, Counter[Lost]]:
    """The answer that names an example's gold, and how much of the gold it cannot say."""
    said, lost = sayable(example)
    spans = ((escape(e.label), escape(example.text[e.start : e.end])) for e in said)
    return "".join(f" [{label}: {span}]" for label, span in spans), lost


def sayable(example: Example) -> tuple[list[Entity], Counter[Lost]]:
    """The gold an answer can name, in order, and the rest counted by reason."""
    places = Places(example.text)
    lost: Counter[Lost] = Counter()
    whole = [e for e in example.entities if places.aligned(e.start, e.end)]
    lost["cut"] = len(example.entities) - len(whole)
    flat, overlapping = without_overlaps(whole)
    lost["overlap"] = len(overlapping)
    said: list[Entity] = []
    for entity in flat:
        at = said[-1].end if said else 0
        if places.find(example.text[entity.start : entity.end], at) == entity.start:
            said.append(entity)
        else:
            lost["shadowed"] += 1
    return said, +lost


def read_answer(answer: str, text: str, labels: Collection[str]) -> list[Entity]:
    """The entities an answer names in ``text``, in order, without scores.

    The first entity's leading space may be missing. Raises DataError for an answer that does
    not follow the grammar, names a label outside ``labels``, or a span that is not in the text
    where it would have to be.
    """
    places = Places(text)
    entities: list[Entity] = []
    at = 0
    for label, span in _parsed(answer):
        if label not in labels:
            raise DataError(f"the answer names a label that was not asked for: {label!r}")
        start = places.find(span, at)
        if start is None:
            raise DataError(f"the answer names what the text does not say there: {span!r}")
        at = start + len(span)
        entities.append(Entity(start, at, label))
    return entities


def _parsed(answer: str) -> Iterator[tuple[str, str]]:
    """(label, span) of each entity of an answer. DataError where it leaves the grammar."""
    at = 0
    while at < len(answer):
        match = _ENTITY.match(answer, at)
        if match is None or (at > 0 and answer[at] != " "):
            raise DataError(f"an answer is [LABEL: span] [LABEL: span], not {answer[at:]!r}")
        yield unescape(match["label"]), unescape(match["span"])
        at = match.end()


@dataclass(frozen=True, slots=True)
class Ceiling:
    """How much of a data set's gold the answer format can say at all."""

    entities: int
    lost: Mapping[Lost, int]
    """Entities that cannot be said, by reason; reasons that did not occur are absent."""

    @property
    def expressible(self) -> int:
        return self.entities - sum(self.lost.values())

    @property
    def recall(self) -> float:
        """The best recall any model can reach with this format; 1 where there is no gold."""
        return self.expressible / self.entities if self.entities else 1.0


def ceiling(examples: Iterable[Example]) -> Ceiling:
    """What the answer format can say of the gold of ``examples``, counted."""
    total = 0
    lost: Counter[Lost] = Counter()
    for example in examples:
        total += len(example.entities)
        lost += sayable(example)[1]
    return Ceiling(total, dict(lost))
