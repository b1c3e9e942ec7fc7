"""The specification of a gap analysis: flagged requests in clusters, each of which is a gap."""

from typing import Annotated, Final, Literal

from pydantic import Field

from services.shared.schemas.job_spec import JobSpecBase
from services.shared.vocabulary import TEACHER_PATTERN, JobKind

DAY_S: Final = 24 * 3600.0


class GapAnalysisJobSpec(JobSpecBase):
    """Find what the mixture is asked for and cannot answer well, among the requests of the last days."""

    kind: Literal[JobKind.GAP_ANALYSIS] = JobKind.GAP_ANALYSIS
    window_s: float = Field(
        default=7 * DAY_S, ge=60.0, le=366 * DAY_S, description="Only requests of so long before the job are looked at."
    )
    min_cluster_size: int = Field(default=8, ge=3, le=1000, description="Flagged requests that make a gap, at least.")
    max_requests: int = Field(
        default=2000, ge=10, le=20_000, description="Flagged requests looked at, the newest; as many ordinary ones."
    )
    teacher: Annotated[str, Field(pattern=TEACHER_PATTERN)] | None = Field(
        default=None,
        description="One of the setting `teachers`, to name the domains of clusters; it is sent a few redacted prompts "
        "of each. Default: the router's own guess.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of the resamples behind intervals.")

    def named_teacher(self) -> str | None:
        """The teacher, where the operator must have named it."""
        return self.teacher
