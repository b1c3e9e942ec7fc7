"""`/v1/files`: OpenAI's form of an uploaded file."""

from typing import Literal

from pydantic import BaseModel, Field


class OpenAIFile(BaseModel):
    """An uploaded file. What is in it is read when a job is submitted."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix seconds.")
    expires_at: None = Field(default=None, description="Files stay until they are deleted.")
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class OpenAIFiles(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[OpenAIFile]
    first_id: str | None
    last_id: str | None
    has_more: bool
