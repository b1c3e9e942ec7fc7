"""Attribution by ablation as clients see it, and as a burden that must not get out of hand."""

import json
import socket
from typing import Any

import httpx
import openai
import pytest

from services.shared.vocabulary import PlanMode
from tests.integration.router_service.replica_double import ReplicaDouble, logprob_of
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MATH = "Tom has 12 apples and buys 5 more. How many"
PARAMETERS: dict[str, Any] = {"max_new_tokens": 4, "attribution": "ablation"}


def generate(client: httpx.Client, **parameters: Any) -> dict[str, Any]:
    response = client.post("/generate", json={"inputs": MATH, "parameters": {**PARAMETERS, **parameters}})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture(name="effect")
def effect_of_one_of_three(double: ReplicaDouble, three_experts: str, client: httpx.Client) -> float:
    """What a token loses on the replica's double when one of three candidates is left out, in nats."""
    generate(client, attribution="shares")
    plan = double.requests.pop().plan
    return logprob_of(plan) - logprob_of(plan.model_copy(update={"candidates": plan.candidates[1:]}))


class TestAnswers:
    def test_only_experts_with_a_share_are_left_out_and_told_of(
        self, effect: float, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        first, base = generate(client)["routing"]["attribution"]

        assert first == {
            "expert": "math",
            "share": pytest.approx(0.75),
            "num_tokens": 4,
            "effect": pytest.approx(effect),
            "total_effect": pytest.approx(4 * effect),
        }
        assert base == {"expert": "base", "share": pytest.approx(0.25), "num_tokens": 0}
        written, *readings = double.requests
        assert [request.plan.mode for request in readings] == [PlanMode.ROUTED] * 2
        assert readings[0].plan == written.plan
        assert set(written.plan.candidates) - set(readings[1].plan.candidates) == {"math"}
        for reading in readings:
            # As long as the answer was, so that what fitted the context fits it again.
            assert len(reading.prompt_ids) + reading.sampling.max_new_tokens == len(written.prompt_ids) + 4
            assert reading.prompt_ids[: len(written.prompt_ids)] == written.prompt_ids

    def test_details_have_the_effect_on_every_token(self, effect: float, client: httpx.Client) -> None:
        answer = generate(client, details=True)

        first, _ = answer["routing"]["attribution"]
        assert first["token_effects"] == pytest.approx([effect] * len(answer["details"]["tokens"]), abs=1e-6)

    def test_an_answer_of_one_token_needs_no_more_than_its_prompt(self, effect: float, client: httpx.Client) -> None:
        first, _ = generate(client, max_new_tokens=1)["routing"]["attribution"]

        assert first["effect"] == first["total_effect"] == pytest.approx(effect)

    def test_what_the_base_wrote_alone_is_not_read_again(self, client: httpx.Client, double: ReplicaDouble) -> None:
        attribution = generate(client, adapter_id="base")["routing"]["attribution"]

        assert attribution == [{"expert": "base", "share": 1.0, "num_tokens": 4}]
        assert len(double.requests) == 1

    def test_fixed_weights_lose_one_expert_at_a_time(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        answer = generate(client, experts={"code": 0.5, "math": 0.25})

        assert {part["expert"] for part in answer["routing"]["attribution"] if "effect" in part} == {"code", "math"}
        assert [request.plan.weights for request in double.requests[2:]] == [{"math": 0.25}, {"code": 0.5}]

    def test_of_several_answers_only_the_given_one_is_read(
        self, effect: float, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        answer = generate(client, best_of=3, do_sample=True)

        assert answer["routing"]["attribution"][0]["effect"] == pytest.approx(effect)
        assert len(double.requests) == 3 + 2

    @pytest.mark.parametrize("path", ["/generate_stream", "/"])
    def test_a_stream_tells_it_at_the_end(self, effect: float, client: httpx.Client, path: str) -> None:
        body = {
            "inputs": MATH,
            "parameters": {**PARAMETERS, "details": True},
            **({"stream": True} if path == "/" else {}),
        }
        with client.stream("POST", path, json=body) as response:
            events = [json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:")]

        assert len(events) == 4
        first = events[-1]["routing"]["attribution"][0]
        assert (first["effect"], len(first["token_effects"])) == (pytest.approx(effect), 4)

    @pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
    def test_openais_routes_tell_it_of_every_choice(self, effect: float, router_url: str, streamed: bool) -> None:
        asked: dict[str, Any] = {"model": "adaptive-moe", "max_tokens": 4, "n": 2, "stream": streamed}
        asked["extra_body"] = {"routing": {"attribution": "ablation", "details": True}}
        with openai.OpenAI(base_url=f"{router_url}/v1", api_key="unused", max_retries=0) as ai:
            chat: Any = ai.chat.completions.create(**asked, messages=[{"role": "user", "content": MATH}])
            completion: Any = ai.completions.create(**asked, prompt=MATH)
            answers = [[*chat], [*completion]] if streamed else [[chat], [completion]]

        for chunks in answers:
            told = {
                choice.index: choice.model_extra["routing"]["attribution"]
                for chunk in chunks
                for choice in chunk.choices
                if choice.finish_reason
            }
            assert sorted(told) == [0, 1]
            for attribution in told.values():
                assert sum(part["share"] for part in attribution) == pytest.approx(1.0)
                assert attribution[0]["effect"] == pytest.approx(effect)
                assert len(attribution[0]["token_effects"]) == 4

    def test_the_routing_log_keeps_it(self, effect: float, client: httpx.Client) -> None:
        routing = generate(client, details=True)["routing"]

        logged = client.get(f"/requests/{routing['request_id']}").json()

        assert logged["attribution"][0]["effect"] == pytest.approx(effect)
        assert "token_effects" not in logged["attribution"][0]
        assert logged["parameters"]["attribution"] == "ablation"

    def test_another_word_is_refused(self, client: httpx.Client) -> None:
        response = client.post("/generate", json={"inputs": MATH, "parameters": {"attribution": "magic"}})

        assert (response.status_code, response.json()["error"]["param"]) == (400, "parameters.attribution")


class TestExplain:
    @pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
    @pytest.mark.parametrize("beside", [True, False], ids=["beside the parameters", "among them"])
    def test_one_call_tells_all_that_is_known(
        self, effect: float, three_experts: str, client: httpx.Client, path: str, beside: bool
    ) -> None:
        asked = {"explain": True}
        body = {
            "inputs": MATH,
            "parameters": {"max_new_tokens": 4, **({} if beside else asked)},
            **(asked if beside else {}),
        }

        text = client.post(path, json=body).text
        answer = json.loads(text.strip().splitlines()[-1].removeprefix("data:"))

        routing = answer["routing"]
        assert answer["generated_text"]
        assert routing["release"] == three_experts
        assert routing["confidence"] > 0.8
        assert routing["attribution"][0]["effect"] == pytest.approx(effect)
        assert routing["integration"] == {"mode": "mixture"}
        assert routing["plan"]["mode"] == "routed"
        assert {expert["name"] for expert in routing["plan"]["experts"]} == {"math", "code", "story"}
        assert set(routing["timings"]) == {
            "planning_ms",
            "queue_ms",
            "prefill_ms",
            "decode_ms",
            "first_token_ms",
            "attribution_ms",
            "total_ms",
        }
        assert routing["timings"]["total_ms"] >= routing["timings"]["attribution_ms"] > 0.0

    def test_openais_routes_take_it_under_routing(self, effect: float, client: httpx.Client) -> None:
        body = {"prompt": MATH, "max_tokens": 4, "routing": {"explain": True}}

        routing = client.post("/v1/completions", json=body).json()["choices"][0]["routing"]

        assert routing["attribution"][0]["effect"] == pytest.approx(effect)
        assert (routing["plan"]["mode"], routing["timings"]["queue_ms"]) == ("routed", 1.0)

    def test_nobody_else_is_told(self, three_experts: str, client: httpx.Client) -> None:
        routing = generate(client)["routing"]

        assert not {"plan", "timings"} & routing.keys()


class TestPlainText:
    @pytest.mark.parametrize(
        ("attribution", "header"),
        [
            ({}, ""),
            ({"attribution": "shares"}, "[experts: math 75 %, base 25 %]\n"),
            ({"attribution": "ablation"}, "[experts: math 75 % (+0.17 nats), base 25 %]\n"),
        ],
        ids=["text alone", "shares", "effects"],
    )
    def test_a_line_says_who_wrote_it_when_asked(
        self, three_experts: str, client: httpx.Client, attribution: dict[str, str], header: str
    ) -> None:
        body = {"inputs": MATH, "parameters": {"max_new_tokens": 3, **attribution}}
        text = generate(client, max_new_tokens=3)["generated_text"]

        answer = client.post("/generate", json=body, headers={"accept": "text/plain;charset=utf-8, */*"})

        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text == header + text
        assert answer.headers["x-generated-tokens"] == "3"

    @pytest.mark.parametrize("accept", ["application/json, text/plain, */*", "*/*", ""])
    def test_clients_that_name_something_else_first_get_json(self, client: httpx.Client, accept: str) -> None:
        answer = client.post("/generate", json={"inputs": MATH}, headers={"accept": accept})

        assert answer.json()["generated_text"]

    def test_errors_stay_what_they_are(self, client: httpx.Client) -> None:
        answer = client.post("/generate", json={"inputs": ""}, headers={"accept": "text/plain"})

        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "inputs")


class TestBurden:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"max_concurrent_requests": 2, "request_timeout_s": 10}

    def test_readings_take_free_places_and_wait_for_each_other_without_them(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        answer = generate(client, experts={"code": 0.5, "math": 0.25, "story": 0.25})

        assert all("effect" in part for part in answer["routing"]["attribution"] if part["expert"] != "base")
        assert len(double.requests) == 1 + 4

    @pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
    def test_hanging_up_cancels_the_readings(
        self, three_experts: str, router_url: str, double: ReplicaDouble, path: str
    ) -> None:
        host, port = router_url.removeprefix("http://").split(":")
        content = json.dumps({"inputs": MATH, "parameters": PARAMETERS}).encode()
        double.reading_pause_s = 30.0

        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            connection.sendall(head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content)
            wait_until(lambda: len(double.requests) == 3)

        wait_until(lambda: double.num_cancelled >= 2, what="the readings' end")
        wait_until(lambda: double.num_open == 0)

    @pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
    def test_an_answer_is_not_lost_where_no_replica_takes_its_readings(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble, path: str
    ) -> None:
        double.num_before_full = 1

        response = client.post(path, json={"inputs": MATH, "parameters": PARAMETERS})

        answer = json.loads(response.text.strip().splitlines()[-1].removeprefix("data:"))
        assert response.status_code == 200
        assert answer["generated_text"]
        shares = [(part["expert"], part["share"]) for part in answer["routing"]["attribution"]]
        assert shares == [("math", pytest.approx(0.75)), ("base", pytest.approx(0.25))]
        assert not any("effect" in part for part in answer["routing"]["attribution"])
        assert answer["routing"]["effects_missing"] == "Full."
        wait_until(lambda: bool(client.get("/requests").json()["data"]))
        logged = client.get("/requests").json()["data"][0]
        assert logged["finish_reason"] != "error"
        assert logged["error"] is None
