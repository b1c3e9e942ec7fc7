"""The regression gate of jobs that activate what they make: the release is measured before it exists, on the very
documents that the active one was evaluated on (DESIGN D5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from services.shared.config import Settings
from services.shared.database.rows import JobRow, ReleaseRow
from services.shared.errors import InvalidRequest, JobFailed
from services.shared.registry import active_release
from services.shared.release_evaluation import Evaluation, stored_evaluation
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.storage import Storage
from services.shared.tokenizer import load_tokenizer
from services.shared.vocabulary import JobKind, JobStatus
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.training_files import examples_of

_MOST_JOBS: Final = 20


@dataclass(frozen=True)
class Candidate:
    """A release that a job is about to make; `experts` are (name, folder) in the order of its gate's columns."""

    experts: Sequence[tuple[str, Path]]
    router_dir: Path
    graph_dir: Path | None

    @classmethod
    def of(cls, release: ReleaseRow, storage: Storage) -> "Candidate":
        """A release that is there, to be compared with one that is not."""
        return cls(
            experts=[(one.version.expert_name, storage.artifact(one.version.digest)) for one in release.experts],
            router_dir=storage.artifact(release.router_digest),
            graph_dir=storage.artifact(release.graph_digest) if release.graph_digest else None,
        )


@dataclass(frozen=True)
class Judgement:
    """A candidate's losses by domain, and those of the active release, by its number, on the same documents."""

    active: int
    reference: Evaluation
    evaluation: Evaluation


@dataclass(frozen=True)
class Comparable:
    """A job that evaluated the active release, or any on the documents of that one's losses, which are `losses`."""

    job_id: str
    spec: EvaluationJobSpec
    losses: Evaluation


def tolerance_of(settings: Settings, own: float | None) -> float:
    """The job's `own` tolerance, or the configured one, in nats per token."""
    return settings.releases.regression_tolerance if own is None else own


def judge(context: JobContext, candidate: Candidate) -> Judgement | None:
    """Measure the candidate as the active release was measured; None, and an event that says why, where that cannot be.

    It cannot be without an active release, or where no job has evaluated that one, or where the text is gone. Raises
    TrainingStopped; goes on from what an interrupted measurement left.
    """
    with context.sessions() as session:
        active = active_release(session)
        if active is None:
            return None
        found = _comparable(context, session, active)
    for one in found:
        context.enter(f"comparing with {active.id}")
        measured = _measured(context, candidate, active, one)
        if measured is not None:
            return Judgement(active.number, one.losses, measured)
    if not found:
        context.note(_why_not(active))
    return None


def _comparable(context: JobContext, session: Session, active: ReleaseRow) -> list[Comparable]:
    """Those of the documents of the losses that the release has first, then the newest of any that jobs made of it."""
    stored = stored_evaluation(active.evaluation)
    data = JobRow.result["evaluation"]["data"].astext
    is_of_its_losses = data.in_([stored.data] if stored is not None else [])
    query = (
        select(JobRow)
        .where(
            JobRow.kind == JobKind.EVALUATION.value,
            JobRow.status == JobStatus.SUCCEEDED.value,
            or_(is_of_its_losses, JobRow.result["release"].astext == active.id),
        )
        .order_by(is_of_its_losses.desc().nulls_last(), JobRow.finished_at.desc())
        .limit(_MOST_JOBS)
    )
    by_data: dict[str, Comparable] = {}
    for row in session.scalars(query):
        assert row.result is not None
        try:
            spec = EvaluationJobSpec.model_validate(row.spec)
            losses = Evaluation.model_validate(row.result["evaluation"])
        except (ValidationError, KeyError):  # rows outlive versions of this program
            context.note(
                f"The evaluation {row.id} is of another version of this program and cannot be repeated: evaluate "
                f"{active.id} again.",
                level="warn",
            )
            continue
        if stored is not None and losses.data == stored.data:
            losses = stored
        by_data.setdefault(losses.data, Comparable(row.id, spec, losses))
    return list(by_data.values())


def _why_not(active: ReleaseRow) -> str:
    stored = stored_evaluation(active.evaluation)
    by_hand = f": its losses on {stored.data!r} were given by hand or read off exemplars" if stored is not None else ""
    return (
        f"No job that can be repeated has evaluated the active {active.id}{by_hand}. So the new release is not "
        "compared with it before it is activated: an evaluation job on held-out text puts a gate here."
    )


def _measured(context: JobContext, candidate: Candidate, active: ReleaseRow, known: Comparable) -> Evaluation | None:
    from services.shared.modeling.base_model import load_base_model
    from services.trainer_worker.evaluation.held_out import columns_of, in_order
    from services.trainer_worker.evaluation.routed_losses import routed_losses
    from services.trainer_worker.evaluation.subject import Subject

    held_out = known.spec.held_out
    experts = [(column.version.expert_name, column.version.expert.domain) for column in active.experts]
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    try:
        columns = columns_of(tuple(held_out), experts)
        texts = {domain: examples_of(context, file_id, tokenizer) for domain, file_id in held_out.items()}
    except (InvalidRequest, JobFailed) as error:
        _note_gone(context, active, error.message)
        return None
    streams = {domain: tokenizer.encode_batch([one.text for one in examples]) for domain, examples in texts.items()}
    measured = routed_losses(
        Subject(load_base_model(context.settings), candidate.experts, candidate.router_dir, candidate.graph_dir),
        in_order(columns, streams, None),
        known.spec,
        context.run_control("gate", active.id, known.job_id),
    )
    if known.losses.data != measured.data:
        _note_gone(context, active, "the documents are drawn differently now.")
        return None
    return measured


def _note_gone(context: JobContext, active: ReleaseRow, reason: str) -> None:
    context.note(
        f"What {active.id} was evaluated on cannot be read again, so the new release is not compared with it before it "
        f"is activated: {reason}",
        level="warn",
    )
