"""Files on disk: uploads by id, artifacts by the SHA-256 of their content (DESIGN D5)."""

import fcntl
import hashlib
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.shared.errors import NotFound
from services.shared.vocabulary import DIGEST_PATTERN

JOB_ID_PATTERN = r"^job-[0-9a-f]{32}$"
UPLOAD_ID_PATTERN = r"^file-[0-9a-f]{32}$"
ARTIFACTS = "artifacts"
"""Of the storage's root: what is published. Of a job's `work/`: what can be looked into before the job has ended."""

_CHUNK_BYTES = 1024 * 1024


def folder_digest(folder: Path) -> str:
    """SHA-256 over the relative names, sizes and bytes of all files below `folder`, in name order."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix().encode()
        digest.update(b"%d:%s:%d:" % (len(name), name, path.stat().st_size))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Published:
    """An artifact that was published, and when it came to be (seconds since the epoch); None if it was there before."""

    digest: str
    made_at: float | None


def _touch(path: Path) -> float:
    """Make it as new as the clock can tell: the file system's own idea of now is a few milliseconds coarse."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    return path.stat().st_mtime


def _is_older(path: Path, horizon: float) -> bool:
    """False also for what somebody else has just removed."""
    try:
        return path.stat().st_mtime < horizon
    except FileNotFoundError:
        return False


def num_bytes_in(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _last_touched(folder: Path) -> float:
    """When something in it was written last, in seconds since the epoch; now if it is being removed."""
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return time.time()


class Storage:
    """One folder that every service sees: `uploads/`, `artifacts/` and `staging/`.

    Names that arrive from outside are matched against a pattern before they touch a path, so nothing
    outside the root can be reached; artifacts are published by one rename, so none is half-written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.uploads = self.root / "uploads"
        self.artifacts = self.root / ARTIFACTS
        self.staging = self.root / "staging"
        for folder in (self.uploads, self.artifacts, self.staging):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """A fresh folder to build an artifact in; removed at the end whatever happened."""
        folder = Path(tempfile.mkdtemp(dir=self.staging))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep_staging(self, *, older_than_s: float) -> list[str]:
        """Remove what killed processes left in `staging/` and nobody has touched for so long; returns the names."""
        horizon = time.time() - older_than_s
        left = [entry for entry in self.staging.iterdir() if _last_touched(entry) < horizon]
        for entry in left:
            shutil.rmtree(entry, ignore_errors=True)
        return sorted(entry.name for entry in left)

    def publish(self, folder: Path) -> str:
        """Copy `folder` into the artifacts under the digest of its content and return the digest; idempotent."""
        return self.put(folder).digest

    def put(self, folder: Path) -> Published:
        """`publish`, for who may have to take it back with `withdraw`."""
        digest = folder_digest(folder)
        if self.hold(digest):
            return Published(digest, made_at=None)
        target = self.artifacts / digest
        with self.stage() as staged:
            copy = staged / digest
            shutil.copytree(folder, copy)
            with self._lock(fcntl.LOCK_SH):
                made_at = _touch(copy)
                try:
                    os.replace(copy, target)
                except OSError:
                    # Another process published the same content first: equal digest, equal bytes.
                    if not target.exists():
                        raise
                    _touch(target)
                    return Published(digest, made_at=None)
        return Published(digest, made_at)

    def hold(self, digest: str) -> bool:
        """Whether an artifact is there; if so, it counts as published just now, so that whoever is about to refer to
        it finds it."""
        with self._lock(fcntl.LOCK_SH):
            try:
                _touch(self.artifacts / digest)
            except FileNotFoundError:
                return False
        return True

    def withdraw(self, published: Published, *, is_needed: Callable[[], bool]) -> None:
        """Take back what was published in vain, unless it was there before, was published again or `is_needed`."""
        if published.made_at is not None:
            since = math.nextafter(published.made_at, math.inf)
            self.discard(published.digest, published_before=since, is_needed=is_needed)

    def published_before(self, horizon: float) -> list[str]:
        """The digests of artifacts that were last published before `horizon`, in seconds since the epoch."""
        names = (entry.name for entry in self.artifacts.iterdir() if _is_older(entry, horizon))
        return sorted(name for name in names if re.fullmatch(DIGEST_PATTERN, name))

    def discard(self, digest: str, *, published_before: float, is_needed: Callable[[], bool]) -> int:
        """Remove an artifact, unless it was published since or `is_needed` says so; returns its bytes, 0 if it stayed.

        Nobody publishes it between the question and the removal.
        """
        folder = self.artifacts / digest
        with self.stage() as trash:
            with self._lock(fcntl.LOCK_EX):
                if not folder.is_dir() or folder.stat().st_mtime >= published_before or is_needed():
                    return 0
                os.replace(folder, trash / digest)
            return num_bytes_in(trash / digest)

    def uploads_before(self, horizon: float) -> list[Path]:
        """Bytes of uploads, whole or broken off, that were written before `horizon`."""
        found = (path for path in self.uploads.iterdir() if re.fullmatch(UPLOAD_ID_PATTERN, path.stem))
        return sorted(path for path in found if path.is_file() and _is_older(path, horizon))

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """Shared by those who publish, exclusive for who removes; between processes, and threads too."""
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def artifact(self, digest: str) -> Path:
        """The folder of a published artifact. Raises NotFound for anything that is not one."""
        if not re.fullmatch(DIGEST_PATTERN, digest) or not (self.artifacts / digest).is_dir():
            raise NotFound(f"No artifact {digest[:80]!r} in storage.", param="digest")
        return self.artifacts / digest

    def job_folder(self, job_id: str) -> Path:
        """Where a job keeps its log and its work (or will)."""
        if not re.fullmatch(JOB_ID_PATTERN, job_id):
            raise NotFound(f"No job {job_id[:80]!r}.", param="job")
        return self.root / "jobs" / job_id

    def upload(self, file_id: str) -> Path:
        """Where the bytes of an uploaded file are (or will be)."""
        if not re.fullmatch(UPLOAD_ID_PATTERN, file_id):
            raise NotFound(f"No file {file_id[:80]!r}.", param="file")
        return self.uploads / file_id
