"""How the next token is chosen, as both services understand it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.shared.vocabulary import (
    MAX_LOGIT_BIASES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_SEQUENCES,
    MAX_TOP_LOGPROBS,
)

TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class SamplingParameters(BaseModel):
    """Sampling of one sequence. `temperature` 0 or `do_sample` false is greedy.

    `frequency_penalty` and `presence_penalty` follow OpenAI's formula over the generated tokens; `logit_bias` is added
    to the logits. `num_top_logprobs` asks for so many likeliest alternatives per token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=100, ge=1)
    do_sample: bool = False
    temperature: float = Field(default=1.0, ge=0.0, le=100.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    typical_p: float | None = Field(default=None, gt=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0, le=10.0)
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: dict[TokenId, Bias] = Field(default={}, max_length=MAX_LOGIT_BIASES)
    num_top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: tuple[Stop, ...] = Field(default=(), max_length=MAX_STOP_SEQUENCES)
    ignore_eos_token: bool = False
