"""Clients that open a stream and read nothing, read slowly, or go away: none of them keeps a place."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from services.router_service.http_protocol import BoundedHttpProtocol
from services.router_service.main import build_app
from services.shared.config import Settings
from tests.integration.router_service.replica_double import ReplicaDouble
from tests.integration.router_service.running import served
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

NUM_TOKENS = 2000
BODY = {"inputs": "12 + 5", "parameters": {"max_new_tokens": NUM_TOKENS, "details": True}}
SHORT = {"inputs": "12 + 5", "parameters": {"max_new_tokens": 4}}

STEADY_BYTES_S = 100_000
"""Some half a second for the transport's buffer, some seconds for the whole answer."""


class Impatient(BoundedHttpProtocol):
    """Hangs up on a slow reader after two seconds."""

    slow_reader_s = 2.0


@pytest.fixture
def double(tokenizer: Any, storage: Any) -> ReplicaDouble:
    """Its answers are some hundred kilobytes long."""
    return ReplicaDouble(tokenizer, storage, max_context=8192, answer="one two three four " * NUM_TOKENS)


@pytest.fixture
def router_settings() -> dict[str, Any]:
    """One place: who holds it is felt at once."""
    return {"max_concurrent_requests": 1}


@pytest.fixture
def router_url(app_settings: Settings, sessions: object) -> Iterator[str]:
    """The router service with little room for bytes on their way."""
    with served(build_app(app_settings), protocol=Impatient, send_buffer_bytes=4096) as url:
        yield url


@contextmanager
def opened_stream(url: str, *, receive_buffer_bytes: int = 4096) -> Iterator[socket.socket]:
    """A raw connection on which a stream was asked for and nothing has been read."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(BODY).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        connection.settimeout(30)
        connection.connect((host, int(port)))
        head = "POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        connection.sendall(head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content)
        yield connection


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side ends."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def in_flight(client: httpx.Client) -> int:
    line = next(
        line for line in client.get("/metrics").text.splitlines() if line.startswith("amoe_requests_in_flight ")
    )
    return int(float(line.split()[1]))


def test_who_reads_nothing_is_hung_up_on_and_its_place_is_free(client: httpx.Client, router_url: str) -> None:
    with opened_stream(router_url) as connection:
        wait_until(lambda: in_flight(client) == 1)
        assert client.post("/generate", json=SHORT).status_code == 429

        wait_until(lambda: in_flight(client) == 0)

        assert client.post("/generate", json=SHORT).status_code == 200
        received = everything(connection)
    assert b"generated_text" in received, "it was an answer"
    assert b'"finish_reason"' not in received, "but not a whole one"
    assert not received.endswith(b"0\r\n\r\n"), "and it does not look like one"
    wait_until(lambda: any(logged["finish_reason"] == "cancelled" for logged in client.get("/requests").json()["data"]))


def test_who_reads_slowly_but_steadily_gets_the_whole_answer(client: httpx.Client, router_url: str) -> None:
    received = b""
    # Room enough in the window that loopback's probes of a closed one do not set the pace.
    with opened_stream(router_url, receive_buffer_bytes=32768) as connection:
        began = time.monotonic()
        while chunk := connection.recv(8192):
            received += chunk
            time.sleep(max(0.0, began + len(received) / STEADY_BYTES_S - time.monotonic()))
    assert time.monotonic() - began > Impatient.slow_reader_s, "slower than the limit for one buffer"

    events = [json.loads(line[5:]) for line in received.split(b"\n") if line.startswith(b"data:")]
    assert events[-1]["details"]["generated_tokens"] == NUM_TOKENS
    assert [event["index"] for event in events] == list(range(1, NUM_TOKENS + 1))


def test_who_vanishes_while_others_wait_frees_the_place_at_once(
    client: httpx.Client, router_url: str, double: ReplicaDouble
) -> None:
    double.pause_s = 0.05
    with opened_stream(router_url) as connection:
        wait_until(lambda: in_flight(client) == 1)
        # A reset, as from a process that was killed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    assert wait_until(lambda: in_flight(client) == 0) < Impatient.slow_reader_s
    wait_until(lambda: double.num_open == 0)
    assert double.num_cancelled == 1
