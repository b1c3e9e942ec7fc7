"""Files on disk: what killed processes leave behind."""

import os
import time
from pathlib import Path

from services.shared.storage import Storage

HOUR_S = 3600.0


def age(folder: Path, hours: float) -> None:
    """Make everything in a folder this old."""
    then = time.time() - hours * HOUR_S
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def left_behind(storage: Storage, name: str) -> Path:
    """A staged folder with a file in it, as a killed process leaves it."""
    folder = storage.staging / name
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    return folder


def test_old_leftovers_in_staging_go_and_what_somebody_works_on_stays(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in ("old", "written-to", "new"):
        left_behind(storage, name)
    age(storage.staging / "old", 30)
    age(storage.staging / "written-to", 30)
    (storage.staging / "written-to" / "adapter" / "config.json").write_text("{}")
    age(storage.staging / "new", 1)

    swept = storage.sweep_staging(older_than_s=24 * HOUR_S)

    assert swept == ["old"]
    assert sorted(path.name for path in storage.staging.iterdir()) == ["new", "written-to"]


def test_artifacts_and_uploads_are_never_swept(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    digest = storage.publish(left_behind(storage, "x") / "adapter")
    (storage.uploads / "file-1").write_bytes(b"text")
    for folder in (storage.artifacts, storage.uploads, storage.staging / "x"):
        age(folder, 1000)

    assert storage.sweep_staging(older_than_s=HOUR_S) == ["x"]
    assert storage.artifact(digest).is_dir()
    assert (storage.uploads / "file-1").exists()
