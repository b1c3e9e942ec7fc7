"""Jobs as they are submitted and shown."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from services.shared.errors import InvalidRequest
from services.shared.schemas.calibration import CalibrationJobSpec
from services.shared.schemas.cooperation_graph import CooperationGraphJobSpec
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.gap_analysis import GapAnalysisJobSpec
from services.shared.schemas.image_cooperation import ImageCooperationJobSpec
from services.shared.schemas.job_spec import ExpertName, FileId, JobSpecBase, Spec, refuse_reserved
from services.shared.schemas.trace import TraceJobSpec
from services.shared.schemas.trace_import import TraceImportJobSpec
from services.shared.vocabulary import JobKind, JobStatus, RouterKind

JobMetadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16, description="Kept for whoever submitted the job."),
]


class ExpertJobSpec(JobSpecBase):
    """Train an expert from a file and, if asked, let it join the mixture."""

    kind: Literal[JobKind.EXPERT] = JobKind.EXPERT
    name: ExpertName
    domain: str | None = Field(default=None, max_length=200)
    description: str = Field(default="", max_length=2000)
    training_file: FileId
    validation_file: FileId | None = None
    hyperparameters: ExpertHyperparameters = ExpertHyperparameters()
    add_to_release: bool = False
    activate: bool = False
    tolerance: float | None = Field(
        default=None,
        ge=0.0,
        description="With activate: nats per token that the new release may be worse than the active one in any domain "
        "that it was evaluated in. Default: the setting releases.regression_tolerance.",
    )
    keep_checkpoints: bool = Field(
        default=False, description="Also publish the last checkpoints; OpenAI's API names them as models."
    )
    metadata: JobMetadata = Field(default={})

    def named_files(self) -> dict[str, str]:
        """Training and validation file."""
        named = {"training_file": self.training_file, "validation_file": self.validation_file}
        return {field: file_id for field, file_id in named.items() if file_id is not None}

    def check(self) -> None:
        """A name of its own, and a release if one is to be activated."""
        refuse_reserved(self.name, self.domain)
        if self.activate and not self.add_to_release:
            raise InvalidRequest("activate needs add_to_release: a release is what is activated.", param="activate")
        self.hyperparameters.refuse_without_gpu(self.queue)


class RouterHyperparameters(Spec):
    """Training of a learned router (ignored by `bayes`, which needs none)."""

    num_steps: int = Field(default=300, ge=1, le=1_000_000)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    batch_size: int = Field(default=8, ge=1, le=1024)
    max_length: int = Field(default=256, ge=8)
    seed: int = Field(default=0, ge=0, lt=2**31)


class RouterJobSpec(JobSpecBase):
    """Make a router over a set of experts; settings not given come from the service's configuration."""

    kind: Literal[JobKind.ROUTER] = JobKind.ROUTER
    router: RouterKind = RouterKind.BAYES
    experts: tuple[ExpertName, ...] | None = Field(default=None, description="Default: those of the active release.")
    training_files: dict[ExpertName, FileId] = Field(
        default={}, description="Text per expert; needed by `learned`, and by experts without evidence."
    )
    generic_file: FileId | None = Field(
        default=None, description="Text of the base row; default: sampled from the base model."
    )
    settings: dict[str, Any] = Field(default={}, description="Overrides of the `router` settings by name.")
    hyperparameters: RouterHyperparameters = RouterHyperparameters()
    create_release: bool = True
    activate: bool = False
    tolerance: float | None = Field(
        default=None,
        ge=0.0,
        description="With activate: nats per token that the new release may be worse than the active one in any domain "
        "that it was evaluated in. Default: the setting releases.regression_tolerance.",
    )

    def named_files(self) -> dict[str, str]:
        """Text of the experts and of the base row."""
        named = {f"training_files.{name}": file_id for name, file_id in self.training_files.items()}
        return named | ({"generic_file": self.generic_file} if self.generic_file is not None else {})

    def named_experts(self) -> tuple[str, ...]:
        """Those that the router is to know."""
        return self.experts or ()


JobSpec = Annotated[
    ExpertJobSpec
    | ExpertCreationJobSpec
    | RouterJobSpec
    | EvaluationJobSpec
    | CooperationGraphJobSpec
    | CalibrationJobSpec
    | ImageCooperationJobSpec
    | GapAnalysisJobSpec
    | TraceJobSpec
    | TraceImportJobSpec,
    Field(discriminator="kind"),
]


class JobProgress(BaseModel):
    """Where a job is. `seconds_left` is an estimate from the steps done in this attempt."""

    phase: str
    step: int
    total_steps: int | None
    loss: float | None
    seconds_left: float | None


class Job(BaseModel):
    """A job as the API shows it."""

    id: str
    object: Literal["job"] = "job"
    kind: JobKind
    status: JobStatus
    spec: dict[str, Any]
    priority: int
    queue: str
    user: str | None
    attempt: int
    cancel_requested: bool
    pause_requested: bool
    progress: JobProgress
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobEvent(BaseModel):
    """One line of a job's history."""

    id: int
    object: Literal["job.event"] = "job.event"
    at: datetime
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics", "status"]
    message: str
    data: dict[str, Any]
