"""Train image experts with their graph, epoch by epoch, each measured and checkpointed."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch

from services.shared.errors import JobFailed
from services.shared.modeling.cooperation_network import CooperationNetwork
from services.trainer_worker.image_cooperation.augmentation import flipped_and_shifted
from services.trainer_worker.image_cooperation.checkpoint import Record, load_checkpoint, save_checkpoint
from services.trainer_worker.image_cooperation.images import ImageData, ImageSet
from services.trainer_worker.image_cooperation.measures import EpochMeasures, as_inputs, measure_epoch, mixed_batches
from services.trainer_worker.image_cooperation.mixture import ImageMixture, Mixed
from services.trainer_worker.image_cooperation.objective import training_loss
from services.trainer_worker.image_cooperation.published_mixture import PublishedGraph, PublishedMixture
from services.trainer_worker.image_cooperation.recipe import Recipe
from services.trainer_worker.image_cooperation.strong_mixture import StrongMixture
from services.trainer_worker.progress import StepClock, TrainingProgress, TrainingStopped

_FROZEN_SPREAD: Final = 0.25
"""Edges of the strong setting's frozen random graph: about as strong as those that are learned."""
_GRAPH_BETAS: Final = (0.99, 0.999)
"""A long average of an edge's gradient: with a proximal step of l1 times the rate, an edge lives while its average
gradient is more than l1 times its root mean square, and is exactly zero while it is noise."""
_RISE: Final = 0.2


@dataclass(frozen=True)
class Outcome:
    """A finished training: the network, its figures before training (epoch 0) and after each epoch, and its answers
    to the test set at the end."""

    network: ImageMixture
    history: tuple[EpochMeasures, ...]
    answers: tuple[Mixed, ...]


