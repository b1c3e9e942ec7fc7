"""Datasets from a hub on loopback, fetched by the real client."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse

from services.local_stack.ports import free_port
from services.router_service.hub_datasets import HubDatasets, HubFile
from services.router_service.uploads import write_upload
from services.shared.errors import AmoeError, InvalidRequest, NotFound, PayloadTooLarge, Unavailable
from tests.e2e.hub import COMMIT, Hub, Repository, hub_with
from tests.integration.router_service.running import served

pytestmark = pytest.mark.integration

LARGE = 10**9
FILES = {
    "README.md": b"# A dataset",
    "train.jsonl": b'{"text": "a"}\n' * 5000,
    "data/test.csv": b"text\na\n",
    "image.png": b"png",
}


@pytest.fixture(name="hub")
def hub_with_a_dataset(tmp_path: Path) -> Iterator[Hub]:
    for name, content in FILES.items():
        path = tmp_path / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "only.parquet").write_bytes(b"PAR1")
    (tmp_path / "one" / "image.png").write_bytes(b"png")
    with hub_with(
        Repository("team/sums", tmp_path / "dataset", "datasets"), Repository("team/one", tmp_path / "one", "datasets")
    ) as hub:
        yield hub


def find(hub: Hub, path: str | None = None, *, dataset: str = "team/sums", revision: str = "main") -> HubFile:
    return HubDatasets(hub.url).find(dataset, path=path, revision=revision, max_bytes=LARGE)


@pytest.mark.parametrize("path", ["train.jsonl", "data/test.csv"])
def test_a_files_bytes_come_as_they_are_at_one_commit(hub: Hub, tmp_path: Path, path: str) -> None:
    file = find(hub, path)

    with HubDatasets(hub.url).open(file) as source:
        written = write_upload(source, tmp_path / "upload", max_bytes=LARGE, what="The file")

    assert (file.commit, file.name) == (COMMIT, path.rpartition("/")[2])
    assert (tmp_path / "upload").read_bytes() == FILES[path]
    assert written.num_bytes == len(FILES[path])


def test_without_a_name_there_must_be_one_that_can_be_trained_on(hub: Hub) -> None:
    only = find(hub, dataset="team/one")
    with pytest.raises(InvalidRequest, match=r"data/test\.csv, train\.jsonl") as refused:
        find(hub)

    assert only.path == "only.parquet"
    assert refused.value.param == "path"


@pytest.mark.parametrize(
    ("dataset", "path", "revision", "param"),
    [
        ("team/nothing", "train.jsonl", "main", "dataset"),
        ("team/sums", "../../etc/passwd", "main", "path"),
        ("team/sums", "valid.jsonl", "main", "path"),
        ("team/sums", "train.jsonl", "v9", "revision"),
    ],
)
def test_what_is_not_there_is_not_found(hub: Hub, dataset: str, path: str, revision: str, param: str) -> None:
    with pytest.raises(NotFound) as missing:
        find(hub, path, dataset=dataset, revision=revision)

    assert missing.value.param == param


def test_a_file_that_is_too_large_is_refused_before_it_is_fetched(hub: Hub) -> None:
    with pytest.raises(PayloadTooLarge):
        HubDatasets(hub.url).find("team/sums", path="train.jsonl", revision="main", max_bytes=100)

    assert hub.fetched == []


def test_a_file_that_is_larger_than_the_hub_says_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    file = find(hub, "train.jsonl")

    with pytest.raises(PayloadTooLarge), HubDatasets(hub.url).open(file) as source:
        write_upload(source, tmp_path / "upload", max_bytes=1000, what="The file")

    assert not list(tmp_path.glob("upload*"))


def fetched(url: str, target: Path) -> None:
    hub = HubDatasets(url)
    with hub.open(HubFile("team/sums", "train.jsonl", COMMIT)) as source:
        write_upload(source, target, max_bytes=LARGE, what="The file")


def test_a_hub_that_is_away_breaks_off_or_fails_is_unavailable_and_leaves_nothing(tmp_path: Path) -> None:
    app = FastAPI()

    @app.get("/datasets/team/sums/resolve/{commit}/train.jsonl")
    def broken_off(commit: str) -> Response:
        return StreamingResponse(iter([b"some"]), headers={"content-length": "1000"})

    @app.get("/api/datasets/team/sums/revision/main")
    def failing() -> Response:
        return Response(status_code=500)

    with served(app) as url:
        failures: list[AmoeError] = []
        for attempt in (
            lambda: fetched(url, tmp_path / "upload"),
            lambda: fetched(f"http://127.0.0.1:{free_port()}", tmp_path / "upload"),
            lambda: find(Hub(url), "train.jsonl"),
        ):
            with pytest.raises(Unavailable) as failure:
                attempt()
            failures.append(failure.value)

    assert {failure.error_code for failure in failures} == {"hub_unavailable"}
    assert not list(tmp_path.glob("upload*"))
