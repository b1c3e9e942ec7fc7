"""`/v1/models`: what the `model` of a request may be."""

from typing import Literal

from pydantic import BaseModel, Field

from services.shared.vocabulary import VersionStatus


class ModelRouting(BaseModel):
    """Who speaks when the model is asked for."""

    kind: Literal["active", "release", "base", "expert"]
    release: str | None = Field(default=None, description="Of `active`: the release that is active now.")
    status: VersionStatus | None = Field(default=None, description="Of a release.")
    version: int | None = Field(default=None, description="Of an expert the newest, of `ft:…` its own.")


class Model(BaseModel):
    """One model; `root` and `parent` are ids, never paths."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds.")
    owned_by: Literal["adaptive-moe"] = "adaptive-moe"
    root: str
    parent: str | None = Field(default=None, description="The base model under it.")
    max_model_len: int | None = Field(default=None, description="Tokens of prompt and answer together.")
    routing: ModelRouting
