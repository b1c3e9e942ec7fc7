"""Train a cooperation graph through the mixture, always beside its controls (DESIGN D4).

A graph that does not beat no graph, one learned scalar and random graphs of its strength, on documents that it was not
trained on, is not worth its release.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.cooperation_network import CooperationNetwork
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.trunk import trunk_states
from services.shared.vocabulary import BASE
from services.trainer_worker.progress import StepClock, TrainingProgress, TrainingStopped
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble
from services.trainer_worker.training.graph_report import (
    Gain,
    GraphReport,
    RoutedToken,
    compare_graphs,
    paired_gain,
)
from services.trainer_worker.training.spliced_documents import DocumentSplicer, split_streams

if TYPE_CHECKING:
    from services.shared.training_text import Example

_HELD_OUT: Final = 0.2
_NUM_EXAMPLES: Final = 4


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
    num_epochs: int = 1
    """The graph is kept so often, evenly over the steps, for pictures."""
    l1_sweep: tuple[float, ...] = ()
    """Other weights of the penalty to learn graphs under."""
    top_ks: tuple[int, ...] = ()
    """Experts per token at which the learned graph is held against none."""
    controls: bool = True


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
    folder: Path | None = None,
    on_progress: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool],
) -> GraphReport:
    """Learn A over a release's experts on spliced documents; `scorer` is the release's router without a graph.

    `texts` are what documents are spliced of: an expert's, or text that mixes domains by itself. Controls on the same
    documents: no graph, one learned scalar for all edges, and random graphs as strong as the learned one.
    Raises TrainingStopped within one step of `should_stop()`; networks that were trained whole are kept in `folder`.
    """
    streams = {
        name: base.tokenizer.encode_batch([example.text for example in examples]) for name, examples in texts.items()
    }
    train, test = split_streams(streams, held_out=_HELD_OUT, seed=plan.seeds[0])
    with ExpertEnsemble.load(base, experts) as ensemble:
        trainer = _GraphTrainer(
            ensemble,
            scorer=scorer,
            max_experts=max_experts,
            plan=plan,
            folder=folder,
            on_progress=on_progress,
            should_stop=should_stop,
        )
        return trainer.report(list(train.values()), list(test.values()))


class _GraphTrainer:
    """Trains and judges the variants over one set of documents."""

    def __init__(  # noqa: PLR0913
        self,
        ensemble: ExpertEnsemble,
        *,
        scorer: ReleaseScorer,
        max_experts: int,
        plan: GraphPlan,
        folder: Path | None,
        on_progress: Callable[[TrainingProgress], None],
        should_stop: Callable[[], bool],
    ) -> None:
        if scorer.columns != (*ensemble.experts, BASE):
            raise ValueError(f"the router's columns {scorer.columns} are not those of the experts")
        self._ensemble = ensemble
        self._scorer = scorer
        self._max_experts = max_experts
        self._plan = plan
        self._folder = folder
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._num_done = 0
        self._clock: StepClock | None = None
        self._histories: dict[tuple[str, int], tuple[np.ndarray, ...]] = {}

    def report(self, train: Sequence[Sequence[Sequence[int]]], test: Sequence[Sequence[Sequence[int]]]) -> GraphReport:
        """Train every variant and compare them on the test documents."""
        plan = self._plan
        test_splicer = DocumentSplicer(test, length=plan.length, seed=1000)
        documents = [
            self._gated(test_splicer, plan.batch_size) for _ in range(plan.num_test_documents // plan.batch_size)
        ]
        whole = self._whole_documents(test)
        plain_B, plain_whole_B = self._document_losses(documents, None), self._document_losses(whole, None)
        networks = self._networks(train)
        learned = {seed: networks["learned", seed] for seed in plan.seeds}
        losses_B = {key: self._document_losses(documents, network) for key, network in networks.items()}
        graphs = {key: network.to_graph(self._ensemble.experts) for key, network in networks.items()}
        no_graph = ("no graph", 0)
        whole_B = np.mean([self._document_losses(whole, network) for network in learned.values()], axis=0)
        report = compare_graphs(
            {no_graph: plain_B} | losses_B,
            {no_graph: self._blank().to_graph(self._ensemble.experts)} | graphs,
            plan.seeds,
            paired_gain(plain_whole_B - whole_B),
        )
        first = learned[plan.seeds[0]]
        return replace(
            report,
            gains_at_top_k=self._gains_at_top_k(documents, list(learned.values())),
            history=self._histories["learned", plan.seeds[0]],
            examples=tuple(self._examples(documents[0], first)) if documents else (),
        )

    def _networks(self, train: Sequence[Sequence[Sequence[int]]]) -> dict[tuple[str, int], CooperationNetwork]:
        """By name and seed: the learned graphs, and whatever they are held against."""
        plan, num_experts = self._plan, len(self._ensemble.experts)
        networks = {}
        for seed in plan.seeds:
            learned = self._train("learned", CooperationNetwork(num_experts, seed=seed), train, seed)
            networks["learned", seed] = learned
            for l1 in plan.l1_sweep:
                network = CooperationNetwork(num_experts, seed=seed)
                networks[f"l1 {l1:g}", seed] = self._train(f"l1 {l1:g}", network, train, seed, l1=l1)
            if plan.controls:
                scalar = CooperationNetwork(num_experts, shared=True, seed=seed)
                networks["scalar", seed] = self._train("scalar", scalar, train, seed)
                spread = _strength(learned)
                networks["random", seed] = CooperationNetwork(num_experts, spread=spread, seed=1000 + seed)
        return networks

    def _train(
        self,
        name: str,
        network: CooperationNetwork,
        streams: Sequence[Sequence[Sequence[int]]],
        seed: int,
        *,
        l1: float | None = None,
    ) -> CooperationNetwork:
        plan = self._plan
        kept = self._folder / f"{name}-{seed}.npz" if self._folder is not None else None
        if kept is not None and kept.exists():
            self._num_done += plan.num_steps
            return self._restore(kept, (name, seed), network)
        splicer = DocumentSplicer(streams, length=plan.length, seed=seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=plan.learning_rate)
        history = [_adjacency(network)]
        for step in range(1, plan.num_steps + 1):
            if self._should_stop():
                raise TrainingStopped("the graph's training was stopped")
            loss = self._nats(self._gated(splicer, plan.batch_size), network).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            network.shrink(plan.learning_rate * (plan.l1 if l1 is None else l1))
            self._report(name, float(loss.detach()))
            if step * plan.num_epochs // plan.num_steps > (step - 1) * plan.num_epochs // plan.num_steps:
                history.append(_adjacency(network))
        self._histories[name, seed] = tuple(history)
        if kept is not None:
            _keep(kept, network, history)
        return network

    def _restore(self, kept: Path, key: tuple[str, int], network: CooperationNetwork) -> CooperationNetwork:
        with np.load(kept) as arrays, torch.no_grad():
            network.edges.copy_(torch.from_numpy(arrays["edges"]))
            self._histories[key] = tuple(arrays["history"])
        return network

    def _report(self, name: str, loss: float) -> None:
        plan = self._plan
        self._num_done += 1
        trained_per_seed = 1 + len(plan.l1_sweep) + int(plan.controls)
        total = trained_per_seed * plan.num_steps * len(plan.seeds)
        self._clock = self._clock or StepClock(self._num_done - 1)
        seconds_left = self._clock.seconds_left(self._num_done, total)
        phase = "graph" if name == "learned" else f"graph: {name}"
        self._on_progress(TrainingProgress(phase, self._num_done, total, loss=loss, seconds_left=seconds_left))

    def _gains_at_top_k(
        self, documents: Sequence[_Documents], learned: Sequence[CooperationNetwork]
    ) -> dict[int, Gain]:
        gains = {}
        for k in self._plan.top_ks:
            plain_B = self._document_losses(documents, self._blank(), max_experts=k)
            learned_B = np.mean(
                [self._document_losses(documents, network, max_experts=k) for network in learned], axis=0
            )
            gains[k] = paired_gain(plain_B - learned_B)
        return gains

    def _blank(self) -> CooperationNetwork:
        """No graph at all."""
        return CooperationNetwork(len(self._ensemble.experts), spread=0.0)

    @torch.no_grad()
    def _examples(self, documents: _Documents, network: CooperationNetwork) -> Iterator[RoutedToken]:
        for sample, (ids_T, weights_TC) in enumerate(zip(documents.token_ids_BT, documents.weights_BTC, strict=True)):
            if sample == _NUM_EXAMPLES:
                return
            changed_TC = network(weights_TC, max_experts=self._max_experts)
            for position, token_id in enumerate(ids_T.tolist()):
                before_C, after_C = weights_TC[position], changed_TC[position]
                yield RoutedToken(sample, position, token_id, tuple(before_C.tolist()), tuple(after_C.tolist()))

    @torch.no_grad()
    def _document_losses(
        self, documents: Sequence[_Documents], network: CooperationNetwork | None, *, max_experts: int | None = None
    ) -> np.ndarray:
        means = []
        for batch in documents:
            if self._should_stop():
                raise TrainingStopped("the graph's judgement was stopped")
            nats_BT = self._nats(batch, network, max_experts=max_experts).cpu() * batch.counted_BT
            means.append((nats_BT.sum(dim=1) / batch.counted_BT.sum(dim=1)).numpy())
        return np.concatenate(means)

    def _nats(
        self, documents: _Documents, network: CooperationNetwork | None, *, max_experts: int | None = None
    ) -> Tensor:
        weights_NC = documents.weights_BTC.flatten(0, 1)
        if network is not None:
            weights_NC = network(weights_NC, max_experts=max_experts or self._max_experts)
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


def _adjacency(network: CooperationNetwork) -> np.ndarray:
    return network.adjacency().detach().numpy().copy()


def _keep(file: Path, network: CooperationNetwork, history: Sequence[np.ndarray]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half_written = file.with_suffix(".partial")
    with half_written.open("wb") as target:
        np.savez(target, edges=network.edges.detach().numpy(), history=np.stack(history))
    half_written.rename(file)


def _strength(network: CooperationNetwork) -> float:
    """Root mean square of the edges: a random graph of the same strength is the fair null."""
    return float(network.edges.detach().square().mean().sqrt())
