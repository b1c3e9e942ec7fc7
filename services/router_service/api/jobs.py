"""`/jobs`: training experts and making routers."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Body, Header, Query, Response
from sqlalchemy.orm import Session

from services.router_service.api.event_stream import SSE_KEEP_ALIVE, EventStreamResponse, sse_event
from services.router_service.api.examples import ERRORS, JOB_EXAMPLES
from services.router_service.dependencies import ResourcesDep
from services.router_service.schemas.dry_run import DryRun
from services.router_service.schemas.listing import DEFAULT_LIMIT, After, Limit, Listing, page
from services.router_service.transactions import Transactions
from services.shared import job_control, jobs
from services.shared.database.rows import JobEventRow, JobRow
from services.shared.errors import Unavailable
from services.shared.job_events import list_events
from services.shared.schemas.jobs import Job, JobEvent, JobProgress, JobSpec
from services.shared.vocabulary import JobKind, JobStatus

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=ERRORS)

_POLL_S: Final = 0.5
_KEEP_ALIVE_S: Final = 15.0
_EVENTS_AT_ONCE: Final = 500
_LAST_EVENT_ID: Final = 2**63 - 1
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=200, description="A repeated request with it finds its first job.")
]


@router.post("", status_code=202, responses={200: {"model": DryRun, "description": "With `dry_run`."}})
async def submit_job(
    spec: Annotated[JobSpec, Body(openapi_examples=JOB_EXAMPLES)],
    resources: ResourcesDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job | DryRun:
    """Queue a job. Its files are read through first, so a bad line is told here and not in the middle of the night.

    With `"dry_run": true` nothing is queued: the answer (200) says what was found in the files and what it would take.
    """
    if spec.dry_run:
        response.status_code = HTTPStatus.OK
        return await resources.submission.dry_run(spec)
    return shown(await resources.submission.submit(spec, idempotency_key=idempotency_key))


@router.get("")
async def list_jobs(
    resources: ResourcesDep,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    kind: Annotated[JobKind | None, Query(description="Only these.")] = None,
    status: Annotated[JobStatus | None, Query(description="Only these.")] = None,
) -> Listing[Job]:
    """Newest first."""
    rows = await resources.transactions.run(jobs.list_jobs, limit=limit + 1, before=after, kind=kind, status=status)
    return page(rows, limit, shown)


@router.get("/{job_id}")
async def get_job(job_id: str, resources: ResourcesDep) -> Job:
    """One job with its progress."""
    return shown(await resources.transactions.run(jobs.find_job, job_id))


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: str, resources: ResourcesDep) -> Job:
    """Cancel a queued or paused job at once; a running one stops within one step. 409 if it has ended."""
    return shown(await resources.transactions.run(job_control.request_cancel, job_id))


@router.post("/{job_id}/pause")
async def pause_job(job_id: str, resources: ResourcesDep) -> Job:
    """Pause a queued job at once; a running one keeps its state and frees its worker within one step. 409 if it has
    ended."""
    return shown(await resources.transactions.run(job_control.request_pause, job_id))


@router.post("/{job_id}/resume")
async def resume_job(job_id: str, resources: ResourcesDep) -> Job:
    """Queue a paused job again: it goes on exactly where it was. 409 if it is not paused."""
    return shown(await resources.submission.resume(job_id))


@router.get(
    "/{job_id}/events",
    response_class=EventStreamResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "JobEvent objects."}
    },
)
async def job_events(
    job_id: str,
    resources: ResourcesDep,
    last_event_id: Annotated[
        str | None, Header(max_length=19, pattern="^[0-9]*$", description="Only what came after this event.")
    ] = None,
) -> EventStreamResponse:
    """The job's history and then what happens, as server-sent events; the stream ends when the job has."""
    await resources.transactions.run(jobs.find_job, job_id)
    after = min(int(last_event_id or 0), _LAST_EVENT_ID)
    return EventStreamResponse(_events(resources.transactions, job_id, after), close=_nothing)


async def _events(transactions: Transactions, job_id: str, after: int) -> AsyncIterator[bytes]:
    silent_s = 0.0
    while True:
        try:
            has_ended, events = await transactions.run(_news, job_id, after)
        except Unavailable:
            has_ended, events = False, []
        for event in events:
            after = event.id
            yield sse_event(event.model_dump_json(), event_id=event.id)
        if has_ended and len(events) < _EVENTS_AT_ONCE:
            return
        silent_s = 0.0 if events else silent_s + _POLL_S
        if silent_s >= _KEEP_ALIVE_S:
            silent_s = 0.0
            yield SSE_KEEP_ALIVE
        if len(events) < _EVENTS_AT_ONCE:
            await asyncio.sleep(_POLL_S)


def _news(session: Session, job_id: str, after: int) -> tuple[bool, list[JobEvent]]:
    # The status first: what a job that has ended still had to say is then there to be read.
    status = JobStatus(jobs.find_job(session, job_id).status)
    rows = list_events(session, job_id, after=after, limit=_EVENTS_AT_ONCE)
    return status.is_final, [_shown_event(row) for row in rows]


async def _nothing() -> None:
    """A job's events hold nothing that must be closed."""


def shown(row: JobRow) -> Job:
    """The row as the API tells it."""
    return Job.model_validate(
        {
            "id": row.id,
            "kind": row.kind,
            "status": row.status,
            "spec": row.spec,
            "priority": row.priority,
            "queue": row.queue,
            "user": row.user_name,
            "attempt": row.attempt,
            "cancel_requested": row.cancel_requested,
            "pause_requested": row.pause_requested,
            "progress": JobProgress(
                phase=row.phase,
                step=row.step,
                total_steps=row.total_steps,
                loss=row.loss,
                seconds_left=row.seconds_left,
            ),
            "result": row.result,
            "error": row.error,
            "created_at": row.created_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
        }
    )


def _shown_event(row: JobEventRow) -> JobEvent:
    return JobEvent.model_validate(
        {"id": row.id, "at": row.at, "level": row.level, "type": row.type, "message": row.message, "data": row.data}
    )
