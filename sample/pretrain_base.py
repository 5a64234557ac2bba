"""Pretrain the sample base from scratch, on a CPU, on text that pretrain_text writes.

    python sample/pretrain_base.py --out sample/base

A small Llama learns two things by turns, step for step:

- to read from left to right and write on: causal language modelling;
- to read from both sides: masked next token prediction with bidirectional attention, in which the
  hidden token i is found from the logits at i - 1 (BehnamGhader et al. 2024, "LLM2Vec",
  section 2.2).

Every batch is a function of the seed and the step, so a run that is cut off goes on from the
state that it keeps in --state and ends with the same data seen. The rate is warmed up, held, and
decayed linearly over the last part ("warmup, stable, decay", Hu et al. 2024, "MiniCPM",
section 4).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent / "platform")]

import pretrain_text  # noqa: E402  (both folders have to be on the path first)

VOCABULARY = 2560
PAD, BOS, EOS, MASK = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<mask>")
SEED = 20240229
COPYING_STEPS = 1600
FACTS_STEPS = 2600


@dataclass
class Batch:
    """Token ids (rows x length), and per token how much it matters and what it is."""

    ids: torch.Tensor
    weight: torch.Tensor  # float, 0 for padding
    kind: torch.Tensor  # bool: part of a word that says what something is
    copy: torch.Tensor  # bool: part of a name that stands further up


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the pretraining text: any Unicode comes back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (page.text for page in islice(pretrain_text.pages("tokenizer", False), 40_000))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        mask_token="<mask>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    """The untrained model."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            attn_implementation="sdpa",
        )
    )


def make_batch(tokenizer: Tokenizer, step: int, two_sided: bool, rows: int, length: int) -> Batch:
    """Rows of pages, one after the other, each row beginning with a page of its own."""
    # First to write again what stands further up, then what words mean, then all at once.
    copying = 0.65 if step < COPYING_STEPS else 0.1
    facts = 0.3 if COPYING_STEPS <= step < FACTS_STEPS else 0.08
    supply = pretrain_text.pages(f"{SEED}/{step}", two_sided, copying, facts)
    shape = (rows, length)
    ids = torch.full(shape, PAD)
    weight = torch.zeros(shape)
    kind = torch.zeros(shape, dtype=torch.bool)
    copy = torch.zeros(shape, dtype=torch.bool)
    for row in range(rows):
        at = 0
        while at < length:
            page = next(supply)
            encoded = tokenizer.encode(page.text)
            n = min(len(encoded.ids), length - at)
            ids[row, at : at + n] = torch.tensor(encoded.ids[:n])
            weights = [1.0] * n
            # A new name cannot be foretold: its first appearance hardly counts.
            for i in _inside(encoded.offsets[:n], page.fresh):
                weights[i] = 0.1
            for i in _inside(encoded.offsets[:n], page.kinds):
                weights[i] = 8.0
                kind[row, at + i] = True
            for i in _inside(encoded.offsets[:n], page.copies):
                weights[i] = 2.0
                copy[row, at + i] = True
            weight[row, at : at + n] = torch.tensor(weights)
            at += n
            if at < length:
                ids[row, at] = EOS
                weight[row, at] = 1.0
                at += 1
    return Batch(ids, weight, kind, copy)


def _inside(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """The tokens whose last character lies within a span; both in order of the text."""
    found, k = [], 0
    for i, (start, end) in enumerate(offsets):
        while k < len(spans) and spans[k][1] < end:
            k += 1
        if k < len(spans) and end > start and spans[k][0] < end:
            found.append(i)
    return found


def loss_of(
    model: LlamaForCausalLM, batch: Batch, step: int, two_sided: bool
) -> dict[str, torch.Tensor]:
    """The mean weighted loss, and how often kinds and copied names were right."""
    seen, weight = batch.ids, batch.weight.clone()
    if two_sided:
        # Hidden: most words for kinds, a fifth of the others, next to none of the new names.
        chance = torch.where(batch.kind, 0.8, torch.where(weight < 0.5, 0.03, 0.2))
        generator = torch.Generator().manual_seed(step)
        hidden = (torch.rand(seen.shape, generator=generator) < chance) & (seen > MASK)
        seen = seen.masked_fill(hidden, MASK)
        weight = weight.clamp(min=0.3) * hidden
    model.config.is_causal = not two_sided
    states = model.model(input_ids=seen, use_cache=False).last_hidden_state[:, :-1]
    target, weight = batch.ids[:, 1:], weight[:, 1:]
    counts = weight > 0
    logits = model.lm_head(states[counts]).float()
    losses = functional.cross_entropy(logits, target[counts], reduction="none")
    right = (logits.argmax(-1) == target[counts]).float()
    return {
        "loss": (losses * weight[counts]).sum() / weight.sum(),
        "kind": right[batch.kind[:, 1:][counts]].mean(),
        "copy": right[batch.copy[:, 1:][counts]].mean(),
    }


def is_two_sided(step: int) -> bool:
    """Whether a step looks at both sides: one in five, two while words are learned, three in ten.

    Both ways of reading need to know the words; copying and lists are for reading on alone.
    """
    if step < COPYING_STEPS:
        return step % 5 == 1
    if step < FACTS_STEPS:
        return step % 5 in (1, 3)
    return step % 10 in (1, 4, 7)


def rate_at(step: int, args: argparse.Namespace) -> float:
    """The learning rate of a step: warmed up, held, decayed to zero."""
    decay = int(args.steps * 0.3)
    return float(args.rate) * min(
        1.0, (step + 1) / args.warmup, max(0.0, (args.steps - step) / max(decay, 1))
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The base as a folder that `from_pretrained` reads, weights in bfloat16."""
    copy = make_model()
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)
    copy.config.is_causal = True
    copy.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # Both are the library's defaults or the run's own, not the base's.
    config = json.loads((out / "config.json").read_text())
    config.pop("is_causal", None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(args: argparse.Namespace) -> None:
    """All steps from where the state left off, then the base to --out."""
    torch.set_num_threads(args.threads)
    kept = args.state / "base"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(kept) if kept.exists() else make_tokenizer()
    model = make_model()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=args.rate,
        betas=(0.9, 0.97),
    )
    state_file = args.state / "state.pt"
    first, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
    args.state.mkdir(parents=True, exist_ok=True)
    began = time.monotonic() - seconds
    model.train()
    for step in range(first, args.steps):
        two_sided = is_two_sided(step)
        length = random.Random(step).choice((128, 128, 192))
        rows = args.tokens // length
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args)
        batch = make_batch(tokenizer.backend_tokenizer, step, two_sided, rows, length)
        with torch.autocast("cpu", torch.bfloat16):
            parts = loss_of(model, batch, step, two_sided)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 30 in (0, 1):
            figures = {name: round(float(value.detach()), 4) for name, value in parts.items()}
            record = {"step": step, "two_sided": two_sided, **figures}
            record["seconds"] = round(time.monotonic() - began)
            print(json.dumps(record), flush=True)
            with (args.state / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "seconds": time.monotonic() - began,
            }
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
            save(model, tokenizer, args.state / "base")
    save(model, tokenizer, args.out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Pretrain the sample base from scratch.")
    parser.add_argument("--out", type=Path, default=ROOT / "base", help="where the base goes")
    parser.add_argument("--state", type=Path, default=Path("/tmp/raytag-pretrain"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens in a batch")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--every", type=int, default=250, help="steps between states")
    parser.add_argument("--threads", type=int, default=2)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
