"""`/v1/chat/completions`, as OpenAI's clients speak it."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Request, Response

from services.router_service.answer import Answer
from services.router_service.api.examples import ERRORS
from services.router_service.api.openai_form import Form
from services.router_service.api.openai_request import openai_words, read_chat
from services.router_service.api.openai_response import WHOLE_OR_STREAM, respond
from services.router_service.dependencies import LogIdDep, Resources, ResourcesDep
from services.router_service.schemas.openai_answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatToken,
    LikelyToken,
)
from services.router_service.schemas.openai_requests import ChatRequest
from services.shared.schemas.sequences import TokenEvent
from services.shared.tokenizer import REPLACEMENT

router = APIRouter(tags=["openai"], responses=ERRORS)

ENDPOINT: Final = "/v1/chat/completions"


@router.post(ENDPOINT, response_model=ChatCompletion, responses=WHOLE_OR_STREAM)
async def chat(
    request: Request, body: Annotated[ChatRequest, Body()], resources: ResourcesDep, request_id: LogIdDep
) -> Response:
    """The next message of a chat; `model` says who may speak, `routing` in the answer who did."""
    with openai_words(body.model):
        wanted = [await read_chat(body, resources)]
        return await respond(request, body, wanted, ChatForm, resources, request_id)


class ChatForm(Form):
    """A chat's answer."""

    endpoint = ENDPOINT
    id_prefix = "chatcmpl"

    def __init__(self, body: ChatRequest, answer: Answer, resources: Resources) -> None:
        super().__init__(body, answer, resources)
        self._with_logprobs = body.logprobs

    def whole(self, tokens: Sequence[Sequence[TokenEvent]]) -> ChatCompletion:
        """All choices."""
        choices = [
            ChatChoice(
                index=index,
                message=ChatMessage(content="".join(event.text for event in events)),
                logprobs=self._logprobs(events),
                finish_reason=self.finish_reason(index),
                routing=self.routing(index, events),
            )
            for index, events in enumerate(tokens)
        ]
        return ChatCompletion(**self.head() | {"usage": self.usage()}, choices=choices)

    def first(self, index: int) -> ChatChunk:
        """Who speaks."""
        return self._chunk(ChatChunkChoice(index=index, delta=_SPEAKS, finish_reason=None))

    def token(self, index: int, event: TokenEvent) -> ChatChunk | None:
        """A piece of text."""
        says_more = (self._with_logprobs and not event.special) or self.with_weights
        if not event.text and not says_more:
            return None
        told: dict[str, Any] = {}
        if self._with_logprobs:
            told["logprobs"] = self._logprobs([event])
        if self.with_weights:
            told["routing"] = self.token_routing(index, event)
        delta = ChatDelta(content=event.text)
        return self._chunk(ChatChunkChoice(index=index, delta=delta, finish_reason=None, **told))

    def last(self, index: int) -> ChatChunk:
        """Why it ended and who wrote it."""
        return self._chunk(
            ChatChunkChoice(
                index=index,
                delta=ChatDelta(),
                finish_reason=self.finish_reason(index),
                routing=self.routing(index),
            )
        )

    def counts(self) -> ChatChunk:
        """No choices, only the usage."""
        return ChatChunk(**self.head() | {"usage": self.usage()}, object=_CHUNK, choices=[])

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(**self.head(), object=_CHUNK, choices=[choice])

    def _logprobs(self, events: Sequence[TokenEvent]) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        return ChatLogprobs(content=[self._token(event) for event in events if not event.special], refusal=None)

    def _token(self, event: TokenEvent) -> ChatToken:
        top = [_likely(self.likely_text(token_id, event), logprob) for token_id, logprob in event.top_logprobs]
        return ChatToken(**_likely(event.text, event.logprob).model_dump(), top_logprobs=top)


_CHUNK: Final = "chat.completion.chunk"
_SPEAKS: Final = ChatDelta(role="assistant", content="")


def _likely(text: str, logprob: float) -> LikelyToken:
    return LikelyToken(token=text, logprob=logprob, bytes=None if REPLACEMENT in text else list(text.encode()))
