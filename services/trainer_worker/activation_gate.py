"""The regression gate of jobs that activate what they make: the release is measured before it exists, on the very
documents that the active one was evaluated on (DESIGN D5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.shared.config import Settings
from services.shared.database.rows import JobRow, ReleaseRow
from services.shared.errors import InvalidRequest, JobFailed
from services.shared.registry import active_release
from services.shared.release_evaluation import Evaluation, stored_evaluation
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.schemas.jobs import ExpertJobSpec, RouterJobSpec
from services.shared.tokenizer import load_tokenizer
from services.shared.vocabulary import JobKind, JobStatus
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.training_files import examples_of


@dataclass(frozen=True)
class Candidate:
    """A release that a job is about to make; `experts` are (name, folder) in the order of its gate's columns."""

    experts: Sequence[tuple[str, Path]]
    router_dir: Path
    graph_dir: Path | None


@dataclass(frozen=True)
class Judgement:
    """A candidate's losses by domain, and the number of the active release that they are to be compared with."""

    active: int
    evaluation: Evaluation


def tolerance_of(settings: Settings, spec: ExpertJobSpec | RouterJobSpec) -> float:
    """The job's own tolerance, or the configured one, in nats per token."""
    return settings.releases.regression_tolerance if spec.tolerance is None else spec.tolerance


def judge(context: JobContext, candidate: Candidate) -> Judgement | None:
    """Measure the candidate as the active release was measured; None, and an event that says why, where that cannot be.

    It cannot be without an active release, or where that one was never evaluated, or evaluated by hand, or where the
    text is gone. Raises TrainingStopped; goes on from what an interrupted measurement left.
    """
    with context.sessions() as session:
        active = active_release(session)
        if active is None:
            return None
        spec = _evaluation_of(session, active)
    if spec is None:
        context.note(
            f"The active {active.id} was not evaluated by a job, so the new release is not compared with it before it "
            "is activated: an evaluation job on held-out text puts a gate here."
        )
        return None
    context.enter(f"comparing with {active.id}")
    measured = _measured(context, candidate, active, spec)
    return Judgement(active.number, measured) if measured is not None else None


def _evaluation_of(session: Session, active: ReleaseRow) -> EvaluationJobSpec | None:
    """The job that measured on the documents of the active release's evaluation."""
    evaluation = stored_evaluation(active.evaluation)
    if evaluation is None:
        return None
    query = (
        select(JobRow)
        .where(
            JobRow.kind == JobKind.EVALUATION.value,
            JobRow.status == JobStatus.SUCCEEDED.value,
            JobRow.result["evaluation"]["data"].astext == evaluation.data,
        )
        .order_by(JobRow.finished_at.desc())
        .limit(1)
    )
    row = session.scalar(query)
    return EvaluationJobSpec.model_validate(row.spec) if row is not None else None


def _measured(
    context: JobContext, candidate: Candidate, active: ReleaseRow, spec: EvaluationJobSpec
) -> Evaluation | None:
    from services.shared.modeling.base_model import load_base_model
    from services.trainer_worker.evaluation.held_out import columns_of, in_order
    from services.trainer_worker.evaluation.routed_losses import routed_losses
    from services.trainer_worker.evaluation.subject import Subject

    experts = [(column.version.expert_name, column.version.expert.domain) for column in active.experts]
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    try:
        columns = columns_of(tuple(spec.held_out), experts)
        texts = {domain: examples_of(context, file_id, tokenizer) for domain, file_id in spec.held_out.items()}
    except (InvalidRequest, JobFailed) as error:
        _note_gone(context, active, error.message)
        return None
    streams = {domain: tokenizer.encode_batch([one.text for one in examples]) for domain, examples in texts.items()}
    measured = routed_losses(
        Subject(load_base_model(context.settings), candidate.experts, candidate.router_dir, candidate.graph_dir),
        in_order(columns, streams, None),
        spec,
        folder=context.folder.work / "gate" / active.id,
        on_progress=context.report,
        should_stop=context.should_stop,
    )
    known = stored_evaluation(active.evaluation)
    if known is None or known.data != measured.data:
        _note_gone(context, active, "the documents are drawn differently now.")
        return None
    return measured


def _note_gone(context: JobContext, active: ReleaseRow, reason: str) -> None:
    context.note(
        f"What {active.id} was evaluated on cannot be read again, so the new release is not compared with it before it "
        f"is activated: {reason}",
        level="warn",
    )
