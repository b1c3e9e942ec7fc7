"""Train a cooperation graph through the mixture, always beside its controls (DESIGN D4).

A graph that does not beat no graph, one learned scalar and random graphs of its strength, on documents that it was not
trained on, is not worth its release.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.modeling.cooperation_network import CooperationNetwork
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.trunk import trunk_states
from services.shared.vocabulary import BASE
from services.trainer_worker.progress import TrainingProgress, TrainingStopped
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble
from services.trainer_worker.training.spliced_documents import DocumentSplicer, split_streams

if TYPE_CHECKING:
    from services.shared.training_text import Example

_HELD_OUT: Final = 0.2
_NUM_RESAMPLES: Final = 2000
_LEAST_GAIN: Final = 0.01
"""Nats per token: less is not worth one more thing that can go wrong."""
_LARGEST_HARM: Final = 0.002
"""Nats per token that whole documents may lose, with 97.5 % certainty: requests are read from their beginning."""


@dataclass(frozen=True)
class GraphPlan:
    """How a graph is trained and judged."""

    num_steps: int = 60
    batch_size: int = 8
    length: int = 192
    learning_rate: float = 0.02
    l1: float = 0.02
    seeds: tuple[int, ...] = (0, 1, 2)
    num_test_documents: int = 128


@dataclass(frozen=True)
class GraphVariant:
    """One row of the report. `gain` is the loss without a graph minus this one's, with its 95 % interval."""

    name: str
    seed: int
    loss: float
    gain: float
    gain_low: float
    gain_high: float
    sparsity: float
    largest_edge: float


@dataclass(frozen=True)
class GraphReport:
    """The learned graph, its controls, and whether it is worth having.

    `gains_over[control]` is the control's loss minus the learned graphs' mean loss over the same spliced documents and
    seeds, with its 95 % interval; `gain_on_whole` is that over no graph on whole documents, read from their beginning.
    """

    graph: CooperationGraph
    variants: tuple[GraphVariant, ...]
    gains_over: Mapping[str, tuple[float, float, float]]
    gain_on_whole: tuple[float, float, float]

    @property
    def beats_controls(self) -> bool:
        """True when it gains 0.01 nats over no graph, beats every control beyond doubt and harms no whole document."""
        is_certain = all(low > 0 for _, low, _ in self.gains_over.values())
        is_harmless = self.gain_on_whole[1] > -_LARGEST_HARM
        return is_certain and is_harmless and self.gains_over["no graph"][0] >= _LEAST_GAIN

    def as_json(self) -> dict[str, object]:
        """For report files; the graph itself is an artifact."""
        return {
            "experts": list(self.graph.experts),
            "variants": [asdict(variant) for variant in self.variants],
            "gains_over": {name: list(gain) for name, gain in self.gains_over.items()},
            "gain_on_whole_documents": list(self.gain_on_whole),
            "beats_controls": self.beats_controls,
        }


@dataclass(frozen=True)
class _Documents:
    """Documents under the router's weights; `counted_BT` says which of their predicted tokens are text, [B, T-1]."""

    token_ids_BT: Tensor
    weights_BTC: Tensor
    counted_BT: Tensor


def train_cooperation_graph(  # noqa: PLR0913
    *,
    base: LoadedBase,
    experts: Sequence[tuple[str, Path]],
    scorer: ReleaseScorer,
    max_experts: int,
    texts: "Mapping[str, Sequence[Example]]",
    plan: GraphPlan = GraphPlan(),
    on_progress: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool],
) -> GraphReport:
    """Learn A over a release's experts on spliced documents; `scorer` is the release's router without a graph.

    Controls on the same documents: no graph, one learned scalar for all edges, and random graphs as strong as
    the learned one. Raises TrainingStopped within one step of `should_stop()`.
    """
    streams = {
        name: base.tokenizer.encode_batch([example.text for example in texts.get(name, ())]) for name, _ in experts
    }
    train, test = split_streams(streams, held_out=_HELD_OUT, seed=plan.seeds[0])
    with ExpertEnsemble.load(base, experts) as ensemble:
        trainer = _GraphTrainer(ensemble, scorer, max_experts, plan, on_progress, should_stop)
        return trainer.report(list(train.values()), list(test.values()))


