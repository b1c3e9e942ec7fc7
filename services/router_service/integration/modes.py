"""The modes of integration, and what each can be asked for together with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.router_service.generation_request import GenerationRequest
from services.router_service.integration import choosing_plans
from services.router_service.integration.cascade import CascadeAnswer
from services.router_service.integration.composed_answer import ComposedAnswer
from services.router_service.integration.ensemble import EnsembleAnswer
from services.router_service.schemas.generation import AnswerOptions, Integration
from services.router_service.scoring import PromptScores
from services.shared.errors import InvalidRequest
from services.shared.schemas.sequences import RoutingPlan

ChoosePlans = Callable[[RoutingPlan, PromptScores | None, AnswerOptions], list[RoutingPlan]]


@dataclass(frozen=True)
class Mode:
    """Who answers, and how one answer is made of several.

    With `composed` one prompt has one answer, which is there once it is whole; `num_at_first` of the plans begin
    at once, the others only if they are needed.
    """

    plans: ChoosePlans
    composed: type[ComposedAnswer] | None = None
    num_at_first: int | None = None


MODES: Final[Mapping[Integration, Mode]] = {
    Integration.MIXTURE: Mode(choosing_plans.of_mixture),
    Integration.SINGLE: Mode(choosing_plans.of_single),
    Integration.ENSEMBLE: Mode(choosing_plans.of_ensemble, EnsembleAnswer),
    Integration.CASCADE: Mode(choosing_plans.of_cascade, CascadeAnswer, num_at_first=1),
}


def mode_of(requests: Sequence[GenerationRequest], *, streamed: bool) -> Mode:
    """The mode that they ask for; InvalidRequest where it contradicts what else they ask for."""
    first = requests[0]
    chosen = first.options.integration
    mode = MODES[chosen]
    if chosen is not Integration.MIXTURE and first.speakers.weights is not None:
        raise _contradiction(first, f"integration {chosen} chooses among experts, and the request names who speaks")
    if mode.composed is None:
        return mode
    if streamed:
        raise _contradiction(first, f"integration {chosen} chooses among whole answers and cannot be streamed")
    if len(requests) > 1 or first.num_choices > 1:
        names = first.names
        raise _contradiction(
            first, f"integration {chosen} makes one answer to one prompt, not several ({names.num_choices})"
        )
    return mode


def _contradiction(request: GenerationRequest, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"{reason}: leave one of them out.",
        param=f"{request.names.options}integration",
        code="unsupported_parameter",
    )
