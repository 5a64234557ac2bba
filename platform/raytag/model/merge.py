"""An adapter and its base made one model, and the proof that it answers as they did.

Knows how weights are added, rounded, compared and published, and how a model is loaded to tag
with, whether it was merged before or is only now. Does not know corpora, requests or Ray.

A merged model's folder loads with transformers alone:

    model.safetensors, config.json, ...   as transformers writes them
    tokenizer.json, tokenizer_config.json
    README.md                             the model card for people
    card.json                             the adapter's card with ``merged`` set, written last

Weights are added in fp32 on the unquantised base, whatever the adapter was trained on: what is
merged into a quantised base stays quantised. They are rounded once, at the end.
"""

import hashlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.logging import set_verbosity_error

from raytag import storage
from raytag.errors import ModelError, ResourceError, SettingsError, StorageError
from raytag.model.adapter import (
    CARD,
    WEIGHTS,
    AdapterCard,
    LoadedModel,
    base_of,
    card_json,
    context,
    load_adapter,
    make_head,
    output_names,
    round_parameters,
    snippet,
    token_limit,
)
from raytag.model.base import Base, find_base, load_model, load_tokenizer, resolve_load_in
from raytag.model.heads import IGNORED, TooLong
from raytag.model.settings import LoadIn, MergedDtype, MergeSettings
from raytag.model.tagger import Tagger
from raytag.text.formats import read_examples
from raytag.text.score import score
from raytag.text.spans import Example
from raytag.text.windows import split

LOGIT_TOLERANCE: Mapping[MergedDtype, float] = {"fp32": 4e-3, "bf16": 0.05}
"""Largest difference of a logit over the largest logit. B(Ax) and (BA)x differ by what fp32
rounds: 1e-6 for adapters as training makes them, 3e-5 for weights twenty times as large, 1e-3 for
large random ones, where either is as far from the same in float64. With
the least of the sample adapter's 42 layers forgotten it is 2e-2. bf16 rounds weights and
activations to 8 bits, which makes 0.012 there and 0.03 at the most for others of its size."""
F1_TOLERANCE: Mapping[MergedDtype, float] = {"fp32": 0.0, "bf16": 0.002}
"""Most strict F1 that may be lost on the annotated text. Where that is less than two of its
entities, rounding to bf16 may lose two."""
COMPARED = 32
"""How many of the annotated texts have their logits compared; all are scored."""
TEXTS = (
    "Apple's CEO Tim Cook gave a presentation in Seoul.",
    "It rained, and nothing else happened until the evening.",
    "Mutations of BRCA1 and TP53 were found in 12% of the patients treated with cisplatin (5 mg).",
    "Zoë Müller (Zürich) und 東京の田中さん met in Αθήνα — “for the first time” 🙂.",
    "ACME CORP.\n\tQ3 report, 2024-10-31\r\nMR. J. DOE, TREASURER",
    "Paris",
)
"""What every merged model is asked before anyone else may ask it."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A model that was published."""

    card: AdapterCard
    dtype: MergedDtype
    difference: float
    """Of a logit from the adapter's, as a share of the largest."""
    f1: tuple[float, float] | None
    """Of the adapter and of the merged model, on the annotated text."""


def merge_adapter(settings: MergeSettings) -> Merged:
    """Merge, check what was written and publish it, or publish nothing.

    Raises RaytagError: SettingsError where the output is not empty, ModelError where the merged
    model does not answer as the adapter does.
    """
    set_verbosity_error()  # or it reports the tagging head, which a base lacks, as missing
    device = _device(settings.device)
    if storage.exists(settings.output) or storage.list_files(settings.output):
        raise SettingsError(f"{settings.output} holds something already; give another --output")
    examples = read_examples(settings.data).examples if settings.data else ()
    with storage.on_disk(settings.adapter) as adapter, tempfile.TemporaryDirectory() as scratch:
        try:
            merged = _merge_into(Path(scratch), adapter, settings, examples, device)
        except torch.OutOfMemoryError as exc:
            raise ResourceError(
                "the model does not fit the GPU in fp32; merge with --device cpu"
            ) from exc
        _publish(Path(scratch), settings.output, merged.card)
    return merged


