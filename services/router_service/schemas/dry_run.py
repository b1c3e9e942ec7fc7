"""What a dry run of a job answers."""

from typing import Literal

from pydantic import BaseModel, Field

from services.shared.vocabulary import JobKind


class HistogramBin(BaseModel):
    """Examples with more tokens than the bin before, and at most `up_to`."""

    up_to: int
    num_examples: int


class FileReport(BaseModel):
    """What was found in one training file."""

    file: str
    num_examples: int
    num_tokens: int
    is_exact: bool = Field(description="False for large files: only the beginning was tokenised, the rest reckoned.")
    tokens_per_example: dict[str, float] = Field(description="min, mean, p50, p90, p99, max.")
    histogram: list[HistogramBin]
    num_duplicates: int = Field(description="Examples whose text occurred before in the file.")
    num_cut: int = Field(description="Examples longer than max_length, which are learned in pieces.")


class Estimate(BaseModel):
    """How long and how much; `basis` says what it rests on."""

    seconds: float
    seconds_range: tuple[float, float] | None = Field(
        default=None, description="What the jobs that it rests on say, from the least to the most."
    )
    peak_memory_bytes: int
    tokens_per_s: float | None
    basis: Literal["measured", "assumed"]
    explanation: str


class DryRun(BaseModel):
    """What a job would do. Fields that its kind does not know are null."""

    object: Literal["job.dry_run"] = "job.dry_run"
    kind: JobKind
    files: dict[str, FileReport] = Field(description="By the field that names the file.")
    num_overlapping: int | None = Field(
        default=None, description="Validation examples whose text is in the training file too."
    )
    num_train_examples: int | None = None
    num_validation_examples: int | None = None
    plan: str | None = Field(default=None, description="What the job does, where steps alone do not tell.")
    num_steps: int | None = Field(default=None, description="Of training, at most: it may stop early.")
    num_epochs: float | None = None
    num_tokens: int | None = Field(default=None, description="Tokens read in all steps together.")
    estimate: Estimate | None = None
    warnings: list[str] = []
