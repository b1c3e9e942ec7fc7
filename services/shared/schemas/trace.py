"""The specification of a trace: prompts by domain, answered while the experts of every token are recorded."""

from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.shared.errors import InvalidDataset, InvalidRequest
from services.shared.schemas.job_spec import FileId, JobSpecBase, ReleaseId, Spec
from services.shared.vocabulary import JobKind

MAX_PROMPTS: Final = 2000
MAX_PROMPTS_BYTES: Final = 16 * 1024**2
PROMPTS_PER_DOMAIN: Final = 8
"""Of the prompts that come with the project. One prompt is one observation: domains are compared between prompts."""

NUM_TRACE_DOMAINS: Final = 5
"""Of those prompts."""
DEFAULT_TRACE_TOKENS: Final = 100

TraceDomain = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9_ -]{0,62}[A-Za-z0-9])?$")]
PromptSet = Literal["auto", "general", "demo"]


class TracePrompt(Spec):
    """One prompt, one observation."""

    # Files of others say more of a prompt than is read here.
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Annotated[str, Field(min_length=1, max_length=100, coerce_numbers_to_str=True)]
    domain: TraceDomain
    prompt: str = Field(min_length=1, max_length=200_000)
    n_predict: int = Field(default=DEFAULT_TRACE_TOKENS, ge=1, le=4096, description="Tokens generated, at most.")


class PromptsFile(BaseModel):
    """`prompts.json` as the requirements have it."""

    experiment_name: str = Field(default="expert-analysis", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    description: str = Field(default="", max_length=10_000)
    prompts: tuple[TracePrompt, ...] = Field(min_length=1, max_length=MAX_PROMPTS)


class TraceJobSpec(JobSpecBase):
    """Answer prompts of several domains and record which experts each token went through, with which weights."""

    files_are_text: ClassVar[bool] = False

    kind: Literal[JobKind.TRACE] = JobKind.TRACE
    name: str | None = Field(default=None, min_length=1, max_length=200, description="Of the trace. Default: by model.")
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="A native mixture-of-experts model: a folder below the setting trainer.traced_models, by its path "
        "there. Default: our own mixture.",
    )
    release: ReleaseId | None = Field(
        default=None, description="Whose experts and router our own mixture has. Default: the active one."
    )
    prompts: tuple[TracePrompt, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_PROMPTS, description="Default: those of prompts_file or prompt_set."
    )
    prompts_file: FileId | None = Field(
        default=None,
        description="An uploaded prompts.json: {experiment_name, description, prompts: [{id, domain, prompt, "
        "n_predict}]}.",
    )
    prompt_set: PromptSet = Field(
        default="auto",
        description="Prompts that come with the project. general: five domains in ordinary English, for models that "
        "read it. demo: held-out items of the demo's own five domains. auto: demo for a mixture whose experts are all "
        "of the demo's domains, else general.",
    )
    prompts_per_domain: int = Field(
        default=PROMPTS_PER_DOMAIN, ge=2, le=200, description="Of prompt_set; general has 8 of each."
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=4096, description="Generated for every prompt, at most. Default: its own n_predict."
    )
    temperature: float = Field(
        default=0.8,
        ge=0.0,
        le=5.0,
        description="0 takes the likeliest token, which small models answer with repetition. Default: llama.cpp's.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31)
    batch_size: int = Field(default=8, ge=1, le=256, description="Prompts answered at once.")
    layout: Literal["parquet", "directory"] = Field(
        default="parquet",
        description="directory: beside the trace, the requirements' folders and JSON files as a tarball.",
    )

    def named_files(self) -> dict[str, str]:
        """The prompts, where they are uploaded."""
        return {"prompts_file": self.prompts_file} if self.prompts_file is not None else {}

    def named_release(self) -> str | None:
        """The release, if it is named."""
        return self.release

    def named_trace(self) -> str:
        """Its own name, or what it is a trace of."""
        return self.name or f"trace of {self.model or self.release or 'the active release'}"[:200]

    def check(self) -> None:
        """One source of prompts, one kind of model, enough prompts, no id twice."""
        if self.prompts is not None and self.prompts_file is not None:
            raise InvalidRequest("Give prompts or prompts_file, not both.", param="prompts")
        if self.model is not None and self.release is not None:
            raise InvalidRequest("A native model has no release: leave one of the two out.", param="release")
        if self.prompt_set == "general" and self.prompts_per_domain > PROMPTS_PER_DOMAIN:
            raise InvalidRequest(
                f"The general prompts are {PROMPTS_PER_DOMAIN} of each domain: ask for fewer, or give prompts of your "
                "own.",
                param="prompts_per_domain",
            )
        if self.prompts is not None:
            refuse_same_ids(self.prompts, param="prompts")


def read_prompts_file(path: Path) -> PromptsFile:
    """An uploaded prompts.json. Raises InvalidDataset naming the field that is wrong."""
    if path.stat().st_size > MAX_PROMPTS_BYTES:
        raise InvalidDataset(f"prompts.json is larger than {MAX_PROMPTS_BYTES:,} bytes.", param="prompts_file")
    try:
        file = PromptsFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidDataset(
            f"This is no prompts.json, {where}: {first['msg']}. Expected: {{experiment_name, description, prompts: "
            "[{id, domain, prompt, n_predict}]}.",
            param="prompts_file",
        ) from error
    refuse_same_ids(file.prompts, param="prompts_file")
    return file


def refuse_same_ids(prompts: tuple[TracePrompt, ...], *, param: str) -> None:
    """Raise InvalidRequest where two prompts of a domain have one id: results are told by it."""
    seen: set[tuple[str, str]] = set()
    for prompt in prompts:
        if (prompt.domain, prompt.id) in seen:
            raise InvalidRequest(f"Two prompts of {prompt.domain!r} have the id {prompt.id!r}.", param=param)
        seen.add((prompt.domain, prompt.id))
