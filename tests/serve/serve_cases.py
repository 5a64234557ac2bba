"""What the tests of serving share: adapters that say much, and where an application is."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from raytag.model.adapter import AdapterCard, output_names, save_adapter
from raytag.model.base import find_base, load_model, load_tokenizer
from raytag.model.lora import add_adapter
from raytag.model.settings import LoraSettings
from raytag.registry.registry import Registry
from raytag.serve.keys import Keys
from raytag.serve.settings import ServeSettings
from raytag.text.score import Score, Scores

STEADY = 6
"""Requests a second that the tenant "steady" may make."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running application: where it is, and what it serves."""

    url: str
    keys: dict[str, str]
    """Keys of tenants, by name; "release" is acme's too, "operator" nobody's."""
    registry: Registry
    key_store: Keys
    settings: ServeSettings
    adapters: Path
    """Folders of adapters, 0 to 15, no two alike."""


def write_adapter(folder: Path, base_folder: Path, seed: int) -> Path:
    """A tag adapter that says much: its weights are large and random."""
    base = find_base(str(base_folder))
    labels = (("LOC", "ORG", "PER"), ("GENE", "DRUG"))[seed % 2]
    torch.manual_seed(seed)
    model = load_model(base, "tag", output_names("tag", labels), "fp32")
    model = add_adapter(model, "tag", LoraSettings(rank=(2, 4)[seed % 2]))
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.2)
    score = Score(8, 2, 2)
    card = AdapterCard(
        head="tag",
        labels=labels,
        base=base.name,
        revision=None,
        base_fingerprint=base.fingerprint(),
        load_in="fp32",
        window=120 + 10 * seed,
        scores={"test": Scores(score, {labels[0]: score}).to_dict()},
    )
    save_adapter(folder, model, trained, base, load_tokenizer(base.path), card)
    return folder
