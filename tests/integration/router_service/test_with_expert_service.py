"""Router service and real expert service together, on a real pretrained model."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.orm import Session, sessionmaker
from transformers import AutoModelForCausalLM

from services.router_service.main import build_app
from services.shared.config import RouterServiceSettings, RouterSettings, Settings
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.storage import Storage
from tests.conftest import PROJECT_ROOT
from tests.integration.expert_service.serving import Served, serving
from tests.integration.router_service.lora_upload import adapter_files
from tests.integration.router_service.running import served
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

TEXTS = {
    "story": "Once upon a time there was a little girl. She liked to play in the park with her dog. ",
    "sums": "3 + 4 = 7. 12 + 5 = 17. 8 - 2 = 6. 9 * 3 = 27. What is 4 + 4? 4 + 4 = 8. ",
    "code": "def f(x):\n    return x + 1\n\nfor i in range(10):\n    print(f(i))\n",
}
SUMS = "What is 3 + 4? 3 + 4 = 7. 12 + 5 ="


@pytest.fixture(scope="module", name="root")
def storage_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module", name="replica")
def expert_service(shared_material: Path, root: Path) -> Iterator[Served]:
    with serving(shared_material / "models" / "stories260K-hf", root, max_sequences=8, num_slots=4) as replica:
        yield replica


@pytest.fixture(scope="module", name="adapter_folder")
def operators_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "team" / "sums").mkdir(parents=True)
    for _, (name, content) in adapter_files(7):
        (folder / "team" / "sums" / name).write_bytes(content)
    return folder


@pytest.fixture(name="client")
def router_client(
    sessions: sessionmaker[Session], replica: Served, settings: Settings, adapter_folder: Path
) -> Iterator[httpx.Client]:
    own = RouterServiceSettings(expert_urls=(replica.url,), catalog_poll_s=0.05, adapter_folder=adapter_folder)
    ours = settings.model_copy(
        update={"base_model": replica.settings.base_model, "storage": replica.settings.storage, "router_service": own}
    )
    with served(build_app(ours)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def import_all(client: httpx.Client) -> None:
    for seed, (name, text) in enumerate(TEXTS.items()):
        files = [*adapter_files(seed), ("exemplars", ("texts.txt", (text * 40).encode()))]
        response = client.post("/experts", data={"name": name}, files=files)
        assert response.status_code == 201, response.text


def release_all(client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path) -> dict[str, Any]:
    storage = Storage(root)
    generic = [replica.ids(" ".join(TEXTS.values()) * 10)]
    with storage.stage() as folder:
        evidence = build_bigram_evidence(generic, replica.base.tokenizer.vocab_size)
        write_bayes_router(folder, settings=RouterSettings(), base_evidence=evidence)
        router = storage.publish(folder)
    response = client.post("/releases", json={"experts": list(TEXTS), "router": router})
    assert response.status_code == 201, response.text
    activated: dict[str, Any] = client.post(f"/releases/{response.json()['id']}/activate").json()
    return activated


def scraped(url: str) -> dict[str, dict[tuple[str, ...], float]]:
    """All samples by name and label values (in the order of the labels' names); families without samples are empty."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        found.setdefault(f"{family.name}_total" if family.type == "counter" else family.name, {})
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard."""
    found: dict[str, Any] = json.loads((PROJECT_ROOT / "deploy" / "grafana" / "adaptive-moe.json").read_text())
    return found


def names_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads."""
    return set(re.findall(r"\b(?:amoe_|vllm:)[a-z0-9_]+", expression))


class TestTogether:
    def test_imported_experts_are_released_routed_to_and_logged(
        self, client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path
    ) -> None:
        import_all(client)
        release = release_all(client, sessions, replica, root)

        answer = client.post(
            "/generate", json={"inputs": SUMS, "parameters": {"max_new_tokens": 6, "details": True}}
        ).json()

        routing = answer["routing"]
        assert routing["release"] == release["id"]
        assert routing["attribution"][0]["expert"] == "sums"
        assert sum(part["share"] for part in routing["attribution"]) == pytest.approx(1.0)
        for token in answer["details"]["tokens"]:
            assert sum(token["routing"].values()) == pytest.approx(1.0, abs=1e-5)

    def test_both_services_see_the_same_gate_at_every_prompt_token(
        self, client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path
    ) -> None:
        import_all(client)
        release = release_all(client, sessions, replica, root)
        prompt = "".join(TEXTS.values())
        experts = [
            {"name": part["name"], "version": part["version"], "digest": part["digest"]} for part in release["experts"]
        ]
        plan = {"mode": "routed", "router": release["router_digest"], "experts": experts, "candidates": list(TEXTS)}

        ours = client.post("/route", json={"inputs": prompt}).json()["tokens"]
        theirs = httpx.post(
            f"{replica.url}/scores", json={"prompt_ids": [token["id"] for token in ours], "plan": plan}, timeout=60
        ).json()

        our_scores_TC = np.array([[token["scores"][name] for name in theirs["columns"]] for token in ours])
        our_weights_TC = np.array([[token["weights"].get(name, 0.0) for name in theirs["columns"]] for token in ours])
        assert np.abs(our_scores_TC - np.array(theirs["scores"])).max() < 1e-6
        assert np.abs(our_weights_TC - np.array(theirs["weights"])).max() < 1e-6

    def test_streams_agree_with_whole_answers(self, client: httpx.Client) -> None:
        body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 12, "stop": ["!"]}}

        whole = client.post("/generate", json=body).json()["generated_text"]
        with client.stream("POST", "/generate_stream", json=body) as response:
            last = [line for line in response.iter_lines() if line.startswith("data:")][-1]

        assert f'"generated_text":"{whole}"' in last

    def test_what_the_base_model_cannot_take_is_refused_and_nothing_is_left(
        self, client: httpx.Client, root: Path, subtests: pytest.Subtests
    ) -> None:
        config, weights = adapter_files(0)
        pointer = b"version https://git-lfs.github.com/spec/v1\n"
        cases: dict[str, Any] = {
            "another base": adapter_files(0, hidden=32),
            "pickle": [config, ("files", ("adapter_model.safetensors", b"\x80\x04pickle" * 50))],
            "lfs pointer": [config, ("files", ("adapter_model.safetensors", pointer))],
            "not lora": [("files", ("adapter_config.json", b'{"peft_type": "IA3"}')), weights],
            "layers that are not there": adapter_files(0, layers=9),
        }
        before = set((root / "artifacts").iterdir())
        for name, files in cases.items():
            with subtests.test(name):
                response = client.post("/experts", data={"name": "odd"}, files=files)

                assert response.status_code == 422, response.text
                assert client.get("/experts/odd").status_code == 404
                assert set((root / "artifacts").iterdir()) == before

    def test_real_adapters_of_other_models_are_refused_with_a_reason(
        self, client: httpx.Client, shared_material: Path
    ) -> None:
        tried = 0
        for folder in sorted((shared_material / "adapters").iterdir()):
            found = {path.name: path for path in folder.rglob("*") if path.name.startswith("adapter_")}
            if "adapter_config.json" not in found:
                continue
            files = [("files", (name, path.read_bytes())) for name, path in found.items() if path.suffix != ".md"]
            response = client.post("/experts", data={"name": "foreign"}, files=files)
            tried += 1

            assert response.status_code in (400, 413, 422), f"{folder.name}: {response.text}"
            assert len(response.json()["error"]["message"]) > 20

        assert tried
        assert client.get("/experts/foreign").status_code == 404

    def test_every_metric_of_the_dashboard_is_in_a_scrape_and_no_name_has_two_meanings(
        self, client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path
    ) -> None:
        import_all(client)
        release_all(client, sessions, replica, root)
        client.post("/generate", json={"inputs": SUMS, "parameters": {"max_new_tokens": 6}}).raise_for_status()

        ours, theirs = (set(scraped(url)) for url in (str(client.base_url), replica.url))

        queried = {
            name
            for panel in dashboard()["panels"]
            for target in panel.get("targets", ())
            for name in names_in(target["expr"])
        }
        assert len(queried) > 30
        assert queried - ours - theirs == set()
        assert {name for name in ours & theirs if not name.startswith(("python_", "process_"))} == set()

    def test_a_scrape_tells_who_spoke_where_it_is_and_how_long_it_took(
        self, client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path
    ) -> None:
        import_all(client)
        release = release_all(client, sessions, replica, root)
        before = scraped(replica.url)
        client.post("/generate", json={"inputs": SUMS, "parameters": {"max_new_tokens": 6}}).raise_for_status()

        wait_until(
            lambda: (
                scraped(replica.url)["amoe_expert_queue_seconds_count"][()]
                > before["amoe_expert_queue_seconds_count"][()]
            )
        )
        theirs, ours = scraped(replica.url), scraped(str(client.base_url))

        def gained(name: str) -> float:
            return theirs[name][()] - before[name].get((), 0.0)

        assert gained("amoe_expert_first_token_seconds_count") == gained("amoe_expert_output_token_seconds_count") == 1
        assert gained("amoe_expert_experts_per_token_count") == 6
        digests = {expert["name"]: expert["digest"][:12] for expert in release["experts"]}
        assert theirs["amoe_expert_adapter_resident"][(digests["sums"], "sums", "device")] == 1
        assert theirs["amoe_expert_adapter_tokens_total"][("sums",)] > 3
        assert theirs["amoe_expert_memory_bytes"][("host",)] > 10**7
        assert theirs["amoe_expert_adapter_load_seconds_count"][("disk",)] >= 3
        assert theirs["amoe_expert_adapter_load_seconds_sum"][("disk",)] > 0
        assert sum(theirs["amoe_expert_adapter_found_total"].values()) >= 3
        assert theirs["vllm:num_requests_running"][()] == 0
        [(max_lora, running, waiting)] = theirs["vllm:lora_requests_info"]
        assert (max_lora, running, waiting) == ("4", "", "")
        assert ours["amoe_output_token_seconds_count"][()] == ours["amoe_queue_seconds_count"][()] == 1
        assert ours["amoe_experts_per_token_count"][()] == 6
        assert ours["amoe_expert_tokens_total"][("sums",)] > 3
        assert ours["amoe_replica_up"] == {("replica-1",): 1.0}

    def test_adapters_in_flight_are_named_for_affinity_routers_while_they_are(
        self, client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path
    ) -> None:
        import_all(client)
        body = {"inputs": SUMS, "parameters": {"max_new_tokens": 400, "adapter_id": "code", "ignore_eos_token": True}}
        with client.stream("POST", "/generate_stream", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data:")
            scrape = scraped(replica.url)
            during = set(scrape["vllm:lora_requests_info"])
            assert 0.0 < scrape["vllm:kv_cache_usage_perc"][()] < 1.0
            assert client.get("/replicas").json()["data"][0]["kv_usage"] is not None
        replica.wait_until_idle()

        assert during == {("4", "code", "")}
        assert set(scraped(replica.url)["vllm:lora_requests_info"]) == {("4", "", "")}

    def test_an_expert_that_is_gone_leaves_no_series_behind(
        self, client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path
    ) -> None:
        import_all(client)
        body = {"inputs": SUMS, "parameters": {"max_new_tokens": 4, "adapter_id": "code"}}
        client.post("/generate", json=body).raise_for_status()
        assert ("code",) in scraped(str(client.base_url))["amoe_expert_tokens_total"]

        client.delete("/experts/code").raise_for_status()

        assert ("code",) not in scraped(str(client.base_url))["amoe_expert_tokens_total"]
        body["parameters"] = {"adapter_id": "never-heard-of"}
        assert client.post("/generate", json=body).status_code == 404
        assert "never-heard-of" not in httpx.get(f"{client.base_url}/metrics").text

    def test_a_prompt_that_does_not_fit_is_told_the_real_models_limit(
        self, client: httpx.Client, replica: Served
    ) -> None:
        response = client.post("/generate", json={"inputs": "word " * 2000, "parameters": {"max_new_tokens": 12}})

        assert response.status_code == 413
        assert str(replica.base.max_context - 12) in response.json()["error"]["message"]


@pytest.fixture(name="ai")
def openai_client(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="unused", max_retries=0) as ai:
        yield ai


STORY = "Once upon a time"
BASE_MODEL = "stories260K-hf"


class TestOpenAI:
    def test_choices_are_drawn_with_seeds_of_their_own_whoever_else_draws(self, ai: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": BASE_MODEL, "prompt": STORY, "max_tokens": 12, "temperature": 1.2}

        together = ai.completions.create(**asked, n=3, seed=5)
        alone = [ai.completions.create(**asked, seed=5 + choice) for choice in range(3)]

        texts = [choice.text for choice in together.choices]
        assert texts == [completion.choices[0].text for completion in alone]
        assert len(set(texts)) == 3

    def test_a_streamed_chat_adds_up_to_the_whole(
        self, client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path, ai: openai.OpenAI
    ) -> None:
        import_all(client)
        release = release_all(client, sessions, replica, root)
        asked: dict[str, Any] = {
            "model": "adaptive-moe",
            "messages": [{"role": "user", "content": SUMS}],
            "max_tokens": 12,
            "temperature": 0,
        }

        whole = ai.chat.completions.create(**asked)
        chunks = list(ai.chat.completions.create(**asked, stream=True))

        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
        routing = (chunks[-1].choices[0].model_extra or {})["routing"]
        assert routing["release"] == release["id"]
        assert routing["attribution"] == (whole.choices[0].model_extra or {})["routing"]["attribution"]

    def test_scores_of_a_prompt_are_those_of_its_own_continuation(self, ai: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "base", "max_tokens": 6, "temperature": 0, "logprobs": 3}
        made = ai.completions.create(**asked, prompt=STORY).choices[0]
        read = ai.completions.create(**{**asked, "max_tokens": 0}, prompt=STORY + made.text, echo=True).choices[0]

        assert made.logprobs is not None
        assert read.logprobs is not None
        assert read.text == STORY + made.text
        num_made = len(made.logprobs.tokens or [])
        assert (read.logprobs.tokens or [])[-num_made:] == made.logprobs.tokens
        assert (read.logprobs.token_logprobs or [])[-num_made:] == pytest.approx(made.logprobs.token_logprobs, abs=1e-4)
        for token, top in zip(made.logprobs.tokens or [], made.logprobs.top_logprobs or [], strict=True):
            assert max(top, key=top.__getitem__) == token

    def test_penalties_biases_and_stop_strings_shape_the_answer(self, ai: openai.OpenAI, replica: Served) -> None:
        asked: dict[str, Any] = {"model": "base", "prompt": STORY, "max_tokens": 40, "temperature": 0}
        plain = ai.completions.create(**asked).choices[0]
        comma = replica.base.tokenizer.encode("time,", add_special_tokens=False)[-1]

        without_commas = ai.completions.create(**asked, logit_bias={str(comma): -100}).choices[0]
        varied = ai.completions.create(**asked, frequency_penalty=2, presence_penalty=2).choices[0]
        stopped = ai.completions.create(**asked, stop=[" was", "zzz"]).choices[0]

        def num_distinct(text: str) -> int:
            return len(set(replica.base.tokenizer.encode(text)))

        assert "," in plain.text
        assert "," not in without_commas.text
        assert num_distinct(varied.text) > num_distinct(plain.text)
        assert stopped.text == plain.text.partition(" was")[0]
        assert stopped.finish_reason == "stop"

    def test_the_best_of_several_is_the_likeliest(self, client: httpx.Client) -> None:
        parameters = {"best_of": 4, "do_sample": True, "temperature": 1.5, "seed": 1, "max_new_tokens": 8}
        body = {"inputs": STORY, "parameters": {**parameters, "details": True, "top_n_tokens": 2}}

        details = client.post("/generate", json=body).json()["details"]

        def mean(sequence: dict[str, Any]) -> float:
            return float(np.mean([token["logprob"] for token in sequence["tokens"]]))

        others = details["best_of_sequences"]
        assert len(others) == 3
        assert mean(details) >= max(map(mean, others))
        assert {details["seed"], *(other["seed"] for other in others)} == {1, 2, 3, 4}
        assert [len(top) for top in details["top_tokens"]] == [2] * len(details["tokens"])


class TestAblation:
    """Effects against readings that the test has the replica make, or finds in what was said while generating."""

    @staticmethod
    def read(replica: Served, token_ids: list[int], num_prompt: int, plan: dict[str, Any]) -> np.ndarray[Any, Any]:
        """Log-probabilities of the tokens after the prompt, as those of a longer prompt."""
        body = {
            "request_id": "twin",
            "prompt_ids": token_ids,
            "sampling": {"max_new_tokens": 1},
            "plan": plan,
            "prompt_logprobs": True,
        }
        lines = httpx.post(f"{replica.url}/sequences", json=body, timeout=60).text.splitlines()
        return np.array(json.loads(lines[-1])["prompt_logprobs"][num_prompt:])

    def test_of_routed_experts_is_what_the_gate_among_the_others_would_have_said(
        self, client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path
    ) -> None:
        import_all(client)
        release = release_all(client, sessions, replica, root)
        parameters = {"max_new_tokens": 9, "details": True, "decoder_input_details": True, "attribution": "ablation"}

        answer = client.post("/generate", json={"inputs": SUMS, "parameters": parameters}).json()

        prompt_ids = [token["id"] for token in answer["details"]["prefill"]]
        token_ids = [*prompt_ids, *(token["id"] for token in answer["details"]["tokens"])]
        experts = [{name: part[name] for name in ("name", "version", "digest")} for part in release["experts"]]
        plan = {"mode": "routed", "router": release["router_digest"], "experts": experts}

        def read(*candidates: str) -> np.ndarray[Any, Any]:
            return self.read(replica, token_ids, len(prompt_ids), {**plan, "candidates": candidates})

        together = read(*TEXTS)
        generated = [token["logprob"] for token in answer["details"]["tokens"]]
        np.testing.assert_allclose(together, generated, atol=1e-4)
        *parts, base = sorted(answer["routing"]["attribution"], key=lambda part: str(part["expert"] == "base"))
        assert (base["expert"], base.get("effect")) == ("base", None)
        assert "sums" in [part["expert"] for part in parts]
        for part in parts:
            expected = together - read(*(name for name in TEXTS if name != part["expert"]))
            np.testing.assert_allclose(part["token_effects"], expected, atol=1e-4)
            assert part["effect"] == pytest.approx(expected.mean(), abs=1e-4)
            assert part["total_effect"] == pytest.approx(expected.sum(), abs=1e-3)

    def test_of_one_fixed_expert_is_its_gain_over_the_base(self, client: httpx.Client, replica: Served) -> None:
        import_all(client)
        parameters = {"max_new_tokens": 9, "details": True, "attribution": "ablation", "adapter_id": "code"}

        answer = client.post("/generate", json={"inputs": SUMS, "parameters": parameters}).json()

        generated = np.array([token["logprob"] for token in answer["details"]["tokens"]])
        prompt_ids = replica.ids(SUMS)
        token_ids = [*prompt_ids, *(token["id"] for token in answer["details"]["tokens"])]
        expected = generated - self.read(replica, token_ids, len(prompt_ids), {"mode": "base"})
        assert answer["routing"]["attribution"][0]["expert"] == "code"
        np.testing.assert_allclose(answer["routing"]["attribution"][0]["token_effects"], expected, atol=1e-4)
        assert np.abs(expected).max() > 1e-3

    def test_an_answer_that_fills_the_context_is_read_again(self, client: httpx.Client, replica: Served) -> None:
        import_all(client)
        max_context = replica.base.max_context
        prompt_ids = (replica.ids(STORY) * max_context)[: max_context - 3]
        body = {"model": f"{BASE_MODEL}:story", "prompt": prompt_ids, "max_tokens": 3, "temperature": 0}

        answer = client.post(
            "/v1/completions", json={**body, "ignore_eos": True, "routing": {"attribution": "ablation"}}
        )

        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["total_tokens"] == max_context
        assert "effect" in answer.json()["choices"][0]["routing"]["attribution"][0]


class TestIntegration:
    @pytest.fixture(autouse=True, name="release")
    def released(
        self, client: httpx.Client, sessions: sessionmaker[Session], replica: Served, root: Path
    ) -> dict[str, Any]:
        import_all(client)
        return release_all(client, sessions, replica, root)

    @staticmethod
    def answer(client: httpx.Client, **parameters: Any) -> tuple[str, dict[str, Any]]:
        """The text and who wrote it."""
        body = {"inputs": SUMS, "parameters": {"max_new_tokens": 8, **parameters}}
        found = client.post("/generate", json=body).json()
        return found["generated_text"], found["routing"]

    def test_one_answers_alone_as_if_it_had_been_named(self, client: httpx.Client) -> None:
        scored = client.post("/route", json={"inputs": SUMS}).json()["tokens"]
        means = {name: np.mean([token["scores"][name] for token in scored]) for name in scored[0]["scores"]}
        best = max(means, key=means.__getitem__)

        text, routing = self.answer(client, integration="single")

        assert text == self.answer(client, adapter_id=best)[0]
        assert routing["attribution"][0] == {"expert": best, "share": 1.0, "num_tokens": 8}
        assert routing["integration"] == {"mode": "single"}

    def test_the_likeliest_under_the_mixture_is_given_of_several(
        self, client: httpx.Client, replica: Served, release: dict[str, Any]
    ) -> None:
        text, routing = self.answer(client, integration="ensemble", ensemble_size=4)

        candidates = routing["integration"]["candidates"]
        assert sorted(candidate["written_by"] for candidate in candidates) == sorted([*TEXTS, "base"])
        experts = [{name: part[name] for name in ("name", "version", "digest")} for part in release["experts"]]
        mixture = {
            "mode": "routed",
            "router": release["router_digest"],
            "experts": experts,
            "candidates": list(TEXTS),
        }
        for candidate in candidates:
            logged = client.get(f"/requests/{candidate['request_id']}").json()
            token_ids = [token["id"] for token in logged["tokens"]]
            expected = TestAblation.read(replica, token_ids, logged["num_prompt_tokens"], mixture).mean()
            assert candidate["score"] == pytest.approx(expected, abs=1e-4)
            assert logged["generated_text"] == self.answer(client, adapter_id=candidate["written_by"])[0]
        [chosen] = [candidate for candidate in candidates if candidate["chosen"]]
        assert chosen["score"] == max(candidate["score"] for candidate in candidates)
        assert routing["attribution"][0]["expert"] == chosen["written_by"]
        assert text == self.answer(client, adapter_id=chosen["written_by"])[0]

    @pytest.mark.parametrize(("threshold", "writer"), [(0.0, "mixture"), (-100.0, "base")])
    def test_the_base_answers_unless_it_is_not_sure(self, client: httpx.Client, threshold: float, writer: str) -> None:
        text, routing = self.answer(client, integration="cascade", cascade_threshold=threshold)

        assert text == self.answer(client, **({} if writer == "mixture" else {"adapter_id": "base"}))[0]
        report = routing["integration"]
        assert report["threshold"] == threshold
        assert [(part["written_by"], part["chosen"]) for part in report["candidates"]][-1] == (writer, True)
        assert report["candidates"][0]["written_by"] == "base"


def own_states(folder: str, token_ids: list[int]) -> np.ndarray[Any, Any]:
    """transformers' own last hidden states of a text, averaged: [D]."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        states_1TD = model.base_model(torch.tensor([token_ids])).last_hidden_state
    averaged: np.ndarray[Any, Any] = states_1TD[0].mean(dim=0).numpy()
    return averaged


class TestEmbeddings:
    @pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
    def test_are_the_mean_of_transformers_own_states_in_the_inputs_order(
        self, ai: openai.OpenAI, replica: Served, encoding: dict[str, Any]
    ) -> None:
        texts = [STORY, SUMS, "a", "The dog. " * 60, STORY]

        answer = ai.embeddings.create(model=BASE_MODEL, input=texts, **encoding)

        assert [item.index for item in answer.data] == [0, 1, 2, 3, 4]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(replica.ids(text)) for text in texts)
        for text, item in zip(texts, answer.data, strict=True):
            expected_D = own_states(replica.settings.base_model, replica.ids(text))
            np.testing.assert_allclose(item.embedding, expected_D, atol=1e-5, rtol=1e-5)

    def test_a_text_its_ids_and_its_place_in_a_batch_give_one_vector(self, ai: openai.OpenAI, replica: Served) -> None:
        alone = ai.embeddings.create(model="base", input=SUMS).data[0].embedding
        by_ids = ai.embeddings.create(model="base", input=replica.ids(SUMS)).data[0].embedding
        many = ai.embeddings.create(model="base", input=[replica.ids(STORY * 9)] * 30 + [replica.ids(SUMS)])

        np.testing.assert_allclose(by_ids, alone, atol=1e-5)
        np.testing.assert_allclose(many.data[-1].embedding, alone, atol=1e-5)

    def test_an_expert_reads_in_its_own_way(self, client: httpx.Client, ai: openai.OpenAI) -> None:
        import_all(client)

        by_base = np.array(ai.embeddings.create(model="base", input=SUMS).data[0].embedding)
        by_expert = np.array(ai.embeddings.create(model=f"{BASE_MODEL}:sums", input=SUMS).data[0].embedding)

        assert by_expert.shape == by_base.shape
        assert np.abs(by_expert - by_base).max() > 1e-3

    @pytest.mark.parametrize(
        ("asked", "param"),
        [
            ({"input": ""}, "input"),
            ({"input": []}, "input"),
            ({"input": ["fine", 3]}, "input"),
            ({"input": ["x"] * 2049}, "input"),
            ({"input": [99999]}, "input"),
            ({"input": ["fine", "word " * 2000]}, "input.1"),
            ({"input": "x", "dimensions": 2}, "dimensions"),
            ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ],
        ids=["empty", "nothing", "mixed", "too many", "no token", "too long", "dimensions", "format"],
    )
    def test_what_cannot_be_embedded_is_refused_by_name(
        self, ai: openai.OpenAI, asked: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            ai.embeddings.create(**{"model": "base", "encoding_format": "float", **asked})

        assert refused.value.param == param
        assert len(refused.value.message) > 20

    def test_a_model_that_is_not_there_is_404(self, ai: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as refused:
            ai.embeddings.create(model="text-embedding-3-small", input="x")

        assert refused.value.code == "model_not_found"


class TestAdapterFolder:
    def test_an_adapter_is_loaded_as_vllm_does_it_asked_for_by_name_and_unloaded(
        self, client: httpx.Client, ai: openai.OpenAI
    ) -> None:
        body = {"lora_name": "sums", "lora_path": "team/sums"}

        loaded = client.post("/v1/load_lora_adapter", json=body)
        again = client.post("/v1/load_lora_adapter", json=body)
        replaced = client.post("/v1/load_lora_adapter", json={**body, "load_inplace": True})
        answer = ai.completions.create(model="sums", prompt=SUMS, max_tokens=2)
        unloaded = client.post("/v1/unload_lora_adapter", json={"lora_name": "sums"})

        assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sums' added successfully.")
        assert (again.status_code, again.json()["error"]["code"]) == (400, "lora_adapter_already_loaded")
        assert replaced.status_code == 200
        attribution = (answer.choices[0].model_extra or {})["routing"]["attribution"]
        assert attribution[0]["expert"] == "sums"
        assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'sums' removed successfully.")
        with pytest.raises(openai.NotFoundError):
            ai.completions.create(model="sums", prompt=SUMS, max_tokens=2)

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({"lora_name": "x", "lora_path": "../../etc"}, 400, "adapter_path_forbidden"),
            ({"lora_name": "x", "lora_path": "/etc"}, 400, "adapter_path_forbidden"),
            ({"lora_name": "x", "lora_path": "team"}, 404, "adapter_path_not_found"),
            ({"lora_name": "../x", "lora_path": "team/sums"}, 400, "invalid_request"),
            ({"lora_name": "base", "lora_path": "team/sums"}, 400, "invalid_request"),
            ({"lora_name": "x"}, 400, "invalid_request"),
        ],
    )
    def test_what_cannot_be_loaded_is_refused_by_name(
        self, client: httpx.Client, body: dict[str, Any], status: int, code: str
    ) -> None:
        response = client.post("/v1/load_lora_adapter", json=body)

        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "nobody"}).status_code == 404
