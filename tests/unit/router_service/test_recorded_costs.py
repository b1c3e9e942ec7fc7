"""Costs foretold from what earlier jobs took."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.router_service.recorded_costs import Recorded, estimate_from, graph_steps, work_of
from services.shared.schemas.cooperation_graph import CooperationGraphJobSpec
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.trainer_worker.cooperation_graph_job import _plan

FILE = "file-" + "0" * 32


@pytest.mark.parametrize(
    "fields",
    [{}, {"controls": False}, {"joint": ("router",), "seeds": (1, 2)}, {"top_ks": (1,), "l1_sweep": ()}],
    ids=["defaults", "no controls", "jointly", "small"],
)
def test_a_graphs_steps_are_those_that_its_training_counts(fields: dict[str, Any]) -> None:
    spec = CooperationGraphJobSpec.model_validate({"mixed_files": (FILE,), **fields})

    assert graph_steps(spec) == _plan(spec, SimpleNamespace(max_context=512)).total_steps


def test_more_documents_domains_and_gates_are_more_work() -> None:
    small = EvaluationJobSpec(held_out={"a": FILE})
    larger = [
        EvaluationJobSpec(held_out={"a": FILE, "b": FILE}),
        EvaluationJobSpec(held_out={"a": FILE}, max_documents=96),
        EvaluationJobSpec(held_out={"a": FILE}, top_ks=(1, 2, 3, 4, 5)),
        EvaluationJobSpec(held_out={"a": FILE}, tempers=(0.1, 0.2, 0.4)),
        EvaluationJobSpec(held_out={"a": FILE}, tap_layers=(1,)),
        EvaluationJobSpec(held_out={"a": FILE}, peers=("arrow",)),
    ]

    assert all(work_of(one) > work_of(small) for one in larger)


def test_the_median_is_told_with_the_range_and_the_worst_that_the_others_foretell() -> None:
    took = [Recorded(f"job-{index}", 10.0, seconds, index) for index, seconds in enumerate((10.0, 20.0, 40.0))]

    estimate = estimate_from(took, 20.0)

    assert estimate is not None
    assert (estimate.seconds, estimate.seconds_range, estimate.peak_memory_bytes) == (40.0, (20.0, 80.0), 2)
    assert "within a factor of 3" in estimate.explanation
    assert estimate_from([], 20.0) is None
