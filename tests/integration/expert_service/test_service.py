"""The expert service over HTTP with a real pretrained base model and a real Bayes router."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from services.local_stack.ports import free_port
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.storage import Storage
from tests.integration.expert_service.serving import (
    EVENT,
    Served,
    answer,
    publish_expert,
    publish_router,
    serving,
)

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TEXTS = {
    "story": "Once upon a time there was a little girl. She liked to play in the park with her dog. " * 8,
    "sums": "3 + 4 = 7. 12 + 5 = 17. 8 - 2 = 6. 9 * 3 = 27. What is 4 + 4? 4 + 4 = 8. " * 8,
    "code": "def f(x):\n    return x + 1\n\nfor i in range(10):\n    print(f(i))\n" * 8,
}
STORY, SUMS = "Once upon a time", "What is 3 + 4? 3 + 4 ="


def save_adapter(base: Path, folder: Path, *, seed: int, rank: int) -> Path:
    """A random adapter for the base model; small enough that it still speaks."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.05)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module", name="base_model")
def stories(shared_material: Path) -> Path:
    return shared_material / "models" / "stories260K-hf"


@pytest.fixture(scope="module", name="served")
def served_stories(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("storage")
    storage = Storage(root)
    with serving(base_model, root, max_sequences=8, num_slots=3) as served:
        for seed, (name, text) in enumerate(TEXTS.items()):
            folder = save_adapter(base_model, tmp_path_factory.mktemp(name), seed=seed, rank=2 + 3 * seed)
            served.experts[name] = publish_expert(storage, folder, [served.ids(text)], 512)
        served.router = publish_router(storage, [served.ids(" ".join(TEXTS.values()))], 512)
        yield served


class TestSequences:
    def test_the_base_alone_is_the_models_own_answer(self, served: Served, base_model: Path) -> None:
        tokens, finished = answer(served.generate(STORY, served.plan("base"), max_new_tokens=20))

        model = AutoModelForCausalLM.from_pretrained(base_model)
        prompt_ids = torch.tensor([served.ids(STORY)])
        expected = model.generate(prompt_ids, max_new_tokens=20, do_sample=False)[0, prompt_ids.shape[1] :]
        assert [token.id for token in tokens] == expected.tolist()
        assert (
            finished.generated_text == served.base.tokenizer.decode(served.ids(STORY) + expected.tolist())[len(STORY) :]
        )
        assert "".join(token.text for token in tokens) == finished.generated_text
        assert (finished.finish_reason, finished.num_generated_tokens) == ("length", 20)

    def test_one_fixed_expert_is_its_peft_adapter(self, served: Served, base_model: Path) -> None:
        plan = served.plan("fixed", candidates=["sums"], weights={"sums": 1.0})
        tokens, _ = answer(served.generate(SUMS, plan, max_new_tokens=12))

        folder = Storage(served.settings.storage.root).artifact(served.experts["sums"])
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_model), folder)
        token_ids = served.ids(SUMS) + [token.id for token in tokens]
        with torch.no_grad():
            logprobs_TV = model(torch.tensor([token_ids])).logits[0].log_softmax(dim=-1)
        start = len(token_ids) - len(tokens)
        for index, token in enumerate(tokens):
            assert token.logprob == pytest.approx(logprobs_TV[start + index - 1, token.id].item(), abs=1e-4)
            assert token.gates == {"sums": 1.0}

    def test_routed_gates_are_the_release_scorers(self, served: Served) -> None:
        tokens, finished = answer(served.generate(SUMS, served.plan("routed"), max_new_tokens=15))

        storage = Storage(served.settings.storage.root)
        scorer = ReleaseScorer.load(
            router_dir=storage.artifact(served.router),
            graph_dir=None,
            experts=[(name, storage.artifact(digest)) for name, digest in served.experts.items()],
            vocab_size=512,
        )
        token_ids = served.ids(SUMS) + [token.id for token in tokens]
        weights_TC = scorer.weights(scorer.advance(scorer.start(), token_ids), list(served.experts))
        for index, token in enumerate(tokens):
            before = len(token_ids) - len(tokens) + index - 1
            expected = {name: w for name, w in zip(scorer.columns, weights_TC[before].tolist(), strict=True) if w}
            assert token.gates == pytest.approx(expected, abs=1e-6)
        assert finished.num_prompt_tokens == len(served.ids(SUMS))
        # After the prompt: what the experts write afterwards may be of any domain.
        assert max(tokens[0].gates, key=tokens[0].gates.__getitem__) == "sums"

    def test_many_at_once_get_what_each_gets_alone(self, served: Served) -> None:
        requests = [
            (text, plan, {"max_new_tokens": 6 + index})
            for index, (text, plan) in enumerate(
                [
                    (STORY, served.plan("routed")),
                    (SUMS, served.plan("routed")),
                    (SUMS, served.plan("base")),
                    ("def f(x):", served.plan("routed")),
                    (STORY, served.plan("fixed", candidates=["code", "sums"], weights={"code": 0.4, "sums": 0.3})),
                    ("The dog", served.plan("routed", candidates=["story"])),
                ]
                * 2
            )
        ]
        alone = [answer(served.generate(text, plan, **sampling)) for text, plan, sampling in requests]
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            futures = [pool.submit(served.generate, text, plan, **sampling) for text, plan, sampling in requests]
            together = [answer(future.result()) for future in futures]

        for (tokens, _), (same_tokens, _) in zip(alone, together, strict=True):
            assert [t.id for t in tokens] == [t.id for t in same_tokens]
            assert [t.gates for t in tokens] == [t.gates for t in same_tokens]

    def test_sampling_with_a_seed_repeats_itself(self, served: Served) -> None:
        options = {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "top_k": 50, "seed": 11, "max_new_tokens": 20}
        first, again = (answer(served.generate(STORY, served.plan("routed"), **options)) for _ in range(2))
        other, _ = answer(served.generate(STORY, served.plan("routed"), **{**options, "seed": 12}))
        assert [t.id for t in first[0]] == [t.id for t in again[0]]
        assert [t.id for t in first[0]] != [t.id for t in other]
        assert first[1].seed == 11

    def test_a_stop_string_ends_before_itself(self, served: Served) -> None:
        _, finished = answer(served.generate(STORY, served.plan("base"), max_new_tokens=40, stop=["little g"]))
        assert finished.finish_reason == "stop_sequence"
        assert finished.generated_text == ", there was a "

    def test_prompt_logprobs_have_one_entry_per_token(self, served: Served) -> None:
        body = served.body(STORY, served.plan("routed")) | {"prompt_logprobs": True}
        lines = httpx.post(f"{served.url}/sequences", json=body).text.splitlines()
        finished = EVENT.validate_json(lines[-1])
        logprobs = finished.prompt_logprobs
        assert len(logprobs) == len(served.ids(STORY))
        assert logprobs[0] is None
        assert all(value <= 0 for value in logprobs[1:])

    def test_a_client_that_leaves_frees_its_place(self, served: Served) -> None:
        body = served.body(STORY, served.plan("routed"), max_new_tokens=480, ignore_eos_token=True)
        with served.client as client, client.stream("POST", "/sequences", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            assert client.get("/status").json()["running"] >= 1
        left_at = time.monotonic()
        status = served.wait_until_idle(seconds=1.5)
        assert time.monotonic() - left_at < 1.5
        assert status["pinned"] == []


def refused(served: Served, status: int, code: str, **changes: Any) -> dict[str, Any]:
    body = served.body(STORY, served.plan("base")) | changes
    response = httpx.post(f"{served.url}/sequences", json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    return error


class TestRefusals:
    def test_come_before_the_first_byte_in_the_one_shape(self, served: Served) -> None:
        too_many = {"max_new_tokens": 600}
        assert refused(served, 413, "prompt_too_long", sampling=too_many)["param"] == "max_new_tokens"
        refused(served, 413, "prompt_too_long", prompt_ids=[5] * 513)
        refused(served, 400, "invalid_request", prompt_ids=[512])
        refused(served, 400, "invalid_request", prompt_ids=[])
        refused(served, 400, "invalid_request", sampling={"max_new_tokens": 0})
        refused(served, 400, "invalid_request", sampling={"stop": [""]})
        refused(served, 400, "invalid_request", nonsense=1)
        unknown = served.plan("fixed", candidates=["ghost"], weights={"ghost": 1.0})
        assert "ghost" in refused(served, 400, "invalid_request", plan=unknown)["message"]
        no_weights = served.plan("fixed", candidates=["sums"])
        assert refused(served, 400, "invalid_request", plan=no_weights)["param"] == "plan.weights"
        refused(served, 404, "not_found", plan=served.plan("routed", router="0" * 64))

    def test_of_more_experts_than_slots(self, served: Served) -> None:
        experts = [{"name": f"e{index}", "version": 1, "digest": served.experts["sums"]} for index in range(4)]
        names = [expert["name"] for expert in experts]
        plan = {"mode": "fixed", "experts": experts, "candidates": names, "weights": dict.fromkeys(names, 0.2)}
        assert "3 slots" in refused(served, 400, "too_many_experts", plan=plan)["message"]

    def test_of_a_damaged_artifact(self, served: Served, base_model: Path, tmp_path: Path) -> None:
        storage = Storage(served.settings.storage.root)
        digest = storage.publish(save_adapter(base_model, tmp_path / "a", seed=9, rank=2))
        weights = storage.artifact(digest) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
        plan = {
            "mode": "fixed",
            "experts": [{"name": "x", "version": 1, "digest": digest}],
            "candidates": ["x"],
            "weights": {"x": 1.0},
        }
        error = refused(served, 409, "artifact_damaged", plan=plan)
        assert error["message"].startswith("x cannot be used. The artifact")
        assert "damaged" in error["message"]
        # Of several experts it is this one that can be acted on.
        assert error["param"] == "plan.experts.x"

    def test_of_adapters_for_other_models(self, served: Served, shared_material: Path) -> None:
        storage = Storage(served.settings.storage.root)
        for folder in sorted((shared_material / "adapters").iterdir()):
            response = httpx.post(f"{served.url}/adapters/check", json={"digest": storage.publish(folder)})
            assert response.status_code == 422
            assert response.json()["error"]["code"] == "invalid_adapter"


class TestOtherRoutes:
    def test_scores_are_those_of_the_gate_in_generation(self, served: Served) -> None:
        body = {"prompt_ids": served.ids(SUMS), "plan": served.plan("routed")}
        scores = httpx.post(f"{served.url}/scores", json=body).json()
        tokens, _ = answer(served.generate(SUMS, served.plan("routed"), max_new_tokens=1))

        assert scores["columns"] == [*served.experts, "base"]
        assert len(scores["scores"]) == len(scores["weights"]) == len(served.ids(SUMS))
        last = {n: w for n, w in zip(scores["columns"], scores["weights"][-1], strict=True) if w}
        assert tokens[0].gates == pytest.approx(last, abs=1e-6)

    def test_an_adapter_is_checked_against_the_base(self, served: Served) -> None:
        report = httpx.post(f"{served.url}/adapters/check", json={"digest": served.experts["sums"]}).json()
        assert (report["rank"], report["lowest_layer"]) == (5, 0)
        assert report["base_fingerprint"] == httpx.get(f"{served.url}/base").json()["fingerprint"]

    def test_status_health_and_metrics(self, served: Served) -> None:
        plan = served.plan("fixed", candidates=["story"], weights={"story": 1.0})
        served.generate(STORY, plan)
        status = served.wait_until_idle()

        assert served.experts["story"] in status["resident"]
        assert httpx.get(f"{served.url}/live").status_code == 200
        assert httpx.get(f"{served.url}/ready").json() == {"status": "ready"}
        base = httpx.get(f"{served.url}/base").json()
        assert (base["vocab_size"], base["max_context"], base["num_parameters"]) == (512, 512, 260_032)
        metrics = httpx.get(f"{served.url}/metrics").text
        for name in ("sequences_running", "generated_tokens_total", "step_seconds_bucket", "adapter_cache_hits_total"):
            assert f"amoe_expert_{name}" in metrics


class TestDrain:
    def test_a_closed_intake_refuses_the_new_and_ends_the_old(self, served: Served) -> None:
        body = served.body(STORY, served.plan("base"), max_new_tokens=60, ignore_eos_token=True)
        with served.client as client, client.stream("POST", "/sequences", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            assert httpx.post(f"{served.url}/drain").json()["draining"] is True
            refusal = httpx.post(f"{served.url}/sequences", json=body)
            events = list(lines)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "replica_draining")
        assert json.loads(events[-1])["num_generated_tokens"] == 60
        assert 'amoe_expert_sequences_rejected_total{reason="replica_draining"} 1.0' in _metrics(served)
        assert "amoe_expert_draining 1.0" in _metrics(served)

        assert httpx.post(f"{served.url}/undrain").json()["draining"] is False
        answer(served.generate(STORY, served.plan("base")))


def _metrics(served: Served) -> str:
    return httpx.get(f"{served.url}/metrics").text


class TestQueue:
    def test_a_full_queue_answers_429_with_retry_after(self, base_model: Path, tmp_path: Path) -> None:
        with serving(base_model, tmp_path, max_sequences=1, max_waiting=0) as served, served.client as client:
            body = served.body(STORY, served.plan("base"), max_new_tokens=480, ignore_eos_token=True)
            with client.stream("POST", "/sequences", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                second = httpx.post(f"{served.url}/sequences", json=body)
            assert second.status_code == 429
            assert int(second.headers["retry-after"]) >= 1
            assert second.json()["error"]["code"] == "overloaded"


@pytest.mark.slow
class TestProcess:
    def test_a_terminated_replica_ends_its_streams_in_words(self, base_model: Path, tmp_path: Path) -> None:
        port = free_port()
        environment = os.environ | {
            "AMOE_BASE_MODEL": str(base_model),
            "AMOE_STORAGE__ROOT": str(tmp_path),
            "AMOE_EXPERT_SERVICE__PORT": str(port),
            "AMOE_EXPERT_SERVICE__NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "services.expert_service.main"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process)
            body = {
                "request_id": "x",
                "prompt_ids": [1, 403, 407],
                "sampling": {"max_new_tokens": 500, "ignore_eos_token": True},
                "plan": {"mode": "base"},
            }
            with httpx.Client(timeout=60) as client, client.stream("POST", f"{url}/sequences", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                last = json.loads(list(lines)[-1])
            assert process.wait(timeout=15) == 0
        assert last["type"] == "finished" or last["code"] == "shutting_down"

    def test_a_setting_that_cannot_work_stops_the_start_with_its_name(self, base_model: Path, tmp_path: Path) -> None:
        environment = os.environ | {
            "AMOE_BASE_MODEL": str(base_model),
            "AMOE_STORAGE__ROOT": str(tmp_path),
            "AMOE_QUANTIZATION": "4bit",
            "AMOE_DEVICE": "cpu",
        }
        command = [sys.executable, "-m", "services.expert_service.main"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 2
        assert "quantization" in result.stderr


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the service ended with {process.returncode}")
