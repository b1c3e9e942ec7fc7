"""Gap analyses on the demo's base model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import GapRow, JobRow, ReleaseRow
from services.shared.modeling.base_fingerprint import base_fingerprint
from services.shared.modeling.base_model import load_base_model
from services.shared.modeling.trunk import trunk_states
from services.shared.schemas.gap_analysis import GapAnalysisJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.trainer_worker.demo.domains import DOMAINS
from tests.integration.trainer_worker.gap_analysis.traffic import KNOWN, UNKNOWN, ReadPrompt, Traffic

TAP_LAYER = 2


@pytest.fixture(scope="session")
def read_prompts(demo_dir: Path) -> dict[str, list[ReadPrompt]]:
    """Held-out prompts of every domain; nobody has ever seen those of `UNKNOWN`."""
    base = load_base_model(Settings(base_model=str(demo_dir / "base"), device="cpu"))
    torch.set_num_threads(1)
    found = {}
    for domain in (*KNOWN, *UNKNOWN):
        texts = [item.prompt for item in DOMAINS[domain].generate(5, 60, "held_out")]
        found[domain] = [
            ReadPrompt(text, trunk_states(base.model, torch.tensor([ids]), TAP_LAYER)[0].mean(dim=0).numpy())
            for text, ids in zip(texts, base.tokenizer.encode_batch(texts), strict=True)
        ]
    return found


@pytest.fixture
def settings(settings: Settings, demo_dir: Path) -> Settings:
    """Those of the other jobs, with the demo's base model."""
    return settings.model_copy(update={"base_model": str(demo_dir / "base")})


@pytest.fixture
def traffic(sessions: sessionmaker[Session], read_prompts: dict[str, list[ReadPrompt]], settings: Settings) -> Traffic:
    """Requests of a release on that base model."""
    with sessions.begin() as session:
        release = ReleaseRow(
            base_model="demo",
            base_fingerprint=base_fingerprint(settings.base_model),
            router_digest="0" * 64,
            router_kind="bayes",
        )
        session.add(release)
        session.flush()
        return Traffic(sessions, read_prompts, release.id)


@pytest.fixture
def analyse(run_job: Callable[[JobSpecBase], JobRow]) -> Callable[..., dict[str, Any]]:
    """Run an analysis to its end; its result."""

    def analyse(**fields: Any) -> dict[str, Any]:
        row = run_job(GapAnalysisJobSpec(**fields))
        assert row.status == "succeeded", row.error
        assert row.result is not None
        return row.result

    return analyse


@pytest.fixture
def gap(sessions: sessionmaker[Session]) -> Callable[[str], GapRow]:
    """A gap's row as it is now."""

    def gap(gap_id: str) -> GapRow:
        with sessions() as session:
            return session.get_one(GapRow, gap_id)

    return gap
