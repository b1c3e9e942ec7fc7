"""The committed demo: its sizes, its formats, and that every expert is worth having."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS
from services.trainer_worker.demo.matrix import load_model, measure_cell
from services.trainer_worker.demo.plan import BASE_NAME, DEFAULT_SEED, TARGET_MODULES
from services.trainer_worker.demo.stages import STAGES

DEMO = Path(__file__).parents[4] / "demo"
LEAST_GAIN = 0.20
LEAST_LOSS_REDUCTION = 0.15


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEMO / "matrix.json").read_text())
    return loaded


class TestFiles:
    def test_every_stage_left_what_it_promises(self) -> None:
        assert [name for stage in STAGES for name in stage.outputs if not (DEMO / name).exists()] == []

    def test_all_is_built_from_one_seed(self) -> None:
        log = json.loads((DEMO / "build.json").read_text())

        assert log["seed"] == DEFAULT_SEED
        assert list(log["seconds"]) == [stage.name for stage in STAGES]

    def test_is_small_enough_to_commit(self) -> None:
        sizes = {path: path.stat().st_size for path in DEMO.rglob("*") if path.is_file()}

        assert sum(sizes.values()) <= 12_000_000
        assert (DEMO / "base" / "model.safetensors").stat().st_size <= 6_000_000

    def test_holds_no_path_of_the_machine_that_built_it(self) -> None:
        texts = [path.read_text() for path in DEMO.rglob("*.json")]

        assert not any(str(DEMO.parent) in text or "/tmp/" in text for text in texts)


class TestBase:
    def test_is_a_small_llama_with_a_small_vocabulary(self) -> None:
        config = json.loads((DEMO / "base" / "config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")

        assert config["model_type"] == "llama"
        assert config["max_position_embeddings"] == 512
        assert config["dtype"] == "bfloat16"
        assert len(tokenizer) == config["vocab_size"] <= 2_048
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)


@pytest.mark.parametrize("name", DEMO_DOMAINS)
class TestExpert:
    def test_is_a_peft_adapter_for_all_projections_that_names_a_neutral_base(self, name: str) -> None:
        config = json.loads((DEMO / "experts" / name / "adapter_config.json").read_text())

        assert config["peft_type"] == "LORA"
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05)
        assert sorted(config["target_modules"]) == sorted(TARGET_MODULES)
        assert config["base_model_name_or_path"] == BASE_NAME
        with safe_open(DEMO / "experts" / name / "adapter_model.safetensors", framework="pt") as weights:
            assert len(weights.keys()) == 2 * len(TARGET_MODULES) * 5

    def test_has_exemplars_of_the_common_size_from_its_own_training_text(self, name: str) -> None:
        path = DEMO / "experts" / name / "exemplars.jsonl"
        texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        held_out = {item.text for item in DOMAINS[name].generate(DEFAULT_SEED, 200, "held_out")}

        assert 60_000 <= path.stat().st_size <= 100_000
        assert not held_out & set(texts)

    def test_beats_the_base_model_on_its_own_domain(self, name: str, report: dict[str, Any]) -> None:
        gains = report["own_domain"][name]

        assert report["items_per_domain"] == 200
        assert gains["exact_match_gain"]["value"] >= LEAST_GAIN
        assert gains["exact_match_gain"]["low"] > 0
        assert gains["completion_loss_reduction"] >= LEAST_LOSS_REDUCTION
        assert gains["text_loss_reduction"] >= LEAST_LOSS_REDUCTION

    def test_is_the_best_on_its_own_domain(self, name: str, report: dict[str, Any]) -> None:
        shares = {row: cells[name]["exact_match"]["value"] for row, cells in report["cells"].items()}

        assert max(shares, key=lambda row: shares[row]) == name


class TestSpotCheck:
    def test_the_weights_do_what_the_matrix_says(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
        domain = DOMAINS["factual"]
        items = domain.generate(DEFAULT_SEED + 1, 20, "held_out")

        base = measure_cell(load_model(DEMO / "base"), tokenizer, domain, items)
        expert = measure_cell(load_model(DEMO / "base", DEMO / "experts" / "factual"), tokenizer, domain, items)

        assert sum(expert.right) >= sum(base.right) + 4
        assert expert.loss.text < base.loss.text
