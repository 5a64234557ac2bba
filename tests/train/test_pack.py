"""Adapters trained together come out as those trained alone, whatever their neighbours are."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load
from tiny import checkpoint, encoder
from torch import Tensor

from raytag.errors import DataError, ModelError, SettingsError
from raytag.model.adapter import context, load_adapter, make_head, output_names, token_limit
from raytag.model.base import find_base, load_model, load_tokenizer
from raytag.model.lora import add_adapter, parameter_groups
from raytag.model.packed import PackedModel
from raytag.model.settings import HeadName
from raytag.model.tagger import Tagger
from raytag.text.check import check_data
from raytag.text.sample import corpus
from raytag.text.spans import Entity, Example
from raytag.train.data import TrainingData
from raytag.train.loop import Loop
from raytag.train.pack import Member, train_pack
from raytag.train.publish import publish
from raytag.train.settings import FinetuneSettings
from raytag.train.worker import Outcome

STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """What Loop, the reference, needs around it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    del os.environ["LOCAL_RANK"]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("llama"), "sentencepiece")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("bert"))


def examples(domain: str, split: str, seed: int, count: int) -> list[Example]:
    return [
        Example(row["id"], row["text"], tuple(Entity(**entity) for entity in row["entities"]))
        for row in corpus(domain, split, seed)[:count]
    ]


def member(base: Path, seed: int = 1, domain: str = "news", size: int = 40, **told: Any) -> Member:
    """A member with its own sentences; ``told`` overrides settings."""
    train = examples(domain, "train", seed, size)
    dev, test = examples(domain, "dev", seed, 6), examples(domain, "test", seed, 4)
    defaults: dict[str, Any] = {"batch_size": 4, "epochs": 2, "seed": seed, "patience": 0}
    return Member(
        settings=FinetuneSettings(
            base=str(base), train=domain, output="nowhere", load_in="fp32", **{**defaults, **told}
        ),
        data=TrainingData(
            train=train,
            dev=dev,
            test=test,
            rejected=(),
            check=check_data(train, dev, test),
            notes=(),
        ),
    )


def neighbours(base: Path, head: HeadName) -> list[Member]:
    """Different in everything that may differ; each takes STEPS steps or more."""
    return [
        member(base, 1, head=head, rank=4),
        member(base, 2, "biomedical", 60, head=head, rank=8, alpha=4, batch_size=6, dropout=0.1),
        member(base, 3, size=30, head=head, rank=3, lr=5e-4, batch_size=3, dropout=0.3),
        member(base, 4, "biomedical", 10, head=head, dropout=0, batch_size=1, weight_decay=0.1),
        member(base, 5, size=50, head=head, batch_size=5, batch_tokens=90, schedule="cosine"),
    ]


def alone(job: Member) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and losses of the job's own loop under ZeRO-0, as a worker runs it."""
    settings, labels = job.settings, job.data.labels
    torch.manual_seed(settings.seed)
    base = find_base(settings.base)
    model = load_model(base, settings.head, output_names(settings.head, labels), "fp32")
    adapted = add_adapter(model, settings.head, settings.lora)
    if settings.dropout == 0:
        for module in adapted.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    tokenizer = load_tokenizer(base.path)
    head = make_head(settings.head, tokenizer, labels, context=context(model))
    groups = parameter_groups(adapted, settings.lora_plus)
    limit = token_limit(model)
    loop = Loop(adapted, head, job.data.train, settings, groups=groups, zero=0, limit=limit)
    losses = [loop.take(step)["loss"] for step in range(loop.plan.total_steps)]
    weights = loop.engine.weights()
    loop.engine.close()
    return weights, losses


def packed_for(job: Member) -> PackedModel:
    return PackedModel(find_base(job.settings.base), job.settings.head)


def trained(members: Sequence[Member]) -> list[Outcome]:
    results = train_pack(packed_for(members[0]), members)
    for result in results:
        assert isinstance(result, Outcome), result
    return results  # type: ignore[return-value]


