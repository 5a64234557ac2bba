"""How much memory a training worker needs, by arithmetic, before anything is loaded.

Knows parameter counts from a base's config alone (the model is laid out without weights). An
estimate: it leaves out fragmentation and the libraries' own buffers, for which a reserve is
added. Activations follow Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, without the
attention scores, which fused attention does not keep.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from raytag.model.settings import LoraSettings

GIB = 2**30
_RESERVE = 1.5 * GIB
"""What PyTorch, its kernels and the collectives take for themselves."""
_BYTES = {"fp32": 4.0, "bf16": 2.0, "8bit": 1.0, "4bit": 0.56}
"""Per weight of the base; 4 bit with its double-quantised scales (QLoRA, section 3)."""


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes for one worker, by what they are for."""

    base: float
    adapter: float
    """Trained weights, their gradients, fp32 copies and moments."""
    activations: float
    loading: float = 0.0
    """In the CPU's memory, before ZeRO-3 parts the base; gone when training begins."""
    reserve: float = _RESERVE

    @property
    def total(self) -> float:
        return self.base + self.adapter + self.activations + self.reserve

    def lines(self) -> list[str]:
        """For people, in GiB."""
        parts = {
            "base": self.base,
            "adapter with gradients and moments": self.adapter,
            "activations": self.activations,
            "reserve": self.reserve,
            "in all, for each worker": self.total,
        }
        if self.loading:
            parts["on the CPU while the base is loaded, for each worker"] = self.loading
        return [f"{value / GIB:8.2f} GiB  {name}" for name, value in parts.items()]


def laid_out(config: PreTrainedConfig) -> PreTrainedModel:
    """The base without weights, and without a head's own."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config)
    return model


def memory_need(
    config: PreTrainedConfig,
    *,
    load_in: str,
    lora: LoraSettings,
    zero: int,
    workers: int,
    offload: bool,
    batch_tokens: int,
    longest: int,
    gradient_checkpointing: bool,
    generates: bool,
) -> MemoryNeed:
    """Bytes one worker needs. ``longest`` is the longest example in tokens; ``generates`` says
    that every labelled position is scored over the whole vocabulary."""
    model = laid_out(config)
    total = model.num_parameters()
    blocks = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(p.isdigit() for p in path.split("."))
    ]
    adapted = sum(lora.rank * (m.in_features + m.out_features) for _, m in blocks)
    embedded = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    text = config.get_text_config()
    if generates and not text.tie_word_embeddings:
        embedded += text.vocab_size * text.hidden_size
        total += text.vocab_size * text.hidden_size
    # Embeddings and norms stay in the compute dtype whatever the linear layers are kept in.
    plain = 4.0 if load_in == "fp32" else 2.0
    base = embedded * plain + (total - embedded) * _BYTES[load_in]
    compute = 4 if load_in == "fp32" else 2
    moments = 0.0 if offload else 12.0 * adapted
    if zero >= 1:
        moments /= workers
    weights = adapted * compute * (1 if zero < 3 else 1 / workers)
    gradients = adapted * compute * (1 if zero < 2 else 1 / workers)
    tokens = max(batch_tokens, longest)
    layers, hidden = text.num_hidden_layers, text.hidden_size
    per_token = layers * hidden * 34 * compute / 2
    if gradient_checkpointing:
        per_token = layers * hidden * compute + hidden * 34 * compute / 2
    scored = tokens * text.vocab_size * 4.0 * 2 if generates else 0.0
    return MemoryNeed(
        base=base / workers if zero == 3 else base,
        adapter=moments + weights + gradients,
        activations=tokens * per_token + scored,
        loading=base if zero == 3 else 0.0,
    )
