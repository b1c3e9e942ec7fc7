"""What one replica consists of: built in `main`, kept in the application's state, handed to routes."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from services.expert_service.admission import Admission
from services.expert_service.engine import Engine
from services.expert_service.intake import Intake
from services.expert_service.memory import MemoryReader
from services.expert_service.metrics import EngineMetrics
from services.expert_service.model_runner import ModelRunner
from services.expert_service.replica_gauges import ReplicaGauges
from services.expert_service.streaming import Streams
from services.shared.config import Settings
from services.shared.modeling.base_model import LoadedBase
from services.shared.schemas.sequences import ReplicaStatus
from services.shared.storage import Storage


@dataclass(frozen=True)
class Replica:
    """The parts of a running expert service."""

    settings: Settings
    base: LoadedBase
    storage: Storage
    runner: ModelRunner
    engine: Engine
    admission: Admission
    streams: Streams
    metrics: EngineMetrics
    gauges: ReplicaGauges
    memory: MemoryReader
    intake: Intake

    @property
    def status(self) -> ReplicaStatus:
        """What it says of itself as of the last step."""
        return self.intake.seen_in(self.engine.status)


def get_replica(request: Request) -> Replica:
    """The replica behind this application."""
    return cast(Replica, request.app.state.replica)


ReplicaDep = Annotated[Replica, Depends(get_replica)]
