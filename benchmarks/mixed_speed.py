"""Many adapters in a batch of texts, beside one adapter alone: texts per second.

    python benchmarks/mixed_speed.py

The shape of MiniLM (6 layers of 384, a vocabulary of 30,522) with random weights, rank 16 on all
linear layers, four labels, one process on one thread. Texts of about 25 words come in batches of
32, each of an adapter drawn at random from as many as the side has. A turn is one batch, from texts
to entities; the sides take turns, and a ratio is that of two turns of one round.

    raytag N           MixedTagger: prepare, run, entities
    peft 1             PeftModel with one adapter, unmerged
    peft 16, 100       PeftModel with 100 adapters and ``adapter_names``, as peft mixes a batch, of
                       which 16 or 100 are asked for

What comes before and after the model, tokens and decoding, is the same code on all sides. Beside
that: what reading an adapter from its files takes, and what a side's adapters hold of memory, all
of them, beyond the base.
"""

import argparse
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from machine import machine
from raytag.model.adapter import WEIGHTS, AdapterCard, card_json, output_names
from raytag.model.base import Base, find_base, load_model
from raytag.model.frozen import CONFIG
from raytag.model.heads import Asked, Batch
from raytag.model.heads.tag import TagHead, extract_together
from raytag.model.mixed import MixedAdapter, MixedTagger
from raytag.model.packed import PackedModel
from raytag.text.sample import corpus

RESULTS = Path(__file__).parent / "results" / "mixed_speed.json"
LABELS = ("LOC", "MISC", "ORG", "PER")
RANK, ALPHA = 16, 32
ROWS, WORDS = 32, 25
OURS = (1, 16, 100, 1000)
PEFT = (1, 16, 100)
ALONE = "raytag 1"


def make_base(folder: Path) -> Base:
    """MiniLM's shape, random weights, and a WordPiece tokenizer of the sample's own words."""
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tok.train_from_iterator(
        sample_texts(),
        trainers.WordPieceTrainer(vocab_size=30522, special_tokens=special, show_progress=False),
    )
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=30522,
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=12,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return find_base(str(folder))


def sample_texts() -> list[str]:
    return [row["text"] for domain in ("news", "biomedical") for row in corpus(domain, "train", 0)]


def make_texts(count: int) -> list[str]:
    words = " ".join(sample_texts()).split()
    rng = random.Random(0)
    starts = [rng.randrange(len(words) - WORDS) for _ in range(count)]
    return [" ".join(words[start : start + rng.randint(20, 30)]) for start in starts]


