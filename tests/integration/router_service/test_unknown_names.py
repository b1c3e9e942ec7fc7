"""Names that nobody knows leave no trace in the router service's memory."""

import gc
import tracemalloc

import httpx
import pytest

pytestmark = pytest.mark.integration

NUM_WARM, NUM_COUNTED = 200, 2000
MAX_BYTES_PER_NAME = 100
"""A name in a dictionary takes more than 150; what the test itself and idle connections hold is some 80 kB."""


class TestUnknownNames:
    def test_leave_memory_flat(self, three_experts: str, client: httpx.Client) -> None:
        def ask(number: int) -> httpx.Response:
            body = {"inputs": "1 + 1", "parameters": {"adapter_id": f"unknown-expert-{number}"}}
            return client.post("/generate", json=body)

        for number in range(NUM_WARM):
            assert ask(number).status_code == 404
        gc.collect()
        tracemalloc.start()
        try:
            for number in range(NUM_WARM, NUM_WARM + NUM_COUNTED):
                ask(number)
            gc.collect()
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert grown < MAX_BYTES_PER_NAME * NUM_COUNTED
