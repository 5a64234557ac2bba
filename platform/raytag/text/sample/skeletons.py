"""The sentences of the sample corpora with their names and cue words left open.

Knows three things: cores (what is said; no two splits share one), openers and closers (what
stands around it; shared by all). See grammar for how they are read. A core says the same of
every type, so only the cue words that go in can tell one type from another.
"""

from __future__ import annotations

import random
from typing import Final

OPENERS: Final = (
    "on {day}, ", "in {month} {year}, ", "according to the minutes, ", "late in {month}, ",
    "as the {acr} bulletin put it, ", "note: ", "by {num} votes to {num}, it was confirmed: ",
    "after {thing}, ", "despite {thing}, ", "shortly before {day}, ", "({day}) ", "meanwhile, ",
    "as a/an {cap} reporter wrote, ", "update {num}: ", "in the {cap} edition: ", "in short, ",
    "few noticed, but ", "under item {num}, ", "as before, ", "{num} days later, ",
)  # fmt: skip

CLOSERS: Final = (
    " on {day}", " in {month}", " {adv}", ", the {acr} office said", " (see page {num})",
    ", to the surprise of {who}", " in {year}", ", said {who}", " [{num}]", " – {adv}",
    ", says the {cap} almanac", " before {thing}", ", not counting {thing}", "; {who} disagreed",
    " {num} times", ", or so {who} thought", " (unlike {thing})", " for {num} weeks",
    ", as {who} recalled on {day}", ": {thing} was over",
)  # fmt: skip

# What stands at the very end, after the full stop or instead of it.
ENDINGS: Final = (".",) * 16 + ("!", "…", "?", ". {emoji}")

CORES: Final[dict[str, tuple[str, ...]]] = {
    "train": (
        "{who} had heard of {A}, a/an {A.noun}",
        "people still talk about the {A.part} of {A}",
        "{A} {A.verb}, and {B} {B.verb}",
        "the report on {A} mentions its {A.adj} {A.noun} {adv}",
        "{who} {A.act} {A} and then {B.act} {B}",
        "“she {A.act} {A},” {who} wrote",
        "it was {A}, the {A.adj} {A.noun}, that {who} remembered",
        "a/an {A.adj} {A.noun} called {A} came up next to {B}, a/an {B.noun}",
        "the {A.part} and the {A.part} of {A} were described at length",
        "{A} (a/an {A.noun}) and {B} (a/an {B.noun}) share a page",
        "what became of {A} after it {A.verb} is unclear",
        "{who} later {A.act} {A}",
        "there is only one {A.noun} that {who} would call {A.adj}: {A}",
        "between {A}, which {A.verb}, and {B}, which {B.verb}, lies a world of difference",
        "{A}’s {A.part} made the front page",
        "a picture shows {A}’s {A.part} beside the {B.part} of {B}",
        "the first {A.noun} on the list was {A}, the second {A2}",
        "{who} once {A.act} both {A} and {A2}",
        "no other {A.noun} {A.verb} the way {A} did",
        "{who} asked about {A}, whose {A.part} was in the news",
    ),
    "dev": (
        "most reports describe {A} as a/an {A.adj} {A.noun}",
        "when {A} {A.verb}, {who} was told",
        "{who} who {A.act} {A} also {B.act} {B}",
        "a note about the {A.part} of {A} was found with {B}’s {B.part}",
        "few {A.adj} things are as well known as {A}, that {A.noun}",
        "{A}, {A2} and a/an {A.adj} {A.noun} were listed",
        "the {A.noun} in question, {A}, {A.verb}",
        "“{A} {A.verb},” {who} said of the {A.noun}",
        "is {A} a/an {A.noun} or not, {who} wondered",
        "neither {A}, a/an {A.noun}, nor {B}, a/an {B.noun}, was to blame",
        "{who} kept a file on {A}’s {A.part}",
        "{A} – {A.adj}, like any {A.noun} – {A.verb}",
    ),
    "test": (
        "nothing was known of the {A.noun} {A} until it {A.verb}",
        "{who} wanted to see {A}’s {A.part} and, later, {B}’s {B.part}",
        "the {A.adj} {A} {A.verb} while {B}, the {B.noun}, was left alone",
        "it is said that {who} {A.act} {A}",
        "two pages deal with {A} – the {A.noun} – and one with the {B.noun} {B}",
        "“when {A} {A.verb}, who saw it?” asked {who}, thinking of the {A.part}",
        "{A}, that {A.adj} {A.noun}, was on the agenda with {B}, that {B.adj} {B.noun}",
        "the story begins with {A}: {who} {A.act} it",
        "of all the {A.adj} examples, the {A.noun} {A} is the best known",
        "{who} {A.act} {A} because {B} {B.verb}",
        "{A} {A.verb}, as {who} remembered",
        "{who} who {A.act} {A} had never seen such a/an {A.noun} before",
        "the {A.part} of {A} and that of {A2} were compared",
        "one {A.noun}, {A}, {A.verb}; another, {A2}, did not",
        "{who} described {A} [a/an {A.adj} {A.noun}] in a letter",
        "after {A} {A.verb}, {who} {B.act} {B}",
        "{who} took an interest in the {A.part} of the {A.noun} {A}",
        "a chapter each is given to {A}, a/an {A.noun}; {B}, a/an {B.noun}; and {C}, a/an {C.noun}",
    ),
}

# Sentences that name nothing, by split.
EMPTY: Final[dict[str, tuple[str, ...]]] = {
    "train": (
        "the {A.noun} {A.verb} and {who} left",
        "{who} talked about {thing} on {day}",
        "every {A.noun} has a {A.part}, the {cap} handbook says",
        "{thing} was put off until {month}",
        "the {acr} form asks for a/an {A.adj} {A.noun}",
    ),
    "dev": (
        "no {A.noun} was mentioned in {month}",
        "{who} never {A.act} a/an {A.noun}",
        "the {cap} table lists {num} entries",
        "was {thing} worth it?",
    ),
    "test": (
        "a/an {A.adj} {A.noun} is rare, {who} said",
        "{who} {A.act} the {A.noun}",
        "the {acr} rate rose to {num} in {month}",
        "{cap} readers wrote {num} letters about {thing}",
        "some {A.part} or other was missing",
    ),
}


def sentence(rng: random.Random, core: str) -> str:
    """The core with something in front or behind, most of the time, and an ending."""
    opener = rng.choice(OPENERS) if rng.random() < 0.4 else ""
    closer = rng.choice(CLOSERS) if rng.random() < 0.4 and not core.endswith("?") else ""
    ending = "" if core.endswith("?") else rng.choice(ENDINGS)
    return opener + core + closer + ending
