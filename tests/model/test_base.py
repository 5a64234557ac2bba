"""Loading base models: what is refused, in what precision they come, and how they read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import checkpoint, encoder
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForTokenClassification,
)

from raytag.errors import ModelError
from raytag.model.adapter import context
from raytag.model.base import find_base, is_decoder, load_model, load_tokenizer
from raytag.model.heads.tag import tag_names
from raytag.model.settings import HeadName, LoadIn

CLASSES = tag_names(("PER", "LOC"))
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder and an encoder. Tests that change files copy them first."""
    folder = tmp_path_factory.mktemp("bases")
    return {
        "qwen2": checkpoint(folder / "qwen2"),
        "llama": checkpoint(folder / "llama", "sentencepiece"),
        "bert": encoder(folder / "bert"),
    }


@pytest.fixture
def copy(made: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made["qwen2"], tmp_path / "copy")


def test_what_is_not_there_or_not_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, reason in [
        (str(tmp_path / "nowhere"), "not a directory"),
        ("./nowhere", "not a directory"),
        ("a/b/c", "not a directory"),
        ("no such name!", "the hub did not give it"),
        (str(empty), "no config.json"),
    ]:
        with pytest.raises(ModelError, match=reason) as refused:
            find_base(name)
        assert "\n" not in str(refused.value)


def test_pickled_weights_are_refused(copy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors weights") as refused:
        find_base(str(copy))
    assert "\n" not in str(refused.value)


def test_safetensors_are_read_where_a_pickle_lies_beside_them(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (marker,)

    torch.save({"bomb": Bomb()}, copy / "pytorch_model.bin")
    load_model(find_base(str(copy)), "generate", ())
    assert not marker.exists()


@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_model_is_never_run(known: bool, copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (copy / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from transformers import Qwen2Config, Qwen2ForCausalLM, PreTrainedTokenizerFast\n"
        "class C(Qwen2Config): pass\nclass M(Qwen2ForCausalLM): pass\n"
        "class T(PreTrainedTokenizerFast): pass\n"
    )
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.C",
        "AutoModelForCausalLM": "evil.M",
        "AutoModelForTokenClassification": "evil.M",
    }
    if not known:
        config["model_type"] = "evil"
    (copy / "config.json").write_text(json.dumps(config))
    tokens = json.loads((copy / "tokenizer_config.json").read_text())
    tokens["auto_map"] = {"AutoTokenizer": [None, "evil.T"]}
    (copy / "tokenizer_config.json").write_text(json.dumps(tokens))
    base = find_base(str(copy))
    if known:
        load_model(base, "generate", ())
        load_model(base, "tag", CLASSES)
        load_tokenizer(base.path)
    else:
        with pytest.raises(ModelError, match=r"config\.json cannot be used"):
            load_model(base, "generate", ())
    assert not marker.exists()


@pytest.mark.parametrize("load_in", ["fp32", "bf16", "8bit", "4bit"])
def test_every_precision_loads_and_gives_numbers(load_in: LoadIn, tmp_path: Path) -> None:
    # bitsandbytes' 4 bit on a CPU wants rows of whole blocks, of 64.
    decoder = checkpoint(tmp_path / "decoder", hidden=64)
    reader = encoder(tmp_path / "encoder", hidden=64)
    cases: list[tuple[Path, HeadName]] = [(decoder, "generate"), (decoder, "tag"), (reader, "tag")]
    for folder, head in cases:
        classes = CLASSES if head == "tag" else ()
        model = load_model(find_base(str(folder)), head, classes, load_in)
        assert not model.training
        with torch.inference_mode():
            logits = model(input_ids=IDS).logits
        assert logits.shape[-1] == (len(CLASSES) if head == "tag" else model.config.vocab_size)
        assert torch.isfinite(logits).all()
        bits = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}.get(load_in)
        kinds = {type(module).__name__ for module in model.modules()}
        assert bits is None or bits in kinds
        if bits is None:
            assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[load_in]
        if head == "tag":
            output = model.score if folder is decoder else model.classifier
            assert type(output) is nn.Linear, "new, and so not quantised"


def test_an_unknown_precision_is_refused(made: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="load_in must be one of"):
        load_model(find_base(str(made["qwen2"])), "tag", CLASSES, "2bit")  # type: ignore[arg-type]


def sees_the_last_token(model: PreTrainedModel) -> bool:
    """Whether what stands at the first token depends on the last."""
    other = IDS.clone()
    other[0, -1] += 1
    with torch.inference_mode():
        first = [model(input_ids=ids).logits[0, 0] for ids in (IDS, other)]
    return not torch.equal(*first)


def test_a_decoder_reads_both_ways_for_tag_and_left_to_right_for_generate(
    made: dict[str, Path],
) -> None:
    for name in ("qwen2", "llama"):
        base = find_base(str(made[name]))
        assert is_decoder(base.config)
        assert sees_the_last_token(load_model(base, "tag", CLASSES))
        assert not sees_the_last_token(load_model(base, "generate", ()))
    base = find_base(str(made["bert"]))
    assert not is_decoder(base.config)
    assert sees_the_last_token(load_model(base, "tag", CLASSES))


def test_a_decoder_that_does_not_heed_is_causal_is_refused(tmp_path: Path) -> None:
    # GPT-Neo draws its causal mask itself.
    config = GPTNeoConfig(
        vocab_size=50,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global"], 2]],
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    base = find_base(str(tmp_path))
    load_model(base, "generate", ())
    with pytest.raises(ModelError, match="still reads from left to right only"):
        load_model(base, "tag", CLASSES)


def test_an_encoder_cannot_generate(made: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"no causal LM.*--head tag"):
        load_model(find_base(str(made["bert"])), "generate", ())


def test_weights_that_are_broken_or_not_there_are_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be loaded for generate"):
        load_model(find_base(str(copy)), "generate", ())
    file.write_bytes(whole)
    # A layer more than there are weights for: made up with a warning, if transformers is asked.
    config = json.loads((copy / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has no weights for"):
        load_model(find_base(str(copy)), "generate", ())
    with pytest.raises(ModelError, match="has no weights for"):
        load_model(find_base(str(copy)), "tag", CLASSES)


def test_the_fingerprint_is_of_what_decides_and_of_nothing_else(copy: Path) -> None:
    base = find_base(str(copy))
    before = base.fingerprint()
    (copy / "README.md").write_text("read me")
    (copy / "training.log").write_text("log")
    assert base.fingerprint() == before
    seen = {before}
    weights = copy / "model.safetensors"
    size = weights.stat().st_size
    for at in (9, size // 2, size - 1):
        whole = weights.read_bytes()
        weights.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        seen.add(base.fingerprint())
        weights.write_bytes(whole)
        assert base.fingerprint() == before
    for name in ("config.json", "tokenizer.json", "vocab.txt", "merges.txt"):
        with (copy / name).open("a") as file:
            file.write(" ")
        seen.add(base.fingerprint())
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    seen.add(base.fingerprint())
    assert len(seen) == 9


def test_a_tokenizer_gives_offsets_and_can_pad(made: dict[str, Path], tmp_path: Path) -> None:
    assert load_tokenizer(made["llama"]).pad_token_id is not None
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_the_longest_input_leaves_out_the_positions_roberta_keeps() -> None:
    config = RobertaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    model = RobertaForTokenClassification(config).eval()
    limit = context(model)
    assert limit == 32
    with torch.inference_mode():
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            model(input_ids=torch.full((1, limit + 1), 5))
