"""What `/v1/chat/completions` and `/v1/completions` answer. Chunks of a stream hold the fields that are set."""

from typing import Literal

from pydantic import BaseModel, Field

from services.router_service.schemas.generation import Routing

FinishedAs = Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens; prompts count once however many choices there are."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenWeights(BaseModel):
    """A generated token with the gate's weights under which it was predicted and, with a calibrated release, the
    confidence before it."""

    id: int
    text: str
    weights: dict[str, float]
    confidence: float | None = None


class ChoiceRouting(Routing):
    """Who wrote a choice."""

    tokens: list[TokenWeights] | None = Field(default=None, description="With `routing.details`.")


class ChunkRouting(BaseModel):
    """The weights of the token in a chunk and the confidence before it (with `routing.details`)."""

    weights: dict[str, float]
    confidence: float | None = None


class Answered(BaseModel):
    """What both kinds of answer begin with."""

    id: str
    created: int = Field(description="Unix seconds.")
    model: str = Field(description="As the request named it; `choices[].routing.release` says what answered.")
    system_fingerprint: str | None


class LikelyToken(BaseModel):
    """A token that could have stood at a place. `bytes` is null where it is no whole character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(LikelyToken):
    """The token that does stand there."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a choice's tokens under the model's raw logits."""

    content: list[ChatToken]
    refusal: None = None


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of n answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishedAs
    routing: ChoiceRouting


class ChatCompletion(Answered):
    """A chat's next message."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """What a chunk adds to a choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishedAs | None
    routing: ChoiceRouting | ChunkRouting | None = None


class ChatChunk(Answered):
    """One event of a streamed chat."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities by token, each list as long as `tokens`; the prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One of n answers to one of the prompts, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishedAs | None
    routing: ChoiceRouting | ChunkRouting | None = None


class Completion(Answered):
    """How prompts go on, whole or (without `usage`) one event of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | None = None
