"""Names that nobody knows leave no trace in the router service's memory."""

import gc
import sys

import httpx
import pytest

pytestmark = pytest.mark.integration

NUM_WARM, NUM_COUNTED = 200, 1500
MAX_BLOCKS_PER_NAME = 0.5
"""A name that is kept takes a block of Python's memory at least; what the test and idle connections hold is few."""


class TestUnknownNames:
    def test_leave_memory_flat(self, three_experts: str, client: httpx.Client) -> None:
        def ask(number: int) -> httpx.Response:
            body = {"inputs": "1 + 1", "parameters": {"adapter_id": f"unknown-expert-{number}"}}
            return client.post("/generate", json=body)

        for number in range(NUM_WARM):
            assert ask(number).status_code == 404
        gc.collect()
        before = sys.getallocatedblocks()
        for number in range(NUM_WARM, NUM_WARM + NUM_COUNTED):
            ask(number)
        gc.collect()
        grown = sys.getallocatedblocks() - before
        assert grown < MAX_BLOCKS_PER_NAME * NUM_COUNTED
