"""A chat or a completion from request to response: whole, or as server-sent events."""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from services.router_service.answer import Answer
from services.router_service.api.disconnect import while_connected
from services.router_service.api.event_stream import EventStreamResponse
from services.router_service.api.openai_form import Form
from services.router_service.api.response_headers import headers_at_start
from services.router_service.dependencies import Resources
from services.router_service.generation_request import GenerationRequest
from services.router_service.schemas.openai_requests import TextRequest

WHOLE_OR_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Whole, or chunk by chunk."}
}


async def respond(
    request: Request,
    body: TextRequest,
    wanted: Sequence[GenerationRequest],
    form_class: type[Form],
    resources: Resources,
    request_id: str,
) -> Response:
    """The answer to `wanted` in the form that `body` asks for; a client that hangs up ends it."""

    async def begin() -> Answer:
        return await resources.pipeline.begin(
            wanted, request_id=request_id, endpoint=form_class.endpoint, streamed=body.stream
        )

    if body.stream:
        answer = await begin()
        events = form_class(body, answer, resources).events()
        headers = headers_at_start(answer.generations[0], resources)
        return EventStreamResponse(events, close=answer.close, headers=headers)

    async def whole() -> Response:
        async with await begin() as answer:
            tokens = await answer.whole()
            for generation in answer.generations:
                await generation.measure()
            content = form_class(body, answer, resources).whole(tokens)
        headers = headers_at_start(answer.generations[0], resources)
        return JSONResponse(content.model_dump(mode="json"), headers=headers)

    return await while_connected(request, whole())
