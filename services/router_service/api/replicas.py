"""`/replicas`: which expert replicas there are, how busy they are, and taking one out of service."""

from fastapi import APIRouter

from services.router_service.api.examples import ERRORS
from services.router_service.catalog import Snapshot
from services.router_service.dependencies import Resources, ResourcesDep
from services.router_service.replica import Replica
from services.router_service.schemas.listing import Listing
from services.router_service.schemas.replicas import ReplicaLoad, ReplicaReport, ResidentExpert
from services.shared.schemas.sequences import ExpertRef
from services.shared.vocabulary import model_name

router = APIRouter(prefix="/replicas", tags=["replicas"], responses=ERRORS)


@router.get("")
async def list_replicas(resources: ResourcesDep) -> Listing[ReplicaReport]:
    """All of them, as of the last look, which is a second ago at most while they answer."""
    return Listing(data=[shown(replica, resources) for replica in resources.replicas], has_more=False)


@router.post("/{replica_id}/drain")
async def drain(replica_id: str, resources: ResourcesDep) -> ReplicaReport:
    """Give a replica nothing new: what it has goes on to its end. The replica itself refuses, so all routers obey."""
    return shown(await resources.replicas.drain(replica_id), resources)


@router.post("/{replica_id}/undrain")
async def undrain(replica_id: str, resources: ResourcesDep) -> ReplicaReport:
    """Give it sequences again. A replica that is started anew takes them without being asked."""
    return shown(await resources.replicas.undrain(replica_id), resources)


def shown(replica: Replica, resources: Resources) -> ReplicaReport:
    """The replica as the API tells it."""
    status = replica.status
    known = _known(resources.catalog.latest)
    return ReplicaReport(
        id=replica.id,
        state=replica.state,
        base_model=model_name(replica.base.name) if replica.base else None,
        load=ReplicaLoad(
            running=status.running if status else 0, waiting=status.waiting if status else 0, ours=replica.num_ours
        ),
        num_slots=status.num_slots if status else None,
        resident=[_resident(digest, known) for digest in status.resident] if status else [],
        resident_bytes=status.resident_bytes if status else None,
        kv_usage=status.kv_usage if status else None,
    )


def _known(snapshot: Snapshot | None) -> dict[str, ExpertRef]:
    if snapshot is None:
        return {}
    speaking = snapshot.release.experts if snapshot.release else ()
    return {expert.digest: expert for expert in (*snapshot.registered.values(), *speaking)}


def _resident(digest: str, known: dict[str, ExpertRef]) -> ResidentExpert:
    expert = known.get(digest)
    return ResidentExpert(
        digest=digest, name=expert.name if expert else None, version=expert.version if expert else None
    )
