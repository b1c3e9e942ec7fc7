"""Small tables: how far they fall short, and that a newcomer with little text is heard."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from services.shared.config import RouterSettings
from services.shared.modeling.bigram_evidence import BigramEvidenceStack, build_bigram_evidence
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.router_artifact import read_router_file, write_bayes_router
from services.shared.modeling.size_correction import LARGEST_CORRECTION, correction, leave_one_out, size_curve

VOCAB = 60


def chain(seed: int, length: int, start: int = 0) -> list[int]:
    """Text of a domain: a random walk by the domain's own table of successors."""
    common = np.random.default_rng(1000).dirichlet(np.full(VOCAB, 0.3), size=VOCAB)
    table = 0.6 * common + 0.4 * np.random.default_rng(seed).dirichlet(np.full(VOCAB, 0.3), size=VOCAB)
    generator = np.random.default_rng([seed, length, start])
    tokens = [start]
    for _ in range(length - 1):
        tokens.append(int(generator.choice(VOCAB, p=table[tokens[-1]])))
    return tokens


class TestLeaveOneOut:
    def test_predicts_every_pair_from_the_others(self) -> None:
        stream = chain(0, 300)

        value = leave_one_out(build_bigram_evidence([stream], VOCAB))

        pairs = list(pairwise(stream))
        logs = []
        for left_out, (previous, token) in enumerate(pairs):
            others = pairs[:left_out] + pairs[left_out + 1 :]
            p_token = (sum(b == token for _, b in others) + 0.5) / (len(others) + 0.5 * VOCAB)
            of_previous = sum(a == previous for a, _ in others)
            logs.append(np.log((others.count((previous, token)) + 20 * p_token) / (of_previous + 20)))
        assert value == pytest.approx(np.mean(logs))

    def test_estimates_the_likelihood_of_new_text(self) -> None:
        evidence = build_bigram_evidence([chain(0, 6000)], VOCAB)
        new = np.array(chain(0, 6000, start=7))

        of_new = BigramEvidenceStack([evidence]).log_evidence(new[:-1], new[1:]).mean()

        assert leave_one_out(evidence) == pytest.approx(of_new, abs=0.05)


class TestSizeCurve:
    def test_smaller_tables_fall_shorter(self) -> None:
        curve = size_curve(build_bigram_evidence([chain(0, 8001)], VOCAB))

        sizes, shortfalls = zip(*curve, strict=True)
        assert sizes == (8000, 4000, 2000, 1000, 500, 250)
        assert shortfalls[0] == 0.0
        assert list(shortfalls) == sorted(shortfalls)
        assert shortfalls[-1] > 0.2

    def test_says_what_a_table_of_that_size_in_truth_falls_short(self) -> None:
        text = chain(0, 8001)
        full, small = build_bigram_evidence([text], VOCAB), build_bigram_evidence([text], VOCAB, max_tokens=1000)

        shortfall = leave_one_out(full) - leave_one_out(small)

        assert correction(size_curve(full), 1000) == pytest.approx(shortfall, rel=0.2)

    def test_tables_of_full_size_and_routers_without_a_curve_are_left_alone(self) -> None:
        curve = ((8000, 0.0), (4000, 0.1), (500, 2.0))

        assert correction(curve, 8000) == correction(curve, 50_000) == 0.0
        assert correction((), 10) == 0.0

    def test_is_limited_lest_a_tiny_table_takes_everything(self) -> None:
        assert correction(((8000, 0.0), (500, 2.0)), 20) == LARGEST_CORRECTION


class TestNewcomer:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> dict[str, Path]:
        for seed, name in enumerate(("old", "older")):
            build_bigram_evidence([chain(seed, 8001)], VOCAB).save(tmp_path / name / "evidence" / "bigram.safetensors")
        small = build_bigram_evidence([chain(2, 801)], VOCAB)
        small.save(tmp_path / "newcomer" / "evidence" / "bigram.safetensors")
        base = build_bigram_evidence([chain(9, 8001)], VOCAB)
        # A filter that seldom expects a change: what a table lacks weighs the most there.
        write_bayes_router(tmp_path / "router", settings=RouterSettings(stickiness=0.005), base_evidence=base)
        return {name: tmp_path / name for name in ("old", "older", "newcomer", "router")}

    def load(self, folders: dict[str, Path]) -> ReleaseScorer:
        experts = [(name, folders[name]) for name in ("old", "older", "newcomer")]
        return ReleaseScorer.load(router_dir=folders["router"], graph_dir=None, experts=experts, vocab_size=VOCAB)

    def shares(self, scorer: ReleaseScorer) -> list[float]:
        """How much of each expert's own text it is given."""
        return [scorer.advance(scorer.start(), chain(seed, 600, start=5))[50:, seed].mean() for seed in range(3)]

    def test_with_a_tenth_of_the_text_is_heard(self, folders: dict[str, Path]) -> None:
        corrected = self.shares(self.load(folders))
        router_file = folders["router"] / "router.json"
        router_file.write_text(
            read_router_file(folders["router"]).model_copy(update={"size_curve": ()}).model_dump_json()
        )
        plain = self.shares(self.load(folders))

        assert plain[2] == min(plain)
        assert min(corrected) > min(plain) + 0.2
        assert min(corrected) > 0.6
