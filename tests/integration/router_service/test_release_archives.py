"""Releases as archives: out of one database and storage into others, whole or not at all."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from services.router_service.main import build_app
from services.shared.config import Settings, StorageSettings
from services.shared.database.rows import Row
from services.shared.storage import Storage
from services.shared.tokenizer import Tokenizer
from tests.integration.router_service.replica_double import ReplicaDouble
from tests.integration.router_service.running import served

pytestmark = pytest.mark.integration

PROMPT = "def add(a, b):\n    return a + b\nTom has 12 apples."
Members = dict[str, bytes]


@dataclass
class Elsewhere:
    """Another service that knows nothing yet."""

    client: httpx.Client
    storage: Storage

    def is_empty(self) -> bool:
        """Whether nothing at all is left of what it was sent."""
        listed = [self.client.get(path).json()["data"] for path in ("/releases", "/experts?retired=true")]
        on_disk = [*self.storage.artifacts.iterdir(), *self.storage.staging.iterdir()]
        return listed == [[], []] and on_disk == []

    def take_in(self, archive: bytes) -> httpx.Response:
        return self.client.post("/releases/import", files={"archive": ("release.tar", archive)})


OpenElsewhere = Callable[..., AbstractContextManager[Elsewhere]]


@pytest.fixture
def elsewhere(
    app_settings: Settings, sessions: sessionmaker[Session], tokenizer: Tokenizer, tmp_path: Path
) -> OpenElsewhere:
    """Opens a service on empty tables and an empty storage folder, with a replica that reads that folder."""

    @contextmanager
    def opened(**double: Any) -> Iterator[Elsewhere]:
        with sessions.begin() as session:
            session.execute(text(f"TRUNCATE {', '.join(Row.metadata.tables)} RESTART IDENTITY CASCADE"))
        storage = Storage(tmp_path / "elsewhere")
        with served(ReplicaDouble(tokenizer, storage, **double).app()) as replica:
            own = app_settings.router_service.model_copy(update={"expert_urls": (replica,)})
            changes = {"storage": StorageSettings(root=storage.root), "router_service": own}
            with (
                served(build_app(app_settings.model_copy(update=changes))) as url,
                httpx.Client(base_url=url, timeout=30) as client,
            ):
                yield Elsewhere(client, storage)

    return opened


@pytest.fixture
def archive(three_experts: str, client: httpx.Client) -> bytes:
    """The active release's archive."""
    client.put(f"/releases/{three_experts}/evaluation", json={"losses": {"math": 1.25}})
    response = client.get(f"/releases/{three_experts}/export")
    assert response.status_code == 200, response.text
    assert len(response.content) == int(response.headers["content-length"])
    return response.content


def test_a_release_is_the_same_elsewhere_and_scores_the_same(
    archive: bytes, three_experts: str, client: httpx.Client, elsewhere: OpenElsewhere
) -> None:
    here = client.get(f"/releases/{three_experts}").json()
    scored_here = client.post("/route", json={"inputs": PROMPT}).json()

    with elsewhere() as other:
        response = other.take_in(archive)
        assert response.status_code == 201, response.text
        there = response.json()
        assert other.client.post(f"/releases/{there['id']}/activate").status_code == 200
        scored_there = other.client.post("/route", json={"inputs": PROMPT}).json()
        again = other.client.get(f"/releases/{there['id']}/export").content
        experts = {expert["name"]: expert for expert in other.client.get("/experts").json()["data"]}

    same = ("digest", "base_fingerprint", "router_digest", "router_kind", "experts", "evaluation")
    assert [there[field] for field in same] == [here[field] for field in same]
    assert there["status"] == "staged"
    assert scored_there["tokens"] == scored_here["tokens"]
    assert again == archive
    assert experts["code"]["versions"][0]["source"] == "imported"


