"""The build: which stages run, and in what state an interrupted build is left."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from services.trainer_worker.demo import build
from services.trainer_worker.demo.build import UnknownStage, build_demo
from services.trainer_worker.demo.stages import BuildContext, Stage


def _quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages as they run, of a build of three stages that each write one file."""
    names: list[str] = []

    def stage(name: str) -> Stage:
        def run(context: BuildContext) -> None:
            names.append(name)
            context.advance(1, 2, "half")
            (context.folder / name).write_text(str(context.seed))

        return Stage(name, run, (name,))

    monkeypatch.setattr(build, "STAGES", (stage("one"), stage("two"), stage("three")))
    monkeypatch.setattr(build, "STAGE_NAMES", ("one", "two", "three"))
    return names


class TestBuild:
    def test_runs_every_stage_once_and_then_none(self, runs: list[str], tmp_path: Path) -> None:
        build_demo(tmp_path, seed=1, console=_quiet())
        build_demo(tmp_path, seed=1, console=_quiet())

        assert runs == ["one", "two", "three"]
        assert list(json.loads((tmp_path / "build.json").read_text())["seconds"]) == ["one", "two", "three"]

    def test_goes_on_where_files_are_missing_and_redoes_what_follows(self, runs: list[str], tmp_path: Path) -> None:
        build_demo(tmp_path, seed=1, console=_quiet())
        (tmp_path / "two").unlink()

        build_demo(tmp_path, seed=1, console=_quiet())

        assert runs == ["one", "two", "three", "two", "three"]

    def test_starts_over_with_another_seed(self, runs: list[str], tmp_path: Path) -> None:
        build_demo(tmp_path, seed=1, console=_quiet())
        build_demo(tmp_path, seed=2, console=_quiet())

        assert runs == ["one", "two", "three"] * 2
        assert (tmp_path / "three").read_text() == "2"

    def test_redoes_the_named_stage_and_those_after_it(self, runs: list[str], tmp_path: Path) -> None:
        build_demo(tmp_path, seed=1, console=_quiet())
        build_demo(tmp_path, seed=1, redo=["two"], console=_quiet())

        assert runs == ["one", "two", "three", "two", "three"]

    def test_runs_only_what_is_asked_for(self, runs: list[str], tmp_path: Path) -> None:
        build_demo(tmp_path, seed=1, only=["one"], console=_quiet())

        assert runs == ["one"]

    def test_names_the_stages_when_asked_for_another(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownStage, match="expert-math"):
            build_demo(tmp_path, redo=["expert-astrology"], console=_quiet())
