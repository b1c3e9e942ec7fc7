"""A job's figures over its steps. Written in batches by its worker, read thinned out."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.shared.database.rows import JobMetricRow

MAX_POINTS: Final = 10_000
"""Most points that are read at once."""


def record_metrics(session: Session, job_id: str, points: Mapping[int, Mapping[str, Any]]) -> None:
    """Keep figures by step. Further figures of a step join those it has; a step that is done again overwrites them."""
    if not points:
        return
    rows = [{"job_id": job_id, "step": step, "figures": dict(figures)} for step, figures in sorted(points.items())]
    new = insert(JobMetricRow).values(rows)
    merged = {"figures": JobMetricRow.figures.op("||")(new.excluded.figures), "at": func.clock_timestamp()}
    session.execute(new.on_conflict_do_update(index_elements=["job_id", "step"], set_=merged))


def read_metrics(session: Session, job_id: str, *, after_step: int = 0, max_points: int) -> list[JobMetricRow]:
    """At most `max_points` of those above `after_step`, in the order of steps: evenly thinned out, evaluations last."""
    of_job = (JobMetricRow.job_id == job_id, JobMetricRow.step > after_step)
    is_evaluation = JobMetricRow.figures.has_key("eval_loss")
    places = session.execute(select(JobMetricRow.step, is_evaluation).where(*of_job).order_by(JobMetricRow.step))
    steps: list[int] = []
    evaluations: list[int] = []
    for step, has_evaluation in places:
        (evaluations if has_evaluation else steps).append(step)
    kept = thinned(evaluations, max_points)
    kept += thinned(steps, max_points - len(kept))
    query = select(JobMetricRow).where(JobMetricRow.job_id == job_id, JobMetricRow.step.in_(kept))
    return list(session.scalars(query.order_by(JobMetricRow.step)))


def thinned(steps: Sequence[int], num_kept: int) -> list[int]:
    """At most `num_kept` of them, evenly spaced, the last among them."""
    if len(steps) <= num_kept:
        return list(steps)
    return [steps[(index + 1) * len(steps) // num_kept - 1] for index in range(num_kept)]
