"""Attribution by ablation: how much less likely an answer is when an expert is left out.

The reference is a reading too, and not what was reported while generating, so that both sides of every difference
were computed alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.router_service.answer_reading import AnswerReader, Logprobs, WrittenAnswer
from services.router_service.schemas.generation import ExpertShare
from services.shared.schemas.sequences import RoutingPlan
from services.shared.vocabulary import BASE, PlanMode


@dataclass(frozen=True)
class Ablation:
    """Leaves experts out of answers; `with_tokens` tells their effect on each token as well."""

    reader: AnswerReader
    with_tokens: bool

    async def measured(
        self, answer: WrittenAnswer, plan: RoutingPlan, shares: Sequence[ExpertShare]
    ) -> list[ExpertShare]:
        """The same shares, those of experts with their effects; all readings are asked for at once."""
        experts = [part.expert for part in shares if part.expert != BASE]
        if not experts:
            return list(shares)
        plans = [plan, *(without(plan, expert) for expert in experts)]
        together, *others = await self.reader.logprobs([(answer, each) for each in plans])
        effects = {expert: together - left_out for expert, left_out in zip(experts, others, strict=True)}
        return [self._told(part, effects[part.expert]) if part.expert in effects else part for part in shares]

    def _told(self, part: ExpertShare, effects_T: Logprobs) -> ExpertShare:
        found = {"effect": float(effects_T.mean()), "total_effect": float(effects_T.sum())}
        tokens = {"token_effects": [round(effect, 6) for effect in effects_T.tolist()]} if self.with_tokens else {}
        return part.model_copy(update={**found, **tokens})


def without(plan: RoutingPlan, expert: str) -> RoutingPlan:
    """The plan without one of its candidates. Pure.

    A router chooses anew among the others and the base; fixed weights stay as they are for the others. With nobody left
    the base speaks alone.
    """
    candidates = tuple(name for name in plan.candidates if name != expert)
    if not candidates:
        return RoutingPlan(mode=PlanMode.BASE, release=plan.release)
    if plan.mode is PlanMode.ROUTED:
        return plan.model_copy(update={"candidates": candidates})
    return plan.model_copy(
        update={
            "candidates": candidates,
            "experts": tuple(ref for ref in plan.experts if ref.name != expert),
            "weights": {name: weight for name, weight in plan.weights.items() if name != expert},
        }
    )
