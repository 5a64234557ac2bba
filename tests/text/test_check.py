"""The check of training data: every oddity is counted."""

import json

from raytag.text.check import check_data
from raytag.text.spans import Entity, Example


def e(start: int, end: int, label: str = "PER") -> Entity:
    return Entity(start, end, label)


TRAIN = [
    Example("1", "Tim Cook in Seoul", (e(0, 8), e(12, 17, "LOC")), "d"),
    Example("2", "Paris met Paris", (e(0, 5), e(10, 15, "LOC")), "d"),
    Example("3", "nothing here"),
    Example("4", "nothing here"),
    Example("5", "Londoners", (e(0, 6, "LOC"),)),
    Example("6", "in Rome ", (e(2, 8, "LOC"), e(3, 7, "LOC"))),
]
DEV = [Example("7", "Tim Cook in Seoul", (e(0, 8),)), Example("8", "Ajax won", (e(0, 4, "ORG"),))]


def test_counts_of_a_part() -> None:
    train = check_data(TRAIN).splits["train"]
    assert (train.sentences, train.documents, train.entities) == (6, 5, 7)
    assert train.per_type == {"LOC": 5, "PER": 2}
    assert (train.without_entities, train.repeated) == (2, 1)
    assert (train.cut_words, train.padded, train.overlapping) == (1, 1, 1)
    assert train.lengths == {"p50": 12, "p90": 17, "p99": 17, "max": 17}


def test_counts_between_parts() -> None:
    check = check_data(TRAIN, DEV)
    assert check.leaked == {"dev": 1, "test": 0}
    assert check.contradictory == 1
    assert (check.surfaces, check.ambiguous) == (7, 1)
    assert check.unseen_labels == ("ORG",)


def test_it_is_said_for_people_and_for_machines() -> None:
    check = check_data(TRAIN, DEV)
    assert json.loads(json.dumps(check.to_dict()))["splits"]["dev"]["entities"] == 2
    assert check.lines() == [
        "train: 6 sentences in 5 documents, 7 entities (LOC 5, PER 2), "
        "characters p50 12, p90 17, p99 17, max 17",
        "dev: 2 sentences in 2 documents, 2 entities (ORG 1, PER 1), "
        "characters p50 8, p90 17, p99 17, max 17",
        "test: 0 sentences in 0 documents, 0 entities (none), characters none",
        "train: 2 sentences have no entity",
        "train: 1 entities cut a word",
        "train: 1 entities have spaces at an end",
        "train: 1 entities overlap another",
        "train: 1 texts repeat an earlier one",
        "dev: 1 texts stand in train too",
        "1 texts occur with different entities",
        "1 of 7 surfaces occur under several labels",
        "label ORG never occurs in train",
    ]


def test_clean_data_has_nothing_to_say() -> None:
    clean = [Example("1", "Tim Cook 🙂 in São Paulo", (e(0, 8), e(14, 23, "LOC")))]
    assert len(check_data(clean).lines()) == 3
