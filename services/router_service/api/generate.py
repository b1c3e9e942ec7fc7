"""`/generate`, `/generate_stream` and `/`: text generation as TGI's and LoRAX's clients know it."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import anyio
from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from services.router_service.api.disconnect import while_connected
from services.router_service.api.event_stream import EventStreamResponse, sse_event
from services.router_service.api.examples import ERRORS, GENERATE_EXAMPLES
from services.router_service.api.response_headers import headers_at_end, headers_at_start
from services.router_service.dependencies import LogIdDep, Resources, ResourcesDep
from services.router_service.generation import Generation
from services.router_service.schemas.generation import (
    CompatibleRequest,
    Details,
    GenerateRequest,
    GenerateResponse,
    PromptToken,
    StreamDetails,
    StreamEvent,
    Token,
)
from services.router_service.stream_end import StreamEnd
from services.shared.errors import AmoeError, InvalidRequest
from services.shared.schemas.sequences import FinishedEvent, TokenEvent

router = APIRouter(tags=["generation"], responses=ERRORS)

_CLOSE_S: Final = 5.0
_EVENT_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "One event per token."}
}


@router.post("/generate", response_model=GenerateResponse)
async def generate(
    request: Request,
    response: Response,
    body: Annotated[GenerateRequest, Body(openapi_examples=GENERATE_EXAMPLES)],
    resources: ResourcesDep,
    request_id: LogIdDep,
) -> GenerateResponse:
    """Generate text; the active release decides token by token which experts speak, unless `parameters` names them."""
    answer, headers = await _answer(request, body, resources, request_id, endpoint="/generate")
    response.headers.update(headers)
    return answer


@router.post("/generate_stream", response_class=EventStreamResponse, responses=_EVENT_STREAM)
async def generate_stream(
    body: Annotated[GenerateRequest, Body(openapi_examples=GENERATE_EXAMPLES)],
    resources: ResourcesDep,
    request_id: LogIdDep,
) -> EventStreamResponse:
    """The same as server-sent events, one per token; the last has the whole text, the details and the routing."""
    return await _stream(body, resources, request_id, endpoint="/generate_stream")


@router.post("/", response_model=list[GenerateResponse], responses=_EVENT_STREAM)
async def generate_compatible(
    request: Request,
    body: Annotated[CompatibleRequest, Body(openapi_examples=GENERATE_EXAMPLES)],
    resources: ResourcesDep,
    request_id: LogIdDep,
) -> Response:
    """Either, by `stream`: what Hugging Face's InferenceClient sends. The answer is a list of one, as TGI gives it."""
    if body.stream:
        return await _stream(body, resources, request_id, endpoint="/")
    answer, headers = await _answer(request, body, resources, request_id, endpoint="/")
    return JSONResponse([answer.model_dump(mode="json")], headers=headers)


async def _answer(
    request: Request, body: GenerateRequest, resources: Resources, request_id: str, *, endpoint: str
) -> tuple[GenerateResponse, dict[str, str]]:
    async def whole() -> tuple[GenerateResponse, dict[str, str]]:
        generation = await resources.pipeline.begin(body, request_id=request_id, endpoint=endpoint)
        try:
            tokens = [event async for event in generation.tokens()]
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await generation.close()
        answer = _response(body, generation, tokens, resources)
        return answer, {**_headers(generation, resources), **headers_at_end(generation, _finished(generation))}

    return await while_connected(request, whole())


async def _stream(
    body: GenerateRequest, resources: Resources, request_id: str, *, endpoint: str
) -> EventStreamResponse:
    if body.parameters.decoder_input_details:
        raise InvalidRequest(
            "decoder_input_details is not possible while streaming: use /generate.",
            param="parameters.decoder_input_details",
            code="unsupported_parameter",
        )
    generation = await resources.pipeline.begin(body, request_id=request_id, endpoint=endpoint)
    end = StreamEnd(generation.record.max_new_tokens, resources.tokenizer.eos_ids, stop=body.parameters.stop)
    events = _events(generation, end, body)
    return EventStreamResponse(events, close=generation.close, headers=_headers(generation, resources))


