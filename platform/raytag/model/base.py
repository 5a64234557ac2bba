"""Base models: a pretrained directory, ``s3://`` prefix or hub name, loaded for a head.

Knows Hugging Face's loading code, dtypes and quantisation, and what makes a decoder's
attention bidirectional. Does not know adapters, data or training. Weights are read from
safetensors only and no code that comes with a model is ever run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from raytag.errors import ModelError
from raytag.model.files import find_model, fingerprint
from raytag.model.settings import HeadName, LoadIn


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model on this machine's disk, and the name it was asked for by."""

    name: str
    revision: str | None
    """With which ``find_base`` finds this very content on another host; None for a folder."""
    path: Path

    @property
    def config(self) -> PreTrainedConfig:
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                self.path, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as exc:
            raise ModelError(f"{self.name}: its config.json cannot be used: {_line(exc)}") from exc
        return config

    def fingerprint(self) -> str:
        """SHA-256 over config, tokenizer and weight files, by name and content."""
        return fingerprint(self.path)


def find_base(name: str, revision: str | None = None, *, weights: bool = True) -> Base:
    """The base in a folder, on an object store or on the hub, on this host's disk.

    Without ``weights`` the fingerprint is of no use, and what is found serves its config alone.
    Raises as :func:`~raytag.model.files.find_model`.
    """
    found = find_model(name, revision, weights=weights)
    return Base(name=name, revision=found.revision, path=found.path)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or adapter directory; it must map tokens to characters."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as exc:
        raise ModelError(f"{path}: its tokenizer cannot be loaded: {_line(exc)}") from exc
    if not tokenizer.is_fast:
        raise ModelError(f"{path}: its tokenizer gives no offsets; a tokenizer.json is needed")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether a model reads from left to right as it comes (an encoder reads both ways)."""
    return (
        config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def head_config(base: Base, head: HeadName, labels: tuple[str, ...]) -> PreTrainedConfig:
    """The config a base is loaded with for a head; ``labels`` are the tags of ``tag``.

    For ``tag`` a decoder's attention is made bidirectional (``is_causal = False``; LLM2Vec,
    BehnamGhader et al. 2024, section 2.1), and the config, saved with the adapter, carries it on.
    """
    config = base.config
    if head == "generate":
        if not is_decoder(config):
            raise ModelError(
                f"{base.name} ({config.model_type}) is no causal LM; the generate head needs one. "
                "Use --head tag with an encoder"
            )
        return config
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    if is_decoder(config):
        config.is_causal = False
    return config


def resolve_load_in(load_in: LoadIn) -> LoadIn:
    """``auto`` is bf16 on a GPU that has it and fp32 elsewhere."""
    if load_in not in get_args(LoadIn):
        raise ModelError(f"load_in must be one of {', '.join(get_args(LoadIn))}, not {load_in!r}")
    if load_in != "auto":
        return load_in
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def load_model(
    base: Base,
    head: HeadName,
    labels: tuple[str, ...],
    load_in: LoadIn = "auto",
    device: torch.device | None = None,
) -> PreTrainedModel:
    """The base with the head's output layer, in evaluation mode, on ``device``.

    For ``tag`` the output layer is new: its weights come from torch's default generator, so
    seed that first. Raises ModelError where the files do not make a model, or where a decoder
    cannot be made to read both ways.
    """
    device = device or torch.device("cpu")
    config = head_config(base, head, labels)
    kind: Any = AutoModelForTokenClassification if head == "tag" else AutoModelForCausalLM
    try:
        model, report = kind.from_pretrained(
            base.path,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **_dtype_arguments(resolve_load_in(load_in), head, device),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as exc:
        raise ModelError(f"{base.name} cannot be loaded for {head}: {_line(exc)}") from exc
    _check_nothing_missing(model, report["missing_keys"], head, base.name)
    if load_in not in ("8bit", "4bit"):
        model = model.to(device)
    if load_in == "4bit":
        _keep_packing(model)
    model.eval()
    if head == "tag" and is_decoder(config):
        _check_reads_both_ways(model, base.name)
    loaded: PreTrainedModel = model
    return loaded


def _dtype_arguments(load_in: LoadIn, head: HeadName, device: torch.device) -> dict[str, Any]:
    if load_in == "fp32":
        return {"dtype": torch.float32}
    if load_in == "bf16":
        return {"dtype": torch.bfloat16}
    settings: dict[str, Any] = {"load_in_8bit": True}
    if load_in == "4bit":
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": torch.bfloat16,
            "bnb_4bit_use_double_quant": True,
        }
    if head == "tag":
        # The output layer is new and will be trained: there is nothing in it to quantise.
        settings["llm_int8_skip_modules"] = ["score", "classifier"]
    quantised: Any = BitsAndBytesConfig
    return {
        "dtype": torch.bfloat16,
        "quantization_config": quantised(**settings),
        "device_map": {"": device},
    }


def _keep_packing(model: PreTrainedModel) -> None:
    # On a CPU with bf16 instructions bitsandbytes packs the weights anew at the first call in
    # evaluation mode, for a product that autograd does not know and narrow layers break.
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _check_nothing_missing(
    model: PreTrainedModel, names: Iterable[str], head: HeadName, base: str
) -> None:
    # Transformers makes missing weights up and only warns; that is right for a new tagging head
    # and for nothing else.
    inner = model.base_model_prefix + "."
    missing = sorted(name for name in names if head == "generate" or name.startswith(inner))
    if missing:
        raise ModelError(
            f"{base} has no weights for {len(missing)} tensors that {head} needs, "
            f"{missing[0]} among them: not a whole model, or not of this kind"
        )


@torch.inference_mode()
def _check_reads_both_ways(model: PreTrainedModel, name: str) -> None:
    # Not every architecture heeds is_causal, and one that does not would only tag worse.
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(2, 8, device=model.device).remainder(vocabulary)[None]
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary
    hidden = [model.base_model(input_ids=i).last_hidden_state[0, 0].float() for i in (ids, other)]
    if torch.equal(*hidden):
        raise ModelError(
            f"{name} ({model.config.model_type}) still reads from left to right only; "
            "the tag head needs a decoder whose attention heeds is_causal, or an encoder"
        )


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
