"""Where a training run begins and where its adapter goes: the registry's part in it.

Knows versions and folders of adapters; trains nothing. A run is published once, however often
its last steps are tried: its fingerprint stands in the version's record.
"""

import hashlib
from typing import Any

from raytag import storage
from raytag.errors import SettingsError
from raytag.model.adapter import Parent
from raytag.registry.records import Version
from raytag.registry.registry import Registry, located
from raytag.train.data import TrainingData
from raytag.train.settings import FinetuneSettings

ALIKE = ("rank", "alpha", "targets")
"""Settings that an adapter and one that begins from it must share."""


def read_parent(settings: FinetuneSettings) -> Parent | None:
    """The adapter that ``--warm-start`` names, a version or a folder.

    Raises SettingsError where it is of another head or shape, naming what differs.
    """
    named = settings.warm_start
    if named is None:
        return None
    name, place = located(named, settings.registry)
    with storage.on_disk(place) as folder:
        parent = Parent.read(folder, name, version=name if name != place else None)
    card = parent.card
    theirs: dict[str, Any] = {"head": card.head, **{key: card.settings.get(key) for key in ALIKE}}
    mine = {key: getattr(settings, key) for key in theirs}
    if settings.head == "generate":
        theirs["instruction"], mine["instruction"] = card.instruction, settings.instruction
    for key, value in mine.items():
        there = tuple(theirs[key]) if isinstance(theirs[key], list) else theirs[key]
        if there is not None and there != value:
            raise SettingsError(
                f"--warm-start {named} has {key} {there} and this run {value}; give --{key} alike"
            )
    return parent


def begun_from(settings: FinetuneSettings, fingerprint: str, parent: Parent | None) -> str:
    """The fingerprint of what a run starts with: the base's, and with a parent that of both.

    Raises SettingsError where the parent is of another base.
    """
    if parent is None:
        return fingerprint
    if parent.card.base_fingerprint != fingerprint:
        raise SettingsError(
            f"--warm-start {settings.warm_start} was trained on another base, {parent.card.base}; "
            f"begin from an adapter of {settings.base}"
        )
    return hashlib.sha256(f"{fingerprint} {parent.fingerprint}".encode()).hexdigest()


def register(
    settings: FinetuneSettings, data: TrainingData, run: str, parent: Parent | None
) -> Version | None:
    """The version of this run, published now if it was not before; None without a tenant."""
    if settings.tenant is None or settings.domain is None:
        return None
    return Registry(settings.registry).publish(
        storage.join(settings.output, "adapter"),
        settings.tenant,
        settings.domain,
        run=run,
        parent=parent.version if parent else None,
        training_texts=[example.text for part in (data.train, data.dev) for example in part],
    )
