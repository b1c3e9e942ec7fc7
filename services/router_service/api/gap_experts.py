"""`/gaps/{id}/expert`: an expert for what the mixture does not know."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Response

from services.router_service.api.examples import ERRORS, GAP_EXPERT_EXAMPLES
from services.router_service.api.jobs import IdempotencyKey, shown
from services.router_service.dependencies import ResourcesDep
from services.router_service.schemas.dry_run import DryRun
from services.shared.errors import InvalidRequest
from services.shared.schemas.expert_creation import ExpertCreationJobSpec, GapId
from services.shared.schemas.jobs import Job

router = APIRouter(prefix="/gaps", tags=["gaps"], responses=ERRORS)


@router.post("/{gap_id}/expert", status_code=202, responses={200: {"model": DryRun, "description": "With `dry_run`."}})
async def create_expert(
    gap_id: GapId,
    spec: Annotated[ExpertCreationJobSpec, Body(openapi_examples=GAP_EXPERT_EXAMPLES)],
    resources: ResourcesDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job | DryRun:
    """Queue the job that makes an expert for the gap, of training files or of what a teacher writes: the same as
    `POST /jobs` with its `gap`. What the body leaves out comes from the gap's report.

    409 while another job is at work on the gap, or where it is no longer open.
    """
    if spec.gap not in {None, gap_id}:
        raise InvalidRequest(f"The address names {gap_id[:80]!r} and the body another gap.", param="gap")
    named = spec.model_copy(update={"gap": gap_id})
    if spec.dry_run:
        response.status_code = HTTPStatus.OK
        return await resources.submission.dry_run(named)
    return shown(await resources.submission.submit(named, idempotency_key=idempotency_key))
