"""vLLM's `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`: there only where the settings name a folder."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from services.router_service.adapter_folder import open_adapter
from services.router_service.api.examples import ERRORS
from services.router_service.api.experts import importer, refuse_base_name
from services.router_service.dependencies import ResourcesDep
from services.router_service.expert_import import ExpertUpload, UploadedFile
from services.shared.errors import InvalidRequest, NotFound
from services.shared.registry import retire_expert
from services.shared.vocabulary import NAME_PATTERN

router = APIRouter(prefix="/v1", tags=["openai"], responses=ERRORS, default_response_class=PlainTextResponse)

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class LoadAdapter(BaseModel):
    """A PEFT adapter in the folder that the settings name."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"lora_name": "math", "lora_path": "team/math"}]},
    )

    lora_name: Name
    lora_path: str = Field(min_length=1, max_length=4096, description="Its folder: absolute, or below adapter_folder.")
    load_inplace: bool = Field(default=False, description="Whether a new version of a known name is meant.")
    is_3d_lora_weight: bool = False


class UnloadAdapter(BaseModel):
    """An adapter that is no longer to be offered."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"lora_name": "math"}]})

    lora_name: Name
    lora_int_id: int | None = Field(default=None, description="Taken and left alone.")


@router.post("/load_lora_adapter")
async def load_adapter(body: LoadAdapter, resources: ResourcesDep) -> str:
    """Import an adapter as an expert that `model` can name, through the checks of `POST /experts`."""
    folder = resources.settings.router_service.adapter_folder
    assert folder is not None
    refuse_base_name(body.lora_name, param="lora_name")
    if body.is_3d_lora_weight:
        raise InvalidRequest(
            "is_3d_lora_weight is not supported here.", param="is_3d_lora_weight", code="unsupported_parameter"
        )
    if body.lora_name in resources.catalog.current().registered and not body.load_inplace:
        raise InvalidRequest(
            f"The adapter {body.lora_name!r} has already been loaded: set load_inplace for a new version of it.",
            param="lora_name",
            code="lora_adapter_already_loaded",
        )
    with open_adapter(folder, body.lora_path) as files:
        await importer(resources).run(_upload(body.lora_name, files))
    await resources.catalog.try_refresh()
    return f"Success: LoRA adapter '{body.lora_name}' added successfully."


@router.post("/unload_lora_adapter")
async def unload_adapter(body: UnloadAdapter, resources: ResourcesDep) -> str:
    """Retire an expert; 409 while the active release needs it."""
    try:
        await resources.transactions.run(retire_expert, body.lora_name)
    except NotFound as error:
        raise NotFound(error.message, param="lora_name", code="lora_adapter_not_found") from error
    await resources.catalog.try_refresh()
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


def _upload(name: str, files: Sequence[UploadedFile]) -> ExpertUpload:
    return ExpertUpload(
        name=name, domain=None, description="", files=files, exemplars=None, add_to_release=False, activate=False
    )
