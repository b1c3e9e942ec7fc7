"""Tiny mixture-of-experts models of transformers' families, with random weights."""

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

_SMALL: Final[dict[str, Any]] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
_DEEPSEEK: Final[dict[str, Any]] = {
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "routed_scaling_factor": 2.5,
}

FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 8, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 4},
    "deepseek_v2": _DEEPSEEK | {"n_routed_experts": 8, "topk_method": "group_limited_greedy"},
    "deepseek_v3": _DEEPSEEK | {"n_routed_experts": 8},
    "glm4_moe": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "llama4_text": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size_mlp": 24,
        "use_qk_norm": False,
    },
    "jetmoe": {"num_local_experts": 8, "num_experts_per_tok": 2, "kv_channels": 8, "num_key_value_heads": 4},
}
"""By model type: what it says beside the sizes that all share."""

LARGE: Final = ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4})
"""As many layers, experts and choices as gpt-oss-20b."""


def tiny_model(family: str, **sizes: Any) -> PreTrainedModel:
    """On the CPU, in float32, with gates that are far from even."""
    config = AutoConfig.for_model(family, **(_SMALL | FAMILIES[family] | sizes))
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.train(mode=False)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" not in name and tensor.is_floating_point() and "inv_freq" not in name:
                tensor.normal_(std=0.3)
    return model


def save_tiny_model(folder: Path, family: str = "mixtral", **sizes: Any) -> Path:
    """As it would come from a hub, with bytes for tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
    tiny_model(family, vocab_size=len(vocabulary), **sizes).save_pretrained(folder)
    return folder
