"""The routing log: written behind the requests' backs, in batches, and never at their cost.

A bounded queue stands between. What finds it full, or cannot be written, is dropped and counted in /metrics.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from numpy.typing import ArrayLike
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.router_service.assessment import Assessment
from services.router_service.metrics import Metrics
from services.router_service.schemas.generation import ExpertShare, IntegrationReport
from services.router_service.token_confidence import TokenConfidence
from services.router_service.token_log import TokenLog, encode_token_log
from services.router_service.transactions import Transactions, plain_text
from services.shared.database.rows import RequestRow
from services.shared.errors import AmoeError, Unavailable
from services.shared.packed_states import pack_states
from services.shared.schemas.sequences import RoutingPlan, SequenceTimings
from services.shared.telemetry import get_logger

log = get_logger(__name__)

_BATCH: Final = 64
_PAUSE_WHILE_DOWN_S: Final = 1.0
_FLUSH_S: Final = 5.0
_SETTLE_S: Final = 2.0


@dataclass
class RequestRecord:
    """What is remembered of one request; filled in as it goes on."""

    id: str
    endpoint: str
    prompt: str
    parameters: Mapping[str, Any]
    plan: RoutingPlan
    assessment: Assessment | None
    max_new_tokens: int
    prompt_ids: Sequence[int]
    prompt_gates: Callable[[], Sequence[Mapping[str, float]]]
    base_fingerprint: str | None = None
    """Of the base model that the plan is for; None where any will do."""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    token_ids: list[int] = field(default_factory=list)
    gates: list[Mapping[str, float]] = field(default_factory=list)
    token_confidence: TokenConfidence | None = None  # where confidence is told token by token
    confidences: list[float] = field(default_factory=list)
    generated_text: str = ""
    attribution: Sequence[ExpertShare] = ()
    effects_missing: str | None = None
    """Why the attribution has no effects although they were asked for."""
    explain: bool = False
    """Whether the answer tells its plan and its timings."""
    integration: IntegrationReport | None = None
    """How it was put together; None for one that was not given, or whose experts the request named."""
    finish_reason: str | None = None
    error: Mapping[str, Any] | None = None
    engine_timings: SequenceTimings | None = None
    timings: dict[str, float] = field(default_factory=dict)
    states: ArrayLike | None = None  # [D], kept whether prompts are or not
    prompt_nats: float | None = None
    base_nats: float | None = None


class RequestLog:
    """Takes records at once and writes them when it can."""

    def __init__(self, transactions: Transactions, metrics: Metrics, *, max_waiting: int, store_prompts: bool) -> None:
        self._transactions = transactions
        self._metrics = metrics
        self._store_prompts = store_prompts
        self._waiting: asyncio.Queue[RequestRecord] = asyncio.Queue(max_waiting)
        self._writing: Sequence[RequestRecord] = ()
        self._unsettled: dict[str, asyncio.Event] = {}

    def expect(self, request_id: str) -> None:
        """A request has begun whose record will come."""
        self._unsettled.setdefault(request_id, asyncio.Event())

    async def settled(self, request_id: str) -> None:
        """Wait until a request that began here is written or dropped, for two seconds at most.

        Who asks for the log of an answer just received finds it, though writing is not part of answering.
        """
        unsettled = self._unsettled.get(request_id)
        if unsettled is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(unsettled.wait(), _SETTLE_S)

    def remember(self, record: RequestRecord) -> None:
        """Put it in the queue, or drop it and count that; never waits."""
        self.expect(record.id)
        try:
            self._waiting.put_nowait(record)
        except asyncio.QueueFull:
            self._settle([record])
            self._metrics.log_dropped.labels("queue_full").inc()
        self._metrics.log_waiting.set(self._waiting.qsize())

    async def keep_writing(self) -> None:
        """Write what comes, for ever; while Postgres is down, hold on to it."""
        while True:
            self._writing = self._writing or await self._next_batch()
            if await self._write(self._writing):
                self._settle(self._writing)
                self._writing = ()
                self._metrics.log_waiting.set(self._waiting.qsize())
            else:
                await asyncio.sleep(_PAUSE_WHILE_DOWN_S)

    async def flush(self) -> None:
        """Write what is left, for five seconds at most; the rest is counted as dropped."""
        left = [*self._writing, *self._drain(self._waiting.qsize())]
        try:
            async with asyncio.timeout(_FLUSH_S):
                while left and await self._write(left[:_BATCH]):
                    left = left[_BATCH:]
        except TimeoutError:
            log.warning("routing logs not flushed in time", num_left=len(left))
        self._metrics.log_dropped.labels("shutdown").inc(len(left))
        if left:
            log.error("routing logs lost at shutdown", num_lost=len(left))

    def _settle(self, records: Sequence[RequestRecord]) -> None:
        for record in records:
            if (unsettled := self._unsettled.pop(record.id, None)) is not None:
                unsettled.set()

    async def _next_batch(self) -> list[RequestRecord]:
        first = await self._waiting.get()
        return [first, *self._drain(_BATCH - 1)]

    def _drain(self, at_most: int) -> list[RequestRecord]:
        return [self._waiting.get_nowait() for _ in range(min(at_most, self._waiting.qsize()))]

    async def _write(self, records: Sequence[RequestRecord]) -> bool:
        """True when there is nothing left to do about these; False when Postgres is down."""
        try:
            await self._transactions.run(write_records, records, store_prompts=self._store_prompts)
            self._metrics.log_written.inc(len(records))
        except Unavailable:
            return False
        except Exception as error:
            if len(records) > 1:
                return all([await self._write([record]) for record in records])
            self._metrics.log_dropped.labels("unwritable").inc()
            reason = error.message if isinstance(error, AmoeError) else type(error).__name__
            log.exception("routing log dropped", request=records[0].id, reason=reason)
        return True


def write_records(session: Session, records: Sequence[RequestRecord], *, store_prompts: bool) -> None:
    """One INSERT for all; those that are there already are left alone."""
    rows = [_row(record, store_prompts=store_prompts) for record in records]
    session.execute(insert(RequestRow).on_conflict_do_nothing(), rows)


def _row(record: RequestRecord, *, store_prompts: bool) -> dict[str, Any]:
    known = record.assessment
    engine = record.engine_timings.model_dump() if record.engine_timings else {}
    return {
        "id": record.id,
        "at": record.at,
        "endpoint": record.endpoint,
        "release": record.plan.release,
        "plan": _compact(record.plan).model_dump(mode="json"),
        "prompt": plain_text(record.prompt) if store_prompts else None,
        "generated_text": plain_text(record.generated_text) if store_prompts else None,
        "parameters": plain_text(record.parameters),
        "num_prompt_tokens": len(record.prompt_ids),
        "num_generated_tokens": len(record.token_ids),
        "confidence": known and known.confidence,
        "attribution": [part.model_dump(exclude={"token_effects"}) for part in record.attribution],
        "token_log": encode_token_log(_token_log(record, with_ids=store_prompts)),
        "finish_reason": record.finish_reason,
        "error": plain_text(record.error),
        "timings": {**engine, **record.timings},
        "flagged": known and known.gap,
        "domain": known and known.domain,
        "domain_probability": known and known.domain_probability,
        "states": pack_states(record.states) if record.states is not None else None,
        "prompt_nats": record.prompt_nats,
        "base_nats": record.base_nats,
    }


def _compact(plan: RoutingPlan) -> RoutingPlan:
    # The release names all its experts; a thousand of them in every row would be most of the table.
    named = tuple(expert for expert in plan.experts if expert.name in plan.candidates)
    return plan.model_copy(update={"experts": named})


def _token_log(record: RequestRecord, *, with_ids: bool) -> TokenLog:
    """Without ids, which are the text by other means, who spoke is still kept."""
    ids = (*record.prompt_ids, *record.token_ids)
    return TokenLog(
        num_prompt_tokens=len(record.prompt_ids),
        token_ids=ids if with_ids else (0,) * len(ids),
        gates=(*record.prompt_gates(), *record.gates),
    )
