"""What TGI's and LoRAX's clients ask besides: `/info`, `/health` and `/tokenize`."""

from typing import Annotated

from fastapi import APIRouter, Body, Response
from pydantic import BaseModel, ConfigDict, Field

from services.router_service.api.examples import ERRORS
from services.router_service.api.openai_request import base_name
from services.router_service.dependencies import ResourcesDep
from services.router_service.generation_request import Prompt
from services.shared.vocabulary import MAX_TOP_LOGPROBS

router = APIRouter(tags=["generation"], responses=ERRORS)


class Info(BaseModel):
    """The base model and the limits, by TGI's names."""

    model_id: str
    model_dtype: str | None
    model_device_type: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int | None
    max_total_tokens: int | None
    max_client_batch_size: int
    router: str = "adaptive-moe"


class TokenizeRequest(BaseModel):
    """A text to cut into tokens."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, json_schema_extra={"examples": [{"inputs": "Once upon a time"}]}
    )

    inputs: str = Field(min_length=1)
    add_special_tokens: bool = True


class TextToken(BaseModel):
    """A token and the characters of the text that it stands for."""

    id: int
    text: str
    start: int
    stop: int


@router.get("/info")
async def info(resources: ResourcesDep) -> Info:
    """What is served here."""
    hosted, own = resources.replicas.base, resources.settings.router_service
    max_context = hosted.max_context if hosted else resources.tokenizer.max_context
    return Info(
        model_id=base_name(resources),
        model_dtype=hosted.dtype if hosted else None,
        model_device_type=hosted.device if hosted else None,
        max_concurrent_requests=own.max_concurrent_requests,
        max_best_of=own.max_choices,
        max_stop_sequences=own.max_stop_sequences,
        max_top_n_tokens=MAX_TOP_LOGPROBS,
        max_input_tokens=max_context - 1 if max_context else None,
        max_total_tokens=max_context,
        max_client_batch_size=1,
    )


@router.get("/health", response_class=Response, responses={503: {"description": "Not yet, or no longer."}})
async def health(resources: ResourcesDep) -> Response:
    """200 when generation works, 503 otherwise; `/ready` says why."""
    is_ready = resources.catalog.latest is not None and resources.replicas.num_up > 0
    return Response(status_code=200 if is_ready else 503)


@router.post("/tokenize")
async def tokenize(body: Annotated[TokenizeRequest, Body()], resources: ResourcesDep) -> list[TextToken]:
    """The tokens of a text, as a prompt with it has them."""
    prompt = Prompt(text=body.inputs, add_special_tokens=body.add_special_tokens)
    spans = await resources.reader.spans(prompt, param="inputs")
    return [
        TextToken(id=token_id, text=body.inputs[start:stop], start=start, stop=stop) for token_id, start, stop in spans
    ]
