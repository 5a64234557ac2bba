"""A report like that of a real run, and a nasty one: markup, right-to-left text, emoji."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import strategies as st

from raytag.report.content import CurvePoint, DataNotes, Report, Resources
from raytag.report.mistakes import worst_errors
from raytag.text.score import confusion, join_examples, score
from raytag.text.spans import Entity, Example

MARKUP = '<script>alert("1")</script>'

TEXTS = (
    "Tim Cook of Apple met Angela Merkel 🇩🇪 in Seoul on Tuesday, and neither of them smiled.",
    "The family of José Álvarez 👩‍👩‍👧 sued Deutsche Bank over a villa near Cafe\u0301 Central.",
    "زار أحمد زويل جامعة القاهرة في عام 1999 ثم عاد إلى New York بعد ذلك.",
    "ראש הממשלה דוד בן-גוריון נאם בתל אביב.",
    "삼성전자는 서울에서 갤럭시 S24를 공개했다.",
    "The insurer, a subsidiary of Allianz, said that the regulator had asked it in writing"
    " whether the losses of its branch in Rio de Janeiro, which it had reported to nobody, were"
    " covered by Munich Re or by the ministry itself.",
)
NAMES = (
    (("Tim Cook", "PER"), ("Apple", "ORG"), ("Angela Merkel", "PER"), ("Seoul", "LOC")),
    (("José Álvarez", "PER"), ("Deutsche Bank", "ORG"), ("Cafe\u0301 Central", "FACILITY")),
    (("أحمد زويل", "PER"), ("جامعة القاهرة", "ORG"), ("New York", "LOC")),
    (("דוד בן-גוריון", "PER"), ("תל אביב", "LOC")),
    (("삼성전자", "ORG"), ("서울", "LOC"), ("갤럭시 S24", "PRODUCT")),
    (("Allianz", "ORG"), ("Rio de Janeiro", "LOC"), ("Munich Re", "ORG")),
)

ENTITIES = st.lists(
    st.builds(
        lambda start, length, label: Entity(start, start + length, label),
        st.integers(0, 12),
        st.integers(1, 5),
        st.sampled_from("AB"),
    ),
    max_size=6,
)
"""Entities of a text of 17 characters, which may overlap, cross and repeat."""


def located(text: str, names: Sequence[tuple[str, str]]) -> tuple[Entity, ...]:
    """The entities of which the names are given, each where it first stands."""
    starts = [text.index(name) for name, _ in names]
    return tuple(
        Entity(start, start + len(name), label)
        for start, (name, label) in zip(starts, names, strict=True)
    )


EXAMPLES = tuple(
    Example(f"doc-{i // 2}/{i}", text, located(text, names), f"doc-{i // 2}")
    for i, (text, names) in enumerate(zip(TEXTS, NAMES, strict=True))
)


def predictions() -> list[list[Entity]]:
    """Mostly right: with a wrong type, a boundary, a missed and a spurious entity."""
    found = [[Entity(e.start, e.end, e.label, 0.99) for e in ex.entities] for ex in EXAMPLES]
    apple = found[0][1]
    found[0][1] = Entity(apple.start, apple.end, "PRODUCT", 0.87)
    found[0][3] = Entity(found[0][3].start, found[0][3].end + len(" on Tuesday"), "LOC", 0.61)
    cafe = found[1].pop()
    found[1].append(Entity(cafe.start, cafe.start + 4, "ORG", 0.42))
    found[2][1] = Entity(found[2][0].end + 1, found[2][0].end + 6, "LOC", 0.7)
    found[5].append(Entity(TEXTS[5].index("ministry"), TEXTS[5].index("ministry") + 8, "ORG", 0.93))
    return [sorted(row) for row in found]


def training_curve(steps: int = 190) -> tuple[CurvePoint, ...]:
    """A loss that falls and wobbles, evaluated every 19 steps."""
    return tuple(
        CurvePoint(
            step=step,
            epoch=step / 19,
            loss=2.1 * math.exp(-step / 22) + 0.04 + 0.05 * math.sin(step * 1.7) ** 2,
            seconds=0.61 * step,
            dev_f1=0.88 - 0.8 * math.exp(-step / 30) if step % 19 == 0 else None,
        )
        for step in range(1, steps + 1)
    )


def learning_rates(steps: int = 190) -> dict[str, list[tuple[int, float]]]:
    """A warm-up and a straight way down, for each of the three groups of LoRA+."""
    shape = [min(step / 12, (steps - step) / (steps - 12)) for step in range(1, steps + 1)]
    peaks = {"lora_A": 1e-4, "lora_B": 1.6e-3, "head": 1e-3}
    return {
        group: [(step, peak * part) for step, part in enumerate(shape, start=1)]
        for group, peak in peaks.items()
    }


def make_report() -> Report:
    gold = [example.entities for example in EXAMPLES]
    found = predictions()
    scores = score(gold, found)
    documents = join_examples(EXAMPLES)
    return Report(
        title="acme/biomedical",
        summary="Qwen3-0.6B-Base, generating head, LoRA+ on 2 workers. 23 November 2026.",
        test=scores,
        dev=score(gold[:3], found[:3]),
        test_documents=score([d.entities for d in documents], [d.entities[1:] for d in documents]),
        ceiling={"train": 1.0, "dev": 0.998, "test": 0.991},
        baseline=0.113,
        curve=training_curve(),
        learning_rates=learning_rates(),
        confusions=confusion(gold, found),
        errors=worst_errors(EXAMPLES, found, 10),
        data=DataNotes(
            counts={
                "train": {"examples": 300, "entities": 812, "documents": 104},
                "dev": {"examples": 100, "entities": 266},
                "test": {"examples": 1200, "entities": 3190, "documents": 391},
            },
            notes=(
                "7 sentences of train occur in test as well; they were kept.",
                "FACILITY has 4 entities in train: expect little of it.",
            ),
            check={"duplicates": {"train": 2, "across": 7}, "rare": ["FACILITY"], "ok": True},
            fingerprint="sha256:9f2c4be01d0f6a75",
        ),
        settings={
            "base": "Qwen/Qwen3-0.6B-Base",
            "lora": {"rank": 16, "alpha": 32, "dropout": 0.05, "ratio": 16},
            "epochs": 10,
            "batch": 16,
            "seed": 0,
            "targets": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "resume": None,
        },
        resources=Resources(
            seconds={
                "data": 1.4,
                "load": 6.2,
                "baseline": 9,
                "train": 116,
                "test": 14.3,
                "save": 2,
            },
            examples_per_second=26.2,
            peak_memory_bytes=7_412_000_000,
            workers=2,
            zero_stage=2,
            device="NVIDIA H100",
        ),
        versions={"raytag": "0.1.0", "torch": "2.9.1", "ray": "2.51.0", "peft": "0.18.0"},
    )


def make_hostile_report() -> Report:
    """Markup wherever a user's words can stand, and half a surrogate pair."""
    text = f"{MARKUP} \ud83d Ann & Bob \x1b[31m\u202e"
    example = Example(MARKUP, text, (Entity(0, len(MARKUP), MARKUP),))
    found = [[Entity(0, 8, MARKUP, 0.5), Entity(28, 32, "A|B")]]
    return Report(
        title=MARKUP,
        summary=MARKUP,
        test=score([example.entities], found),
        confusions=confusion([example.entities], found),
        errors=worst_errors([example], found, 3),
        learning_rates={MARKUP: [(1, 0.1)], "B": [(1, 0.2)]},
        curve=[CurvePoint(step=1, epoch=1, loss=math.nan, seconds=1, dev_f1=0.5)],
        data=DataNotes(
            counts={MARKUP: {MARKUP: 1}}, notes=[MARKUP], check={MARKUP: MARKUP}, fingerprint=MARKUP
        ),
        settings={MARKUP: MARKUP},
        resources=Resources(seconds={MARKUP: 0}, device=MARKUP),
        versions={MARKUP: MARKUP},
    )