def test_what_is_known_already_is_used_again(archive: bytes, three_experts: str, client: httpx.Client) -> None:
    response = client.post("/releases/import", files={"archive": ("release.tar", archive)})

    assert response.json()["digest"] == client.get(f"/releases/{three_experts}").json()["digest"]
    assert [expert["latest_version"] for expert in client.get("/experts").json()["data"]] == [1, 1, 1]


def test_a_retired_expert_is_in_use_again_with_its_release(archive: bytes, client: httpx.Client) -> None:
    only_code = client.post("/releases", json={"experts": ["code"]}).json()["id"]
    client.post(f"/releases/{only_code}/activate")
    assert client.delete("/experts/math").status_code == 200

    imported = client.post("/releases/import", files={"archive": ("release.tar", archive)}).json()

    assert client.post(f"/releases/{imported['id']}/activate").status_code == 200


def test_a_damaged_or_malicious_archive_leaves_nothing_behind(
    archive: bytes, elsewhere: OpenElsewhere, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    with elsewhere() as other:
        for name, (damage, code, word) in DAMAGES.items():
            with subtests.test(name):
                response = other.take_in(damage(archive))

                assert 400 <= response.status_code < 500, response.text
                assert (response.json()["error"]["code"], word in response.json()["error"]["message"]) == (code, True)
                assert other.is_empty()
        assert not (tmp_path / "outside.json").exists()
        assert other.take_in(archive).status_code == 201


def test_one_for_another_base_model_is_refused_before_anything_is_unpacked(
    archive: bytes, elsewhere: OpenElsewhere
) -> None:
    with elsewhere(fingerprint="e" * 64) as other:
        response = other.take_in(archive)

        assert (response.status_code, response.json()["error"]["code"]) == (409, "base_model_mismatch")
        assert other.is_empty()


def test_an_adapter_that_no_replica_would_serve_is_refused(
    registry: Any, three_experts: str, client: httpx.Client, elsewhere: OpenElsewhere
) -> None:
    registry.expert("math", content=b"bad weights")
    release = client.post("/releases", json={"experts": ["code", "math"]}).json()["id"]
    archive = client.get(f"/releases/{release}/export").content

    with elsewhere() as other:
        response = other.take_in(archive)

        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_adapter")
        assert "math" in response.json()["error"]["message"]
        assert other.is_empty()


def test_what_others_refer_to_survives_an_import_that_fails(
    archive: bytes, three_experts: str, client: httpx.Client, storage: Storage
) -> None:
    before = sorted(path.name for path in storage.artifacts.iterdir())

    assert client.post("/releases/import", files={"archive": ("a", DAMAGES["missing"][0](archive))}).status_code == 422

    assert sorted(path.name for path in storage.artifacts.iterdir()) == before


class TestSize:
    @pytest.fixture
    def app_settings(self, app_settings: Settings) -> Settings:
        """Takes archives of no more than a kilobyte."""
        releases = app_settings.releases.model_copy(update={"max_archive_bytes": 1024})
        return app_settings.model_copy(update={"releases": releases})

    def test_an_archive_beyond_the_limit_is_refused_before_it_is_sent(self, client: httpx.Client) -> None:
        connection = HTTPConnection(client.base_url.host, client.base_url.port or 80, timeout=30)
        connection.putrequest("POST", "/releases/import")
        connection.putheader("content-type", "multipart/form-data; boundary=x")
        connection.putheader("content-length", str(10**9))
        connection.endheaders()

        assert connection.getresponse().status == 413
        connection.close()


def unpacked(archive: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = ((member.name, tar.extractfile(member)) for member in tar.getmembers())
        return {name: file.read() for name, file in found if file is not None}


def packed(members: Members, *, more: tuple[tarfile.TarInfo, ...] = (), format: int = tarfile.USTAR_FORMAT) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=format) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member)
    return output.getvalue()


def changed(archive: bytes, change: Callable[[Members], object]) -> bytes:
    """The archive with its members changed."""
    members = unpacked(archive)
    change(members)
    return packed(members)


