"""What `/v1/chat/completions` and `/v1/completions` take: OpenAI's fields, and ours under `routing`."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, PlainValidator, model_validator
from pydantic.json_schema import WithJsonSchema

from services.router_service.schemas.generation import MAX_FIXED_EXPERTS, AnswerOptions, FixedWeight
from services.shared.schemas.sampling import Bias, Penalty, Stop, TokenId
from services.shared.vocabulary import MAX_LOGIT_BIASES, MAX_MESSAGES, MAX_STOP_SEQUENCES, MAX_TOP_LOGPROBS

ACTIVE_MODEL: Final = "adaptive-moe"
"""The model that is always there: the active release decides which experts speak."""

MAX_PROMPTS: Final = 1024
Prompts = tuple[str | tuple[int, ...], ...]

_HARMLESS: Final = frozenset({
    "user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
    "prediction", "parallel_tool_calls",
})  # fmt: skip
"""Fields of OpenAI's that change no answer of ours: taken and left alone."""

_DEFAULTS_OF_UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
}
"""Fields that would change the answer and are not offered: null and these values ask for nothing."""


def without_nulls(given: Any) -> Any:
    """Null asks for the default, everywhere in OpenAI's API."""
    return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


def _listed_stop(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _joined_text(given: Any) -> Any:
    """Content as one text: OpenAI's clients also send it in parts."""
    if not isinstance(given, list):
        return given
    parts = [part for part in given if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    if len(texts) < len(given):
        raise ValueError("only text is understood here: send a string, or parts of type text.")
    return "".join(texts)


def _prompts(given: Any) -> Prompts:
    return listed_prompts(given, limit=MAX_PROMPTS)


def listed_prompts(given: Any, *, limit: int) -> Prompts:
    """One prompt or several, as text or as token ids; ValueError for anything else, and for more than `limit`."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list) or not given:
        raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists.")
    if all(type(item) is int for item in given):
        return (tuple(given),)
    if len(given) > limit:
        raise ValueError(f"has {len(given)} texts; at most {limit} are accepted.")
    if all(isinstance(item, str) for item in given):
        return tuple(given)
    if all(isinstance(item, list) and item and all(type(number) is int for number in item) for item in given):
        return tuple(tuple(item) for item in given)
    raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists.")


def prompts_schema(limit: int) -> dict[str, Any]:
    """The JSON schema of `listed_prompts`."""
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    return {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": limit},
            ids,
            {"type": "array", "items": ids, "minItems": 1, "maxItems": limit},
        ]
    }


class RoutingOptions(AnswerOptions):
    """Our own part of a request: who may speak, and what to tell of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: dict[str, FixedWeight] | None = Field(
        default=None, min_length=1, max_length=MAX_FIXED_EXPERTS, description="Experts with fixed weights."
    )
    details: bool = Field(default=False, description="Also every token's weights.")


class StreamOptions(BaseModel):
    """What a stream has beside its tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = Field(default=False, description="One more chunk at the end, with the counts of tokens.")
    include_obfuscation: bool = Field(default=False, description="Taken and left alone.")


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["developer", "system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined_text, json_schema_input_type=str | list[dict[str, Any]])]
    name: str | None = Field(default=None, max_length=200)

    @model_validator(mode="before")
    @classmethod
    def _only_what_says_something(cls, given: Any) -> Any:
        # Clients send an answer's message back as they got it, with its empty fields.
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None and value != []}


class TextRequest(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str = Field(
        default=ACTIVE_MODEL,
        max_length=512,
        description=f"`{ACTIVE_MODEL}`: the active release decides token by token. `release-N`: that one. "
        "`<base>:<expert>`: one expert. `<base>`: the base model alone. GET /v1/models lists them.",
    )
    n: int = Field(default=1, ge=1, le=1024, description="Answers per prompt; choice i is drawn with seed + i.")
    temperature: float = Field(default=1.0, ge=0.0, le=2.0, description="0 is greedy.")
    top_p: float = Field(default=1.0, ge=0.0, le=1.0)
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: dict[TokenId, Bias] = Field(default={}, max_length=MAX_LOGIT_BIASES, description="By token id.")
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        tuple[Stop, ...],
        Field(max_length=MAX_STOP_SEQUENCES),
        BeforeValidator(_listed_stop, json_schema_input_type=str | list[str]),
    ] = ()
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    top_k: int | None = Field(default=None, ge=1, le=2**31 - 1, description="vLLM's and TGI's.")
    min_p: float | None = Field(default=None, ge=0.0, le=1.0, description="vLLM's.")
    repetition_penalty: float | None = Field(default=None, gt=0.0, le=10.0, description="vLLM's and TGI's.")
    ignore_eos: bool = Field(default=False, description="vLLM's.")
    routing: RoutingOptions = RoutingOptions()

    @model_validator(mode="before")
    @classmethod
    def _nulls_ask_for_defaults(cls, given: Any) -> Any:
        return without_nulls(given)

    def unsupported(self) -> str | None:
        """The first field given that would change the answer and cannot be honoured, if any."""
        extra: Mapping[str, Any] = self.model_extra or {}
        for name, value in extra.items():
            if name not in _HARMLESS and value not in _DEFAULTS_OF_UNSUPPORTED.get(name, ()):
                return name
        return None


_CHAT_EXAMPLES: Final[list[JsonValue]] = [
    {
        "model": ACTIVE_MODEL,
        "messages": [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many has he?"}],
        "max_tokens": 32,
        "temperature": 0,
    }
]


class ChatRequest(TextRequest):
    """A chat and how to go on from it."""

    model_config = ConfigDict(json_schema_extra={"examples": _CHAT_EXAMPLES})

    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1, description="The older name of the same.")
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true.")
        return self


_COMPLETION_EXAMPLES: Final[list[JsonValue]] = [
    {"model": ACTIVE_MODEL, "prompt": "def add(a, b):", "max_tokens": 24, "temperature": 0, "stop": ["\n\n"]}
]


class CompletionRequest(TextRequest):
    """Prompts and how to go on from them."""

    model_config = ConfigDict(json_schema_extra={"examples": _COMPLETION_EXAMPLES})

    prompt: Annotated[Prompts, PlainValidator(_prompts), WithJsonSchema(prompts_schema(MAX_PROMPTS))]
    max_tokens: int = Field(default=16, ge=0, le=2**31 - 1, description="0 with `echo`: only score the prompt.")
    echo: bool = Field(default=False, description="Put the prompt before the answer.")
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
