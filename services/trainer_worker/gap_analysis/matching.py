"""Which gap a cluster is: one that is known already, or a new one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.shared.database.rows import GapRow
from services.shared.packed_states import unpack_states
from services.shared.vocabulary import GapStatus
from services.trainer_worker.gap_analysis.clusters import Space, on_sphere

_LEAST_OVERLAP: Final = 0.5
"""Of the smaller of two sets, for them to be one gap."""
_WITHIN: Final = 10.0
"""Per cent of a cluster's own requests that may lie further from its middle than a gap that is the same."""


@dataclass(frozen=True)
class KnownGap:
    """A gap of earlier analyses. `members` are its requests among those of the window, by place."""

    row: GapRow
    members: frozenset[int]


def known_gap(
    cluster: NDArray[np.int64], gaps: Sequence[KnownGap], points_ND: NDArray[np.float64], space: Space
) -> KnownGap | None:
    """The gap that shares most requests with the cluster, else the one whose middle lies within it, the nearest.

    Merged gaps stand for those that they were merged into; open ones go before others where both would do.
    """
    return _by_members(cluster, gaps) or _by_middle(cluster, gaps, points_ND, space)


def _by_members(cluster: NDArray[np.int64], gaps: Sequence[KnownGap]) -> KnownGap | None:
    places = set(cluster.tolist())
    shared = {
        index: len(places & gap.members)
        for index, gap in enumerate(gaps)
        if gap.members and len(places & gap.members) >= _LEAST_OVERLAP * min(len(places), len(gap.members))
    }
    if not shared:
        return None
    return gaps[max(shared, key=lambda index: (shared[index], _is_open(gaps[index]), gaps[index].row.id))]


def _by_middle(
    cluster: NDArray[np.int64], gaps: Sequence[KnownGap], points_ND: NDArray[np.float64], space: Space
) -> KnownGap | None:
    middle_D = on_sphere(points_ND[cluster].mean(axis=0))
    least = float(np.percentile(points_ND[cluster] @ middle_D, _WITHIN))
    found: dict[int, tuple[bool, float]] = {}
    for index, gap in enumerate(gaps):
        centroid_D = unpack_states(gap.row.centroid)
        if len(centroid_D) == len(middle_D):
            likeness = float(space.place(centroid_D) @ middle_D)
            if likeness >= least:
                found[index] = (_is_open(gap), likeness)
    return gaps[max(found, key=lambda index: (*found[index], gaps[index].row.id))] if found else None


def _is_open(gap: KnownGap) -> bool:
    return gap.row.status in (GapStatus.OPEN, GapStatus.MERGED)


def target_of(gap: KnownGap, rows: Mapping[str, GapRow]) -> GapRow:
    """The gap itself, or the one that it was merged into (which is never itself merged: gaps.merge_gap)."""
    return rows[gap.row.merged_into] if gap.row.merged_into is not None else gap.row
