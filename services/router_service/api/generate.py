"""`/generate`, `/generate_stream` and `/`: text generation as TGI's and LoRAX's clients know it."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from services.router_service.answer import Answer, mean_logprob
from services.router_service.api.disconnect import while_connected
from services.router_service.api.event_stream import EventStreamResponse, sse_event
from services.router_service.api.examples import ERRORS, GENERATE_EXAMPLES
from services.router_service.api.plain_text import plain_text, wants_plain_text
from services.router_service.api.response_headers import headers_at_end, headers_at_start
from services.router_service.api.tgi_request import read_tgi
from services.router_service.dependencies import LogIdDep, Resources, ResourcesDep
from services.router_service.generation import Generation
from services.router_service.schemas.generation import (
    BestOfSequence,
    CompatibleRequest,
    Details,
    GenerateParameters,
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
from services.shared.tokenizer import Tokenizer

router = APIRouter(tags=["generation"], responses=ERRORS)

_EVENT_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "One event per token."}
}
_OR_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Plain text with that `Accept`."}
}


@router.post("/generate", response_model=GenerateResponse, responses=_OR_TEXT)
async def generate(
    request: Request,
    response: Response,
    body: Annotated[GenerateRequest, Body(openapi_examples=GENERATE_EXAMPLES)],
    resources: ResourcesDep,
    request_id: LogIdDep,
) -> GenerateResponse | Response:
    """Generate text; the active release decides token by token which experts speak, unless `parameters` names them.

    With `Accept: text/plain` the answer is its text alone, after a line like `[experts: math 82 %, base 18 %]` if
    `parameters.attribution` is given.
    """
    answer, headers = await _answer(request, body, resources, request_id, endpoint="/generate")
    if wants_plain_text(request):
        return plain_text(answer, body.asked, headers)
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
    wanted = read_tgi(body.inputs, body.asked)

    async def whole() -> tuple[GenerateResponse, dict[str, str]]:
        async with await resources.pipeline.begin([wanted], request_id=request_id, endpoint=endpoint) as answer:
            tokens = await answer.whole()
            best = max(range(len(tokens)), key=lambda index: mean_logprob(tokens[index]))
            generation = answer.generations[best]
            await generation.measure()
        # The timings in the headers are complete once the answer is closed.
        headers = {**headers_at_start(generation, resources), **headers_at_end(generation, _finished(generation))}
        return _response(body, answer.generations, tokens, best, resources), headers

    return await while_connected(request, whole())


async def _stream(
    body: GenerateRequest, resources: Resources, request_id: str, *, endpoint: str
) -> EventStreamResponse:
    for name in ("decoder_input_details", "best_of"):
        if getattr(body.parameters, name) > GenerateParameters.model_fields[name].default:
            raise InvalidRequest(
                f"{name} is not possible while streaming: use /generate.",
                param=f"parameters.{name}",
                code="unsupported_parameter",
            )
    answer = await resources.pipeline.begin(
        [read_tgi(body.inputs, body.asked)], request_id=request_id, endpoint=endpoint, streamed=True
    )
    [generation] = answer.generations
    end = StreamEnd(generation.record.max_new_tokens, resources.tokenizer.eos_ids, stop=body.parameters.stop)
    events = _Events(answer, end, body, resources.tokenizer).lines()
    return EventStreamResponse(events, close=answer.close, headers=headers_at_start(generation, resources))


class _Events:
    """A stream's events: one per token, at once unless it could be the last; the last one also tells how it ended."""

    def __init__(self, answer: Answer, end: StreamEnd, body: GenerateRequest, tokenizer: Tokenizer) -> None:
        self._answer = answer
        self._generation = answer.generations[0]
        self._end = end
        self._body = body
        self._tokenizer = tokenizer

    async def lines(self) -> AsyncIterator[bytes]:
        """As bytes on the wire."""
        held: TokenEvent | None = None
        last: TokenEvent | None = None
        try:
            async for _, event in self._answer.tokens:
                if event is None:
                    continue
                if held is not None:
                    yield self._line(held)
                last, held = event, event if self._end.may_be(event) else None
                if held is None:
                    yield self._line(event)
            await self._generation.measure()
        except AmoeError as error:
            if held is not None:
                yield self._line(held)
            yield sse_event(json.dumps({**error.body(), "error_type": "incomplete_generation"}))
            return
        if last is not None:
            # Only a replica that ends for a reason unknown here gets to repeat itself, with an empty token.
            final = held or last.model_copy(update={"index": last.index + 1, "text": "", "special": True})
            yield self._last_line(final)

    def _line(self, event: TokenEvent) -> bytes:
        shown = self._shown(event)
        return sse_event(shown.model_dump_json(exclude={"routing": True, **self._left_out()}))

    def _last_line(self, event: TokenEvent) -> bytes:
        finished = _finished(self._generation)
        details = StreamDetails(
            finish_reason=finished.finish_reason,
            prompt_tokens=finished.num_prompt_tokens,
            input_length=finished.num_prompt_tokens,
            generated_tokens=finished.num_generated_tokens,
            seed=finished.seed,
        )
        ended = {
            "generated_text": _text(self._body, finished),
            "details": details,
            "routing": self._generation.routing(),
        }
        return sse_event(self._shown(event).model_copy(update=ended).model_dump_json(exclude=self._left_out()))

    def _shown(self, event: TokenEvent) -> StreamEvent:
        parameters = self._body.parameters
        top = _top_tokens(event, self._tokenizer) if parameters.top_n_tokens else None
        token = _token(event, self._generation, with_details=parameters.details)
        return StreamEvent(index=event.index + 1, token=token, top_tokens=top)

    def _left_out(self) -> dict[str, Any]:
        return {} if self._body.parameters.details else {"token": {"routing", "confidence"}}


