"""An adapter on disk: peft's own files, a tokenizer, and a card that says what it is.

Knows the folder's layout and how to turn it back into a model with its head. Does not know
whose the adapter is or which version: that stands in the registry's record.

    adapter_config.json, adapter_model.safetensors   as peft writes them
    config.json                                      of the base, as the head needs it
    tokenizer.json, tokenizer_config.json            as transformers writes them
    card.json                                        the AdapterCard
    README.md                                        the model card for people

A merged model's folder (``merge.py``) holds the same card, saying what was merged.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raytag.errors import ModelError
from raytag.model.base import (
    Base,
    find_base,
    head_config,
    load_model,
    load_tokenizer,
    resolve_load_in,
)
from raytag.model.heads import Head
from raytag.model.heads.generate import GenerateHead
from raytag.model.heads.tag import TagHead, tag_names
from raytag.model.settings import HeadName, LoadIn
from raytag.text.prompt import INSTRUCTION, ask

CARD = "card.json"
WEIGHTS = "adapter_model.safetensors"
CARD_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What an adapter is. ``window`` is in characters, from its training texts."""

    head: HeadName
    labels: tuple[str, ...]
    base: str
    revision: str | None
    base_fingerprint: str
    load_in: LoadIn
    window: int
    instruction: str = INSTRUCTION
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    parent: Mapping[str, Any] | None = None
    """The adapter it began from, by name and the SHA-256 of its weights; None for a fresh one."""
    merged: Mapping[str, Any] | None = None
    """In a merged model's folder what was merged and how well it went; None in an adapter's."""
    format: int = CARD_FORMAT

    def __post_init__(self) -> None:
        if self.head not in get_args(HeadName):
            raise ValueError(f"head must be one of {', '.join(get_args(HeadName))}")
        if self.load_in not in get_args(LoadIn):
            raise ValueError(f"load_in must be one of {', '.join(get_args(LoadIn))}")
        if not self.labels or not all(isinstance(label, str) and label for label in self.labels):
            raise ValueError("labels must be names, one or more")
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window must be a number of characters, not {self.window!r}")

    @classmethod
    def read(cls, folder: Path) -> "AdapterCard":
        """Raises ModelError where the folder is no adapter, or of another format."""
        try:
            content = json.loads((folder / CARD).read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise ModelError(f"{folder} is no adapter: it holds no {CARD}") from exc
        except (OSError, ValueError) as exc:
            raise ModelError(f"{folder / CARD} cannot be read: {exc}") from exc
        if not isinstance(content, dict):
            raise ModelError(f"{folder / CARD} is not a card: no JSON object")
        if content.get("format") != CARD_FORMAT:
            raise ModelError(
                f"{folder / CARD} has format {content.get('format')}; this version reads "
                f"{CARD_FORMAT}"
            )
        try:
            # A string is a sequence too, of labels of one letter.
            labels = content["labels"] if isinstance(content["labels"], list) else ()
            return cls(**{**content, "labels": tuple(labels)})
        except KeyError as exc:
            raise ModelError(f"{folder / CARD} is not a card: it has no {exc}") from exc
        except (TypeError, ValueError) as exc:
            raise ModelError(f"{folder / CARD} is not a card: {exc}") from exc


def card_json(card: AdapterCard) -> str:
    """The text of card.json."""
    return json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """An adapter that another begins from."""

    name: str
    """The version or folder it was read from."""
    card: AdapterCard
    tensors: Mapping[str, Tensor]
    """By their names in its file."""
    fingerprint: str
    """SHA-256 of its weights' file."""
    version: str | None = None
    """What a registry calls it, if it is from one."""

    @property
    def lineage(self) -> dict[str, str]:
        """What a card says of it."""
        return {"name": self.name, "weights": self.fingerprint}

    @classmethod
    def read(cls, folder: Path, name: str, version: str | None = None) -> "Parent":
        """Raises ModelError where the folder is no adapter."""
        card = AdapterCard.read(folder)
        try:
            data = (folder / WEIGHTS).read_bytes()
            tensors = load(data)
        except (OSError, SafetensorError) as exc:
            raise ModelError(f"{name}: its {WEIGHTS} cannot be read: {exc}") from exc
        digest = hashlib.sha256(data).hexdigest()
        return cls(name=name, card=card, tensors=tensors, fingerprint=digest, version=version)


def begin_from(model: PeftModel, parent: Parent, labels: tuple[str, ...]) -> None:
    """Give a fresh adapter its parent's weights, in place.

    A tagging head keeps the parent's rows of the ``labels`` both know, and its fresh ones of the
    others. Raises ModelError where the two adapters are not of one shape.
    """
    classes = output_names(parent.card.head, labels)
    theirs_at = {
        name: row for row, name in enumerate(output_names(parent.card.head, parent.card.labels))
    }
    own = _adapters_own(model)
    if own.keys() != parent.tensors.keys():
        odd = sorted(own.keys() ^ parent.tensors.keys())[0]
        raise ModelError(f"{parent.name} adapts other layers ({odd}); give it the same --targets")
    with torch.no_grad():
        for name, tensor in own.items():
            theirs = parent.tensors[name]
            if ".lora_" not in name:
                for row, label in enumerate(classes):
                    if label in theirs_at:
                        tensor[row].copy_(theirs[theirs_at[label]])
            elif tensor.shape != theirs.shape:
                raise ModelError(f"{parent.name} has another rank; give it as --rank")
            else:
                tensor.copy_(theirs)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to be asked, its adapter merged or not, and the head that asks it."""

    model: PeftModel | PreTrainedModel
    head: Head
    card: AdapterCard


def make_head(
    name: HeadName,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    instruction: str = INSTRUCTION,
    context: int | None = None,
) -> Head:
    if name == "tag":
        return TagHead(tokenizer, labels)
    return GenerateHead(tokenizer, labels, template=instruction, context=context)


def context(model: PreTrainedModel | PeftModel) -> int | None:
    """The most tokens a model can take; None where its config sets no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not limit:
        return None
    # RoBERTa and its kin count positions from behind the padding token's.
    reserved = [
        1 + module.padding_idx
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
        and isinstance(module, nn.Embedding)
        and module.padding_idx is not None
    ]
    return int(limit) - max(reserved, default=0)


def token_limit(model: PreTrainedModel | PeftModel) -> int:
    """:func:`context`, and more than any text has where the config sets no limit."""
    return context(model) or 1 << 20


def output_names(head: HeadName, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the head's output classes; none for a head that writes text."""
    return tag_names(labels) if head == "tag" else ()


def save_adapter(
    folder: Path,
    model: PeftModel,
    state: Mapping[str, Tensor],
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    card: AdapterCard,
) -> None:
    """Write an adapter's files, its card last, from its trained tensors, whole, on the CPU.

    ``state`` maps the model's parameter names to values: with the parameters partitioned over
    workers the model's own are not to be trusted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _adapters_own(model, dict(state))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    config = model.peft_config["default"]
    inference = config.inference_mode
    config.inference_mode = True
    config.base_model_name_or_path = card.base
    config.revision = card.revision
    config.save_pretrained(str(folder))
    config.inference_mode = inference
    head_config(base, card.head, output_names(card.head, card.labels)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / CARD).write_text(card_json(card), encoding="utf-8")


def _adapters_own(model: PeftModel, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """By their names in the file; an adapted embedding's own weights are the base's."""
    tensors: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=state, save_embedding_layers=False
    )
    return tensors


def load_adapter(
    folder: Path,
    *,
    base: str | None = None,
    load_in: LoadIn | None = None,
    device: torch.device | None = None,
) -> LoadedModel:
    """The adapter on its base, in evaluation mode.

    ``base`` says where the base is now, if elsewhere than the card says; ``load_in`` overrides
    the precision it was trained in. Raises ModelError where the base is not the one the adapter
    was trained on.
    """
    card = AdapterCard.read(folder)
    if card.merged is not None:
        raise ModelError(f"{folder} is a merged model already; an adapter is needed here")
    found = base_of(card, base)
    if found.fingerprint() != card.base_fingerprint:
        raise ModelError(
            f"{found.name} is not the base {folder} was trained on: the fingerprints of config, "
            "tokenizer and weights differ; name the right one with --base"
        )
    outputs = output_names(card.head, card.labels)
    precision = resolve_load_in(load_in or card.load_in)
    model = load_model(found, card.head, outputs, precision, device)
    tokenizer = load_tokenizer(folder)
    adapted = _adapted(model, folder)
    if precision != "fp32":
        # As in training, where fp32 masters are rounded for the forward pass: what was scored
        # there is what is loaded here.
        round_parameters(adapted)
    head = make_head(card.head, tokenizer, card.labels, card.instruction, context(model))
    return LoadedModel(model=adapted, head=head, card=card)


def base_of(card: AdapterCard, elsewhere: str | None = None) -> Base:
    """The base that a card names, or what lies elsewhere; whether it is the same is not asked."""
    return find_base(elsewhere) if elsewhere else find_base(card.base, card.revision)


def round_parameters(model: nn.Module) -> None:
    """To bf16, in place. Buffers stay: a model computes some, such as rotary frequencies, in
    fp32 whatever it was loaded in."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)


def _adapted(model: PreTrainedModel, folder: Path) -> PeftModel:
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no {WEIGHTS}, and no other weights are loaded")
    try:
        adapted: PeftModel = PeftModel.from_pretrained(model, folder)
        with safe_open(folder / WEIGHTS, "pt") as file:
            stored = set(file.keys())
    except KeyError as exc:  # peft's way to miss a tensor of the head
        raise ModelError(f"{folder / WEIGHTS} lacks {exc}: it was not written whole") from exc
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as exc:
        reason = " ".join(str(exc).split())[:300]
        raise ModelError(f"the adapter at {folder} cannot be loaded: {reason}") from exc
    # peft leaves what is missing as it was made up, with no more than a warning.
    missing = sorted(set(_adapters_own(adapted)) - stored)
    if missing:
        raise ModelError(
            f"{folder / WEIGHTS} lacks {len(missing)} of the adapter's tensors, {missing[0]} "
            "among them: it was not written whole"
        )
    return adapted.eval()


def snippet(card: AdapterCard, folder: str) -> str:
    """Python that loads an adapter with transformers and peft alone, or a merged model with
    transformers alone, and prints its logits.

    What lies in a bucket is copied first, by a command that the snippet names.
    """
    place, copy = _beside(folder)
    kind = "AutoModelForTokenClassification" if card.head == "tag" else "AutoModelForCausalLM"
    if card.head == "tag":
        text = 'text = "Apple\'s CEO Tim Cook gave a presentation in Seoul."'
    else:
        asked = ask(
            "Apple's CEO Tim Cook gave a presentation in Seoul.", card.instruction, card.labels
        )
        text = f"text = {asked!r}"
    if card.merged is not None:
        return f"""\
from transformers import {kind}, AutoTokenizer

{copy}folder = {place!r}
model = {kind}.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
{text}
logits = model(**tokenizer(text, return_tensors="pt")).logits
print(logits)
"""
    base, copy_base = _beside(card.base)
    revision = f", revision={card.revision!r}" if card.revision and not copy_base else ""
    return f"""\
from peft import PeftModel
from transformers import AutoConfig, {kind}, AutoTokenizer

{copy}{copy_base}adapter = {place!r}
# The adapter's own config carries what the head needs of the base.
config = AutoConfig.from_pretrained(adapter)
base = {kind}.from_pretrained(
    {base!r}{revision}, config=config, dtype="float32"
)
model = PeftModel.from_pretrained(base, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
{text}
logits = model(**tokenizer(text, return_tensors="pt")).logits
print(logits)
"""


def _beside(folder: str) -> tuple[str, str]:
    """Where a snippet finds a folder, and the line that says how it gets there."""
    if "://" not in folder:
        return folder, ""
    place = folder.rstrip("/").rpartition("/")[2]
    return place, f"# Copied here with: aws s3 cp --recursive {folder} {place}\n"
