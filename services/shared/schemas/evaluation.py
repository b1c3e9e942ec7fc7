"""The specification of an evaluation: what a release is worth on held-out text."""

from typing import Annotated, Literal

from pydantic import Field

from services.shared.schemas.job_spec import FileId, JobSpecBase, ReleaseId, refuse_repeated
from services.shared.vocabulary import JobKind

DomainName = Annotated[str, Field(min_length=1, max_length=200)]


class EvaluationJobSpec(JobSpecBase):
    """Read held-out text under a release, its single experts and what they are compared with."""

    kind: Literal[JobKind.EVALUATION] = JobKind.EVALUATION
    release: ReleaseId | None = Field(default=None, description="Default: the active one.")
    held_out: dict[DomainName, FileId] = Field(
        min_length=1,
        max_length=256,
        description="Text that no expert was trained on, by the name of its expert, or by the domain of one.",
    )
    unknown_file: FileId | None = Field(default=None, description="Text that belongs to no expert.")
    thresholds: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] = Field(
        default=(0.02, 0.05, 0.1, 0.2, 0.35, 0.5),
        max_length=16,
        description="Of a threshold gate, one after the other.",
    )
    top_ks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(1, 2, 3, 4), max_length=16, description="Columns that a top-k gate keeps, one after the other."
    )
    without_each: bool = Field(default=True, description="Take each expert out of the release and add it back.")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        default=(0, 1, 2), min_length=1, max_length=20, description="Each draws documents and pairs of its own."
    )
    max_documents: int = Field(default=48, ge=2, le=10_000, description="Per domain and seed.")
    max_switching_documents: int = Field(
        default=120, ge=2, le=10_000, description="Documents that change their domain half-way, per seed."
    )
    max_tokens: int = Field(default=256, ge=32, le=131_072, description="Of a document; the rest is not read.")

    def named_files(self) -> dict[str, str]:
        """Held-out text, and text of no known domain."""
        named = {f"held_out.{domain}": file_id for domain, file_id in self.held_out.items()}
        return named | ({"unknown_file": self.unknown_file} if self.unknown_file is not None else {})

    def named_release(self) -> str | None:
        """The release, where one is named."""
        return self.release

    def check(self) -> None:
        """Nothing twice."""
        refuse_repeated(thresholds=self.thresholds, top_ks=self.top_ks, seeds=self.seeds)