def _response(
    body: GenerateRequest,
    generations: Sequence[Generation],
    tokens: Sequence[list[TokenEvent]],
    best: int,
    resources: Resources,
) -> GenerateResponse:
    generation = generations[best]
    finished = _finished(generation)
    details = None
    if body.parameters.details:
        others = [index for index in range(len(generations)) if index != best]
        sequences = [_sequence(body, generations[index], tokens[index], resources) for index in (best, *others)]
        details = Details(
            **sequences[0].model_dump(exclude={"generated_text"}),
            prompt_tokens=finished.num_prompt_tokens,
            best_of_sequences=sequences[1:] or None,
        )
    return GenerateResponse(generated_text=_text(body, finished), details=details, routing=generation.routing())


def _sequence(
    body: GenerateRequest, generation: Generation, tokens: Sequence[TokenEvent], resources: Resources
) -> BestOfSequence:
    finished = _finished(generation)
    top = [_top_tokens(event, resources.tokenizer) for event in tokens] if body.parameters.top_n_tokens else None
    return BestOfSequence(
        generated_text=_text(body, finished),
        finish_reason=finished.finish_reason,
        generated_tokens=finished.num_generated_tokens,
        seed=finished.seed,
        prefill=_prefill(generation, finished, resources) if body.parameters.decoder_input_details else [],
        tokens=[_token(event, generation, with_details=True) for event in tokens],
        top_tokens=top,
    )


def _top_tokens(event: TokenEvent, tokenizer: Tokenizer) -> list[Token]:
    return [
        Token(id=token_id, text=tokenizer.token_text(token_id), logprob=logprob, special=tokenizer.is_special(token_id))
        for token_id, logprob in event.top_logprobs
    ]


def _token(event: TokenEvent, generation: Generation, *, with_details: bool) -> Token:
    return Token(
        id=event.id,
        text=event.text,
        logprob=event.logprob,
        special=event.special,
        routing=event.gates if with_details else None,
        confidence=generation.confidence_before(event) if with_details else None,
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
