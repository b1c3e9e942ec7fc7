"""Names that nobody knows leave no trace in the router service's memory."""

import httpx
import pytest

from tests.memory import assert_leaves_no_trace

pytestmark = pytest.mark.integration


class TestUnknownNames:
    def test_leave_memory_flat(self, three_experts: str, client: httpx.Client) -> None:
        def ask(number: int) -> None:
            body = {"inputs": "1 + 1", "parameters": {"adapter_id": f"unknown-expert-{number}"}}
            assert client.post("/generate", json=body).status_code == 404

        assert_leaves_no_trace(ask, num_asked=1500)
