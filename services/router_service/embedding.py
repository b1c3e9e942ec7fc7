"""Texts as vectors: the mean over a text's tokens of the model's last hidden states.

A text is read as a prompt is: in a batch with whoever else is there, in pieces between the others' tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.router_service.at_once import at_once
from services.router_service.generation_request import FieldNames, GenerationRequest, Prompt, Speakers
from services.router_service.pipeline import Pipeline, RoutedPrompt
from services.shared.errors import ExpertServiceFailed, InvalidRequest, PromptTooLong


@dataclass(frozen=True)
class TextEmbedding:
    """[D], not normalised, and how many tokens were read for it."""

    states_D: tuple[float, ...]
    num_tokens: int


class Embedder:
    """Has replicas read texts, a bounded number of one request's at a time."""

    def __init__(self, pipeline: Pipeline, *, max_at_once: int) -> None:
        self._pipeline = pipeline
        self._max_at_once = max_at_once

    async def embed(
        self, prompts: Sequence[Prompt], speakers: Speakers, *, request_id: str, endpoint: str
    ) -> list[TextEmbedding]:
        """A vector per text, in order, or the first error. All texts are checked before one is read."""
        num_at_once = min(len(prompts), self._max_at_once)
        with self._pipeline.admitted(num_at_once, endpoint=endpoint):
            routed = [await self._route(index, prompt, speakers) for index, prompt in enumerate(prompts)]
            reads = [self._read(text, request_id=f"{request_id}-{index}") for index, text in enumerate(routed)]
            return await at_once(reads, limit=num_at_once)

    async def _route(self, index: int, prompt: Prompt, speakers: Speakers) -> RoutedPrompt:
        param = f"input.{index}"
        limit = self._pipeline.max_prompt_tokens
        try:
            routed = await self._pipeline.route(
                GenerationRequest(prompt=prompt, speakers=speakers, names=FieldNames(prompt=param))
            )
        except PromptTooLong as error:
            raise _too_long(index, limit) from error
        if limit is not None and len(routed.token_ids) > limit:
            raise _too_long(index, limit)
        return routed

    async def _read(self, prompt: RoutedPrompt, *, request_id: str) -> TextEmbedding:
        finished = await self._pipeline.read(prompt, request_id=request_id)
        if finished.prompt_states is None:
            raise ExpertServiceFailed(
                "The expert service sent no embedding: run the same version of both services.", code="version_mismatch"
            )
        return TextEmbedding(finished.prompt_states, finished.num_prompt_tokens)


def _too_long(index: int, limit: int | None) -> InvalidRequest:
    return InvalidRequest(
        f"Input {index} is longer than the {limit} tokens that the base model takes: cut it into several.",
        param=f"input.{index}",
        code="context_length_exceeded",
    )
