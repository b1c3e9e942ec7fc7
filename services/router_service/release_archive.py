"""A release as one file: an uncompressed tar of `manifest.json` and then every file of its artifacts.

An archive that is read comes from anywhere. Its members are plain files, exactly those that the manifest lists, in any
order, with exactly those sizes; anything else (links, folders, other names, extended headers) is refused. What may be
listed are relative names without a step upwards and kinds of files that hold no code. Nothing is compressed, so what
is unpacked is never larger than what was sent.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from services.router_service.uploads import room_on_disk
from services.shared.database.rows import ExpertVersionRow, ReleaseRow
from services.shared.errors import Conflict, InvalidRequest
from services.shared.release_content import ReleaseContent
from services.shared.release_evaluation import Evaluation, stored_evaluation
from services.shared.storage import Storage, folder_digest
from services.shared.vocabulary import DIGEST_PATTERN, NAME_PATTERN, model_name

MANIFEST: Final = "manifest.json"
_FOLDER: Final = "artifacts"
_MAX_MANIFEST_BYTES: Final = 16 * 1024**2
_MAX_EXPERTS: Final = 4096
_MAX_FILES: Final = 64
_CHUNK_BYTES: Final = 1024**2
_END: Final = bytes(2 * tarfile.BLOCKSIZE)
_STEP: Final = "[A-Za-z0-9_][A-Za-z0-9._-]*"
_PATH: Final = rf"^(?:{_STEP}/){{0,4}}{_STEP}\.(?:json|jsonl|safetensors|md|txt)$"

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]


class InvalidArchive(InvalidRequest):
    """422: a file that is no release's archive, or a damaged one; the message says where."""

    status = 422
    code = "invalid_archive"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArchivedFile(_Part):
    """A file of an artifact."""

    path: Annotated[str, Field(pattern=_PATH, max_length=100)]  # what one plain tar header can name
    num_bytes: int = Field(ge=0, lt=8**11)


