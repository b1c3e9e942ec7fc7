"""What new requests run on: the active release, ready to score, and the newest version of every expert in use.

A snapshot is immutable and swapped whole, so a request sees one release from its first to its last token. While
Postgres is down the last snapshot goes on serving.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.router_service.metrics import Metrics
from services.router_service.transactions import Transactions
from services.shared.database.rows import ExpertRow, ExpertVersionRow, ReleaseRow
from services.shared.errors import AmoeError, NotFound, Unavailable
from services.shared.modeling.calibration import Calibration
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.registry import active_release, find_release, latest_versions
from services.shared.schemas.sequences import ExpertRef
from services.shared.storage import Storage
from services.shared.telemetry import get_logger
from services.shared.vocabulary import BASE, VersionStatus

log = get_logger(__name__)

T = TypeVar("T")

_RETRY_AFTER_S: Final = 1.0
_MAX_OTHERS: Final = 4
"""Releases kept in memory that requests have named and that are not active."""


@dataclass(frozen=True)
class LoadedRelease:
    """A release with its scorer."""

    id: str
    number: int
    base_fingerprint: str
    router: str
    graph: str | None
    experts: tuple[ExpertRef, ...]
    scorer: ReleaseScorer
    domains: tuple[str, ...] = ()
    """Of the experts, in their order: what each is registered for, or else its name."""
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Snapshot:
    """What one request needs to know of the registry."""

    release: LoadedRelease | None
    registered: Mapping[str, ExpertRef]
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Stamp:
    """Changes whenever a snapshot would; cheap to ask for."""

    active_release: int | None
    newest_version: int | None
    num_retired: int
    num_pinned: int
    last_pinned_at: datetime | None


@dataclass(frozen=True)
class Contents:
    """A snapshot's rows, before artifacts are read."""

    stamp: Stamp
    release: ReleaseRow | None
    registered: Mapping[str, ExpertRef]
    pinned: frozenset[str]


