"""`/generate` as TGI's and LoRAX's clients speak it; our own additions are under `routing`."""

from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from services.shared.schemas.sampling import Bias, Penalty, Stop, TokenId
from services.shared.schemas.sequences import RoutingPlan
from services.shared.vocabulary import MAX_LOGIT_BIASES, MAX_STOP_SEQUENCES, MAX_TOP_LOGPROBS, FinishReason, PlanMode

MAX_FIXED_EXPERTS: Final = 64
DEFAULT_ENSEMBLE_SIZE: Final = 3

FixedWeight = Annotated[float, Field(gt=0.0, le=10.0, allow_inf_nan=False)]
NewTokens = Annotated[int, Field(ge=1, le=2**31 - 1)]

_DEFAULTS_OF_UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = {
    "watermark": (False,),
    "grammar": (),
    "response_format": (),
    "return_k_alternatives": (0,),
    "apply_chat_template": (False,),
    "adapter_source": (),
    "api_token": (),
    "tools": (),
    "tool_choice": (),
}
"""Fields of TGI and LoRAX that would change the answer and are not offered: null and these values ask for nothing."""


class Attribution(StrEnum):
    """How an answer's attribution is found out."""

    SHARES = "shares"  # the gate's weights, which are known anyway
    ABLATION = "ablation"  # also by reading the answer again without each expert


class Integration(StrEnum):
    """How what experts say becomes one answer."""

    MIXTURE = "mixture"  # the gate mixes them at every token
    SINGLE = "single"  # the one that scores best speaks alone
    ENSEMBLE = "ensemble"  # several answer alone, one answer is chosen
    CASCADE = "cascade"  # the base answers, the mixture where the base is not sure


class EnsembleChoice(StrEnum):
    """Which answer of an ensemble is given."""

    LIKELIHOOD = "likelihood"  # the likeliest under the mixture
    VOTE = "vote"  # the one that most members give, the likeliest among equals


class AnswerOptions(BaseModel):
    """How an answer is put together and what is found out about it: the same in TGI's schema and in OpenAI's."""

    model_config = ConfigDict(frozen=True)

    attribution: Attribution = Field(
        default=Attribution.SHARES,
        description="`ablation` also measures how much less likely the answer is without each expert that has a share "
        "in it. The answer is read once more as it was and once without each of them: (experts + 1) times the prompt's "
        "and the answer's tokens, as prompts are read.",
    )
    integration: Integration = Field(
        default=Integration.MIXTURE,
        description="`mixture`: the gate mixes experts at every token. `single`: whoever has the largest mean "
        "posterior over the prompt, an expert or the base, answers alone. `ensemble`: the `ensemble_size` best of them "
        "answer alone, and one answer is given. `cascade`: the base answers; if the mean log-probability of its tokens "
        "is below `cascade_threshold`, the mixture does. The last two cannot be streamed and make one answer.",
    )
    ensemble_size: int | None = Field(default=None, ge=1, le=64, description="With `ensemble`; default 3.")
    ensemble_choice: EnsembleChoice | None = Field(
        default=None,
        description="With `ensemble`. `likelihood` (default): the answer with the highest mean log-likelihood under "
        "the mixture. `vote`: the one that most give, but for case and white space; the likeliest among equals.",
    )
    cascade_threshold: float | None = Field(
        default=None, le=0.0, allow_inf_nan=False, description="With `cascade`; default: the service's setting."
    )

    explain: bool = Field(
        default=False,
        description="Tell all that is known of the answer under `routing`: also the plan and the timings, with the "
        "attribution by ablation.",
    )

    @model_validator(mode="after")
    def _are_of_the_mode_asked_for(self) -> Self:
        modes = {
            "ensemble_size": Integration.ENSEMBLE,
            "ensemble_choice": Integration.ENSEMBLE,
            "cascade_threshold": Integration.CASCADE,
        }
        for name, mode in modes.items():
            if getattr(self, name) is not None and self.integration is not mode:
                raise ValueError(f"{name} is for integration {mode.value}: ask for that too, or leave it out.")
        return self

    @property
    def wants_ablation(self) -> bool:
        """Whether the answer is to be read again without each expert."""
        return self.explain or self.attribution is Attribution.ABLATION

    @property
    def num_members(self) -> int:
        """Answers of an ensemble."""
        return self.ensemble_size or DEFAULT_ENSEMBLE_SIZE


