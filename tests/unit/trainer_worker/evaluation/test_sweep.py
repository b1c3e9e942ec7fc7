"""Which gates and filters an evaluation tries beside the release's own."""

from services.shared.modeling.bayes_filter import BayesFilter
from services.shared.modeling.gating import Gate
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.vocabulary import GateType
from services.trainer_worker.evaluation.sweep import filters, gates

OWN = BayesFilter(num_columns=3, stickiness=0.005, temper=0.3)


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


class TestGates:
    def test_keep_what_they_do_not_change(self) -> None:
        found = gates(Gate(GateType.THRESHOLD, 0.1, 4), spec(thresholds=(0.2,), top_ks=(2,)))

        assert found == {
            "threshold 0.2": Gate(GateType.THRESHOLD, 0.2, 4),
            "top-k 2": Gate(GateType.TOPK, 0.1, 2),
        }
