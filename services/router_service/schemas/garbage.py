"""Garbage in storage as the API takes and shows it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from services.shared.config import MIN_GRACE_S


class GarbageRequest(BaseModel):
    """What to collect; nothing is removed unless `dry_run` is false."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{}, {"dry_run": False}]})

    dry_run: bool = Field(default=True, description="Only tell what would be removed.")
    grace_s: float | None = Field(
        default=None,
        ge=MIN_GRACE_S,
        le=1e9,
        description="Keep what was written within so many seconds. Default: storage.garbage_grace_s of the settings.",
    )
    unused_files: bool = Field(
        default=False, description="Also uploaded files, with their records, that no job was ever given."
    )


class GarbagePiece(BaseModel):
    """An artifact or an upload."""

    id: str = Field(description="Digest of an artifact, or id of an upload.")
    num_bytes: int


class CollectedGarbage(BaseModel):
    """What was removed, or would be."""

    object: Literal["storage.garbage"] = "storage.garbage"
    dry_run: bool
    artifacts: list[GarbagePiece]
    uploads: list[GarbagePiece]
    num_bytes: int = Field(description="Of all of them together.")
