"""`/v1/fine_tuning/jobs`, as OpenAI's clients speak it: the expert jobs of `/jobs`."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Final

from fastapi import APIRouter, Body, Query, Request
from sqlalchemy.orm import Session

from services.router_service.api.examples import ERRORS
from services.router_service.api.jobs import IdempotencyKey
from services.router_service.api.openai_request import base_name
from services.router_service.dependencies import Resources, ResourcesDep
from services.router_service.fine_tuning import (
    expert_job,
    expert_name,
    own_id,
    shown_checkpoints,
    shown_event,
    shown_job,
)
from services.router_service.schemas.listing import After, Listing, page
from services.router_service.schemas.openai_fine_tuning import (
    FineTuningCheckpoints,
    FineTuningEvent,
    FineTuningJob,
    FineTuningRequest,
)
from services.shared import job_control, job_events, jobs
from services.shared.database.rows import JobEventRow, JobRow
from services.shared.errors import Conflict, InvalidRequest, NotFound
from services.shared.vocabulary import BASE, JobKind

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"], responses=ERRORS)

_EVENT_ID: Final = "ftevent-"
_LARGEST_ID: Final = 2**63 - 1
_MOST_METADATA: Final = 16
_Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]


@router.post("")
async def create_job(
    body: Annotated[FineTuningRequest, Body()], resources: ResourcesDep, idempotency_key: IdempotencyKey = None
) -> FineTuningJob:
    """Queue the training of an expert. Its files are read through first; a bad line is told by its number."""
    if (name := body.unsupported()) is not None:
        raise InvalidRequest(
            f"{name[:80]} is not supported here: leave it out.", param=name[:80], code="unsupported_parameter"
        )
    base = base_name(resources)
    if body.model not in (base, BASE):
        raise NotFound(
            f"{body.model[:80]!r} cannot be fine-tuned: experts are trained on the base model, {base!r}.",
            param="model",
            code="model_not_found",
        )
    spec = expert_job(body, name=expert_name(body.suffix, otherwise=f"ft-{uuid.uuid4().hex[:12]}"))
    return shown_job(await resources.submission.submit(spec, idempotency_key=idempotency_key), base=base)


@router.get("")
async def list_jobs(
    request: Request, resources: ResourcesDep, limit: _Limit = 20, after: After = None
) -> Listing[FineTuningJob]:
    """Newest first; `metadata[key]=value` keeps those that were submitted with it."""
    rows = await resources.transactions.run(
        jobs.list_jobs,
        limit=limit + 1,
        before=None if after is None else own_id(after),
        kind=JobKind.EXPERT,
        spec_holds=_metadata_filter(request.query_params),
    )
    base = base_name(resources)
    return page(rows, limit, lambda row: shown_job(row, base=base))


@router.get("/{fine_tuning_job_id}")
async def get_job(fine_tuning_job_id: str, resources: ResourcesDep) -> FineTuningJob:
    """One job."""
    return await _shown(fine_tuning_job_id, resources)


@router.post("/{fine_tuning_job_id}/cancel")
async def cancel_job(fine_tuning_job_id: str, resources: ResourcesDep) -> FineTuningJob:
    """Cancel it; a running one stops within one step. 400 if it has ended."""
    row = await _found(fine_tuning_job_id, resources)
    with _conflicts_not_retried():
        row = await resources.transactions.run(job_control.request_cancel, row.id)
    return shown_job(row, base=base_name(resources))


@router.post("/{fine_tuning_job_id}/pause")
async def pause_job(fine_tuning_job_id: str, resources: ResourcesDep) -> FineTuningJob:
    """Pause it; a running one keeps its state and stops within one step. 400 if it has ended."""
    row = await _found(fine_tuning_job_id, resources)
    with _conflicts_not_retried():
        row = await resources.transactions.run(job_control.request_pause, row.id)
    return shown_job(row, base=base_name(resources))


@router.post("/{fine_tuning_job_id}/resume")
async def resume_job(fine_tuning_job_id: str, resources: ResourcesDep) -> FineTuningJob:
    """Queue a paused one again: it goes on exactly where it was. 400 if it is not paused."""
    row = await _found(fine_tuning_job_id, resources)
    with _conflicts_not_retried():
        row = await resources.submission.resume(row.id)
    return shown_job(row, base=base_name(resources))


@router.get("/{fine_tuning_job_id}/events")
async def list_events(
    fine_tuning_job_id: str, resources: ResourcesDep, limit: _Limit = 20, after: After = None
) -> Listing[FineTuningEvent]:
    """What happened, newest first."""
    row = await _found(fine_tuning_job_id, resources)
    rows: list[JobEventRow] = await resources.transactions.run(
        job_events.latest_events, row.id, before=_event_number(after), limit=limit + 1
    )
    return page(rows, limit, shown_event)


@router.get("/{fine_tuning_job_id}/checkpoints")
async def list_checkpoints(
    fine_tuning_job_id: str, resources: ResourcesDep, limit: _Limit = 10, after: After = None
) -> FineTuningCheckpoints:
    """The best and the last states of a training, while it runs and however it ended: `model`s, the last first."""
    row = await _found(fine_tuning_job_id, resources)
    checkpoints = shown_checkpoints(row, base=base_name(resources))
    ids = [checkpoint.id for checkpoint in checkpoints]
    if after is not None and after not in ids:
        raise NotFound(f"No checkpoint {after[:80]!r} of this job.", param="after", code="checkpoint_not_found")
    start = ids.index(after) + 1 if after is not None else 0
    shown = checkpoints[start : start + limit]
    return FineTuningCheckpoints(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(checkpoints) > start + limit,
    )


async def _shown(fine_tuning_job_id: str, resources: Resources) -> FineTuningJob:
    return shown_job(await _found(fine_tuning_job_id, resources), base=base_name(resources))


async def _found(fine_tuning_job_id: str, resources: Resources) -> JobRow:
    return await resources.transactions.run(_find, fine_tuning_job_id)


def _find(session: Session, fine_tuning_job_id: str) -> JobRow:
    row = session.get(JobRow, own_id(fine_tuning_job_id)) if fine_tuning_job_id.startswith("ftjob-") else None
    if row is None or row.kind != JobKind.EXPERT:
        raise NotFound(
            f"No fine-tuning job {fine_tuning_job_id[:80]!r}: GET /v1/fine_tuning/jobs lists them.",
            param="fine_tuning_job_id",
            code="fine_tuning_job_not_found",
        )
    return row


@contextmanager
def _conflicts_not_retried() -> Iterator[None]:
    """OpenAI's clients repeat what is answered with 409, and OpenAI says 400 here."""
    try:
        yield
    except Conflict as error:
        raise InvalidRequest(error.message, param="fine_tuning_job_id", code=error.error_code) from error


def _event_number(after: str | None) -> int | None:
    if after is None:
        return None
    number = after.removeprefix(_EVENT_ID)
    if not after.startswith(_EVENT_ID) or not number.isdecimal():
        raise InvalidRequest(f"after must be the id of an event, {_EVENT_ID}…", param="after")
    return min(int(number[:19]), _LARGEST_ID)


def _metadata_filter(query: Mapping[str, str]) -> dict[str, dict[str, str]] | None:
    wanted = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in query.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if len(wanted) > _MOST_METADATA:
        raise InvalidRequest(f"At most {_MOST_METADATA} metadata may be asked for.", param="metadata")
    return {"metadata": wanted} if wanted else None
