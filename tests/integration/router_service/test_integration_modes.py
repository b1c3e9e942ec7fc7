"""How what experts say becomes one answer: what replicas are asked for, and what is refused."""

from typing import Any

import httpx
import openai
import pytest

from services.shared.errors import Overloaded
from services.shared.vocabulary import PlanMode
from tests.integration.router_service.replica_double import ReplicaDouble
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MATH = "Tom has 12 apples and buys 5 more. How many"


def post(client: httpx.Client, path: str = "/generate", **parameters: Any) -> httpx.Response:
    return client.post(path, json={"inputs": MATH, "parameters": {"max_new_tokens": 4, **parameters}})


def generate(client: httpx.Client, **parameters: Any) -> dict[str, Any]:
    response = post(client, **parameters)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def counted(client: httpx.Client) -> set[str]:
    """What the metrics say of the answers given."""
    lines = client.get("/metrics").text.splitlines()
    return {line.partition("{")[2] for line in lines if line.startswith("amoe_integrations_total{")}


class TestSingle:
    @pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
    def test_the_best_of_the_prompt_has_weight_one(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble, path: str
    ) -> None:
        response = post(client, path, integration="single")

        assert response.status_code == 200
        [request] = double.requests
        assert (request.plan.mode, request.plan.weights) == (PlanMode.FIXED, {"math": 1.0})
        assert request.plan.release == three_experts
        assert [expert.name for expert in request.plan.experts] == ["math"]

    def test_confidence_and_prompt_weights_are_told_as_they_were(
        self, three_experts: str, client: httpx.Client
    ) -> None:
        routing = generate(client, integration="single")["routing"]

        assert routing["confidence"] == pytest.approx(generate(client)["routing"]["confidence"])
        tokens = client.get(f"/requests/{routing['request_id']}").json()["tokens"]
        assert all(token["weights"] == {"math": 1.0} for token in tokens)

    def test_without_a_release_the_base_answers(self, client: httpx.Client, double: ReplicaDouble) -> None:
        assert generate(client, integration="single")["routing"]["integration"] == {"mode": "single"}
        assert double.requests[0].plan.mode == PlanMode.BASE

    def test_several_choices_are_several_answers_of_one(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        generate(client, integration="single", best_of=2, do_sample=True, seed=3)

        assert [(each.plan.weights, each.sampling.seed) for each in double.requests] == [
            ({"math": 1.0}, 3),
            ({"math": 1.0}, 4),
        ]


class TestEnsemble:
    def test_the_best_scoring_ones_answer_alone_and_are_read_under_the_mixture(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        double.answers = {"math": "seventeen", "base": "one two three", "code": "def add", "story": "Once upon"}

        answer = generate(client, integration="ensemble")

        report = answer["routing"]["integration"]
        assert (report["mode"], len(report["candidates"])) == ("ensemble", 3)
        assert report["candidates"][0]["written_by"] == "math"
        assert sum(candidate["chosen"] for candidate in report["candidates"]) == 1
        members, readings = double.requests[:3], double.requests[3:]
        assert {each.plan.mode for each in members} <= {PlanMode.FIXED, PlanMode.BASE}
        assert [each.plan.mode for each in readings] == [PlanMode.ROUTED] * 3
        chosen = next(candidate for candidate in report["candidates"] if candidate["chosen"])
        assert answer["routing"]["request_id"] == chosen["request_id"]
        assert answer["generated_text"] == double.answers[chosen["written_by"]][: len(answer["generated_text"])]
        assert 'mode="ensemble",written_by="expert"} 1.0' in counted(client)

    def test_a_vote_gives_what_most_say_but_for_case_and_white_space(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        double.answers = {"math": "sixteen", "base": "one  TWO", "code": "one two", "story": "Once upon"}

        answer = generate(client, integration="ensemble", ensemble_choice="vote", ensemble_size=4, max_new_tokens=9)

        votes = {part["written_by"]: part["votes"] for part in answer["routing"]["integration"]["candidates"]}
        assert votes == {"math": 1, "base": 2, "code": 2, "story": 1}
        assert answer["generated_text"].split()[0] == "one"

    def test_only_the_given_answer_is_ablated(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        attribution = generate(client, integration="ensemble", attribution="ablation")["routing"]["attribution"]

        assert [part["expert"] for part in attribution if "effect" in part] == ["math"]
        assert len(double.requests) == 3 + 3 + 2

    def test_it_takes_a_place_for_each_member(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        refused = post(client, integration="ensemble", ensemble_size=17)

        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "parameters.ensemble_size")

    def test_a_member_that_fails_ends_all(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        double.num_before_full = 2

        assert post(client, integration="ensemble").status_code == Overloaded.status
        wait_until(lambda: double.num_open == 0)


class TestCascade:
    @pytest.mark.parametrize(
        ("threshold", "modes", "writer"),
        [(-0.6, [PlanMode.BASE], "base"), (-0.4, [PlanMode.BASE, PlanMode.ROUTED], "mixture")],
        ids=["sure", "not sure"],
    )
    def test_experts_are_asked_where_the_base_is_not_sure(
        self,
        three_experts: str,
        client: httpx.Client,
        double: ReplicaDouble,
        threshold: float,
        modes: list[PlanMode],
        writer: str,
    ) -> None:
        double.answers = {"base": "I guess"}

        answer = generate(client, integration="cascade", cascade_threshold=threshold)

        assert [request.plan.mode for request in double.requests] == modes
        assert ("I gu" in answer["generated_text"]) is (writer == "base")
        report = answer["routing"]["integration"]
        assert report["threshold"] == threshold
        assert [part["written_by"] for part in report["candidates"]] == ["base", "mixture"][: len(modes)]
        assert report["candidates"][0]["score"] == pytest.approx(-0.5)
        assert [part["chosen"] for part in report["candidates"]] == [False, True][-len(modes) :]
        assert f'mode="cascade",written_by="{writer}"}} 1.0' in counted(client)

    def test_the_base_is_asked_once_where_there_is_nobody_else(
        self, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        answer = generate(client, integration="cascade", cascade_threshold=0.0)

        assert len(double.requests) == 1
        assert answer["routing"]["integration"]["candidates"][0]["chosen"]

    def test_both_answers_are_in_the_log(self, three_experts: str, client: httpx.Client) -> None:
        routing = generate(client, integration="cascade", cascade_threshold=0.0)["routing"]

        ids = [candidate["request_id"] for candidate in routing["integration"]["candidates"]]
        assert ids == [routing["request_id"].removesuffix("-1"), routing["request_id"]]
        base, mixture = (client.get(f"/requests/{each}").json() for each in ids)
        assert [each["plan"]["mode"] for each in (base, mixture)] == ["base", "routed"]
        # A prompt is one request to whoever counts what the release was not sure of.
        assert (base["confidence"], mixture["confidence"]) == (None, routing["confidence"])


class TestWords:
    @pytest.mark.parametrize("mode", ["mixture", "single", "ensemble", "cascade"])
    def test_openais_routes_take_them_under_routing(self, three_experts: str, router_url: str, mode: str) -> None:
        asked: dict[str, Any] = {"model": "adaptive-moe", "max_tokens": 4}
        asked["extra_body"] = {"routing": {"integration": mode}}
        with openai.OpenAI(base_url=f"{router_url}/v1", api_key="unused", max_retries=0) as ai:
            chat = ai.chat.completions.create(**asked, messages=[{"role": "user", "content": MATH}])
            completion = ai.completions.create(**asked, prompt=MATH)

        for choices in (chat.choices, completion.choices):
            assert len(choices) == 1
            routing = (choices[0].model_extra or {})["routing"]
            assert routing["integration"]["mode"] == mode
            assert sum(part["share"] for part in routing["attribution"]) == pytest.approx(1.0)

    def test_a_request_that_names_the_experts_is_no_integration(self, three_experts: str, client: httpx.Client) -> None:
        assert generate(client, adapter_id="math")["routing"]["integration"] is None
        assert generate(client)["routing"]["integration"] == {"mode": "mixture"}

    @pytest.mark.parametrize(
        ("parameters", "param"),
        [
            ({"integration": "single", "adapter_id": "math"}, "parameters.integration"),
            ({"integration": "cascade", "experts": {"math": 1.0}}, "parameters.integration"),
            ({"integration": "ensemble", "best_of": 2, "do_sample": True}, "parameters.integration"),
            ({"integration": "cascade", "best_of": 2, "do_sample": True}, "parameters.integration"),
            ({"integration": "choir"}, "parameters.integration"),
            ({"ensemble_size": 2}, "parameters"),
            ({"integration": "single", "cascade_threshold": -1.0}, "parameters"),
            ({"integration": "cascade", "cascade_threshold": 1.0}, "parameters.cascade_threshold"),
            ({"integration": "ensemble", "ensemble_size": 0}, "parameters.ensemble_size"),
            ({"integration": "ensemble", "ensemble_choice": "loudest"}, "parameters.ensemble_choice"),
        ],
    )
    def test_contradictions_are_refused_by_name(
        self, three_experts: str, client: httpx.Client, parameters: dict[str, Any], param: str
    ) -> None:
        response = post(client, **parameters)

        assert (response.status_code, response.json()["error"]["param"]) == (400, param)

    @pytest.mark.parametrize("mode", ["ensemble", "cascade"])
    def test_what_is_chosen_as_a_whole_cannot_be_streamed(
        self, three_experts: str, client: httpx.Client, mode: str
    ) -> None:
        routing = {"routing": {"integration": mode}}
        answers = [
            (post(client, "/generate_stream", integration=mode), "parameters.integration"),
            (client.post("/v1/completions", json={"prompt": MATH, "stream": True, **routing}), "routing.integration"),
            (client.post("/v1/completions", json={"prompt": [MATH, MATH], **routing}), "routing.integration"),
            (client.post("/v1/completions", json={"prompt": MATH, "n": 2, **routing}), "routing.integration"),
        ]

        for response, param in answers:
            error = response.json()["error"]
            assert (response.status_code, error["param"], error["code"]) == (400, param, "unsupported_parameter")