class ArchivedExpert(_Part):
    """A column of the gate, and what is remembered of its version."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    digest: Digest
    domain: str | None = Field(max_length=200)
    description: str = Field(max_length=2000)
    has_evidence: bool
    metrics: dict[str, JsonValue]


class Manifest(_Part):
    """`manifest.json`."""

    format: Literal[1]
    digest: Digest
    base_model: str = Field(max_length=1000)
    base_fingerprint: Digest
    router: Digest
    graph: Digest | None
    calibration: Digest | None
    experts: tuple[ArchivedExpert, ...] = Field(max_length=_MAX_EXPERTS)
    evaluation: Evaluation | None
    note: str = Field(max_length=2000)
    artifacts: dict[Digest, Annotated[tuple[ArchivedFile, ...], Field(min_length=1, max_length=_MAX_FILES)]]

    @property
    def content(self) -> ReleaseContent:
        """What the release serves."""
        return ReleaseContent(
            base_fingerprint=self.base_fingerprint,
            router=self.router,
            graph=self.graph,
            calibration=self.calibration,
            experts=tuple((expert.name, expert.digest) for expert in self.experts),
        )

    @property
    def members(self) -> dict[str, int]:
        """The bytes of each file by its name in the archive."""
        return {
            f"{_FOLDER}/{digest}/{file.path}": file.num_bytes
            for digest, files in self.artifacts.items()
            for file in files
        }

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.content.digest != self.digest:
            raise ValueError("digest is not that of what is listed")
        if set(self.artifacts) != set(self.content.artifacts):
            raise ValueError("artifacts are not those that the release takes")
        if len(self.members) != sum(map(len, self.artifacts.values())):
            raise ValueError("a file is listed twice")
        json.dumps([expert.metrics for expert in self.experts], allow_nan=False)
        return self


def describe_release(release: ReleaseRow, storage: Storage) -> Manifest:
    """The manifest of a release. Conflict when an artifact holds files that no archive takes."""
    content = release.content
    try:
        return Manifest(
            format=1,
            digest=content.digest,
            base_model=model_name(release.base_model),
            base_fingerprint=content.base_fingerprint,
            router=content.router,
            graph=content.graph,
            calibration=content.calibration,
            experts=tuple(_archived(column.version) for column in release.experts),
            evaluation=stored_evaluation(release.evaluation),
            note=release.note,
            artifacts={digest: _files(storage.artifact(digest)) for digest in content.artifacts},
        )
    except ValidationError as error:
        raise Conflict(f"{release.id} cannot be exported: {_told(error)}", code="release_not_portable") from error


def archive_bytes(manifest: Manifest) -> int:
    """The length of the archive."""
    sizes = [len(_json(manifest)), *manifest.members.values()]
    return sum(tarfile.BLOCKSIZE + num_bytes + _padding(num_bytes) for num_bytes in sizes) + len(_END)


def write_archive(manifest: Manifest, storage: Storage) -> Iterator[bytes]:
    """The archive in pieces; the same release gives the same bytes."""
    described = _json(manifest)
    yield _header(MANIFEST, len(described)) + described + bytes(_padding(len(described)))
    for name, num_bytes in manifest.members.items():
        yield _header(name, num_bytes)
        with (storage.root / name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
        yield bytes(_padding(num_bytes))
    yield _END


def read_archive(source: BinaryIO, folder: Path, *, check: Callable[[Manifest], None]) -> Manifest:
    """Unpack an archive into `folder`, each artifact under its digest, which is verified; blocking.

    `check` may refuse the manifest before anything is unpacked. Raises InvalidArchive, or OutOfRoom on a full disk.
    """
    manifest = _read_manifest(source)
    check(manifest)
    waiting = manifest.members
    with room_on_disk():
        while waiting:
            name, num_bytes = _next_member(source)
            if waiting.pop(name, None) != num_bytes:
                raise InvalidArchive(f"{name[:200]!r} ({num_bytes} bytes) is not what the manifest lists.")
            target = folder / Path(name).relative_to(_FOLDER)
            target.parent.mkdir(parents=True, exist_ok=True)
            _unpack(source, target, num_bytes)
    if source.read(len(_END)) != _END:
        raise InvalidArchive("The archive does not end after the files that its manifest lists.")
    for digest in manifest.artifacts:
        if folder_digest(folder / digest) != digest:
            raise InvalidArchive(f"Artifact {digest} is damaged: its files have another digest.")
    return manifest


def _archived(version: ExpertVersionRow) -> ArchivedExpert:
    return ArchivedExpert(
        name=version.expert_name,
        digest=version.digest,
        domain=version.expert.domain,
        description=version.expert.description,
        has_evidence=version.has_evidence,
        metrics=version.metrics,
    )


def _files(folder: Path) -> tuple[ArchivedFile, ...]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        ArchivedFile(path=path.relative_to(folder).as_posix(), num_bytes=path.stat().st_size) for path in paths
    )


def _json(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()


def _header(name: str, num_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = num_bytes
    return member.tobuf(tarfile.USTAR_FORMAT)


def _padding(num_bytes: int) -> int:
    return -num_bytes % tarfile.BLOCKSIZE


def _read_manifest(source: BinaryIO) -> Manifest:
    name, num_bytes = _next_member(source)
    if name != MANIFEST or num_bytes > _MAX_MANIFEST_BYTES:
        raise InvalidArchive(
            f"The archive does not begin with {MANIFEST}: send one that GET /releases/{{id}}/export made."
        )
    described = io.BytesIO()
    _copy(source, described, num_bytes)
    try:
        return Manifest.model_validate_json(described.getvalue())
    except ValidationError as error:
        raise InvalidArchive(f"{MANIFEST}: {_told(error)}") from error


def _next_member(source: BinaryIO) -> tuple[str, int]:
    """Name and size of the next file; the source stands at its bytes. Never reads more than one header."""
    block = source.read(tarfile.BLOCKSIZE)
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise InvalidArchive(f"The archive is damaged, no tar, or ends too early ({error}).") from error
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size < 0:
        raise InvalidArchive(f"{member.name[:200]!r} is not a plain file: archives hold nothing else.")
    return member.name, member.size


def _unpack(source: BinaryIO, target: Path, num_bytes: int) -> None:
    with target.open("xb") as file:
        _copy(source, file, num_bytes)


def _copy(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
    """Copy a member's bytes and pass over its padding."""
    missing = num_bytes
    while missing:
        chunk = source.read(min(_CHUNK_BYTES, missing))
        if not chunk:
            raise InvalidArchive("The archive ends too early: it was cut off on its way.")
        target.write(chunk)
        missing -= len(chunk)
    source.read(_padding(num_bytes))


def _told(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}"[:400]
