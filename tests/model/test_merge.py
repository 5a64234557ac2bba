"""Merging: one model that answers as adapter and base did, checked before anyone may have it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter import IDS, LABELS, Made, logits, make_all, trained
from tiny import checkpoint
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel

from raytag import storage
from raytag.errors import ModelError, RaytagError, SettingsError, StorageError
from raytag.model import merge as merging
from raytag.model.adapter import (
    CARD,
    WEIGHTS,
    AdapterCard,
    load_adapter,
    output_names,
    save_adapter,
    snippet,
)
from raytag.model.base import find_base, load_model, load_tokenizer
from raytag.model.lora import add_adapter
from raytag.model.merge import (
    LOGIT_TOLERANCE,
    fingerprint,
    load_for_tagging,
    merge,
    merge_adapter,
    stored_dtype,
)
from raytag.model.settings import HeadName, LoadIn, LoraSettings, MergeSettings
from raytag.model.tagger import Tagger
from raytag.text.formats import write_jsonl
from raytag.text.spans import Example

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CASES = ("qwen2-generate", "llama-generate", "qwen2-tag", "llama-tag", "bert-tag")
TEXTS = (
    "Tim Cook met Zoë Müller in Seoul.",
    "Apple opened a new office in New York, and then another one in Tokyo (東京) on Monday.",
    "Paris. " * 60,
)
CPU = torch.device("cpu")
JOB = Path(__file__).resolve().parents[2] / "jobs" / "merge.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return make_all(tmp_path_factory.mktemp("adapters"), CASES, make)


@pytest.fixture(scope="module")
def merged(made: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By case, the folder its adapter was merged into, in fp32."""
    folder = tmp_path_factory.mktemp("merged")
    for case, adapter in made.items():
        merge_adapter(settings(adapter, folder / case))
    return {case: folder / case for case in made}


def make(folder: Path, base_folder: Path, head: HeadName, targets: tuple[str, ...] = ()) -> Made:
    """An adapter of the size that training gives one: what is rounded then is not all noise."""
    base = find_base(str(base_folder))
    torch.manual_seed(4)  # one with which every head finds something
    model = load_model(base, head, output_names(head, LABELS), "fp32")
    model = add_adapter(model, head, LoraSettings(rank=4, targets=targets))
    for name, parameter in trained(model).items():
        if "lora_A" not in name and "lora_embedding_A" not in name:
            nn.init.normal_(parameter, std=0.2 if "modules_to_save" in name else 0.02)
        elif "lora_embedding_A" in name:
            nn.init.normal_(parameter, std=0.2)
    card = AdapterCard(
        head=head,
        labels=LABELS,
        base=base.name,
        revision=None,
        base_fingerprint=base.fingerprint(),
        load_in="fp32",
        window=100,
        scores={"dev": {"micro": {"f1": 0.5}}},
    )
    save_adapter(folder, model, trained(model), base, load_tokenizer(base.path), card)
    return Made(folder, base, card, model.eval())


def tied(base: Path) -> Path:
    """The checkpoint with its output layer and its embedding made one."""
    model = load_model(find_base(str(base)), "generate", (), "fp32")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(base)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    return base


@pytest.fixture
def own(tmp_path: Path) -> Made:
    """An adapter whose files a test may change."""
    return make(tmp_path / "adapter", checkpoint(tmp_path / "base"), "tag")


def change_card(adapter: Made, **values: object) -> None:
    card = adapter.folder / CARD
    card.write_text(json.dumps({**json.loads(card.read_text()), **values}))


def settings(adapter: Made, output: Path | str, **more: Any) -> MergeSettings:
    return MergeSettings(adapter=str(adapter.folder), output=str(output), **more)


def annotated(folder: Path, adapter: Made) -> str:
    """A file of texts whose gold is what the adapter finds, and half of the times nothing."""
    found = Tagger.of(load_adapter(adapter.folder, load_in="fp32")).tag(TEXTS)
    assert any(found)
    path = folder / "dev.jsonl"
    gold = [entities if i % 2 == 0 else [] for i, entities in enumerate(found)]
    examples = [
        Example(f"t{i}", t, tuple(g)) for i, (t, g) in enumerate(zip(TEXTS, gold, strict=True))
    ]
    write_jsonl(str(path), examples)
    return str(path)


