"""A tokenizer's tokens as the bytes they stand for, in a trie that can be walked byte by byte.

Knows byte-level BPE (GPT-2, Qwen, Llama 3) and the sentencepiece layout ("▁" for a space,
``<0x0A>`` for a byte; Llama 2, Mistral, Gemma). Which of the two a tokenizer is, is found by
trying: the one whose bytes give probe texts back. Tokens that say less than the text (WordPiece
lowercases and drops spaces) cannot write offsets down, and are refused. Knows nothing of what
may be written: that is ``grammar``.
"""

import re
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from raytag.errors import DataError, ModelError

_PROBES = (
    " [ORG: Apple] [PER: Tim Cook]",
    " Zoë's naïve  café, 東京タワー\nЖди 12.5\t(x\\y)",
    " שלום \N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROSCOPE}!",
)
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CHUNK = re.compile(r" ?[^ ]+| +")
# UTF-8 never uses these, and some vocabularies lack them.
_UNUSED = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
_CUTS = 1 << 14  # pieces of answers a vocabulary remembers, a few MiB

_Spelling = Callable[[str], bytes | None]
"""The bytes a token of the vocabulary stands for; None for a token that stands for none."""


class Vocabulary:
    """The text tokens of one tokenizer, by id and as a trie over their bytes.

    Special tokens have no bytes: they are never part of an answer, whatever a text contains.
    Building one takes about a second for 150,000 tokens; any number of heads may share it.
    Raises ModelError for a tokenizer it cannot read, or one without an end-of-sequence token.
    """

    ROOT = 0

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("this tokenizer has no end-of-sequence token: an answer could not end")
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.bytes_of = self._read()
        self._children: dict[int, int] = {}  # node << 8 | byte -> node
        self._ids: dict[int, list[int]] = {}  # node -> the tokens whose bytes end there
        self._cuts: dict[bytes, list[int]] = {}
        self._grow()
        self.largest = max(self.eos, *self.bytes_of)
        missing = set(range(256)) - _UNUSED - {d[0] for d in self.bytes_of.values() if len(d) == 1}
        # With a token for each single byte every text can be written, and no mask is ever empty.
        if missing:
            raise ModelError(
                f"this tokenizer has no token for {len(missing)} of the bytes that texts are made "
                "of, so there are characters it cannot write; for this base use the tag head"
            )

    def _read(self) -> dict[int, bytes]:
        """Token id -> its bytes, in whichever spelling gives the probes back."""
        for spelling in (_byte_level(), _sentencepiece):
            self.bytes_of = _bytes_of_tokens(self.tokenizer, spelling)
            if all(self._tokenize(probe) is not None for probe in _PROBES):
                return self.bytes_of
        raise ModelError(
            "this tokenizer does not give back the text it is given, so a model cannot write "
            "entities with it. A generating head needs byte-level BPE or sentencepiece with byte "
            "fallback; for this base use the tag head"
        )

    def _grow(self) -> None:
        nodes = 1
        for token, data in self.bytes_of.items():
            node = self.ROOT
            for byte in data:
                node = self._children.setdefault(node << 8 | byte, nodes)
                nodes += node == nodes
            self._ids.setdefault(node, []).append(token)

    def child(self, node: int, byte: int) -> int | None:
        """The node one byte below ``node``; None where no token goes on so."""
        return self._children.get(node << 8 | byte)

    def ids_at(self, node: int) -> list[int]:
        """The tokens whose bytes lead from the root to ``node`` exactly. Not to be changed."""
        return self._ids.get(node, _NONE)

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a prompt: begins as the tokenizer begins, does not end as it ends.

        What looks like a special token in the text is text. DataError for lone surrogates.
        """
        _utf8(text)
        ids: list[int] = self.tokenizer(text, split_special_tokens=True)["input_ids"]
        while ids and ids[-1] == self.eos:
            ids.pop()
        return ids

    def encode(self, text: str) -> list[int]:
        """Token ids whose bytes are exactly those of ``text``: as the tokenizer cuts it, or close.

        A tokenizer that normalises (Qwen's composes accents) or cannot tell "▁" from a space
        changes some texts; the words concerned are spelled with the longest tokens that fit.
        Raises DataError for lone surrogates, which no model can write.
        """
        ids = self._tokenize(text)
        if ids is None:
            ids = []
            for chunk in _CHUNK.findall(text):
                ids += self._tokenize(chunk) or self._longest(_utf8(chunk))
        return ids

    def cut(self, data: bytes) -> list[int]:
        """Token ids of a piece of an answer, remembered: labels and names come again and again.

        A part of a character at the end of ``data`` is left out. Not to be changed.
        """
        ids = self._cuts.get(data)
        if ids is None:
            if len(self._cuts) >= _CUTS:
                self._cuts.clear()
            ids = self.encode(data.decode("utf-8", errors="ignore"))
            self._cuts[data] = ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text the tokens stand for; special tokens stand for nothing."""
        return b"".join(self.bytes_of.get(token, b"") for token in ids).decode("utf-8")

    def _tokenize(self, text: str) -> list[int] | None:
        """The tokenizer's own ids for ``text``, or None where their bytes are not its bytes."""
        data = _utf8(text)
        # Sentencepiece puts a space before what it reads, so that is tried without its own.
        for asked in (text, text[1:]) if text.startswith(" ") else (text,):
            ids: list[int] = self.tokenizer(
                asked, add_special_tokens=False, split_special_tokens=True
            )["input_ids"]
            if b"".join(self.bytes_of.get(token, b"") for token in ids) == data:
                return ids
        return None

    def _longest(self, data: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(data):
            node: int | None = self.ROOT
            end, token = at, -1
            for i in range(at, len(data)):
                assert node is not None
                node = self.child(node, data[i])
                if node is None:
                    break
                if here := self.ids_at(node):
                    end, token = i + 1, here[0]
            assert end > at, "every byte has a token"
            ids.append(token)
            at = end
        return ids


_NONE: list[int] = []


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise DataError(f"the text holds half a character (a lone surrogate): {exc}") from exc


def _bytes_of_tokens(tokenizer: PreTrainedTokenizerBase, spelling: _Spelling) -> dict[int, bytes]:
    """Every token that stands for text: id -> bytes. Added tokens are written as they are."""
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    added = {i for i in tokenizer.added_tokens_decoder if i not in special}
    table: dict[int, bytes] = {}
    for token, i in tokenizer.get_vocab().items():
        data = None if i in special else spelling(token)
        if data is None and i in added:
            data = token.encode("utf-8")
        if data:
            table[i] = data
    return table


def _byte_level() -> _Spelling:
    """GPT-2's spelling: each byte a printable character, its own where that prints.

    Source: ``bytes_to_unicode`` of openai/gpt-2, encoder.py, restated.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    byte_of = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(others)}

    def spell(token: str) -> bytes | None:
        data = [byte_of.get(char) for char in token]
        return None if None in data else bytes(byte for byte in data if byte is not None)

    return spell


def _sentencepiece(token: str) -> bytes | None:
    if match := _BYTE.fullmatch(token):
        return bytes.fromhex(match[1])
    return token.replace("▁", " ").encode("utf-8")
