"""Garbage in storage, removed every now and then by the process that also looks after lost jobs."""

import time
from collections.abc import Callable

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import StorageSettings
from services.shared.garbage import collect_garbage
from services.shared.storage import Storage
from services.shared.telemetry import get_logger

log = get_logger(__name__)

_LOCK = 4_142_018
"""Any number of our own: of several workers, one collects at a time."""


class GarbageCollection:
    """Collects when `collect_every_s` have passed since it last did, and at the start; `clock` tells seconds."""

    def __init__(
        self, settings: StorageSettings, sessions: sessionmaker[Session], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._clock = clock
        self._next_at = clock()

    def run_if_due(self) -> int:
        """The bytes that were removed. What the disk refuses is logged, and tried again next time."""
        if not self._settings.collect_every_s or self._clock() < self._next_at:
            return 0
        self._next_at = self._clock() + self._settings.collect_every_s
        try:
            return self._collect()
        except OSError as error:
            log.warning("garbage cannot be removed", reason=str(error))
            return 0

    def _collect(self) -> int:
        with self._sessions.begin() as session:
            if not session.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))):
                return 0
            garbage = collect_garbage(session, Storage(self._settings.root), grace_s=self._settings.garbage_grace_s)
        num_bytes = sum(piece.num_bytes for piece in (*garbage.artifacts, *garbage.uploads))
        if garbage.artifacts or garbage.uploads:
            log.info(
                "garbage removed",
                num_artifacts=len(garbage.artifacts),
                num_uploads=len(garbage.uploads),
                num_bytes=num_bytes,
            )
        return num_bytes
