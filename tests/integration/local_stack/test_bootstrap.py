"""The first start's import of a demo: a tiny base model, experts with random weights, real database and storage."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sqlalchemy import text
from sqlalchemy.orm import Session
from transformers import AutoModelForCausalLM

from services.local_stack.bootstrap import bootstrap_demo
from services.shared.config import RouterSettings, Settings
from services.shared.database.rows import Row
from services.shared.database.session import open_engine, session_factory
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.registry import active_release
from services.shared.storage import Storage
from services.shared.vocabulary import BASE
from tests.unit.trainer_worker.conftest import tiny_base  # noqa: F401 -- a fixture

VOCAB_SIZE = 259
EXEMPLARS = {"math": "2 + 3 = 5. 4 + 4 = 8. ", "story": "Once upon a time there was a fox. "}


def _write_expert(folder: Path, base: Path, exemplar: str) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    (folder / "exemplars.jsonl").write_text(json.dumps({"text": 40 * exemplar}) + "\n")


@pytest.fixture
def demo(tmp_path: Path, tiny_base: Path) -> Path:  # noqa: F811
    """A demo with two experts that bring texts instead of evidence, and a router."""
    folder = tmp_path / "demo"
    shutil.copytree(tiny_base, folder / "base")
    for name, exemplar in EXEMPLARS.items():
        _write_expert(folder / "experts" / name, folder / "base", exemplar)
    base_evidence = build_bigram_evidence([list(range(VOCAB_SIZE))], VOCAB_SIZE)
    write_bayes_router(folder / "router", settings=RouterSettings(), base_evidence=base_evidence)
    return folder


@pytest.fixture
def demo_settings(settings: Settings, demo: Path) -> Settings:
    """Settings for that demo, on an empty database."""
    engine = open_engine(settings.database)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(Row.metadata.tables)} RESTART IDENTITY CASCADE"))
    engine.dispose()
    return settings.model_copy(update={"base_model": str(demo / "base")})


@contextmanager
def _session(settings: Settings) -> Iterator[Session]:
    engine = open_engine(settings.database)
    with session_factory(engine)() as session:
        yield session
    engine.dispose()


def test_the_demos_experts_become_an_active_release(demo: Path, demo_settings: Settings) -> None:
    sentence = bootstrap_demo(demo_settings, demo=demo)

    assert sentence == "Imported the demo: math, story. release-1 is active."
    storage = Storage(demo_settings.storage.root)
    with _session(demo_settings) as session:
        release = active_release(session)
        assert release
        versions = [column.version for column in release.experts]
        scorer = ReleaseScorer.load(
            router_dir=storage.artifact(release.router_digest),
            graph_dir=None,
            experts=[(version.expert_name, storage.artifact(version.digest)) for version in versions],
            vocab_size=VOCAB_SIZE,
        )
    assert scorer.columns == ("math", "story", BASE)


def test_a_second_start_changes_nothing(demo: Path, demo_settings: Settings) -> None:
    bootstrap_demo(demo_settings, demo=demo)

    assert bootstrap_demo(demo_settings, demo=demo) == "Nothing to import: 2 experts are registered."


def test_another_base_model_imports_nothing(demo: Path, demo_settings: Settings, tmp_path: Path) -> None:
    other = demo_settings.model_copy(update={"base_model": str(tmp_path)})

    assert "not the demo" in bootstrap_demo(other, demo=demo)


def test_a_demo_without_experts_says_how_to_build_them(demo: Path, demo_settings: Settings) -> None:
    shutil.rmtree(demo / "experts")

    assert "adaptive-moe demo build" in bootstrap_demo(demo_settings, demo=demo)


def test_a_damaged_expert_leaves_nothing_half_registered(demo: Path, demo_settings: Settings) -> None:
    weights = demo / "experts" / "story" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])

    with pytest.raises(Exception, match="adapter"):
        bootstrap_demo(demo_settings, demo=demo)

    shutil.rmtree(demo / "experts" / "story")
    assert bootstrap_demo(demo_settings, demo=demo).startswith("Imported the demo: math.")
