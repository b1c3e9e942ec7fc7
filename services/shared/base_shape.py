"""The numbers of a base model that memory, disk and time depend on, from its configuration alone. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.shared.tokenizer import model_file


@dataclass(frozen=True)
class BaseShape:
    """What the cost of a base model depends on."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    key_value_share: float
    vocab_size: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "BaseShape":
        """From a Hugging Face configuration in any of the usual spellings."""
        fields = {**config, **(config.get("text_config") or {})}

        def first(*names: str, default: int) -> int:
            return next((int(fields[name]) for name in names if fields.get(name)), default)

        hidden_size = first("hidden_size", "n_embd", "d_model", default=768)
        num_heads = first("num_attention_heads", "n_head", default=max(hidden_size // 64, 1))
        return cls(
            hidden_size=hidden_size,
            num_layers=first("num_hidden_layers", "n_layer", default=12),
            intermediate_size=first("intermediate_size", "n_inner", default=4 * hidden_size),
            num_heads=num_heads,
            key_value_share=first("num_key_value_heads", default=num_heads) / num_heads,
            vocab_size=first("vocab_size", default=32_000),
        )

    @classmethod
    def of_model(cls, base_model: str) -> "BaseShape":
        """From the `config.json` of a folder or hub id. Raises InvalidRequest when there is none."""
        return cls.of_config(json.loads(model_file(base_model, "config.json").read_text(encoding="utf-8")))

    @property
    def num_layer_parameters(self) -> int:
        """Of all decoder layers: attention and a gated MLP."""
        attention = 2 * self.hidden_size**2 * (1 + self.key_value_share)
        return round(self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size))

    @property
    def num_parameters(self) -> int:
        """All of it, input and output embeddings shared."""
        return self.num_layer_parameters + self.vocab_size * self.hidden_size

    def num_lora_parameters(self, rank: int) -> int:
        """Of an adapter on every linear layer."""
        features = 4 * self.hidden_size + 2 * self.key_value_share * self.hidden_size
        features += 3 * (self.hidden_size + self.intermediate_size)
        return round(rank * self.num_layers * features)

    def activation_bytes(
        self, *, batch_size: int, length: int, bytes_per_value: int, checkpointed: bool = False
    ) -> int:
        """What a step keeps for the backward pass, logits included; checkpointed, of all layers but one their input."""
        per_layer = 12 * self.hidden_size + 6 * self.intermediate_size + 2 * self.num_heads * length
        logits = 3 * self.vocab_size * 4
        per_token = per_layer + self.num_layers * self.hidden_size if checkpointed else self.num_layers * per_layer
        return batch_size * length * (per_token * bytes_per_value + logits)
