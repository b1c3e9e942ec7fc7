"""Pinned experts: remembered by the registry, kept in slots by real replicas."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.local_stack.ports import free_port
from services.router_service.main import build_app
from services.shared.config import RouterServiceSettings, Settings
from tests.integration.expert_service.serving import serving
from tests.integration.router_service.lora_upload import adapter_files
from tests.integration.router_service.running import served

pytestmark = pytest.mark.integration

NUM_SLOTS = 3
NAMES = ("ada", "bob", "cyd", "dan")


@pytest.fixture(name="base_model")
def stories(shared_material: Path) -> Path:
    return shared_material / "models" / "stories260K-hf"


@pytest.fixture(name="port")
def replica_port() -> int:
    return free_port()


@pytest.fixture(name="client")
def router_client(
    base_model: Path, port: int, sessions: sessionmaker[Session], settings: Settings
) -> Iterator[httpx.Client]:
    """The router service; its replica is up while a test runs `replica`."""
    own = RouterServiceSettings(expert_urls=(f"http://127.0.0.1:{port}",), catalog_poll_s=0.05)
    ours = settings.model_copy(update={"base_model": str(base_model), "router_service": own})
    with served(build_app(ours)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def status(port: int) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/status").json()
    return answer


def until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


def import_experts(client: httpx.Client) -> dict[str, str]:
    """Digests by name."""
    until(lambda: client.get("/ready").status_code == 200)
    digests = {}
    for seed, name in enumerate(NAMES):
        response = client.post("/experts", data={"name": name}, files=adapter_files(seed))
        assert response.status_code == 201, response.text
        digests[name] = response.json()["versions"][-1]["digest"]
    return digests


def generate(client: httpx.Client, name: str) -> None:
    body = {"inputs": "Once upon", "parameters": {"adapter_id": name, "max_new_tokens": 2}}
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text


def listed_as_pinned(client: httpx.Client) -> list[str]:
    return [expert["name"] for expert in client.get("/experts").json()["data"] if expert["pinned"]]


class TestPins:
    def test_stay_in_slots_under_traffic_and_survive_a_restart_of_the_replica(
        self, client: httpx.Client, base_model: Path, port: int, settings: Settings
    ) -> None:
        with serving(base_model, settings.storage.root, port=port, num_slots=NUM_SLOTS):
            digests = import_experts(client)
            assert digests["ada"] not in status(port)["resident"]

            answer = client.post("/experts/ada/pin")
            assert answer.status_code == 200, answer.text
            assert answer.json()["pinned"] is True
            until(lambda: digests["ada"] in status(port)["resident"])
            for name in NAMES[1:] * 2:
                generate(client, name)
                assert digests["ada"] in status(port)["resident"]
            assert status(port)["pins"] == [digests["ada"]]
            assert client.post("/experts/ada/pin").status_code == 200
            assert listed_as_pinned(client) == ["ada"]

        with serving(base_model, settings.storage.root, port=port, num_slots=NUM_SLOTS):
            until(lambda: digests["ada"] in status(port)["resident"])

            assert client.delete("/experts/ada/pin").json()["pinned"] is False
            until(lambda: status(port)["pins"] == [])
            for name in NAMES[1:]:
                generate(client, name)
            assert digests["ada"] not in status(port)["resident"]
            assert listed_as_pinned(client) == []

    def test_that_leave_no_slot_free_or_name_nobody_are_refused(
        self, client: httpx.Client, base_model: Path, port: int, settings: Settings
    ) -> None:
        with serving(base_model, settings.storage.root, port=port, num_slots=NUM_SLOTS):
            digests = import_experts(client)
            for name in NAMES[: NUM_SLOTS - 1]:
                assert client.post(f"/experts/{name}/pin").status_code == 200

            refused = client.post(f"/experts/{NAMES[NUM_SLOTS - 1]}/pin")
            assert refused.status_code == 409
            assert refused.json()["error"]["code"] == "too_many_pins"
            assert refused.headers["x-should-retry"] == "false"
            assert listed_as_pinned(client) == list(NAMES[: NUM_SLOTS - 1])
            until(lambda: set(status(port)["pins"]) == {digests[name] for name in NAMES[: NUM_SLOTS - 1]})
            generate(client, NAMES[-1])

            assert client.post("/experts/nobody/pin").status_code == 404
            assert client.delete("/experts/nobody/pin").status_code == 404
            assert client.delete("/experts/ada").status_code == 200
            until(lambda: status(port)["pins"] == [digests["bob"]])
            assert client.post("/experts/ada/pin").json()["error"]["code"] == "expert_retired"
