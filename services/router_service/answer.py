"""The answer to one request in the making: one generation per choice, begun and ended together."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from typing import Final, Self

import anyio

from services.router_service.generation import Generation
from services.router_service.merged_streams import merged
from services.shared.schemas.sequences import TokenEvent

_CLOSE_S: Final = 5.0


class Answer:
    """Generations that have begun, prompt by prompt and choice by choice. Read `tokens`, close it in any case."""

    def __init__(self, generations: Sequence[Generation], place: ExitStack) -> None:
        self.generations = generations
        self.begun = list(generations)
        """All that `close` ends."""
        self.tokens: AsyncGenerator[tuple[int, TokenEvent | None]] = merged(
            [generation.tokens() for generation in generations]
        )
        """Tokens of all as they come, each with its generation's number; None when that one is `finished`."""
        self._place = place

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        with anyio.move_on_after(_CLOSE_S, shield=True):
            await self.close()

    async def whole(self) -> list[list[TokenEvent]]:
        """All tokens by generation, when the last of them is there."""
        events: list[list[TokenEvent]] = [[] for _ in self.generations]
        async for index, event in self.tokens:
            if event is not None:
                events[index].append(event)
        return events

    async def close(self) -> None:
        """End what still runs and give the places back. The second time does nothing."""
        with self._place.pop_all():
            await self.tokens.aclose()
            for generation in self.begun:
                await generation.close()


def mean_logprob(tokens: Sequence[TokenEvent]) -> float:
    """How likely an answer is, nats per token. Pure."""
    return sum(event.logprob for event in tokens) / max(1, len(tokens))
