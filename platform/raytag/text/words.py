"""Where entities may begin and end: the words of a text, as character ranges.

Knows scripts and punctuation, nothing of tokenizers. Both heads put entity boundaries on word
boundaries only, so a name is never cut in its middle; gold that cuts a word is counted where
data is checked.
"""

import regex

# Scripts written without spaces have no words to be found by looking: each grapheme counts.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(
    rf"(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+"  # letters, marks and digits of one run
    r"|[^\s]\p{M}*(?:\u200d[^\s]\p{M}*)*",  # anything else that shows, with what joins it
)


def words(text: str) -> list[tuple[int, int]]:
    """The (start, end) ranges of a text's words, in order, disjoint, covering all but spaces."""
    return [match.span() for match in _WORD.finditer(text)]
