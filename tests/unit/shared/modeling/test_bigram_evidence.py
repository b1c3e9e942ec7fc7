"""Counting, look-up against a dictionary of counts, sampling, files."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from services.shared.modeling.bigram_evidence import (
    NUM_HASH_BUCKETS,
    BigramEvidence,
    BigramEvidenceStack,
    build_bigram_evidence,
    contexts_of,
)
from services.shared.modeling.evidence_file import InvalidEvidence, write_arrays


def text(seed: int, length: int = 3000, vocab_size: int = 40) -> list[int]:
    """Tokens with a taste of their own."""
    generator = np.random.default_rng(seed)
    return generator.choice(vocab_size, size=length, p=generator.dirichlet(np.full(vocab_size, 0.3))).tolist()


def slow_log_probability(stream: Sequence[int], previous: int, token: int, vocab_size: int) -> float:
    """The formulas of the module's docstring over a plain dictionary."""
    pairs = Counter(pairwise(stream))
    singles = Counter(stream[1:])
    p_token = (singles[token] + 0.5) / (len(stream) - 1 + 0.5 * vocab_size)
    of_previous = sum(count for (first, _), count in pairs.items() if first == previous)
    return float(np.log((pairs[previous, token] + 20 * p_token) / (of_previous + 20)))


class TestBigramEvidence:
    def test_look_up_equals_counting_by_hand(self) -> None:
        streams = [text(seed) for seed in range(3)]
        stack = BigramEvidenceStack([build_bigram_evidence([stream], 40) for stream in streams])
        tokens = np.array(text(9, length=100))

        log_evidence_TE = stack.log_evidence(tokens[:-1], tokens[1:])

        expected_TE = [
            [slow_log_probability(stream, a, b, 40) for stream in streams] for a, b in pairwise(tokens.tolist())
        ]
        np.testing.assert_allclose(log_evidence_TE, expected_TE, rtol=1e-10)

    def test_probabilities_of_the_next_token_sum_to_one(self) -> None:
        stack = BigramEvidenceStack([build_bigram_evidence([text(0)], 40)])

        log_evidence_VE = stack.log_evidence(np.full(40, 3), np.arange(40))

        assert np.exp(log_evidence_VE).sum() == pytest.approx(1.0)

    def test_a_first_token_says_nothing(self) -> None:
        stack = BigramEvidenceStack([build_bigram_evidence([text(seed)], 40) for seed in range(2)])

        assert np.array_equal(stack.log_evidence(np.array([-1]), np.array([5])), np.zeros((1, 2)))

    def test_large_vocabularies_hash_the_previous_token(self) -> None:
        stream = text(0, vocab_size=20_000)

        evidence = build_bigram_evidence([stream], 20_000)

        assert evidence.num_contexts == NUM_HASH_BUCKETS
        buckets = contexts_of(np.arange(20_000), 20_000, NUM_HASH_BUCKETS)
        assert set(buckets.tolist()) == set(range(NUM_HASH_BUCKETS))
        assert np.bincount(buckets).max() < 2 * np.bincount(buckets).min()

    def test_buckets_of_previous_tokens_can_be_chosen(self) -> None:
        stream = text(0, vocab_size=400)

        evidence = build_bigram_evidence([stream], 400, num_contexts=16)

        contexts = contexts_of(np.array(stream[:-1]), 400, 16)
        assert np.array_equal(evidence.context_counts, np.bincount(contexts, minlength=16))

    def test_memory_grows_by_what_a_newcomer_brings(self) -> None:
        first, second = (build_bigram_evidence([text(seed)], 40) for seed in range(2))
        alone, together = BigramEvidenceStack([first]), BigramEvidenceStack([first, second])

        gain_and_column_bytes = 16 * len(second.pair_keys_N)
        two_tables_bytes = 8 * 2 * 40

        assert together.num_bytes - alone.num_bytes >= gain_and_column_bytes + two_tables_bytes

    def test_a_newcomer_changes_nobody_elses_evidence(self) -> None:
        tables = [build_bigram_evidence([text(seed)], 40) for seed in range(4)]
        tokens = np.array(text(9, length=50))

        before_TE = BigramEvidenceStack(tables[:3]).log_evidence(tokens[:-1], tokens[1:])
        after_TE = BigramEvidenceStack(tables).log_evidence(tokens[:-1], tokens[1:])

        assert np.array_equal(after_TE[:, :3], before_TE)

    def test_newcomers_one_by_one_give_the_bits_of_a_stack_made_of_all(self) -> None:
        tables = [build_bigram_evidence([text(seed, length=200 + 90 * (seed % 7))], 40) for seed in range(20)]
        corrections = [0.01 * number for number in range(20)]
        tokens = np.array(text(99, length=400))
        *experts, base = tables

        grown = BigramEvidenceStack([experts[0], base], [corrections[0], corrections[-1]])
        for table, correction in zip(experts[1:], corrections[1:-1], strict=True):
            before = grown
            grown = grown.with_newcomer(table, correction)
            assert before.num_columns == grown.num_columns - 1

        whole = BigramEvidenceStack(tables, corrections)
        assert np.array_equal(grown.log_evidence(tokens[:-1], tokens[1:]), whole.log_evidence(tokens[:-1], tokens[1:]))
        assert len(grown._segments) <= 6
        assert before.log_evidence(tokens[:-1], tokens[1:]).shape[1] == 19

    def test_a_newcomer_of_another_tokenizer_is_refused(self) -> None:
        stack = BigramEvidenceStack([build_bigram_evidence([text(0)], 40)])
        with pytest.raises(InvalidEvidence, match="one tokenizer"):
            stack.with_newcomer(build_bigram_evidence([text(0)], 41))

    def test_survives_the_trip_through_a_file(self, tmp_path: Path) -> None:
        evidence = build_bigram_evidence([text(0), text(1)], 40)

        evidence.save(tmp_path / "deep" / "bigram.safetensors")
        loaded = BigramEvidence.load(tmp_path / "deep" / "bigram.safetensors")

        assert (loaded.vocab_size, loaded.num_contexts) == (40, 40)
        assert np.array_equal(loaded.pair_keys_N, evidence.pair_keys_N)
        assert np.array_equal(loaded.counts_N, evidence.counts_N)