class MergedAdapters(BaseModel):
    """LoRAX's way to name several experts with weights; only `linear` exists here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: tuple[str, ...] = Field(min_length=1, max_length=MAX_FIXED_EXPERTS)
    weights: tuple[FixedWeight, ...] = ()
    merge_strategy: str = "linear"
    density: float = Field(default=0.0, ge=0.0, le=1.0)
    majority_sign_method: str = "total"

    @model_validator(mode="after")
    def _is_linear_and_paired(self) -> Self:
        if self.merge_strategy != "linear":
            raise ValueError(
                f"merge_strategy {self.merge_strategy[:20]!r} is not supported: experts are mixed linearly."
            )
        if self.weights and len(self.weights) != len(self.ids):
            raise ValueError("weights must be as many as ids.")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("ids names an expert twice.")
        return self

    def as_weights(self) -> dict[str, float]:
        """Name to weight; without weights every expert counts 1, as in LoRAX."""
        return dict(zip(self.ids, self.weights or (1.0,) * len(self.ids), strict=True))


class GenerateParameters(AnswerOptions):
    """How to generate, and who may speak: nothing named means that the active release decides token by token."""

    model_config = ConfigDict(extra="allow", frozen=True)

    adapter_id: str | None = Field(
        default=None, min_length=1, max_length=200, description="One expert by name, or `base` for none."
    )
    experts: dict[str, FixedWeight] | None = Field(
        default=None, min_length=1, max_length=MAX_FIXED_EXPERTS, description="Experts with fixed weights."
    )
    merged_adapters: MergedAdapters | None = None
    max_new_tokens: NewTokens | None = Field(default=None, description="Default: the service's setting.")
    do_sample: bool = False
    temperature: float | None = Field(default=None, ge=0.0, le=100.0, description="0 is greedy.")
    top_k: int | None = Field(default=None, ge=1, le=2**31 - 1)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    typical_p: float | None = Field(default=None, gt=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0, le=10.0)
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: dict[TokenId, Bias] = Field(default={}, max_length=MAX_LOGIT_BIASES, description="By token id.")
    best_of: int = Field(default=1, ge=1, description="Draw so many answers and give the likeliest (not streamed).")
    top_n_tokens: int = Field(
        default=0, ge=0, le=MAX_TOP_LOGPROBS, description="Also the likeliest tokens at every place (with `details`)."
    )
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: tuple[Stop, ...] = Field(default=(), max_length=MAX_STOP_SEQUENCES)
    ignore_eos_token: bool = False
    return_full_text: bool = False
    truncate: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="Keep only the prompt's last so many tokens."
    )
    details: bool = Field(default=False, description="Also tokens, their log-probabilities and their experts.")
    decoder_input_details: bool = Field(default=False, description="Also the prompt's tokens (not when streaming).")

    @model_validator(mode="before")
    @classmethod
    def _nulls_ask_for_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _names_experts_once(self) -> Self:
        named = [field for field in ("adapter_id", "experts", "merged_adapters") if getattr(self, field) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} exclude each other: give one of them.")
        return self

    def unsupported(self) -> str | None:
        """The first parameter given that would change the answer and cannot be honoured, if any."""
        for name, value in (self.model_extra or {}).items():
            if name not in _DEFAULTS_OF_UNSUPPORTED or value not in _DEFAULTS_OF_UNSUPPORTED[name]:
                return name
        return None

    def fixed_experts(self) -> dict[str, float] | None:
        """Name to weight where the request decides who speaks, else None."""
        if self.adapter_id is not None:
            return {self.adapter_id: 1.0}
        if self.merged_adapters is not None:
            return self.merged_adapters.as_weights()
        return self.experts

    @property
    def samples(self) -> bool:
        """TGI's rule: any setting that shapes the distribution asks for sampling; temperature 0 asks for none."""
        if self.temperature == 0.0:
            return False
        filtered = self.top_k is not None or (self.top_p or 1.0) < 1.0 or (self.typical_p or 1.0) < 1.0
        return self.do_sample or filtered or self.temperature not in (None, 1.0)


