"""One answer in the making: its events, what is remembered of it, and the end in every case."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from services.router_service.ablation import Ablation
from services.router_service.answer_reading import WrittenAnswer
from services.router_service.attribution import attribute
from services.router_service.dispatch import OpenSequence
from services.router_service.metrics import Metrics
from services.router_service.prompt_measurement import PromptMeasurement
from services.router_service.request_log import RequestRecord
from services.router_service.schemas.generation import Plan, Routing
from services.shared.errors import AmoeError
from services.shared.schemas.sequences import FinishedEvent, TokenEvent
from services.shared.telemetry import get_logger
from services.shared.vocabulary import BASE, FinishReason, PlanMode

log = get_logger(__name__)

_WRITERS: Final = {PlanMode.ROUTED: "mixture", PlanMode.FIXED: "expert", PlanMode.BASE: BASE}


@dataclass(frozen=True)
class RequestClock:
    """When a request came (performance counter) and when it must be done (event loop time)."""

    started_at: float
    deadline: float

    @property
    def elapsed_s(self) -> float:
        """Seconds since it came."""
        return time.perf_counter() - self.started_at


class Generation:
    """A sequence that has begun. Read its tokens, then `finished`; close it in any case, which cancels what is left."""

    def __init__(
        self,
        *,
        sequence: OpenSequence,
        record: RequestRecord,
        records: PromptMeasurement,
        metrics: Metrics,
        clock: RequestClock,
        ablation: Ablation | None = None,
    ) -> None:
        self.record = record
        self.finished: FinishedEvent | None = None
        self._sequence = sequence
        self._records = records
        self._metrics = metrics
        self._clock = clock
        self._ablation = ablation
        records.expect(record.id)

    async def tokens(self) -> AsyncIterator[TokenEvent]:
        """The generated tokens as they come; afterwards `finished` is set. Raises when the replica breaks off."""
        try:
            async for event in self._sequence.events(self._clock.deadline):
                if isinstance(event, TokenEvent):
                    self._note(event)
                    yield event
                elif isinstance(event, FinishedEvent):
                    self._finish(event)
        except AmoeError as error:
            self._note_failure(error)
            raise

    async def measure(self) -> None:
        """Put the experts' effects into the attribution, if they were asked for. Only once it is finished.

        Where replicas cannot read it, the answer is told as it is, with the reason instead of effects.
        """
        if self._ablation is None:
            return
        began = time.perf_counter()
        try:
            self.record.attribution = await self._ablation.measured(
                self.written(), self.record.plan, self.record.attribution
            )
        except AmoeError as error:
            self.record.effects_missing = error.message
            log.warning("effects not measured", request=self.record.id, reason=error.message)
        self.record.timings["attribution_ms"] = round(1000 * (time.perf_counter() - began), 3)

    def written(self) -> WrittenAnswer:
        """The answer as it stands, to be read again."""
        return WrittenAnswer(
            request_id=self.record.id,
            prompt_ids=self.record.prompt_ids,
            token_ids=self.record.token_ids,
            base_fingerprint=self.record.base_fingerprint,
            deadline=self._clock.deadline,
        )

    def routing(self) -> Routing:
        """Who wrote the answer, as the API tells it."""
        known = self.record.assessment
        return Routing(
            request_id=self.record.id,
            release=self.record.plan.release,
            confidence=known and known.confidence,
            domain=known and known.domain,
            domain_probability=known and known.domain_probability,
            gap=known and known.gap,
            attribution=list(self.record.attribution),
            effects_missing=self.record.effects_missing,
            integration=self.record.integration,
            plan=Plan.of(self.record.plan) if self.record.explain else None,
            timings=self._timings() if self.record.explain else None,
        )

    async def close(self) -> None:
        """Hang up and remember what happened. The second time does nothing."""
        if self._sequence.is_open:
            self._conclude()
            await self._sequence.close()

    def _note(self, event: TokenEvent) -> None:
        if not self.record.token_ids:
            seconds = self._clock.elapsed_s
            self._metrics.first_token_seconds.observe(seconds)
            self.record.timings["first_token_ms"] = round(1000 * seconds, 3)
        self._metrics.experts_per_token.observe(sum(1 for name in event.gates if name != BASE))
        self._note_confidence(event)
        self.record.token_ids.append(event.id)
        self.record.gates.append(event.gates)
        self.record.generated_text += event.text

    def confidence_before(self, event: TokenEvent) -> float | None:
        """Of a token that was told; None where nobody asked for its details, or no calibration tells."""
        confidences = self.record.confidences
        return confidences[event.index] if event.index < len(confidences) else None

    def _note_confidence(self, event: TokenEvent) -> None:
        if (known := self.record.token_confidence) is not None:
            self.record.confidences.append(known.confidence)
            known.advance([event.id])

    def _finish(self, event: FinishedEvent) -> None:
        self.finished = event
        self.record.generated_text = event.generated_text
        self.record.finish_reason = event.finish_reason
        self.record.engine_timings = event.timings
        self.record.attribution = attribute(self.record.gates)

    def _note_failure(self, error: AmoeError) -> None:
        self.record.finish_reason = FinishReason.ERROR
        self.record.error = error.body()["error"]

    def _timings(self) -> dict[str, float]:
        """Up to now, in milliseconds."""
        engine = self.record.engine_timings.model_dump() if self.record.engine_timings else {}
        return {**engine, **self.record.timings, "total_ms": round(1000 * self._clock.elapsed_s, 3)}

    def _observe_tokens(self, seconds: float) -> None:
        """How long it waited and how fast it came, as far as it got."""
        if self.finished is not None:
            self._metrics.queue_seconds.observe(self.finished.timings.queue_ms / 1000)
        num_later = len(self.record.token_ids) - 1
        if num_later > 0:
            first_s = self.record.timings["first_token_ms"] / 1000
            self._metrics.output_token_seconds.observe((seconds - first_s) / num_later)

    def _conclude(self) -> None:
        record = self.record
        if record.finish_reason is None:
            record.finish_reason = FinishReason.CANCELLED
        if self.finished is None:
            record.attribution = attribute(record.gates)
        seconds = self._clock.elapsed_s
        record.timings["total_ms"] = round(1000 * seconds, 3)
        self._metrics.request_seconds.observe(seconds)
        self._observe_tokens(seconds)
        self._metrics.requests.labels(record.endpoint, record.finish_reason).inc()
        if record.integration is not None:
            self._metrics.integrations.labels(record.integration.mode, _WRITERS[record.plan.mode]).inc()
        if record.assessment is not None and record.assessment.gap is not None:
            self._metrics.prompts_assessed.labels(str(record.assessment.gap).lower()).inc()
        self._metrics.count_tokens(
            num_prompt=len(record.prompt_ids), num_generated=len(record.token_ids), attribution=record.attribution
        )
        self._records.remember(record)
