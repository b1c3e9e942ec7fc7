"""`/generate` and its stream as TGI's clients know them, spoken over real sockets."""

import json
import time
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError

from services.shared.errors import Overloaded
from services.shared.vocabulary import PlanMode
from tests.integration.router_service.replica_double import ReplicaDouble

pytestmark = pytest.mark.integration

MATH = "Tom has 12 apples and buys 5 more. How many"


def generate(client: httpx.Client, prompt: str = MATH, **parameters: Any) -> dict[str, Any]:
    response = client.post("/generate", json={"inputs": prompt, "parameters": parameters})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(client: httpx.Client, prompt: str = MATH, **parameters: Any) -> list[dict[str, Any]]:
    body = {"inputs": prompt, "parameters": parameters}
    with client.stream("POST", "/generate_stream", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-request-id"]
        return [json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:")]


class TestGenerate:
    def test_the_answer_says_who_wrote_it(self, three_experts: str, client: httpx.Client) -> None:
        routing = generate(client, max_new_tokens=4)["routing"]

        assert routing["release"] == three_experts
        assert routing["confidence"] > 0.8
        assert routing["attribution"] == [
            {"expert": "math", "share": pytest.approx(0.75), "num_tokens": 4},
            {"expert": "base", "share": pytest.approx(0.25), "num_tokens": 0},
        ]

    def test_details_have_tokens_with_their_weights_and_the_prompts_tokens(
        self, three_experts: str, client: httpx.Client
    ) -> None:
        answer = generate(client, max_new_tokens=4, details=True, decoder_input_details=True, seed=5, do_sample=True)

        details = answer["details"]
        assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
        assert details["tokens"][0]["routing"] == {"math": 0.75, "base": 0.25}
        assert details["finish_reason"] == "length"
        assert details["seed"] == 5
        assert details["generated_tokens"] == len(details["tokens"]) == 4
        assert "".join(token["text"] for token in details["prefill"]) == MATH
        assert details["prefill"][0]["logprob"] is None

    def test_headers_count_and_time(self, three_experts: str, client: httpx.Client) -> None:
        response = client.post("/generate", json={"inputs": MATH, "parameters": {"max_new_tokens": 4}})

        headers = response.headers
        assert headers["x-generated-tokens"] == "4"
        assert int(headers["x-total-tokens"]) == int(headers["x-prompt-tokens"]) + 4
        assert headers["x-queue-time"] == "1"
        assert headers["x-inference-time"] == "5"
        assert headers["x-model-id"] == "double"
        assert headers["x-compute-type"] == "cpu"
        assert headers["x-release-id"] == three_experts

    def test_the_prompt_is_put_before_when_asked(self, three_experts: str, client: httpx.Client) -> None:
        answer = generate(client, max_new_tokens=3, return_full_text=True)

        assert answer["generated_text"].startswith(f"{MATH}one")

    def test_without_a_release_the_base_answers(self, client: httpx.Client) -> None:
        routing = generate(client)["routing"]

        assert (routing["release"], routing["confidence"]) == (None, None)
        assert [part["expert"] for part in routing["attribution"]] == ["base"]

    def test_a_release_activated_elsewhere_is_picked_up_whole(
        self, registry: Any, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        registry.expert("math")
        release = registry.release("math")

        deadline = time.monotonic() + 5
        while generate(client)["routing"]["release"] != release:
            assert time.monotonic() < deadline

        assert double.requests[-1].plan.mode == PlanMode.ROUTED

    @pytest.mark.parametrize(
        ("parameters", "weights"),
        [
            ({"adapter_id": "code"}, {"code": 1.0}),
            ({"experts": {"code": 0.5, "math": 0.25}}, {"code": 0.5, "math": 0.25}),
            ({"merged_adapters": {"ids": ["code", "story"], "weights": [0.3, 0.4]}}, {"code": 0.3, "story": 0.4}),
            ({"merged_adapters": {"ids": ["code", "story"]}}, {"code": 1.0, "story": 1.0}),
        ],
        ids=["one", "a set", "lorax", "lorax without weights"],
    )
    def test_the_request_may_name_the_experts(
        self,
        three_experts: str,
        client: httpx.Client,
        double: ReplicaDouble,
        parameters: dict[str, Any],
        weights: dict[str, float],
    ) -> None:
        answer = generate(client, **parameters)

        plan = double.requests[-1].plan
        assert (plan.mode, plan.weights, plan.candidates) == (PlanMode.FIXED, weights, tuple(weights))
        assert sum(part["share"] for part in answer["routing"]["attribution"]) == pytest.approx(1.0)
        assert answer["routing"]["confidence"] is None

    def test_base_by_name_is_nobody_else(self, three_experts: str, client: httpx.Client, double: ReplicaDouble) -> None:
        generate(client, adapter_id="base")

        assert double.requests[-1].plan.mode == PlanMode.BASE

    def test_an_expert_outside_the_release_can_be_named(
        self, three_experts: str, registry: Any, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        registry.expert("math", with_evidence=False)

        deadline = time.monotonic() + 5
        while True:
            generate(client, adapter_id="math")
            if double.requests[-1].plan.experts[0].version == 2:
                break
            assert time.monotonic() < deadline

    def test_sampling_follows_tgis_rule(
        self, client: httpx.Client, double: ReplicaDouble, subtests: pytest.Subtests
    ) -> None:
        nulls = {"temperature": None, "seed": None, "stop": None, "grammar": None, "watermark": False}
        cases: list[tuple[dict[str, Any], bool]] = [
            ({}, False),
            ({"do_sample": True}, True),
            ({"temperature": 0.7}, True),
            ({"temperature": 0.0, "do_sample": True}, False),
            ({"temperature": 1.0}, False),
            ({"top_k": 5}, True),
            ({"top_p": 0.9}, True),
            (nulls, False),
        ]
        for parameters, do_sample in cases:
            with subtests.test(str(parameters)):
                generate(client, **parameters)

                assert double.requests[-1].sampling.do_sample is do_sample

    def test_truncate_keeps_the_prompts_end(self, client: httpx.Client, double: ReplicaDouble) -> None:
        generate(client, truncate=3)

        assert list(double.requests[-1].prompt_ids) == double.tokenizer.encode(MATH)[-3:]

    def test_the_default_length_gives_way_to_the_context(self, client: httpx.Client, double: ReplicaDouble) -> None:
        prompt = "a " * 120
        num_prompt = len(double.tokenizer.encode(prompt))

        generate(client, prompt)

        assert double.requests[-1].sampling.max_new_tokens == min(100, 256 - num_prompt)


class TestStream:
    @pytest.mark.parametrize("stop", [[], ["zzz"]], ids=["no stop strings", "stop strings"])
    def test_one_event_per_token_and_the_last_tells_the_end(
        self, three_experts: str, client: httpx.Client, stop: list[str]
    ) -> None:
        events = stream(client, max_new_tokens=4, stop=stop)

        assert [event["index"] for event in events] == [1, 2, 3, 4]
        *early, last = events
        assert all(event["generated_text"] is None and event["details"] is None for event in early)
        assert last["generated_text"] == "".join(event["token"]["text"] for event in events)
        assert last["details"]["finish_reason"] == "length"
        assert last["details"]["generated_tokens"] == 4
        assert last["routing"]["attribution"][0]["expert"] == "math"
        assert not any("routing" in event["token"] for event in events)

    def test_with_details_every_token_has_its_weights(self, three_experts: str, client: httpx.Client) -> None:
        events = stream(client, max_new_tokens=3, details=True)

        assert [event["token"]["routing"] for event in events] == [{"math": 0.75, "base": 0.25}] * 3

    def test_an_end_by_itself_is_told_too(self, client: httpx.Client, double: ReplicaDouble) -> None:
        double.answer = "one two"

        events = stream(client, max_new_tokens=50, stop=["."])

        assert events[-1]["details"]["finish_reason"] == "stop_sequence"
        assert len(events) == len(double.tokenizer.encode("one two"))

    def test_tokens_come_as_they_are_made(self, client: httpx.Client, double: ReplicaDouble) -> None:
        double.pause_s = 0.1

        with client.stream("POST", "/generate_stream", json={"inputs": MATH}) as response:
            arrivals = [time.monotonic() for line in response.iter_lines() if line.startswith("data:")]

        assert arrivals[-1] - arrivals[0] > 0.1 * (len(arrivals) - 3)


class TestHuggingFaceClient:
    def test_text(self, three_experts: str, router_url: str) -> None:
        client = InferenceClient(model=router_url)

        assert client.text_generation(MATH, max_new_tokens=3).startswith("one")

    def test_text_with_details(self, three_experts: str, router_url: str) -> None:
        client = InferenceClient(model=router_url)

        output = client.text_generation(MATH, max_new_tokens=3, details=True, decoder_input_details=True)

        assert output.details is not None
        assert output.details.finish_reason == "length"
        assert len(output.details.tokens) == 3
        assert output.details.prefill[1].logprob == -1.0

    def test_stream(self, three_experts: str, router_url: str) -> None:
        client = InferenceClient(model=router_url)

        assert "".join(client.text_generation(MATH, max_new_tokens=3, stream=True)).startswith("one")

    def test_stream_with_details(self, three_experts: str, router_url: str) -> None:
        client = InferenceClient(model=router_url)

        *_, last = client.text_generation(MATH, max_new_tokens=3, stream=True, details=True, adapter_id="code")

        assert last.details is not None
        assert last.details.generated_tokens == 3
        assert last.generated_text is not None

    def test_its_own_errors(self, router_url: str, double: ReplicaDouble) -> None:
        client = InferenceClient(model=router_url)

        with pytest.raises(ValidationError, match="not supported"):
            client.text_generation(MATH, watermark=True)
        double.refusal = Overloaded("Full.", retry_after_s=1)
        with pytest.raises(OverloadedError):
            client.text_generation(MATH)


class TestTokenize:
    def test_tokens_are_those_of_a_prompt_and_say_where_they_stand(
        self, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        text = "12 apples, naïve café"

        tokens = client.post("/tokenize", json={"inputs": text}).json()

        assert [token["id"] for token in tokens] == double.tokenizer.encode(text)
        assert all(token["text"] == text[token["start"] : token["stop"]] for token in tokens)
        assert (tokens[0]["start"], tokens[-1]["stop"]) == (0, len(text))

    def test_too_long_a_text_is_refused(self, client: httpx.Client) -> None:
        assert client.post("/tokenize", json={"inputs": "x" * (2 * 1024**2)}).status_code == 413
