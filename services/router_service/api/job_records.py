"""`/jobs/{id}/metrics`, `/logs` and `/artifacts`: what a job measured, said and made."""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from fastapi.responses import FileResponse, PlainTextResponse
from sqlalchemy.orm import Session

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import Resources, ResourcesDep
from services.router_service.job_files import JobFiles
from services.router_service.schemas.job_records import JobArtifact, MetricPoint, MetricSeries
from services.router_service.schemas.listing import Listing
from services.shared import jobs
from services.shared.job_metrics import MAX_POINTS, read_metrics

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=ERRORS)

_LOG_BYTES: Final = 256 * 1024
_MAX_LOG_BYTES: Final = 8 * 1024**2
_LAST_STEP: Final = 2**63 - 1


@router.get("/{job_id}/metrics")
async def job_metrics(
    job_id: str,
    resources: ResourcesDep,
    max_points: Annotated[
        int, Query(ge=1, le=MAX_POINTS, description="Thin out to so many, evenly; evaluations go last.")
    ] = 1000,
    after_step: Annotated[int, Query(ge=0, le=_LAST_STEP, description="Only later steps.")] = 0,
) -> MetricSeries:
    """The job's figures over its steps, while it runs and afterwards."""
    return await resources.transactions.run(_metrics, job_id, after_step, max_points)


@router.get(
    "/{job_id}/logs",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Lines of text."}},
)
async def job_logs(
    job_id: str,
    resources: ResourcesDep,
    max_bytes: Annotated[int, Query(ge=1024, le=_MAX_LOG_BYTES, description="Of the end of the log.")] = _LOG_BYTES,
) -> PlainTextResponse:
    """What the workers logged for this job, tracebacks included; the end of it."""
    files = await _files(resources, job_id)
    return PlainTextResponse(await asyncio.to_thread(files.log_text, max_bytes=max_bytes))


@router.get("/{job_id}/artifacts")
async def job_artifacts(job_id: str, resources: ResourcesDep) -> Listing[JobArtifact]:
    """The files that the job published and, of one that has not succeeded, its whole checkpoints."""
    files = await _files(resources, job_id)
    return Listing(data=await asyncio.to_thread(files.artifacts), has_more=False)


@router.get(
    "/{job_id}/artifacts/{path:path}",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes."}},
)
async def job_artifact(
    job_id: str, path: Annotated[str, Path(max_length=1000, description="As listed.")], resources: ResourcesDep
) -> FileResponse:
    """One of the files."""
    files = await _files(resources, job_id)
    found = await asyncio.to_thread(files.artifact, path)
    return FileResponse(found, media_type="application/octet-stream", filename=found.name)


async def _files(resources: Resources, job_id: str) -> JobFiles:
    row = await resources.transactions.run(jobs.find_job, job_id)
    return JobFiles(resources.storage, row.id, row.result)


def _metrics(session: Session, job_id: str, after_step: int, max_points: int) -> MetricSeries:
    row = jobs.find_job(session, job_id)
    points = read_metrics(session, row.id, after_step=after_step, max_points=max_points)
    return MetricSeries(
        job=row.id, data=[MetricPoint(step=point.step, at=point.at, figures=point.figures) for point in points]
    )
