"""`adaptive-moe demo build`: make the demo's base model, its experts and their measurement from one seed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from services.trainer_worker.demo.matrix_table import matrix_table
from services.trainer_worker.demo.plan import DEFAULT_SEED, DemoPlan
from services.trainer_worker.demo.stages import STAGES, BuildContext, Stage

BUILD_LOG = "build.json"
STAGE_NAMES: tuple[str, ...] = tuple(stage.name for stage in STAGES)


class UnknownStage(ValueError):
    """No stage of the build has that name."""


def build_demo(
    output_dir: Path,
    seed: int = DEFAULT_SEED,
    *,
    plan: DemoPlan | None = None,
    redo: Collection[str] = (),
    only: Collection[str] | None = None,
    console: Console | None = None,
) -> None:
    """Build the demo into `output_dir`, with a progress bar for every stage; the same bytes on the same machine.

    Stages whose files are there and were built with this seed are skipped, so that an interrupted build goes on where
    it stopped. `redo` names stages to run nevertheless, with all that come after them; `only` restricts the build.
    """
    for name in (*redo, *(only or ())):
        if name not in STAGE_NAMES:
            raise UnknownStage(f"unknown stage {name!r}: choose from {', '.join(STAGE_NAMES)}")
    console = console or Console()
    output_dir.mkdir(parents=True, exist_ok=True)
    log = _BuildLog(output_dir / BUILD_LOG, seed)
    columns = (TextColumn("{task.description:<18}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    outdated = False
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        for stage in STAGES:
            outdated = outdated or stage.name in redo or not log.is_done(stage, output_dir)
            if only is not None and stage.name not in only:
                continue
            bar = progress.add_task(stage.name, total=None, note="")
            if not outdated:
                progress.update(bar, total=1, completed=1, note="already built")
                continue
            context = BuildContext(
                folder=output_dir, seed=seed, plan=plan or DemoPlan(), advance=_advancer(progress, bar)
            )
            started_at = time.monotonic()
            stage.run(context)
            log.record(stage, seconds=time.monotonic() - started_at)
            progress.update(bar, total=1, completed=1, note="done")
    if (output_dir / "matrix.json").exists():
        console.print(matrix_table(json.loads((output_dir / "matrix.json").read_text())))


def _advancer(progress: Progress, bar: TaskID) -> Callable[[int, int, str], None]:
    def advance(done: int, total: int, note: str) -> None:
        progress.update(bar, completed=done, total=total, note=note)

    return advance


class _BuildLog:
    """Which stages were built with which seed, and how long each took."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self._seed = seed
        known = json.loads(path.read_text()) if path.exists() else {}
        self._seconds: dict[str, float] = known.get("seconds", {}) if known.get("seed") == seed else {}

    def is_done(self, stage: Stage, folder: Path) -> bool:
        return stage.name in self._seconds and all((folder / name).exists() for name in stage.outputs)

    def record(self, stage: Stage, *, seconds: float) -> None:
        self._seconds[stage.name] = round(seconds, 1)
        ordered = {name: self._seconds[name] for name in STAGE_NAMES if name in self._seconds}
        scratch = self._path.with_suffix(".new")
        scratch.write_text(json.dumps({"seed": self._seed, "seconds": ordered}, indent=2) + "\n")
        os.replace(scratch, self._path)
