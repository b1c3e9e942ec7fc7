"""A base model that is no folder but a name on the hub, fetched by the real client over a socket."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.trainer_worker.demo.domains import DOMAINS
from tests.e2e.conftest import PROJECT, running_stack
from tests.e2e.hub import Hub, Repository, hub_with
from tests.e2e.journey import generate, shares, submit, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = "adaptive-moe/demo-base"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that has the demo's base model, and a dataset of sums as a table."""
    folder = tmp_path_factory.mktemp("dataset")
    items = DOMAINS["math"].generate(5, 64, "train")
    pq.write_table(
        pa.table({"prompt": [item.prompt for item in items], "completion": [item.completion for item in items]}),
        folder / "train.parquet",
    )
    with hub_with(
        Repository(MODEL, PROJECT / "demo" / "base"), Repository("adaptive-moe/sums", folder, "datasets")
    ) as hub:
        yield hub


@pytest.fixture(scope="module")
def hub_stack(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A stack whose base model is a name on that hub, with an empty cache."""
    cache: Path = tmp_path_factory.mktemp("hub-cache")
    with running_stack(
        MODEL,
        {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "AMOE_ROUTER_SERVICE__DATASET_HUB_URL": hub.url,
        },
    ) as client:
        yield client


def test_a_base_model_from_the_hub_is_served_and_trained_on_a_dataset_from_there(
    hub: Hub, hub_stack: httpx.Client
) -> None:
    items = DOMAINS["math"].generate(5, 1, "train")

    answer = generate(hub_stack, items[0].prompt, max_new_tokens=8)
    fetched = hub_stack.post("/files/from_hub", json={"dataset": "adaptive-moe/sums"})
    assert fetched.status_code == 201, fetched.text
    job = wait_for(
        hub_stack,
        submit(
            hub_stack,
            {
                "kind": "expert",
                "name": "math",
                "training_file": fetched.json()["id"],
                "hyperparameters": {"max_steps": 10, "learning_rate": 2e-3, "max_length": 128},
            },
        ),
    )

    assert shares(answer) == {"base": pytest.approx(1.0)}
    assert hub_stack.get("/info").json()["model_id"] == MODEL
    assert job["status"] == "succeeded", job["error"]
    assert shares(generate(hub_stack, items[0].prompt, adapter_id="math", max_new_tokens=8))["math"] > 0
    assert hub.fetched.count("model.safetensors") == hub.fetched.count("train.parquet") == 1
