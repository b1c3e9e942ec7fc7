"""An evaluation's artifact: `report.json`, `report.md` and the pictures in it."""

import json
from pathlib import Path

from services.trainer_worker.evaluation.pictures import draw_pictures
from services.trainer_worker.evaluation.release_figures import Figures
from services.trainer_worker.evaluation.report import markdown


def write_artifact(figures: Figures, folder: Path) -> None:
    """Write it into a new folder; equal figures give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(figures), encoding="utf-8")
    draw_pictures(figures, folder)
