"""Server-sent events: their bytes, and a response that always closes what it reads from."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Without the second, nginx would keep events until its buffer is full."""

_CLOSE_S: Final = 5.0


def sse_event(data: str, *, event_id: int | None = None) -> bytes:
    """One event with one line of data."""
    prefix = f"id: {event_id}\n" if event_id is not None else ""
    return f"{prefix}data: {data}\n\n".encode()


SSE_KEEP_ALIVE: Final = b": still here\n\n"
"""A comment: ignored by clients, noticed by proxies."""


class EventStreamResponse(StreamingResponse):
    """Sends events; `close` runs at the end whatever that is: done, failed, or the client gone."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        status_code: int = 200,  # FastAPI reads the default from here
        *,
        close: Callable[[], Awaitable[None]],
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(events, status_code, headers={**HEADERS, **(headers or {})})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await self._close()
