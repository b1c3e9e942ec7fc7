"""Importing, listing and retiring experts over HTTP."""

import json
from typing import Any

import httpx
import pytest

from services.shared.storage import Storage
from tests.integration.router_service.base_folder import TEXTS
from tests.integration.router_service.replica_double import ReplicaDouble

pytestmark = pytest.mark.integration

CONFIG = ("adapter_config.json", b'{"peft_type": "LORA", "r": 8}')
WEIGHTS = ("adapter_model.safetensors", b"weights")
EXEMPLARS = ("math.jsonl", "\n".join(json.dumps({"text": TEXTS["math"]}) for _ in range(20)).encode())


def import_expert(
    client: httpx.Client,
    name: str = "math",
    *,
    files: tuple[tuple[str, bytes], ...] = (CONFIG, WEIGHTS),
    exemplars: tuple[str, bytes] | None = None,
    **fields: Any,
) -> httpx.Response:
    parts = [("files", file) for file in files] + ([("exemplars", exemplars)] if exemplars else [])
    return client.post("/experts", data={"name": name, **fields}, files=parts)


def nothing_is_left(client: httpx.Client, storage: Storage) -> bool:
    listed = client.get("/experts?retired=true").json()["data"]
    return not listed and not list(storage.artifacts.iterdir()) and not list(storage.staging.iterdir())


WRONG_ADAPTERS: list[tuple[tuple[tuple[str, bytes], ...], str]] = [
    ((CONFIG,), "adapter_model.safetensors is missing"),
    ((WEIGHTS,), "adapter_config.json is missing"),
    ((CONFIG, ("adapter_model.bin", b"x")), "can run code"),
    ((CONFIG, WEIGHTS, ("extra.pkl", b"x")), "can run code"),
    ((CONFIG, WEIGHTS, ("readme.md", b"x")), "readme.md is not expected"),
    ((CONFIG, CONFIG, WEIGHTS), "each once"),
    ((("adapter_config.json", b"{"), WEIGHTS), "not a JSON object"),
    ((("adapter_config.json", b"[" * 10_000), WEIGHTS), "not a JSON object"),
    ((("adapter_config.json", b" " * 1_100_000), WEIGHTS), "larger than"),
    ((CONFIG, ("adapter_model.safetensors", b"bad")), "The weights are bad"),
]


