"""The domains' generators: what every one of them promises."""

import json
from pathlib import Path

import pytest

from services.trainer_worker.demo.dataset_file import write_dataset
from services.trainer_worker.demo.domains import DOMAINS
from services.trainer_worker.demo.domains.item import split_of

pytestmark = pytest.mark.parametrize("name", DOMAINS)

FEWEST_TEMPLATES = {"code": 150, "math": 60, "creative": 400, "factual": 200, "mixed": 38}


class TestEveryDomain:
    def test_writes_the_same_items_for_the_same_seed_and_others_for_another(self, name: str) -> None:
        items = DOMAINS[name].generate(3, 50, "train")

        assert items == DOMAINS[name].generate(3, 50, "train")
        assert items != DOMAINS[name].generate(4, 50, "train")

    def test_writes_the_same_first_items_when_more_are_asked_for(self, name: str) -> None:
        assert DOMAINS[name].generate(3, 80, "train")[:50] == DOMAINS[name].generate(3, 50, "train")

    def test_is_varied(self, name: str) -> None:
        items = DOMAINS[name].generate(0, 2_000, "train")

        assert len({item.prompt for item in items}) > 1_500
        assert len({item.template for item in items}) >= FEWEST_TEMPLATES.get(name, 50)

    def test_never_shows_a_held_out_prompt_in_training(self, name: str) -> None:
        held_out = {item.prompt for item in DOMAINS[name].generate(0, 200, "held_out")}
        validation = {item.prompt for item in DOMAINS[name].generate(0, 100, "validation")}
        train = {item.prompt for item in DOMAINS[name].generate(0, 2_500, "train")}

        assert len(held_out) == 200
        assert not held_out & train
        assert not held_out & validation
        assert not validation & train
        assert {split_of(prompt) for prompt in held_out} == {"held_out"}

    def test_accepts_its_own_completions(self, name: str) -> None:
        domain = DOMAINS[name]

        assert all(domain.is_correct(item, item.completion) for item in domain.generate(1, 200, "held_out"))

    def test_refuses_silence_nonsense_and_most_answers_to_other_items(self, name: str) -> None:
        domain = DOMAINS[name]
        items = domain.generate(1, 150, "held_out")
        pairs = zip(items, items[1:] + items[:1], strict=True)

        assert not any(domain.is_correct(item, "") for item in items)
        assert not any(domain.is_correct(item, "I do not know.") for item in items)
        assert sum(domain.is_correct(item, other.completion) for item, other in pairs) < 0.12 * len(items)

    def test_writes_prompts_and_completions_that_end_cleanly(self, name: str) -> None:
        items = DOMAINS[name].generate(0, 200, "train")

        assert all(item.completion.strip() and item.completion.endswith("\n") for item in items)
        assert all(item.prompt == item.prompt.rstrip(" ") for item in items)

    def test_writes_training_files_that_repeat_byte_for_byte(self, name: str, tmp_path: Path) -> None:
        write_dataset(name, "train", 30, 5, tmp_path / "first.jsonl")
        write_dataset(name, "train", 30, 5, tmp_path / "second.jsonl")

        lines = (tmp_path / "first.jsonl").read_text().splitlines()
        assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()
        assert len(lines) == 30
        assert set(json.loads(lines[0])) == {"prompt", "completion"}
