"""Learn one graph over frozen experts and a frozen router: Adam and a proximal step, document by document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from services.shared.modeling.cooperation_network import CooperationNetwork
from services.trainer_worker.progress import StepClock, TrainingProgress, TrainingStopped
from services.trainer_worker.training.graph_documents import DocumentReader, Streams
from services.trainer_worker.training.graph_plan import GraphPlan
from services.trainer_worker.training.spliced_documents import DocumentSplicer

GRAPH_BETAS: Final = (0.99, 0.999)
"""A long average of an edge's gradient. With a proximal step of l1 times the rate, an edge lives while its average
gradient is more than l1 times its root mean square, and is exactly zero while it is noise."""


class GraphProgress:
    """Counts the steps of all networks of a study; raises TrainingStopped when told to stop."""

    def __init__(
        self, plan: GraphPlan, on_progress: Callable[[TrainingProgress], None], should_stop: Callable[[], bool]
    ) -> None:
        self._total = plan.total_steps
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._num_done = 0
        self._clock: StepClock | None = None

    def check(self) -> None:
        """Raise TrainingStopped if the study is to stop."""
        if self._should_stop():
            raise TrainingStopped("the study of the graph was stopped")

    def skip(self, num_steps: int) -> None:
        """Steps that an earlier attempt has done."""
        self._num_done += num_steps

    def step(self, name: str, loss: float) -> None:
        """One more step of the network of this name; its loss in nats per token."""
        self._num_done += 1
        self._clock = self._clock or StepClock(self._num_done - 1)
        seconds_left = self._clock.seconds_left(self._num_done, self._total)
        phase = "graph" if name == "learned" else f"graph: {name}"
        self._on_progress(TrainingProgress(phase, self._num_done, self._total, loss=loss, seconds_left=seconds_left))


@dataclass(frozen=True)
class LearnedNetwork:
    """A trained network and its A_EE from before the training to its end, epoch by epoch."""

    network: CooperationNetwork
    history: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class GraphTraining:
    """Trains networks on documents spliced of `streams`; those trained whole are kept in `folder`."""

    reader: DocumentReader
    streams: Sequence[Streams]
    plan: GraphPlan
    progress: GraphProgress
    folder: Path | None

    def learn(
        self, name: str, network: CooperationNetwork, seed: int, *, max_experts: int, l1: float | None = None
    ) -> LearnedNetwork:
        """Train it in place. `max_experts` speak per token; `l1` defaults to the plan's."""
        plan = self.plan
        kept = self.folder / f"{name}-{seed}.npz" if self.folder is not None else None
        if kept is not None and kept.exists():
            self.progress.skip(plan.num_steps)
            return _restored(kept, network)
        splicer = DocumentSplicer(self.streams, length=plan.length, seed=seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=plan.learning_rate, betas=GRAPH_BETAS)
        history = [adjacency_of(network)]
        for step in range(1, plan.num_steps + 1):
            self.progress.check()
            documents = self.reader.draw(splicer, plan.batch_size)
            loss = self.reader.nats(documents, network, max_experts=max_experts).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            network.shrink(plan.learning_rate * (plan.l1 if l1 is None else l1))
            self.progress.step(name, float(loss.detach()))
            if step * plan.num_epochs // plan.num_steps > (step - 1) * plan.num_epochs // plan.num_steps:
                history.append(adjacency_of(network))
        if kept is not None:
            _keep(kept, network, history)
        return LearnedNetwork(network, tuple(history))


def adjacency_of(network: CooperationNetwork) -> np.ndarray:
    """A_EE as it is now."""
    return network.adjacency().detach().numpy().copy()


def _restored(kept: Path, network: CooperationNetwork) -> LearnedNetwork:
    with np.load(kept) as arrays, torch.no_grad():
        network.edges.copy_(torch.from_numpy(arrays["edges"]))
        return LearnedNetwork(network, tuple(arrays["history"]))


def _keep(file: Path, network: CooperationNetwork, history: Sequence[np.ndarray]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half_written = file.with_suffix(".partial")
    with half_written.open("wb") as target:
        np.savez(target, edges=network.edges.detach().numpy(), history=np.stack(history))
    half_written.rename(file)