def train_images(
    data: ImageData,
    recipe: Recipe,
    *,
    folder: Path,
    on_progress: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool],
    should_keep_state: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train to the recipe's end, from the last checkpoint in `folder` if there is one of this recipe.

    Every random number is a function of seed and epoch, so a resumed training ends with the weights of an
    uninterrupted one. Raises TrainingStopped within one step of `should_stop()`, after a checkpoint of that step if
    `should_keep_state()`, and JobFailed when the loss is lost.
    """
    with _repeatable(recipe):
        return _Trainer(data, recipe, folder, on_progress, should_stop, should_keep_state).run()


@contextmanager
def _repeatable(recipe: Recipe) -> Iterator[None]:
    """One thread for the strong network: oneDNN's gradient of a convolution over one small picture differs from run to
    run with two (torch 2.13, AVX-512), and an expert may well get one picture of a batch."""
    num_threads = torch.get_num_threads()
    if recipe.setting == "strong":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def make_network(data: ImageData, recipe: Recipe) -> ImageMixture:
    """The untrained network; equal seeds give equal experts and gates, whatever the graph."""
    torch.manual_seed(recipe.seed)
    graph = _make_graph(recipe)
    make = PublishedMixture if recipe.setting == "published" else StrongMixture
    return make(data.image_shape, data.num_classes, recipe.num_experts, graph)  # type: ignore[arg-type]


def _make_graph(recipe: Recipe) -> CooperationNetwork | None:
    if recipe.graph == "none":
        return None
    is_shared, is_frozen = recipe.graph == "scalar", recipe.graph == "frozen"
    if recipe.setting == "published":
        graph: CooperationNetwork = PublishedGraph(recipe.num_experts, shared=is_shared, seed=recipe.seed)
    else:
        spread = _FROZEN_SPREAD if is_frozen else 0.01
        graph = CooperationNetwork(recipe.num_experts, shared=is_shared, spread=spread, seed=recipe.seed)
    return graph.requires_grad_(not is_frozen)


class _Trainer:
    """One training's moving parts."""

    def __init__(
        self,
        data: ImageData,
        recipe: Recipe,
        folder: Path,
        on_progress: Callable[[TrainingProgress], None],
        should_stop: Callable[[], bool],
        should_keep_state: Callable[[], bool],
    ) -> None:
        self._data = data
        self._recipe = recipe
        self._folder = folder
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._should_keep_state = should_keep_state
        self._network = make_network(data, recipe)
        self._optimizers = _optimizers(self._network, recipe)
        self._steps_per_epoch = math.ceil(len(data.train) / recipe.batch_size)

    def run(self) -> Outcome:
        """Every epoch that is left, and the outcome."""
        recipe = self._recipe
        record = load_checkpoint(self._folder, recipe=recipe, network=self._network, optimizers=self._optimizers)
        if not record.history:
            record.history.append(self._measure(0, None)[0])
        clock = StepClock(self._num_steps(record))
        answers: list[Mixed] = []
        try:
            for epoch in range(record.history[-1].epoch, recipe.num_epochs):
                self._train_epoch(epoch, record, clock)
                measures, answers = self._measure(epoch + 1, sum(record.losses) / len(record.losses))
                record.history.append(measures)
                record.losses.clear()
                self._tell(measures)
                self._save(record)
        except TrainingStopped:
            if record.losses and self._should_keep_state():
                self._save(record)
            raise
        return Outcome(
            self._network, tuple(record.history), tuple(answers or self._measure(recipe.num_epochs, None)[1])
        )

    def _train_epoch(self, epoch: int, record: Record, clock: StepClock) -> None:
        """The steps of the epoch that are left; their losses go to the record."""
        self._network.train()
        total_steps = self._recipe.num_epochs * self._steps_per_epoch
        # What was done already is drawn again, not trained again: pictures and random numbers stay in step.
        for batch in islice(_batches(self._data.train, self._recipe, epoch), len(record.losses), None):
            if self._should_stop():
                raise TrainingStopped
            step = self._num_steps(record) + 1
            rate = self._set_rates(step, total_steps)
            record.losses.append(self._step(batch, epoch, step))
            progress = TrainingProgress(
                "training",
                step,
                total_steps,
                loss=record.losses[-1],
                learning_rate=rate,
                seconds_left=clock.seconds_left(step, total_steps),
            )
            self._on_progress(progress)

    def _num_steps(self, record: Record) -> int:
        """Optimizer steps done."""
        return record.history[-1].epoch * self._steps_per_epoch + len(record.losses)

    def _save(self, record: Record) -> None:
        save_checkpoint(
            self._folder,
            recipe=self._recipe,
            network=self._network,
            optimizers=self._optimizers,
            record=record,
            number=self._num_steps(record) + len(record.history),
        )

    def _tell(self, measures: EpochMeasures) -> None:
        total_steps = self._recipe.num_epochs * self._steps_per_epoch
        step = measures.epoch * self._steps_per_epoch
        figures = {"accuracy": measures.accuracy}
        self._on_progress(
            TrainingProgress(
                "training", step, total_steps, loss=measures.train_loss, eval_loss=measures.test_loss, figures=figures
            )
        )

    def _step(self, batch: ImageSet, epoch: int, step: int) -> float:
        recipe, graph = self._recipe, self._network.graph
        mixed = self._network.mix(
            as_inputs(batch.pixels_NHWC),
            top_k=recipe.top_k_in(epoch),
            with_graph=recipe.graph_speaks_in(epoch),
        )
        adjacency_EE = None if graph is None else graph.adjacency()
        loss = training_loss(mixed, torch.from_numpy(batch.labels_N), recipe, adjacency_EE)
        value = loss.item()
        if not math.isfinite(value):
            raise JobFailed(
                f"The loss was no longer a finite number at step {step}: try a lower learning_rate.",
                code="loss_not_finite",
            )
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=False)
        loss.backward()
        for optimizer in self._optimizers.values():
            optimizer.step()
        if "graph" in self._optimizers and recipe.l1_step == "proximal" and recipe.graph_speaks_in(epoch):
            assert graph is not None
            graph.shrink(self._optimizers["graph"].param_groups[0]["lr"] * recipe.l1)
        return value

    def _set_rates(self, step: int, total_steps: int) -> float:
        """The network's learning rate at a step: constant as published, or up and down again in straight lines."""
        recipe = self._recipe
        scale = 1.0
        if recipe.setting == "strong":
            rise = max(int(_RISE * total_steps), 1)
            scale = min(step / rise, (total_steps - step + 1) / max(total_steps - rise + 1, 1))
        rate = recipe.learning_rate * scale
        for group in self._optimizers["network"].param_groups:
            group["lr"] = rate
        return rate

    def _measure(self, epoch: int, train_loss: float | None) -> tuple[EpochMeasures, list[Mixed]]:
        """Figures on the test set after `epoch` epochs, with the team that the last of them trained."""
        recipe, network = self._recipe, self._network
        last = max(epoch - 1, 0)
        answers = mixed_batches(
            network,
            self._data.test,
            top_k=recipe.top_k_in(last),
            with_graph=recipe.graph_speaks_in(last),
            should_stop=self._should_stop,
        )
        adjacency_EE = None if network.graph is None else network.graph.adjacency().detach()
        measures = measure_epoch(
            answers, self._data.test.labels_N, epoch=epoch, train_loss=train_loss, adjacency_EE=adjacency_EE
        )
        return measures, answers


def _optimizers(network: ImageMixture, recipe: Recipe) -> dict[str, torch.optim.Optimizer]:
    learned = [value for name, value in network.named_parameters() if value.requires_grad and name[:6] != "graph."]
    for parameter in learned:
        # Zeros, not nothing, from the first step on: an expert that no picture of a batch chose moves on by its
        # momentum, as it does where all are computed, and as much after a resume as without one.
        parameter.grad = torch.zeros_like(parameter)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "network": torch.optim.AdamW(learned, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    }
    edges = [] if network.graph is None else [edge for edge in network.graph.parameters() if edge.requires_grad]
    if edges:
        is_published = recipe.l1_step == "subgradient"
        optimizers["graph"] = torch.optim.AdamW(
            edges,
            lr=recipe.graph_learning_rate,
            betas=(0.9, 0.999) if is_published else _GRAPH_BETAS,
            weight_decay=recipe.weight_decay if is_published else 0.0,
        )
    return optimizers


def _batches(images: ImageSet, recipe: Recipe, epoch: int) -> Iterator[ImageSet]:
    """An epoch's pictures in their shuffled order; those of the strong setting flipped and shifted."""
    rng = np.random.default_rng((recipe.seed, epoch))
    order_N = rng.permutation(len(images))
    for start in range(0, len(images), recipe.batch_size):
        picked_N = order_N[start : start + recipe.batch_size]
        pixels_NHWC = images.pixels_NHWC[picked_N]
        if recipe.setting == "strong":
            pixels_NHWC = flipped_and_shifted(pixels_NHWC, rng)
        yield ImageSet(pixels_NHWC, images.labels_N[picked_N])
