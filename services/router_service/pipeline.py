"""A request's trip: tokenise, score, plan, dispatch. What comes back is read from the Generation."""

import asyncio
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from services.router_service.ablation import Ablation
from services.router_service.admission import Admission
from services.router_service.answer import Answer
from services.router_service.answer_reading import AnswerReader
from services.router_service.assessment import Assessment, assess
from services.router_service.catalog import Catalog, LoadedRelease
from services.router_service.dispatch import Dispatcher
from services.router_service.generation import Generation, RequestClock
from services.router_service.generation_request import FieldNames, GenerationRequest, Speakers
from services.router_service.integration.composed_answer import Opening, Parts
from services.router_service.integration.modes import MODES, Mode, mode_of
from services.router_service.metrics import Metrics
from services.router_service.planning import plan_base, plan_fixed
from services.router_service.prompt_measurement import PromptMeasurement
from services.router_service.replicas import Replicas
from services.router_service.request_limits import check_limits
from services.router_service.request_log import RequestLog, RequestRecord
from services.router_service.schemas.generation import AnswerOptions, IntegrationReport
from services.router_service.scoring import PromptReader, PromptScores, routed_plan
from services.router_service.token_confidence import TokenConfidence
from services.shared.config import RouterServiceSettings
from services.shared.errors import AmoeError, PromptTooLong
from services.shared.modeling.candidates import choose_candidates
from services.shared.schemas.sampling import SamplingParameters
from services.shared.schemas.sequences import FinishedEvent, RoutingPlan, SequenceRequest
from services.shared.vocabulary import BASE, FinishReason, PlanMode


@dataclass(frozen=True)
class RoutedPrompt:
    """A prompt with its plan. `scores` and `assessment` are there when a release decides."""

    token_ids: list[int]
    plan: RoutingPlan
    base_fingerprint: str | None
    scores: PromptScores | None = None
    assessment: Assessment | None = None
    release: LoadedRelease | None = None

    def gates(self) -> Sequence[Mapping[str, float]]:
        """The gate's weights after each prompt token."""
        if self.scores is not None and self.plan.mode is PlanMode.ROUTED:
            return self.scores.weights(self.plan.candidates)
        left = 1.0 - sum(self.plan.weights.values())
        fixed = {**self.plan.weights, **({BASE: left} if left > 0.0 else {})}
        return [fixed] * len(self.token_ids)


@dataclass(frozen=True)
class PlannedSequence:
    """A sequence that can begin. `mixture` is the plan that the release, or the request, made of the prompt."""

    request: SequenceRequest
    record: RequestRecord
    ablation: Ablation | None
    clock: RequestClock
    mixture: RoutingPlan