_EXAMPLES: Final[list[JsonValue]] = [
    {
        "inputs": "Tom has 3 apples and buys 4 more. How many apples does he have?",
        "parameters": {"max_new_tokens": 32, "details": True},
    },
    {"inputs": "def add(a, b):", "parameters": {"adapter_id": "code", "max_new_tokens": 24, "stop": ["\n\n"]}},
    {
        "inputs": "Once upon a time",
        "parameters": {"experts": {"creative": 0.7, "code": 0.3}, "temperature": 0.8, "seed": 7},
    },
]


class GenerateRequest(BaseModel):
    """A prompt and how to go on from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": _EXAMPLES})

    inputs: str = Field(min_length=1, description="The prompt.")
    parameters: GenerateParameters = GenerateParameters()
    explain: bool | None = Field(default=False, description="The same as `parameters.explain`.")

    @model_validator(mode="before")
    @classmethod
    def _no_parameters_are_defaults(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("parameters", ...) is None:
            return {key: value for key, value in given.items() if key != "parameters"}
        return given

    @property
    def asked(self) -> GenerateParameters:
        """The parameters, with what stands beside them."""
        return self.parameters.model_copy(update={"explain": True}) if self.explain else self.parameters


class CompatibleRequest(GenerateRequest):
    """The same for `POST /`, where `stream` chooses the form of the answer."""

    stream: bool | None = Field(default=False, description="Answer as server-sent events.")


def _is_none(value: object) -> bool:
    return value is None


class ExpertShare(BaseModel):
    """What one expert, or `base`, contributed to an answer.

    Effects are there for experts, with `attribution: ablation`. Left out means that the gate chooses again among the
    others; an expert with fixed weights is taken out of them. `base` always computes and cannot be left out.
    """

    expert: str
    share: float = Field(description="Its share of the gate's weight over the generated tokens; all sum to 1.")
    num_tokens: int = Field(description="Generated tokens under which its weight was the largest.")
    effect: float | None = Field(
        default=None,
        exclude_if=_is_none,
        description="Mean over the generated tokens of log p(token) less log p(token) with this expert left out, nats. "
        "Positive: the answer is less likely without it.",
    )
    total_effect: float | None = Field(default=None, exclude_if=_is_none, description="The sum over those tokens.")
    token_effects: list[float] | None = Field(
        default=None, exclude_if=_is_none, description="Token by token, in their order (with `details`)."
    )


class IntegrationCandidate(BaseModel):
    """One of the answers that were made."""

    written_by: str = Field(description="An expert, `base`, or `mixture`.")
    request_id: str = Field(description="Name of its routing log.")
    score: float = Field(
        description="Nats per token: of an ensemble, the mean log-likelihood under the mixture; of a cascade, the mean "
        "log-probability of the tokens when they were chosen."
    )
    votes: int | None = Field(default=None, exclude_if=_is_none, description="Members that give this answer.")
    chosen: bool


class IntegrationReport(BaseModel):
    """How the answer was put together."""

    mode: Integration
    candidates: list[IntegrationCandidate] | None = Field(default=None, exclude_if=_is_none)
    threshold: float | None = Field(default=None, exclude_if=_is_none, description="Of a cascade.")


class PlannedExpert(BaseModel):
    """An expert version that a plan holds."""

    name: str
    version: int
    candidate: bool = Field(description="Whether it may speak.")


class Plan(BaseModel):
    """Which experts may speak, and who decides."""

    mode: PlanMode
    experts: list[PlannedExpert]
    weights: dict[str, float] = Field(description="Fixed weights, where the request named experts.")

    @classmethod
    def of(cls, plan: RoutingPlan) -> Self:
        """A plan as the API tells it."""
        experts = [
            PlannedExpert(name=expert.name, version=expert.version, candidate=expert.name in plan.candidates)
            for expert in plan.experts
        ]
        return cls(mode=plan.mode, experts=experts, weights=plan.weights)


class Routing(BaseModel):
    """Who wrote the answer."""

    request_id: str = Field(description="Name of the routing log: GET /requests/{id}.")
    release: str | None = Field(description="The release that the request ran on; null when none is active.")
    confidence: float | None = Field(
        description="With a calibrated release: the estimated probability that the mixture's loss on what follows the "
        "prompt is inside the range measured on the domains it knows. Without a calibration, how sure the router is, "
        "over the prompt's last tokens, that the text is of a domain that has an expert. Null when the request itself "
        "named the experts. Not a probability that the answer is right."
    )
    domain: str | None = Field(
        default=None,
        description="Of the prompt: a domain of the release's experts, `base` for text that the base model answers by "
        "itself, or `unknown` where the prompt is flagged.",
    )
    domain_probability: float | None = Field(default=None, description="The estimated probability that it is that one.")
    gap: bool | None = Field(
        default=None,
        description="Whether the prompt is flagged as outside of what the release knows; null without a calibration.",
    )
    attribution: list[ExpertShare]
    effects_missing: str | None = Field(
        default=None,
        exclude_if=_is_none,
        description="Why there are no effects although they were asked for: the answer was there, and no replica could "
        "read it again. Send the request again for them.",
    )
    integration: IntegrationReport | None = Field(
        default=None, description="How the answer was put together; null when the request itself named the experts."
    )
    plan: Plan | None = Field(default=None, exclude_if=_is_none, description="Who could speak (with `explain`).")
    timings: dict[str, float] | None = Field(
        default=None,
        exclude_if=_is_none,
        description="Milliseconds (with `explain`): `planning_ms`; `queue_ms`, `prefill_ms` and `decode_ms` of the "
        "replica; since the request came `first_token_ms` and `total_ms`, which includes the `attribution_ms`.",
    )


class PromptToken(BaseModel):
    """A token of the prompt; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class Token(BaseModel):
    """A generated token. With `details`: the gate's weights under which it was predicted and, with a calibrated
    release, the confidence before it."""

    id: int
    text: str
    logprob: float
    special: bool
    routing: dict[str, float] | None = None
    confidence: float | None = None


class BestOfSequence(BaseModel):
    """One of the answers that `best_of` drew and did not give."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PromptToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = None


class Details(BaseModel):
    """What happened, as TGI and LoRAX both name it."""

    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    skipped_tokens: int = 0
    seed: int | None
    prefill: list[PromptToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = Field(default=None, description="With `top_n_tokens`: best first, by place.")
    best_of_sequences: list[BestOfSequence] | None = None


class GenerateResponse(BaseModel):
    """The answer."""

    generated_text: str
    details: Details | None = None
    routing: Routing


class StreamDetails(BaseModel):
    """The end of a stream; `input_length` is TGI's word and `prompt_tokens` LoRAX's."""

    finish_reason: FinishReason
    prompt_tokens: int
    input_length: int
    generated_tokens: int
    seed: int | None


class StreamEvent(BaseModel):
    """One event per token; the last also has the text, the details and the routing."""

    index: int
    token: Token
    top_tokens: list[Token] | None = None
    generated_text: str | None = None
    details: StreamDetails | None = None
    routing: Routing | None = None