class Catalog:
    """Keeps the current snapshot, looking for changes every `poll_s`."""

    def __init__(
        self, *, transactions: Transactions, storage: Storage, vocab_size: int, poll_s: float, metrics: Metrics
    ) -> None:
        self._transactions = transactions
        self._storage = storage
        self._vocab_size = vocab_size
        self._poll_s = poll_s
        self._metrics = metrics
        self._snapshot: Snapshot | None = None
        self._stamp: Stamp | None = None
        self._refreshing = asyncio.Lock()
        self._num_begun = 0
        self._others: OrderedDict[int, LoadedRelease] = OrderedDict()
        self._reading = asyncio.Lock()
        self.trouble: str | None = "The catalog has not been read yet."

    @property
    def latest(self) -> Snapshot | None:
        """The snapshot in use, or None before the first."""
        return self._snapshot

    def current(self) -> Snapshot:
        """The snapshot that a new request runs on; Unavailable until there is a first one."""
        if self._snapshot is None:
            raise Unavailable(
                f"Nothing can be routed yet: {self.trouble}", code="catalog_unavailable", retry_after_s=_RETRY_AFTER_S
            )
        return self._snapshot

    async def look_up(self, read: Callable[[Snapshot], T]) -> T:
        """What `read` finds in the current snapshot; in one just read if it raises NotFound.

        Who has just seen an expert finish training asks for it at once, before the next poll.
        """
        try:
            return read(self.current())
        except NotFound:
            await self.try_refresh()
            return read(self.current())

    async def refresh(self) -> None:
        """Swap in a new snapshot if anything has changed. On an error the old one stays.

        However many ask while one is being made, one more serves them all.
        """
        asked = self._num_begun
        async with self._refreshing:
            if self._num_begun > asked:
                return
            self._num_begun += 1
            stamp = await self._transactions.run(read_stamp)
            if stamp != self._stamp:
                contents = await self._transactions.run(read_contents)
                loaded = await self.load(contents.release) if contents.release else None
                self._snapshot, self._stamp = Snapshot(loaded, contents.registered, contents.pinned), contents.stamp
                self._metrics.active_release.set(loaded.number if loaded else 0)
                self._metrics.keep_experts(_speakers(self._snapshot))
                log.info("catalog changed", release=loaded and loaded.id, num_experts=len(contents.registered))
            self.trouble = None

    async def load(self, row: ReleaseRow) -> LoadedRelease:
        """The release with its scorer, or the one already in use; the error says what its artifacts lack."""
        used = self._in_use(row.number)
        return used if used is not None else await asyncio.to_thread(self.read, row)

    async def release(self, number: int) -> LoadedRelease:
        """A release that a request names, active or not; NotFound when there is none. The last few stay in memory."""
        if (used := self._in_use(number)) is not None:
            return used
        async with self._reading:
            known = self._others.get(number)
            if known is None:
                known = await self.load(await self._transactions.run(find_release, number))
            self._others[number] = known
            self._others.move_to_end(number)
            while len(self._others) > _MAX_OTHERS:
                self._others.popitem(last=False)
            return known

    def _in_use(self, number: int) -> LoadedRelease | None:
        used = self._snapshot.release if self._snapshot else None
        return used if used is not None and used.number == number else None

    def read(self, row: ReleaseRow) -> LoadedRelease:
        """The release read from storage; blocking. Raises InvalidRequest when its artifacts do not fit together."""
        experts = tuple(expert_ref(column.version) for column in row.experts)
        scorer = ReleaseScorer.load(
            router_dir=self._storage.artifact(row.router_digest),
            graph_dir=self._storage.artifact(row.graph_digest) if row.graph_digest else None,
            experts=[(expert.name, self._storage.artifact(expert.digest)) for expert in experts],
            vocab_size=self._vocab_size,
            like=self._snapshot.release.scorer if self._snapshot and self._snapshot.release else None,
        )
        return LoadedRelease(
            id=row.id,
            number=row.number,
            base_fingerprint=row.base_fingerprint,
            router=row.router_digest,
            graph=row.graph_digest,
            experts=experts,
            scorer=scorer,
            domains=tuple(column.version.expert.domain or column.version.expert_name for column in row.experts),
            calibration=self._calibration(row, scorer),
        )

    def _calibration(self, row: ReleaseRow, scorer: ReleaseScorer) -> Calibration | None:
        if row.calibration_digest is None:
            return None
        calibration = Calibration.load(self._storage.artifact(row.calibration_digest))
        calibration.check_fits(scorer)
        return calibration

    async def check(self, number: int) -> None:
        """Raise what activating release `number` would trip over, before it is activated."""
        await self.load(await self._transactions.run(find_release, number))

    async def keep_fresh(self) -> None:
        """Refresh for ever; trouble is logged once and shown by /ready."""
        while True:
            await self.try_refresh()
            await asyncio.sleep(self._poll_s)

    async def try_refresh(self) -> None:
        """Refresh, or note why not."""
        try:
            await self.refresh()
        except AmoeError as error:
            self._note(error.message)
        except Exception as error:
            self._note(f"{type(error).__name__}, see the log")
            log.exception("catalog cannot be read")

    def _note(self, trouble: str) -> None:
        self._metrics.catalog_errors.inc()
        if trouble != self.trouble:
            log.warning("catalog kept as it was", reason=trouble)
        self.trouble = trouble


def _speakers(snapshot: Snapshot) -> set[str]:
    """Everyone who may have a share in an answer from now on."""
    released = snapshot.release.experts if snapshot.release else ()
    return {BASE, *snapshot.registered, *(expert.name for expert in released)}


def expert_ref(row: ExpertVersionRow) -> ExpertRef:
    """The version as plans name it."""
    return ExpertRef(name=row.expert_name, version=row.version, digest=row.digest)


def read_stamp(session: Session) -> Stamp:
    """One round trip."""
    active = select(ReleaseRow.number).where(ReleaseRow.status == VersionStatus.ACTIVE).scalar_subquery()
    newest = select(func.max(ExpertVersionRow.id)).scalar_subquery()
    retired = select(func.count()).where(ExpertRow.retired_at.is_not(None)).scalar_subquery()
    pins = select(func.count()).where(ExpertRow.pinned_at.is_not(None)).scalar_subquery()
    last_pin = select(func.max(ExpertRow.pinned_at)).scalar_subquery()
    return Stamp(*session.execute(select(active, newest, retired, pins, last_pin)).one())


def read_contents(session: Session) -> Contents:
    """Rows and stamp; when something changes in between, the stamp is the older and the next poll reads again."""
    stamp = read_stamp(session)
    registered = {row.expert_name: expert_ref(row) for row in latest_versions(session)}
    pinned = frozenset(session.scalars(select(ExpertRow.name).where(ExpertRow.pinned_at.is_not(None))))
    return Contents(stamp, active_release(session), MappingProxyType(registered), pinned)
