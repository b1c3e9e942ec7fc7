"""What a dry run foretells of a training, against what training does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from services.router_service.dataset_report import document_sizes
from services.shared.errors import InvalidDataset
from services.shared.tokenizer import load_tokenizer
from services.shared.training_plan import block_sizes, held_out_indices, pack
from services.shared.training_text import Example
from services.trainer_worker.datasets import make_blocks, split_examples

BASE = Path(__file__).resolve().parents[3] / "demo" / "base"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Short and long ones, some with the end of text already there."""
    generator = np.random.default_rng(7)
    words = ["sum", "of", "one", "two", "café", "def f(x):", "\n", "=", "12"]
    texts = [" ".join(generator.choice(words, size=generator.integers(1, 90))) for _ in range(200)]
    return [*texts, "ends</s>", "<s>begins"]


class TestBlockSizes:
    @pytest.mark.parametrize("packing", [True, False], ids=["packed", "one by one"])
    def test_are_those_of_training(self, texts: list[str], *, packing: bool) -> None:
        trained: Any = make_blocks(
            [Example(text, None) for text in texts],
            AutoTokenizer.from_pretrained(BASE),
            max_length=48,
            packing=packing,
            completion_only=False,
            seed=3,
        )

        foretold = block_sizes(document_sizes(texts, load_tokenizer(str(BASE))), max_length=48, packing=packing, seed=3)

        sizes = [len(block.token_ids_T) for block in trained]
        assert foretold == sizes if packing else sorted(foretold) == sorted(sizes)


class TestPack:
    def test_puts_every_piece_into_one_block_and_overfills_none(self) -> None:
        sizes = [int(size) for size in np.random.default_rng(0).integers(1, 33, size=500)]

        groups = pack(sizes, 32)

        assert sorted(index for group in groups for index in group) == list(range(500))
        assert max(sum(sizes[index] for index in group) for group in groups) <= 32


class TestHeldOut:
    def test_are_the_examples_that_training_validates_on(self) -> None:
        examples = [Example(str(number), None) for number in range(57)]

        _, validation = split_examples(examples, fraction=0.1, seed=5)

        held_out = held_out_indices(57, fraction=0.1, seed=5)
        assert {example.text for example in validation} == {str(index) for index in held_out}

    def test_of_one_example_are_refused(self) -> None:
        with pytest.raises(InvalidDataset, match="at least 2"):
            held_out_indices(1, fraction=0.1, seed=0)