@pytest.mark.parametrize("case", CASES)
def test_a_merged_model_gives_the_adapters_logits(
    case: str, made: dict[str, Made], merged: dict[str, Path]
) -> None:
    loaded = load_for_tagging(merged[case], base=None, load_in="auto", device=CPU)
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert not any("lora" in name for name, _ in loaded.model.named_modules())
    expected = logits(load_adapter(made[case].folder).model, IDS)
    assert torch.allclose(logits(loaded.model, IDS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("load_in", ["fp32", "bf16"])
def test_merged_before_or_on_the_way_makes_no_difference(
    case: str, load_in: LoadIn, made: dict[str, Made], merged: dict[str, Path]
) -> None:
    before = load_for_tagging(merged[case], base=None, load_in=load_in, device=CPU)
    now = load_for_tagging(made[case].folder, base=None, load_in=load_in, device=CPU)
    assert before.model.dtype == now.model.dtype
    assert torch.equal(logits(before.model, IDS), logits(now.model, IDS))
    assert Tagger.of(before).tag(TEXTS) == Tagger.of(now).tag(TEXTS)


@pytest.mark.parametrize("case", CASES)
def test_a_merged_model_finds_the_adapters_entities(
    case: str, made: dict[str, Made], merged: dict[str, Path]
) -> None:
    adapter = Tagger.of(load_adapter(made[case].folder)).tag(TEXTS)
    loaded = load_for_tagging(merged[case], base=None, load_in="fp32", device=CPU)
    assert Tagger.of(loaded).tag(TEXTS) == adapter
    assert any(adapter)


@pytest.mark.parametrize("case", CASES)
def test_the_readmes_snippet_loads_it_with_transformers_alone(
    case: str, made: dict[str, Made], merged: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    card = AdapterCard.read(merged[case])
    code = snippet(card, str(merged[case]))
    assert code.rstrip() in (merged[case] / "README.md").read_text()
    assert "peft" not in code
    space: dict[str, Any] = {}
    exec(code, space)
    assert "tensor(" in capsys.readouterr().out
    ids = space["tokenizer"](space["text"], return_tensors="pt")["input_ids"]
    expected = logits(load_adapter(made[case].folder).model, ids)
    assert torch.allclose(space["logits"], expected, rtol=1e-5, atol=1e-5)


def test_a_plainly_loaded_decoder_reads_both_ways(merged: dict[str, Path]) -> None:
    plain = AutoModelForTokenClassification.from_pretrained(merged["llama-tag"])
    other = IDS.clone()
    other[0, -1] += 1
    assert not torch.equal(logits(plain, IDS)[0, 0], logits(plain, other)[0, 0])
    assert plain.config.id2label[1] == f"B-{LABELS[0]}"


def test_the_folder_says_what_was_merged_and_holds_nothing_of_peft(
    made: dict[str, Made], merged: dict[str, Path]
) -> None:
    for case, folder in merged.items():
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", CARD, "README.md"} <= names
        assert not any("adapter" in name for name in names)
        assert ("generation_config.json" in names) == case.endswith("generate")
        card = AdapterCard.read(folder)
        assert card.merged is not None
        assert card.merged["dtype"] == "fp32"
        assert card.merged["adapter_fingerprint"] == fingerprint(made[case].folder)
        assert 0 <= card.merged["difference"] <= LOGIT_TOLERANCE["fp32"]
        assert replace(card, merged=None) == made[case].card


def test_an_adapter_trained_on_a_quantised_base_is_merged_into_the_whole_one(
    own: Made, tmp_path: Path
) -> None:
    change_card(own, load_in="8bit")
    result = merge_adapter(settings(own, tmp_path / "merged"))
    assert result.difference <= LOGIT_TOLERANCE["fp32"]
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert {t.dtype for t in load_file(tmp_path / "merged" / "model.safetensors").values()} == {
        torch.float32
    }


def test_nothing_is_merged_into_a_base_that_is_quantised_or_rounded(own: Made) -> None:
    with pytest.raises(ModelError, match="quantised"):
        merge(load_adapter(own.folder, load_in="8bit"), "fp32")
    with pytest.raises(ModelError, match="added in fp32"):
        merge(load_adapter(own.folder, load_in="bf16"), "fp32")


def test_bf16_is_rounded_once_from_the_sum(
    made: dict[str, Made], merged: dict[str, Path], tmp_path: Path
) -> None:
    for case in ("qwen2-tag", "llama-generate"):
        result = merge_adapter(settings(made[case], tmp_path / case, dtype="bf16"))
        assert result.dtype == "bf16"
        whole = load_file(merged[case] / "model.safetensors")
        for name, tensor in load_file(tmp_path / case / "model.safetensors").items():
            assert torch.equal(tensor, whole[name].to(torch.bfloat16))
        assert json.loads((tmp_path / case / "config.json").read_text())["dtype"] == "bfloat16"


def test_auto_is_what_the_bases_own_files_are_in(own: Made, tmp_path: Path) -> None:
    assert stored_dtype(own.base) == "fp32"
    model = load_model(own.base, "generate", (), "bf16")
    model.save_pretrained(own.base.path)
    assert stored_dtype(own.base) == "bf16"
    change_card(own, base_fingerprint=own.base.fingerprint())
    result = merge_adapter(settings(own, tmp_path / "merged"))
    assert result.dtype == "bf16"
    assert result.difference > 1e-4


def test_annotated_text_is_scored_with_both(made: dict[str, Made], tmp_path: Path) -> None:
    for case in ("qwen2-tag", "qwen2-generate"):
        data = annotated(tmp_path, made[case])
        result = merge_adapter(settings(made[case], tmp_path / case, data=data))
        assert result.f1 is not None
        assert 0 < result.f1[0] < 1
        assert result.f1[0] == result.f1[1]
        card = AdapterCard.read(tmp_path / case)
        assert card.merged is not None
        assert card.merged["f1"] == {"adapter": result.f1[0], "merged": result.f1[1]}


@pytest.mark.parametrize("case", ["qwen2", "llama"])
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_weights_that_input_and_output_share_part_where_one_is_adapted(
    case: str, target: str, tmp_path: Path
) -> None:
    layout = "byte-level" if case == "qwen2" else "sentencepiece"
    base = tied(checkpoint(tmp_path / "base", layout))  # type: ignore[arg-type]
    adapter = make(tmp_path / "adapter", base, "generate", (target, "q_proj"))
    merge_adapter(settings(adapter, tmp_path / "merged"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    expected = logits(load_adapter(adapter.folder).model, IDS)
    assert torch.allclose(logits(plain, IDS), expected, rtol=1e-5, atol=1e-5)


def test_shared_weights_stay_shared_where_neither_is_adapted(tmp_path: Path) -> None:
    adapter = make(tmp_path / "adapter", tied(checkpoint(tmp_path / "base")), "generate")
    merge_adapter(settings(adapter, tmp_path / "merged"))
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")


def unmerged(output: Path) -> bool:
    return not output.exists() or not list(output.iterdir())


@pytest.mark.parametrize("case", ["qwen2-tag", "qwen2-generate"])
def test_a_model_that_answers_otherwise_is_not_published(
    case: str, made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = merging._without_adapter

    def scaled(adapted: Any) -> PreTrainedModel:
        for module in adapted.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling["default"] *= 2
        return honest(adapted)

    monkeypatch.setattr(merging, "_without_adapter", scaled)
    with pytest.raises(ModelError, match="logits in fp32 differ .* not merged"):
        merge_adapter(settings(made[case], tmp_path / "merged"))
    assert unmerged(tmp_path / "merged")
    with pytest.raises(ModelError, match="logits in fp32 differ"):
        load_for_tagging(made[case].folder, base=None, load_in="fp32", device=CPU)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("weights", "logits in fp32 differ"),
        ("tokenizer", "logits in fp32 differ|tokenizer"),
    ],
)
def test_what_was_written_is_what_is_checked(
    change: str,
    reason: str,
    made: dict[str, Made],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = merging._write

    def faulty(folder: Path, *others: Any) -> None:
        honest(folder, *others)
        if change == "weights":
            file = folder / "model.safetensors"
            tensors = load_file(file)
            tensors["model.norm.weight"] *= 1.5
            save_file(tensors, file, metadata={"format": "pt"})
        else:
            load_tokenizer(made["llama-tag"].folder).save_pretrained(folder)

    monkeypatch.setattr(merging, "_write", faulty)
    with pytest.raises(ModelError, match=reason):
        merge_adapter(settings(made["qwen2-tag"], tmp_path / "merged"))
    assert unmerged(tmp_path / "merged")


def test_weights_that_are_not_numbers_are_refused(own: Made, tmp_path: Path) -> None:
    tensors = load_file(own.folder / WEIGHTS)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, own.folder / WEIGHTS)
    with pytest.raises(ModelError, match="cannot be merged"):
        merge_adapter(settings(own, tmp_path / "merged"))
    assert unmerged(tmp_path / "merged")


def test_another_f1_than_the_adapters_is_refused(
    made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = annotated(tmp_path, made["qwen2-tag"])
    monkeypatch.setattr(merging, "F1_TOLERANCE", {"fp32": -1.0, "bf16": -1.0})
    with pytest.raises(ModelError, match=r"F1 on .*dev\.jsonl is .*: not merged"):
        merge_adapter(settings(made["qwen2-tag"], tmp_path / "merged", data=data))
    assert unmerged(tmp_path / "merged")


def test_what_was_uploaded_is_taken_back_when_the_rest_fails(
    made: dict[str, Made], tmp_path: Path
) -> None:
    # No file can take the place of a folder; others have been written by then.
    output = tmp_path / "merged"
    (output / "tokenizer.json").mkdir(parents=True)
    with pytest.raises(StorageError):
        merge_adapter(settings(made["qwen2-tag"], output))
    assert [path.name for path in output.iterdir()] == ["tokenizer.json"]


def test_a_merged_model_lies_in_a_bucket_as_on_a_disk(
    made: dict[str, Made], merged: dict[str, Path], tmp_path: Path, s3: "S3Client"
) -> None:
    s3.create_bucket(Bucket="merge")
    storage.upload_folder(made["qwen2-tag"].folder, "s3://merge/adapter")
    asked = MergeSettings(adapter="s3://merge/adapter", output="s3://merge/merged")
    result = merge_adapter(asked)
    names = storage.download_folder("s3://merge/merged", tmp_path)
    assert names == sorted(path.name for path in merged["qwen2-tag"].iterdir())
    assert AdapterCard.read(tmp_path) == result.card
    assert "aws s3 cp --recursive s3://merge/merged merged" in (tmp_path / "README.md").read_text()
    found = load_for_tagging(tmp_path, base=None, load_in="fp32", device=CPU)
    expected = load_for_tagging(merged["qwen2-tag"], base=None, load_in="fp32", device=CPU)
    assert torch.equal(logits(found.model, IDS), logits(expected.model, IDS))
    with pytest.raises(SettingsError, match="holds something already"):
        merge_adapter(asked)


def test_a_merged_folder_that_is_not_whole_is_refused(own: Made, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    merge_adapter(settings(own, folder))
    file = folder / "model.safetensors"
    whole = load_file(file)
    for name in ("score.weight", "model.norm.weight"):
        rest = {key: tensor for key, tensor in whole.items() if key != name}
        save_file(rest, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=f"no weights for .*{name}"):
            load_for_tagging(folder, base=None, load_in="fp32", device=CPU)
    file.unlink()
    torch.save(whole, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no .safetensors weights"):
        load_for_tagging(folder, base=None, load_in="fp32", device=CPU)


def test_a_merged_model_is_not_loaded_quantised(merged: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="fp32 or bf16, not in 8bit"):
        load_for_tagging(merged["bert-tag"], base=None, load_in="8bit", device=CPU)


def test_a_users_mistake_is_one_line(
    made: dict[str, Made], merged: dict[str, Path], tmp_path: Path
) -> None:
    adapter = made["qwen2-tag"]
    other = checkpoint(tmp_path / "other", seed=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    mistakes: list[tuple[MergeSettings, type[RaytagError], str]] = [
        (MergeSettings(adapter="nowhere", output="x"), ModelError, "nowhere is no adapter"),
        (settings(adapter, tmp_path / "full"), SettingsError, "holds something already"),
        (settings(adapter, tmp_path / "full" / "file"), SettingsError, "holds something already"),
        (settings(adapter, tmp_path / "x", base=str(other)), ModelError, "--base"),
        (
            MergeSettings(adapter=str(merged["qwen2-tag"]), output=str(tmp_path / "x")),
            ModelError,
            "is a merged model already",
        ),
    ]
    if not torch.cuda.is_available():
        mistakes.append((settings(adapter, tmp_path / "x", device="gpu"), SettingsError, "no GPU"))
    for wrong, kind, reason in mistakes:
        with pytest.raises(kind, match=reason) as refused:
            merge_adapter(wrong)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "full" / "file").read_text() == "mine"


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(JOB), *arguments], capture_output=True, text=True, timeout=200
    )


def test_the_job_merges_and_says_how_well(made: dict[str, Made], tmp_path: Path) -> None:
    data = annotated(tmp_path, made["bert-tag"])
    output = str(tmp_path / "merged")
    ran = job("--adapter", str(made["bert-tag"].folder), "--output", output, "--data", data)
    assert ran.returncode == 0, ran.stderr
    *_, difference, f1, model = ran.stdout.splitlines()
    assert difference.startswith("largest difference: ")
    assert f1.startswith("strict F1: ")
    assert model == f"model: {output}"
    assert "MISSING" not in ran.stderr


def test_a_wrong_flag_is_refused_before_torch_is_loaded() -> None:
    assert os.access(JOB, os.X_OK)
    for wrong in (["--dtype", "fp16"], ["--adaptor", "x"], ["--output", ""]):
        code = (
            "import runpy, sys\n"
            f"sys.argv = ['merge.py', '--adapter', 'a', '--output', 'o', *{wrong!r}]\n"
            "try:\n"
            f"    runpy.run_path({str(JOB)!r}, run_name='__main__')\n"
            "except SystemExit as exc:\n"
            "    print(exc.code, 'torch' in sys.modules)\n"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.stdout == "2 False\n"
        assert ran.stderr.startswith("error: ")
        assert ran.stderr.count("\n") == 1
