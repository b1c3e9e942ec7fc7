"""What the API tells of expert replicas: never where they are."""

from pydantic import BaseModel, Field

from services.shared.vocabulary import ReplicaState


class ResidentExpert(BaseModel):
    """An adapter in a slot; name and version where the release or the newest versions have it."""

    digest: str
    name: str | None = None
    version: int | None = None


class ReplicaLoad(BaseModel):
    """Sequences on a replica when it was last asked; `ours` are this router service's, as of now."""

    running: int
    waiting: int
    ours: int


class ReplicaReport(BaseModel):
    """One expert replica as this router service knows it; what it has not said yet is null."""

    id: str = Field(description="This router service's name for it, as in its logs and metrics.")
    state: ReplicaState
    base_model: str | None
    load: ReplicaLoad
    num_slots: int | None
    resident: list[ResidentExpert]
    resident_bytes: int | None
    kv_usage: float | None = Field(description="Share of the KV cache's limit that is in use, 0..1.")
