"""A graph trained together with the router's filter or the experts, beside the same training without a graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.shared.errors import InvalidRequest
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.modeling.cooperation_network import CooperationNetwork
from services.trainer_worker.training.graph_documents import RoutedDocuments
from services.trainer_worker.training.graph_judge import GraphJudge
from services.trainer_worker.training.graph_report import Losses
from services.trainer_worker.training.graph_training import GRAPH_BETAS, GraphTraining
from services.trainer_worker.training.spliced_documents import DocumentSplicer
from services.trainer_worker.training.trainable_filter import TrainableFilter

JOINT = "joint"
JOINT_WITHOUT_GRAPH = "joint without graph"


@dataclass(frozen=True)
class JointOutcome:
    """What a joint training cost on the test documents, and what it made of graph and filter."""

    losses: Losses
    graph: CooperationGraph
    stickiness: float | None
    temper: float | None


@dataclass(frozen=True)
class JointTraining:
    """Joint trainings over what `training` reads; the experts are as they were after each."""

    training: GraphTraining
    judge: GraphJudge

    def __post_init__(self) -> None:
        """Raises InvalidRequest if the router is to be trained and is not a Bayes filter."""
        if "router" in self.training.plan.joint and self.training.reader.scorer.bayes is None:
            raise InvalidRequest(
                "This release's router is a learned network, and a joint training moves the constants of a Bayes "
                "filter: train the network through the mixture with a router job, and leave router out of joint.",
                param="joint",
            )

    def run(self, seed: int, *, with_graph: bool) -> JointOutcome:
        """Train and judge one; what an earlier attempt has finished is read again."""
        folder = self.training.folder
        parts = "-".join(sorted(self.training.plan.joint))
        name = JOINT if with_graph else JOINT_WITHOUT_GRAPH
        kept = folder / f"{name} {parts}-{seed}.npz" if folder is not None else None
        experts = self.training.reader.ensemble.experts
        if kept is not None and kept.exists():
            self.training.progress.skip(self.training.plan.num_steps)
            return _restored(kept, experts)
        with self._trained(name, seed, with_graph=with_graph) as (network, moving):
            weigh = self._weigher(moving) if moving else None
            outcome = JointOutcome(
                losses=self.judge.losses(network, weigh=weigh),
                graph=(network or CooperationNetwork(len(experts), spread=0.0)).to_graph(experts),
                stickiness=moving.stickiness if moving else None,
                temper=moving.temper if moving else None,
            )
        if kept is not None:
            _keep(kept, outcome)
        return outcome

    @contextmanager
    def _trained(
        self, name: str, seed: int, *, with_graph: bool
    ) -> Iterator[tuple[CooperationNetwork | None, TrainableFilter | None]]:
        """Graph and filter after the training; the experts are the trained ones inside."""
        training, plan = self.training, self.training.plan
        network = CooperationNetwork(len(training.reader.ensemble.experts), seed=seed) if with_graph else None
        moving = self._filter() if "router" in plan.joint else None
        groups: list[dict[str, Any]] = []
        if network is not None:
            groups.append({"params": [network.edges], "lr": plan.learning_rate, "betas": GRAPH_BETAS})
        if moving is not None:
            groups.append({"params": list(moving.parameters()), "lr": plan.router_learning_rate})
        if "experts" not in plan.joint:
            self._train(name, seed, network, moving, torch.optim.Adam(groups))
            yield network, moving
            return
        with training.reader.ensemble.trainable() as leaves:
            groups.append({"params": leaves, "lr": plan.expert_learning_rate})
            self._train(name, seed, network, moving, torch.optim.Adam(groups))
            yield network, moving

    def _train(
        self,
        name: str,
        seed: int,
        network: CooperationNetwork | None,
        moving: TrainableFilter | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        training, plan = self.training, self.training.plan
        # The documents of the graph that is learned alone, in the same order.
        splicer = DocumentSplicer(training.streams, length=plan.length, seed=seed)
        weigh = self._weigher(moving) if moving else None
        for _ in range(plan.num_steps):
            training.progress.check()
            documents = training.reader.draw(splicer, plan.batch_size)
            weights_BTC = weigh(documents) if weigh else None
            nats_BT = training.reader.nats(
                documents, network, max_experts=self.judge.max_experts, weights_BTC=weights_BTC
            )
            loss = nats_BT.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if network is not None:
                network.shrink(plan.learning_rate * plan.l1)
            training.progress.step(name, float(loss.detach()))

    def _filter(self) -> TrainableFilter:
        scorer = self.training.reader.scorer
        assert scorer.bayes is not None
        return TrainableFilter(scorer.bayes.bayes_filter, scorer.gate)

    def _weigher(self, moving: TrainableFilter) -> Callable[[RoutedDocuments], Tensor]:
        """Gate weights under the filter as it is at the time."""

        def weigh(documents: RoutedDocuments) -> Tensor:
            weights_BTC: Tensor = moving(self._log_evidence(documents))
            return weights_BTC

        return weigh

    def _log_evidence(self, documents: RoutedDocuments) -> Tensor:
        reader = self.training.reader
        bayes = reader.scorer.bayes
        assert bayes is not None
        rows = [
            torch.from_numpy(bayes.log_evidence(bayes.start(), ids_T.numpy(), reader.states(ids_T)))
            for ids_T in documents.token_ids_BT
        ]
        return torch.stack(rows)


def _restored(kept: Path, experts: tuple[str, ...]) -> JointOutcome:
    with np.load(kept) as arrays:
        stickiness, temper = (float(value) for value in arrays["constants"])
        return JointOutcome(
            Losses(arrays["spliced"], arrays["whole"]),
            CooperationGraph(experts, arrays["adjacency"]),
            None if np.isnan(stickiness) else stickiness,
            None if np.isnan(temper) else temper,
        )


def _keep(file: Path, outcome: JointOutcome) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half_written = file.with_suffix(".partial")
    constants = [np.nan if value is None else value for value in (outcome.stickiness, outcome.temper)]
    with half_written.open("wb") as target:
        np.savez(
            target,
            spliced=outcome.losses.spliced_B,
            whole=outcome.losses.whole_B,
            adjacency=outcome.graph.adjacency_EE,
            constants=np.array(constants),
        )
    half_written.rename(file)
