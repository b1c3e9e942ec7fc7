"""Calibrations from the row to the release."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import JobRow, ReleaseRow
from services.shared.modeling.calibration import Calibration
from services.shared.registry import active_release
from services.shared.release_activation import activate_release
from services.shared.schemas.calibration import CalibrationJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus
from tests.integration.trainer_worker.studies.reports import report_of

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SMALL: dict[str, Any] = {"max_documents": 24, "max_tokens": 64, "prompt_tokens": (12, 32)}


@pytest.fixture
def calibrate(run_job: Callable[[JobSpecBase], JobRow], held_out: dict[str, str]) -> Callable[..., JobRow]:
    """A calibration of these fields."""
    return lambda **fields: run_job(CalibrationJobSpec.model_validate(SMALL | {"held_out": held_out} | fields))


def test_a_calibrated_release_is_made_and_activated(
    calibrate: Callable[..., JobRow], release: ReleaseRow, settings: Settings, sessions: sessionmaker[Session]
) -> None:
    row = calibrate(activate=True)

    assert row.status == JobStatus.SUCCEEDED, row.error
    assert row.result is not None
    with sessions() as session:
        active = active_release(session)
    assert active is not None
    assert active.id == row.result["release"] != release.id
    assert active.calibration_digest == row.result["calibration"]
    assert (active.router_digest, active.graph_digest) == (release.router_digest, release.graph_digest)

    calibration = Calibration.load(Storage(settings.storage.root).artifact(row.result["calibration"]))
    assert set(calibration.domains) == {"sums", "plays", "base"}
    assert calibration.domains["sums"].routed < calibration.domains["sums"].base

    folder, figures = report_of(row, settings)
    assert (folder / "reliability.png").stat().st_size > 1000
    assert f"Calibration of {release.id}" in (folder / "report.md").read_text()
    assert figures["detection"] is None  # it takes three domains
    for name in ("sums", "plays"):
        one = figures["domains"][name]
        assert one["documents"] == 24
        assert one["routed"] < one["left_out"]
        assert one["flagged"] <= one["flagged_left_out"]
    assert 0.0 <= figures["ece"] <= 1.0
    assert figures["classification"]["accuracy"] > 0.6


def test_another_release_that_became_active_meanwhile_stays(
    calibrate: Callable[..., JobRow], release: ReleaseRow, sessions: sessionmaker[Session]
) -> None:
    first = calibrate()
    assert first.result is not None
    with sessions.begin() as session:
        activate_release(session, int(first.result["release"].removeprefix("release-")), expected_active=release.number)

    row = calibrate(release=release.id, activate=True, seed=1)

    assert row.result is not None
    assert row.result["activated"] is False
    assert "not the active release" in row.result["not_activated_because"]
    with sessions() as session:
        active = active_release(session)
    assert active is not None
    assert active.id == first.result["release"]


def test_text_of_too_few_documents_is_refused(
    calibrate: Callable[..., JobRow], release: ReleaseRow, upload: Callable[[str, str], str], held_out: dict[str, str]
) -> None:
    few = upload("few.jsonl", '{"text": "To be, or not to be, that is the question that we ask of every play."}\n')

    row = calibrate(held_out=held_out | {"plays": few})

    assert row.status == JobStatus.FAILED
    assert row.error is not None
    assert "8 documents of every domain" in row.error["message"]
