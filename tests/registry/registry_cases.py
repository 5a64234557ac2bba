"""What the tests of the registry share: adapters that cost nothing, and many at once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from raytag.errors import RaytagError
from raytag.model.adapter import CARD, WEIGHTS, AdapterCard, card_json
from raytag.text.score import Score, Scores


def write_adapter(folder: Path, f1: tuple[int, int] = (6, 2), **settings: Any) -> str:
    """``f1`` is how many of 10 entities each of two types has right."""
    folder.mkdir(parents=True)
    types = {label: Score(n, 10 - n, 10 - n) for label, n in zip(("LOC", "PER"), f1, strict=True)}
    micro = Score(sum(f1), 20 - sum(f1), 20 - sum(f1))
    card = AdapterCard(
        head="tag",
        labels=("LOC", "PER"),
        base="some/base",
        revision="abc",
        base_fingerprint="f" * 64,
        load_in="fp32",
        window=200,
        settings={"rank": 16, "lr": 1e-4, **settings},
        data={"fingerprint": "d" * 64, "counts": {"train": {"examples": 9, "entities": 20}}},
        scores={"test": Scores(micro, types).to_dict()},
    )
    save_file({"weight": np.arange(4.0)}, folder / WEIGHTS)
    (folder / CARD).write_text(card_json(card))
    return str(folder)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each gave, or the RaytagError it raised, all begun at the same moment."""
    barrier = threading.Barrier(len(works), timeout=60)

    def do(work: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return work()
        except RaytagError as exc:
            return exc

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(do, works))
