"""Two experts of the demo under an active release, and jobs that are to add one of a held-back domain."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import GapRequestRow, GapRow, JobRow, ReleaseRow, RequestRow
from services.shared.modeling.base_fingerprint import base_fingerprint
from services.shared.publishing import EXEMPLARS_FILE, add_evidence
from services.shared.registry import create_release, find_release, register_expert
from services.shared.release_activation import activate_release
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.sequences import AdapterReport
from services.shared.storage import Storage
from services.shared.tokenizer import load_tokenizer
from services.shared.training_text import read_examples
from services.trainer_worker.demo.domains import DOMAINS

EXPERTS = ("factual", "math")
SHORT = ExpertHyperparameters(
    rank=4, alpha=8, max_steps=12, eval_steps=6, batch_size=4, max_length=96, learning_rate=1e-2
)
"""Enough for chess notation to be learned in seconds."""


@pytest.fixture
def settings(settings: Settings, demo_dir: Path) -> Settings:
    """On the demo's base model."""
    torch.set_num_threads(1)
    return settings.model_copy(update={"base_model": str(demo_dir / "base")})


@pytest.fixture
def release(settings: Settings, sessions: sessionmaker[Session], demo_dir: Path, tmp_path: Path) -> ReleaseRow:
    """The demo's router and calibration over two of its experts, active."""
    storage, tokenizer = Storage(settings.storage.root), load_tokenizer(settings.base_model)
    fingerprint = base_fingerprint(settings.base_model)
    report = AdapterReport(
        rank=16, num_parameters=1, num_bytes=1, target_modules=(), lowest_layer=0, base_fingerprint=fingerprint
    )
    digests = {}
    for name in EXPERTS:
        folder = tmp_path / name
        shutil.copytree(demo_dir / "experts" / name, folder)
        examples = read_examples(folder / EXEMPLARS_FILE, filename=EXEMPLARS_FILE)
        add_evidence(folder, examples=examples, tokenizer=tokenizer)
        digests[name] = storage.publish(folder)
    with sessions.begin() as session:
        versions = [
            register_expert(
                session, name=name, domain=name, description="", digest=digest, report=report, has_evidence=True,
                source="imported",
            )
            for name, digest in digests.items()
        ]  # fmt: skip
        made = create_release(
            session,
            base_model="demo",
            base_fingerprint=fingerprint,
            router_digest=storage.publish(demo_dir / "router"),
            router_kind="bayes",
            graph_digest=None,
            calibration_digest=storage.publish(demo_dir / "calibration"),
            version_ids=[version.id for version in versions],
            note="",
        )
        activate_release(session, made.number, expected_active=None)
        return find_release(session, made.number)


@pytest.fixture
def gap(sessions: sessionmaker[Session], settings: Settings) -> str:
    """An open gap of forty prompts of chess notation; returns its id."""
    items = DOMAINS["chess_notation"].generate(7, 40, "train")
    shown = [{"prompt": item.prompt, "completion": item.completion} for item in items[:5]]
    with sessions.begin() as session:
        session.add(
            GapRow(
                id="gap-chess",
                base_fingerprint=base_fingerprint(settings.base_model),
                num_prompts=len(items),
                trend=1.0,
                domain="unknown",
                keywords=["white", "black", "move"],
                expert_name="chess_expert",
                centroid=b"",
                report={"data_request": {"kind": "questions about openings", "examples": shown}},
                job_id="job-of-the-analysis",
                last_seen_at=datetime.now(UTC),
            )
        )
        session.flush()
        for number, item in enumerate(items):
            session.add(request_of(f"request-{number}", item.prompt))
            session.flush()
            session.add(GapRequestRow(request_id=f"request-{number}", gap_id="gap-chess"))
    return "gap-chess"


def request_of(request_id: str, prompt: str) -> RequestRow:
    """A request as the routing log keeps it."""
    return RequestRow(
        id=request_id,
        endpoint="/generate",
        plan={},
        prompt=prompt,
        parameters={},
        num_prompt_tokens=1,
        num_generated_tokens=0,
        attribution=[],
        timings={},
        flagged=True,
    )


@pytest.fixture
def creation() -> Callable[..., ExpertCreationJobSpec]:
    """A job that makes an expert of chess notation."""

    def creation(**fields: Any) -> ExpertCreationJobSpec:
        chosen = {"name": "chess", "hyperparameters": SHORT, "num_examples": 100, "held_out_fraction": 0.3}
        if "training_files" not in fields:
            chosen["teacher"] = "demo:chess_notation"
        return ExpertCreationJobSpec.model_validate(chosen | fields)

    return creation


@pytest.fixture
def create(
    run_job: Callable[[JobSpecBase], JobRow], creation: Callable[..., ExpertCreationJobSpec]
) -> Callable[..., JobRow]:
    """Such a job, run in this process."""
    return lambda **fields: run_job(creation(**fields))