async def _events(generation: Generation, end: StreamEnd, body: GenerateRequest) -> AsyncIterator[bytes]:
    """One event per token, at once unless it could be the last: the last one also tells how it ended."""
    with_routing = body.parameters.details
    held: TokenEvent | None = None
    last: TokenEvent | None = None
    try:
        async for event in generation.tokens():
            if held is not None:
                yield _token_event(held, with_routing=with_routing)
            last, held = event, event if end.may_be(event) else None
            if held is None:
                yield _token_event(event, with_routing=with_routing)
    except AmoeError as error:
        if held is not None:
            yield _token_event(held, with_routing=with_routing)
        yield sse_event(json.dumps({**error.body(), "error_type": "incomplete_generation"}))
        return
    if last is not None:
        # Only a replica that ends for a reason unknown here gets to repeat itself, with an empty token.
        final = held or last.model_copy(update={"index": last.index + 1, "text": "", "special": True})
        yield _last_event(final, generation, body)


def _token_event(event: TokenEvent, *, with_routing: bool) -> bytes:
    token = _token(event, with_routing=with_routing)
    left_out: dict[str, Any] = {"routing": True} if with_routing else {"routing": True, "token": {"routing"}}
    return sse_event(StreamEvent(index=event.index + 1, token=token).model_dump_json(exclude=left_out))


def _last_event(event: TokenEvent, generation: Generation, body: GenerateRequest) -> bytes:
    finished = _finished(generation)
    details = StreamDetails(
        finish_reason=finished.finish_reason,
        prompt_tokens=finished.num_prompt_tokens,
        input_length=finished.num_prompt_tokens,
        generated_tokens=finished.num_generated_tokens,
        seed=finished.seed,
    )
    last = StreamEvent(
        index=event.index + 1,
        token=_token(event, with_routing=body.parameters.details),
        generated_text=_text(body, finished),
        details=details,
        routing=generation.routing(),
    )
    return sse_event(last.model_dump_json(exclude=None if body.parameters.details else {"token": {"routing"}}))


def _response(
    body: GenerateRequest, generation: Generation, tokens: list[TokenEvent], resources: Resources
) -> GenerateResponse:
    finished = _finished(generation)
    details = None
    if body.parameters.details:
        details = Details(
            finish_reason=finished.finish_reason,
            prompt_tokens=finished.num_prompt_tokens,
            generated_tokens=finished.num_generated_tokens,
            seed=finished.seed,
            prefill=_prefill(generation, finished, resources) if body.parameters.decoder_input_details else [],
            tokens=[_token(event, with_routing=True) for event in tokens],
        )
    return GenerateResponse(generated_text=_text(body, finished), details=details, routing=generation.routing())


def _token(event: TokenEvent, *, with_routing: bool) -> Token:
    return Token(
        id=event.id,
        text=event.text,
        logprob=event.logprob,
        special=event.special,
        routing=event.gates if with_routing else None,
    )


def _prefill(generation: Generation, finished: FinishedEvent, resources: Resources) -> list[PromptToken]:
    ids = list(generation.record.prompt_ids)
    texts = resources.tokenizer.tokens(ids)
    logprobs = finished.prompt_logprobs or (None,) * len(ids)
    return [
        PromptToken(id=token_id, text=text, logprob=logprob)
        for token_id, text, logprob in zip(ids, texts, logprobs, strict=True)
    ]


def _text(body: GenerateRequest, finished: FinishedEvent) -> str:
    return body.inputs + finished.generated_text if body.parameters.return_full_text else finished.generated_text


def _finished(generation: Generation) -> FinishedEvent:
    assert generation.finished is not None
    return generation.finished


def _headers(generation: Generation, resources: Resources) -> dict[str, str]:
    base = resources.replicas.base
    return headers_at_start(generation, base.name if base else resources.settings.base_model)
