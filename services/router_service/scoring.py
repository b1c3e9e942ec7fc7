"""From a prompt's text to token ids and to what the active release's gate makes of them.

The gate reads token ids alone for most releases; one that reads the base model's hidden states is asked of a replica.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from services.router_service.catalog import LoadedRelease
from services.shared.errors import InvalidRequest, PayloadTooLarge
from services.shared.schemas.sequences import RoutingPlan, ScoresRequest, ScoresResponse
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import PlanMode

Floats = npt.NDArray[np.float64]
Result = TypeVar("Result")

_INLINE_CHARACTERS: Final = 4096
"""Shorter prompts take less time than the hop into a thread."""
_INLINE_TOKENS: Final = 512


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

    async def tokenise(self, text: str, *, truncate: int | None = None) -> list[int]:
        """The prompt's token ids; with `truncate`, the last so many."""
        num_bytes = len(text.encode())
        if num_bytes > self._max_prompt_bytes:
            raise PayloadTooLarge(
                f"The prompt has {num_bytes:,} bytes; {self._max_prompt_bytes:,} are accepted.",
                param="inputs",
                code="prompt_too_long",
            )
        if len(text) <= _INLINE_CHARACTERS:
            token_ids = self.tokenizer.encode(text)
        else:
            # encode() keeps the interpreter's lock to itself, for seconds on a long text; encode_batch() lets it go.
            [token_ids] = await asyncio.to_thread(self.tokenizer.encode_batch, [text])
        if not token_ids:
            raise InvalidRequest("The prompt has no tokens: send some text.", param="inputs")
        return token_ids[-truncate:] if truncate else token_ids

    async def score(self, release: LoadedRelease, token_ids: list[int]) -> PromptScores:
        """What the release's gate makes of the prompt."""
        scorer = release.scorer
        if scorer.tap_layer is not None:
            return await self._score_remotely(release, token_ids)
        long = len(token_ids) > _INLINE_TOKENS
        scores_TC = await _off_loop(long, lambda: scorer.advance(scorer.start(), token_ids))
        return PromptScores(scorer.columns, scores_TC, scorer)

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
