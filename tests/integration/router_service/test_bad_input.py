"""What callers get wrong: each a 4xx in the one shape, with a message that says what to do."""

import socket
import time
from typing import Any

import httpx
import pytest

from tests.integration.router_service.replica_double import MAX_CONTEXT, ReplicaDouble

pytestmark = pytest.mark.integration


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    assert len(response.content) < 2000
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


WRONG_PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "parameters.temperature"),
    ({"temperature": "NaN"}, "parameters.temperature"),
    ({"max_new_tokens": 0}, "parameters.max_new_tokens"),
    ({"max_new_tokens": 2**40}, "parameters.max_new_tokens"),
    ({"max_new_tokens": "many"}, "parameters.max_new_tokens"),
    ({"top_p": 0}, "parameters.top_p"),
    ({"top_p": 1.5}, "parameters.top_p"),
    ({"top_k": 0}, "parameters.top_k"),
    ({"repetition_penalty": 0}, "parameters.repetition_penalty"),
    ({"seed": -1}, "parameters.seed"),
    ({"truncate": 0}, "parameters.truncate"),
    ({"stop": ["a"] * 17}, "parameters.stop"),
    ({"stop": ["a" * 2000]}, "parameters.stop.0"),
    ({"stop": [""]}, "parameters.stop.0"),
    ({"experts": {}}, "parameters.experts"),
    ({"experts": {"math": -1}}, "parameters.experts.math"),
    ({"experts": {"math": "1e999"}}, "parameters.experts.math"),
    ({"experts": {f"e{number}": 1 for number in range(65)}}, "parameters.experts"),
    ({"experts": {"math": 1, "base": 1}}, "parameters.experts"),
    ({"adapter_id": "math", "experts": {"math": 1}}, "parameters"),
    ({"merged_adapters": {"ids": ["math"], "weights": [1, 2]}}, "parameters.merged_adapters"),
    ({"merged_adapters": {"ids": ["math"], "merge_strategy": "ties"}}, "parameters.merged_adapters"),
    ({"best_of": 2}, "parameters.best_of"),
    ({"typical_p": 0}, "parameters.typical_p"),
    ({"watermark": True}, "parameters.watermark"),
    ({"grammar": {"type": "json", "value": {}}}, "parameters.grammar"),
    ({"response_format": {"type": "json_object"}}, "parameters.response_format"),
    ({"frequency_penalty": 2.5}, "parameters.frequency_penalty"),
    ({"presence_penalty": "NaN"}, "parameters.presence_penalty"),
    ({"top_n_tokens": 21}, "parameters.top_n_tokens"),
    ({"max_new_tokens": 4097}, "parameters.max_new_tokens"),
    ({"logit_bias": {"5": 101}}, "parameters.logit_bias.5"),
    ({"logit_bias": {str(number): 1 for number in range(1025)}}, "parameters.logit_bias"),
    ({"do_sample": True, "best_of": 17}, "parameters.best_of"),
    ({"adapter_source": "local"}, "parameters.adapter_source"),
    ({"apply_chat_template": True}, "parameters.apply_chat_template"),
    ({"temprature": 0.5}, "parameters.temprature"),
]


