"""What the specifications of all kinds of jobs have in common."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from services.shared.errors import InvalidRequest
from services.shared.vocabulary import BASE, NAME_PATTERN, UNKNOWN, JobKind, JobQueue

ExpertName = Annotated[str, Field(pattern=NAME_PATTERN, json_schema_extra={"not": {"const": BASE}})]
FileId = Annotated[str, Field(pattern=r"^file-[0-9a-f]{32}$")]
ReleaseId = Annotated[str, Field(pattern=r"^release-[1-9][0-9]{0,8}$")]
UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:+-]{0,127}$")]
LOWEST_PRIORITY: Final = 0
HIGHEST_PRIORITY: Final = 9


class Spec(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JobSpecBase(Spec):
    """What every job may say beside what it makes. These four fields are kept in the job's row, not in its spec."""

    files_are_text: ClassVar[bool] = True
    """Whether `named_files` are training text, which is read through before the job is queued."""

    uses_base_model: ClassVar[bool] = True
    """Whether what the job makes is for one base model."""

    kind: JobKind
    priority: int = Field(
        default=LOWEST_PRIORITY,
        ge=LOWEST_PRIORITY,
        le=HIGHEST_PRIORITY,
        exclude=True,
        description="A worker takes the highest first, of equal ones the oldest.",
    )
    queue: JobQueue | None = Field(
        default=None, exclude=True, description="Which workers may take it. Default: the setting trainer.celery_queue."
    )
    user: UserName | None = Field(
        default=None, exclude=True, description="Whose job it is; the limit on unfinished jobs is per user."
    )
    dry_run: bool = Field(
        default=False, exclude=True, description="Check and estimate only: nothing is queued, the answer is a 200."
    )

    def named_files(self) -> dict[str, str]:
        """Ids of the uploaded training files that the job reads, by the field that names them."""
        return {}

    def named_experts(self) -> tuple[str, ...]:
        """Experts that must be there when the job is submitted."""
        return ()

    def named_release(self) -> str | None:
        """A release that must be there when the job is submitted."""
        return None

    def named_gap(self) -> str | None:
        """A gap that the job is to close: it must be open, and no other job at work on it."""
        return None

    def named_trace(self) -> str | None:
        """The name of the trace that the job makes, if it makes one: its row is made with the job's."""
        return None

    def named_teacher(self) -> str | None:
        """A teacher that the settings must name."""
        return None

    def check(self) -> None:
        """Raise InvalidRequest for fields that contradict each other."""


def refuse_reserved(name: str | None, domain: str | None) -> None:
    """Raise InvalidRequest for an expert that would be called what the base model is, or text that nobody knows."""
    if name == BASE:
        raise InvalidRequest(f"{BASE!r} is the base model's own name: choose another.", param="name")
    if (domain or name) in {BASE, UNKNOWN}:
        raise InvalidRequest(
            f"{domain or name!r} is what requests are told to be of that no expert knows: name another domain.",
            param="domain",
        )


def refuse_repeated(**values: Sequence[object]) -> None:
    """Raise InvalidRequest naming the first field that holds a value twice."""
    for field, given in values.items():
        if len(set(given)) < len(given):
            raise InvalidRequest(f"{field} names a value twice.", param=field)
