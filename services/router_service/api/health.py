"""Probes and metrics."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from services.router_service.dependencies import ResourcesDep

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process runs."""

    status: Literal["live"] = "live"


class Readiness(BaseModel):
    """Whether requests can be answered. There may be `trouble` while they can: the last known release goes on."""

    status: Literal["ready", "not_ready"]
    release: str | None
    replicas_up: int
    trouble: str | None


@router.get("/live")
async def live() -> Alive:
    """Answers as long as the process runs."""
    return Alive()


@router.get("/ready", responses={503: {"model": Readiness, "description": "Not yet, or no longer."}})
async def ready(response: Response, resources: ResourcesDep) -> Readiness:
    """200 when generation works: the catalog has been read and an expert replica is up."""
    snapshot = resources.catalog.latest
    is_ready = snapshot is not None and resources.replicas.num_up > 0
    response.status_code = 200 if is_ready else 503
    return Readiness(
        status="ready" if is_ready else "not_ready",
        release=snapshot.release.id if snapshot and snapshot.release else None,
        replicas_up=resources.replicas.num_up,
        trouble=resources.catalog.trouble or (None if resources.replicas.num_up else "No expert replica answers."),
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(resources: ResourcesDep) -> Response:
    """Prometheus' text format."""
    return Response(resources.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