class Pipeline:
    """Everything between a valid request and its first token."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        reader: PromptReader,
        replicas: Replicas,
        request_log: RequestLog,
        metrics: Metrics,
        settings: RouterServiceSettings,
    ) -> None:
        self._catalog = catalog
        self._reader = reader
        self._replicas = replicas
        self._dispatcher = Dispatcher(replicas, metrics)
        self._metrics = metrics
        self._settings = settings
        self._admission = Admission(settings.max_concurrent_requests, metrics)
        self._answer_reader = AnswerReader(self._dispatcher, self._admission, metrics)
        self.records = PromptMeasurement(
            request_log, self._dispatcher, self._admission, ordinary_per_s=settings.measured_per_s
        )
        """Where what is known of a request goes when it ends."""

    async def begin(
        self, requests: Sequence[GenerationRequest], *, request_id: str, endpoint: str, streamed: bool = False
    ) -> Answer:
        """The answer to `requests`, all first tokens already here; every refusal is raised before that.

        Choice 0 of the first is remembered as `request_id`, the others as `request_id-1` and so on.
        """
        with self._refusals_counted(endpoint):
            check_limits(requests, self._settings)
            mode = mode_of(requests, streamed=streamed)
            with ExitStack() as place:
                place.enter_context(self._admission.admitted(sum(request.num_sequences for request in requests)))
                planned = await self._plan(requests, mode, request_id=request_id, endpoint=endpoint)
                openings = [partial(self._open, each) for each in planned]
                generations = await begin_all([opening() for opening in openings[: mode.num_at_first]])
                if mode.composed is None:
                    return Answer(generations, place.pop_all())
                parts = self._parts(requests[0].options, planned[0].mixture, openings[len(generations) :])
                return mode.composed(generations, place.pop_all(), parts)
        raise AssertionError("unreachable")

    @contextmanager
    def admitted(self, count: int, *, endpoint: str) -> Iterator[None]:
        """Places for `count` texts that are read and not answered; what comes of the block is counted."""
        with self._refusals_counted(endpoint), self._admission.admitted(count):
            yield
            self._metrics.requests.labels(endpoint, "read").inc()

    @contextmanager
    def _refusals_counted(self, endpoint: str) -> Iterator[None]:
        try:
            yield
        except AmoeError as error:
            self._metrics.requests.labels(endpoint, error.error_code).inc()
            raise

    async def read(self, prompt: RoutedPrompt, *, request_id: str) -> FinishedEvent:
        """Have a replica read a prompt for its states. Nobody hears the token that ends it, and no log keeps it."""
        deadline = asyncio.get_running_loop().time() + self._settings.request_timeout_s
        request = SequenceRequest(
            request_id=request_id,
            prompt_ids=tuple(prompt.token_ids),
            sampling=SamplingParameters(max_new_tokens=1),
            plan=prompt.plan,
            prompt_states=True,
        )
        _, finished = await self._dispatcher.read(request, base_fingerprint=prompt.base_fingerprint, deadline=deadline)
        self._metrics.count_tokens(num_prompt=len(prompt.token_ids), num_generated=0, attribution=())
        return finished

    async def _plan(
        self, requests: Sequence[GenerationRequest], mode: Mode, *, request_id: str, endpoint: str
    ) -> list[PlannedSequence]:
        """What is to be generated, prompt by prompt, choice by choice, in the order in which it may begin."""
        deadline = asyncio.get_running_loop().time() + self._settings.request_timeout_s
        clock = RequestClock(started_at=time.perf_counter(), deadline=deadline)
        planned: list[PlannedSequence] = []
        for request in requests:
            routed = await self.route(request)
            num_new = self._num_new_tokens(request, len(routed.token_ids))
            for choice, plan in product(
                range(request.num_choices), mode.plans(routed.plan, routed.scores, request.options)
            ):
                prompt = replace(routed, plan=plan)
                sampling = request.sampling_of(choice, max_new_tokens=num_new)
                log_id = f"{request_id}-{len(planned)}" if planned else request_id
                record = _record(request, prompt, request_id=log_id, endpoint=endpoint, sampling=sampling)
                sequence = _sequence_request(record, prompt, sampling, request)
                planned.append(PlannedSequence(sequence, record, self._ablation(request), clock, routed.plan))
        planning_s = clock.elapsed_s
        self._metrics.planning_seconds.observe(planning_s)
        for each in planned:
            each.record.timings["planning_ms"] = round(1000 * planning_s, 3)
        return planned

    def _ablation(self, request: GenerationRequest) -> Ablation | None:
        if not request.options.wants_ablation:
            return None
        return Ablation(self._answer_reader, with_tokens=request.token_details)

    def _parts(self, options: AnswerOptions, mixture: RoutingPlan, later: Sequence[Opening]) -> Parts:
        """What an answer is chosen with."""
        threshold = options.cascade_threshold
        return Parts(
            options=options,
            mixture=mixture,
            reader=self._answer_reader,
            cascade_threshold=self._settings.cascade_threshold if threshold is None else threshold,
            later=later,
        )

    async def _open(self, planned: PlannedSequence) -> Generation:
        """The sequence on a replica; one that no replica begins is remembered with the reason."""
        record, clock = planned.record, planned.clock
        try:
            sequence = await self._dispatcher.open(
                planned.request, base_fingerprint=record.base_fingerprint, deadline=clock.deadline
            )
        except AmoeError as error:
            record.finish_reason = FinishReason.ERROR
            record.error = error.body()["error"]
            self.records.remember(record)
            raise
        return Generation(
            sequence=sequence,
            record=record,
            records=self.records,
            metrics=self._metrics,
            clock=clock,
            ablation=planned.ablation,
        )

    async def route(self, request: GenerationRequest) -> RoutedPrompt:
        """Tokens, scores and plan of a prompt, without generating."""
        names, fixed = request.names, request.speakers.weights
        release = await self._release(request.speakers)
        release_id = release.id if release else None
        plan = None
        if fixed:
            exact = request.speakers.versions
            plan = await self._catalog.look_up(
                lambda now: plan_fixed(fixed, {**now.registered, **exact}, release=release_id)
            )
        token_ids = await self._reader.tokenise(request.prompt, param=names.prompt)
        if plan is not None:
            return RoutedPrompt(token_ids, plan, base_fingerprint=None)
        if release is None or not release.experts:
            return RoutedPrompt(token_ids, plan_base(release_id), base_fingerprint=None)
        self._check_length(len(token_ids), num_new=1, names=names)
        scores = await self._reader.score(release, token_ids)
        candidates = choose_candidates(scores.columns, scores.scores_TC, self._max_candidates())
        return RoutedPrompt(
            token_ids=token_ids,
            plan=routed_plan(release, candidates=candidates),
            base_fingerprint=release.base_fingerprint,
            scores=scores,
            assessment=assess(release, scores),
            release=release,
        )

    async def _release(self, speakers: Speakers) -> LoadedRelease | None:
        """The release that the request is answered on: the active one unless it names another."""
        if speakers.release is None:
            return self._catalog.current().release
        return await self._catalog.release(speakers.release)

    @property
    def max_prompt_tokens(self) -> int | None:
        """The longest text that can be read: a token must fit behind it."""
        max_context = self._max_context()
        return None if max_context is None else max_context - 1

    def _max_candidates(self) -> int:
        return min(self._settings.max_candidates, self._replicas.num_slots or self._settings.max_candidates)

    def _num_new_tokens(self, request: GenerationRequest, num_prompt_tokens: int) -> int:
        """As many as asked for; when nobody asked, the default or what the context leaves."""
        asked = request.max_new_tokens
        self._check_length(num_prompt_tokens, num_new=asked or 1, names=request.names)
        if asked is not None:
            return asked
        left = (self._max_context() or 2**31) - num_prompt_tokens
        return min(self._settings.default_max_new_tokens, left)

    def _check_length(self, num_prompt_tokens: int, *, num_new: int, names: FieldNames) -> None:
        max_context = self._max_context()
        if max_context is not None and num_prompt_tokens + num_new > max_context:
            raise PromptTooLong(
                f"The prompt has {num_prompt_tokens} tokens, but with {names.max_new_tokens} {num_new} at most "
                f"{max(0, max_context - num_new)} fit the base model's context of {max_context}: "
                "shorten it or ask for fewer new tokens.",
                param=names.prompt,
            )

    def _max_context(self) -> int | None:
        """The replicas' word counts; before any of them has spoken, the base model's configuration."""
        base = self._replicas.base
        return base.max_context if base is not None else self._reader.tokenizer.max_context


async def begin_all(openings: Sequence[Coroutine[None, None, Generation]]) -> list[Generation]:
    """All begun, in order; when one cannot be, the others are ended and its reason is raised."""
    if len(openings) == 1:
        return [await openings[0]]
    begun: dict[int, Generation] = {}

    async def keep(index: int, opening: Coroutine[None, None, Generation]) -> None:
        begun[index] = await opening

    try:
        async with asyncio.TaskGroup() as group:
            for index, opening in enumerate(openings):
                group.create_task(keep(index, opening))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        if len(begun) < len(openings):
            for generation in begun.values():
                await generation.close()
    return [begun[index] for index in range(len(openings))]


def _record(
    request: GenerationRequest, prompt: RoutedPrompt, *, request_id: str, endpoint: str, sampling: SamplingParameters
) -> RequestRecord:
    return RequestRecord(
        id=request_id,
        endpoint=endpoint,
        prompt=request.prompt.text,
        parameters=request.parameters,
        plan=prompt.plan,
        base_fingerprint=prompt.base_fingerprint,
        assessment=prompt.assessment,
        token_confidence=TokenConfidence.of(prompt.release, prompt.scores) if request.token_details else None,
        max_new_tokens=sampling.max_new_tokens,
        prompt_ids=prompt.token_ids,
        prompt_gates=prompt.gates,
        explain=request.options.explain,
        integration=_integration(request),
    )


def _integration(request: GenerationRequest) -> IntegrationReport | None:
    """What is known from the beginning: not of answers that may not be given, nor where nothing is put together."""
    mode = request.options.integration
    if MODES[mode].composed is not None or request.speakers.weights is not None:
        return None
    return IntegrationReport(mode=mode)


def _sequence_request(
    record: RequestRecord, prompt: RoutedPrompt, sampling: SamplingParameters, request: GenerationRequest
) -> SequenceRequest:
    return SequenceRequest(
        request_id=record.id,
        prompt_ids=tuple(prompt.token_ids),
        sampling=sampling,
        plan=prompt.plan,
        prompt_logprobs=request.prompt_logprobs,
    )
