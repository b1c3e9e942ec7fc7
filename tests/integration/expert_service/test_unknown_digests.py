"""Names that nobody knows leave no trace in a replica's memory."""

import gc
import sys
from pathlib import Path

import httpx

from tests.integration.expert_service.serving import serving

NUM_WARM, NUM_COUNTED = 200, 1000
MAX_BLOCKS_PER_NAME = 0.5
"""A name that is kept takes a block of Python's memory at least; what the test and idle connections hold is few."""


class TestUnknownDigests:
    def test_leave_memory_flat(self, shared_material: Path, tmp_path: Path) -> None:
        base_model = shared_material / "models" / "stories260K-hf"
        with serving(base_model, tmp_path) as served, served.client as client:

            def ask(number: int) -> httpx.Response:
                digest = f"{number:064x}"
                experts = [{"name": f"e{number}", "version": 1, "digest": digest}]
                plan = {
                    "mode": "fixed",
                    "experts": experts,
                    "candidates": [f"e{number}"],
                    "weights": {f"e{number}": 1.0},
                }
                return client.post("/sequences", json=served.body("Once", plan))

            for number in range(NUM_WARM):
                assert ask(number).status_code == 404
            gc.collect()
            before = sys.getallocatedblocks()
            for number in range(NUM_WARM, NUM_WARM + NUM_COUNTED):
                ask(number)
            gc.collect()
            grown = sys.getallocatedblocks() - before
        assert grown < MAX_BLOCKS_PER_NAME * NUM_COUNTED
