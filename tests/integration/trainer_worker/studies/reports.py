"""What a study leaves."""

import json
from pathlib import Path
from typing import Any

from services.shared.config import Settings
from services.shared.database.rows import JobRow
from services.shared.storage import Storage


def report_of(row: JobRow, settings: Settings) -> tuple[Path, dict[str, Any]]:
    """The folder of a study's artifact, and its figures."""
    assert row.result is not None, row.error
    folder = Storage(settings.storage.root).artifact(row.result["artifacts"]["report"])
    return folder, json.loads((folder / "report.json").read_text())


def without_speed(figures: Any) -> Any:
    """All that does not depend on how busy the machine was."""
    if isinstance(figures, dict):
        return {name: without_speed(value) for name, value in figures.items() if name != "tokens_per_s"}
    return [without_speed(value) for value in figures] if isinstance(figures, list) else figures
