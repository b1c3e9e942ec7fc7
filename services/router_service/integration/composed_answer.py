"""An answer that is chosen among several, each of which is a request of the log."""

from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from services.router_service.answer import Answer
from services.router_service.answer_reading import AnswerReader
from services.router_service.generation import Generation
from services.router_service.schemas.generation import AnswerOptions, IntegrationReport
from services.shared.schemas.sequences import RoutingPlan, TokenEvent

Opening = Callable[[], Coroutine[Any, Any, Generation]]


@dataclass(frozen=True)
class Parts:
    """What the choice is made with: `later` begins the answers that have not begun."""

    options: AnswerOptions
    mixture: RoutingPlan
    reader: AnswerReader
    cascade_threshold: float
    later: Sequence[Opening]


class ComposedAnswer(Answer):
    """Only its `whole` is to be read, which chooses: then `generations` holds the given answer alone.

    `close` ends all that were begun.
    """

    def __init__(self, generations: Sequence[Generation], place: ExitStack, parts: Parts) -> None:
        super().__init__(generations, place)
        self.parts = parts

    async def another(self, opening: Opening) -> tuple[Generation, list[TokenEvent]]:
        """One more answer with its tokens, after those that are there; it takes their place."""
        for done in self.begun:
            _set_aside(done)
            await done.close()
        generation = await opening()
        self.begun.append(generation)
        return generation, [event async for event in generation.tokens()]

    def give(self, generation: Generation, report: IntegrationReport) -> None:
        """Choose it."""
        for other in self.begun:
            if other is not generation:
                _set_aside(other)
        generation.record.integration = report
        self.generations = [generation]


def _set_aside(generation: Generation) -> None:
    """An answer that is not given: what is known of the prompt is told, and counted, with the one that is."""
    generation.record.assessment = None