def with_manifest(archive: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The archive with its manifest changed."""
    members = unpacked(archive)
    manifest = json.loads(members["manifest.json"])
    change(manifest)
    return packed(members | {"manifest.json": json.dumps(manifest).encode()})


def weights_of(members: Members) -> str:
    return next(name for name in members if name.endswith("adapter_model.safetensors"))


def rename_first_file(path: str) -> Callable[[bytes], bytes]:
    """Another path for a file, in the manifest and in the archive alike."""

    def rename(archive: bytes) -> bytes:
        members = unpacked(archive)
        manifest = json.loads(members["manifest.json"])
        digest, files = next(iter(manifest["artifacts"].items()))
        content = members.pop(f"artifacts/{digest}/{files[0]['path']}")
        files[0]["path"] = path
        ordered = {"manifest.json": json.dumps(manifest).encode(), f"artifacts/{digest}/{path}": content}
        return packed(ordered | {name: kept for name, kept in members.items() if name not in ordered})

    return rename


def link(archive: bytes) -> bytes:
    """A link in the place of a file."""
    members = unpacked(archive)
    name = weights_of(members)
    members.pop(name)
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return packed(members, more=(member,))


def flip_bit(archive: bytes) -> bytes:
    members = unpacked(archive)
    name = weights_of(members)
    return packed(members | {name: bytes([members[name][0] ^ 1]) + members[name][1:]})


def extended(archive: bytes) -> bytes:
    """Written with extended headers, whose length is whatever they say."""
    members = unpacked(archive)
    return packed({f"{name}é": content for name, content in members.items()}, format=tarfile.PAX_FORMAT)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "no tar": (lambda _: b"x" * 4096, "invalid_archive", "no tar"),
    "nothing": (lambda _: b"", "invalid_archive", "ends too early"),
    "cut off": (lambda archive: archive[: len(archive) // 2], "invalid_archive", "too early"),
    "no end": (lambda archive: archive[:-1024], "invalid_archive", "does not end"),
    "more at the end": (
        lambda archive: changed(archive, lambda members: members.update({"artifacts/x": b"x"})),
        "invalid_archive",
        "does not end",
    ),
    "missing": (
        lambda archive: changed(archive, lambda members: members.pop(weights_of(members))),
        "invalid_archive",
        "too early",
    ),
    "longer": (
        lambda archive: changed(archive, lambda members: members.update({weights_of(members): b"longer" * 99})),
        "invalid_archive",
        "not what the manifest lists",
    ),
    "one bit": (flip_bit, "invalid_archive", "damaged"),
    "link": (link, "invalid_archive", "not a plain file"),
    "extended headers": (extended, "invalid_archive", "not a plain file"),
    "upwards": (rename_first_file("../../outside.json"), "invalid_archive", "path"),
    "absolute": (rename_first_file("/tmp/outside.json"), "invalid_archive", "path"),
    "pickle": (rename_first_file("adapter_model.bin"), "invalid_archive", "path"),
    "no manifest": (
        lambda archive: changed(archive, lambda members: members.pop("manifest.json")),
        "invalid_archive",
        "does not begin",
    ),
    "another format": (
        lambda archive: with_manifest(archive, lambda manifest: manifest.update(format=2)),
        "invalid_archive",
        "format",
    ),
    "another digest": (
        lambda archive: with_manifest(archive, lambda manifest: manifest.update(digest="0" * 64)),
        "invalid_archive",
        "digest",
    ),
    "an expert less": (
        lambda archive: with_manifest(archive, lambda manifest: manifest["experts"].pop()),
        "invalid_archive",
        "digest",
    ),
    "an expert called as no expert can be": (
        lambda archive: with_manifest(archive, lambda manifest: manifest["experts"][0].update(name="../x")),
        "invalid_archive",
        "experts.0.name",
    ),
    "a figure that is none": (
        lambda archive: with_manifest(archive, lambda manifest: manifest["experts"][0].update(metrics={"loss": 1e999})),
        "invalid_archive",
        "JSON",
    ),
}
