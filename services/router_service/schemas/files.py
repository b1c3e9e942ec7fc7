"""Uploaded files as the API shows them."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

Purpose = Literal["fine-tune", "evals", "user_data"]


class File(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    purpose: str
    filename: str
    num_bytes: int
    sha256: str
    created_at: datetime