def merge(loaded: LoadedModel, dtype: MergedDtype) -> LoadedModel:
    """The adapter merged into its base, in place: ``loaded`` is used up.

    Raises ModelError where the base is not in fp32, or where the merged model's logits differ
    from the adapter's by more than LOGIT_TOLERANCE.
    """
    return _merged(loaded, dtype, TEXTS, _logits(loaded, TEXTS))


def load_for_tagging(
    folder: Path, *, base: str | None, load_in: LoadIn, device: torch.device
) -> LoadedModel:
    """What Tagger.of takes, from a merged model's folder or an adapter's, in evaluation mode.

    An adapter is merged on the way, on the CPU, where fp32 takes the memory that the device may
    not have; ``base`` says where its base is, if elsewhere than its card says. ``load_in`` is
    fp32, bf16 or auto: bf16 on a GPU that has it. Raises ModelError.
    """
    dtype = _dtype(load_in, device)
    if AdapterCard.read(folder).merged is not None:
        return _load_merged(folder, dtype, device)
    merged = merge(load_adapter(folder, base=base, load_in="fp32"), dtype)
    model: nn.Module = merged.model
    model.to(device)
    return merged


def load_for_scoring(
    folder: Path, *, base: str | None, load_in: LoadIn | None, device: torch.device
) -> LoadedModel:
    """As :func:`load_for_tagging`, but an adapter stays beside its base, as training scored it,
    and with ``load_in`` None both come in the precision they were made in. Raises ModelError.
    """
    merged = AdapterCard.read(folder).merged
    if merged is None:
        return load_adapter(folder, base=base, load_in=load_in, device=device)
    return _load_merged(folder, _dtype(load_in or merged["dtype"], device), device)


def _dtype(load_in: LoadIn, device: torch.device) -> MergedDtype:
    if load_in == "auto":
        load_in = resolve_load_in("auto") if device.type == "cuda" else "fp32"
    if load_in != "fp32" and load_in != "bf16":
        raise ModelError(f"a merged model is loaded in fp32 or bf16, not in {load_in}")
    return load_in


def _device(asked: str) -> torch.device:
    found = torch.cuda.is_available()
    if asked == "gpu" and not found:
        raise SettingsError("this machine has no GPU; merge with --device cpu")
    return torch.device("cuda" if found and asked != "cpu" else "cpu")


# Merging


def _merge_into(
    folder: Path,
    adapter: Path,
    settings: MergeSettings,
    examples: Sequence[Example],
    device: torch.device,
) -> Merged:
    """Write the model to a local folder, its card with what the checks of these files gave."""
    loaded = load_adapter(adapter, base=settings.base, load_in="fp32", device=device)
    texts = (*TEXTS, *(example.text for example in examples[:COMPARED]))
    expected, expected_f1 = _logits(loaded, texts), _f1(loaded, examples)
    dtype = settings.dtype
    if dtype == "auto":
        dtype = stored_dtype(base_of(loaded.card, settings.base))
    lineage: dict[str, Any] = {"dtype": dtype, "adapter_fingerprint": fingerprint(adapter)}
    card = replace(loaded.card, merged=dict(lineage))
    merged = _merged(loaded, dtype, texts, expected)
    _write(folder, merged, adapter, card)
    del loaded, merged  # the next one takes their room
    written = _load_merged(folder, dtype, device)
    difference = lineage["difference"] = _agreeing(_logits(written, texts), expected, dtype)
    f1 = (expected_f1, _f1(written, examples)) if examples else None
    if f1:
        lineage["f1"] = {"adapter": f1[0], "merged": f1[1]}
        forgiven = F1_TOLERANCE[dtype]
        if dtype == "bf16":
            entities = sum(len(example.entities) for example in examples)
            forgiven = max(forgiven, 2 / max(2, entities))
        if f1[0] - f1[1] > forgiven:
            raise ModelError(
                f"the merged model's F1 on {settings.data} is {f1[1]:.4f}, the adapter's "
                f"{f1[0]:.4f}: not merged; {_advice(dtype)}"
            )
    return Merged(card=replace(card, merged=lineage), dtype=dtype, difference=difference, f1=f1)


