"""Small random LoRA adapters as a client uploads them."""

from typing import Any

import numpy as np
from safetensors.numpy import save

HIDDEN, RANK = 64, 4


def adapter_files(seed: int, *, hidden: int = HIDDEN, layers: int = 5) -> list[tuple[str, tuple[str, bytes]]]:
    """A small random LoRA on q_proj as PEFT saves it."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for layer in range(layers):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{prefix}.lora_A.weight"] = random.normal(0, 0.05, (RANK, hidden)).astype(np.float32)
        weights[f"{prefix}.lora_B.weight"] = random.normal(0, 0.05, (hidden, RANK)).astype(np.float32)
    config = (
        f'{{"peft_type": "LORA", "r": {RANK}, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}}'
    )
    return [
        ("files", ("adapter_config.json", config.encode())),
        ("files", ("adapter_model.safetensors", save(weights))),
    ]
