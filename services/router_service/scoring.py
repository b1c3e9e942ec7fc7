"""From a prompt's text, or a chat, to token ids and to what the active release's gate makes of them.

The gate reads token ids alone for most releases; one that reads the base model's hidden states is asked of a replica.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from services.router_service.catalog import LoadedRelease
from services.router_service.generation_request import Prompt
from services.shared.errors import InvalidRequest, PayloadTooLarge
from services.shared.modeling.column_scores import FilterState
from services.shared.schemas.sequences import RoutingPlan, ScoresRequest, ScoresResponse
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import PlanMode

Floats = npt.NDArray[np.float64]
Result = TypeVar("Result")

_INLINE_CHARACTERS: Final = 4096
"""Shorter prompts take less time than the hop into a thread."""
_INLINE_TOKENS: Final = 512
_INLINE_MESSAGES: Final = 64


class RemoteScores(Protocol):
    """Asks a replica that hosts the base model."""

    async def scores(self, request: ScoresRequest) -> ScoresResponse: ...


class Gate(Protocol):
    """The part of a ReleaseScorer that turns scores into weights."""

    def weights(self, scores_TC: Floats, candidates: Sequence[str] | None = None) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class PromptScores:
    """The gate after each prompt token: scores over `columns`, experts first, then the base."""

    columns: tuple[str, ...]
    scores_TC: Floats
    gate: Gate
    log_evidence_TC: Floats | None = None
    """What the router's filter was told, where it reads nothing but tokens."""
    state: FilterState | None = None
    """The router's, after the last token; None where it is a replica's."""

    def weights(self, candidates: Sequence[str]) -> list[dict[str, float]]:
        """Per prompt token, the weights that are not 0, by name."""
        return [self._named(row_C) for row_C in self.gate.weights(self.scores_TC, candidates)]

    def _named(self, row_C: npt.NDArray[np.float32]) -> dict[str, float]:
        return {self.columns[column]: float(row_C[column]) for column in np.flatnonzero(row_C)}


class PromptReader:
    """Tokenises and scores prompts; long ones in a thread, so that nobody else waits."""

    def __init__(self, tokenizer: Tokenizer, *, max_prompt_bytes: int, remote: RemoteScores) -> None:
        self.tokenizer = tokenizer
        self._max_prompt_bytes = max_prompt_bytes
        self._remote = remote

    async def tokenise(self, prompt: Prompt, *, param: str) -> list[int]:
        """The prompt's token ids; errors name the field `param`."""
        token_ids = self._checked(prompt.token_ids, param) if prompt.token_ids else await self._encode(prompt, param)
        if not token_ids:
            raise InvalidRequest("The prompt has no tokens: send some text.", param=param)
        return token_ids[-prompt.truncate :] if prompt.truncate else token_ids

    async def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A chat as the base model's template writes it; InvalidRequest when it is too long or refused."""
        num_bytes = sum(len(str(message["content"]).encode()) for message in messages)
        self._check_size(num_bytes, "messages")
        long = len(messages) > _INLINE_MESSAGES or num_bytes > _INLINE_CHARACTERS
        return await _off_loop(long, lambda: self.tokenizer.apply_chat_template(messages))

    def text_of(self, token_ids: Sequence[int], *, param: str) -> str:
        """The text of a prompt that came as token ids."""
        return self.tokenizer.decode(self._checked(token_ids, param))

    async def spans(self, prompt: Prompt, *, param: str) -> list[tuple[int, int, int]]:
        """Id, start and end in characters of each token of a text."""
        self._check_size(len(prompt.text.encode()), param)
        long = len(prompt.text) > _INLINE_CHARACTERS
        return await _off_loop(
            long, lambda: self.tokenizer.spans(prompt.text, add_special_tokens=prompt.add_special_tokens)
        )

    async def _encode(self, prompt: Prompt, param: str) -> list[int]:
        text, with_special = prompt.text, prompt.add_special_tokens
        self._check_size(len(text.encode()), param)
        if len(text) <= _INLINE_CHARACTERS:
            return self.tokenizer.encode(text, add_special_tokens=with_special)
        # encode() keeps the interpreter's lock to itself, for seconds on a long text; encode_batch() lets it go.
        [token_ids] = await asyncio.to_thread(self.tokenizer.encode_batch, [text], add_special_tokens=with_special)
        return token_ids

    def _check_size(self, num_bytes: int, param: str) -> None:
        if num_bytes > self._max_prompt_bytes:
            raise PayloadTooLarge(
                f"The prompt has {num_bytes:,} bytes; {self._max_prompt_bytes:,} are accepted.",
                param=param,
                code="prompt_too_long",
            )

    def _checked(self, token_ids: Sequence[int], param: str) -> list[int]:
        """Ids must be the tokenizer's."""
        if min(token_ids) < 0 or max(token_ids) >= self.tokenizer.vocab_size:
            raise InvalidRequest(f"The prompt's token ids must lie in 0..{self.tokenizer.vocab_size - 1}.", param=param)
        return list(token_ids)

    async def score(self, release: LoadedRelease, token_ids: list[int]) -> PromptScores:
        """What the release's gate makes of the prompt."""
        scorer = release.scorer
        if scorer.tap_layer is not None:
            return await self._score_remotely(release, token_ids)
        long = len(token_ids) > _INLINE_TOKENS
        state = scorer.start()
        scores_TC, log_evidence_TC = await _off_loop(long, lambda: scorer.advance_with_evidence(state, token_ids))
        return PromptScores(scorer.columns, scores_TC, scorer, log_evidence_TC, state)

    async def _score_remotely(self, release: LoadedRelease, token_ids: list[int]) -> PromptScores:
        plan = routed_plan(release, candidates=tuple(expert.name for expert in release.experts))
        answer = await self._remote.scores(ScoresRequest(prompt_ids=tuple(token_ids), plan=plan))
        return PromptScores(answer.columns, np.array(answer.scores, dtype=np.float64), release.scorer)


def routed_plan(release: LoadedRelease, *, candidates: tuple[str, ...]) -> RoutingPlan:
    """The release's router decides token by token, among `candidates` and the base."""
    return RoutingPlan(
        mode=PlanMode.ROUTED,
        release=release.id,
        router=release.router,
        graph=release.graph,
        experts=release.experts,
        candidates=candidates,
    )


async def _off_loop(needed: bool, work: Callable[[], Result]) -> Result:  # noqa: FBT001 - a condition, not a mode
    return await asyncio.to_thread(work) if needed else work()
