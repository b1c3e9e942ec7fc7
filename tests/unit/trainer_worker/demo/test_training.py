"""Tokenizer, corpus, pretraining and answers on a scale of seconds."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from services.trainer_worker.demo.base_tokenizer import train_tokenizer
from services.trainer_worker.demo.corpus import pack, write_corpus
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, Item
from services.trainer_worker.demo.exact_match import answer_greedily
from services.trainer_worker.demo.held_out_loss import held_out_loss
from services.trainer_worker.demo.pretraining import BaseShape, Schedule, StepReport, new_base_model, pretrain

TINY = BaseShape(hidden_size=32, num_layers=2, mlp_size=64, num_heads=2, num_kv_heads=1, max_context=128)
SHORT = Schedule(num_blocks=40, block_length=64, blocks_per_step=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def texts() -> tuple[str, ...]:
    return write_corpus(0, num_documents=1_000, domain_share=0.5).texts


@pytest.fixture(scope="module")
def tokenizer(texts: tuple[str, ...]) -> PreTrainedTokenizerBase:
    return train_tokenizer(texts, max_context=128, vocab_size=600)


def _pretrained(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]) -> tuple[LlamaForCausalLM, list[float]]:
    model = new_base_model(TINY, vocab_size=len(tokenizer), seed=0, token_ids={"bos": 0, "eos": 1, "pad": 2})
    losses: list[float] = []

    def note(report: StepReport) -> None:
        losses.append(report.loss)

    pretrain(model, pack(tokenizer, texts, block_length=64), SHORT, on_step=note)
    return model, losses


@pytest.fixture(scope="module")
def pretrained(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]) -> tuple[LlamaForCausalLM, list[float]]:
    return _pretrained(tokenizer, texts)


class TestTokenizer:
    def test_keeps_every_character(self, tokenizer: PreTrainedTokenizerBase) -> None:
        text = 'def f(x):\n    """Äöü ≤ 漢字."""\n    return x + 12\n'

        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text

    def test_leaves_digits_and_line_breaks_alone(self, tokenizer: PreTrainedTokenizerBase) -> None:
        pieces = tokenizer.tokenize("12+34=46.\n\nAnd 2026")

        assert [piece for piece in pieces if any(map(str.isdigit, piece))] == list("1234462026")
        assert pieces.count("Ċ") == 2

    def test_begins_every_document_with_bos_only(self, tokenizer: PreTrainedTokenizerBase) -> None:
        token_ids = tokenizer("A letter.")["input_ids"]

        assert token_ids.count(tokenizer.bos_token_id) == 1
        assert token_ids[0] == tokenizer.bos_token_id
        assert tokenizer.eos_token_id not in token_ids

    @pytest.mark.parametrize("name", DOMAINS)
    def test_a_prompt_has_the_same_tokens_before_its_completion(
        self, name: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        for item in DOMAINS[name].generate(0, 50, "train"):
            prompt_ids = tokenizer(item.prompt)["input_ids"]
            completion_ids = tokenizer(item.completion, add_special_tokens=False)["input_ids"]
            assert prompt_ids + completion_ids == tokenizer(item.text)["input_ids"]


class TestCorpus:
    def test_holds_the_stated_share_of_every_domain_and_nothing_held_back(self) -> None:
        corpus = write_corpus(0, num_documents=1_000, domain_share=0.2)

        assert corpus.num_documents == {"generic": 800} | dict.fromkeys(DEMO_DOMAINS, 40)
        assert len(corpus.texts) == 1_000

    def test_holds_no_held_out_item(self) -> None:
        texts = set(write_corpus(0, num_documents=1_500, domain_share=1.0).texts)

        for name in DEMO_DOMAINS:
            assert not texts & {item.text for item in DOMAINS[name].generate(0, 100, "held_out")}

    def test_packs_whole_documents_end_to_end(self, tokenizer: PreTrainedTokenizerBase) -> None:
        blocks = pack(tokenizer, ["One letter.", "Another letter."] * 20, block_length=8)

        assert blocks.shape[1] == 8
        assert np.count_nonzero(blocks == tokenizer.eos_token_id) == pytest.approx(40, abs=1)
        assert blocks[0, 0] == tokenizer.bos_token_id


class TestPretraining:
    def test_learns_and_repeats_bit_for_bit(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: tuple[str, ...],
        pretrained: tuple[LlamaForCausalLM, list[float]],
    ) -> None:
        first, losses = pretrained
        second, _ = _pretrained(tokenizer, texts)

        assert losses[-1] < losses[0] - 0.5
        assert all(
            torch.equal(left, right) for left, right in zip(first.parameters(), second.parameters(), strict=True)
        )

    def test_the_rate_rises_then_falls_to_its_final_share(self) -> None:
        schedule = Schedule(num_blocks=1_000, blocks_per_step=1, learning_rate=1.0, warmup_share=0.1, final_share=0.05)

        assert schedule.rate_at(0) == pytest.approx(0.01)
        assert schedule.rate_at(99) == pytest.approx(1.0)
        assert schedule.rate_at(999) == pytest.approx(0.05, abs=1e-3)


class TestMeasurement:
    def test_answers_in_a_batch_equal_answers_alone(
        self, tokenizer: PreTrainedTokenizerBase, pretrained: tuple[LlamaForCausalLM, list[float]]
    ) -> None:
        model, _ = pretrained
        items = DOMAINS["math"].generate(0, 6, "held_out")

        together = answer_greedily(model, tokenizer, items)
        alone = [answer_greedily(model, tokenizer, [item])[0] for item in items]

        assert [answer[:20] for answer in together] == [answer[:20] for answer in alone]

    def test_loss_of_an_untrained_model_is_that_of_guessing(self, tokenizer: PreTrainedTokenizerBase) -> None:
        model = new_base_model(TINY, vocab_size=len(tokenizer), seed=0, token_ids={"bos": 0, "eos": 1, "pad": 2})

        loss = held_out_loss(model, tokenizer, DOMAINS["factual"].generate(0, 10, "held_out"))

        assert loss.completion == pytest.approx(math.log(len(tokenizer)), rel=0.05)
        assert loss.text == pytest.approx(math.log(len(tokenizer)), rel=0.05)

    def test_loss_does_not_depend_on_the_batch_it_was_taken_in(self, tokenizer: PreTrainedTokenizerBase) -> None:
        model = new_base_model(TINY, vocab_size=len(tokenizer), seed=0, token_ids={"bos": 0, "eos": 1, "pad": 2})
        items = [Item("Yes", " it is", {}, ""), *DOMAINS["factual"].generate(0, 1, "held_out")]

        together = held_out_loss(model, tokenizer, items)
        alone = [held_out_loss(model, tokenizer, [item]) for item in items]
        lengths = [len(tokenizer(item.text)["input_ids"]) for item in items]

        weighted = sum(loss.text * length for loss, length in zip(alone, lengths, strict=True)) / sum(lengths)
        assert together.text == pytest.approx(weighted, rel=1e-4)
