"""Tiny checkpoints: real architectures and tokenizers, random weights, under 200 kB.

Built in a second, written as safetensors, so tests load them from disk as they would any base.
The tokenizers come in the two layouts that real causal models have, and in an encoder's.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raytag.text.spans import Entity
from raytag.text.words import words

Layout = Literal["byte-level", "sentencepiece"]

CORPUS = (
    "Extract named entities from the sentence below. Format: [TYPE: entity]",
    "Sentence: Apple's CEO Tim Cook gave a presentation in Seoul.",
    "Answer: [ORG: Apple] [PER: Tim Cook] [LOC: Seoul]",
    "Answer: [PER: Zoë Müller] [LOC: New York] [LOC: Paris]",
    "Zoë Müller met Tim in New York and then in Paris, where Apple opened a new office.",
    "The presentation in Seoul was followed by another one in Tokyo (東京) on Monday.",
)


def tokenizer(layout: Layout, vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """A BPE tokenizer learned from ``CORPUS``.

    "byte-level" is Qwen's layout: bytes as printable characters, composing normaliser, nothing
    put before a prompt. "sentencepiece" is Llama 2's: "▁" for a space and before everything,
    byte fallback, ``<s>`` before a prompt.
    """
    if layout == "byte-level":
        return _byte_level(vocabulary)
    return _sentencepiece(vocabulary)


def _byte_level(vocabulary: int) -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def _sentencepiece(vocabulary: int) -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    learned = Tokenizer(models.BPE())
    # Cut at spaces for learning only, or whole sentences would be merged; Llama 2 cuts nothing.
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    room = vocabulary - len(special) - len(fallback)
    learned.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=room, limit_alphabet=60, show_progress=False)
    )
    bpe = json.loads(learned.to_str())["model"]
    tokens = [*special, *fallback, *sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)]
    tok = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [tuple(merge) for merge in bpe["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def checkpoint(
    folder: Path, layout: Layout = "byte-level", seed: int = 0, hidden: int = 32
) -> Path:
    """A model and its tokenizer in ``folder``: Qwen2 for "byte-level", Llama for the other.

    2 layers, 4 heads of which 2 hold keys and values; random weights from ``seed``.
    """
    tok = tokenizer(layout)
    size: dict[str, Any] = {
        "vocab_size": len(tok),
        "hidden_size": hidden,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if layout == "byte-level":
            model: PreTrainedModel = Qwen2ForCausalLM(Qwen2Config(**size))
        else:
            model = LlamaForCausalLM(LlamaConfig(**size))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def wordpiece(vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """BERT's layout, uncased: lowercases, strips accents and control characters, knows few."""
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tok.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(
            vocab_size=vocabulary, special_tokens=special, show_progress=False
        ),
    )
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=96,
    )


def encoder(folder: Path, seed: int = 0, hidden: int = 32) -> Path:
    """BERT as it is pretrained, of the same size, taking 96 tokens and no more."""
    tok = wordpiece()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=len(tok),
                hidden_size=hidden,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=96,
                pad_token_id=tok.pad_token_id,
            )
        )
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def assert_legal(entities: Sequence[Entity], text: str, labels: Sequence[str]) -> None:
    """Every entity stands in the text, on words' ends, in order, apart, and has a known label."""
    starts = {start for start, _ in words(text)}
    ends = {end for _, end in words(text)}
    at = 0
    for entity in entities:
        assert entity.start in starts
        assert entity.end in ends
        assert at <= entity.start < entity.end <= len(text)
        assert entity.label in labels
        assert entity.score is not None
        assert 0 < entity.score <= 1
        at = entity.end
