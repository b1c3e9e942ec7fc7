"""Clusters sorted into gaps: what becomes of each, before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.shared.database.rows import GapRow
from services.shared.vocabulary import GapStatus
from services.trainer_worker.gap_analysis.clusters import Space
from services.trainer_worker.gap_analysis.matching import KnownGap, known_gap, target_of
from services.trainer_worker.gap_analysis.window import Prompt


@dataclass
class SortedClusters:
    """Places of flagged requests: by the known gap that they belong to, and of new gaps. `follows` says of a new gap
    which closed one it is like."""

    of_known: dict[str, list[int]] = field(default_factory=dict)
    of_new: list[list[int]] = field(default_factory=list)
    follows: dict[int, str] = field(default_factory=dict)

    @property
    def num_requests(self) -> int:
        """All that belong to a gap; the others are noise."""
        return sum(map(len, (*self.of_known.values(), *self.of_new)))


def sort_clusters(
    clusters: Sequence[NDArray[np.int64]],
    gaps: Sequence[KnownGap],
    *,
    flagged: Sequence[Prompt],
    points_ND: NDArray[np.float64],
    space: Space,
    least: int,
) -> SortedClusters:
    """Every cluster to its gap. Of a closed one's, requests that came after it was closed are a new gap, if they are
    `least` or more: the expert that was made has not helped them."""
    rows: Mapping[str, GapRow] = {gap.row.id: gap.row for gap in gaps}
    found = SortedClusters()
    for cluster in clusters:
        gap = known_gap(cluster, gaps, points_ND, space)
        places = [int(place) for place in cluster]
        if gap is None:
            found.of_new.append(places)
            continue
        row = target_of(gap, rows)
        later = [place for place in places if row.closed_at is not None and flagged[place].at > row.closed_at]
        if row.status == GapStatus.CLOSED and len(later) >= least:
            found.follows[len(found.of_new)] = row.id
            found.of_new.append(later)
            places = [place for place in places if place not in set(later)]
        if places:
            found.of_known.setdefault(row.id, []).extend(places)
    return found
