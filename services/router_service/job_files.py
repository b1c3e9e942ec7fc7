"""What a job has left on disk: its log, and the files of what it published or is about to publish; of a failed one, its
last checkpoint.

A file is given out only if it is one of those listed, so no path of a request ever reaches the file system.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.router_service.schemas.job_records import JobArtifact
from services.shared.errors import NotFound
from services.shared.storage import ARTIFACTS, Storage

CHECKPOINT: Final = "checkpoint"
_GIVEN_OUT: Final = frozenset({".safetensors", ".json", ".jsonl", ".txt", ".md", ".png", ".csv", ".svg", ".gz"})
"""No pickles: a checkpoint's optimiser and random state are for the worker alone."""

_LINE_KEYS: Final = ("at", "level", "logger", "message", "traceback")
_MAX_FILES: Final = 10_000


@dataclass(frozen=True)
class JobFiles:
    """The files of one job. `result` is its row's."""

    storage: Storage
    job_id: str
    result: Mapping[str, Any] | None

    def artifacts(self) -> list[JobArtifact]:
        """Every file with its size and the SHA-256 of its content."""
        return [
            JobArtifact(path=name, num_bytes=path.stat().st_size, sha256=_sha256(path))
            for name, path in sorted(self._paths().items())
        ]

    def artifact(self, name: str) -> Path:
        """Where the file of that name in `artifacts` is. Raises NotFound for any other."""
        path = self._paths().get(name)
        if path is None:
            raise NotFound(
                f"{self.job_id} has no artifact {name[:80]!r}: GET /jobs/{self.job_id}/artifacts lists them.",
                param="path",
                code="artifact_not_found",
            )
        return path

    def log_text(self, *, max_bytes: int) -> str:
        """The end of the log in whole lines of text, at most about `max_bytes` of the file; empty before the start."""
        file = self.storage.job_folder(self.job_id) / "log.jsonl"
        try:
            with file.open("rb") as log:
                size = log.seek(0, 2)
                log.seek(max(0, size - max_bytes))
                tail = log.read(max_bytes)
        except FileNotFoundError:
            return ""
        if size > max_bytes:
            tail = tail.partition(b"\n")[2]
        return "".join(_text_line(line) for line in tail.decode(errors="replace").splitlines())

    def _paths(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for name, folder in self._folders():
            for path in sorted(folder.rglob("*"))[:_MAX_FILES]:
                if path.suffix in _GIVEN_OUT and path.is_file() and not path.is_symlink():
                    found[f"{name}/{path.relative_to(folder).as_posix()}"] = path
        return found

    def _folders(self) -> Iterator[tuple[str, Path]]:
        for name, digest in ((self.result or {}).get("artifacts") or {}).items():
            yield name, self.storage.artifact(digest)
        work = self.storage.job_folder(self.job_id) / "work"
        for folder in sorted(work.glob(f"{ARTIFACTS}/[a-z]*")):
            yield folder.name, folder
        for folder in sorted(work.glob("checkpoints/checkpoint-*")):
            if (folder / "complete").exists():
                yield f"{CHECKPOINT}/{folder.name}", folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_line(line: str) -> str:
    try:
        fields: dict[str, Any] = json.loads(line)
    except ValueError:
        return line + "\n"
    more = "".join(f" {key}={value}" for key, value in fields.items() if key not in _LINE_KEYS)
    text = f"{fields.get('at', '')} {fields.get('level', ''):<7} {fields.get('message', '')}{more}\n"
    traceback = fields.get("traceback")
    return text + (f"{traceback.rstrip()}\n" if traceback else "")