def weights_of(outcome: Outcome) -> dict[str, Tensor]:
    return load(outcome.adapter["adapter_model.safetensors"])


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def as_filed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names peft writes to a file."""
    return {
        name.replace(".modules_to_save.default", "").replace(".default", ""): value
        for name, value in weights.items()
    }


@pytest.mark.parametrize(
    ("kind", "head"), [("llama", "tag"), ("bert", "tag"), ("llama", "generate")]
)
def test_together_as_alone(kind: str, head: HeadName, request: pytest.FixtureRequest) -> None:
    # Without dev there is no best step: the last weights are those that come out.
    members = [
        replace(m, data=replace(m.data, dev=(), test=()))
        for m in neighbours(request.getfixturevalue(kind), head)
    ]
    for job, outcome in zip(members, trained(members), strict=True):
        weights, losses = alone(job)
        assert len(losses) >= STEPS  # windows of long examples are rows of their own
        found = [record["loss"] for record in outcome.progress.history]
        assert found == pytest.approx(losses, rel=1e-4), job.settings.seed
        assert furthest(weights_of(outcome), as_filed(weights)) < 1e-5, job.settings.seed


def few(base: Path, seed: int, **told: Any) -> Member:
    """A member that is done in six steps."""
    return member(base, seed, size=12, **{"batch_size": 4, "rank": 4, **told})


def test_what_one_learns_from_is_nothing_to_another(llama: Path) -> None:
    one, other = few(llama, 1), few(llama, 2)
    # Longer sentences too, so the batch is padded otherwise.
    long = [Example(e.id, f"{e.text} {e.text}", e.entities) for e in other.data.train]
    changed = replace(other, data=replace(other.data, train=long))
    before, after = trained([one, other]), trained([one, changed])
    assert furthest(weights_of(before[0]), weights_of(after[0])) < 1e-6
    assert furthest(weights_of(before[1]), weights_of(after[1])) > 1e-4


def test_broken_members_are_set_aside_and_the_others_finish(llama: Path) -> None:
    sound = few(llama, 1), few(llama, 2)
    half = Example("half", "Tim \ud800 Cook", (Entity(0, 3, "PER"),))
    unreadable = few(llama, 3)
    unreadable = replace(unreadable, data=replace(unreadable.data, train=[half]))
    diverging = few(llama, 4, lr=1e30, head_lr=1e30, clip=0)
    results = train_pack(packed_for(sound[0]), [sound[0], unreadable, diverging, sound[1]])
    assert isinstance(results[1], DataError)
    assert isinstance(results[2], ModelError)
    assert "not a number at step" in str(results[2])
    for result, without in zip((results[0], results[3]), trained(sound), strict=True):
        assert isinstance(result, Outcome)
        assert furthest(weights_of(result), weights_of(without)) < 1e-6


def test_one_that_stops_early_leaves_the_others_as_they_were(llama: Path) -> None:
    packed = packed_for(few(llama, 1))
    idle = few(llama, 3, lr=1e-12, head_lr=1e-12, patience=2, eval_every=1, epochs=4)
    labels = idle.data.labels
    tagger = Tagger(
        model=packed.asking(packed.fresh(labels, idle.settings.lora, 3)),
        head=packed.make_head(labels),
        window=idle.data.window,
        max_tokens=packed.limit,
    )
    # What it finds before it learns is what dev wants: it cannot get better than it begins.
    found = tagger.tag([e.text for e in idle.data.dev])
    dev = [replace(e, entities=tuple(f)) for e, f in zip(idle.data.dev, found, strict=True)]
    idle = replace(idle, data=replace(idle.data, dev=dev))
    others = [few(llama, 1), few(llama, 2, patience=1, eval_every=2)]
    taken: list[int] = []
    results = train_pack(
        packed, [others[0], idle, others[1]], on_step=lambda index, _: taken.append(index)
    )
    stopped = results[1]
    assert isinstance(stopped, Outcome)
    assert stopped.progress.stopped_early
    assert stopped.progress.step == 3 == taken.count(1)
    for result, without in zip((results[0], results[2]), trained(others), strict=True):
        assert isinstance(result, Outcome)
        assert furthest(weights_of(result), weights_of(without)) < 1e-6


def test_a_base_that_is_kept_trains_the_same_again(bert: Path) -> None:
    members = [few(bert, 1), few(bert, 2, rank=2)]
    packed = packed_for(members[0])
    first, again = train_pack(packed, members), train_pack(packed, members[1:])
    assert isinstance(first[1], Outcome)
    assert isinstance(again[0], Outcome)
    assert furthest(weights_of(first[1]), weights_of(again[0])) < 1e-6


@pytest.mark.parametrize("head", ["tag", "generate"])
def test_what_is_published_is_an_adapter_like_any_other(
    head: HeadName, llama: Path, tmp_path: Path
) -> None:
    members = [few(llama, 1, head=head, score_untrained=head == "tag"), few(llama, 2, head=head)]
    for index, outcome in enumerate(trained(members)):
        settings = replace(members[index].settings, output=str(tmp_path / str(index)))
        published = publish(settings, members[index].data, outcome, {})
        assert published.report.resources.workers == 1
        assert published.report.settings["seed"] == index + 1
        tagger = Tagger.of(load_adapter(tmp_path / str(index) / "adapter"))
        found = tagger.tag([example.text for example in members[index].data.test])
        spans = [[(e.start, e.end, e.label) for e in row] for row in found]
        assert spans == [
            [(e.start, e.end, e.label) for e in row] for row in outcome.predictions["test"]
        ]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"head": "generate"}, "the generate head, not tag"),
        ({"load_in": "bf16"}, "load_in bf16; a pack's base is in fp32"),
        ({"zero": "2"}, "ZeRO-2; a pack has one worker"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"base": "elsewhere"}, "base elsewhere"),
    ],
)
def test_what_a_pack_cannot_train_is_said(llama: Path, told: dict[str, Any], reason: str) -> None:
    odd = few(llama, 1)
    odd = replace(odd, settings=replace(odd.settings, **told))
    (result,) = train_pack(packed_for(few(llama, 2)), [odd])
    assert isinstance(result, SettingsError)
    assert reason in str(result)


def test_other_targets_are_not_packed_together(llama: Path) -> None:
    odd = few(llama, 1, targets=("q_proj",))
    (result,) = train_pack(packed_for(few(llama, 2)), [odd])
    assert isinstance(result, ModelError)
    assert "targets q_proj" in str(result)