def write_adapter(folder: Path, packed: PackedModel, seed: int) -> None:
    """As training writes one, but of random weights."""
    folder.mkdir(exist_ok=True)
    card = AdapterCard(
        head="tag",
        labels=LABELS,
        base=packed.base.name,
        revision=None,
        base_fingerprint=packed.fingerprint,
        load_in="fp32",
        window=1000,
    )
    noise = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.02 * torch.randn(shape, generator=noise)
        for name, shape in packed.shapes(RANK, card).items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = LoraConfig(
        task_type="TOKEN_CLS",
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(packed.targets),
        modules_to_save=["classifier", "score"],
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    (folder / "card.json").write_text(card_json(card), encoding="utf-8")
    assert (folder / CONFIG).is_file()


def resident_mib() -> float:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@dataclass(frozen=True)
class Ours:
    """MixedTagger and its adapters."""

    tagger: MixedTagger
    adapters: Sequence[MixedAdapter]

    def tag(self, asks: Sequence[tuple[int, str]]) -> int:
        prepared = [self.adapters[owner].prepare([text]) for owner, text in asks]
        answers = iter(self.tagger.run([piece for one in prepared for piece in one.pieces]))
        found = 0
        for one in prepared:
            own = [next(answers) for _ in one.pieces]
            found += len(one.entities([answer for answer in own if isinstance(answer, list)])[0])
        return found


@dataclass(frozen=True)
class Peft:
    """A PeftModel with adapters by their number for a name, and one head for all."""

    model: PeftModel
    head: TagHead
    mixed: bool

    def tag(self, asks: Sequence[tuple[int, str]]) -> int:
        rows = self.head.ask([text for _, text in asks])
        questions: list[tuple[TagHead, list[Asked]]] = [(self.head, rows)]
        names = {"adapter_names": [str(owner) for owner, _ in asks]} if self.mixed else {}

        def logits(batch: Batch, _: Sequence[tuple[int, int]]) -> list[Tensor]:
            ids, mask = batch.input_ids, batch.attention_mask
            return [self.model(input_ids=ids, attention_mask=mask, **names).logits]

        return sum(map(len, extract_together(questions, logits)[0]))


def read_ours(packed: PackedModel, count: int, place: Path) -> tuple[Ours, dict[str, Any]]:
    tagger = MixedTagger(packed)
    adapters, seconds = [], []
    before = resident_mib()
    for seed in range(count):
        write_adapter(place, packed, seed)
        begun = time.perf_counter()
        adapters.append(tagger.read(place))
        seconds.append(time.perf_counter() - begun)
    return Ours(tagger, adapters), {
        "reading_ms": {
            "median": 1000 * statistics.median(seconds),
            "p95": 1000 * sorted(seconds)[int(0.95 * count)],
        },
        "mib_of_all": resident_mib() - before,
        "mib_of_one_as_told": adapters[0].nbytes / 2**20,
    }


def read_peft(packed: PackedModel, count: int, place: Path) -> tuple[PeftModel, dict[str, Any]]:
    model = load_model(packed.base, "tag", output_names("tag", LABELS), "fp32")
    before, seconds = resident_mib(), []
    adapted: PeftModel | None = None
    for seed in range(count):
        write_adapter(place, packed, seed)
        begun = time.perf_counter()
        if adapted is None:
            adapted = PeftModel.from_pretrained(model, place, adapter_name="0")
        else:
            adapted.load_adapter(str(place), adapter_name=str(seed))
        seconds.append(time.perf_counter() - begun)
    assert adapted is not None
    return adapted.eval(), {
        "reading_ms": {"median": 1000 * statistics.median(seconds)},
        "mib_of_all": resident_mib() - before,
    }


def parts_ms(ours: Ours, texts: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Medians, of one batch of so many adapters: the forward pass, and the LoRA products in it."""
    layers = range(len(ours.adapters[0].weights.a))
    found: dict[str, dict[str, float]] = {}
    for count in (1, 16, 32):
        whole, stacking = [], []
        for turn in range(rounds):
            chosen = random.Random(turn).sample(range(len(ours.adapters)), count)
            asks = [(chosen[i % count], text) for i, text in enumerate(texts[:ROWS])]
            pieces = [p for o, t in asks for p in ours.adapters[o].prepare([t]).pieces]
            begun = time.perf_counter()
            ours.tagger.run(pieces)
            whole.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            members = [ours.adapters[owner].weights for owner in chosen] if count > 1 else []
            for layer in layers if members else ():
                torch.stack([member.a[layer] for member in members])
                torch.stack([member.b[layer] for member in members])
            stacking.append(time.perf_counter() - begun)
        found[str(count)] = {
            "run": 1000 * statistics.median(whole),
            "bringing_weights_together": 1000 * statistics.median(stacking),
        }
    return found


def measure(
    sides: dict[str, tuple[int, Callable[[Sequence[tuple[int, str]]], int]]],
    texts: Sequence[str],
    rounds: int,
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    rng = random.Random(1)
    names = list(sides)
    for turn in range(-1, rounds):  # the first is not counted
        batch = rng.sample(texts, ROWS)
        first = turn % len(names)
        for side in (*names[first:], *names[:first]):
            count, tag = sides[side]
            asks = [(rng.randrange(count), text) for text in batch]
            begun = time.perf_counter()
            tag(asks)
            if turn >= 0:
                seconds[side].append(time.perf_counter() - begun)
        if turn >= 0:
            shown = ", ".join(f"{side} {ROWS / seconds[side][-1]:.0f}" for side in names)
            print(f"round {turn + 1}: {shown} texts/s", file=sys.stderr, flush=True)
    alone = seconds[ALONE]
    return {
        "texts_per_second": {side: [ROWS / s for s in seconds[side]] for side in names},
        "median": {side: ROWS / statistics.median(seconds[side]) for side in names},
        "median_ratio_to_raytag_1": {
            side: statistics.median(a / b for a, b in zip(alone, seconds[side], strict=True))
            for side in names
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    load = os.getloadavg()[0]
    texts = make_texts(256)
    with tempfile.TemporaryDirectory() as folder:
        packed = PackedModel(make_base(Path(folder) / "base"), "tag")
        place = Path(folder) / "adapter"
        ours, our_reading = read_ours(packed, max(OURS), place)
        theirs, peft_reading = read_peft(packed, max(PEFT), place)
        one = load_model(packed.base, "tag", output_names("tag", LABELS), "fp32")
        single = PeftModel.from_pretrained(one, place).eval()
    head = packed.make_head(LABELS)
    assert isinstance(head, TagHead)
    sides: dict[str, tuple[int, Callable[[Sequence[tuple[int, str]]], int]]] = {
        f"raytag {count}": (count, Ours(ours.tagger, ours.adapters[:count]).tag) for count in OURS
    }
    for count in PEFT:
        model = single if count == 1 else theirs
        sides[f"peft {count}"] = (count, Peft(model, head, mixed=count > 1).tag)
    found = measure(sides, texts, arguments.rounds)
    for side in sides:
        ratio = found["median_ratio_to_raytag_1"][side]
        print(f"{side:12}{found['median'][side]:8.1f} texts/s   {ratio:.2f} of {ALONE}")
    tokens = [row.tokens for row in head.ask(texts)]
    results = {
        **found,
        "adapters_read": {
            f"raytag, {max(OURS)}": our_reading,
            f"peft, {max(PEFT)}": peft_reading,
        },
        "batch_ms_by_adapters_in_it": parts_ms(ours, texts, arguments.rounds),
        "rows_of_a_batch": ROWS,
        "mean_tokens_of_a_text": statistics.mean(tokens),
        "rank": RANK,
        "rounds": arguments.rounds,
        "load_average_before": load,
        "machine": machine(),
        "threads": 1,
    }
    print(json.dumps(results["adapters_read"], indent=2))
    print(json.dumps(results["batch_ms_by_adapters_in_it"], indent=2))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
