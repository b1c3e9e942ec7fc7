"""`POST /adapters/check` and `PUT /pins`: whether an adapter can be served here, and which ones stay in slots."""

from fastapi import APIRouter

from services.expert_service.admission import when_done
from services.expert_service.dependencies import ReplicaDep
from services.shared.schemas.sequences import AdapterCheckRequest, AdapterReport, PinnedAdapters

router = APIRouter()


@router.post("/adapters/check")
async def check(request: AdapterCheckRequest, replica: ReplicaDep) -> AdapterReport:
    """Verify an artifact against the hosted base model; 422 with the reason when it cannot be served."""
    adapter = await when_done(replica.admission.adapters.request(request.digest))
    return adapter.report


@router.put("/pins")
async def pin(request: PinnedAdapters, replica: ReplicaDep) -> PinnedAdapters:
    """Keep exactly these adapters in slots, brought in at once; 409 when they leave no room for others."""
    slots = replica.admission.slots
    slots.check_pins(len(set(request.digests)))
    reads = {digest: replica.admission.adapters.request(digest) for digest in request.digests}
    adapters = {digest: await when_done(read) for digest, read in reads.items()}
    await when_done(replica.engine.run(lambda: slots.pin(adapters)))
    return PinnedAdapters(digests=tuple(adapters))
