"""From the engine's thread to HTTP: one wake-up of the event loop per step, one queue per stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final
from weakref import WeakKeyDictionary

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.expert_service.answers import Delivery, Event
from services.expert_service.engine import Engine
from services.expert_service.sequence import Sequence
from services.shared.schemas.sequences import ErrorEvent, FinishedEvent

NDJSON: Final = "application/x-ndjson"


class Streams:
    """The open streams of one event loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: WeakKeyDictionary[Sequence, asyncio.Queue[list[Event]]] = WeakKeyDictionary()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on events go to this loop."""
        self._loop = loop

    @property
    def open_sequences(self) -> list[Sequence]:
        """Those whose events somebody reads. Event loop only."""
        return list(self._queues)

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Called by the engine after a step; hands all events over at once."""
        if deliveries and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._distribute, deliveries)

    def open(self, sequence: Sequence) -> None:
        """Listen for a sequence's events; before it is submitted."""
        self._queues[sequence] = asyncio.Queue()

    def close(self, sequence: Sequence) -> None:
        """Forget a sequence."""
        self._queues.pop(sequence, None)

    async def lines(self, sequence: Sequence) -> AsyncIterator[bytes]:
        """A sequence's events as JSON lines, until it ends."""
        queue = self._queues[sequence]
        while True:
            events = await queue.get()
            yield b"".join(event.model_dump_json().encode() + b"\n" for event in events)
            if isinstance(events[-1], FinishedEvent | ErrorEvent):
                return

    def _distribute(self, deliveries: list[Delivery]) -> None:
        for sequence, events in deliveries:
            queue = self._queues.get(sequence)
            if queue is not None:
                queue.put_nowait(events)


class SequenceResponse(StreamingResponse):
    """The stream of one sequence; however it ends, also before its first line, a client that is gone holds no place."""

    def __init__(self, sequence: Sequence, streams: Streams, engine: Engine) -> None:
        super().__init__(streams.lines(sequence), media_type=NDJSON)
        self._sequence = sequence
        self._streams = streams
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.close(self._sequence)
            if self._sequence.finish_reason is None:
                self._engine.cancel(self._sequence)
