"""A teacher on loopback: a real server that answers as it is told, and keeps what it was asked."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

Respond = Callable[[BaseHTTPRequestHandler], None]


class Endpoint(ThreadingHTTPServer):
    """Responds to the nth request as the nth of `responses` does, and to later ones as the last; keeps what came."""

    daemon_threads = True

    def __init__(self, *responses: Respond) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.is_over = Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.requests.append((self.path, dict(self.headers), body))
                responses[min(len(endpoint.requests), len(responses)) - 1](self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def serving(*responses: Respond) -> Iterator[Endpoint]:
    endpoint = Endpoint(*responses)
    thread = Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.is_over.set()
        endpoint.shutdown()
        thread.join()
        endpoint.server_close()


def status(code: int, **headers: str) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return respond


def body(content: bytes) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return respond


def answer(text: str) -> Respond:
    return body(json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, so that no single read is slow."""
    handler.send_response(200)
    handler.end_headers()
    endpoint = handler.server
    assert isinstance(endpoint, Endpoint)
    try:
        while not endpoint.is_over.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()
    except OSError:  # the client has hung up
        pass
