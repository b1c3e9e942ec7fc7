"""The specification of an import: recordings of routing that others made, as a trace."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from services.shared.schemas.job_spec import FileId, JobSpecBase, Spec, refuse_repeated
from services.shared.vocabulary import JobKind

TraceName = Annotated[str, Field(min_length=1, max_length=200)]
Domain = Annotated[str, Field(min_length=1, max_length=200)]
TraceFormat = Literal["llama.cpp", "token-json", "moe_routes", "fingerprint"]


class ImportOptions(Spec):
    """What the files do not say of themselves. All may be left out."""

    format: TraceFormat | None = Field(default=None, description="Default: what the files look like.")
    model: str | None = Field(default=None, max_length=200, description="Default: what the files say.")
    domain: Domain | None = Field(
        default=None, description="Of whatever has none. Default: the folder domain-1-code is of the domain code."
    )
    domains: dict[Annotated[str, Field(max_length=500)], Domain] = Field(
        default={}, max_length=10_000, description="By file name, or by folder within an archive; before all others."
    )
    num_experts: int | None = Field(
        default=None, ge=1, le=65_535, description="Of every layer. Default: told by the files, else the highest seen."
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Passes with more are warm-up. Default: told by the files, else the usual.",
    )
    drop_constant_runs: bool = Field(
        default=False,
        description="Leave out 64 and more tokens in a row that have the same experts, as profiling runs leave them.",
    )
    record_bytes: int = Field(
        default=1024, ge=128, le=65_536, description="llama.cpp: of one record; 128 and 256 are of older tracers."
    )
    operations: dict[Annotated[str, Field(pattern="^[A-Z0-9_]{1,32}$")], Annotated[int, Field(ge=0, le=255)]] = Field(
        default={},
        max_length=256,
        description="llama.cpp: numbers of operations where the build has others, such as MUL_MAT_ID and ADD_ID.",
    )


class TraceImportJobSpec(JobSpecBase):
    """Make a trace of recordings that others made, and analyse it."""

    files_are_text: ClassVar[bool] = False
    uses_base_model: ClassVar[bool] = False

    kind: Literal[JobKind.TRACE_IMPORT] = JobKind.TRACE_IMPORT
    name: TraceName
    files: tuple[FileId, ...] = Field(min_length=1, max_length=1000)
    options: ImportOptions = ImportOptions()

    def named_files(self) -> dict[str, str]:
        """The recordings, archives among them."""
        return {f"files.{number}": file_id for number, file_id in enumerate(self.files)}

    def named_trace(self) -> str:
        """What is made."""
        return self.name

    def check(self) -> None:
        """Each file once."""
        refuse_repeated(files=self.files)
