"""Intervals over seeds and documents."""

import numpy as np
import pytest

from services.trainer_worker.evaluation.figures import interval, over_seeds_interval


class TestOverSeeds:
    DOCUMENTS = 0.1 * np.random.default_rng(0).standard_normal((3, 2001))

    def test_is_as_wide_as_documents_make_it_where_seeds_agree(self) -> None:
        one = np.concatenate(([[2.0]], 2.0 + self.DOCUMENTS[:1, 1:]), axis=1)

        found, alone = over_seeds_interval(one), interval(one[0])

        assert found == alone

    def test_is_wider_where_seeds_disagree(self) -> None:
        means_S1 = np.array([[1.0], [2.0], [6.0]])
        apart = np.concatenate((means_S1, means_S1 + self.DOCUMENTS[:, 1:]), axis=1)

        found = over_seeds_interval(apart)

        assert found.value == pytest.approx(3.0)
        assert found.low < 1.5
        assert found.high > 4.5
