"""Requests that ask for too much: refused in milliseconds, while others go on."""

import itertools
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.router_service.replica_double import ReplicaDouble

pytestmark = pytest.mark.integration

PATHS = {
    "/generate": lambda fields: {"inputs": "12 + 5", "parameters": fields},
    "/v1/completions": lambda fields: {"prompt": "12 + 5", **fields},
    "/v1/chat/completions": lambda fields: {"messages": [{"role": "user", "content": "12 + 5"}], **fields},
}
TOO_MUCH: dict[str, dict[str, Any]] = {
    "n": {"n": 100_000},
    "best_of": {"best_of": 100_000, "do_sample": True},
    "many stop strings": {"stop": ["x"] * 100_000},
    "a long stop string": {"stop": ["x" * 500_000]},
    "logit_bias": {"logit_bias": {str(number): 1 for number in range(70_000)}},
    "new tokens": {"max_new_tokens": 10**9, "max_tokens": 10**9},
    "messages": {"messages": [{"role": "user", "content": "x"}] * 150_000},
    "prompts": {"prompt": ["x"] * 500_000},
    "token ids": {"prompt": [5] * 500_000},
    "text": {"inputs": "x" * 1_500_000, "prompt": "x" * 1_500_000},
}


@contextmanager
def watched_stream(router_url: str, double: ReplicaDouble) -> Iterator[list[float]]:
    """A stream that runs meanwhile; the pauses between its tokens, in seconds, are there at the end."""
    double.answer, double.pause_s = "one two three four five six seven eight " * 4, 0.02
    pauses: list[float] = []
    stop = threading.Event()

    def read() -> None:
        with httpx.Client(base_url=router_url, timeout=30) as client:
            while not stop.is_set():
                with client.stream("POST", "/generate_stream", json={"inputs": "12"}) as response:
                    arrivals = [time.monotonic() for line in response.iter_lines() if line.startswith("data:")]
                pauses.extend(later - earlier for earlier, later in itertools.pairwise(arrivals))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield pauses
    finally:
        stop.set()
        thread.join()


class TestTooMuch:
    def test_is_refused_quickly_and_streams_go_on(
        self, three_experts: str, router_url: str, client: httpx.Client, double: ReplicaDouble, subtests: Any
    ) -> None:
        client.post("/generate", json={"inputs": "12"})
        with watched_stream(router_url, double) as pauses:
            for path, body_of in PATHS.items():
                for name, fields in TOO_MUCH.items():
                    content = json.dumps(body_of(fields)).encode()
                    with subtests.test(f"{path} {name}"):
                        response = client.post(path, content=content, headers={"content-type": "application/json"})

                        assert 400 <= response.status_code < 500, response.text
                        assert len(response.content) < 1000
                        assert response.elapsed.total_seconds() < 2.0

        assert len(pauses) > 20
        assert statistics.median(pauses) < 0.25
        assert max(pauses) < 10.0, "client, router and replica share one process: its pauses are theirs as well"

    def test_a_deep_body_is_refused_by_its_depth(self, client: httpx.Client) -> None:
        for content in (b'{"inputs":' + b"[" * 100_000, b'{"inputs":' + b"[" * 70 + b"]" * 70 + b"}"):
            response = client.post("/generate", content=content, headers={"content-type": "application/json"})

            assert response.status_code == 400
            assert "64 levels" in response.json()["error"]["message"]


class TestHugeBodies:
    @pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
    def test_are_refused_at_once_and_not_read_to_the_end(
        self, router_url: str, client: httpx.Client, declared: bool
    ) -> None:
        client.get("/live")
        before = psutil.Process().memory_info().rss
        length = 100 * 1024**2
        head = f"content-length: {length}" if declared else "transfer-encoding: chunked"
        block = b"x" * 65_536 if declared else b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        host, port = router_url.removeprefix("http://").split(":")

        with socket.create_connection((host, int(port)), timeout=20) as connection:
            request = f"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{head}\r\n\r\n"
            connection.sendall(request.encode())
            answer, num_sent = b"", 0
            try:
                while num_sent < length:
                    connection.sendall(block)
                    num_sent += len(block)
            except OSError:
                pass
            answer = connection.recv(65_536)

        assert b" 413 " in answer.splitlines()[0]
        assert num_sent < length
        assert client.get("/live").status_code == 200
        assert psutil.Process().memory_info().rss - before < 50 * 1024**2

    def test_a_refused_body_leaves_the_connection_usable_when_it_is_short(self, client: httpx.Client) -> None:
        content = b"x" * (7 * 1024**2)

        for _ in range(3):
            response = client.post("/generate", content=content, headers={"content-type": "application/json"})
            assert response.status_code == 413
        assert client.get("/live").status_code == 200


class TestUnknownNames:
    def test_many_leave_memory_flat(self, three_experts: str, client: httpx.Client) -> None:
        def ask(number: int) -> None:
            model = f"double:nobody-{number}-{'x' * 400}"
            assert client.post("/v1/completions", json={"model": model, "prompt": "x"}).status_code == 404

        for number in range(200):
            ask(number)
        before = psutil.Process().memory_info().rss
        for number in range(200, 1200):
            ask(number)

        assert psutil.Process().memory_info().rss - before < 20 * 1024**2