class TestBuilding:
    def test_keeps_to_the_budget_whatever_the_amount_of_text(self) -> None:
        assert build_bigram_evidence([text(0, length=90_000)], 40, max_tokens=5_000).num_tokens == 5_000

    def test_counts_every_pair_once_when_the_budget_allows(self) -> None:
        assert build_bigram_evidence([text(0, length=1000), text(1, length=301)], 40).num_tokens == 999 + 300

    def test_samples_the_whole_text_and_not_its_beginning(self) -> None:
        first_half, second_half = [1, 2] * 10_000, [3, 4] * 10_000

        evidence = build_bigram_evidence([first_half + second_half], 40, max_tokens=4_000)

        counts = dict(zip(evidence.pair_keys_N.tolist(), evidence.counts_N.tolist(), strict=True))
        assert counts[1 * 40 + 2] == pytest.approx(1000, rel=0.4)
        assert counts[3 * 40 + 4] == pytest.approx(1000, rel=0.4)

    def test_is_a_function_of_its_seed(self) -> None:
        tables = [build_bigram_evidence([text(0)], 40, max_tokens=500, seed=seed) for seed in (0, 0, 1)]

        assert np.array_equal(tables[0].pair_keys_N, tables[1].pair_keys_N)
        assert not np.array_equal(tables[0].pair_keys_N, tables[2].pair_keys_N)

    @pytest.mark.parametrize("streams", [[], [[]], [[7]]], ids=["none", "empty", "one token"])
    def test_refuses_text_without_a_pair(self, streams: list[list[int]]) -> None:
        with pytest.raises(InvalidEvidence, match="supply some thousand tokens"):
            build_bigram_evidence(streams, 40)

    def test_refuses_tokens_of_another_vocabulary(self) -> None:
        with pytest.raises(InvalidEvidence, match="tokenizer"):
            build_bigram_evidence([[1, 2, 40]], 40)


class TestBadFiles:
    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidEvidence, match=r"bigram\.safetensors is missing"):
            BigramEvidence.load(tmp_path / "bigram.safetensors")

    def test_a_cut_file_is_damaged(self, tmp_path: Path) -> None:
        path = tmp_path / "bigram.safetensors"
        build_bigram_evidence([text(0)], 40).save(path)
        path.write_bytes(path.read_bytes()[:-100])

        with pytest.raises(InvalidEvidence, match="damaged"):
            BigramEvidence.load(path)

    def test_a_file_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        write_arrays(tmp_path / "bigram.safetensors", {"mean": np.zeros(3)}, {"kind": "trunk statistics"})

        with pytest.raises(InvalidEvidence, match="does not hold bigram evidence"):
            BigramEvidence.load(tmp_path / "bigram.safetensors")

    @pytest.mark.parametrize(
        ("name", "array"),
        [("next_ids", np.array([9, 0])), ("counts", np.array([1, 0])), ("offsets", np.array([0, 1, 1, 3]))],
        ids=["token beyond the vocabulary", "zero count", "offsets beyond the end"],
    )
    def test_arrays_that_contradict_each_other_are_refused(self, tmp_path: Path, name: str, array: np.ndarray) -> None:
        arrays = {"offsets": np.array([0, 1, 1, 2]), "next_ids": np.array([0, 2]), "counts": np.array([4, 1])}
        facts = {"kind": "bigram evidence", "vocab_size": 3, "num_contexts": 3}
        write_arrays(tmp_path / "bigram.safetensors", {**arrays, name: array}, facts)

        with pytest.raises(InvalidEvidence, match="contradicts itself"):
            BigramEvidence.load(tmp_path / "bigram.safetensors")

    def test_evidence_of_two_tokenizers_cannot_be_stacked(self) -> None:
        with pytest.raises(InvalidEvidence, match="one tokenizer"):
            BigramEvidenceStack([build_bigram_evidence([[1, 2, 3]], 40), build_bigram_evidence([[1, 2, 3]], 41)])
