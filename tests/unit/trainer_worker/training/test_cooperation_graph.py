"""Graphs over two toy experts: learned beside their controls, alone and together with router and experts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.shared.config import RouterSettings
from services.shared.errors import InvalidRequest
from services.shared.modeling.base_row import sample_base_text
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.learned_router import LearnedRouter
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.router_artifact import write_bayes_router, write_learned_router
from services.shared.modeling.trunk import hidden_size_of, smooth
from services.trainer_worker.progress import TrainingProgress, TrainingStopped
from services.trainer_worker.training.cooperation_graph import train_cooperation_graph
from services.trainer_worker.training.graph_plan import GraphPlan
from services.trainer_worker.training.graph_report import GraphReport, paired_gain
from tests.unit.trainer_worker.training.toys import Toys

PLAN = GraphPlan(num_steps=4, batch_size=4, length=48, seeds=(0, 1), num_test_documents=8, learning_rate=0.02)


@pytest.fixture(name="scorer", scope="module")
def bayes_scorer(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> ReleaseScorer:
    tmp_path = tmp_path_factory.mktemp("router")
    vocab_size = toys.base.tokenizer.vocab_size
    generic = sample_base_text(toys.base.model, toys.base.tokenizer, num_tokens=2000, seed=0)
    write_bayes_router(
        tmp_path / "bayes", settings=RouterSettings(), base_evidence=build_bigram_evidence(generic, vocab_size)
    )
    return ReleaseScorer.load(
        router_dir=tmp_path / "bayes", graph_dir=None, experts=toys.experts, vocab_size=vocab_size
    )


def study(toys: Toys, scorer: ReleaseScorer, plan: GraphPlan, **options: Any) -> GraphReport:
    arguments: dict[str, Any] = {"on_progress": lambda _: None, "should_stop": lambda: False} | options
    return train_cooperation_graph(
        base=toys.base, experts=toys.experts, scorer=scorer, max_experts=4, texts=toys.texts, plan=plan, **arguments
    )


class TestTrainCooperationGraph:
    def test_reports_the_graph_with_all_its_controls(self, toys: Toys, scorer: ReleaseScorer) -> None:
        reported: list[TrainingProgress] = []
        plan = replace(PLAN, l1_sweep=(50.0,), top_ks=(1,), num_epochs=2)

        report = study(toys, scorer, plan, on_progress=reported.append)

        rows = [(variant.name, variant.seed, variant.control) for variant in report.variants]
        assert rows[:2] == [("no graph", 0, "no graph"), ("no graph, k=1", 0, "no graph, k=1")]
        of_a_seed = ["learned", "l1 50", "learned, k=1", "scalar", "random", "shuffled"]
        assert [row[:2] for row in rows[2:]] == [(name, seed) for seed in (0, 1) for name in of_a_seed]
        assert {row[2] for row in rows if row[0] == "learned, k=1"} == {"no graph, k=1"}
        assert set(report.gains_over) == {"no graph", "scalar", "random", "shuffled"}
        assert report.graph.experts == ("words", "sums")
        assert len(report.graphs) == 2
        assert len(report.history) == 3
        assert (reported[-1].step, reported[-1].total_steps) == (plan.total_steps, plan.total_steps)
        for variant in report.variants:
            if variant.name in {"no graph", "l1 50"}:
                assert (variant.gain, variant.gain_on_whole, variant.sparsity) == (0.0, 0.0, 1.0)
        json.dumps(report.as_json())

    def test_training_one_expert_of_two_to_speak_at_a_time_is_judged_so(
        self, toys: Toys, scorer: ReleaseScorer
    ) -> None:
        report = study(toys, scorer, replace(PLAN, top_ks=(1, 2), controls=False))

        losses = {variant.name: variant.loss for variant in report.variants}
        assert losses["no graph, k=2"] == pytest.approx(losses["no graph"], abs=1e-6), "there are only two experts"
        assert set(report.gains_at_top_k) == {1, 2}

    @pytest.mark.parametrize("joint", [("router",), ("experts",), ("router", "experts")])
    def test_trains_the_rest_along_with_it_and_leaves_it_as_it_was(
        self, toys: Toys, scorer: ReleaseScorer, joint: tuple[Any, ...]
    ) -> None:
        plan = replace(PLAN, controls=False, joint=joint, num_steps=6, seeds=(0,), expert_learning_rate=2e-2)

        report = study(toys, scorer, plan)

        gains = report.joint
        assert gains is not None
        assert gains.parts == joint
        if "experts" in joint:
            assert abs(gains.gain_without_graph[0][0]) > 1e-4, "they moved"
        assert set(gains.constants) == ({"joint", "joint without graph"} if "router" in joint else set())
        for pairs in gains.constants.values():
            assert pairs != [(RouterSettings().stickiness, RouterSettings().temper)], "it moved"
        again = study(toys, scorer, plan)
        assert again.variants[0].loss == report.variants[0].loss, "experts and router are as they were"
        assert again.joint == gains

    def test_what_was_trained_whole_is_not_trained_again(
        self, toys: Toys, scorer: ReleaseScorer, tmp_path: Path
    ) -> None:
        plan = replace(PLAN, joint=("router", "experts"), seeds=(0,))
        steps: list[int] = []

        def stop_late() -> bool:
            return len(steps) > 3 * plan.num_steps

        with pytest.raises(TrainingStopped):
            study(
                toys,
                scorer,
                plan,
                folder=tmp_path,
                on_progress=lambda progress: steps.append(progress.step),
                should_stop=stop_late,
            )
        resumed: list[int] = []
        parts = study(toys, scorer, plan, folder=tmp_path, on_progress=lambda progress: resumed.append(progress.step))

        assert resumed[0] == 3 * plan.num_steps + 1
        assert parts.as_json() == study(toys, scorer, plan).as_json()

    def test_a_learned_router_cannot_be_trained_along(self, toys: Toys, tmp_path: Path) -> None:
        hidden_size = hidden_size_of(toys.base.model)
        network = LearnedRouter(len(smooth(torch.zeros(1, hidden_size))[0]), 3, use_bias=True, dropout=0.0)
        write_learned_router(
            tmp_path,
            settings=RouterSettings(),
            gate=network.to_gate(),
            experts=("words", "sums"),
            hidden_size=hidden_size,
        )
        scorer = ReleaseScorer.load(
            router_dir=tmp_path, graph_dir=None, experts=toys.experts, vocab_size=toys.base.tokenizer.vocab_size
        )

        with pytest.raises(InvalidRequest, match="leave router out of joint"):
            study(toys, scorer, replace(PLAN, joint=("router",), controls=False, seeds=(0,)))


class TestPairedGain:
    def test_knows_that_seeds_differ(self) -> None:
        documents_B = np.random.default_rng(0).normal(0.0, 0.01, size=200)

        def width(gains_S: np.ndarray) -> float:
            _, low, high = paired_gain(gains_S[:, None] + documents_B)
            return high - low

        assert width(np.array([-0.1, 0.0, 0.1])) > 5 * width(np.zeros(3))

    def test_is_the_mean_within_its_interval(self) -> None:
        mean, low, high = paired_gain(np.random.default_rng(1).normal(0.5, 0.1, size=(5, 100)))

        assert mean == pytest.approx(0.5, abs=0.05)
        assert low < mean < high
