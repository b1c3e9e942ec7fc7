"""A release's router from its files: columns, states, batches, candidates, what it refuses."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from services.shared.config import RouterSettings
from services.shared.errors import InvalidRequest
from services.shared.modeling.bigram_evidence import BigramEvidence, build_bigram_evidence
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.modeling.evidence_file import InvalidEvidence
from services.shared.modeling.learned_gate import LearnedGate
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.router_artifact import write_bayes_router, write_learned_router
from services.shared.modeling.smoothed_states import SmoothedStates
from services.shared.modeling.trunk_statistics import TrunkStatistics
from services.shared.vocabulary import GateType

VOCAB = 60
NAMES = ("code", "math", "story")
HIDDEN = 8


def chain(seed: int, length: int) -> list[int]:
    """Text of a domain: a random walk by the domain's own table of successors."""
    table = np.random.default_rng(seed).dirichlet(np.full(VOCAB, 0.05), size=VOCAB)
    generator = np.random.default_rng([seed, length])
    tokens = [0]
    for _ in range(length - 1):
        tokens.append(int(generator.choice(VOCAB, p=table[tokens[-1]])))
    return tokens


def states(seed: int, length: int) -> np.ndarray:
    """Hidden states around a domain's own centre."""
    centre = np.random.default_rng([seed, 7]).normal(size=HIDDEN)
    return centre + np.random.default_rng([seed, length]).normal(size=(length, HIDDEN))


