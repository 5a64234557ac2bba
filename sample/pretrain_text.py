"""The text that the sample base is pretrained on: an endless, seeded supply of small pages.

Knows its own sentences and the many ways people write down what a text names. Knows nothing of
the sample corpora but their lexicon: names come from the pool "pretraining", no core is one of
the corpora's, and the instruction and labels that fine-tuning uses appear nowhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from raytag.text.sample import lexicon, skeletons
from raytag.text.sample.grammar import Sentence, Speaker

CORES = (
    "the {A.noun} {A} {A.verb}",
    "{A}, a/an {A.adj} {A.noun}, {A.verb}",
    "{A}, the {A.noun}, {A.verb}",
    "{who} {A.act} {A}",
    "{who} {A.act} {A}, a/an {A.noun}",
    "{who} {A.act} the {A.noun} {A}",
    "{who} {A.act} {A} and {B.act} {B}",
    "{who} {A.act} {A}, {A2} and {A3}",
    "the {A.part} of {A} had changed",
    "{A}’s {A.part} had changed",
    "{who} knew the {A.part} of {A} and the {B.part} of {B}",
    "{who} noticed {A}’s {A.part} and {B}’s {B.part}",
    "{A} and {A2} {A.verb}",
    "{A} {A.verb} but {A2} did not",
    "{A} {A.verb}, then {B} {B.verb}",
    "{A} {A.verb} because {who} {B.act} {B}",
    "since {A} {A.verb}, {thing} has been forgotten",
    "if {A} was a/an {A.noun}, {B} was a/an {B.noun}",
    "{A} is a/an {A.adj} {A.noun} and {B} is a/an {B.noun}",
    "{A} was once a/an {A.noun}",
    "a/an {A.noun} named {A} {A.verb}",
    "the {A.adj} {A.noun} {A} and the {B.noun} {B} were in the news",
    "{who} spoke about {A} ({A.noun}), {B} ({B.noun}) and {C} ({C.noun})",
    "“{A} {A.verb}”, wrote {who}",
    "“he {A.act} {A}!” said {who}",
    "{who}, who {A.act} {A}, was not there when {B} {B.verb}",
    "whether {A} {A.verb} or not, {who} {B.act} {B}",
    "there was a/an {A.noun}, {A}, whose {A.part} {who} could not forget",
    "the {A.part} – that is, the {A.part} of {A} – was the talk of {day}",
    "{A}: {A.adj}, {A.adj} and more",
    "{A}, {A.adj} as ever, {A.verb}",
    "{who} thinks that {A} is {A.adj}",
    "{who} heard that {A} {A.verb} and that {B} {B.verb}",
    "unlike {A}, a/an {A.noun}, {B} {B.verb}",
    "like {A}, {A2} is a/an {A.adj} {A.noun}",
    "both the {A.noun} {A} and its rival {A2} {A.verb}",
    "{who} wrote the {A.noun} {A} down next to the {B.noun} {B}",
    "a film about {A}’s {A.part} was shown",
    "the {A.noun} was {A}; the {B.noun} was {B}; the {C.noun} was {C}",
    "one {A.noun} is {A}, one {B.noun} is {B}",
    "{A} is known for its {A.part}, {B} for its {B.part}",
    "an article in two parts: {A} and its {A.part}; {B} and its {B.part}",
    "{who} had seen {A}, that {A.noun}, with {B}, that {B.noun}",
    "ask {who} about {A} and you will hear of its {A.part}",
    "“which {A.noun}?” – “{A}, the {A.adj} one”",
    "{who} says the {A.noun} named after {B}, a/an {B.noun}, is {A}",
    "this is about {A} [{A.noun}] and {B} [{B.noun}]",
    "one in {num} {A.act} {A} in {year}",
    "in {year} {who} {A.act} {A}; in {year} {B} {B.verb}",
    "not every {A.noun} is as {A.adj} as {A}",
    "while {who} {A.act} {A}, {B} {B.verb}",
    "{A} is the {A.noun} that {who} {A.act}",
    "what {A} and {A2} share is that each is a/an {A.noun}",
    "the {A.adj} {A} {A.verb}",
    "{who} saw the {A.adj} {A} and the {B.adj} {B}",
    "{A} became {A.adj} before it {A.verb}",
)

EMPTY = (
    "the {A.noun} {A.verb}",
    "{who} {A.act} a/an {A.adj} {A.noun}",
    "{who} liked {thing}",
    "any {A.noun} has a {A.part}",
    "{cap} weather is not {cap} food",
    "an {acr} is not a {acr}",
    "{thing} and {thing} were one and the same",
    "on {day} {who} saw {num} items",
)

# Several names for every kind of thing, singular and plural; none is a label of the corpora.
_KINDS: dict[str, tuple[tuple[str, str], ...]] = {
    "PER": (("person", "people"), ("human", "humans"), ("individual", "individuals")),
    "ORG": (("firm", "firms"), ("company", "companies"), ("organisation", "organisations")),
    "LOC": (("place", "places"), ("spot", "spots"), ("location", "locations")),
    "PRODUCT": (("article", "articles"), ("item", "items"), ("ware", "wares")),
    "DISEASE": (("illness", "illnesses"), ("ailment", "ailments"), ("sickness", "sicknesses")),
    "DRUG": (("medicine", "medicines"), ("remedy", "remedies"), ("medication", "medications")),
    "GENE": (("factor", "factors"), ("hereditary unit", "hereditary units")),
}
_PAIRS = (
    "[{k}: {n}]", "[{k}: {n}]", "({k}: {n})", "{{{k}: {n}}}", "<{k}: {n}>", "{k}: {n}", "({k}) {n}",
    "<{k}> {n}", "{n} = {k}", "{n} ({k})", "{n} is a {k}", "[{n} | {k}]", "{k} = {n}", "{k} – {n}",
    "“{n}” {k}", "[{k}] {n}", "{n}: {k}",
)  # fmt: skip
_BETWEEN = (" ", " ", "; ", ", ", "\n", " / ", " | ")
_ASKS = (
    ("Text:", "Result:"), ("Input:", "Output:"), ("Passage:", "Found:"), ("Read:", "Names:"),
    ("Line:", "Mentions:"), ("", "=>"), ("News:", "List:"), ("Q:", "A:"), ("Quote:", "Tags:"),
)  # fmt: skip
_ORDERS = (
    "", "", "", "List the names in the text with their kinds.\n",
    "Which names occur below, and what are they?\n", "Mark every name. Form: {p}\n",
    "Write down all names, each as {p}\n", "Names and kinds, form: {p}\n",
    "Find what is named in the line below. Form: {p}\n",
)  # fmt: skip
_NOTHING = ("none", "nothing", "-", "", "")


@dataclass
class Page:
    """A text, and which of its characters name a kind, a new name, or a name written again."""

    text: str = ""
    kinds: list[tuple[int, int]] = field(default_factory=list)
    fresh: list[tuple[int, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Plain text."""
        self.text += text

    def kind(self, text: str) -> None:
        """The word for a kind."""
        self.kinds.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def copy(self, text: str) -> None:
        """A name that stands further up."""
        self.copies.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def sentence(self, sentence: Sentence) -> None:
        """A sentence, whose names are new."""
        at = len(self.text)
        self.fresh += [(at + m.start, at + m.end) for m in sentence.mentions]
        self.text += sentence.text