class _GraphTrainer:
    """Trains and judges the variants over one set of documents."""

    def __init__(
        self,
        ensemble: ExpertEnsemble,
        scorer: ReleaseScorer,
        max_experts: int,
        plan: GraphPlan,
        on_progress: Callable[[TrainingProgress], None],
        should_stop: Callable[[], bool],
    ) -> None:
        if scorer.columns != (*ensemble.experts, BASE):
            raise ValueError(f"the router's columns {scorer.columns} are not those of the experts")
        self._ensemble = ensemble
        self._scorer = scorer
        self._max_experts = max_experts
        self._plan = plan
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._num_done = 0

    def report(self, train: Sequence[Sequence[Sequence[int]]], test: Sequence[Sequence[Sequence[int]]]) -> GraphReport:
        """Train every variant and compare them on the test documents."""
        plan = self._plan
        test_splicer = DocumentSplicer(test, length=plan.length, seed=1000)
        documents = [
            self._gated(test_splicer, plan.batch_size) for _ in range(plan.num_test_documents // plan.batch_size)
        ]
        whole = self._whole_documents(test)
        plain_B, plain_whole_B = self._document_losses(documents, None), self._document_losses(whole, None)
        learned_whole: list[np.ndarray] = []
        num_experts = len(self._ensemble.experts)
        losses_B: dict[tuple[str, int], np.ndarray] = {("no graph", 0): plain_B}
        graphs: dict[tuple[str, int], CooperationGraph] = {
            ("no graph", 0): CooperationGraph(self._ensemble.experts, np.zeros((num_experts, num_experts)))
        }
        for seed in plan.seeds:
            learned = self._train(CooperationNetwork(num_experts, seed=seed), train, seed)
            scalar = self._train(CooperationNetwork(num_experts, shared=True, seed=seed), train, seed)
            random = CooperationNetwork(num_experts, spread=_strength(learned), seed=1000 + seed)
            learned_whole.append(self._document_losses(whole, learned))
            for name, network in (("learned", learned), ("scalar", scalar), ("random", random)):
                losses_B[name, seed] = self._document_losses(documents, network)
                graphs[name, seed] = network.to_graph(self._ensemble.experts)
        gain_on_whole = _interval(plain_whole_B - np.mean(learned_whole, axis=0))
        return _compare(losses_B, graphs, plan.seeds, gain_on_whole)

    def _train(
        self, network: CooperationNetwork, streams: Sequence[Sequence[Sequence[int]]], seed: int
    ) -> CooperationNetwork:
        plan = self._plan
        splicer = DocumentSplicer(streams, length=plan.length, seed=seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=plan.learning_rate)
        for _ in range(plan.num_steps):
            if self._should_stop():
                raise TrainingStopped("the graph's training was stopped")
            loss = self._nats(self._gated(splicer, plan.batch_size), network).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            network.shrink(plan.learning_rate * plan.l1)
            self._num_done += 1
            total = 2 * plan.num_steps * len(plan.seeds)
            self._on_progress(TrainingProgress("graph", self._num_done, total, loss=float(loss.detach())))
        return network

    @torch.no_grad()
    def _document_losses(self, documents: Sequence[_Documents], network: CooperationNetwork | None) -> np.ndarray:
        means = []
        for batch in documents:
            nats_BT = self._nats(batch, network).cpu() * batch.counted_BT
            means.append((nats_BT.sum(dim=1) / batch.counted_BT.sum(dim=1)).numpy())
        return np.concatenate(means)

    def _nats(self, documents: _Documents, network: CooperationNetwork | None) -> Tensor:
        weights_NC = documents.weights_BTC.flatten(0, 1)
        if network is not None:
            weights_NC = network(weights_NC, max_experts=self._max_experts)
        weights_BTE = weights_NC.view(documents.weights_BTC.shape)[..., :-1]
        return self._ensemble.nats(documents.token_ids_BT, weights_BTE)

    def _gated(self, splicer: DocumentSplicer, num_documents: int) -> _Documents:
        return self._under_router(list(splicer.draw(num_documents).token_ids_BT))

    def _whole_documents(self, streams: Sequence[Sequence[Sequence[int]]]) -> list[_Documents]:
        """Test documents of all experts from their beginning, as requests are, cut to the plan's length."""
        per_expert = max(self._plan.num_test_documents // len(streams), 1)
        rows = [
            torch.tensor(document[: self._plan.length])
            for documents in streams
            for document in documents[:per_expert]
            if len(document) > 1
        ]
        size = self._plan.batch_size
        return [self._under_router(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _under_router(self, rows: Sequence[Tensor]) -> _Documents:
        token_ids_BT = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        weights = [torch.from_numpy(self._route(ids_T)) for ids_T in token_ids_BT]
        lengths_B1 = torch.tensor([[len(row)] for row in rows])
        counted_BT = torch.arange(1, token_ids_BT.shape[1]) < lengths_B1
        return _Documents(token_ids_BT, torch.stack(weights), counted_BT)

    def _route(self, ids_T: Tensor) -> np.ndarray:
        states_TD = None
        if self._scorer.tap_layer is not None:
            states_TD = trunk_states(self._ensemble.base.model, ids_T[None], self._scorer.tap_layer)[0].numpy()
        return self._scorer.weights(self._scorer.advance(self._scorer.start(), ids_T.tolist(), states_TD))


def _strength(network: CooperationNetwork) -> float:
    """Root mean square of the edges: a random graph of the same strength is the fair null."""
    return float(network.edges.detach().square().mean().sqrt())


def _compare(
    losses_B: Mapping[tuple[str, int], np.ndarray],
    graphs: Mapping[tuple[str, int], CooperationGraph],
    seeds: Sequence[int],
    gain_on_whole: tuple[float, float, float],
) -> GraphReport:
    plain_B = losses_B["no graph", 0]
    variants = []
    for (name, seed), variant_B in losses_B.items():
        gain, low, high = _interval(plain_B - variant_B)
        graph = graphs[name, seed]
        variants.append(
            GraphVariant(
                name=name,
                seed=seed,
                loss=float(variant_B.mean()),
                gain=gain,
                gain_low=low,
                gain_high=high,
                sparsity=graph.sparsity,
                largest_edge=float(np.abs(graph.adjacency_EE).max()),
            )
        )
    learned_B = np.mean([losses_B["learned", seed] for seed in seeds], axis=0)
    controls = {
        "no graph": plain_B,
        "scalar": np.mean([losses_B["scalar", seed] for seed in seeds], axis=0),
        "random": np.mean([losses_B["random", seed] for seed in seeds], axis=0),
    }
    return GraphReport(
        graph=graphs["learned", seeds[0]],  # not the best on the test documents: that would flatter it
        variants=tuple(variants),
        gains_over={name: _interval(control_B - learned_B) for name, control_B in controls.items()},
        gain_on_whole=gain_on_whole,
    )


def _interval(differences_B: np.ndarray) -> tuple[float, float, float]:
    """Mean of paired differences with its 95 % bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(differences_B), size=(_NUM_RESAMPLES, len(differences_B)))
    low, high = np.percentile(differences_B[picks].mean(axis=1), [2.5, 97.5])
    return float(differences_B.mean()), float(low), float(high)
