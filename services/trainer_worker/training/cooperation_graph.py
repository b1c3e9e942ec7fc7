"""Learn a cooperation graph through the mixture, always beside its controls (DESIGN D4).

A graph that does not beat no graph, one learned scalar, random graphs of its strength and its own edges put elsewhere,
on documents that it was not trained on, is not worth its release.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.modeling.cooperation_network import CooperationNetwork
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.vocabulary import BASE
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble
from services.trainer_worker.training.graph_documents import DocumentReader
from services.trainer_worker.training.graph_judge import GraphJudge
from services.trainer_worker.training.graph_plan import GraphPlan
from services.trainer_worker.training.graph_report import NO_GRAPH, GraphReport, JointGains, Reading, Readings
from services.trainer_worker.training.graph_training import GraphProgress, GraphTraining, LearnedNetwork
from services.trainer_worker.training.joint_graph import JOINT, JOINT_WITHOUT_GRAPH, JointOutcome, JointTraining
from services.trainer_worker.training.spliced_documents import split_streams

if TYPE_CHECKING:
    from services.shared.training_text import Example

_HELD_OUT: Final = 0.2
_SPLIT_SEED: Final = 0
"""Not one of the plan's: all seeds are judged on the same documents."""
_NUM_EXAMPLES: Final = 4
_LEARNED: Final = "learned"


def train_cooperation_graph(  # noqa: PLR0913
    *,
    base: LoadedBase,
    experts: Sequence[tuple[str, Path]],
    scorer: ReleaseScorer,
    max_experts: int,
    texts: "Mapping[str, Sequence[Example]]",
    plan: GraphPlan,
    folder: Path | None = None,
    on_progress: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool],
) -> GraphReport:
    """Learn A over a release's experts on spliced documents; `scorer` is the release's router without a graph.

    `texts` are what documents are spliced of: an expert's, or text that mixes domains by itself; a fifth of each is
    held out, and all networks are judged on the same of it. Raises TrainingStopped within one step of
    `should_stop()`; networks that were trained whole are kept in `folder`. Raises InvalidRequest where the plan trains
    a router along that is not a Bayes filter.
    """
    streams = {
        name: base.tokenizer.encode_batch([example.text for example in examples]) for name, examples in texts.items()
    }
    train, test = split_streams(streams, held_out=_HELD_OUT, seed=_SPLIT_SEED)
    progress = GraphProgress(plan, on_progress, should_stop)
    with ExpertEnsemble.load(base, experts) as ensemble:
        if scorer.columns != (*ensemble.experts, BASE):
            raise ValueError(f"the router's columns {scorer.columns} are not those of the experts")
        reader = DocumentReader(ensemble, scorer)
        documents = reader.test_documents(
            list(test.values()), number=plan.num_test_documents, length=plan.length, batch_size=plan.batch_size
        )
        judge = GraphJudge(reader, documents, max_experts, progress.check)
        training = GraphTraining(reader, list(train.values()), plan, progress, folder)
        return _Study(training, judge).report()


