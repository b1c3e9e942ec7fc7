"""What is to be made, once a gap's own words stand in for what the job does not say."""

from dataclasses import dataclass
from typing import Any, Final

from services.shared.database.rows import ExpertRow, GapRow
from services.shared.errors import JobFailed
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.vocabulary import UNKNOWN
from services.trainer_worker.expert_creation.data_request import DataRequest
from services.trainer_worker.job_context import JobContext

_NUM_EXAMPLES: Final = 300


@dataclass(frozen=True)
class Wanted:
    """The expert's name and domain, what its examples should be like, and how many a teacher writes."""

    name: str
    domain: str | None
    request: DataRequest
    num_examples: int


def wanted(context: JobContext, spec: ExpertCreationJobSpec) -> Wanted:
    """From the job's specification over the gap's report. Raises JobFailed where the gap is gone, or the name that it
    proposes has been taken since."""
    name, domain, asked = spec.name, spec.domain, dict[str, Any]()
    if spec.gap is not None:
        gap, is_taken = _gap(context, spec.gap)
        if name is None and is_taken:
            raise JobFailed(
                f"There is an expert {gap.expert_name!r} by now, the name that {gap.id} proposed: submit with a name "
                "of your own; that of an expert makes a new version of it.",
                param="name",
                code="name_taken",
            )
        name, domain = name or gap.expert_name, domain or (gap.domain if gap.domain != UNKNOWN else None)
        asked = gap.report.get("data_request") or {}
    assert name is not None
    shown = tuple((one.prompt, one.completion) for one in spec.examples) or _shown(asked)
    kind = spec.instructions or str(asked.get("kind") or f"questions of the domain {domain or name} with their answers")
    num_examples = spec.num_examples or asked.get("num_examples") or _NUM_EXAMPLES
    return Wanted(name, domain, DataRequest(kind=kind, domain=domain or name, examples=shown), num_examples)


def _gap(context: JobContext, gap_id: str) -> tuple[GapRow, bool]:
    with context.sessions() as session:
        gap = session.get(GapRow, gap_id)
        is_taken = gap is not None and session.get(ExpertRow, gap.expert_name) is not None
    if gap is None:
        raise JobFailed(f"{gap_id} is no longer there: submit without a gap.", param="gap", code="gap_not_found")
    return gap, is_taken


def _shown(asked: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The examples of a gap's data request; those without a completion show what prompts are like."""
    return tuple(
        (str(one["prompt"]), str(one.get("completion") or ""))
        for one in asked.get("examples") or ()
        if isinstance(one, dict) and one.get("prompt")
    )
