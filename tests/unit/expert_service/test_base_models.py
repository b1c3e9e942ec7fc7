"""Base models of every family through the whole engine: cache, chunks, batches, adapters written by PEFT, taps."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from structlog.testing import capture_logs
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    GPTJConfig,
    GPTNeoConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen3NextConfig,
    Starcoder2Config,
)

from services.expert_service.batch import AttentionWindows
from services.expert_service.kv_budget import layer_bytes
from services.expert_service.self_test import check_architecture
from services.shared.errors import InvalidRequest
from services.shared.modeling.adapter_files import read_adapter
from services.shared.modeling.lora_mixture import LoraMixture
from services.shared.tokenizer import max_context_of
from tests.unit.expert_service import engine_parts
from tests.unit.expert_service.engine_parts import hand_engine
from tests.unit.shared.modeling.tiny_models import CONFIGS, FAMILIES, VOCAB_SIZE, save_random_adapter, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOLERANCE = 1e-5
VOCABULARY: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES: dict[str, Any] = {**VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
LLAMA_LIKE: dict[str, Any] = {
    **SIZES, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
WITHOUT_PEFT_DEFAULT = {"phi3"}
"""PEFT has no default target modules for these."""


def prompt(length: int, *, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, length).tolist()


def generated(model: Any, prompt_ids: list[int], num_new: int) -> list[int]:
    """What transformers generates greedily."""
    ids = model.generate(
        torch.tensor([prompt_ids]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        max_new_tokens=num_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return ids[0, len(prompt_ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    def test_batched_and_chunked_decoding_is_the_models_own_generate(self, family: str) -> None:
        # Rows of 4, 8, 16 and so on: sequences move while they grow, and a pass reads several slabs.
        engine = hand_engine({}, family=family, prefill_step_tokens=7, first_capacity=4)
        prompts = [prompt(length, seed=length) for length in (3, 20, 9, 14)]
        for index, prompt_ids in enumerate(prompts):
            engine.submit(str(index), prompt_ids, max_new_tokens=16)
            engine.step()
        engine.run()

        model = tiny_model(family)
        for index, prompt_ids in enumerate(prompts):
            assert engine.ids(str(index)) == generated(model, prompt_ids, 16)

    def test_an_adapter_on_pefts_default_modules_is_what_peft_computes(self, family: str, tmp_path: Path) -> None:
        if family in WITHOUT_PEFT_DEFAULT:
            folder = save_random_adapter(tmp_path, family, seed=1)
        else:
            folder = save_on_default_modules(tmp_path, family)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT guesses fan_in_fan_out of Conv1D and says so
            peft_model = PeftModel.from_pretrained(tiny_model(family), folder)
        token_ids = prompt(20)
        with torch.no_grad():
            expected_TV = peft_model(torch.tensor([token_ids])).logits[0]
        logprobs_TV = expected_TV.log_softmax(dim=-1)
        model = tiny_model(family)
        adapter = read_adapter(folder, model)

        mixture = LoraMixture.attach(model, num_slots=1)
        mixture.load(0, adapter)
        with torch.no_grad(), mixture.gates(torch.ones(len(token_ids), 1), (0,)):
            mixed_TV = model(torch.tensor([token_ids])).logits[0]
        engine = hand_engine({"ada": adapter}, family=family, prefill_step_tokens=6)
        engine.submit("x", token_ids, fixed={"ada": 1.0}, prompt_logprobs=True, max_new_tokens=1)
        engine.run()

        assert (mixed_TV - expected_TV).abs().max() <= TOLERANCE
        assert engine.ids("x") == [int(expected_TV[-1].argmax())]
        reported = engine.finished("x").prompt_logprobs
        assert reported is not None
        expected = [logprobs_TV[t, token_ids[t + 1]].item() for t in range(len(token_ids) - 1)]
        assert list(reported[1:]) == pytest.approx(expected, abs=10 * TOLERANCE)

    def test_states_at_the_tap_are_those_after_so_many_layers(self, family: str) -> None:
        model = tiny_model(family)
        token_ids = prompt(12)
        with torch.no_grad():
            states = model(torch.tensor([token_ids]), output_hidden_states=True).hidden_states
        runner = hand_engine({}, family=family).runner

        for tap_layer in range(model.config.num_hidden_layers):
            tapped_TD = runner.trunk_states(token_ids, tap_layer)
            assert np.abs(tapped_TD - states[tap_layer][0].numpy()).max() <= TOLERANCE


def save_on_default_modules(folder: Path, family: str) -> Path:
    """Random weights on the modules that PEFT itself chooses for a model type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(tiny_model(family), LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return folder


OTHERS: dict[str, Callable[[], Any]] = {
    "falcon": lambda: FalconConfig(**SIZES, num_attention_heads=4, max_position_embeddings=64, alibi=False),
    "gptj": lambda: GPTJConfig(**VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    "starcoder2": lambda: Starcoder2Config(**LLAMA_LIKE, sliding_window=8),
    "mixtral": lambda: MixtralConfig(**LLAMA_LIKE, num_local_experts=2, num_experts_per_tok=1),
    "deepseek_v3": lambda: DeepseekV3Config(
        **{**LLAMA_LIKE, "num_key_value_heads": 4}, first_k_dense_replace=2, kv_lora_rank=8, q_lora_rank=None,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=1,
    ),
    "bloom": lambda: BloomConfig(**VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
}  # fmt: skip
"""Families beside those that are tested in full."""


class TestSelfTest:
    @pytest.mark.parametrize("family", ["falcon", "gptj", "starcoder2", "mixtral", "deepseek_v3"])
    def test_what_it_accepts_is_served_rightly(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(CONFIGS, family, OTHERS[family])
        engine = hand_engine({}, family=family, prefill_step_tokens=7, first_capacity=4)
        check_architecture(engine.runner, engine.tokenizer)
        lengths = (3, 20, 9)
        with capture_logs() as logs:
            for length in lengths:
                engine.submit(str(length), prompt(length, seed=length), max_new_tokens=12)
                engine.step()
            engine.run()

        assert not logs
        for length in lengths:
            assert engine.ids(str(length)) == generated(tiny_model(family), prompt(length, seed=length), 12)

    def test_refuses_by_name_what_it_would_serve_wrongly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bloom builds its position bias from a mask of two dimensions."""
        monkeypatch.setitem(CONFIGS, "bloom", OTHERS["bloom"])
        engine = hand_engine({}, family="bloom")
        with pytest.raises(InvalidRequest, match="BloomForCausalLM cannot be served"):
            check_architecture(engine.runner, engine.tokenizer)

    def test_leaves_the_cache_empty(self) -> None:
        engine = hand_engine({})
        check_architecture(engine.runner, engine.tokenizer)
        assert engine.runner.cache_bytes == 0
        assert engine.engine.status.kv_cache_bytes == 0


class TestLongContext:
    @pytest.mark.parametrize(
        "config",
        [
            LlamaConfig(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
                                         "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                         "original_max_position_embeddings": 512}),
            LlamaConfig(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                         "original_max_position_embeddings": 512}),
            MistralConfig(sliding_window=300),
        ],
        ids=["llama3 scaling", "yarn scaling", "sliding window"],
    )  # fmt: skip
    def test_a_text_to_the_models_limit_is_its_own_generate(self, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
                 "max_position_embeddings": 2304, "pad_token_id": 0}  # fmt: skip
        config = type(config)(**{**config.to_diff_dict(), **sizes})
        monkeypatch.setitem(CONFIGS, "long", lambda: config)
        monkeypatch.setattr(engine_parts, "MAX_CONTEXT", 2304)
        engine = hand_engine({}, family="long", prefill_step_tokens=640)
        engine.submit("long", prompt(2296), max_new_tokens=8)
        engine.submit("short", prompt(30), max_new_tokens=8)
        engine.run()

        model = tiny_model("long")
        assert engine.ids("long") == generated(model, prompt(2296), 8)
        assert engine.ids("short") == generated(model, prompt(30), 8)

    def test_longrope_ends_before_one_request_could_change_anothers_frequencies(self) -> None:
        rope = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
        config = {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096, "rope_scaling": rope}
        assert max_context_of(config) == 4096
        assert max_context_of({"max_position_embeddings": 131_072, "rope_scaling": {"type": "linear"}}) == 131_072


class TestRefusals:
    def test_models_without_keys_and_values_are_refused_by_name(self) -> None:
        config = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=2, state_size=4)
        model = AutoModelForCausalLM.from_config(config)
        with pytest.raises(InvalidRequest, match="MambaForCausalLM cannot be served"):
            layer_bytes(model)

    @pytest.mark.parametrize(
        ("config", "kind"),
        [(Qwen3NextConfig(), "linear_attention"), (Llama4TextConfig(), "chunked_attention"), (GPTNeoConfig(), "local")],
        ids=["recurrent", "chunked", "local"],
    )
    def test_layers_that_look_back_in_another_way_are_refused_by_name(self, config: Any, kind: str) -> None:
        with pytest.raises(InvalidRequest, match=f"layers of kind {kind}"):
            AttentionWindows.of(config)
