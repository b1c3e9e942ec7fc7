"""`/v1/fine_tuning/jobs`: OpenAI's form of an expert job."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from services.router_service.schemas.openai_requests import without_nulls
from services.shared.schemas.job_spec import FileId
from services.shared.schemas.jobs import JobMetadata

Auto = Literal["auto"]
AUTO: Final = "auto"


class Asked(BaseModel):
    """A part of a request; null asks for the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _nulls_ask_for_defaults(cls, given: Any) -> Any:
        return without_nulls(given)


class Hyperparameters(Asked):
    """`auto` is the default of `POST /jobs`."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = Field(default=AUTO, description="Passes over the file.")
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = AUTO
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] = Field(
        default=AUTO, description="Times the default learning rate."
    )


class Supervised(Asked):
    """Learn the completions, or the last message of each chat, or the whole of plain texts."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Asked):
    """How to train; `supervised` is what there is."""

    type: Literal["supervised"] = "supervised"
    supervised: Supervised = Supervised()


class FineTuningRouting(Asked):
    """Our own part of a request: whether the expert joins the mixture when it is trained."""

    domain: str | None = Field(default=None, max_length=200)
    add_to_release: bool = False
    activate: bool = False


_EXAMPLES: Final[list[JsonValue]] = [
    {"model": "base", "training_file": "file-0123456789abcdef0123456789abcdef", "suffix": "math"}
]


class FineTuningRequest(BaseModel):
    """Train an expert from an uploaded file."""

    model_config = ConfigDict(extra="allow", frozen=True, json_schema_extra={"examples": _EXAMPLES})

    model: str = Field(max_length=512, description="The base model, by its name or as `base`.")
    training_file: FileId
    validation_file: FileId | None = None
    suffix: str | None = Field(
        default=None, min_length=1, max_length=64, description="The expert's name, once it is one: lower case, digits."
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    hyperparameters: Hyperparameters | None = Field(default=None, description="The older place of the method's.")
    method: Method = Method()
    metadata: JobMetadata = {}
    routing: FineTuningRouting = FineTuningRouting()

    @model_validator(mode="before")
    @classmethod
    def _nulls_ask_for_defaults(cls, given: Any) -> Any:
        return without_nulls(given)

    def wanted_hyperparameters(self) -> Hyperparameters:
        """From the method; from the older place if the method has none."""
        if self.hyperparameters is not None and "method" not in self.model_fields_set:
            return self.hyperparameters
        return self.method.supervised.hyperparameters

    def unsupported(self) -> str | None:
        """A field that would change the job and cannot be honoured (`integrations`), if one asks for something."""
        extra = self.model_extra or {}
        return next((name for name, value in extra.items() if value not in ([], {})), None)


class FineTuningError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class TrainedWith(BaseModel):
    """The hyperparameters of a job, none of them `auto` any more."""

    n_epochs: int | float
    batch_size: int
    learning_rate_multiplier: float


class SupervisedTrainedWith(BaseModel):
    """Their place in a method."""

    hyperparameters: TrainedWith


class MethodUsed(BaseModel):
    """How a job trains."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedTrainedWith


class FineTuningJob(BaseModel):
    """An expert job in OpenAI's words."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None = Field(description="Once it has succeeded: a `model` of completions and chats.")
    organization_id: Literal["adaptive-moe"] = "adaptive-moe"
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    hyperparameters: TrainedWith
    method: MethodUsed
    training_file: str
    validation_file: str | None
    result_files: list[str] = []
    trained_tokens: int | None
    seed: int
    error: FineTuningError | None
    integrations: list[Any] = []
    metadata: dict[str, str]


class FineTuningEvent(BaseModel):
    """One line of a job's history."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any]


class CheckpointMetrics(BaseModel):
    """Losses in nats per token."""

    step: int
    train_loss: float | None
    valid_loss: float | None


class FineTuningCheckpoint(BaseModel):
    """A state of the training that can be asked for like the finished model."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


class FineTuningCheckpoints(BaseModel):
    """A page of checkpoints, the last first."""

    object: Literal["list"] = "list"
    data: list[FineTuningCheckpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool
