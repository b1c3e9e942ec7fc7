"""What a trace says of itself: `trace.json` beside its tables."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION: Final = 1


class TraceSource(StrEnum):
    """Where choices were recorded, or the format that they came in."""

    MIXTURE = "mixture"
    NATIVE = "native"
    LLAMA_CPP = "llama.cpp"
    TOKEN_JSON = "token-json"
    MOE_ROUTES = "moe_routes"
    FINGERPRINT = "fingerprint"
    ROUTING_LOG = "routing_log"


class Severity(StrEnum):
    """What a finding means for the analysis."""

    INFO = "info"
    """It was put right."""
    WARNING = "warning"
    """Something is less than it seems: the finding says what."""
    DEGENERATE = "degenerate"
    """What these layers say is not about routing; no figure is made of them."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Frozen):
    """A known trap that a trace is in, or was in."""

    code: str
    severity: Severity
    message: str
    layers: tuple[int, ...] = Field(default=(), description="Those concerned; none named means all.")
    count: int | None = None


class TracedLayer(_Frozen):
    """One gate."""

    layer: int = Field(ge=0)
    num_experts: int = Field(ge=1)
    top_k: int = Field(ge=1, description="The most that one token has.")
    num_rows: int = Field(ge=0)


class TraceDescription(_Frozen):
    """The whole trace."""

    format_version: Literal[1] = FORMAT_VERSION
    source: TraceSource
    model: str | None = None
    experts: tuple[str, ...] = Field(default=(), description="Names by number, where experts have any.")
    domains: tuple[str, ...]
    num_sequences: int
    num_tokens: int = Field(description="Of all sequences, each token once however many layers it went through.")
    layers: tuple[TracedLayer, ...]
    has_weights: bool
    has_token_ids: bool
    findings: tuple[Finding, ...] = ()
    about: Annotated[dict[str, str | int | float | bool | None], Field(default_factory=dict)]

    def is_degenerate(self, layer: int) -> bool:
        """Whether nothing can be learned of this layer."""
        return any(
            finding.severity is Severity.DEGENERATE and (not finding.layers or layer in finding.layers)
            for finding in self.findings
        )
