"""Invented names: letters put together so that no reader has met them, in four disjoint pools.

Knows how names look. Knows nothing of what they name: every type draws from the same shapes, so
that a name's look never gives its type away. Every invented word belongs to exactly one pool, by
a hash of its letters; whoever draws from one pool cannot meet a word of another.
"""

from __future__ import annotations

import random
import zlib
from typing import Final

POOLS: Final = ("pretraining", "train", "dev", "test")

_ONSETS: Final = (
    "b c d f g h j k l m n p r s t v w z b d f g k l m n p r s t v br ch cr dr fl gr kr pl qu sh"
    " sk st th tr vl zh"
).split()
_VOWELS: Final = "a e i o u a e i o u a e i o u ai ea ie ou y".split()
_CODAS: Final = (
    "b d g k l l m n n n p r r s t x ck ld lm lt nd ng nt rd rk rn rt sk sh st th".split()
)
_ACCENTS: Final = dict(zip("aeioucnszl", "áéíöüçñšžł", strict=True))
_CYRILLIC: Final = ("ба во ги де жу за ки лу ме но пе ра со ти ву хо ца ше".split(), "нрлкмт")
_GREEK: Final = ("βα γο δε ζη θα κι λυ μα νο πε ρα σο τη φι χα".split(), "νρςλ")
_COMMON: Final = tuple(
    "New Grand Blue Iron Silver Golden Royal North Old Red Bright Little Black Saint Free"
    " Young".split()
)
_CONSONANTS: Final = "BCDFGHJKLMNPQRSTVWXZ"

# Sixteen buckets: ten for pretraining, two for each split.
_BUCKETS: Final = ("pretraining",) * 10 + ("train",) * 2 + ("dev",) * 2 + ("test",) * 2


def pool_of(word: str) -> str:
    """The one pool that an invented word belongs to, whatever its case."""
    return _BUCKETS[zlib.crc32(word.casefold().encode()) % len(_BUCKETS)]


def invented(name: str) -> list[str]:
    """The invented words of a name, without common words, digits, single letters and marks."""
    parts = name.replace("-", " ").replace("’", " ").replace("'", " ").replace("&", " ").split()
    letters = ("".join(c for c in part if c.isalpha()) for part in parts)
    return [word for word in letters if len(word) > 1 and word not in _COMMON]


def _script_word(rng: random.Random) -> str:
    """A word in Cyrillic or Greek letters."""
    syllables, endings = rng.choice((_CYRILLIC, _GREEK))
    return "".join(rng.choices(syllables, k=rng.choice((2, 3)))) + rng.choice(endings)


def _latin_word(rng: random.Random) -> str:
    """A word of one to three syllables, now and then with a diacritic."""
    out = ""
    for left in reversed(range(rng.choice((1, 2, 2, 2, 2, 3)))):
        coda = rng.choice(_CODAS) if left == 0 or rng.random() < 0.15 else ""
        out += rng.choice(_ONSETS) + rng.choice(_VOWELS) + coda
    if rng.random() < 0.08:
        i = rng.randrange(len(out))
        out = out[:i] + _ACCENTS.get(out[i], out[i]) + out[i + 1 :]
    return out


def _word(rng: random.Random, pool: str) -> str:
    """An invented lower-case word of the pool."""
    while True:
        word = _script_word(rng) if rng.random() < 0.012 else _latin_word(rng)
        if len(word) > 3 and pool_of(word) == pool:
            return word


def _capital(rng: random.Random, pool: str) -> str:
    word = _word(rng, pool)
    return word[0].upper() + word[1:]


def _code(rng: random.Random, pool: str, avoid: frozenset[str]) -> str:
    """An acronym of the pool: "KVR"."""
    while True:
        code = "".join(rng.choices(_CONSONANTS, k=rng.choice((2, 3, 3, 4))))
        if code not in avoid and pool_of(code) == pool:
            return code


def news_name(rng: random.Random, pool: str, avoid: frozenset[str]) -> str:
    """A name as newspapers print it; acronyms in `avoid` are left to those who own them."""
    shape = rng.random()
    if shape < 0.45:
        return _capital(rng, pool)
    if shape < 0.78:
        return f"{_capital(rng, pool)} {_capital(rng, pool)}"
    if shape < 0.86:
        return f"{rng.choice(_COMMON)} {_capital(rng, pool)}"
    if shape < 0.90:
        return f"{_capital(rng, pool)}-{_capital(rng, pool)}"
    if shape < 0.92:
        return f"O’{_capital(rng, pool)}"
    if shape < 0.94:
        return f"{_capital(rng, pool)} & {_capital(rng, pool)}"
    if shape < 0.98:
        return _code(rng, pool, avoid)
    return f"{_capital(rng, pool)} {rng.randrange(2, 30)}"


def biomedical_name(rng: random.Random, pool: str, avoid: frozenset[str]) -> str:
    """A name as papers print it: often lower case, a code, a Greek letter."""
    shape = rng.random()
    if shape < 0.45:
        return _word(rng, pool)
    if shape < 0.60:
        return _capital(rng, pool)
    if shape < 0.70:
        return f"{_code(rng, pool, avoid)}-{rng.randrange(1, 40)}"
    if shape < 0.80:
        return f"{_code(rng, pool, avoid)}{rng.randrange(1, 10)}"
    if shape < 0.89:
        return f"{_word(rng, pool)} {_word(rng, pool)}"
    if shape < 0.93:
        return f"{rng.choice('αβγ')}-{_word(rng, pool)}"
    if shape < 0.97:
        return f"{_word(rng, pool)}-{rng.randrange(1, 10)}"
    return f"{_capital(rng, pool)} {_word(rng, pool)}"