def _soup_words() -> tuple[str, ...]:
    """The small words of the corpora's sentences: known to the base, though not in that order."""
    found: set[str] = set()
    for cores in (*skeletons.CORES.values(), *skeletons.EMPTY.values()):
        for core in cores:
            found.update(re.findall(r"[a-z]+", re.sub(r"\{[^}]*\}|a/an", " ", core)))
    return tuple(sorted(found))


_SOUP = _soup_words()


class Writer:
    """Writes pages, for ever, from a random state; shares of plain practice can be set."""

    def __init__(self, rng: random.Random, copying: float = 0.1, facts: float = 0.08) -> None:
        self.rng = rng
        self.copying = copying
        self.facts_share = facts
        self.speakers = [Speaker(domain, "pretraining", rng) for domain in lexicon.LABELS]

    def causal(self) -> Page:
        """A page to be read from left to right."""
        draw = self.rng.random()
        if draw < self.copying:
            return self.copied()
        if draw < self.copying + self.facts_share:
            return self.facts()
        kind = self.rng.choices(
            (self.pairs, self.groups, self.questions, self.marked, self.plain,
             self.soup, self.glossed, self.column),
            (52, 9, 10, 9, 8, 3, 6, 3),
        )[0]  # fmt: skip
        return kind()

    def two_sided(self) -> Page:
        """A page in which words are hidden and found from both sides."""
        if self.rng.random() < self.facts_share:
            return self.facts()
        kind = self.rng.choices(
            (self.glossed, self.column, self.plain, self.pairs, self.soup),
            (56, 16, 12, 12, 4),
        )[0]
        return kind()

    # What is said.

    def sentence(self, speaker: Speaker) -> Sentence:
        """One sentence, about one in eight without names."""
        rng = self.rng
        draw = rng.random()
        if draw < 0.12:
            return speaker.fill(skeletons.sentence(rng, rng.choice(EMPTY)))
        if draw < 0.17:
            return speaker.fill(self._jumble())
        core = rng.choice(CORES)
        if rng.random() < 0.12:
            second = rng.choice(CORES).translate(str.maketrans("ABC", "DEF"))
            core += rng.choice(("; ", ", and ", " while ", ", but ", " – ")) + second
        return speaker.fill(skeletons.sentence(rng, core))

    def _jumble(self) -> str:
        """Small words in any order, with a name and its cue words somewhere among them."""
        rng = self.rng
        words = rng.choices(_SOUP, k=rng.randint(4, 12))
        for letter in "AB"[: rng.randint(0, 2)]:
            role = rng.choice(("noun", "adj", "verb", "act", "part"))
            cue = f"{{{letter}.{role}}}"
            name = f"{{{letter}}}"
            both = f"{name} {cue}" if role == "verb" else f"{cue} {name}"
            if role == "part":
                both = f"{cue} of {name}" if rng.random() < 0.5 else f"{name}’s {cue}"
            if role in ("noun", "adj") and rng.random() < 0.4:
                both = f"{name}, {cue},"
            words.insert(rng.randint(0, len(words)), both)
        return " ".join(words) + "."

    def _sentences(self, most: int) -> list[Sentence]:
        speaker = self.rng.choice(self.speakers)
        return [self.sentence(speaker) for _ in range(self.rng.randint(1, most))]

    def _naming(self) -> dict[str, tuple[str, str]]:
        """For each type a word for one and for many, kept through the page."""
        rng = self.rng
        style = rng.choice((str, str, str, str.upper, str.capitalize))
        naming = {}
        for label, words in _KINDS.items():
            one, many = words[0] if rng.random() < 0.6 else rng.choice(words)
            naming[label] = (style(one), style(many))
        return naming

    # How it is written down.

    def plain(self) -> Page:
        """Sentences and no more."""
        page = Page()
        for sentence in self._sentences(5):
            page.sentence(sentence)
            page.add(" ")
        return page

    def pairs(self) -> Page:
        """Sentences, each with its names and kinds in order."""
        rng, page, naming = self.rng, Page(), self._naming()
        before, after = rng.choice(_ASKS)
        order, pair, between = rng.choice(_ORDERS), rng.choice(_PAIRS), rng.choice(_BETWEEN)
        nothing = rng.choice(_NOTHING)
        ends = "\n" if rng.random() < 0.6 else "\n\n"
        form = pair.format(k=rng.choice(("kind", "sort", "what")), n="name")
        page.add(order.format(p=form) if rng.random() < 0.7 else "")
        for sentence in self._sentences(3):
            page.add(f"{before} " if before else "")
            page.sentence(sentence)
            page.add(f"\n{after}")
            for i, mention in enumerate(sentence.mentions):
                page.add(between if i else " ")
                name = sentence.text[mention.start : mention.end]
                for part in re.split(r"(\{k\}|\{n\})", pair):
                    if part == "{k}":
                        page.kind(naming[mention.label][0])
                    elif part == "{n}":
                        page.copy(name)
                    else:
                        page.add(part.replace("{{", "{").replace("}}", "}"))
            if not sentence.mentions:
                page.add(f" {nothing}" if nothing else "")
            page.add(ends)
        return page

    def groups(self) -> Page:
        """A sentence or two, then the names under a heading for each kind."""
        rng, page, naming = self.rng, Page(), self._naming()
        found: dict[str, list[str]] = {}
        speaker = rng.choice(self.speakers)
        for _ in range(rng.randint(1, 2)):
            sentence = self.sentence(speaker)
            page.sentence(sentence)
            page.add(" ")
            for m in sentence.mentions:
                found.setdefault(m.label, []).append(sentence.text[m.start : m.end])
        labels = list(lexicon.LABELS[speaker.domain])
        rng.shuffle(labels)
        comma, all_kinds = rng.choice(("; ", ", ", " and ")), rng.random() < 0.5
        for label in labels:
            if label in found or all_kinds:
                page.add("\n")
                page.kind(naming[label][1].capitalize())
                page.add(": " + comma.join(found.get(label, ["none"])) + ".")
        return page

    def questions(self) -> Page:
        """Sentences, then questions on what is named."""
        rng, page, naming = self.rng, Page(), self._naming()
        known: list[tuple[str, str]] = []
        for sentence in self._sentences(2):
            page.sentence(sentence)
            page.add(" ")
            known += [(sentence.text[m.start : m.end], m.label) for m in sentence.mentions]
        sorts = dict(known)
        sure = [(n, k) for n, k in known if all(k == k2 for n2, k2 in known if n2 == n)]
        rng.shuffle(sure)
        for name, label in sure[:3]:
            page.add("\nQ: ")
            if rng.random() < 0.5:
                page.add(f"what is {name}? A: a ")
                page.kind(naming[label][0])
            else:
                page.add("which ")
                page.kind(naming[label][1])
                same = [n for n, k in sorts.items() if k == label]
                page.add(" are named? A: " + " and ".join(same))
        return page

    def marked(self) -> Page:
        """A sentence, then the same with its names marked."""
        rng, page, naming = self.rng, Page(), self._naming()
        pair = rng.choice(_PAIRS)
        for sentence in self._sentences(2):
            page.sentence(sentence)
            page.add(rng.choice(("\n", " => ", "\nMarked: ")))
            at = 0
            for m in sentence.mentions:
                page.add(sentence.text[at : m.start])
                name = sentence.text[m.start : m.end]
                page.add(pair.format(k=naming[m.label][0], n=name))
                at = m.end
            page.add(sentence.text[at:] + "\n")
        return page

    def glossed(self) -> Page:
        """Sentences with the kind written right behind, or right before, each name."""
        rng, page, naming = self.rng, Page(), self._naming()
        behind = rng.random() < 0.8
        page.add("Glossed: ")
        for sentence in self._sentences(3):
            at = 0
            for m in sentence.mentions:
                page.add(sentence.text[at : m.start])
                name = sentence.text[m.start : m.end]
                if not behind:
                    page.kind(naming[m.label][0])
                    page.add(" ")
                page.fresh.append((len(page.text), len(page.text) + len(name)))
                page.add(name)
                if behind:
                    page.add(" ")
                    page.kind(naming[m.label][0])
                at = m.end
            page.add(sentence.text[at:] + " ")
        return page

    def column(self) -> Page:
        """Sentences with the kind behind every word of a name and a dash behind other words."""
        page, naming = Page(), self._naming()
        for sentence in self._sentences(2):
            for word in re.finditer(r"\w+(?:[-’]\w+)*|[^\w\s]", sentence.text):
                inside = [
                    m for m in sentence.mentions if m.start < word.end() and word.start() < m.end
                ]
                if inside:
                    page.fresh.append((len(page.text), len(page.text) + len(word[0])))
                page.add(word[0] + " ")
                page.kind(naming[inside[0].label][0] if inside else "-")
                page.add(" ")
            page.add("\n")
        return page

    def copied(self) -> Page:
        """Something said again: a sentence, its names, or a list of names."""
        rng, page = self.rng, Page()
        speaker = rng.choice(self.speakers)
        draw = rng.random()
        if draw < 0.2:
            sentence = self.sentence(speaker)
            page.sentence(sentence)
            page.add("\nAgain: ")
            page.copy(sentence.text)
            return page
        if draw < 0.5:
            for sentence in self._sentences(2):
                page.sentence(sentence)
                page.add("\nNames: ")
                page.copy("; ".join(sentence.text[m.start : m.end] for m in sentence.mentions))
                page.add("\n")
            return page
        listed: list[str] = []
        for _ in range(rng.randint(2, 6)):
            listed.append(speaker.name(listed))
        text = ", ".join(listed)
        page.fresh.append((0, len(text)))
        page.add(text)
        for _ in range(rng.randint(1, 3)):
            again, names = rng.choice((("Again", listed), ("Backwards", listed[::-1])))
            page.add(f"\n{again}: ")
            page.copy(", ".join(names))
        return page

    def soup(self) -> Page:
        """Small words in any order."""
        page = Page()
        page.add("Words: " + " ".join(self.rng.choices(_SOUP, k=24)))
        return page

    def facts(self) -> Page:
        """What words say about the kind of a thing: one by one, or a list for each kind."""
        rng, page, naming = self.rng, Page(), self._naming()
        form = rng.choice(("{c} ", "{c}: ", "{c} = ", "{c} is said of a "))
        end = rng.choice((". ", "; ", "\n"))
        for _ in range(rng.randint(4, 16)):
            label = rng.choice(list(_KINDS))
            page.add(form.format(c=self._cue(label)))
            page.kind(naming[label][0])
            page.add(end)
        if rng.random() < 0.3:
            label = rng.choice(list(_KINDS))
            page.kind(naming[label][1].capitalize())
            page.add(": " + ", ".join(self._cue(label) for _ in range(rng.randint(3, 8))) + ".")
        return page

    def _cue(self, label: str) -> str:
        """Any cue word of the type."""
        role = self.rng.choice(("noun", "adj", "verb", "act", "part"))
        return self.rng.choice(lexicon.cues(label, role, "pretraining"))


def pages(seed: str, two_sided: bool, copying: float = 0.1, facts: float = 0.08) -> Iterator[Page]:
    """Pages for ever, the same for the same seed.

    `copying` and `facts` are the shares of pages that say something again, or say what words mean.
    """
    writer = Writer(random.Random(seed), copying, facts)
    while True:
        yield writer.two_sided() if two_sided else writer.causal()
