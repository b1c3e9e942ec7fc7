"""What an analysis writes: gaps, new ones and those seen again, and which requests belong to them.

All of it happens in the transaction that ends the job, after the gaps are locked: another analysis, or a person who
dismisses or merges one meanwhile, comes before or after, never in between.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.shared.database.clock import NOW
from services.shared.database.rows import ExpertRow, GapRequestRow, GapRow, RequestRow
from services.shared.gaps import lock_gaps
from services.shared.packed_states import pack_states
from services.shared.vocabulary import GapStatus
from services.trainer_worker.gap_analysis.clusters import Space
from services.trainer_worker.gap_analysis.description import Describer, Description
from services.trainer_worker.gap_analysis.expert_name import propose_name
from services.trainer_worker.gap_analysis.keywords import class_keywords
from services.trainer_worker.gap_analysis.matching import KnownGap
from services.trainer_worker.gap_analysis.sorting import SortedClusters, sort_clusters
from services.trainer_worker.gap_analysis.window import Prompt


@dataclass(frozen=True)
class Analysis:
    """What one job has found: clusters, as places of flagged requests in its window."""

    job_id: str
    base_fingerprint: str
    min_cluster_size: int
    space: Space
    clusters: Sequence[NDArray[np.int64]]
    describer: Describer

    @property
    def flagged(self) -> Sequence[Prompt]:
        """The requests that `clusters` are places of."""
        return self.describer.window.flagged

    def publish(self, session: Session) -> dict[str, Any]:
        """Write it; what the job's result tells."""
        lock_gaps(session)
        rows = self._rows(session)
        clusters = sort_clusters(
            self.clusters,
            self._known(session, rows.values()),
            flagged=self.flagged,
            points_ND=self.describer.points_ND,
            space=self.space,
            least=self.min_cluster_size,
        )
        known = [(rows[gap_id], places) for gap_id, places in clusters.of_known.items()]
        new = [
            (self._new_row(number, follows=clusters.follows.get(number)), places)
            for number, places in enumerate(clusters.of_new)
        ]
        to_describe = [(row, places) for row, places in (*known, *new) if row.status == GapStatus.OPEN]
        descriptions = self._described([places for _, places in to_describe])
        for (row, _), description in zip(to_describe, descriptions, strict=True):
            self._update(session, row, description)
        for row, places in (*known, *new):
            self._assign(session, row, places)
        return self._told([row for row, _ in (*known, *new)], clusters)

    def _rows(self, session: Session) -> dict[str, GapRow]:
        """All gaps of this base model, held until the end of the transaction."""
        query = select(GapRow).where(GapRow.base_fingerprint == self.base_fingerprint).order_by(GapRow.id)
        return {row.id: row for row in session.scalars(query.with_for_update())}

    def _known(self, session: Session, rows: Collection[GapRow]) -> list[KnownGap]:
        places = {prompt.id: place for place, prompt in enumerate(self.flagged)}
        belonging = select(GapRequestRow).where(GapRequestRow.request_id.in_(places))
        members: dict[str, set[int]] = {}
        for one in session.scalars(belonging):
            members.setdefault(one.gap_id, set()).add(places[one.request_id])
        return [KnownGap(row, frozenset(members.get(row.id, ()))) for row in rows]

    def _described(self, groups: Sequence[Sequence[int]]) -> list[Description]:
        words_of = self.describer.redaction.words_of
        texts = [[words_of(text) for place in group if (text := self.flagged[place].text)] for group in groups]
        ordinary = [words_of(prompt.text) for prompt in self.describer.window.ordinary if prompt.text]
        keywords = class_keywords(texts, ordinary)
        return [
            self.describer.describe(np.asarray(sorted(group)), words)
            for group, words in zip(groups, keywords, strict=True)
        ]

    def _new_row(self, number: int, *, follows: str | None) -> GapRow:
        """A gap whose id follows from the job's, so that the same job never makes another one."""
        digest = hashlib.blake2b(f"{self.job_id}/{number}".encode(), digest_size=6).hexdigest()
        return GapRow(
            id=f"gap-{digest}",
            status=GapStatus.OPEN.value,
            base_fingerprint=self.base_fingerprint,
            follows=follows,
            expert_name="",
        )

    def _update(self, session: Session, row: GapRow, description: Description) -> None:
        row.release = description.release
        row.num_prompts = description.num_prompts
        row.trend = description.trend
        row.domain = description.domain
        row.keywords = description.keywords
        row.centroid = pack_states(description.centroid_D)
        row.report = description.report
        row.job_id = self.job_id
        row.last_seen_at = description.last_seen_at
        row.updated_at = _now(session)
        taken = _taken_names(session, but=row.id)
        if not row.expert_name or row.expert_name in taken:
            otherwise = row.id.removeprefix("gap-")
            row.expert_name = propose_name(description.domain, description.keywords, taken=taken, otherwise=otherwise)
        session.add(row)
        session.flush()

    def _assign(self, session: Session, row: GapRow, places: Sequence[int]) -> None:
        """These requests are the gap's now, as far as they are still in the log."""
        ids = [self.flagged[place].id for place in places]
        there = select(RequestRow.id, literal(row.id)).where(RequestRow.id.in_(ids))
        belonging = insert(GapRequestRow).from_select(["request_id", "gap_id"], there)
        session.execute(
            belonging.on_conflict_do_update(
                index_elements=[GapRequestRow.request_id], set_={"gap_id": belonging.excluded.gap_id}
            )
        )

    def _told(self, rows: Sequence[GapRow], clusters: SortedClusters) -> dict[str, Any]:
        return {
            **self.describer.window.told(),
            "num_noise": len(self.flagged) - clusters.num_requests,
            "num_new": len(clusters.of_new),
            "gaps": [{"id": row.id, "status": row.status, "expert_name": row.expert_name} for row in rows],
        }


def _taken_names(session: Session, *, but: str) -> set[str]:
    """Of experts, retired ones too, and those proposed for other gaps that are open."""
    proposed = select(GapRow.expert_name).where(GapRow.status == GapStatus.OPEN.value, GapRow.id != but)
    return {*session.scalars(select(ExpertRow.name)), *session.scalars(proposed)}


def _now(session: Session) -> datetime:
    moment: datetime = session.scalars(select(NOW)).one()
    return moment
