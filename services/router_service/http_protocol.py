"""uvicorn's fast HTTP protocol with limits that it has not got itself: on headers, unread bodies and slow readers."""

from asyncio import TimerHandle
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_UNREAD_BYTES: Final = 8 * 1024**2


class BoundedHttpProtocol(HttpToolsProtocol):
    """Hangs up on clients that would hold a place for nothing.

    400 when a request's line and headers are longer than 64 KiB and still not complete. A client that leaves what was
    sent to it unread is hung up on after `slow_reader_s`: its answer is cancelled as if it had gone. Until then no more
    is kept for it than the 64 KiB that the transport buffers; beyond that the stream waits. A body that goes on after
    its request was answered is thrown away, and after 8 MiB of that the connection is closed.
    """

    slow_reader_s = 30.0
    """Time to read some 48 KiB, from the buffer's upper mark to its lower one: 1.6 KB/s is fast enough."""

    _hang_up: TimerHandle | None = None
    _num_head_bytes = 0
    _num_unread_bytes = 0
    _in_head = True

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._num_head_bytes, self._num_unread_bytes = True, 0, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its headers are whole."""
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body. The client has its answer when it comes too late, and time to read it."""
        if self.cycle.response_complete:
            self._num_unread_bytes += len(body)
            if self._num_unread_bytes > MAX_UNREAD_BYTES and not self.transport.is_closing():
                self.transport.close()
        super().on_body(body)

    def pause_writing(self) -> None:
        """The client does not keep up: from now on it has `slow_reader_s` to read."""
        super().pause_writing()
        self._hang_up = self.loop.call_later(self.slow_reader_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It did."""
        self._keep()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone, or was hung up on."""
        self._keep()
        super().connection_lost(exc)

    def _keep(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        super().data_received(data)
        if self._in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's headers are too long.")
