"""Pictures of a data set that is known by its name on the hub, through the real client and a hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.hub import Repository, hub_with
from tests.unit.trainer_worker.image_cooperation.pictures import made_up, write_parquet

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# The client reads where the hub is when it is imported, so it gets a process of its own.
_READ = """
import sys
from services.shared.errors import JobFailed
from services.shared.schemas.image_cooperation import HubImages
from services.trainer_worker.image_cooperation.hub_images import hub_images
try:
    data = hub_images(HubImages(source="hub", name=sys.argv[1]))
    print(len(data.train), len(data.test), data.image_shape, data.train.labels_N[:5].tolist())
except JobFailed as error:
    print(error.error_code, error.message)
"""


def read(name: str, *, endpoint: str, home: Path) -> str:
    """What reading the data set `name` prints."""
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    command = [sys.executable, "-c", _READ, name]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_data_set_of_the_hub_is_read_and_one_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    write_parquet(made_up(20), files / "train-00000-of-00001.parquet")
    write_parquet(made_up(10, seed=1), files / "test-00000-of-00001.parquet")

    with hub_with(Repository("somebody/pictures", files, kind="datasets")) as hub:
        found = read("somebody/pictures", endpoint=hub.url, home=tmp_path / "home")
        missing = read("somebody/nothing", endpoint=hub.url, home=tmp_path / "home")

    assert found.split("\n")[0] == "20 10 (32, 32, 3) [0, 1, 2, 3, 4]"
    assert missing.startswith("dataset_unavailable The data set somebody/nothing (train) cannot be loaded")
