"""Which gates and filters an evaluation tries beside the release's own."""

from typing import cast

import numpy as np

from services.shared.modeling.bayes_filter import BayesFilter
from services.shared.modeling.bigram_evidence import BigramEvidenceStack
from services.shared.modeling.column_scores import BayesScores
from services.shared.modeling.gating import Gate
from services.shared.modeling.trunk_evidence import DiscriminantRows
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.vocabulary import GateType
from services.trainer_worker.evaluation.sweep import evidences, filters, gates

OWN = BayesFilter(num_columns=3, stickiness=0.005, temper=0.3)

NO_TABLE = cast("BigramEvidenceStack", None)
ROWS = {tap: DiscriminantRows(tap, 2, np.zeros((3, 6)), np.zeros(3)) for tap in (0, 1)}


def spec(**fields: object) -> EvaluationJobSpec:
    return EvaluationJobSpec.model_validate({"held_out": {"math": f"file-{'0' * 32}"}} | fields)


class TestFilters:
    def test_change_one_constant_at_a_time_and_never_into_the_releases_own(self) -> None:
        found = filters(OWN, spec(stickinesses=(0.001, 0.005), tempers=(0.3, 0.6)))

        assert found == {
            "stickiness 0.001": BayesFilter(3, stickiness=0.001, temper=0.3),
            "temper 0.6": BayesFilter(3, stickiness=0.005, temper=0.6),
        }

    def test_there_are_none_of_a_router_without_a_filter(self) -> None:
        assert filters(None, spec()) == {}


class TestEvidences:
    def weights(self, own: BayesScores | None, **fields: object) -> dict[str, tuple[float, float, int | None]]:
        found = evidences(own, ROWS, spec(**fields))
        return {
            name: (one.bigram_weight, one.trunk_weight, one.rows.tap_layer if one.rows else None)
            for name, one in found.items()
        }

    def test_are_pairs_states_and_their_sums_at_every_tap_but_not_the_releases_own(self) -> None:
        assert self.weights(BayesScores(OWN, NO_TABLE)) == {
            "trunk, tap 0": (0.0, 0.4, 0),
            "trunk, tap 1": (0.0, 0.4, 1),
            "bigram+trunk, tap 0": (1.0, 0.05, 0),
            "bigram+trunk, tap 1": (1.0, 0.05, 1),
        }

    def test_keep_the_releases_weights_where_it_sums_the_same(self) -> None:
        own = BayesScores(OWN, NO_TABLE, 0.9, ROWS[1], 0.2)

        assert self.weights(own, evidence=("bigram", "bigram+trunk")) == {
            "bigram": (1.0, 0.0, None),
            "bigram+trunk, tap 0": (0.9, 0.2, 0),
        }

    def test_there_are_none_of_a_learned_router(self) -> None:
        assert self.weights(None) == {}


class TestGates:
    def test_keep_what_they_do_not_change(self) -> None:
        found = gates(Gate(GateType.THRESHOLD, 0.1, 4), spec(thresholds=(0.2,), top_ks=(2,)))

        assert found == {
            "threshold 0.2": Gate(GateType.THRESHOLD, 0.2, 4),
            "top-k 2": Gate(GateType.TOPK, 0.1, 2),
        }
