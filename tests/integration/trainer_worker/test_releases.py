"""How what a job has made joins what is served."""

import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.database.rows import ExpertVersionRow
from services.shared.registry import create_release, find_release, register_expert
from services.shared.release_activation import activate_release
from services.shared.release_evaluation import Evaluation
from services.shared.schemas.sequences import AdapterReport
from services.trainer_worker.activation_gate import Judgement
from services.trainer_worker.releases import Activation, BaseIdentity, Router, join_release

pytestmark = pytest.mark.integration

BASE = BaseIdentity("demo", "f" * 64)
REPORT = AdapterReport(
    rank=4, num_parameters=1, num_bytes=1, target_modules=(), lowest_layer=0, base_fingerprint=BASE.fingerprint
)


def registered(session: Session, name: str) -> ExpertVersionRow:
    return register_expert(
        session, name=name, domain=None, description="", digest="0" * 64, report=REPORT, has_evidence=True,
        source="trained",
    )  # fmt: skip


def no_router() -> Router:
    raise AssertionError("a release is active, and has one")


def test_what_was_measured_beside_another_release_is_not_kept_as_this_ones_losses(
    sessions: sessionmaker[Session],
) -> None:
    with sessions.begin() as session:
        active = create_release(
            session, base_model=BASE.name, base_fingerprint=BASE.fingerprint, router_digest="1" * 64,
            router_kind="bayes", graph_digest=None, version_ids=[registered(session, "ada").id], note="",
        )  # fmt: skip
        activate_release(session, active.number, expected_active=None)
    losses = Evaluation(losses={"plays": 1.0}, data="held out")
    before = Judgement(active=active.number - 1, reference=losses, evaluation=losses)

    with sessions.begin() as session:
        made = join_release(
            session,
            registered(session, "bob"),
            base=BASE,
            default_router=no_router,
            activation=Activation(0.1, before),
            note="",
        )

    assert not made.activated
    assert made.refusal is not None
    assert "another release became active" in made.refusal
    with sessions() as session:
        assert find_release(session, made.release.number).evaluation is None
