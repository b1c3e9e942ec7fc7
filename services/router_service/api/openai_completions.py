"""`/v1/completions`, as OpenAI's clients speak it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Request, Response

from services.router_service.answer import Answer
from services.router_service.api.examples import ERRORS
from services.router_service.api.openai_form import Form, finished
from services.router_service.api.openai_request import openai_words, read_completion
from services.router_service.api.openai_response import WHOLE_OR_STREAM, respond
from services.router_service.dependencies import LogIdDep, Resources, ResourcesDep
from services.router_service.generation import Generation
from services.router_service.schemas.openai_answers import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    FinishedAs,
)
from services.router_service.schemas.openai_requests import CompletionRequest
from services.shared.schemas.sequences import TokenEvent, TopLogprobs

router = APIRouter(tags=["openai"], responses=ERRORS)

ENDPOINT: Final = "/v1/completions"


@router.post(ENDPOINT, response_model=Completion, responses=WHOLE_OR_STREAM)
async def complete(
    request: Request, body: Annotated[CompletionRequest, Body()], resources: ResourcesDep, request_id: LogIdDep
) -> Response:
    """How prompts go on; `model` says who may speak, `routing` in the answer who did."""
    with openai_words(body.model):
        wanted = await read_completion(body, resources)
        return await respond(request, body, wanted, CompletionForm, resources, request_id)


@dataclass(frozen=True)
class ScoredToken:
    """A token of the text with its log-probability and the likeliest at its place."""

    text: str
    logprob: float | None
    top: dict[str, float] | None


class CompletionForm(Form):
    """A completion's answer."""

    endpoint = ENDPOINT
    id_prefix = "cmpl"

    def __init__(self, body: CompletionRequest, answer: Answer, resources: Resources) -> None:
        super().__init__(body, answer, resources)
        self._echo = body.echo
        self._num_top = body.logprobs
        self._no_new_tokens = body.max_tokens == 0
        self._num_characters = [self._echoed_characters(generation) for generation in answer.generations]

    def whole(self, tokens: Sequence[Sequence[TokenEvent]]) -> Completion:
        """All choices, prompt by prompt."""
        choices = [self._choice(index, () if self._no_new_tokens else events) for index, events in enumerate(tokens)]
        return Completion(**self.head() | {"usage": self.usage()}, choices=choices)

    def first(self, index: int) -> Completion | None:
        """The prompt, if it is to be repeated."""
        if not self._echo:
            return None
        return self._chunk(index, self._prompt_text(index), finish_reason=None, logprobs=None)

    def token(self, index: int, event: TokenEvent) -> Completion | None:
        """A piece of text."""
        says_more = (self._num_top is not None and not event.special) or self.with_weights
        if self._no_new_tokens or (not event.text and not says_more):
            return None
        logprobs = self._logprobs(self._scored([event]), self._num_characters[index])
        self._num_characters[index] += len(event.text)
        told = {"routing": self.token_routing(index, event)} if self.with_weights else {}
        return self._chunk(index, event.text, finish_reason=None, logprobs=logprobs, **told)

    def last(self, index: int) -> Completion:
        """Why it ended and who wrote it."""
        return self._chunk(
            index, "", finish_reason=self.finish_reason(index), logprobs=None, routing=self.routing(index)
        )

    def counts(self) -> Completion:
        """No choices, only the usage."""
        return Completion(**self.head() | {"usage": self.usage()}, object=_OBJECT, choices=[])

    def num_generated(self, generation: Generation) -> int:
        """None when none was asked for."""
        return 0 if self._no_new_tokens else super().num_generated(generation)

    def finish_reason(self, index: int) -> FinishedAs:
        """A text to which nothing was to be added has reached its length."""
        return "length" if self._no_new_tokens else super().finish_reason(index)

    def _choice(self, index: int, events: Sequence[TokenEvent]) -> CompletionChoice:
        scored = [*(self._scored_prompt(index) if self._echo else ()), *self._scored(events)]
        echoed = self._prompt_text(index) if self._echo else ""
        return CompletionChoice(
            index=index,
            text=echoed + "".join(event.text for event in events),
            logprobs=self._logprobs(scored, 0),
            finish_reason=self.finish_reason(index),
            routing=self.routing(index, events),
        )

    def _chunk(self, index: int, text: str, **fields: Any) -> Completion:
        choice = CompletionChoice(index=index, text=text, **fields)
        return Completion(**self.head(), object=_OBJECT, choices=[choice])

    def _prompt_text(self, index: int) -> str:
        return self.answer.generations[index].record.prompt

    def _echoed_characters(self, generation: Generation) -> int:
        return len(generation.record.prompt) if self._echo else 0

    def _scored(self, events: Sequence[TokenEvent]) -> list[ScoredToken]:
        if self._num_top is None:
            return []
        return [
            ScoredToken(event.text, event.logprob, self._top(event.top_logprobs, event.id, event.text, event.logprob))
            for event in events
            if not event.special
        ]

    def _scored_prompt(self, index: int) -> list[ScoredToken]:
        """The prompt's tokens; those that are no text (its beginning) are left out."""
        generation = self.answer.generations[index]
        if self._num_top is None:
            return []
        end = finished(generation)
        ids = list(generation.record.prompt_ids)
        rows = zip(
            ids,
            self.tokenizer.tokens(ids),
            end.prompt_logprobs or [None] * len(ids),
            end.prompt_top_logprobs or [()] * len(ids),
            strict=True,
        )
        return [
            ScoredToken(text, logprob, self._top(top, token_id, text, logprob))
            for token_id, text, logprob, top in rows
            if not self.tokenizer.is_special(token_id)
        ]

    def _top(self, top: TopLogprobs, token_id: int, text: str, logprob: float | None) -> dict[str, float] | None:
        """By text; the token that stands there is always among them."""
        if not self._num_top or logprob is None:
            return None
        named = {text if likely == token_id else self.tokenizer.piece(likely): value for likely, value in top}
        return {**named, text: logprob}

    def _logprobs(self, scored: Sequence[ScoredToken], offset: int) -> CompletionLogprobs | None:
        if self._num_top is None:
            return None
        offsets = []
        for token in scored:
            offsets.append(offset)
            offset += len(token.text)
        return CompletionLogprobs(
            tokens=[token.text for token in scored],
            token_logprobs=[token.logprob for token in scored],
            top_logprobs=[token.top for token in scored] if self._num_top else None,
            text_offset=offsets,
        )


_OBJECT: Final = "text_completion"
