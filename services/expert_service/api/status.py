"""What a replica says about itself: base model, load, health, metrics."""

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from services.expert_service.dependencies import ReplicaDep
from services.shared.errors import Unavailable
from services.shared.schemas.sequences import BaseModelInfo, ReplicaStatus

router = APIRouter()


@router.get("/base")
async def base(replica: ReplicaDep) -> BaseModelInfo:
    """The hosted base model."""
    return BaseModelInfo(
        name=replica.base.name,
        fingerprint=replica.base.fingerprint,
        max_context=replica.base.max_context,
        vocab_size=replica.admission.vocab_size,
        dtype=str(replica.base.dtype).removeprefix("torch."),
        device=replica.base.device.type,
        num_parameters=replica.base.num_parameters,
    )


@router.get("/status")
async def status(replica: ReplicaDep) -> ReplicaStatus:
    """Load and residency as of the last step; adapters by digest."""
    return replica.status


@router.post("/drain")
async def drain(replica: ReplicaDep) -> ReplicaStatus:
    """Refuse new sequences with 503 from now on; those that are here go on to their end."""
    replica.intake.is_open = False
    return replica.status


@router.post("/undrain")
async def undrain(replica: ReplicaDep) -> ReplicaStatus:
    """Take new sequences again."""
    replica.intake.is_open = True
    return replica.status


@router.get("/live")
async def live() -> dict[str, str]:
    """The process is up."""
    return {"status": "live"}


@router.get("/ready")
async def ready(replica: ReplicaDep) -> dict[str, str]:
    """The base model is loaded and the engine makes steps."""
    if not replica.engine.is_alive:
        raise Unavailable("The engine is not running.", retry_after_s=1.0)
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(replica: ReplicaDep) -> Response:
    """Prometheus."""
    return Response(replica.metrics.text(), media_type=CONTENT_TYPE_LATEST)
