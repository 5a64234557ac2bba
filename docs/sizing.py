"""The table of memory in operations.md: what raytag.train.memory says of three Llama shapes."""

from transformers import LlamaConfig

from raytag.model.settings import LoraSettings
from raytag.train.memory import GIB, memory_need

WIDE = {"vocab_size": 128_256, "num_key_value_heads": 8}
SHAPES = {
    "1B": LlamaConfig(
        **WIDE,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        tie_word_embeddings=True,
    ),
    "7B": LlamaConfig(hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32),
    "70B": LlamaConfig(
        **WIDE,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
    ),
}
ROWS = [
    ("1B", "bf16", 2, 1),
    ("7B", "bf16", 2, 8),
    ("7B", "bf16", 3, 8),
    ("7B", "8bit", 2, 8),
    ("7B", "4bit", 2, 8),
    ("70B", "bf16", 2, 8),
    ("70B", "bf16", 3, 8),
    ("70B", "bf16", 3, 64),
    ("70B", "8bit", 2, 8),
    ("70B", "4bit", 2, 8),
]


def main() -> None:
    for name, load_in, zero, workers in ROWS:
        need = memory_need(
            SHAPES[name],
            load_in=load_in,
            lora=LoraSettings(),
            zero=zero,
            workers=workers,
            offload=False,
            batch_tokens=4096,
            longest=512,
            gradient_checkpointing=True,
            generates=False,
        )
        parts = (need.base, need.adapter, need.activations, need.total)
        figures = " | ".join(f"{part / GIB:.1f}" for part in parts)
        print(f"| {name} | {load_in}, {zero} | {workers} | {figures} |")


if __name__ == "__main__":
    main()
