"""Clusters of points whose truth is known, and the corners where there is little to see."""

import numpy as np
import pytest
from numpy.typing import NDArray

from services.trainer_worker.gap_analysis.clusters import Space, find_clusters

WIDTH = 24


def blob(rng: np.random.Generator, centre_D: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    return centre_D + 0.3 * rng.normal(size=(num, WIDTH))


def found_in(flagged_ND: NDArray[np.float64], ordinary_MD: NDArray[np.float64]) -> list[list[int]]:
    states_PD = np.concatenate([flagged_ND, ordinary_MD]).astype(np.float32)
    space = Space.of(states_PD)
    points_PD = space.place(states_PD)
    num = len(flagged_ND)
    return [places.tolist() for places in find_clusters(points_PD[:num], points_PD[num:], min_cluster_size=8)]


def test_a_new_region_is_one_cluster_beside_known_ones_and_mistakes_are_none() -> None:
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(4, WIDTH))
    ordinary_MD = np.concatenate([blob(rng, centre, 15) for centre in centres[:3]])
    mistakes_ND = np.concatenate([blob(rng, centre, 3) for centre in centres[:3]])
    flagged_ND = np.concatenate([blob(rng, centres[3], 20), mistakes_ND])

    assert found_in(flagged_ND, ordinary_MD) == [list(range(20))]


def test_the_largest_comes_first_and_the_order_is_always_the_same() -> None:
    rng = np.random.default_rng(1)
    centres = 3 * rng.normal(size=(3, WIDTH))
    flagged_ND = np.concatenate([blob(rng, centre, num) for centre, num in zip(centres, (10, 30, 20), strict=True)])
    nothing_MD = np.zeros((0, WIDTH))

    clusters = found_in(flagged_ND, nothing_MD)

    assert [len(cluster) for cluster in clusters] == [30, 20, 10]
    assert clusters == found_in(flagged_ND, nothing_MD)


@pytest.mark.parametrize("num_flagged", [0, 1, 7])
def test_too_few_are_no_cluster(num_flagged: int) -> None:
    assert found_in(np.zeros((num_flagged, WIDTH)), np.ones((3, WIDTH))) == []


@pytest.mark.parametrize(("num_ordinary", "num_clusters"), [(0, 1), (10, 1), (11, 0)])
def test_prompts_that_are_all_the_same_are_one_cluster_if_most_are_flagged(
    num_ordinary: int, num_clusters: int
) -> None:
    clusters = found_in(np.ones((20, WIDTH)), np.ones((num_ordinary, WIDTH)))

    assert clusters == [list(range(20))] * num_clusters


def test_a_feature_that_never_changes_is_left_as_it_is() -> None:
    points_ND = Space.of(np.array([[1.0, 5.0], [3.0, 5.0]], dtype=np.float32)).place(
        np.array([[3.0, 5.0], [2.0, 5.0]], dtype=np.float32)
    )

    assert points_ND.tolist() == [[1.0, 0.0], [0.0, 0.0]]
