"""Trainings are repeatable, resumable to the bit, stoppable, and leave the graph that they say."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.shared.errors import JobFailed
from services.shared.schemas.image_cooperation import ImageCooperationJobSpec
from services.trainer_worker.image_cooperation.images import ImageData
from services.trainer_worker.image_cooperation.measures import edge_counts
from services.trainer_worker.image_cooperation.recipe import Recipe, recipe_of
from services.trainer_worker.image_cooperation.training import Outcome, make_network, train_images
from services.trainer_worker.progress import TrainingProgress, TrainingStopped
from tests.unit.trainer_worker.image_cooperation.pictures import made_up_data

DATA = made_up_data(64, 30)
SETTINGS = pytest.mark.parametrize("setting", ["published", "strong"])


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """As a worker on two cores has them: exactness must not hang on there being one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


def quick(setting: str = "published", **fields: Any) -> Recipe:
    """A recipe for seconds."""
    given = {"setting": setting, "num_epochs": 3, "num_experts": 4, **fields}
    given["hyperparameters"] = {"batch_size": 16, "warmup_epochs": 1, **fields.get("hyperparameters", {})}
    return recipe_of(ImageCooperationJobSpec.model_validate(given))


def train(
    recipe: Recipe,
    folder: Path,
    *,
    data: ImageData = DATA,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    should_keep_state: Callable[[], bool] = lambda: False,
) -> Outcome:
    """`train_images` with quiet defaults."""
    return train_images(
        data,
        recipe,
        folder=folder,
        on_progress=on_progress,
        should_stop=should_stop,
        should_keep_state=should_keep_state,
    )


def states(outcome: Outcome) -> dict[str, torch.Tensor]:
    """The trained network, parameter by parameter."""
    return outcome.network.state_dict()


def test_resuming_is_exact_also_where_some_experts_get_no_picture_of_a_batch(tmp_path: Path) -> None:
    recipe = quick("published", num_experts=8, hyperparameters={"batch_size": 4})
    whole = train(recipe, tmp_path / "whole")
    stop = Stop(20)

    with pytest.raises(TrainingStopped):
        train(recipe, tmp_path / "broken", on_progress=stop.watch, should_stop=stop)
    resumed = train(recipe, tmp_path / "broken")

    assert all(torch.equal(value, states(whole)[name]) for name, value in states(resumed).items())


