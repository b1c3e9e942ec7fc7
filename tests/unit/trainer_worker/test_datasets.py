"""From examples to blocks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from services.shared.errors import InvalidDataset
from services.shared.training_text import Example
from services.trainer_worker.datasets import IGNORED, Block, make_blocks, split_examples

BEGIN, END = 1, 2


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


def blocks_of(texts: list[str], tokenizer: Any, **options: Any) -> list[Block]:
    options = {"max_length": 32, "packing": True, "completion_only": False, "seed": 0} | options
    return make_blocks([Example(text, None) for text in texts], tokenizer, **options)


def texts_in(blocks: list[Block], tokenizer: Any) -> list[str]:
    """The learned tokens of each document as text."""
    texts = []
    for block in blocks:
        starts = np.flatnonzero(block.positions_T == 0)
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            labels = block.labels_T[start:stop]
            texts.append(tokenizer.decode(labels[labels != IGNORED], skip_special_tokens=True))
    return sorted(texts)


class TestPacking:
    def test_keeps_every_document_whole_with_positions_of_its_own(self, tokenizer: Any) -> None:
        texts = [f"text number {number}" for number in range(20)]

        blocks = blocks_of(texts, tokenizer)

        assert len(blocks) < 20
        assert all(len(block.token_ids_T) <= 32 for block in blocks)
        assert texts_in(blocks, tokenizer) == sorted(texts)

    def test_wastes_little(self, tokenizer: Any) -> None:
        texts = ["x" * (3 + number % 11) for number in range(300)]

        blocks = blocks_of(texts, tokenizer, max_length=64)

        used = sum(len(block.token_ids_T) for block in blocks)
        assert used / (64 * len(blocks)) > 0.9

    def test_never_learns_a_document_s_first_token_from_the_one_before(self, tokenizer: Any) -> None:
        blocks = blocks_of(["one", "two", "three"], tokenizer)

        for block in blocks:
            assert (block.labels_T[block.positions_T == 0] == IGNORED).all()

    def test_depends_on_the_seed_alone(self, tokenizer: Any) -> None:
        texts = [f"text number {number}" for number in range(20)]

        first, again, other = (blocks_of(texts, tokenizer, seed=seed) for seed in (1, 1, 2))

        assert all(np.array_equal(a.token_ids_T, b.token_ids_T) for a, b in zip(first, again, strict=True))
        assert any(not np.array_equal(a.token_ids_T, b.token_ids_T) for a, b in zip(first, other, strict=False))


class TestDocuments:
    def test_begin_and_end_as_the_base_model_expects(self, tokenizer: Any) -> None:
        (block,) = blocks_of(["ab"], tokenizer)

        assert block.token_ids_T[0] == BEGIN
        assert block.token_ids_T[-1] == END
        assert block.labels_T.tolist() == [IGNORED, *block.token_ids_T[1:]]

    def test_longer_than_a_block_are_cut_so_that_every_token_is_learned_once(self, tokenizer: Any) -> None:
        text = "abcdefghijklmnopqrstuvwxyz" * 4

        blocks = blocks_of([text], tokenizer, max_length=16, packing=False)

        learned = sum(block.num_targets for block in blocks)
        assert learned == len(text) + 1  # and the end-of-text token
        assert all(len(block.token_ids_T) <= 16 for block in blocks)

    def test_learn_only_the_completion_when_asked(self, tokenizer: Any) -> None:
        examples = [Example("2+2=4", ((4, 5),))]

        (block,) = make_blocks(examples, tokenizer, max_length=32, packing=True, completion_only=True, seed=0)

        learned = block.labels_T[block.labels_T != IGNORED]
        assert tokenizer.decode(learned, skip_special_tokens=True) == "4"
        assert learned[-1] == END

    @pytest.mark.parametrize(("last", "learned"), [(False, "yes.no."), (True, "no.")], ids=["all turns", "the last"])
    def test_learn_all_turns_of_a_chat_or_the_last(self, tokenizer: Any, learned: str, *, last: bool) -> None:
        text = "Q yes. Q no."
        examples = [Example(text, ((2, 6), (9, 12)))]

        (block,) = make_blocks(
            examples, tokenizer, max_length=32, packing=True, completion_only=True, last_turn_only=last, seed=0
        )

        labels = block.labels_T[block.labels_T != IGNORED]
        assert tokenizer.decode(labels, skip_special_tokens=True).replace(" ", "") == learned
        assert labels[-1] == END

    def test_learn_no_end_after_words_that_are_not_learned(self, tokenizer: Any) -> None:
        (block,) = make_blocks(
            [Example("Q yes. Q", ((2, 6),))], tokenizer, max_length=32, packing=True, completion_only=True, seed=0
        )

        assert block.token_ids_T[-1] == END
        assert block.labels_T[-1] == IGNORED

    def test_whose_turns_cannot_be_told_apart_are_refused_with_what_helps(self, tokenizer: Any) -> None:
        with pytest.raises(InvalidDataset, match=r"\{% generation %\}"):
            make_blocks([Example("Q", ())], tokenizer, max_length=32, packing=True, completion_only=True, seed=0)

    def test_without_a_token_to_learn_are_refused_with_what_is_needed(self, tokenizer: Any) -> None:
        with pytest.raises(InvalidDataset, match="None of the 0 examples"):
            make_blocks([], tokenizer, max_length=32, packing=True, completion_only=True, seed=0)


class TestSplit:
    def test_holds_out_at_least_one_and_never_all(self) -> None:
        examples = [Example(str(number), None) for number in range(3)]

        for fraction in (0.001, 0.49):
            train, validation = split_examples(examples, fraction=fraction, seed=0)

            assert len(validation) == 1
            assert sorted(example.text for example in train + validation) == ["0", "1", "2"]

    def test_depends_on_the_seed_alone(self) -> None:
        examples = [Example(str(number), None) for number in range(100)]

        first, again, other = (split_examples(examples, fraction=0.1, seed=seed)[1] for seed in (3, 3, 4))

        assert first == again != other

    def test_of_a_single_example_says_how_many_are_needed(self) -> None:
        with pytest.raises(InvalidDataset, match="at least 2 examples"):
            split_examples([Example("alone", None)], fraction=0.1, seed=0)
