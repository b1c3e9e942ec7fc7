"""From a request to a sequence: everything that can be refused is refused here, before the first byte of an answer."""

import asyncio
import math
from collections.abc import Sequence as Items
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from services.expert_service.adapter_cache import AdapterCache
from services.expert_service.adapter_loader import AdapterLoader, ScorerLoader
from services.expert_service.answer_text import AnswerText
from services.expert_service.pooled_states import PooledStates
from services.expert_service.sampling import TokenChooser
from services.expert_service.sequence import PlannedAdapter, Sequence
from services.expert_service.sequence_gate import Scorer, SequenceGate
from services.shared.errors import Conflict, InvalidAdapter, InvalidRequest, NotFound, PromptTooLong
from services.shared.modeling.adapter_files import Adapter
from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.wiring import decoder_stack
from services.shared.schemas.sequences import EXPERT_FIELD, ExpertRef, RoutingPlan, SequenceRequest
from services.shared.vocabulary import PlanMode

Value = TypeVar("Value")


@dataclass(frozen=True)
class Admission:
    """Builds sequences for one replica. Waits for disks without holding a thread."""

    base: LoadedBase
    vocab_size: int
    adapters: AdapterLoader
    scorers: ScorerLoader
    slots: AdapterCache

    async def prepare(self, request: SequenceRequest) -> Sequence:
        """A sequence ready to submit, its adapters and router in memory. Raises what the caller must be told."""
        self._check_lengths(request)
        self._check_layer(request)
        check_plan(request.plan)
        planned = await self._planned(request.plan)
        self.slots.check_fits(planned)
        if request.plan.mode is not PlanMode.ROUTED:
            return await run_in_threadpool(self._build, request, planned, None)
        scorer = await when_done(self.scorers.request(request.plan))
        return await run_in_threadpool(self._build, request, planned, scorer)

    def _build(self, request: SequenceRequest, planned: tuple[PlannedAdapter, ...], scorer: Scorer | None) -> Sequence:
        lowest = min((item.adapter.report.lowest_layer for item in planned), default=None)
        return Sequence(
            request=request,
            gate=SequenceGate.of(request.plan, scorer, lowest_layer=lowest),
            adapters=planned,
            chooser=TokenChooser(
                request.sampling,
                vocab_size=self.vocab_size,
                device=self.base.device,
                num_prompt=len(request.prompt_ids),
            ),
            text=AnswerText(self.base.tokenizer, prompt_ids=request.prompt_ids, stop=request.sampling.stop),
            pooled=PooledStates(len(request.prompt_ids)) if request.prompt_states else None,
        )

    def scorer(self, plan: RoutingPlan) -> Scorer:
        """The router of a routed plan."""
        check_plan(plan)
        if plan.mode is not PlanMode.ROUTED:
            raise InvalidRequest(
                "Only a routed plan has scores; this plan names its experts itself.", param="plan.mode"
            )
        return self.scorers.load(plan)

    def check_prompt(self, prompt_ids: Items[int]) -> None:
        """Ids must be the tokenizer's."""
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            raise InvalidRequest(f"prompt_ids must lie in 0..{self.vocab_size - 1}.", param="prompt_ids")
        if len(prompt_ids) > self.base.max_context:
            raise PromptTooLong(
                f"The prompt has {len(prompt_ids)} tokens, the context ends at {self.base.max_context}. Shorten it.",
                param="prompt_ids",
            )

    def _check_lengths(self, request: SequenceRequest) -> None:
        self.check_prompt(request.prompt_ids)
        num_prompt, num_new = len(request.prompt_ids), request.sampling.max_new_tokens
        if num_prompt + num_new > self.base.max_context:
            raise PromptTooLong(
                f"{num_prompt} prompt tokens and {num_new} new ones exceed the context of {self.base.max_context}. "
                "Shorten the prompt or lower max_new_tokens.",
                param="max_new_tokens" if num_prompt < self.base.max_context else "prompt_ids",
            )

    def _check_layer(self, request: SequenceRequest) -> None:
        num_layers = len(decoder_stack(self.base.model)[1])
        if request.states_layer is not None and request.states_layer >= num_layers:
            raise InvalidRequest(
                f"states_layer must lie in 0..{num_layers - 1} for this base model.", param="states_layer"
            )

    async def _planned(self, plan: RoutingPlan) -> tuple[PlannedAdapter, ...]:
        by_name = {expert.name: expert for expert in plan.experts}
        if len(plan.candidates) > self.slots.num_slots:  # before anything is read for it
            raise InvalidRequest(
                f"The plan names {len(plan.candidates)} experts, this replica has {self.slots.num_slots} slots. "
                "Name fewer candidates, or raise expert_service.num_slots.",
                param="plan.candidates",
                code="too_many_experts",
            )
        experts = [by_name[name] for name in plan.candidates]
        reads = [self.adapters.request(expert.digest) for expert in experts]
        return tuple([await _adapter_of(expert, read) for expert, read in zip(experts, reads, strict=True)])


async def _adapter_of(expert: ExpertRef, read: "Future[Adapter]") -> PlannedAdapter:
    """What was read for an expert; an error says whose adapter it was."""
    try:
        return PlannedAdapter(expert.name, expert.digest, await when_done(read))
    except (Conflict, InvalidAdapter, NotFound) as error:
        raise type(error)(
            f"{expert.name} cannot be used. {error.message}",
            param=f"{EXPERT_FIELD}{expert.name}",
            code=error.error_code,
        ) from error


async def when_done(work: "Future[Value]") -> Value:
    """The result of work that others may wait for too: whoever stops waiting does not cancel it."""
    return work.result() if work.done() else await asyncio.shield(asyncio.wrap_future(work))


def check_plan(plan: RoutingPlan) -> None:
    """A plan must carry what its mode needs, without contradictions."""
    names = [expert.name for expert in plan.experts]
    if len(set(names)) != len(names) or len(set(plan.candidates)) != len(plan.candidates):
        raise InvalidRequest("The plan names an expert twice.", param="plan.experts")
    unknown = sorted(set(plan.candidates) - set(names))
    if unknown:
        raise InvalidRequest(f"The plan's candidates {unknown} are not among its experts.", param="plan.candidates")
    if plan.mode is PlanMode.ROUTED and plan.router is None:
        raise InvalidRequest("A routed plan needs a router.", param="plan.router")
    if plan.mode is PlanMode.FIXED:
        _check_fixed_weights(plan)


def _check_fixed_weights(plan: RoutingPlan) -> None:
    if set(plan.weights) != set(plan.candidates) or not plan.candidates:
        raise InvalidRequest("A fixed plan needs one weight for each of its candidates.", param="plan.weights")
    if not all(math.isfinite(weight) for weight in plan.weights.values()):
        raise InvalidRequest("A plan's weights must be finite numbers.", param="plan.weights")