class Stop:
    """Asks to stop once `step` has been reported."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seen = 0

    def __call__(self) -> bool:
        return self.seen >= self.step

    def watch(self, progress: TrainingProgress) -> None:
        self.seen = progress.step


@SETTINGS
class TestTraining:
    def test_learns_what_can_be_learned(self, tmp_path: Path, setting: str) -> None:
        outcome = train(quick(setting, num_epochs=8), tmp_path)

        accuracies = [measures.accuracy for measures in outcome.history]
        assert accuracies[-1] > max(0.3, accuracies[0] + 0.1)
        assert [measures.epoch for measures in outcome.history] == list(range(9))

    def test_of_equal_seeds_is_equal_and_of_others_is_not(self, tmp_path: Path, setting: str) -> None:
        outcome, again = train(quick(setting), tmp_path / "1"), train(quick(setting), tmp_path / "2")
        other = train(quick(setting, seed=1), tmp_path / "3")

        assert outcome.history == again.history
        assert all(torch.equal(value, states(again)[name]) for name, value in states(outcome).items())
        assert outcome.history != other.history

    @pytest.mark.parametrize("stopped_at", [1, 5, 9])
    def test_stopped_and_resumed_ends_with_the_weights_of_one_that_was_not(
        self, tmp_path: Path, setting: str, stopped_at: int
    ) -> None:
        whole = train(quick(setting), tmp_path / "whole")
        stop = Stop(stopped_at)

        with pytest.raises(TrainingStopped):
            train(quick(setting), tmp_path / "broken", on_progress=stop.watch, should_stop=stop)
        steps: list[int] = []
        resumed = train(quick(setting), tmp_path / "broken", on_progress=lambda progress: steps.append(progress.step))

        assert stop.seen == stopped_at
        assert steps[0] == stopped_at // 4 * 4 + 1
        assert resumed.history == whole.history
        assert all(torch.equal(value, states(whole)[name]) for name, value in states(resumed).items())

    @pytest.mark.parametrize("stopped_at", [1, 4, 6])
    def test_paused_keeps_every_step_that_was_done(self, tmp_path: Path, setting: str, stopped_at: int) -> None:
        whole = train(quick(setting), tmp_path / "whole")
        stop = Stop(stopped_at)

        with pytest.raises(TrainingStopped):
            train(
                quick(setting),
                tmp_path / "paused",
                on_progress=stop.watch,
                should_stop=stop,
                should_keep_state=lambda: True,
            )
        steps: list[int] = []
        resumed = train(quick(setting), tmp_path / "paused", on_progress=lambda progress: steps.append(progress.step))

        # 4 is an epoch's last step: asked to stop while the epoch is measured, it goes on with that.
        assert steps[0] == (stopped_at if stopped_at % 4 == 0 else stopped_at + 1)
        assert resumed.history == whole.history
        assert all(torch.equal(value, states(whole)[name]) for name, value in states(resumed).items())

    def test_that_was_finished_is_not_trained_again(self, tmp_path: Path, setting: str) -> None:
        whole = train(quick(setting), tmp_path)
        steps: list[TrainingProgress] = []

        again = train(quick(setting), tmp_path, on_progress=steps.append)

        assert not steps
        assert again.history == whole.history
        assert len(again.answers) == len(whole.answers)

    def test_of_another_recipe_does_not_go_on_from_it(self, tmp_path: Path, setting: str) -> None:
        train(quick(setting), tmp_path)
        steps: list[int] = []

        train(quick(setting, seed=1), tmp_path, on_progress=lambda progress: steps.append(progress.step))

        assert steps[0] == 1

    def test_without_a_graph_starts_from_the_same_experts_and_gate(self, tmp_path: Path, setting: str) -> None:
        networks = [
            make_network(DATA, quick(setting, graph=graph)) for graph in ("learned", "none", "frozen", "scalar")
        ]

        first, *others = [
            {name: value for name, value in network.state_dict().items() if not name.startswith("graph.")}
            for network in networks
        ]
        for other in others:
            assert all(torch.equal(value, first[name]) for name, value in other.items())

    def test_leaves_a_frozen_graph_as_it_was(self, tmp_path: Path, setting: str) -> None:
        history = train(quick(setting, graph="frozen"), tmp_path).history

        assert history[0].adjacency == history[-1].adjacency
        assert history[0].adjacency is not None

    def test_with_a_lost_loss_says_so_and_keeps_the_last_checkpoint(self, tmp_path: Path, setting: str) -> None:
        stop = Stop(5)
        with pytest.raises(TrainingStopped):
            train(quick(setting), tmp_path, on_progress=stop.watch, should_stop=stop)
        state = tmp_path / "checkpoint-6" / "state.safetensors"
        tensors = load_file(state)
        tensors["network.experts.0.0.weight" if setting == "published" else "network.stem.1.weight"].fill_(torch.nan)
        save_file(tensors, state)

        with pytest.raises(JobFailed, match="at step 5: try a lower learning_rate") as caught:
            train(quick(setting), tmp_path)

        assert caught.value.error_code == "loss_not_finite"
        assert (tmp_path / "checkpoint-6" / "complete").exists()


class TestGraph:
    def test_with_a_proximal_penalty_has_zeros_that_are_exact(self, tmp_path: Path) -> None:
        recipe = quick("published", l1=3.0, hyperparameters={"l1_step": "proximal", "graph_learning_rate": 0.05})

        adjacency = train(recipe, tmp_path).history[-1].adjacency

        assert edge_counts(np.array(adjacency)).exact_zeros > 0.3

    def test_with_a_subgradient_penalty_nears_zero_without_landing_on_it(self, tmp_path: Path) -> None:
        recipe = quick("published", num_epochs=8, hyperparameters={"graph_learning_rate": 0.05})

        edges = edge_counts(np.array(train(recipe, tmp_path).history[-1].adjacency))

        assert edges.exact_zeros < 0.1
        assert edges.largest < 2.0

    def test_in_the_warm_up_says_nothing_and_is_not_trained(self, tmp_path: Path) -> None:
        history = train(quick("strong", hyperparameters={"warmup_epochs": 2}), tmp_path).history

        assert history[0].adjacency == history[1].adjacency == history[2].adjacency
        assert history[2].adjacency != history[3].adjacency

    def test_of_the_published_setting_warms_up_with_one_expert(self, tmp_path: Path) -> None:
        history = train(quick("published"), tmp_path).history

        assert [measures.team_sizes for measures in history] == [{1: 30}, {1: 30}, {2: 30}, {2: 30}]
        assert [measures.diversity is None for measures in history] == [True, True, False, False]

    def test_of_one_scalar_has_one_value(self, tmp_path: Path) -> None:
        history = train(replace(quick("strong", graph="scalar"), l1=0.0), tmp_path).history

        off_diagonal = np.array(history[-1].adjacency)[~np.eye(4, dtype=bool)]
        assert len(set(off_diagonal.tolist())) == 1
        assert history[-1].adjacency != history[0].adjacency


def test_sparsity_counts_exact_zeros_between_different_experts() -> None:
    adjacency_EE = np.array([[0.0, 0.5, 0.0], [0.005, 7.0, 0.0], [-0.2, 0.0, 0.0]])

    edges = edge_counts(adjacency_EE)

    assert (edges.exact_zeros, edges.nearly_zero, edges.largest) == pytest.approx((3 / 6, 4 / 6, 0.5))