def statistics(seed: int) -> TrunkStatistics:
    smoothed = SmoothedStates.start(HIDDEN).advance(states(seed, 400))
    return TrunkStatistics.of([smoothed], tap_layer=2, hidden_size=HIDDEN)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of three experts with both kinds of evidence, and of routers with one and with both."""
    root = tmp_path_factory.mktemp("release")
    for seed, name in enumerate(NAMES):
        build_bigram_evidence([chain(seed, 4000)], VOCAB).save(root / name / "evidence" / "bigram.safetensors")
        statistics(seed).save(root / name / "evidence" / "trunk.safetensors")
    base = build_bigram_evidence([chain(9, 4000)], VOCAB)
    write_bayes_router(root / "router", settings=RouterSettings(), base_evidence=base)
    write_bayes_router(root / "both", settings=RouterSettings(), base_evidence=base, base_trunk=statistics(9))
    return root


def load(
    root: Path, *, router: str = "router", graph: Path | None = None, names: Sequence[str] = NAMES
) -> ReleaseScorer:
    experts = [(name, root / name) for name in names]
    return ReleaseScorer.load(router_dir=root / router, graph_dir=graph, experts=experts, vocab_size=VOCAB)


class TestBayesRelease:
    def test_columns_are_the_experts_in_plan_order_then_the_base(self, release: Path) -> None:
        assert load(release, names=("story", "code")).columns == ("story", "code", "base")

    @pytest.mark.parametrize("seed", range(3))
    def test_an_experts_text_is_given_to_it(self, release: Path, seed: int) -> None:
        scorer = load(release)

        scores_TC = scorer.advance(scorer.start(), chain(seed, 300))

        assert (scores_TC[30:].argmax(axis=1) == seed).mean() > 0.95

    def test_the_base_row_wins_on_the_bases_own_text(self, release: Path) -> None:
        scorer = load(release)

        weights_TC = scorer.weights(scorer.advance(scorer.start(), chain(9, 300)))

        assert weights_TC[30:, -1].mean() > 0.95

    def test_a_switch_of_domain_is_followed(self, release: Path) -> None:
        scorer = load(release)

        scores_TC = scorer.advance(scorer.start(), chain(0, 150) + chain(2, 150))

        assert scores_TC[149].argmax() == 0
        assert scores_TC[190].argmax() == 2

    def test_under_another_filter_it_scores_as_a_release_made_with_that_filter(
        self, release: Path, tmp_path: Path
    ) -> None:
        base = build_bigram_evidence([chain(9, 4000)], VOCAB)
        settings = RouterSettings(stickiness=0.05, temper=0.7)
        write_bayes_router(tmp_path / "other", settings=settings, base_evidence=base)
        experts = [(name, release / name) for name in NAMES]
        made_so = ReleaseScorer.load(router_dir=tmp_path / "other", graph_dir=None, experts=experts, vocab_size=VOCAB)
        scorer = load(release)
        assert scorer.bayes_filter is not None
        changed = scorer.with_filter(replace(scorer.bayes_filter, stickiness=0.05, temper=0.7))
        text = chain(0, 60) + chain(2, 60)

        scores_TC = changed.advance(changed.start(), text)

        assert_allclose(scores_TC, made_so.advance(made_so.start(), text), rtol=0, atol=0)
        assert np.abs(scores_TC - scorer.advance(scorer.start(), text)).max() > 0.01

    @pytest.mark.parametrize(("router", "tolerance"), [("router", 0.0), ("both", 1e-9)])
    def test_token_by_token_in_a_batch_equals_the_whole_prompt(
        self, release: Path, router: str, tolerance: float
    ) -> None:
        scorer = load(release, router=router)
        texts = [chain(seed, 120) for seed in (0, 1, 2, 9)]
        trunk = [states(seed, 120) if router == "both" else None for seed in (0, 1, 2, 9)]
        whole = [scorer.advance(scorer.start(), text, rows) for text, rows in zip(texts, trunk, strict=True)]
        sequences = [scorer.start() for _ in texts]

        for t in range(120):
            rows_BD = np.stack([rows[t] for rows in trunk]) if router == "both" else None
            scores_BC = scorer.advance_batch(sequences, [text[t] for text in texts], rows_BD)

            assert_allclose(scores_BC, [scores_TC[t] for scores_TC in whole], rtol=0, atol=tolerance)

    def test_a_copied_state_goes_its_own_way(self, release: Path) -> None:
        scorer = load(release, router="both")
        state = scorer.start()
        scorer.advance(state, chain(0, 50), states(0, 50))
        twin = state.copy()

        scorer.advance(state, chain(1, 50), states(1, 50))

        assert_allclose(
            scorer.advance(twin, chain(0, 60)[50:], states(0, 10)),
            scorer.advance(scorer.start(), chain(0, 50) + chain(0, 60)[50:], np.vstack([states(0, 50), states(0, 10)]))[
                50:
            ],
            atol=1e-12,
        )

    def test_trunk_evidence_decides_where_the_tokens_say_nothing(self, release: Path) -> None:
        scorer = load(release, router="both")
        assert scorer.tap_layer == 2

        scores_TC = scorer.advance(scorer.start(), [0] * 200, states(1, 200))

        assert scores_TC[100:].argmax(axis=1).tolist() == [1] * 100

    def test_only_candidates_speak_and_rows_sum_to_one(self, release: Path) -> None:
        scorer = load(release)
        scores_TC = scorer.advance(scorer.start(), chain(0, 100))

        weights_TC = scorer.weights(scores_TC, candidates=("math",))

        assert weights_TC.dtype == np.float32
        assert not weights_TC[:, [0, 2]].any()
        assert_allclose(weights_TC.sum(axis=1), 1.0, rtol=1e-6)

    def test_a_graph_over_other_experts_is_fitted_to_the_columns(self, release: Path, tmp_path: Path) -> None:
        CooperationGraph(("math", "code"), np.array([[0.0, 0.5], [0.0, 0.0]])).save(tmp_path)
        scorer = load(release, graph=tmp_path)

        weights_TC = scorer.weights(np.array([[0.0, 1.0, 0.0, 0.0]]))

        assert_allclose(weights_TC, [[1 / 3, 2 / 3, 0.0, 0.0]], rtol=1e-6)

    def test_no_tokens_make_no_rows(self, release: Path) -> None:
        scorer = load(release)

        assert scorer.advance(scorer.start(), []).shape == (0, 4)
        assert scorer.advance_batch([], []).shape == (0, 4)


class TestRefusals:
    def test_an_expert_without_evidence_is_named_with_what_to_do(self, release: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequest, match=r"'poetry' has no bigram evidence.*exemplars"):
            ReleaseScorer.load(
                router_dir=release / "router", graph_dir=None, experts=[("poetry", tmp_path)], vocab_size=VOCAB
            )

    def test_evidence_of_another_tokenizer_is_refused(self, release: Path) -> None:
        with pytest.raises(InvalidEvidence, match="counted over 60 tokens, the base model has 61"):
            ReleaseScorer.load(
                router_dir=release / "router", graph_dir=None, experts=[("code", release / "code")], vocab_size=61
            )

    @pytest.mark.parametrize(
        "text", ["{", "{}", '{"kind": "bayes", "format": 2}'], ids=["cut", "empty", "later format"]
    )
    def test_a_damaged_router_file_is_refused(self, release: Path, tmp_path: Path, text: str) -> None:
        (tmp_path / "router.json").write_text(text)

        with pytest.raises(InvalidEvidence, match=r"router\.json is missing or damaged"):
            ReleaseScorer.load(router_dir=tmp_path, graph_dir=None, experts=[], vocab_size=VOCAB)

    @pytest.mark.parametrize("token_id", [-1, VOCAB])
    def test_tokens_beyond_the_vocabulary_are_refused(self, release: Path, token_id: int) -> None:
        scorer = load(release)

        with pytest.raises(InvalidRequest, match="Token ids"):
            scorer.advance(scorer.start(), [0, token_id])

    def test_trunk_evidence_cannot_do_without_states(self, release: Path) -> None:
        scorer = load(release, router="both")

        with pytest.raises(ValueError, match="hidden state"):
            scorer.advance(scorer.start(), [0, 1])


class TestLearnedRelease:
    @pytest.fixture
    def router_dir(self, tmp_path: Path) -> Path:
        """A network that reads the expert off the sign of single features."""
        num_features = 2 * HIDDEN
        score_weight_CH = np.zeros((4, num_features))
        score_weight_CH[[0, 1, 2], [0, 1, 2]] = 8.0
        gate = LearnedGate(
            np.zeros(num_features),
            np.ones(num_features),
            np.eye(num_features),
            np.zeros(num_features),
            score_weight_CH,
            np.array([-4.0, -4.0, -4.0, -4.0]),
        )
        settings = RouterSettings(router_type=GateType.THRESHOLD, tap_layer=1)
        write_learned_router(tmp_path, settings=settings, gate=gate, experts=NAMES, hidden_size=HIDDEN)
        return tmp_path

    def load(self, router_dir: Path, names: Sequence[str] = NAMES) -> ReleaseScorer:
        experts = [(name, router_dir) for name in names]
        return ReleaseScorer.load(router_dir=router_dir, graph_dir=None, experts=experts, vocab_size=VOCAB)

    def test_scores_follow_the_smoothed_states_through_the_threshold_of_sigmoids(self, router_dir: Path) -> None:
        scorer = self.load(router_dir)
        states_TD = np.zeros((40, HIDDEN))
        states_TD[:, 1] = 1.0

        weights_TC = scorer.weights(scorer.advance(scorer.start(), [0] * 40, states_TD))

        assert json.loads((router_dir / "router.json").read_text())["expert_selection_threshold"] == 0.3
        assert weights_TC[-1].tolist() == [0.0, 1.0, 0.0, 0.0]

    def test_columns_may_come_in_another_order_and_fewer(self, router_dir: Path) -> None:
        scorer = self.load(router_dir, names=("story", "math"))
        states_TD = np.zeros((40, HIDDEN))
        states_TD[:, 1] = 1.0

        weights_TC = scorer.weights(scorer.advance(scorer.start(), [0] * 40, states_TD))

        assert weights_TC[-1].tolist() == [0.0, 1.0, 0.0]

    def test_a_batch_equals_the_sequence(self, router_dir: Path) -> None:
        scorer = self.load(router_dir)
        whole_TC = scorer.advance(scorer.start(), [0] * 30, states(1, 30))
        state = scorer.start()

        rows = [scorer.advance_batch([state], [0], states(1, 30)[t : t + 1])[0] for t in range(30)]

        assert_allclose(rows, whole_TC, atol=1e-9)

    def test_a_newcomer_needs_a_new_router_and_the_error_says_so(self, router_dir: Path) -> None:
        with pytest.raises(InvalidRequest, match=r"not trained for poetry.*bayes"):
            self.load(router_dir, names=("code", "poetry"))


class TestNewcomers:
    @pytest.mark.parametrize("router", ["router", "both"])
    def test_are_added_to_a_scorer_that_knows_the_others_with_the_same_result(
        self, release: Path, router: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        experts = [(name, release / name) for name in NAMES]
        known = ReleaseScorer.load(router_dir=release / router, graph_dir=None, experts=experts[:2], vocab_size=VOCAB)
        anew = ReleaseScorer.load(router_dir=release / router, graph_dir=None, experts=experts, vocab_size=VOCAB)
        reads: list[Path] = []
        load = BigramEvidence.load

        def counted(path: Path) -> BigramEvidence:
            reads.append(path)
            return load(path)

        monkeypatch.setattr(BigramEvidence, "load", counted)
        grown = ReleaseScorer.load(
            router_dir=release / router, graph_dir=None, experts=experts, vocab_size=VOCAB, like=known
        )

        tokens = chain(1, 60)
        trunk_states_TD = states(1, 60) if router == "both" else None
        assert grown.columns == anew.columns
        assert np.array_equal(
            grown.advance(grown.start(), tokens, trunk_states_TD), anew.advance(anew.start(), tokens, trunk_states_TD)
        )
        assert len(reads) == (1 if router == "router" else 4)

    def test_a_scorer_of_other_experts_is_no_help(self, release: Path) -> None:
        experts = [(name, release / name) for name in NAMES]
        known = ReleaseScorer.load(router_dir=release / "router", graph_dir=None, experts=experts[1:], vocab_size=VOCAB)
        assert known.newcomers(release / "router", experts) is None
        assert known.newcomers(release / "both", experts[1:]) is None
        assert known.newcomers(release / "router", experts[1:]) == []
