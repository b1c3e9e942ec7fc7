"""Sends a whole request to one replica; elsewhere, or once more, only while no token has been sent."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Final, TypeVar

from services.router_service.expert_client import ConnectionBroken, ReplicaDown
from services.router_service.metrics import Metrics
from services.router_service.replica import Replica
from services.router_service.replicas import Replicas
from services.shared.errors import AmoeError, ExpertServiceFailed, Overloaded, Unavailable
from services.shared.schemas.sequences import ErrorEvent, FinishedEvent, SequenceEvent, SequenceRequest, TokenEvent
from services.shared.telemetry import get_logger
from services.shared.vocabulary import FinishReason

log = get_logger(__name__)

Result = TypeVar("Result")

_ROUNDS: Final = 2
"""Times that every replica is tried before a request is given up."""
_PAUSE_S: Final = 0.2
_WORTH_ANOTHER: Final = (ReplicaDown, ConnectionBroken, Overloaded, Unavailable)


class OpenSequence:
    """A sequence whose first event is there. Iterate over the events, close it in any case: that cancels the rest."""

    def __init__(
        self, replica: Replica, resources: AsyncExitStack, first: SequenceEvent, rest: AsyncIterator[SequenceEvent]
    ) -> None:
        self._replica = replica
        self._resources = resources
        self._first: SequenceEvent | None = first
        self._rest = rest
        self.is_open = True

    async def events(self, deadline: float) -> AsyncIterator[SequenceEvent]:
        """The events, the last one a FinishedEvent; raises when the replica breaks off or `deadline` passes."""
        event = self._first
        while event is not None:
            if isinstance(event, ErrorEvent):
                raise ExpertServiceFailed(event.message, code=event.code)
            if isinstance(event, FinishedEvent):
                yield _with_proper_end(event)
                return
            yield event
            event = await _by(deadline, self._replica, anext(self._rest, None))
        raise ConnectionBroken("The expert service broke off in the middle: send the request again.")

    async def close(self) -> None:
        """Hang up; the replica drops the sequence if it is not done."""
        self.is_open = False
        await self._resources.aclose()


class Dispatcher:
    """Chooses replicas and opens sequences on them."""

    def __init__(self, replicas: Replicas, metrics: Metrics) -> None:
        self._replicas = replicas
        self._metrics = metrics

    async def open(self, request: SequenceRequest, *, base_fingerprint: str | None, deadline: float) -> OpenSequence:
        """A sequence that has begun: refusals and dead replicas show here, before anything is answered."""
        last: AmoeError | None = None
        for attempt in range(_ROUNDS):
            for replica in self._replicas.ranked(request.plan, base_fingerprint):
                try:
                    return await self._open_on(replica, request, deadline)
                except _WORTH_ANOTHER as error:
                    log.warning("replica could not take it", replica=replica.id, reason=error.message)
                    self._metrics.passed_on.labels(error.error_code).inc()
                    if isinstance(error, ReplicaDown):
                        # The next look may find it up again; until then it is everybody's last choice.
                        replica.is_up = False
                    last = _graver(last, error)
            if isinstance(last, Overloaded):
                break
            if attempt + 1 < _ROUNDS:
                await asyncio.sleep(_PAUSE_S)
        assert last is not None
        raise last

    async def read(
        self, request: SequenceRequest, *, base_fingerprint: str | None, deadline: float
    ) -> tuple[list[TokenEvent], FinishedEvent]:
        """A whole sequence at once, for what it says of its prompt; no log keeps it."""
        tokens: list[TokenEvent] = []
        sequence = await self.open(request, base_fingerprint=base_fingerprint, deadline=deadline)
        try:
            async for event in sequence.events(deadline):
                if isinstance(event, FinishedEvent):
                    return tokens, event
                if isinstance(event, TokenEvent):
                    tokens.append(event)
        finally:
            await sequence.close()
        raise ExpertServiceFailed("The expert service ended a text without a word: send the request again.")

    async def _open_on(self, replica: Replica, request: SequenceRequest, deadline: float) -> OpenSequence:
        async with AsyncExitStack() as stack:
            stack.enter_context(replica.occupied(request.plan))
            opening = stack.enter_async_context(replica.client.sequence(request))
            events = await _by(deadline, replica, opening)
            first = await _by(deadline, replica, anext(events, None))
            if first is None:
                raise ConnectionBroken("The expert service closed the connection at once: send the request again.")
            if isinstance(first, ErrorEvent):
                raise ConnectionBroken(first.message, code=first.code)
            return OpenSequence(replica, stack.pop_all(), first, events)
        raise AssertionError("unreachable")


async def _by(deadline: float, replica: Replica, step: Awaitable[Result]) -> Result:
    """The result of `step`; raises when the deadline passes or the replica is given up before it is there."""
    try:
        async with asyncio.timeout_at(deadline) as limit:
            with replica.awaited(limit):
                return await step
    except TimeoutError:
        if replica.is_lost:
            raise ConnectionBroken("The expert service fell silent: send the request again.") from None
        raise ExpertServiceFailed(
            "The answer took longer than request_timeout_s: ask for fewer tokens, or try again.", code="timed_out"
        ) from None


def _with_proper_end(event: FinishedEvent) -> FinishedEvent:
    if event.finish_reason in (FinishReason.ERROR, FinishReason.CANCELLED):
        raise ExpertServiceFailed("The expert service gave the sequence up: send the request again.")
    return event


def _graver(before: AmoeError | None, now: AmoeError) -> AmoeError:
    # When one replica is full and another is down, waiting for the full one is the better advice.
    return before if isinstance(before, Overloaded) else now
