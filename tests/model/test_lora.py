"""LoRA+ groups and rates, next to peft's own, and that ratio 1 is plain LoRA to the bit."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from tiny import checkpoint, encoder
from torch import Tensor, nn

from raytag.errors import ModelError, SettingsError
from raytag.model.adapter import make_head, output_names
from raytag.model.base import find_base, load_model, load_tokenizer
from raytag.model.lora import add_adapter, linear_targets, make_optimizer, parameter_groups
from raytag.model.settings import HeadName, LoraPlusSettings, LoraSettings
from raytag.text.spans import Entity, Example

LABELS = ("PER", "LOC")
SETTINGS = LoraPlusSettings(lr=1e-4, ratio=16.0, weight_decay=0.1)
EXAMPLES = [
    Example("1", "Tim Cook met Zoë in Paris.", (Entity(0, 8, "PER"), Entity(20, 25, "LOC"))),
    Example("2", "Nothing in the new office.", ()),
    Example("3", "Apple in Seoul", (Entity(9, 14, "LOC"),)),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases")
    return {"decoder": checkpoint(folder / "qwen2"), "encoder": encoder(folder / "bert")}


def adapted(
    folder: Path, head: HeadName, dropout: float = 0.0, targets: tuple[str, ...] = ()
) -> PeftModel:
    torch.manual_seed(0)
    model = load_model(find_base(str(folder)), head, output_names(head, LABELS), "fp32")
    return add_adapter(model, head, LoraSettings(rank=4, dropout=dropout, targets=targets))


def ours(model: nn.Module, settings: LoraPlusSettings = SETTINGS) -> dict[str, tuple[float, float]]:
    """Parameter name -> (rate, decay), as the optimizer holds them."""
    return by_name(model, make_optimizer(parameter_groups(model, settings)))


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = [
        (names[parameter], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(dict(held)) == len(held), "no parameter twice"
    return dict(held)


def peft_says(model: PeftModel) -> torch.optim.Optimizer:
    return create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=SETTINGS.lr,
        loraplus_lr_ratio=SETTINGS.ratio,
        loraplus_weight_decay=SETTINGS.weight_decay,
    )


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_causal_lm_gets_what_peft_gives_it(made: dict[str, Path]) -> None:
    model = adapted(made["decoder"], "generate", targets=("q_proj", "down_proj", "embed_tokens"))
    rates = ours(model)
    assert rates == by_name(model, peft_says(model))
    assert set(rates) == trainable(model)
    kind = re.compile(r"lora_(embedding_)?[AB]")
    assert {kind.search(name)[0]: rate for name, (rate, _) in rates.items()} == {  # type: ignore[index]
        "lora_A": 1e-4,
        "lora_B": pytest.approx(16e-4),
        "lora_embedding_A": 1e-6,
        "lora_embedding_B": 1e-6,
    }


@pytest.mark.parametrize("base", ["decoder", "encoder"])
def test_a_tagging_head_has_a_rate_of_its_own_and_vectors_do_not_decay(
    base: str, made: dict[str, Path]
) -> None:
    model = adapted(made[base], "tag")
    rates = ours(model)
    assert set(rates) == trainable(model)
    theirs = by_name(model, peft_says(model))
    head = {name for name in rates if "modules_to_save" in name}
    assert len(head) == 2
    for name in head:
        matrix = name.endswith("weight")
        assert rates[name] == (SETTINGS.head_lr, 0.1 if matrix else 0.0)
        # What ours is not: peft gives the head's matrix A's rate and its bias B's.
        assert theirs[name][0] == pytest.approx(1e-4 if matrix else 16e-4)
    assert {n: r for n, r in rates.items() if n not in head} == {
        n: r for n, r in theirs.items() if n not in head
    }


def test_no_group_is_empty_and_none_is_left_out(made: dict[str, Path]) -> None:
    for head in ("generate", "tag"):
        model = adapted(made["decoder"], head)  # type: ignore[arg-type]
        groups = parameter_groups(model, SETTINGS)
        assert all(group.parameters for group in groups)
        assert len({group.name for group in groups}) == len(groups)
        members = [parameter for group in groups for parameter in group.parameters]
        assert {id(p) for p in members} == {id(p) for p in model.parameters() if p.requires_grad}
        assert any(not group["params"] for group in peft_says(model).param_groups), "peft's are"


def test_decay_is_applied_to_matrices_and_to_nothing_else(made: dict[str, Path]) -> None:
    model = adapted(made["decoder"], "tag", targets=("q_proj", "embed_tokens"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.ones_(parameter)
            parameter.grad = torch.zeros_like(parameter)
    rates = ours(model)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    make_optimizer(parameter_groups(model, SETTINGS)).step()
    vectors = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, frozen[name])
            continue
        vectors += parameter.ndim == 1
        shrunk = 1.0 if parameter.ndim == 1 else 1 - rates[name][0] * SETTINGS.weight_decay
        assert torch.equal(parameter, torch.full_like(parameter, shrunk))
    assert vectors == 1


def test_a_trainable_parameter_of_no_known_kind_is_refused(made: dict[str, Path]) -> None:
    model = adapted(made["decoder"], "generate")
    name, norm = next((n, p) for n, p in model.named_parameters() if "norm" in n)
    norm.requires_grad_(True)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        parameter_groups(model, SETTINGS)


def train(
    model: PeftModel,
    base: Path,
    head_name: HeadName,
    optimizer: torch.optim.Optimizer,
    steps: int = 20,
) -> dict[str, Tensor]:
    """The weights after ``steps`` of batches that go round the examples, dropout included."""
    head = make_head(head_name, load_tokenizer(base), LABELS)
    rows = [head.encode(example) for example in EXAMPLES]
    torch.manual_seed(7)
    model.train()
    for step in range(steps):
        batch = head.collate([rows[step % 3], rows[(step + 1) % 3]])
        optimizer.zero_grad()
        head.loss(model, batch).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("base", "head"),
    [
        ("decoder", "generate"),
        ("decoder", "tag"),
        ("encoder", "tag"),
    ],
)
def test_ratio_1_is_plain_lora_to_the_bit(base: str, head: HeadName, made: dict[str, Path]) -> None:
    settings = LoraPlusSettings(lr=1e-3, ratio=1.0, head_lr=1e-3)

    def after(settings: LoraPlusSettings | None) -> dict[str, Tensor]:
        model = adapted(made[base], head, dropout=0.1)
        if settings is None:
            plain = [p for p in model.parameters() if p.requires_grad]
            # The same kernel: fused and looped ones round differently.
            optimizer = torch.optim.AdamW(plain, lr=1e-3, weight_decay=0.0, fused=True)
        else:
            optimizer = make_optimizer(parameter_groups(model, settings))
        return train(model, made[base], head, optimizer)

    plain, one, sixteen = after(None), after(settings), after(replace(settings, ratio=16.0))
    assert plain.keys() == one.keys()
    assert all(torch.equal(plain[name], one[name]) for name in plain)
    assert not any(torch.equal(plain[n], sixteen[n]) for n in plain if "lora_B" in n)


def test_linear_layers_of_the_blocks_are_adapted_and_no_others(made: dict[str, Path]) -> None:
    attention, mlp = ("k_proj", "o_proj", "q_proj", "v_proj"), ("down_proj", "gate_proj", "up_proj")
    for head in ("generate", "tag"):
        model = load_model(find_base(str(made["decoder"])), head, output_names(head, LABELS))  # type: ignore[arg-type]
        assert linear_targets(model) == tuple(sorted(attention + mlp))
    names = trainable(adapted(made["decoder"], "generate"))
    assert len(names) == 2 * 7 * 2  # layers, modules, A and B
    assert not any("lm_head" in name for name in names)
    names = trainable(adapted(made["encoder"], "tag"))
    assert len(names) == 2 * 6 * 2 + 2  # and the head's matrix and bias


def test_an_unknown_target_is_refused(made: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="no_such"):
        adapted(made["decoder"], "generate", targets=("no_such",))


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"ratio": -1.0}, {"head_lr": 0.0}, {"weight_decay": -0.1}]
)
def test_rates_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        LoraPlusSettings(**wrong)
    with pytest.raises(SettingsError, match="rank"):
        LoraSettings(rank=0)