class TestGenerate:
    @pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
    def test_a_wrong_parameter_is_named(
        self, three_experts: str, client: httpx.Client, subtests: pytest.Subtests, path: str
    ) -> None:
        for parameters, param in WRONG_PARAMETERS:
            with subtests.test(str(parameters)[:60]):
                response = client.post(path, json={"inputs": "12 + 5", "parameters": parameters})

                assert error_of(response, 400)["param"] == param
                assert response.json()["error_type"] == "validation"

    def test_unsupported_ones_that_ask_for_nothing_are_let_through(self, client: httpx.Client) -> None:
        parameters = {"best_of": 1, "typical_p": None, "watermark": False, "top_n_tokens": 0}

        assert client.post("/generate", json={"inputs": "12", "parameters": parameters}).status_code == 200

    def test_a_wrong_body_is_refused(self, client: httpx.Client, subtests: pytest.Subtests) -> None:
        bodies: list[Any] = [
            {"inputs": ""},
            {"inputs": None},
            {},
            {"inputs": ["a"]},
            {"inputs": "a", "prompt": "b"},
            {"inputs": "a", "parameters": []},
            [],
            "a",
        ]
        for body in bodies:
            with subtests.test(str(body)):
                error_of(client.post("/generate", json=body), 400)

    def test_what_is_no_json_is_refused(self, client: httpx.Client, subtests: pytest.Subtests) -> None:
        contents = {
            "empty": b"",
            "cut off": b"{",
            "not utf-8": b'{"inputs": "\xff"}',
            "half a surrogate pair": b'{"inputs": "\\ud800"}',
            "deep": b"[" * 100_000,
            "huge number": b'{"inputs": 1' + b"0" * 10_000 + b"}",
        }
        for name, content in contents.items():
            with subtests.test(name):
                headers = {"content-type": "application/json"}
                error_of(client.post("/generate", content=content, headers=headers), 400)

    @pytest.mark.parametrize("parameters", [{"adapter_id": "mth"}, {"experts": {"mth": 1.0}}])
    def test_an_unknown_expert_is_answered_with_close_names(
        self, three_experts: str, client: httpx.Client, parameters: dict[str, Any]
    ) -> None:
        response = client.post("/generate", json={"inputs": "12 + 5", "parameters": parameters})

        error = error_of(response, 404)
        assert "'math'" in error["message"]
        assert error["code"] == "expert_not_found"

    def test_junk_names_are_not_echoed_at_length(self, three_experts: str, client: httpx.Client) -> None:
        response = client.post("/generate", json={"inputs": "12", "parameters": {"adapter_id": "../" * 60}})

        error_of(response, 404)

    def test_a_retired_expert_cannot_be_named(self, registry: Any, client: httpx.Client) -> None:
        registry.expert("math")
        assert client.delete("/experts/math").status_code == 200

        error_of(client.post("/generate", json={"inputs": "12", "parameters": {"adapter_id": "math"}}), 404)

    @pytest.mark.parametrize("routed", [True, False], ids=["routed", "named"])
    def test_an_over_long_prompt_is_told_the_limit(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble, routed: bool
    ) -> None:
        prompt = "12 + 5 = 17. " * 40
        num_prompt = len(double.tokenizer.encode(prompt))
        max_new_tokens = MAX_CONTEXT - num_prompt + 1
        assert 0 < max_new_tokens < MAX_CONTEXT
        parameters = {"max_new_tokens": max_new_tokens} | ({} if routed else {"adapter_id": "math"})

        too_long = client.post("/generate", json={"inputs": prompt, "parameters": parameters})
        fitting = client.post(
            "/generate", json={"inputs": prompt, "parameters": {**parameters, "max_new_tokens": max_new_tokens - 1}}
        )

        error = error_of(too_long, 413)
        assert error["code"] == "prompt_too_long"
        assert f"at most {MAX_CONTEXT - max_new_tokens} fit" in error["message"]
        assert fitting.status_code == 200

    def test_bodies_over_the_limit_are_refused_quickly(self, client: httpx.Client) -> None:
        started_at = time.monotonic()

        response = client.post("/generate", json={"inputs": "x" * (2 * 1024**2)})
        huge = client.post("/generate", content=b"x" * (20 * 1024**2), headers={"content-type": "application/json"})

        assert error_of(response, 413)["code"] == "prompt_too_long"
        assert error_of(huge, 413)["code"] == "payload_too_large"
        assert time.monotonic() - started_at < 5

    def test_details_of_the_prompt_are_refused_in_streams(self, client: httpx.Client) -> None:
        body = {"inputs": "12", "parameters": {"decoder_input_details": True}}

        assert error_of(client.post("/generate_stream", json=body), 400)["param"] == "parameters.decoder_input_details"

    def test_nul_characters_are_answered_and_logged(self, client: httpx.Client) -> None:
        body = {"inputs": "a\x00b", "parameters": {"stop": ["\x00"]}}

        request_id = client.post("/generate", json=body).json()["routing"]["request_id"]

        assert client.get(f"/requests/{request_id}").json()["prompt"] == "a\ufffdb"


NOT_THERE = [
    ("GET", "/experts/nobody"),
    ("DELETE", "/experts/nobody"),
    ("GET", "/experts/..%2f..%2fetc"),
    ("GET", "/files/file-0"),
    ("GET", "/files/..%2fx"),
    ("DELETE", f"/files/file-{'0' * 32}"),
    ("GET", "/jobs/job-1"),
    ("GET", "/jobs/job-1/events"),
    ("POST", "/jobs/job-1/cancel"),
    ("GET", "/releases/release-99"),
    ("GET", "/releases/release-99999999999999999999"),
    ("GET", "/releases/nonsense"),
    ("POST", "/releases/release-99/activate"),
    ("GET", "/requests/req-1"),
    ("GET", "/requests?after=req-1"),
    ("GET", "/files?after=file-1"),
    ("GET", "/jobs?after=job-1"),
    ("GET", "/nowhere"),
]


class TestEverywhere:
    def test_what_is_not_there_is_not_found(self, client: httpx.Client, subtests: pytest.Subtests) -> None:
        for method, path in NOT_THERE:
            with subtests.test(f"{method} {path}"):
                error_of(client.request(method, path), 404)

    def test_what_cannot_be_looked_up_is_refused(self, client: httpx.Client) -> None:
        error_of(client.get("/experts/%00"), 400)

    def test_wrong_queries_are_refused(self, client: httpx.Client, subtests: pytest.Subtests) -> None:
        queries = [
            "/experts?limit=0",
            "/jobs?limit=1001",
            "/requests?limit=x",
            "/jobs?kind=cake",
            "/files?purpose=none",
        ]
        for path in queries:
            with subtests.test(path):
                assert error_of(client.get(path), 400)["param"] == path.partition("?")[2].partition("=")[0]

    def test_a_wrong_method_says_which_is_allowed(self, client: httpx.Client) -> None:
        response = client.put("/generate", json={})

        assert error_of(response, 405)["code"] == "method_not_allowed"
        assert response.headers["allow"] == "POST"

    def test_endless_headers_are_refused_and_the_service_lives_on(self, router_url: str, client: httpx.Client) -> None:
        host, port = router_url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"GET /live HTTP/1.1\r\nhost: x\r\nx-a: ")
            try:
                for _ in range(64):
                    connection.sendall(b"a" * 65_536)
                answer = connection.recv(100)
            except OSError:
                answer = b""

        assert answer == b"" or b" 400 " in answer
        assert client.get("/live").status_code == 200
