"""What a job trains on: read, split, drawn and set aside as its settings say, and identified."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raytag.errors import DataError, SettingsError
from raytag.text.formats import read_examples
from raytag.train.data import FREE, gather, settings_fingerprint
from raytag.train.settings import FinetuneSettings


def _rows(count: int, start: int = 0) -> list[str]:
    return [
        json.dumps(
            {
                "id": f"{i}",
                "text": f"Ann{i} saw Rome.",
                "entities": [
                    {"start": 0, "end": 3 + len(str(i)), "label": "PER"},
                    *([{"start": 8 + len(str(i)), "end": 12 + len(str(i)), "label": "LOC"}]),
                ],
            }
        )
        for i in range(start, start + count)
    ]


@pytest.fixture
def settings(tmp_path: Path) -> FinetuneSettings:
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(_rows(50)), encoding="utf-8")
    return FinetuneSettings(base="none", train=str(train), output=str(tmp_path / "out"))


def test_what_is_not_given_is_split_off_and_said(settings: FinetuneSettings) -> None:
    data = gather(settings)
    assert [len(part) for part in data.splits.values()] == [40, 5, 5]
    assert len({example.text for part in data.splits.values() for example in part}) == 50
    assert "dev: 5 examples split off train by seed 0" in data.notes
    assert data.labels == ("LOC", "PER")
    assert data.window == len("Ann10 saw Rome.")
    assert gather(settings).fingerprint() == data.fingerprint()
    assert gather(replace(settings, seed=1)).fingerprint() != data.fingerprint()


def test_only_the_missing_part_is_split_off(settings: FinetuneSettings, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text("\n".join(_rows(7, start=90)), encoding="utf-8")
    data = gather(replace(settings, test=str(test)))
    assert [len(part) for part in data.splits.values()] == [45, 5, 7]


def test_few_shots_are_drawn_from_train_alone(settings: FinetuneSettings) -> None:
    data = gather(replace(settings, k_shot=3))
    assert 3 <= data.counts()["train"]["examples"] < 10
    assert data.counts()["dev"]["examples"] == 5
    assert any("3 per type" in note for note in data.notes)


def test_so_many_examples_are_drawn_from_train_by_seed(settings: FinetuneSettings) -> None:
    data, other = (gather(replace(settings, examples=12, seed=seed)) for seed in (0, 1))
    assert [len(part) for part in data.splits.values()] == [12, 5, 5]
    assert set(data.train) != set(other.train)
    assert "train: 12 examples drawn by seed 0" in data.notes
    with pytest.raises(DataError, match=r"train\.jsonl: 41 examples .* there are 40; lower"):
        gather(replace(settings, examples=41))
    with pytest.raises(SettingsError, match="both say how many"):
        replace(settings, examples=12, k_shot=3)


def test_bad_rows_are_set_aside_and_written_down(
    settings: FinetuneSettings, tmp_path: Path
) -> None:
    train = Path(settings.train)
    bad = '{"id": "x", "text": "Ann", "entities": [{"start": 0, "end": 9, "label": "PER"}]}'
    train.write_text("\n".join([*_rows(20), bad]), encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.jsonl:21"):
        gather(settings)
    data = gather(replace(settings, on_bad="set-aside"))
    data.write(str(tmp_path / "data"))
    assert sum(len(part) for part in data.splits.values()) == 20
    kept = (tmp_path / "data" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 1
    assert "9" in kept[0]
    for name, part in data.splits.items():
        assert list(read_examples(str(tmp_path / "data" / f"{name}.jsonl")).examples) == list(part)


def test_nothing_to_learn_from_is_said(settings: FinetuneSettings) -> None:
    Path(settings.train).write_text('{"text": "no one", "entities": []}\n' * 9, encoding="utf-8")
    with pytest.raises(DataError, match="no entities to learn from"):
        gather(settings)


def test_a_run_is_known_by_what_shapes_its_result(settings: FinetuneSettings) -> None:
    def mark(of: FinetuneSettings) -> str:
        return settings_fingerprint(asdict(of), "data", "base")

    same = replace(settings, workers="4", zero="2", output="elsewhere", batch_tokens=99)
    assert mark(same) == mark(settings)
    for change in ({"lr": 0.5}, {"seed": 7}, {"batch_size": 2}, {"head": "generate"}):
        assert mark(replace(settings, **change)) != mark(settings)  # type: ignore[arg-type]
    assert settings_fingerprint(asdict(settings), "data", "other base") != mark(settings)
    assert set(asdict(settings)) >= FREE
