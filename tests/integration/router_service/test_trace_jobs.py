"""Trace jobs as they are submitted: refused with a reason, or queued with the trace that they will make."""

import json
from typing import Any

import httpx
import pytest

PROMPTS = [{"id": "a", "domain": "code", "prompt": "def f(", "n_predict": 20}]


def upload(client: httpx.Client, content: str) -> str:
    response = client.post("/files", files={"file": ("prompts.json", content)}, data={"purpose": "fine-tune"})
    assert response.status_code == 201, response.text
    file_id: str = response.json()["id"]
    return file_id


class TestSubmission:
    def test_needs_nothing_but_the_kind(self, client: httpx.Client) -> None:
        response = client.post("/jobs", json={"kind": "trace"})

        assert response.status_code == 202, response.text
        assert response.json()["spec"]["prompts_per_domain"] == 8

    def test_a_dry_run_counts_the_tokens(self, client: httpx.Client) -> None:
        default = client.post("/jobs", json={"kind": "trace", "max_tokens": 50, "dry_run": True}).json()
        file_id = upload(client, json.dumps({"experiment_name": "mine", "prompts": PROMPTS}))
        own = client.post("/jobs", json={"kind": "trace", "prompts_file": file_id, "dry_run": True}).json()

        assert default["num_tokens"] == 5 * 8 * 50
        assert "8 prompts of each of 5 domains" in default["plan"]
        assert own["num_tokens"] == 20
        assert "1 prompts of its own (domains: 1)" in own["plan"]

    @pytest.mark.parametrize(
        ("fields", "status", "word"),
        [
            ({"model": "mixtral"}, 400, "trainer.traced_models"),
            ({"release": "release-77"}, 404, "release-77"),
            ({"prompts_file": f"file-{'0' * 32}"}, 404, "POST /files"),
            ({"prompts": []}, 400, "prompts"),
            ({"prompts": PROMPTS * 2}, 400, "the id 'a'"),
            ({"temperature": -1}, 400, "temperature"),
            ({"theta": 1}, 400, "theta"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, client: httpx.Client, fields: dict[str, Any], status: int, word: str
    ) -> None:
        response = client.post("/jobs", json={"kind": "trace"} | fields)

        assert response.status_code == status, response.text
        assert word in response.text

    def test_a_file_that_holds_no_prompts_is_told_where(self, client: httpx.Client) -> None:
        file_id = upload(client, json.dumps({"prompts": [{"id": "a", "domain": "code"}]}))

        response = client.post("/jobs", json={"kind": "trace", "prompts_file": file_id})

        assert response.status_code == 422, response.text
        assert "prompts.0.prompt" in response.json()["error"]["message"]