class _Study:
    """All networks of a plan, trained and judged seed by seed."""

    def __init__(self, training: GraphTraining, judge: GraphJudge) -> None:
        self._training = training
        self._judge = judge
        self._plan = training.plan
        self._joint_training = JointTraining(training, judge)
        self._experts = training.reader.ensemble.experts
        self._readings = Readings(training.plan.seeds)
        self._graphs: list[CooperationGraph] = []

    def report(self) -> GraphReport:
        """Everything that was measured."""
        plan, readings = self._plan, self._readings
        self._read(NO_GRAPH, 0, None)
        for k in plan.top_ks:
            self._read(_at(NO_GRAPH, k), 0, None, max_experts=k, control=_at(NO_GRAPH, k))
        by_seed = [self._networks_of(seed) for seed in plan.seeds]
        joint = self._joint() if plan.joint else None
        controls = [name for name in (NO_GRAPH, "scalar", "random", "shuffled") if readings.has(name)]
        report = GraphReport(
            graph=self._graphs[0],  # not the best on the test documents: that would flatter it
            graphs=tuple(self._graphs),
            variants=readings.variants(),
            gains_over={name: readings.gain(_LEARNED, name) for name in controls},
            gain_on_whole=readings.gain_on_whole(_LEARNED, NO_GRAPH),
            gains_at_top_k={k: readings.gain(_at(_LEARNED, k), _at(NO_GRAPH, k)) for k in plan.top_ks},
            joint=joint,
            history=by_seed[0].history,
        )
        return replace(report, examples=tuple(self._judge.examples(by_seed[0].network, _NUM_EXAMPLES)))

    def _networks_of(self, seed: int) -> LearnedNetwork:
        """Train and read all of a seed but the joint ones; returns the learned graph."""
        plan, num_experts, max_experts = self._plan, len(self._experts), self._judge.max_experts
        learn = self._training.learn
        learned = learn(_LEARNED, CooperationNetwork(num_experts, seed=seed), seed, max_experts=max_experts)
        self._read(_LEARNED, seed, learned.network)
        self._graphs.append(learned.network.to_graph(self._experts))
        for l1 in plan.l1_sweep:
            name = f"l1 {l1:g}"
            network = CooperationNetwork(num_experts, seed=seed)
            self._read(name, seed, learn(name, network, seed, max_experts=max_experts, l1=l1).network)
        for k in plan.top_ks:
            name = _at(_LEARNED, k)
            network = learn(name, CooperationNetwork(num_experts, seed=seed), seed, max_experts=k).network
            self._read(name, seed, network, max_experts=k, control=_at(NO_GRAPH, k))
        if plan.controls:
            scalar = CooperationNetwork(num_experts, shared=True, seed=seed)
            self._read("scalar", seed, learn("scalar", scalar, seed, max_experts=max_experts).network)
            strength = float(learned.network.edges.detach().square().mean().sqrt())
            self._read("random", seed, CooperationNetwork(num_experts, spread=strength, seed=1000 + seed))
            self._read("shuffled", seed, learned.network.shuffled(seed))
        return learned

    def _joint(self) -> JointGains:
        outcomes: dict[str, list[JointOutcome]] = {JOINT_WITHOUT_GRAPH: [], JOINT: []}
        for name, done in outcomes.items():
            for seed in self._plan.seeds:
                outcome = self._joint_training.run(seed, with_graph=name == JOINT)
                done.append(outcome)
                self._readings.add(Reading(name, seed, outcome.losses, outcome.graph))
        return JointGains(
            parts=self._plan.joint,
            gain=self._readings.gains(JOINT, NO_GRAPH),
            gain_without_graph=self._readings.gains(JOINT_WITHOUT_GRAPH, NO_GRAPH),
            gain_of_graph=self._readings.gains(JOINT, JOINT_WITHOUT_GRAPH),
            sparsity=float(np.mean([outcome.graph.sparsity for outcome in outcomes[JOINT]])),
            constants={name: _constants(done) for name, done in outcomes.items() if _constants(done)},
        )

    def _read(
        self,
        name: str,
        seed: int,
        network: CooperationNetwork | None,
        *,
        max_experts: int | None = None,
        control: str = NO_GRAPH,
    ) -> None:
        # No graph is a graph too where fewer may speak: it cuts and normalises as they do.
        blank = CooperationNetwork(len(self._experts), spread=0.0)
        reader = network if network is not None or max_experts is None else blank
        losses = self._judge.losses(reader, max_experts=max_experts)
        self._readings.add(Reading(name, seed, losses, (network or blank).to_graph(self._experts), control))


def _at(name: str, k: int) -> str:
    """A network's name under a bound of k experts per token."""
    return f"{name}, k={k}"


def _constants(outcomes: Sequence[JointOutcome]) -> list[tuple[float, float]]:
    pairs = [(outcome.stickiness, outcome.temper) for outcome in outcomes]
    return [(stickiness, temper) for stickiness, temper in pairs if stickiness is not None and temper is not None]
