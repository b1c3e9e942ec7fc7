"""The toys, trained once."""

from pathlib import Path

import pytest

from services.shared.config import Settings
from services.shared.modeling.base_model import load_base_model
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.training_text import Example
from services.trainer_worker.training.expert import train_expert
from tests.unit.trainer_worker.training.toys import Toys, sums, words


@pytest.fixture(scope="session")
def toys(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Toys:
    folder = tmp_path_factory.mktemp("toys")
    base = load_base_model(Settings(base_model=str(tiny_base), device="cpu"))
    texts = {
        "words": [Example(words(seed), None) for seed in range(60)],
        "sums": [Example(sums(seed), None) for seed in range(60)],
    }
    experts = []
    for name, examples in texts.items():
        training = train_expert(
            base_model=str(tiny_base),
            train=examples[:50],
            validation=examples[50:],
            hyperparameters=ExpertHyperparameters(
                rank=4,
                learning_rate=2e-2,
                max_steps=60,
                batch_size=4,
                max_length=64,
                eval_steps=60,
                early_stopping_patience=0,
                dropout=0.0,
            ),
            output_dir=folder / name,
            num_threads=1,
            on_progress=lambda progress: None,
            should_stop=lambda: False,
        )
        evidence = build_bigram_evidence(
            base.tokenizer.encode_batch([example.text for example in examples[:50]]), base.tokenizer.vocab_size
        )
        evidence.save(training.adapter_dir / "evidence" / "bigram.safetensors")
        experts.append((name, training.adapter_dir))
    return Toys(base, experts, texts)
