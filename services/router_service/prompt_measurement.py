"""What is measured of prompts behind the requests' backs: their loss, and where they lie among the hidden states.

Every flagged request's record waits here until its prompt has been read under its plan and under the base model alone,
one prompt at a time; then it goes to the routing log. So do ordinary ones now and then: what flagged ones are compared
with. What finds the queue full, or cannot be read, is logged as it is.
"""

import asyncio
import time
from typing import Final

from services.router_service.admission import Admission
from services.router_service.dispatch import Dispatcher
from services.router_service.planning import plan_base
from services.router_service.request_log import RequestLog, RequestRecord
from services.shared.errors import AmoeError
from services.shared.schemas.sampling import SamplingParameters
from services.shared.schemas.sequences import FinishedEvent, RoutingPlan, SequenceRequest
from services.shared.telemetry import get_logger
from services.shared.vocabulary import FinishReason, PlanMode

log = get_logger(__name__)

_MAX_WAITING: Final = 256
_MAX_WAITING_FOR_ORDINARY: Final = 32
"""Behind more than these an ordinary prompt is not read."""
_BURST_S: Final = 30.0
"""Of ordinary prompts, the number of so many seconds may come at once: else the first gap analysis of a stack that has
been asked a few dozen questions in a row would have nothing to tell its flagged ones from."""
_READING_S: Final = 60.0


class PromptMeasurement:
    """Stands before the routing log; `keep_measuring` must run. A reading takes a free place or is left."""

    def __init__(
        self, request_log: RequestLog, dispatcher: Dispatcher, admission: Admission, *, ordinary_per_s: float
    ) -> None:
        self._request_log = request_log
        self._dispatcher = dispatcher
        self._admission = admission
        self._ordinary_per_s = ordinary_per_s
        self._burst = max(1.0, _BURST_S * ordinary_per_s)
        self._ordinary_left = self._burst
        self._counted_at = time.monotonic()
        self._waiting: asyncio.Queue[RequestRecord] = asyncio.Queue(_MAX_WAITING)
        self._measuring: RequestRecord | None = None

    def expect(self, request_id: str) -> None:
        """A request has begun whose record will come."""
        self._request_log.expect(request_id)

    def remember(self, record: RequestRecord) -> None:
        """Have it measured if it is its turn; remember it in any case. Never waits."""
        if self._waiting.full() or not self._is_wanted(record):
            self._request_log.remember(record)
            return
        self.expect(record.id)
        self._waiting.put_nowait(record)

    def _is_wanted(self, record: RequestRecord) -> bool:
        """Every flagged one; of ordinary ones so many a second, and none while many wait."""
        if record.assessment is None or record.assessment.gap is None or record.finish_reason == FinishReason.ERROR:
            return False
        if record.assessment.gap:
            return True
        return self._waiting.qsize() < _MAX_WAITING_FOR_ORDINARY and self._is_due()

    def _is_due(self) -> bool:
        """Whether an ordinary prompt is left in the bucket (a token bucket); it is taken out."""
        now = time.monotonic()
        refilled = self._ordinary_left + self._ordinary_per_s * (now - self._counted_at)
        self._ordinary_left, self._counted_at = min(refilled, self._burst), now
        if self._ordinary_per_s == 0.0 or self._ordinary_left < 1.0:
            return False
        self._ordinary_left -= 1.0
        return True

    async def keep_measuring(self) -> None:
        """Measure what comes, for ever; when stopped, what is left goes to the log as it is."""
        try:
            while True:
                self._measuring = await self._waiting.get()
                await self._measure(self._measuring)
                self._request_log.remember(self._measuring)
                self._measuring = None
        finally:
            left = [self._measuring] if self._measuring is not None else []
            for record in [*left, *(self._waiting.get_nowait() for _ in range(self._waiting.qsize()))]:
                self._request_log.remember(record)

    async def _measure(self, record: RequestRecord) -> None:
        try:
            async with asyncio.timeout(_READING_S):
                with self._admission.admitted():
                    base = await self._read(record, plan_base(record.plan.release), "base")
                    # A request that chose one expert, or the base, says nothing of the mixture.
                    is_mixed = record.plan.mode is PlanMode.ROUTED
                    mixture = await self._read(record, record.plan, "mixture") if is_mixed else None
        except (AmoeError, TimeoutError) as error:
            reason = error.message if isinstance(error, AmoeError) else f"it took more than {_READING_S:g} seconds"
            log.warning("prompt not measured", request=record.id, reason=reason)
            return
        except Exception:
            # Whatever it was, the next record must not wait for it for ever.
            log.exception("prompt not measured", request=record.id)
            return
        record.prompt_nats = _nats(mixture) if mixture is not None else None
        record.base_nats = _nats(base)
        record.states = base.prompt_states

    async def _read(self, record: RequestRecord, plan: RoutingPlan, name: str) -> FinishedEvent:
        assert record.assessment is not None
        request = SequenceRequest(
            request_id=f"{record.id}-{name}"[-128:],
            prompt_ids=tuple(record.prompt_ids),
            sampling=SamplingParameters(max_new_tokens=1),
            plan=plan,
            prompt_logprobs=True,
            prompt_states=True,
            states_layer=record.assessment.states_layer,
        )
        deadline = asyncio.get_running_loop().time() + _READING_S
        _, finished = await self._dispatcher.read(request, base_fingerprint=record.base_fingerprint, deadline=deadline)
        return finished


def _nats(finished: FinishedEvent) -> float | None:
    """Mean -log p of the prompt's tokens but the first; None for a prompt of one token."""
    known = [logprob for logprob in finished.prompt_logprobs or () if logprob is not None]
    return -sum(known) / len(known) if known else None
