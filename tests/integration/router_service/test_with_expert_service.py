"""Router service and real expert service together, on a real pretrained model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save
from sqlalchemy.orm import Session, sessionmaker

from services.router_service.main import build_app
from services.shared.config import RouterServiceSettings, RouterSettings, Settings
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.storage import Storage
from tests.integration.expert_service.serving import Served, serving
from tests.integration.router_service.running import served

pytestmark = pytest.mark.integration

TEXTS = {
    "story": "Once upon a time there was a little girl. She liked to play in the park with her dog. ",
    "sums": "3 + 4 = 7. 12 + 5 = 17. 8 - 2 = 6. 9 * 3 = 27. What is 4 + 4? 4 + 4 = 8. ",
    "code": "def f(x):\n    return x + 1\n\nfor i in range(10):\n    print(f(i))\n",
}
SUMS = "What is 3 + 4? 3 + 4 = 7. 12 + 5 ="
HIDDEN, RANK = 64, 4


def adapter_files(seed: int, *, hidden: int = HIDDEN, layers: int = 5) -> list[tuple[str, tuple[str, bytes]]]:
    """A small random LoRA on q_proj as PEFT saves it."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for layer in range(layers):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{prefix}.lora_A.weight"] = random.normal(0, 0.05, (RANK, hidden)).astype(np.float32)
        weights[f"{prefix}.lora_B.weight"] = random.normal(0, 0.05, (hidden, RANK)).astype(np.float32)
    config = (
        f'{{"peft_type": "LORA", "r": {RANK}, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}}'
    )
    return [
        ("files", ("adapter_config.json", config.encode())),
        ("files", ("adapter_model.safetensors", save(weights))),
    ]


@pytest.fixture(scope="module", name="root")
def storage_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module", name="replica")
def expert_service(shared_material: Path, root: Path) -> Iterator[Served]:
    with serving(shared_material / "models" / "stories260K-hf", root, max_sequences=8, num_slots=4) as replica:
        yield replica


@pytest.fixture(name="client")
def router_client(
    database_url: str, redis_url: str, sessions: sessionmaker[Session], replica: Served, root: Path, settings: Settings
) -> Iterator[httpx.Client]:
    own = RouterServiceSettings(expert_urls=(replica.url,), catalog_poll_s=0.05)
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

    def test_a_prompt_that_does_not_fit_is_told_the_real_models_limit(
        self, client: httpx.Client, replica: Served
    ) -> None:
        response = client.post("/generate", json={"inputs": "word " * 2000, "parameters": {"max_new_tokens": 12}})

        assert response.status_code == 413
        assert str(replica.base.max_context - 12) in response.json()["error"]["message"]
