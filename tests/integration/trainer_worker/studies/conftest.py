"""Two experts of real text, trained once, under an active release; jobs that study it run in this process."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import RouterSettings, Settings
from services.shared.database.rows import JobRow, ReleaseRow
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.registry import create_release, find_release, register_expert
from services.shared.release_activation import activate_release
from services.shared.schemas.cooperation_graph import CooperationGraphJobSpec
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.sequences import AdapterReport
from services.shared.storage import Storage
from services.shared.training_text import Example
from services.trainer_worker.training.expert import train_expert
from services.trainer_worker.training.training_folder import TrainingFolder
from tests.integration.trainer_worker.studies.recipes import SMALL, SMALL_GRAPH
from tests.integration.trainer_worker.studies.texts import upload_texts


@pytest.fixture(scope="session")
def documents(shared_material: Path) -> dict[str, list[str]]:
    """Real word problems, and real programming tasks with their code."""
    folder = shared_material / "data" / "text"
    problems = [json.loads(line) for line in (folder / "gsm8k_test.jsonl").read_text().splitlines()[:120]]
    plays = (folder / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")
    speeches = ["\n\n".join(plays[start : start + 3]) for start in range(0, 360, 3)]
    return {"sums": [f"{one['question']}\n{one['answer']}" for one in problems], "plays": speeches}


@pytest.fixture(scope="session")
def base(shared_material: Path) -> LoadedBase:
    return load_base_model(Settings(base_model=str(shared_material / "models" / "stories260K-hf"), device="cpu"))


@pytest.fixture(scope="session")
def experts(
    base: LoadedBase, documents: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """An expert for each, on all documents but the last forty, with its evidence; trained by whichever of the test
    processes needs them first."""
    is_one_of_several = "PYTEST_XDIST_WORKER" in os.environ
    base_folder = tmp_path_factory.getbasetemp()
    folder = (base_folder.parent if is_one_of_several else base_folder) / "experts"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = base_folder / "unfinished-experts"
            _train(base, documents, unfinished)
            unfinished.rename(folder)
    return {name: TrainingFolder(folder / name).adapter for name in documents}


def _train(base: LoadedBase, documents: dict[str, list[str]], folder: Path) -> None:
    torch.set_num_threads(1)
    for name, texts in documents.items():
        training = train_expert(
            base_model=base.name,
            train=[Example(text, None) for text in texts[:-50]],
            validation=[Example(text, None) for text in texts[-50:-40]],
            hyperparameters=ExpertHyperparameters(
                rank=4, max_steps=40, eval_steps=40, batch_size=4, max_length=128, learning_rate=5e-3
            ),
            output_dir=folder / name,
            num_threads=1,
            on_progress=lambda progress: None,
            should_stop=lambda: False,
        )
        _write_evidence(base, texts[:-50], training.adapter_dir / "evidence" / "bigram.safetensors")


def _write_evidence(base: LoadedBase, texts: Sequence[str], file: Path) -> None:
    build_bigram_evidence(base.tokenizer.encode_batch(list(texts)), base.tokenizer.vocab_size).save(file)


@pytest.fixture
def release(
    base: LoadedBase,
    experts: dict[str, Path],
    shared_material: Path,
    settings: Settings,
    sessions: sessionmaker[Session],
    tmp_path: Path,
) -> ReleaseRow:
    """Both experts under a Bayes router, active."""
    storage = Storage(settings.storage.root)
    generic = (shared_material / "data" / "text" / "wiki_demo.txt").read_text(encoding="utf-8")[:40_000].split("\n\n")
    evidence = build_bigram_evidence(base.tokenizer.encode_batch(generic), base.tokenizer.vocab_size)
    write_bayes_router(tmp_path / "router", settings=RouterSettings(), base_evidence=evidence)
    report = AdapterReport(
        rank=4, num_parameters=1, num_bytes=1, target_modules=(), lowest_layer=0, base_fingerprint=base.fingerprint
    )
    with sessions.begin() as session:
        versions = [
            register_expert(
                session,
                name=name,
                domain="mathematics" if name == "sums" else None,
                description="",
                digest=storage.publish(folder),
                report=report,
                has_evidence=True,
                source="trained",
            )
            for name, folder in experts.items()
        ]
        made = create_release(
            session,
            base_model="stories260K-hf",
            base_fingerprint=base.fingerprint,
            router_digest=storage.publish(tmp_path / "router"),
            router_kind="bayes",
            graph_digest=None,
            version_ids=[version.id for version in versions],
            note="",
        )
        activate_release(session, made.number, expected_active=None)
        return find_release(session, made.number)


@pytest.fixture
def held_out(documents: dict[str, list[str]], upload: Callable[[str, str], str]) -> dict[str, str]:
    """The documents that no expert was trained on, as files by expert."""
    return {name: upload_texts(upload, name, texts[-40:]) for name, texts in documents.items()}


@pytest.fixture
def run(run_job: Callable[[JobSpecBase], JobRow]) -> Callable[..., JobRow]:
    """An evaluation of these fields."""
    return lambda **fields: run_job(EvaluationJobSpec.model_validate(SMALL | fields))


@pytest.fixture
def learn(run_job: Callable[[JobSpecBase], JobRow], held_out: dict[str, str]) -> Callable[..., JobRow]:
    """A cooperation graph of these fields."""
    return lambda **fields: run_job(
        CooperationGraphJobSpec.model_validate({**SMALL_GRAPH, "training_files": held_out} | fields)
    )
