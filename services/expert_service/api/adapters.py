"""`POST /adapters/check`: whether a published adapter can be served here."""

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from services.expert_service.dependencies import ReplicaDep
from services.shared.schemas.sequences import AdapterCheckRequest, AdapterReport

router = APIRouter()


@router.post("/adapters/check")
async def check(request: AdapterCheckRequest, replica: ReplicaDep) -> AdapterReport:
    """Verify an artifact against the hosted base model; 422 with the reason when it cannot be served."""
    adapter = await run_in_threadpool(replica.admission.adapters.load_digest, request.digest)
    return adapter.report
