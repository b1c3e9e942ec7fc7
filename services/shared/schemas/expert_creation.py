"""The specification of an expert's creation: data, training, gate row, evaluation and release in one job."""

from typing import Annotated, Final, Literal

from pydantic import Field

from services.shared.errors import InvalidRequest
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.job_spec import ExpertName, FileId, JobSpecBase, Spec, refuse_repeated, refuse_reserved
from services.shared.vocabulary import DEMO_TEACHER_PREFIX, TEACHER_PATTERN, JobKind

GapId = Annotated[str, Field(pattern=r"^gap-[0-9a-z-]{1,64}$")]
TeacherName = Annotated[str, Field(pattern=rf"{TEACHER_PATTERN[:-1]}$|^{DEMO_TEACHER_PREFIX}[a-z0-9_]{{1,64}}$")]
_COMPLEX_RANK: Final = 8
_COMPLEX_ALPHA: Final = 2.0
_ALPHA_PER_RANK: Final = 2.0


class ExampleForm(Spec):
    """An example as it is wanted."""

    prompt: str = Field(min_length=1, max_length=8192)
    completion: str = Field(min_length=1, max_length=8192)


class ExpertCreationJobSpec(JobSpecBase):
    """From data, uploaded or written by a teacher, to an expert that is released if it helps and harms nobody."""

    kind: Literal[JobKind.EXPERT_CREATION] = JobKind.EXPERT_CREATION
    gap: GapId | None = Field(default=None, description="The gap that the expert is to close.")
    name: ExpertName | None = Field(default=None, description="Default: the name that the gap proposes.")
    domain: str | None = Field(default=None, max_length=200, description="Default: the gap's.")
    description: str = Field(default="", max_length=2000)
    training_files: tuple[FileId, ...] = Field(default=(), max_length=64)
    teacher: TeacherName | None = Field(
        default=None,
        description="Instead of files: one of the setting `teachers`, or demo:<domain> for a generator of the demo.",
    )
    num_examples: int | None = Field(
        default=None, ge=100, le=500, description="That a teacher writes. Default: as many as the gap asks for, or 300."
    )
    instructions: str | None = Field(
        default=None,
        min_length=1,
        max_length=4000,
        description="What kind of examples. Default: what the gap asks for.",
    )
    examples: tuple[ExampleForm, ...] = Field(
        default=(), max_length=20, description="In the form wanted, for a teacher. Default: the gap's."
    )
    held_out_fraction: float = Field(
        default=0.2,
        ge=0.05,
        le=0.5,
        description="Of the examples, six at least; the expert is judged on them and never sees them.",
    )
    approval: bool = Field(
        default=False, description="Pause before the training, so that somebody may look at the data: then resume."
    )
    complex: bool = Field(default=False, description="A difficult domain: 8 more ranks and twice the alpha.")
    search: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(
        default=(),
        max_length=3,
        description="Ranks to try, alpha twice each: the one with the least validation loss is taken.",
    )
    hyperparameters: ExpertHyperparameters = ExpertHyperparameters()
    activate: bool = Field(default=True, description="Else the release is made and stays staged.")
    tolerance: float | None = Field(
        default=None,
        ge=0.0,
        description="Nats per token that other domains may lose. Default: the setting releases.regression_tolerance.",
    )

    def named_files(self) -> dict[str, str]:
        """The training files."""
        return {f"training_files.{index}": file_id for index, file_id in enumerate(self.training_files)}

    def named_gap(self) -> str | None:
        """The gap, where one is named."""
        return self.gap

    def named_teacher(self) -> str | None:
        """The teacher, where the operator must have named it."""
        is_demo = self.teacher is not None and self.teacher.startswith(DEMO_TEACHER_PREFIX)
        return None if is_demo else self.teacher

    @property
    def trainings(self) -> tuple[ExpertHyperparameters, ...]:
        """What is trained: once, or once for each rank of the search."""
        own = self.hyperparameters
        if self.search:
            return tuple(own.model_copy(update={"rank": rank, "alpha": _ALPHA_PER_RANK * rank}) for rank in self.search)
        if self.complex:
            return (own.model_copy(update={"rank": own.rank + _COMPLEX_RANK, "alpha": _COMPLEX_ALPHA * own.alpha}),)
        return (own,)

    def check(self) -> None:
        """One source of data, a name or a gap, and one way to choose the rank."""
        refuse_repeated(training_files=self.training_files, search=self.search)
        if bool(self.training_files) == (self.teacher is not None):
            raise InvalidRequest("Name training_files or a teacher: one of them.", param="training_files")
        refuse_reserved(self.name, self.domain)
        if self.gap is None and self.name is None:
            raise InvalidRequest("Without a gap the expert needs a name.", param="name")
        if self.gap is None and self.named_teacher() is not None and self.instructions is None:
            raise InvalidRequest("Without a gap a teacher needs instructions: what is wanted?", param="instructions")
        if self.complex and self.search:
            raise InvalidRequest("complex chooses a rank, and so does search: name one of them.", param="search")
        self.hyperparameters.refuse_without_gpu(self.queue)
