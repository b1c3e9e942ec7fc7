"""Which flagged requests belong together: HDBSCAN (Campello et al. 2013) on their early hidden states.

Ordinary requests take part. They show how far apart known domains lie, without which a single new domain would be split
into its turns of phrase, and they draw in what was flagged by mistake: a cluster is a gap where most of it is flagged.
Features are standardised and brought to length 1, so that distances are those of angles; docs/EXPERIMENTS.md has the
alternatives.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA

_NUM_COMPONENTS: Final = 32
_MIN_SAMPLES: Final = 5
_MOST_ORDINARY: Final = 0.5
"""Ordinary requests in a gap's cluster, for each flagged one."""


@dataclass(frozen=True)
class Space:
    """Where states [N, D] of one window lie: standardised by all of them, on the unit sphere."""

    mean_D: NDArray[np.float64]
    scale_D: NDArray[np.float64]

    @classmethod
    def of(cls, states_ND: NDArray[np.float32]) -> "Space":
        """That of these states; what never changes is left as it is."""
        scale_D = states_ND.std(axis=0, dtype=np.float64)
        return cls(states_ND.mean(axis=0, dtype=np.float64), np.where(scale_D > 0, scale_D, 1.0))

    def place(self, states_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        """Points [N, D] of length 1."""
        return on_sphere((states_ND - self.mean_D) / self.scale_D)


def on_sphere(points_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same directions, of length 1."""
    lengths_N1: NDArray[np.float64] = np.linalg.norm(points_ND, axis=-1, keepdims=True)
    return points_ND / np.maximum(lengths_N1, 1e-12)


def find_clusters(
    flagged_ND: NDArray[np.float64], ordinary_MD: NDArray[np.float64], *, min_cluster_size: int
) -> list[NDArray[np.int64]]:
    """The flagged points of each cluster that is a gap, largest first; points in none of them are noise.

    Points are those of a `Space`.
    """
    num_flagged = len(flagged_ND)
    if num_flagged < min_cluster_size:
        return []
    points_PD = np.concatenate([flagged_ND, ordinary_MD])
    if not np.ptp(points_PD, axis=0).any():  # the same prompt again and again, and no other
        return [np.arange(num_flagged)] if len(ordinary_MD) <= _MOST_ORDINARY * num_flagged else []
    num_components = min(_NUM_COMPONENTS, *points_PD.shape)
    reduced_PK = PCA(num_components, random_state=0).fit_transform(points_PD)
    labels_P = HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=min(_MIN_SAMPLES, min_cluster_size), copy=True
    ).fit_predict(reduced_PK)
    found = []
    for label in range(int(labels_P.max()) + 1):
        members = np.flatnonzero(labels_P[:num_flagged] == label)
        num_ordinary = int((labels_P[num_flagged:] == label).sum())
        if len(members) >= min_cluster_size and num_ordinary <= _MOST_ORDINARY * len(members):
            found.append(members)
    return sorted(found, key=lambda members: (-len(members), int(members[0])))
