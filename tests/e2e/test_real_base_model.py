"""The same journey with a real pretrained model that the project did not make, and real text."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e import real_text
from tests.e2e.conftest import running_stack
from tests.e2e.journey import generate, shares, submit, upload, wait_for, wait_until_served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TRAINING = {"max_steps": 40, "eval_steps": 20, "learning_rate": 2e-3, "rank": 8, "alpha": 16, "max_length": 128}


@pytest.fixture(scope="module")
def stories_stack(shared_material: Path) -> Iterator[httpx.Client]:
    """A stack on stories260K, with nothing registered."""
    with running_stack(str((shared_material / "models" / "stories260K-hf").resolve())) as client:
        yield client


def test_experts_trained_on_real_text_each_answer_for_their_own(
    stories_stack: httpx.Client, shared_material: Path
) -> None:
    text = shared_material / "data" / "text"
    documents = {"math": real_text.gsm8k(text), "verse": real_text.shakespeare(text), "code": real_text.mbpp(text)}

    nobody = generate(stories_stack, "Once upon a time", max_new_tokens=8)
    assert shares(nobody) == {"base": pytest.approx(1.0)}

    for name, texts in documents.items():
        file_id = upload(stories_stack, f"{name}.jsonl", real_text.as_jsonl(texts[40:240]))
        job = wait_for(
            stories_stack,
            submit(
                stories_stack,
                {
                    "kind": "expert",
                    "name": name,
                    "training_file": file_id,
                    "hyperparameters": TRAINING,
                    "add_to_release": True,
                    "activate": True,
                },
            ),
        )
        assert job["status"] == "succeeded", job["error"]
        wait_until_served(stories_stack, job["result"]["release"])

    for name, texts in documents.items():
        held_out = texts[3][:300]
        by_expert = shares(generate(stories_stack, held_out, max_new_tokens=16))
        assert max(by_expert, key=by_expert.__getitem__) == name

    story = shares(
        generate(
            stories_stack, "Once upon a time, there was a little girl named Lily. She loved to play", max_new_tokens=16
        )
    )
    assert max(story, key=story.__getitem__) == "base"
