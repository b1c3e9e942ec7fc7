"""What chats and completions have in common on the wire: how an answer is named, told token by token, and counted."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from pydantic import BaseModel

from services.router_service.answer import Answer
from services.router_service.api.event_stream import sse_event
from services.router_service.dependencies import Resources
from services.router_service.generation import Generation
from services.router_service.schemas.openai_answers import ChoiceRouting, ChunkRouting, FinishedAs, TokenWeights, Usage
from services.router_service.schemas.openai_requests import TextRequest
from services.shared.errors import AmoeError
from services.shared.schemas.sequences import FinishedEvent, TokenEvent
from services.shared.vocabulary import FinishReason

_DONE: Final = sse_event("[DONE]")


class Form(ABC):
    """One answer's form. Subclasses say what a choice and a chunk look like."""

    endpoint: str
    id_prefix: str

    def __init__(self, body: TextRequest, answer: Answer, resources: Resources) -> None:
        self.answer = answer
        self.tokenizer = resources.tokenizer
        self.with_weights = body.routing.details
        self._with_usage = body.stream_options.include_usage
        self._num_choices = body.n
        hosted = resources.replicas.base
        self._head = {
            "id": f"{self.id_prefix}-{answer.generations[0].record.id.removeprefix('req-')}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"fp_{hosted.fingerprint[:12]}" if hosted else None,
        }

    @abstractmethod
    def whole(self, tokens: Sequence[Sequence[TokenEvent]]) -> BaseModel:
        """The answer at once, from all tokens by generation."""

    @abstractmethod
    def first(self, index: int) -> BaseModel | None:
        """What comes before a choice's first token, if anything."""

    @abstractmethod
    def token(self, index: int, event: TokenEvent) -> BaseModel | None:
        """The chunk of a token; None when it has nothing to say."""

    @abstractmethod
    def last(self, index: int) -> BaseModel:
        """The end of a choice."""

    @abstractmethod
    def counts(self) -> BaseModel:
        """The chunk with the usage."""

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as it comes; an error in the middle is an event of its own, and the last one."""
        try:
            for index in range(len(self.answer.generations)):
                if (chunk := self.first(index)) is not None:
                    yield self._event(chunk)
            async for index, event in self.answer.tokens:
                if event is None:
                    await self.answer.generations[index].measure()
                chunk = self.last(index) if event is None else self.token(index, event)
                if chunk is not None:
                    yield self._event(chunk)
        except AmoeError as error:
            yield sse_event(json.dumps(error.body()))
            return
        if self._with_usage:
            yield self._event(self.counts())
        yield _DONE

    def head(self) -> dict[str, Any]:
        """What every answer and chunk begins with; with usage, chunks before the last say that it is not there yet."""
        return {**self._head, "usage": None} if self._with_usage else dict(self._head)

    def usage(self) -> Usage:
        """Tokens of all choices; a prompt counts once."""
        prompts = self.answer.generations[:: self._num_choices]
        num_prompt = sum(len(generation.record.prompt_ids) for generation in prompts)
        num_generated = sum(self.num_generated(generation) for generation in self.answer.generations)
        return Usage(prompt_tokens=num_prompt, completion_tokens=num_generated, total_tokens=num_prompt + num_generated)

    def num_generated(self, generation: Generation) -> int:
        """Tokens that count as this choice's."""
        return finished(generation).num_generated_tokens

    def routing(self, index: int, tokens: Sequence[TokenEvent] = ()) -> ChoiceRouting:
        """Who wrote a choice; with its tokens' weights if they were asked for and there are any."""
        routing = ChoiceRouting(**self.answer.generations[index].routing().model_dump())
        if self.with_weights and tokens:
            routing.tokens = [
                TokenWeights(
                    id=event.id,
                    text=event.text,
                    weights=event.gates,
                    confidence=self.answer.generations[index].confidence_before(event),
                )
                for event in tokens
            ]
        return routing

    def token_routing(self, index: int, event: TokenEvent) -> ChunkRouting:
        """Who wrote a token of a stream."""
        return ChunkRouting(weights=event.gates, confidence=self.answer.generations[index].confidence_before(event))

    def finish_reason(self, index: int) -> FinishedAs:
        """Why a choice ended, in OpenAI's two words."""
        reason = finished(self.answer.generations[index]).finish_reason
        return "length" if reason is FinishReason.LENGTH else "stop"

    def likely_text(self, token_id: int, event: TokenEvent) -> str:
        """The text of a token at an event's place."""
        return event.text if token_id == event.id and event.text else self.tokenizer.piece(token_id)

    def _event(self, chunk: BaseModel) -> bytes:
        return sse_event(chunk.model_dump_json(exclude_unset=True))


def finished(generation: Generation) -> FinishedEvent:
    """How a generation that has been read to its end did end."""
    assert generation.finished is not None
    return generation.finished
