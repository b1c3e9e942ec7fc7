"""Tiny random base models of several families, and random adapters for them in PEFT's format."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from services.shared.modeling.adapter_files import Adapter, read_adapter

# Tiny matrices only lose time between threads.
torch.set_num_threads(1)

VOCAB_SIZE: Final = 96
_SIZES: Final = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA_LIKE: Final = {
    **_SIZES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT2: Final = {**_SIZES, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_NEOX: Final = {**_LLAMA_LIKE, "num_key_value_heads": None}
_GEMMA: Final = {**_LLAMA_LIKE, "head_dim": 8}
_ALTERNATING: Final = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_OPT: Final = {
    **_SIZES, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "word_embed_proj_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip

CONFIGS: Final[dict[str, Callable[[], PretrainedConfig]]] = {
    "llama": lambda: LlamaConfig(**_LLAMA_LIKE),
    "gpt2": lambda: GPT2Config(**_GPT2),
    "gpt_neox": lambda: GPTNeoXConfig(**_NEOX),
    "mistral": lambda: MistralConfig(**_LLAMA_LIKE, sliding_window=None),
    "mistral_sliding": lambda: MistralConfig(**_LLAMA_LIKE, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**_LLAMA_LIKE),
    "qwen3": lambda: Qwen3Config(**_LLAMA_LIKE, head_dim=8),
    "gemma": lambda: GemmaConfig(**_GEMMA),
    "gemma2": lambda: Gemma2Config(**_GEMMA, **_ALTERNATING, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(**_GEMMA, **_ALTERNATING, query_pre_attn_scalar=8),
    "phi": lambda: PhiConfig(**_LLAMA_LIKE),
    "phi3": lambda: Phi3Config(**_LLAMA_LIKE),
    "opt": lambda: OPTConfig(**_OPT),
}
FAMILIES: Final = tuple(CONFIGS)
TARGETS: Final[dict[str, list[str]]] = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "mistral": ["q_proj", "v_proj", "down_proj"],
    "mistral_sliding": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj", "down_proj", "lm_head"],
    "qwen3": ["q_proj", "o_proj", "gate_proj"],
    "gemma": ["q_proj", "k_proj", "up_proj"],
    "gemma2": ["q_proj", "v_proj", "down_proj"],
    "gemma3": ["q_proj", "v_proj", "down_proj"],
    "phi": ["q_proj", "v_proj", "fc1", "dense"],
    "phi3": ["qkv_proj", "gate_up_proj", "o_proj"],
    "opt": ["q_proj", "v_proj", "fc1", "fc2"],
}


def tiny_model(family: str = "llama", *, seed: int = 0) -> PreTrainedModel:
    """A random float32 model whose weights are large enough that adapters and positions matter."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.15)
    model.requires_grad_(requires_grad=False)
    return model.train(mode=False)


def save_random_adapter(
    folder: Path,
    family: str = "llama",
    *,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] | str | None = None,
    **config: Any,
) -> Path:
    """Write a PEFT adapter with random A and B for a `tiny_model` of the family; returns the folder."""
    target_modules = targets if isinstance(targets, str) else list(targets or TARGETS[family])
    lora = LoraConfig(r=rank, lora_alpha=8, target_modules=target_modules, task_type="CAUSAL_LM", **config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT guesses fan_in_fan_out of Conv1D and says so
        peft_model = get_peft_model(tiny_model(family), lora)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def random_adapter(folder: Path, model: PreTrainedModel, family: str = "llama", **options: Any) -> Adapter:
    """A verified random adapter for `model`."""
    return read_adapter(save_random_adapter(folder, family, **options), model)
