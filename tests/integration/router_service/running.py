"""Applications on real sockets, in threads of this process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from services.router_service.http_protocol import BoundedHttpProtocol
from services.shared.web import KEEP_ALIVE_S

START_S = 60.0


@contextmanager
def served(
    app: FastAPI,
    *,
    port: int = 0,
    protocol: type[BoundedHttpProtocol] = BoundedHttpProtocol,
    send_buffer_bytes: int | None = None,
) -> Iterator[str]:
    """Serve `app` until the end of the block; yields its address. A small send buffer shows slow readers early."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(
        app,
        http=protocol,
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started:
        assert thread.is_alive(), "the application did not start"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
