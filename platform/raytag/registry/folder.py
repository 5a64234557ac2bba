"""An adapter's folder before it is published: what may be in it, and which texts it learned.

Loads no weights and runs nothing of what it looks at. Weights come as safetensors only: whatever
could be unpickled by a loader is refused, by its name and by its first bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from raytag.errors import ModelError
from raytag.registry.records import is_file_name

if TYPE_CHECKING:
    from raytag.model.adapter import AdapterCard

TRAINING_TEXTS = "training_texts.json"
OTHER_WEIGHTS = frozenset(
    ".bin .ckpt .gguf .h5 .joblib .msgpack .npy .npz .onnx .pickle .pkl .pt .pth".split()
)
_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def read_adapter(folder: Path) -> "tuple[AdapterCard, list[str]]":
    """(its card, the names of its files, the card's last). Raises ModelError for what may not
    be published."""
    from raytag.model.adapter import CARD, WEIGHTS, AdapterCard

    card = AdapterCard.read(folder)
    if card.merged is not None:
        raise ModelError(f"{folder} is a merged model; publish the adapter it was made of")
    names = _files(folder)
    if WEIGHTS not in names:
        raise ModelError(f"{folder} holds no {WEIGHTS}; publish a whole adapter")
    _check_safetensors(folder / WEIGHTS)
    for name in names:
        if name != WEIGHTS:
            _check_harmless(folder / name)
    return card, [*(name for name in names if name != CARD), CARD]


def hashes(texts: Iterable[str]) -> set[str]:
    """The first 12 hex digits of the SHA-256 of each text, its white space made single spaces."""
    return {hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:12] for text in texts}


def training_texts_json(texts: Iterable[str]) -> bytes:
    """What stands in TRAINING_TEXTS."""
    return json.dumps(sorted(hashes(texts))).encode()


def _files(folder: Path) -> list[str]:
    """The names of all files below it, sorted."""
    found = []
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(top, name)
            if path.is_symlink():
                raise ModelError(f"{path} is a symbolic link; put the file itself there")
            if name in folders:
                continue
            relative = path.relative_to(folder).as_posix()
            if not path.is_file() or not is_file_name(relative):
                raise ModelError(f"{str(path)!a} is no plain file; remove it")
            found.append(relative)
    return sorted(found)


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except (SafetensorError, OSError, ValueError) as exc:
        raise ModelError(f"{path} is not safetensors: {exc}") from exc


def _check_harmless(path: Path) -> None:
    if path.suffix.lower() in OTHER_WEIGHTS or path.suffix.lower() == ".safetensors":
        raise ModelError(f"{path} holds other weights than the adapter's own; remove it")
    with path.open("rb") as file:
        head = file.read(4)
    if head == _ZIP or head[:2] in _PICKLES:
        raise ModelError(f"{path} holds pickled data or an archive; remove it")
