"""A replica whose KV cache is far too small for its load, over HTTP."""

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from services.expert_service.kv_budget import layer_bytes
from services.shared.schemas.sequences import FinishedEvent
from tests.integration.expert_service.serving import Served, answer, serving

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

NUM_POSITIONS = 520
TEXTS = ("Once upon a time", "The dog", "Lily and Tom went to the park", "One day", "A big red ball", "In the garden")


@pytest.fixture(scope="module", name="served")
def small_cache(shared_material: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base_model = shared_material / "models" / "stories260K-hf"
    position_bytes = sum(layer_bytes(AutoModelForCausalLM.from_pretrained(base_model)))
    with serving(base_model, tmp_path_factory.mktemp("storage"), kv_cache_bytes=NUM_POSITIONS * position_bytes) as one:
        yield one


def test_all_get_what_each_gets_alone_and_the_bound_holds(served: Served) -> None:
    options: dict[str, Any] = {"max_new_tokens": 190, "ignore_eos_token": True}
    alone = [answer(served.generate(text, served.plan("base"), **options)) for text in TEXTS]
    assert served.wait_until_idle()["preemptions"] == 0
    with concurrent.futures.ThreadPoolExecutor(len(TEXTS)) as pool, served.client as client:
        futures = [pool.submit(served.generate, text, served.plan("base"), **options) for text in TEXTS]
        statuses = []
        while not all(future.done() for future in futures):
            statuses.append(client.get("/status").json())
            time.sleep(0.02)
        together = [answer(future.result()) for future in futures]

    for (tokens, finished), (same_tokens, same_finished) in zip(alone, together, strict=True):
        assert [token.index for token in same_tokens] == list(range(190))
        assert [token.id for token in tokens] == [token.id for token in same_tokens]
        assert finished.generated_text == same_finished.generated_text
    assert served.wait_until_idle()["preemptions"] > 0
    assert all(status["kv_cache_bytes"] <= status["kv_cache_limit_bytes"] for status in statuses)
    assert max(status["kv_cached_tokens"] for status in statuses) > NUM_POSITIONS / 4


def test_what_could_never_fit_is_refused_before_the_first_byte_and_others_go_on(
    shared_material: Path, tmp_path: Path
) -> None:
    base_model = shared_material / "models" / "stories260K-hf"
    position_bytes = sum(layer_bytes(AutoModelForCausalLM.from_pretrained(base_model)))
    with serving(base_model, tmp_path, kv_cache_bytes=201 * position_bytes) as served:
        with served.client as client:
            body = served.body("Once upon a time", served.plan("base"), max_new_tokens=400)
            response = client.post("/sequences", json=body)
        finished = served.generate("Once upon a time", served.plan("base"), max_new_tokens=150)[-1]

    assert response.status_code == 413
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("exceeds_kv_cache", "max_new_tokens")
    assert "expert_service.kv_cache_bytes" in error["message"]
    assert isinstance(finished, FinishedEvent)
