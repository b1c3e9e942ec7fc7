"""`/traces`: which experts were chosen at every token, and what that says."""

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, File, Form, Path, Query, UploadFile
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from pydantic import ValidationError

from services.router_service.api.examples import ERRORS
from services.router_service.api.jobs import IdempotencyKey
from services.router_service.api.jobs import shown as shown_job
from services.router_service.dependencies import Resources, ResourcesDep
from services.router_service.schemas.listing import DEFAULT_LIMIT, After, Limit, Listing, page
from services.router_service.schemas.registry import Deleted
from services.router_service.schemas.traces import (
    AnalysisIndex,
    ChosenTokens,
    FigureAnswer,
    SubmittedTrace,
    Trace,
    TracedPrompts,
)
from services.router_service.trace_reading import TraceReading
from services.router_service.trace_uploads import delete_with_files, keep_files, submit_import
from services.shared import traces_registry
from services.shared.database.rows import TraceRow
from services.shared.errors import InvalidRequest
from services.shared.schemas.trace_import import ImportOptions, TraceImportJobSpec, TraceName
from services.shared.vocabulary import TraceStatus
from services.shared.web import explain_validation
from services.traces.importers.buffer_timeline import AllBuffers
from services.traces.statistics.results import FigureName, Part

router = APIRouter(prefix="/traces", tags=["traces"], responses=ERRORS)

Result = TypeVar("Result")
Layer = Annotated[int, Query(ge=0, le=9999)]
_MOST_TOKENS: Final = 2000
_LAST_POSITION: Final = 2**31 - 1
_REPORT_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; sandbox",
    "x-content-type-options": "nosniff",
}
"""A report holds names that others chose: whatever they are, nothing in it runs or asks anybody."""


@router.post("", status_code=202)
async def import_trace(
    name: Annotated[TraceName, Form(description="For people; need not be its own.")],
    files: Annotated[
        list[UploadFile],
        File(
            description="Recordings: llama.cpp's tensor_trace.bin or token-NNNNN.json, JSON lines with topk_ids, JSON "
            "with router_data; or tar archives of these, whose folders tell domains (domain-1-code/…)."
        ),
    ],
    resources: ResourcesDep,
    options: Annotated[
        str,
        Form(
            description="JSON: what the files do not say of themselves, as in `options` of a job of kind trace_import.",
            examples=[json.dumps({"domain": "math", "num_experts": 64, "top_k": 8})],
        ),
    ] = "{}",
    idempotency_key: IdempotencyKey = None,
) -> SubmittedTrace:
    """Make a trace of recordings that others made, and analyse it: queues a job of kind `trace_import`.

    What is wrong with a recording is told in the trace's findings; a layer of which nothing can be learned gets no
    figures.
    """
    chosen = _options(options)
    kept = await keep_files(resources, files)
    job = await submit_import(
        resources,
        lambda ids: TraceImportJobSpec(name=name, files=ids, options=chosen),
        kept,
        idempotency_key=idempotency_key,
    )
    row = await resources.transactions.run(traces_registry.find_trace, traces_registry.trace_id_of(job.id))
    return SubmittedTrace(trace=shown(row), job=shown_job(job))


@router.get("")
async def list_traces(
    resources: ResourcesDep,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    status: Annotated[TraceStatus | None, Query(description="Only these.")] = None,
) -> Listing[Trace]:
    """Newest first. Imports and jobs of kind `trace` make them."""
    rows = await resources.transactions.run(traces_registry.list_traces, limit=limit + 1, after=after, status=status)
    return page(rows, limit, shown)


@router.get("/{trace_id}")
async def get_trace(trace_id: str, resources: ResourcesDep) -> Trace:
    """One trace: domains, layers, and what is wrong with it."""
    return shown(await resources.transactions.run(traces_registry.find_trace, trace_id))


@router.delete("/{trace_id}")
async def delete_trace(trace_id: str, resources: ResourcesDep) -> Deleted:
    """Forget a trace, its analysis and the recordings that it was made of. 409 while its job is at work."""
    await delete_with_files(resources, trace_id)
    return Deleted(id=trace_id, object="trace")


@router.get("/{trace_id}/sequences")
async def get_sequences(
    trace_id: str,
    resources: ResourcesDep,
    start: Annotated[int, Query(alias="from", ge=0, le=_LAST_POSITION)] = 0,
    count: Annotated[int, Query(ge=1, le=1000)] = DEFAULT_LIMIT,
) -> TracedPrompts:
    """Its prompts, each of which is one observation."""
    return await _read(resources, trace_id, lambda reading: reading.prompts(start=start, count=count))


