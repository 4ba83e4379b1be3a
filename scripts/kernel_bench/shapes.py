"""The sizes of the Llamas that are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    name: str
    hidden: int
    key_value: int
    intermediate: int
    heads: int
    layers: int
    vocabulary: int = 1000

    def modules(self) -> list[tuple[int, int]]:
        """Return (m, n) of one layer's linear modules."""
        h, kv, i = self.hidden, self.key_value, self.intermediate
        return [(h, h), (kv, h), (kv, h), (h, h), (i, h), (i, h), (h, i)]

    def config(self, **options: Any) -> Any:
        """Return transformers' configuration."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads * self.key_value // self.hidden,
            vocab_size=self.vocabulary,
            attn_implementation="sdpa",
            **options,
        )


SMOLLM2 = Shape("SmolLM2-135M", 576, 192, 1536, 9, 30, 49152)
LLAMA_7B = Shape("LLaMA-2 7B", 4096, 4096, 11008, 32, 32)
LLAMA_13B = Shape("LLaMA-2 13B", 5120, 5120, 13824, 40, 40)
TINY = Shape("tiny", 32, 16, 48, 2, 2)