class TestImport:
    def test_an_adapter_becomes_an_expert_that_can_be_named_at_once(
        self, client: httpx.Client, double: ReplicaDouble, storage: Storage
    ) -> None:
        response = import_expert(client, domain="sums", description="adds")

        assert response.status_code == 201, response.text
        expert = response.json()
        assert (expert["name"], expert["domain"], expert["latest_version"], expert["retired"]) == (
            "math",
            "sums",
            1,
            False,
        )
        [version] = expert["versions"]
        assert (version["has_evidence"], version["source"]) == (False, "imported")
        folder = storage.artifact(version["digest"])
        assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        body = {"inputs": "1 + 1", "parameters": {"adapter_id": "math"}}
        assert client.post("/generate", json=body).status_code == 200
        assert double.requests[-1].plan.experts[0].digest == version["digest"]

    def test_again_makes_the_next_version(self, client: httpx.Client) -> None:
        import_expert(client)

        assert import_expert(client, files=(CONFIG, (WEIGHTS[0], b"better"))).json()["latest_version"] == 2

    def test_with_exemplars_it_joins_the_release_and_is_routed_to(
        self, registry: Any, client: httpx.Client, storage: Storage
    ) -> None:
        for name in ("code", "story"):
            registry.expert(name)
        registry.release("code", "story")

        response = import_expert(client, exemplars=EXEMPLARS, add_to_release="true", activate="true")

        assert response.status_code == 201, response.text
        expert = response.json()
        assert expert["release"] == "release-2"
        assert expert["active_version"] == 1
        release = client.get("/releases/release-2").json()
        assert [part["name"] for part in release["experts"]] == ["code", "story", "math"]
        assert release["status"] == "active"
        answer = client.post("/generate", json={"inputs": "Tom has 12 apples and buys 5 more."}).json()
        assert answer["routing"]["release"] == "release-2"
        assert answer["routing"]["attribution"][0]["expert"] == "math"
        folder = storage.artifact(expert["versions"][0]["digest"])
        assert (folder / "evidence" / "bigram.safetensors").is_file()
        assert json.loads((folder / "exemplars.jsonl").read_text().splitlines()[0])["text"] == TEXTS["math"]

    def test_a_new_version_takes_the_place_of_the_old_in_the_release(
        self, three_experts: str, client: httpx.Client
    ) -> None:
        release = import_expert(client, exemplars=EXEMPLARS, add_to_release="true").json()["release"]

        experts = client.get(f"/releases/{release}").json()["experts"]

        assert [(part["name"], part["version"]) for part in experts] == [("math", 2), ("code", 1), ("story", 1)]

    def test_a_wrong_adapter_is_refused_and_nothing_is_left(
        self, client: httpx.Client, storage: Storage, subtests: pytest.Subtests
    ) -> None:
        for files, reason in WRONG_ADAPTERS:
            with subtests.test(reason):
                response = import_expert(client, files=files)

                assert response.status_code in (413, 422)
                assert reason in response.json()["error"]["message"]
                assert nothing_is_left(client, storage)

    def test_a_name_that_is_none_is_refused(
        self, client: httpx.Client, storage: Storage, subtests: pytest.Subtests
    ) -> None:
        for name in ("base", "Math", "", "a/b", "../a", "a" * 65, "-a", "a\x00"):
            with subtests.test(repr(name)):
                response = import_expert(client, name)

                assert response.status_code == 400
                assert response.json()["error"]["param"] == "name"
                assert nothing_is_left(client, storage)

    def test_path_in_a_file_name_is_only_a_name(self, client: httpx.Client, storage: Storage) -> None:
        response = import_expert(client, files=(("../../adapter_config.json", CONFIG[1]), WEIGHTS))

        assert response.status_code == 201
        assert not (storage.root.parent / "adapter_config.json").exists()

    def test_bad_exemplars_are_told_by_line_and_nothing_is_left(self, client: httpx.Client, storage: Storage) -> None:
        response = import_expert(client, exemplars=("e.jsonl", b'{"text": "a"}\n{"text": '))

        assert response.status_code == 422
        assert "line 2" in response.json()["error"]["message"]
        assert response.json()["error"]["param"] == "exemplars"
        assert nothing_is_left(client, storage)

    def test_joining_a_release_needs_exemplars(self, three_experts: str, client: httpx.Client) -> None:
        response = import_expert(client, "new", add_to_release="true")

        assert response.status_code == 400
        assert "needs exemplars" in response.json()["error"]["message"]
        assert client.get("/experts/new").status_code == 404

    def test_joining_without_any_router_says_how_to_make_one(self, client: httpx.Client) -> None:
        response = import_expert(client, exemplars=EXEMPLARS, add_to_release="true")

        assert response.status_code == 409
        assert "POST /jobs" in response.json()["error"]["message"]
        assert client.get("/experts/math").status_code == 404

    def test_activating_without_joining_is_refused(self, client: httpx.Client) -> None:
        assert import_expert(client, activate="true").status_code == 400


class TestBetweenPolls:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"catalog_poll_s": 3600.0}

    def test_an_expert_that_a_worker_just_made_can_be_named(self, client: httpx.Client, registry: Any) -> None:
        registry.expert("math")
        generated = client.post("/generate", json={"inputs": "2 + 2", "parameters": {"adapter_id": "math"}})
        registry.expert("code")
        completed = client.post("/v1/completions", json={"model": "code", "prompt": "def", "max_tokens": 1})
        unknown = client.post("/generate", json={"inputs": "2 + 2", "parameters": {"adapter_id": "chess"}})

        assert (generated.status_code, completed.status_code) == (200, 200)
        assert completed.json()["choices"][0]["routing"]["attribution"][0]["expert"] == "code"
        assert unknown.json()["error"]["code"] == "expert_not_found"


class TestWithoutReplica:
    @pytest.fixture
    def replica_url(self) -> str:
        return "http://127.0.0.1:9"

    def test_an_import_is_a_503_and_nothing_is_registered(self, client: httpx.Client) -> None:
        response = import_expert(client)

        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert client.get("/experts").json()["data"] == []


class TestList:
    def test_pages_by_name(self, registry: Any, client: httpx.Client) -> None:
        for name in ("story", "code", "math"):
            registry.expert(name)

        first = client.get("/experts?limit=2").json()
        second = client.get(f"/experts?limit=2&after={first['data'][-1]['id']}").json()

        assert (first["object"], first["has_more"], second["has_more"]) == ("list", True, False)
        assert [expert["id"] for expert in first["data"] + second["data"]] == ["code", "math", "story"]

    def test_retired_ones_are_there_on_demand(self, registry: Any, client: httpx.Client) -> None:
        registry.expert("math")
        assert client.delete("/experts/math").json() == {"id": "math", "object": "expert", "deleted": True}

        assert client.get("/experts").json()["data"] == []
        assert client.get("/experts?retired=true").json()["data"][0]["retired"] is True

    def test_one_that_speaks_in_the_active_release_cannot_be_retired(
        self, three_experts: str, client: httpx.Client
    ) -> None:
        response = client.delete("/experts/math")

        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"
        assert three_experts in response.json()["error"]["message"]
