"""What the router service sends an expert service, and what comes back: the contract of the hop.

`POST /sequences` takes a SequenceRequest and answers `application/x-ndjson`: one JSON event a line,
TokenEvent per generated token, then exactly one FinishedEvent or ErrorEvent. A plan carries all
that a replica needs, so replicas are disposable.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.shared.schemas.sampling import SamplingParameters
from services.shared.vocabulary import DIGEST_PATTERN, NAME_PATTERN, FinishReason, PlanMode

EXPERT_FIELD: Final = "plan.experts."
"""Before an expert's name: the field that errors name where this one's adapter is why a plan cannot be used."""

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]
TopLogprobs = tuple[tuple[int, float], ...]


class Wire(BaseModel):
    """A frozen message; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ExpertRef(Wire):
    """One expert version: a name for people, a digest for storage."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: int = Field(ge=1)
    digest: Digest


class RoutingPlan(Wire):
    """Which experts may speak in one request, and who decides.

    ROUTED: `router` scores every token over `experts` (the columns of the gate, in order, then the base);
    only `candidates` may be kept, the rest of the weight is renormalised. FIXED: `weights` per
    candidate, the same at every token, used as given. BASE: no expert.
    """

    mode: PlanMode
    release: str | None = None
    router: Digest | None = None
    graph: Digest | None = None
    experts: tuple[ExpertRef, ...] = ()
    candidates: tuple[str, ...] = ()
    weights: dict[str, float] = {}


class SequenceRequest(Wire):
    """One sequence to generate."""

    request_id: str = Field(min_length=1, max_length=128)
    prompt_ids: tuple[int, ...] = Field(min_length=1)
    sampling: SamplingParameters
    plan: RoutingPlan
    prompt_logprobs: bool = False
    prompt_states: bool = False
    states_layer: int | None = Field(default=None, ge=0)
    """After how many layers `prompt_states` are read; None for the last, after the final norm."""


class TokenEvent(Wire):
    """One generated token.

    `gates` are the weights under which it was predicted, base included; in ROUTED mode they sum to 1. `top_logprobs`
    are (id, log-probability) of the likeliest tokens at its place, best first, if the sampling asks for them.
    """

    type: Literal["token"] = "token"
    index: int
    id: int
    text: str
    logprob: float
    special: bool
    gates: dict[str, float]
    top_logprobs: TopLogprobs = ()


class SequenceTimings(Wire):
    """Milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


class FinishedEvent(Wire):
    """The end of a sequence. `generated_text` ends before a matched stop string.

    `prompt_logprobs` and, with `num_top_logprobs`, `prompt_top_logprobs` are there if asked for, one per prompt token;
    the first token has neither. `prompt_states`, if asked for, is the mean over all prompt tokens of the base model's
    hidden states after `states_layer` layers, or the last, after its final norm, with whoever speaks in the plan
    speaking.
    """

    type: Literal["finished"] = "finished"
    finish_reason: FinishReason
    generated_text: str
    num_prompt_tokens: int
    num_generated_tokens: int
    seed: int | None
    prompt_logprobs: tuple[float | None, ...] | None = None
    prompt_top_logprobs: tuple[TopLogprobs, ...] | None = None
    prompt_states: tuple[float, ...] | None = None
    timings: SequenceTimings


class ErrorEvent(Wire):
    """A sequence that could not go on; the error body of the API."""

    type: Literal["error"] = "error"
    message: str
    code: str


SequenceEvent = Annotated[TokenEvent | FinishedEvent | ErrorEvent, Field(discriminator="type")]


class ScoresRequest(Wire):
    """`POST /scores`: what the gate makes of a prompt, without generating."""

    prompt_ids: tuple[int, ...] = Field(min_length=1)
    plan: RoutingPlan


class ScoresResponse(Wire):
    """Per prompt token: scores over `columns` (experts, then base) and the kept, normalised weights."""

    columns: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]


class AdapterCheckRequest(Wire):
    """`POST /adapters/check`: verify a published artifact against the base model this replica hosts."""

    digest: Digest


class AdapterReport(Wire):
    """What an adapter holds, as verified against the base model."""

    rank: int
    num_parameters: int
    num_bytes: int
    target_modules: tuple[str, ...]
    lowest_layer: int
    base_fingerprint: str


class PinnedAdapters(Wire):
    """`PUT /pins`: the adapters that a replica keeps in slots; replaces those named before."""

    digests: tuple[Digest, ...] = Field(max_length=4096)


class BaseModelInfo(Wire):
    """`GET /base`: the hosted base model."""

    name: str
    fingerprint: str
    max_context: int
    vocab_size: int
    dtype: str
    device: str
    num_parameters: int


class ReplicaStatus(Wire):
    """`GET /status`: load and residency of a replica.

    Adapters by digest: `resident` in slots, `pinned` of these in use, `host_resident` in host memory (the last used
    first, 256 at most; what is in a slot may be among them), `pins` those that `PUT /pins` named.

    The KV cache holds `kv_cached_tokens` tokens of running sequences in memory for `kv_capacity_tokens`, which grows
    with need up to its limit; `preemptions` counts the sequences that had to give way since the start.
    """

    running: int
    waiting: int
    num_slots: int
    resident: tuple[str, ...]
    pinned: tuple[str, ...]
    resident_bytes: int
    kv_cache_bytes: int = 0
    kv_cache_limit_bytes: int = 0
    kv_cached_tokens: int = 0
    kv_capacity_tokens: int = 0
    preemptions: int = 0
    host_resident: tuple[str, ...] = ()
    host_bytes: int = 0
    pins: tuple[str, ...] = ()
    draining: bool = False
    """It takes no new sequences: asked to, or about to end."""

    @property
    def num_open_slots(self) -> int:
        """Slots that no pin holds: as many experts may a plan name."""
        return self.num_slots - len(self.pins)

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache's limit that holds tokens, 0..1; what is allocated and empty does not count."""
        if not self.kv_capacity_tokens or not self.kv_cache_limit_bytes:
            return 0.0
        bytes_per_token = self.kv_cache_bytes / self.kv_capacity_tokens
        return min(1.0, self.kv_cached_tokens * bytes_per_token / self.kv_cache_limit_bytes)
