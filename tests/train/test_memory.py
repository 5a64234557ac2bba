"""The preflight's arithmetic, against counts that are known."""

import pytest
from transformers import Qwen2Config

from raytag.model.settings import LoraSettings
from raytag.train.memory import GIB, MemoryNeed, memory_need

# Qwen2.5-7B's own shape: 7.62 billion parameters, 0.54 of them in each of embedding and output.
SHAPE = Qwen2Config(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
    tie_word_embeddings=False,
)


def _need(**changes: object) -> MemoryNeed:
    given: dict[str, object] = {
        "load_in": "bf16",
        "lora": LoraSettings(rank=16),
        "zero": 2,
        "workers": 1,
        "offload": False,
        "batch_tokens": 4096,
        "longest": 100,
        "gradient_checkpointing": False,
        "generates": True,
    }
    return memory_need(SHAPE, **{**given, **changes})  # type: ignore[arg-type]


def test_a_base_takes_its_parameters_times_their_bytes() -> None:
    assert _need().base == pytest.approx(7.62e9 * 2, rel=0.01)
    assert _need(load_in="fp32").base == pytest.approx(7.62e9 * 4, rel=0.01)
    # Embedding and output stay in 16 bit.
    assert _need(load_in="8bit").base == pytest.approx(6.53e9 + 1.09e9 * 2, rel=0.01)
    assert _need(generates=False).base == pytest.approx((7.62e9 - 0.545e9) * 2, rel=0.01)


def test_rank_16_on_7b_trains_forty_million() -> None:
    # 2 + 2 bytes of weights and gradients, 12 of moments and fp32 copy.
    assert _need().adapter == pytest.approx(40.4e6 * 16, rel=0.02)
    assert _need(offload=True).adapter == pytest.approx(40.4e6 * 4, rel=0.02)


def test_zero_shares_what_it_says() -> None:
    assert _need(zero=3, workers=8).base == pytest.approx(_need().base / 8)
    assert _need(zero=2, workers=8).base == _need().base
    assert _need(zero=3, workers=8).adapter == pytest.approx(_need().adapter / 8)


def test_checkpointing_and_smaller_batches_take_less() -> None:
    assert _need(gradient_checkpointing=True).activations < _need().activations / 2
    assert _need(batch_tokens=2048).activations == pytest.approx(_need().activations / 2)
    assert _need().total > 16 * GIB
    assert "GiB  in all, for each worker" in _need().lines()[-1]


def test_zero_3_holds_the_whole_base_on_the_cpu_first() -> None:
    assert _need(zero=3, workers=8).loading == _need().base
    assert _need(zero=2, workers=8).loading == 0
    assert "on the CPU while the base is loaded" in _need(zero=3, workers=8).lines()[-1]
