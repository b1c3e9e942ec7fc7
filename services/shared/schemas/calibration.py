"""The specification of a calibration: what a release knows of its own ignorance, measured on held-out text."""

from typing import Annotated, Literal

from pydantic import Field

from services.shared.errors import InvalidRequest
from services.shared.schemas.evaluation import DomainName
from services.shared.schemas.job_spec import FileId, JobSpecBase, ReleaseId
from services.shared.vocabulary import JobKind

PromptTokens = Annotated[int, Field(ge=4, le=131_072)]


class CalibrationJobSpec(JobSpecBase):
    """Measure what a release loses where its experts are left out, and learn to tell it from its router's numbers."""

    kind: Literal[JobKind.CALIBRATION] = JobKind.CALIBRATION
    release: ReleaseId | None = Field(default=None, description="Default: the active one.")
    held_out: dict[DomainName, FileId] = Field(
        min_length=2,
        max_length=256,
        description="Text that no expert was trained on, by the name of its expert, or by the domain of one. Detection "
        "of unknown domains is measured with three or more.",
    )
    max_documents: int = Field(default=120, ge=8, le=10_000, description="Per domain.")
    prompt_tokens: tuple[PromptTokens, PromptTokens] = Field(
        default=(16, 128),
        description="Shortest and longest prompt. Examples with a completion are cut where it begins instead.",
    )
    max_tokens: int = Field(default=256, ge=16, le=131_072, description="Of a document; the rest is not read.")
    window: int = Field(
        default=64, ge=1, le=131_072, description="Tokens before the present one that confidence is told of."
    )
    range_share: float = Field(
        default=0.95,
        gt=0.5,
        lt=1.0,
        description="Share of known documents whose loss is in the range that confidence speaks of.",
    )
    false_flags: float = Field(
        default=0.05, gt=0.0, lt=0.5, description="Share of known requests that may be flagged, on average."
    )
    states_layer: int = Field(
        default=1,
        ge=0,
        lt=1000,
        description="Flagged prompts are clustered by the base model's mean hidden states after so many layers.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31)
    create_release: bool = Field(default=True, description="Make a release with the calibration.")
    activate: bool = Field(
        default=False, description="And activate it: its answers are the same, so nothing else changes."
    )

    def named_files(self) -> dict[str, str]:
        """The held-out text."""
        return {f"held_out.{domain}": file_id for domain, file_id in self.held_out.items()}

    def named_release(self) -> str | None:
        """The release, if it is named."""
        return self.release

    def check(self) -> None:
        """Lengths in order, and a release if one is to be activated."""
        shortest, longest = self.prompt_tokens
        if shortest > longest:
            raise InvalidRequest("prompt_tokens: the shortest prompt comes first.", param="prompt_tokens")
        if self.activate and not self.create_release:
            raise InvalidRequest("activate needs create_release: a release is what is activated.", param="activate")
