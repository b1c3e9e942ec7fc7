"""A request's trip: tokenise, score, plan, dispatch. What comes back is read from the Generation."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from services.router_service.admission import Admission
from services.router_service.catalog import Catalog, Snapshot
from services.router_service.dispatch import Dispatcher, OpenSequence
from services.router_service.generation import Generation, RequestClock
from services.router_service.metrics import Metrics
from services.router_service.planning import choose_candidates, confidence_of, plan_base, plan_fixed
from services.router_service.replicas import Replicas
from services.router_service.request_log import RequestLog, RequestRecord
from services.router_service.schemas.generation import GenerateParameters, GenerateRequest
from services.router_service.scoring import PromptReader, PromptScores, routed_plan
from services.shared.config import RouterServiceSettings
from services.shared.errors import AmoeError, InvalidRequest, PromptTooLong
from services.shared.schemas.sampling import SamplingParameters
from services.shared.schemas.sequences import RoutingPlan, SequenceRequest
from services.shared.vocabulary import BASE, FinishReason


@dataclass(frozen=True)
class RoutedPrompt:
    """A prompt with its plan. `scores` and `confidence` are there when a release decides."""

    token_ids: list[int]
    plan: RoutingPlan
    base_fingerprint: str | None
    scores: PromptScores | None = None
    confidence: float | None = None

    def gates(self) -> Sequence[Mapping[str, float]]:
        """The gate's weights after each prompt token."""
        if self.scores is not None:
            return self.scores.weights(self.plan.candidates)
        left = 1.0 - sum(self.plan.weights.values())
        fixed = {**self.plan.weights, **({BASE: left} if left > 0.0 else {})}
        return [fixed] * len(self.token_ids)


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
        self._dispatcher = Dispatcher(replicas)
        self._request_log = request_log
        self._metrics = metrics
        self._settings = settings
        self._admission = Admission(settings.max_concurrent_requests, metrics)

    async def begin(self, request: GenerateRequest, *, request_id: str, endpoint: str) -> Generation:
        """The answer to `request`, its first token already here; every refusal is raised before that."""
        try:
            with ExitStack() as place:
                place.enter_context(self._admission.admitted())
                return await self._begin(request, place, request_id=request_id, endpoint=endpoint)
        except AmoeError as error:
            self._metrics.requests.labels(endpoint, error.error_code).inc()
            raise

    async def _begin(self, request: GenerateRequest, place: ExitStack, *, request_id: str, endpoint: str) -> Generation:
        deadline = asyncio.get_running_loop().time() + self._settings.request_timeout_s
        clock = RequestClock(started_at=time.perf_counter(), deadline=deadline)
        prompt = await self.route(request.inputs, request.parameters)
        sampling = self._sampling(request.parameters, num_prompt_tokens=len(prompt.token_ids))
        self._metrics.planning_seconds.observe(clock.elapsed_s)
        record = _record(request, prompt, request_id=request_id, endpoint=endpoint, sampling=sampling)
        sequence_request = SequenceRequest(
            request_id=request_id,
            prompt_ids=tuple(prompt.token_ids),
            sampling=sampling,
            plan=prompt.plan,
            prompt_logprobs=request.parameters.decoder_input_details,
        )
        sequence = await self._open(sequence_request, prompt, record, deadline)
        return Generation(
            sequence=sequence,
            record=record,
            request_log=self._request_log,
            metrics=self._metrics,
            place=place.pop_all(),
            clock=clock,
        )

    async def _open(
        self, request: SequenceRequest, prompt: RoutedPrompt, record: RequestRecord, deadline: float
    ) -> OpenSequence:
        """The sequence on a replica; one that no replica begins is remembered with the reason."""
        try:
            return await self._dispatcher.open(request, base_fingerprint=prompt.base_fingerprint, deadline=deadline)
        except AmoeError as error:
            record.finish_reason = FinishReason.ERROR
            record.error = error.body()["error"]
            self._request_log.remember(record)
            raise

    async def route(self, text: str, parameters: GenerateParameters) -> RoutedPrompt:
        """Tokens, scores and plan of a prompt, without generating."""
        unsupported = parameters.unsupported()
        if unsupported is not None:
            raise InvalidRequest(
                f"{unsupported[:80]} is not supported here: leave it out.",
                param=f"parameters.{unsupported[:80]}",
                code="unsupported_parameter",
            )
        snapshot = self._catalog.current()
        fixed = parameters.fixed_experts()
        plan = plan_fixed(fixed, snapshot.registered, release=_release_id(snapshot)) if fixed else None
        token_ids = await self._reader.tokenise(text, truncate=parameters.truncate)
        if plan is not None:
            return RoutedPrompt(token_ids, plan, base_fingerprint=None)
        if snapshot.release is None or not snapshot.release.experts:
            return RoutedPrompt(token_ids, plan_base(_release_id(snapshot)), base_fingerprint=None)
        self._check_length(len(token_ids), num_new=1)
        scores = await self._reader.score(snapshot.release, token_ids)
        candidates = choose_candidates(scores.columns, scores.scores_TC, self._max_candidates())
        return RoutedPrompt(
            token_ids=token_ids,
            plan=routed_plan(snapshot.release, candidates=candidates),
            base_fingerprint=snapshot.release.base_fingerprint,
            scores=scores,
            confidence=confidence_of(scores.scores_TC),
        )

    def _max_candidates(self) -> int:
        return min(self._settings.max_candidates, self._replicas.num_slots or self._settings.max_candidates)

    def _sampling(self, parameters: GenerateParameters, *, num_prompt_tokens: int) -> SamplingParameters:
        return SamplingParameters(
            max_new_tokens=self._num_new_tokens(parameters, num_prompt_tokens),
            do_sample=parameters.samples,
            temperature=1.0 if parameters.temperature is None else parameters.temperature,
            top_k=parameters.top_k,
            top_p=parameters.top_p,
            repetition_penalty=parameters.repetition_penalty,
            seed=parameters.seed,
            stop=parameters.stop,
            ignore_eos_token=parameters.ignore_eos_token,
        )

    def _num_new_tokens(self, parameters: GenerateParameters, num_prompt_tokens: int) -> int:
        """As many as asked for; when nobody asked, the default or what the context leaves."""
        asked = parameters.max_new_tokens
        self._check_length(num_prompt_tokens, num_new=asked or 1)
        if asked is not None:
            return asked
        left = (self._max_context() or 2**31) - num_prompt_tokens
        return min(self._settings.default_max_new_tokens, left)

    def _check_length(self, num_prompt_tokens: int, *, num_new: int) -> None:
        max_context = self._max_context()
        if max_context is not None and num_prompt_tokens + num_new > max_context:
            raise PromptTooLong(
                f"The prompt has {num_prompt_tokens} tokens, but with max_new_tokens {num_new} at most "
                f"{max(0, max_context - num_new)} fit the base model's context of {max_context}: "
                "shorten it, ask for fewer new tokens, or set truncate.",
                param="inputs",
            )

    def _max_context(self) -> int | None:
        """The replicas' word counts; before any of them has spoken, the base model's configuration."""
        base = self._replicas.base
        return base.max_context if base is not None else self._reader.tokenizer.max_context


def _release_id(snapshot: Snapshot) -> str | None:
    return snapshot.release.id if snapshot.release else None


def _record(
    request: GenerateRequest, prompt: RoutedPrompt, *, request_id: str, endpoint: str, sampling: SamplingParameters
) -> RequestRecord:
    return RequestRecord(
        id=request_id,
        endpoint=endpoint,
        prompt=request.inputs,
        parameters=request.parameters.model_dump(mode="json", exclude_unset=True),
        plan=prompt.plan,
        confidence=prompt.confidence,
        max_new_tokens=sampling.max_new_tokens,
        prompt_ids=prompt.token_ids,
        prompt_gates=prompt.gates,
    )
