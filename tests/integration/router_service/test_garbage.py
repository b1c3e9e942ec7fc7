"""`POST /storage/gc` over HTTP."""

import os
import time
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.integration


def test_it_only_tells_until_it_is_told_to_remove(three_experts: str, registry: Any, client: httpx.Client) -> None:
    router = registry.router()  # the same bytes as the active release's
    with registry.storage.stage() as staged:
        (staged / "adapter_model.safetensors").write_bytes(b"nobody's")
        garbage = registry.storage.publish(staged)
    then = time.time() - 30 * 3600
    for folder in registry.storage.artifacts.iterdir():
        os.utime(folder, (then, then))

    told = client.post("/storage/gc").json()
    younger = client.post("/storage/gc", json={"dry_run": False, "grace_s": 48 * 3600}).json()
    there = (registry.storage.artifacts / garbage).is_dir()
    removed = client.post("/storage/gc", json={"dry_run": False}).json()

    assert told["dry_run"]
    assert told["artifacts"] == removed["artifacts"] == [{"id": garbage, "num_bytes": 8}]
    assert (told["num_bytes"], younger["artifacts"], there) == (8, [], True)
    assert not (registry.storage.artifacts / garbage).exists()
    assert registry.storage.artifact(router).is_dir()
    assert client.post(f"/releases/{three_experts}/activate").status_code == 200


@pytest.mark.parametrize("body", [{"grace_s": 5}, {"dry_run": "maybe"}, {"everything": True}])
def test_what_would_be_dangerous_or_is_not_understood_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/storage/gc", json=body).status_code == 400
