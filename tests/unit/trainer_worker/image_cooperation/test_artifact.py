"""The artifact holds what the original report held, and every picture of it."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from services.trainer_worker.image_cooperation.artifact import write_artifact
from services.trainer_worker.image_cooperation.recipe import Recipe
from services.trainer_worker.image_cooperation.training import Outcome
from tests.unit.trainer_worker.image_cooperation.test_training import DATA, quick, train


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Eight experts, as the requirements state."""
    return quick("published", num_experts=8, num_epochs=2)


@pytest.fixture(scope="module")
def outcome(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished training."""
    return train(recipe, tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def artifact(outcome: Outcome, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its artifact."""
    folder = tmp_path_factory.mktemp("artifact")
    write_artifact(folder, outcome, data=DATA, recipe=recipe, num_examples=20)
    return folder


class TestArtifact:
    def test_has_a_heatmap_before_training_and_after_every_epoch(self, artifact: Path) -> None:
        names = {path.name for path in artifact.glob("*.png")}

        assert names == {f"adjacency_matrix_epoch_{epoch}.png" for epoch in ("initial", 1, 2)}
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in artifact.glob("*.png"))

    def test_examples_have_the_published_fields_and_indices_are_the_best_gate_values(self, artifact: Path) -> None:
        lines = (artifact / "routing_examples.jsonl").read_text().splitlines()

        assert len(lines) == 20
        for sample, line in enumerate(lines):
            example = json.loads(line)
            assert list(example) == ["sample", "indices", "weights"]
            assert example["sample"] == sample
            assert len(example["weights"]) == 8
            ranked = sorted(range(8), key=lambda expert: -example["weights"][expert])
            assert example["indices"] == ranked[:2]

    def test_report_shows_what_its_numbers_say(self, artifact: Path) -> None:
        report, figures = (artifact / "report.md").read_text(), json.loads((artifact / "report.json").read_text())

        assert f"{figures['accuracy']:.2%}" in report
        assert f"{figures['edges']['exact_zeros']:.1%} are exactly zero" in report
        for named in ("epoch_initial.png", "epoch_2.png", "routing_examples.jsonl", "Diversity"):
            assert named in report
        first = (artifact / "routing_examples.jsonl").read_text().splitlines()[0]
        assert first in report
        assert figures["accuracy"] == figures["epochs"][-1]["accuracy"]

    def test_team_statistics_count_every_test_picture(self, artifact: Path) -> None:
        teams = json.loads((artifact / "team_stats.json").read_text())

        assert [epoch["epoch"] for epoch in teams] == [1, 2]
        for epoch in teams:
            assert sum(epoch["team_size_distribution"].values()) == len(DATA.test)
            assert sum(epoch["expert_usage_frequency"]) == pytest.approx(1.0)

    def test_weights_are_those_of_the_network(self, artifact: Path, outcome: Outcome) -> None:
        arrays = load_file(artifact / "network.safetensors")

        assert set(arrays) == set(outcome.network.state_dict())

    def test_of_equal_outcomes_is_equal_to_the_byte(
        self, artifact: Path, outcome: Outcome, recipe: Recipe, tmp_path: Path
    ) -> None:
        write_artifact(tmp_path, outcome, data=DATA, recipe=recipe, num_examples=20)

        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
            path.name: path.read_bytes() for path in artifact.iterdir()
        }

    def test_without_a_graph_has_no_heatmaps_and_says_nothing_of_edges(self, tmp_path: Path) -> None:
        recipe = quick("published", graph="none", num_epochs=1)

        write_artifact(tmp_path / "a", train(recipe, tmp_path / "t"), data=DATA, recipe=recipe, num_examples=5)

        assert not list((tmp_path / "a").glob("*.png"))
        assert "Adjacency" not in (tmp_path / "a" / "report.md").read_text()