@router.get("/{trace_id}/choices")
async def get_choices(
    trace_id: str,
    layer: Layer,
    resources: ResourcesDep,
    sequence: Annotated[int, Query(ge=0, le=_LAST_POSITION)] = 0,
    start: Annotated[int, Query(alias="from", ge=0, le=_LAST_POSITION, description="Position in the sequence.")] = 0,
    count: Annotated[int, Query(ge=1, le=_MOST_TOKENS, description="Positions.")] = 200,
) -> ChosenTokens:
    """The experts of some tokens of one sequence in one layer, by falling weight."""
    return await _read(
        resources,
        trace_id,
        lambda reading: reading.choices(layer=layer, sequence=sequence, start=start, count=count),
    )


@router.get("/{trace_id}/buffers")
async def get_buffers(trace_id: str, resources: ResourcesDep) -> AllBuffers:
    """What the tracer saw allocated and freed, where allocation events were imported with the trace."""
    return await _read(resources, trace_id, lambda reading: reading.buffers())


@router.get("/{trace_id}/analysis")
async def get_analysis(trace_id: str, resources: ResourcesDep) -> AnalysisIndex:
    """Which figures there are, per layer, and every single number over all layers."""
    return await _read(resources, trace_id, lambda reading: reading.index())


@router.get("/{trace_id}/analysis/{figure}")
async def get_figure(
    trace_id: str,
    figure: FigureName,
    resources: ResourcesDep,
    layer: Annotated[Layer | None, Query(description="Needed where several have figures.")] = None,
    phase: Annotated[Part, Query(description="Which tokens.")] = Part.ALL,
    final: Annotated[
        str | None, Query(max_length=200, description="With `saturation`: the trace of the final checkpoint.")
    ] = None,
) -> FigureAnswer:
    """One figure with its null and interval. 404 with the reason where it is not there."""
    if figure is FigureName.SATURATION and final is not None:
        last = await _reading(resources, final)
        return await _read(resources, trace_id, lambda reading: reading.saturation(last))
    return await _read(resources, trace_id, lambda reading: reading.figure(figure, layer=layer, part=phase))


@router.get("/{trace_id}/report", response_class=HTMLResponse)
async def get_report(trace_id: str, resources: ResourcesDep) -> FileResponse:
    """The report, with figures, as a page of its own."""
    path = await _read(resources, trace_id, lambda reading: reading.report("report.html"))
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=_REPORT_HEADERS)


@router.get("/{trace_id}/report.md", response_class=PlainTextResponse)
async def get_markdown_report(trace_id: str, resources: ResourcesDep) -> FileResponse:
    """The report as Markdown."""
    path = await _read(resources, trace_id, lambda reading: reading.report("report.md"))
    return FileResponse(path, media_type="text/markdown; charset=utf-8", headers=_REPORT_HEADERS)


@router.get("/{trace_id}/{picture}", response_class=FileResponse)
async def get_picture(
    trace_id: str, picture: Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,100}\.png$")], resources: ResourcesDep
) -> FileResponse:
    """A picture that `report.md` shows."""
    path = await _read(resources, trace_id, lambda reading: reading.report(picture))
    return FileResponse(path, media_type="image/png", headers=_REPORT_HEADERS)


async def _reading(resources: Resources, trace_id: str) -> TraceReading:
    row = await resources.transactions.run(traces_registry.find_ready_trace, trace_id)
    return await asyncio.to_thread(TraceReading, row, resources.storage)


async def _read(resources: Resources, trace_id: str, read: Callable[[TraceReading], Result]) -> Result:
    reading = await _reading(resources, trace_id)
    return await asyncio.to_thread(read, reading)


def _options(text: str) -> ImportOptions:
    try:
        return ImportOptions.model_validate_json(text)
    except ValidationError as error:
        problem = explain_validation(error.errors(include_url=False))
        param = f"options.{problem.param}" if problem.param else "options"
        raise InvalidRequest(f"options: {problem.message}", param=param) from error


def shown(row: TraceRow) -> Trace:
    """The row as the API tells it."""
    fields: dict[str, Any] = {name: getattr(row, name) for name in ("id", "name", "status", "source", "created_at")}
    return Trace(**fields, job=row.job_id, description=row.description, error=row.error)
