"""The sample corpora and the sample base: made as they say, apart as they promise."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from raytag.text import sample
from raytag.text.sample import lexicon, names, skeletons
from raytag.text.sample.grammar import Sentence

ROOT = Path(__file__).resolve().parents[2]
ALL = list(itertools.product(sample.DOMAINS, sample.SPLITS))


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], list[sample.Row]]:
    return {(domain, split): sample.corpus(domain, split) for domain, split in ALL}


@pytest.fixture(scope="module")
def pretraining() -> ModuleType:
    sys.path.insert(0, str(ROOT / "sample"))
    try:
        return importlib.import_module("pretrain_text")
    finally:
        sys.path.remove(str(ROOT / "sample"))


@pytest.fixture(scope="module")
def pretrained(pretraining: ModuleType) -> list[Sentence]:
    """20,000 sentences as the base's pretraining makes them."""
    import random

    writer = pretraining.Writer(random.Random(5))
    return [writer.sentence(speaker) for speaker in writer.speakers for _ in range(10_000)]


def names_in(rows: list[sample.Row]) -> list[tuple[str, str]]:
    return [
        (row["text"][e["start"] : e["end"]], e["label"]) for row in rows for e in row["entities"]
    ]


@pytest.mark.parametrize(("domain", "split"), ALL)
def test_the_shipped_file_is_what_the_seed_makes(domain: str, split: str) -> None:
    shipped = (ROOT / "sample" / domain / f"{split}.jsonl").read_text(encoding="utf-8")
    assert shipped == sample.as_jsonl(sample.corpus(domain, split))


def test_writing_gives_the_shipped_files_and_another_seed_others(tmp_path: Path) -> None:
    written = sample.write(tmp_path)
    assert len(written) == len(ALL)
    for path in written:
        assert path.read_bytes() == (ROOT / "sample" / path.relative_to(tmp_path)).read_bytes()
    assert sample.corpus("news", "dev", seed=8) != sample.corpus("news", "dev")


@pytest.mark.parametrize(("domain", "split"), ALL)
def test_offsets_point_at_names(
    rows: dict[tuple[str, str], list[sample.Row]], domain: str, split: str
) -> None:
    for row in rows[domain, split]:
        end = 0
        for entity in row["entities"]:
            assert end <= entity["start"] < entity["end"] <= len(row["text"])
            name = row["text"][entity["start"] : entity["end"]]
            assert name == name.strip()
            assert entity["label"] in sample.labels(domain)
            assert not set(name) & set("[]:\n"), "the answer's own marks are no name's"
            end = entity["end"]


@pytest.mark.parametrize(("domain", "split"), ALL)
def test_documents_are_three_to_six_sentences_in_a_row(
    rows: dict[tuple[str, str], list[sample.Row]], domain: str, split: str
) -> None:
    found = rows[domain, split]
    assert len(found) == sample.SIZES[split]
    assert len({row["id"] for row in found}) == len(found)
    documents = [row["document"] for row in found]
    runs = [(name, len(list(group))) for name, group in itertools.groupby(documents)]
    assert len({name for name, _ in runs}) == len(runs), "a document is one run"
    assert {length for _, length in runs} <= {3, 4, 5, 6}


def test_no_name_and_no_part_of_one_is_in_two_pools(
    rows: dict[tuple[str, str], list[sample.Row]], pretrained: list[Sentence]
) -> None:
    words = {split: set[str]() for split in names.POOLS}
    for (_, split), found in rows.items():
        for name, _ in names_in(found):
            words[split].update(word.casefold() for word in names.invented(name))
    for sentence in pretrained:
        for m in sentence.mentions:
            name = sentence.text[m.start : m.end]
            words["pretraining"].update(word.casefold() for word in names.invented(name))
    for pool, other in itertools.combinations(names.POOLS, 2):
        assert not words[pool] & words[other]
    for pool, found_words in words.items():
        assert {names.pool_of(word) for word in found_words} == {pool}


def test_no_skeleton_is_in_two_pools(pretraining: ModuleType, pretrained: list[Sentence]) -> None:
    cores = {split: {*skeletons.CORES[split], *skeletons.EMPTY[split]} for split in sample.SPLITS}
    cores["pretraining"] = {*pretraining.CORES, *pretraining.EMPTY}
    for pool, other in itertools.combinations(names.POOLS, 2):
        assert not cores[pool] & cores[other]
    # Nor once the letters of the slots are made alike, in whole sentences as they were made.
    held_out = {plain(core) for split in sample.SPLITS for core in cores[split]}
    for sentence in pretrained:
        assert plain(sentence.skeleton) not in held_out


def plain(skeleton: str) -> str:
    """A skeleton without its ending, slots by role alone."""
    return re.sub(r"\{[A-Z]\d?", "{x", skeleton).replace("{", "").replace("}", "").rstrip(".!?…")


def test_cue_words_of_one_split_are_no_others() -> None:
    for label, roles in itertools.product(
        itertools.chain(*lexicon.LABELS.values()), ("noun", "adj", "verb", "act", "part")
    ):
        shares = [set(lexicon.cues(label, roles, split)) for split in sample.SPLITS]
        whole = lexicon.cues(label, roles, "pretraining")
        assert sum(map(len, shares)) == len(whole) == len(set(whole))
        assert set().union(*shares) == set(whole)


@pytest.mark.parametrize(("domain", "split"), ALL)
def test_the_same_letters_name_different_things(
    rows: dict[tuple[str, str], list[sample.Row]], domain: str, split: str
) -> None:
    types: dict[str, set[str]] = {}
    for name, label in names_in(rows[domain, split]):
        types.setdefault(name, set()).add(label)
    assert sum(len(labels) > 1 for labels in types.values()) >= 5


@pytest.mark.parametrize(("domain", "split"), ALL)
def test_some_sentences_name_nothing(
    rows: dict[tuple[str, str], list[sample.Row]], domain: str, split: str
) -> None:
    found = rows[domain, split]
    assert 0.08 < sum(not row["entities"] for row in found) / len(found) < 0.22


@pytest.mark.parametrize("domain", sample.DOMAINS)
def test_text_is_as_untidy_as_text(
    rows: dict[tuple[str, str], list[sample.Row]], domain: str
) -> None:
    for split in ("train", "test"):
        text = "\n".join(row["text"] for row in rows[domain, split])
        for what in (
            "[à-ž]",
            "[α-ω]|[а-я]",
            "[\U0001f300-\U0001faff]",
            "[“’–…]",
            r"\(",
            r"\[",
            ":",
        ):
            assert re.search(what, text), what
        assert re.search(r"\d", text)
        assert re.search("Monday|Friday|Sunday", text)


def test_pretraining_never_sees_the_prompt_of_fine_tuning(pretraining: ModuleType) -> None:
    pages = itertools.islice(pretraining.pages("test", False), 3_000)
    text = "\n".join(page.text for page in pages)
    assert "Extract named entities" not in text
    assert "Answer:" not in text
    for label in itertools.chain(*lexicon.LABELS.values()):
        assert not re.search(rf"\b{label}\b", text)


def test_the_base_fits() -> None:
    base = ROOT / "sample" / "base"
    files = [path for path in base.rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in files
    }
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert json.loads((base / "config.json").read_text())["model_type"] == "llama"
