"""Files that nothing refers to any more: found, and removed once they are old enough.

What refers to an artifact is a release, an expert version, a trace, or the specification, checkpoints or result of a
job. Who is about to refer to one has published it within the grace period, which is why that is hours.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, Text, cast, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from services.shared.database.rows import ExpertVersionRow, FileRow, JobRow, ReleaseRow, TraceRow
from services.shared.storage import Published, Storage, num_bytes_in

_REFERRING: Final = (
    ExpertVersionRow.digest,
    ReleaseRow.router_digest,
    ReleaseRow.graph_digest,
    ReleaseRow.calibration_digest,
    TraceRow.digest,
    TraceRow.analysis_digest,
)
_DIGESTS: Final = r"\y[0-9a-f]{64}\y"
_FILES: Final = r"\yfile-[0-9a-f]{32}\y"


@dataclass(frozen=True)
class Piece:
    """An artifact by its digest, or an upload by its id."""

    id: str
    num_bytes: int


@dataclass(frozen=True)
class Garbage:
    """What nothing refers to."""

    artifacts: tuple[Piece, ...]
    uploads: tuple[Piece, ...]


def find_garbage(session: Session, storage: Storage, *, grace_s: float, with_unused_files: bool) -> Garbage:
    """What `collect_garbage` would remove now, with `forget_unused_files` before it if so asked."""
    horizon = time.time() - grace_s
    needed = _named_in_rows(session)
    unneeded = [digest for digest in storage.published_before(horizon) if digest not in needed]
    artifacts = list(_pieces(storage.artifacts / digest for digest in unneeded))
    uploads = list(_pieces(_orphans(session, storage, horizon)))
    if with_unused_files:
        uploads += [Piece(row.id, row.num_bytes) for row in _unused_files(session, horizon)]
    return Garbage(tuple(artifacts), tuple(uploads))


def collect_garbage(session: Session, storage: Storage, *, grace_s: float) -> Garbage:
    """Remove artifacts that nothing refers to, and bytes of uploads that are no file's; returns what is gone."""
    horizon = time.time() - grace_s
    needed = _named_in_rows(session)
    artifacts = []
    for digest in storage.published_before(horizon):
        if digest in needed:
            continue
        # Asked again under the lock: what was referred to meanwhile stays.
        is_needed = partial(_is_named, session, digest)
        num_bytes = storage.discard(digest, published_before=horizon, is_needed=is_needed)
        if num_bytes:
            artifacts.append(Piece(digest, num_bytes))
    return Garbage(tuple(artifacts), tuple(_remove(_orphans(session, storage, horizon))))


def forget_unused_files(session: Session, *, grace_s: float) -> list[str]:
    """Delete the records of files that no job names; their bytes are garbage then. Returns their ids.

    Files that are being named by a job in this moment are locked by it and stay.
    """
    # Two statements: the second sees jobs that were committed before the first had the locks.
    old = select(FileRow.id).where(FileRow.created_at < _moment(time.time() - grace_s))
    held = set(session.scalars(old.with_for_update(skip_locked=True)))
    unused = held - _named_in_jobs(session, _FILES)
    session.execute(delete(FileRow).where(FileRow.id.in_(unused)))
    return sorted(unused)


def withdraw_artifact(session: Session, storage: Storage, published: Published) -> None:
    """Take back an artifact that was refused, unless something refers to it."""
    storage.withdraw(published, is_needed=partial(_is_named, session, published.digest))


def _unused_files(session: Session, horizon: float) -> Iterable[FileRow]:
    needed = _named_in_jobs(session, _FILES)
    query = select(FileRow).where(FileRow.created_at < _moment(horizon)).order_by(FileRow.id)
    return (row for row in session.scalars(query) if row.id not in needed)


def _orphans(session: Session, storage: Storage, horizon: float) -> list[Path]:
    """Old bytes without a file's record: its request was broken off, or the record was deleted before them."""
    found = storage.uploads_before(horizon)
    known = set(session.scalars(select(FileRow.id).where(FileRow.id.in_([path.name for path in found]))))
    return [path for path in found if path.name not in known]


def _pieces(paths: Iterable[Path]) -> Iterable[Piece]:
    """What is there of it; somebody may be removing it at this moment."""
    for path in paths:
        try:
            num_bytes = num_bytes_in(path) if path.is_dir() else path.stat().st_size
        except FileNotFoundError:
            continue
        yield Piece(path.name, num_bytes)


def _remove(paths: Sequence[Path]) -> Iterable[Piece]:
    for path in paths:
        try:
            num_bytes = path.stat().st_size
            path.unlink()
        except FileNotFoundError:  # another collector was quicker
            continue
        yield Piece(path.name, num_bytes)


def _named_in_rows(session: Session) -> set[str]:
    """The digests of all artifacts that something refers to."""
    named: set[str] = set()
    for column in _REFERRING:
        named.update(digest for digest in session.scalars(select(column).distinct()) if digest is not None)
    return named | _named_in_jobs(session, _DIGESTS)


def _is_named(session: Session, digest: str) -> bool:
    """The same question for one artifact."""
    by_rows = [exists().where(column == digest) for column in _REFERRING]
    by_jobs = exists().where(_told_by_jobs().contains(digest))
    return bool(session.scalar(select(or_(*by_rows, by_jobs))))


def _named_in_jobs(session: Session, pattern: str) -> set[str]:
    """Whatever in the specifications and results of all jobs looks like that: unique enough to be meant."""
    return {found for (found,) in session.scalars(select(func.regexp_matches(_told_by_jobs(), pattern, "g")))}


def _told_by_jobs() -> ColumnElement[str]:
    told = (func.coalesce(cast(column, Text), "") for column in (JobRow.result, JobRow.checkpoints))
    return sum(told, start=cast(JobRow.spec, Text))


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
