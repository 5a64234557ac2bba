"""Hugging Face data sets as ``save_to_disk`` leaves them, local or on S3.

A folder of one data set, or with ``#split`` one of several. Tags may be numbers whose names
stand in the data set's features.
"""

import tempfile
from typing import Any

from raytag import storage
from raytag.errors import DataError
from raytag.text.formats.intake import BadRowError, Intake


def looks_like(folder: str) -> bool:
    return any(storage.exists(storage.join(folder, n)) for n in ("state.json", "dataset_dict.json"))


def read(folder: str, split: str, file: str, stem: str, intake: Intake) -> None:
    """Hands every row of a data set to the intake; rows count from 1."""
    with tempfile.TemporaryDirectory(prefix="raytag-") as scratch:
        local = folder
        if "://" in folder:
            storage.download_folder(folder, scratch)
            local = scratch
        data = _load(local, split, file)
        names = _tag_names(data.features)
        for number, record in enumerate(data, 1):
            try:
                for column, known in names.items():
                    record[column] = _named(record[column], known)
                intake.add_record(f"{stem}:{number}", record)
            except BadRowError as bad:
                intake.reject(file, number, str(bad), repr(record))


def _load(local: str, split: str, file: str) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(local)
    except Exception as exc:  # datasets lets the errors of all its parts through
        said = " ".join(str(exc).split())
        raise DataError(f"{file}: not a readable data set ({said}); save it anew") from exc
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(
                f"{file}: name one of its splits, {', '.join(f'#{name}' for name in data)}"
            )
        return data[split]
    if split:
        raise DataError(f"{file}: this data set has no splits; leave #{split} out")
    return data


def _tag_names(features: Any) -> dict[str, list[str]]:
    """By column, the names of tags that are numbers."""
    inner = {column: getattr(feature, "feature", None) for column, feature in features.items()}
    names = {column: getattr(kind, "names", None) for column, kind in inner.items()}
    return {column: list(known) for column, known in names.items() if known}


def _named(numbers: list[int] | None, names: list[str]) -> list[str] | None:
    if numbers is None:
        return None
    if not all(isinstance(n, int) and 0 <= n < len(names) for n in numbers):
        raise BadRowError(
            f"a tag is outside the {len(names)} that the features name; mend the tags"
        )
    return [names[n] for n in numbers]