def _merged(
    loaded: LoadedModel, dtype: MergedDtype, texts: Sequence[str], expected: Sequence[Tensor]
) -> LoadedModel:
    """Checked in fp32 first, where nothing but a fault can make a difference."""
    if not isinstance(loaded.model, PeftModel):
        raise ModelError("there is no adapter to merge: the model is merged already")
    merged = replace(loaded, model=_without_adapter(loaded.model))
    _agreeing(_logits(merged, texts), expected, "fp32")
    if dtype == "bf16":
        round_parameters(merged.model)
        _agreeing(_logits(merged, texts), expected, "bf16")
    return merged


def _without_adapter(adapted: PeftModel) -> PreTrainedModel:
    """The base with the adapter's weights added to its own, in place."""
    base: Any = adapted.get_base_model()
    if getattr(base.config, "quantization_config", None) is not None:
        raise ModelError(
            "the base's weights are quantised, and what is merged into them would be too; an "
            "unquantised base is needed"
        )
    if base.dtype != torch.float32:
        raise ModelError(f"weights are added in fp32, and the base is in {base.dtype}")
    _untie(base)
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except ValueError as exc:  # weights that are not numbers
        raise ModelError(f"the adapter cannot be merged: {exc}") from exc
    merged.eval()
    return merged


def _untie(base: Any) -> None:
    """Give the output layer weights of its own where it shares an embedding that is adapted, or
    is adapted itself: the one's change would be the other's too."""
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    if None in layers or not any(isinstance(layer, BaseTunerLayer) for layer in layers):
        return
    own: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
    if own[0].weight is own[1].weight:
        own[1].weight = nn.Parameter(own[1].weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False


def stored_dtype(base: Base) -> MergedDtype:
    """What most of the weights in the base's files are in; fp32 for any that bf16 would cut."""
    sizes: Counter[str] = Counter()
    for file in base.path.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - it is no mapping
                tensor = stored.get_slice(name)
                sizes[tensor.get_dtype()] += math.prod(tensor.get_shape())
    return "bf16" if sizes.most_common(1)[0][0] == "BF16" else "fp32"


def fingerprint(adapter: Path) -> str:
    """SHA-256 over an adapter's weights and card."""
    digest = hashlib.sha256()
    for name in (WEIGHTS, CARD):
        digest.update((adapter / name).read_bytes())
    return digest.hexdigest()


# Checking


@torch.inference_mode()
def _logits(loaded: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """By stretch of text, the logits that its answer hangs on: (positions, classes or tokens).

    A stretch is a window; one that is too long for the model is left out.
    """
    head, limit = loaded.head, token_limit(loaded.model)
    model: nn.Module = loaded.model
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for text in texts:
        for window in split(text, loaded.card.window):
            piece = Example(id="", text=text[window.start : window.end])
            with suppress(TooLong):
                if head.ask([piece.text])[0].tokens > limit:
                    continue
                batch = head.collate([head.encode(piece)]).to(device)
                output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
                found.append(output.logits[batch.targets != IGNORED].float().cpu())
    return found


def _agreeing(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: MergedDtype) -> float:
    """The largest difference as a share of the largest logit. Raises ModelError if too large."""
    if [len(logits) for logits in found] != [len(logits) for logits in expected]:
        raise ModelError("the merged model's tokenizer is not the adapter's: not merged")
    theirs, ours = torch.cat([*expected]).double(), torch.cat([*found]).double()
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference <= LOGIT_TOLERANCE[dtype]:  # which no NaN is
        raise ModelError(
            f"the merged model's logits in {dtype} differ from the adapter's by {difference:.2g} "
            f"of the largest, over {LOGIT_TOLERANCE[dtype]:g}: not merged; {_advice(dtype)}"
        )
    return difference


def _advice(dtype: MergedDtype) -> str:
    if dtype == "bf16":
        return "this adapter does not bear rounding, take fp32"
    return "its weights are broken or of a kind that cannot be merged"


def _f1(loaded: LoadedModel, examples: Sequence[Example]) -> float:
    found = Tagger.of(loaded).tag([example.text for example in examples])
    return score([example.entities for example in examples], found).f1


# Files


def _write(folder: Path, merged: LoadedModel, adapter: Path, card: AdapterCard) -> None:
    try:
        merged.model.save_pretrained(str(folder))
        load_tokenizer(adapter).save_pretrained(folder)
        (folder / CARD).write_text(card_json(card), encoding="utf-8")
    except (OSError, SafetensorError) as exc:
        raise StorageError(
            f"the merged model cannot be written to {folder}: {exc}; "
            "point TMPDIR at a disk with room"
        ) from exc


def _load_merged(folder: Path, dtype: MergedDtype, device: torch.device) -> LoadedModel:
    card = AdapterCard.read(folder)
    model = load_model(
        find_base(str(folder)), card.head, output_names(card.head, card.labels), dtype, device
    )
    _check_head_stored(model, folder)
    head = make_head(
        card.head, load_tokenizer(folder), card.labels, card.instruction, context(model)
    )
    return LoadedModel(model=model, head=head, card=card)


def _check_head_stored(model: PreTrainedModel, folder: Path) -> None:
    """A base may lack its output layer, which is then made up; a merged model may not."""
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            stored.update(opened.keys())
    inner = model.base_model_prefix + "."
    own = {name for name, _ in model.named_parameters() if not name.startswith(inner)}
    made_up = sorted(own - stored)
    if made_up:
        raise ModelError(f"{folder} has no weights for {made_up[0]}: it was not written whole")


def _publish(folder: Path, output: str, card: AdapterCard) -> None:
    (folder / CARD).unlink()
    (folder / "README.md").write_text(_readme(card, output), encoding="utf-8")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        storage.upload_folder(folder, output)
        published = storage.create(storage.join(output, CARD), card_json(card).encode())
    except BaseException:
        for name in names:
            with suppress(StorageError):
                storage.remove(storage.join(output, name))
        raise
    if not published:
        raise StorageError(
            f"another job wrote to {output} meanwhile, and its files are of both; remove it and "
            "merge again"
        )


def _readme(card: AdapterCard, output: str) -> str:
    """The model card: front matter for the Hub, then text for people.

    What others have named stands in code and JSON, where no character of it is Markdown.
    """
    made_of = {
        "base": card.base,
        "revision": card.revision,
        "base_fingerprint": card.base_fingerprint,
        "head": card.head,
        "labels": card.labels,
        **(card.merged or {}),
        "scores": card.scores,
    }
    return f"""\
---
library_name: transformers
pipeline_tag: token-classification
tags: ["token-classification", "named-entity-recognition", "raytag"]
---

# A model that finds named entities

A LoRA adapter merged into its base by Raytag; neither peft nor the base is needed to load it.
On a handful of texts its logits were compared with the adapter's on the base in fp32:
`difference` below is the largest there was, as a share of the largest logit. `scores` are those
of the adapter when it was trained, strict and at entity level.

## Use

```python
{snippet(card, output).rstrip()}
```

## Made of

```json
{json.dumps(made_of, indent=2, ensure_ascii=False)}
```
"""
