"""How the next token is chosen, as both services understand it."""

from pydantic import BaseModel, ConfigDict, Field


class SamplingParameters(BaseModel):
    """Sampling of one sequence. `temperature` 0 or `do_sample` false is greedy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=100, ge=1)
    do_sample: bool = False
    temperature: float = Field(default=1.0, ge=0.0, le=100.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0, le=10.0)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: tuple[str, ...] = Field(default=(), max_length=16)
    ignore_eos_token: bool = False
