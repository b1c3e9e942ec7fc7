"""What jobs of a kind have taken here, as an estimate of the next: for kinds whose steps are not counted in advance.

Every job that runs through in one go leaves its seconds and its peak of memory in its result. A new one is taken to
need as long as they did, in proportion to a count of the same work; how far that count carries is measured too, by
foretelling each of them from the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Float, select
from sqlalchemy.orm import Session

from services.router_service.schemas.dry_run import Estimate
from services.shared.database.rows import JobRow
from services.shared.schemas.calibration import CalibrationJobSpec
from services.shared.schemas.cooperation_graph import CooperationGraphJobSpec
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.schemas.image_cooperation import ImageCooperationJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.jobs import JobSpec, RouterJobSpec
from services.shared.schemas.trace import DEFAULT_TRACE_TOKENS, NUM_TRACE_DOMAINS, TraceJobSpec
from services.shared.vocabulary import JobStatus

_MOST_JOBS: Final = 5
_READ: Final = 20
_FIXED_SYSTEMS: Final = 4
"""Of an evaluation beside the single experts: base, uniform mixture, oracle, the release."""
_READ_BY_A_CALIBRATION: Final = 4
"""Base model, own expert, mixture, mixture without that expert."""
_BACKWARD: Final = 3
"""A training step in units of a reading."""


@dataclass(frozen=True)
class Recorded:
    """What one job took: `work` in its kind's own units."""

    job_id: str
    work: float
    seconds: float
    peak_memory_bytes: int


def work_of(spec: JobSpecBase) -> float:
    """How much a job does, in units of its kind: tokens read for text, epochs for pictures."""
    match spec:
        case EvaluationJobSpec():
            return _evaluated_tokens(spec)
        case CooperationGraphJobSpec():
            return _graph_tokens(spec)
        case ImageCooperationJobSpec():
            return spec.num_epochs * spec.top_k
        case CalibrationJobSpec() | TraceJobSpec():
            return float(_num_tokens(spec))
        case ExpertCreationJobSpec():
            return float(len(spec.trainings))
        case _:
            return 1.0


def _num_tokens(spec: CalibrationJobSpec | TraceJobSpec) -> int:
    """At most. The base model writes as much as a domain of a calibration has; uploaded prompts of a trace are taken to
    be as many as those that come with the project."""
    if isinstance(spec, CalibrationJobSpec):
        return _READ_BY_A_CALIBRATION * (len(spec.held_out) + 1) * spec.max_documents * spec.max_tokens
    if spec.prompts is None:
        return NUM_TRACE_DOMAINS * spec.prompts_per_domain * (spec.max_tokens or DEFAULT_TRACE_TOKENS)
    return sum(spec.max_tokens or prompt.n_predict for prompt in spec.prompts)


def graph_steps(spec: CooperationGraphJobSpec) -> int:
    """Of all networks together: per seed the graph, one at each k, with controls one scalar and the sweep's graphs, and
    two that are trained jointly."""
    controls = 1 + len(spec.l1_sweep) if spec.controls else 0
    networks_per_seed = 1 + len(spec.top_ks) + controls + 2 * bool(spec.joint)
    return len(spec.seeds) * networks_per_seed * spec.hyperparameters.num_steps


def recorded_costs(session: Session, spec: JobSpecBase, *, queue: str, base_fingerprint: str | None) -> list[Recorded]:
    """Of the last jobs that are like `spec`: the kind, the queue, the base model and what else decides the pace."""
    run = JobRow.result["run"]
    query = (
        select(JobRow)
        .where(
            JobRow.kind == spec.kind.value,
            JobRow.status == JobStatus.SUCCEEDED.value,
            JobRow.queue == queue,
            run["seconds"].astext.cast(Float) > 0,
        )
        .order_by(JobRow.finished_at.desc())
        .limit(_READ)
    )
    if spec.uses_base_model:
        query = query.where(JobRow.base_fingerprint.is_not_distinct_from(base_fingerprint))
    found: list[Recorded] = []
    adapter: TypeAdapter[JobSpecBase] = TypeAdapter(JobSpec)
    for row in session.scalars(query):
        assert row.result is not None
        try:
            earlier = adapter.validate_python(row.spec)
        except ValidationError:  # rows outlive versions of this program
            continue
        if _pace(earlier) == _pace(spec):
            took = row.result["run"]
            found.append(Recorded(row.id, work_of(earlier), took["seconds"], took["peak_memory_bytes"]))
    return found[:_MOST_JOBS]


def estimate_from(recorded: Sequence[Recorded], work: float) -> Estimate | None:
    """None where nothing is recorded; else the median, and the range that the jobs span."""
    if not recorded:
        return None
    foretold = sorted(one.seconds * work / one.work for one in recorded)
    if len(recorded) == 1:
        quality = "from one job alone it is not known how good that is"
    else:
        quality = f"each of them is foretold by the others within a factor of {_worst_factor(recorded):.2g}"
    return Estimate(
        seconds=round(median(foretold), 1),
        seconds_range=(round(foretold[0], 1), round(foretold[-1], 1)),
        peak_memory_bytes=max(one.peak_memory_bytes for one in recorded),
        tokens_per_s=None,
        basis="measured",
        explanation=f"In proportion to what {', '.join(one.job_id for one in recorded)} took here; {quality}.",
    )


def _worst_factor(recorded: Sequence[Recorded]) -> float:
    worst = 1.0
    for index, one in enumerate(recorded):
        others = [other.seconds / other.work for place, other in enumerate(recorded) if place != index]
        foretold = median(others) * one.work
        worst = max(worst, foretold / one.seconds, one.seconds / foretold)
    return worst


def _pace(spec: JobSpecBase) -> Any:
    """What decides a kind's pace beside the amount of work: only like is compared with like."""
    match spec:
        case ImageCooperationJobSpec():
            return spec.setting, spec.num_experts, spec.data, spec.hyperparameters.batch_size
        case EvaluationJobSpec():
            # Peers are trained first, on as much text as their files hold, which is not in the specification.
            trained = spec.trained_peers
            trainings = (len(spec.each_peer_seed), spec.multi_task, spec.x_lora) if trained else ()
            return set(spec.peers), bool(spec.tap_layers), *trainings
        case RouterJobSpec():
            return spec.router, spec.settings.get("tap_layer")
        case TraceJobSpec():
            return spec.model, spec.release, spec.batch_size, spec.prompts_file
        case ExpertCreationJobSpec():
            # How many examples there are is in the files.
            return spec.teacher, spec.num_examples, spec.training_files, spec.hyperparameters
        case _:
            return None


def _evaluated_tokens(spec: EvaluationJobSpec) -> float:
    num_domains = len(spec.held_out)
    whole = num_domains * spec.max_documents
    drawn = whole + (spec.max_switching_documents if num_domains > 1 else 0)
    variants = len(spec.thresholds) + len(spec.top_ks) + len(spec.stickinesses) + len(spec.tempers)
    variants += len(spec.tap_layers) * sum("trunk" in one for one in spec.evidence)
    documents = len(spec.seeds) * drawn * (_FIXED_SYSTEMS + num_domains + len(spec.peers)) + variants * drawn
    documents += num_domains * whole if spec.without_each else 0
    return float(documents * spec.max_tokens)


def _graph_tokens(spec: CooperationGraphJobSpec) -> float:
    numbers = spec.hyperparameters
    trained = graph_steps(spec) * numbers.batch_size * _BACKWARD
    judged = (graph_steps(spec) // numbers.num_steps + 2 * len(spec.top_ks)) * numbers.num_test_documents
    return float((trained + judged) * numbers.max_length)
