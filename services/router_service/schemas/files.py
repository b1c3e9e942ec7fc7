"""Uploaded files as the API shows them."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Purpose = Literal["fine-tune", "evals", "user_data", "trace"]


class HubFileRequest(BaseModel):
    """A file of a public dataset on a Hugging Face hub."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"dataset": "owner/name", "path": "data/train.parquet"}]},
    )

    dataset: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$",
        description="`owner/name` on the hub.",
    )
    path: str | None = Field(
        default=None, max_length=500, description="Which of its files; needed if several can be trained on."
    )
    revision: str = Field(
        default="main", pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$", description="A branch, a tag or a commit."
    )
    purpose: Purpose = "fine-tune"


class File(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    purpose: str
    filename: str
    num_bytes: int
    sha256: str
    created_at: datetime
