"""`/v1/embeddings`: OpenAI's fields."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic.json_schema import WithJsonSchema

from services.router_service.schemas.openai_requests import Prompts, listed_prompts, prompts_schema, without_nulls

MAX_INPUTS: Final = 2048
"""OpenAI's limit; tokens per input end at the base model's context."""


def _inputs(given: Any) -> Prompts:
    inputs = listed_prompts(given, limit=MAX_INPUTS)
    if "" in inputs:
        raise ValueError(f"the text at {inputs.index('')} is empty: leave it out.")
    return inputs


class EmbeddingsRequest(BaseModel):
    """Texts, or their token ids, and who reads them."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={"examples": [{"model": "base", "input": ["What is 3 + 4?", "Once upon a time"]}]},
    )

    model: str = Field(max_length=512, description="As in a completion; `base` reads without any expert.")
    input: Annotated[Prompts, PlainValidator(_inputs), WithJsonSchema(prompts_schema(MAX_INPUTS))]
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32, what OpenAI's Python client asks for by itself."
    )
    user: str | None = Field(default=None, description="Taken and left alone.")

    @model_validator(mode="before")
    @classmethod
    def _nulls_ask_for_defaults(cls, given: Any) -> Any:
        return without_nulls(given)

    def unsupported(self) -> str | None:
        """A field that would change the answer and cannot be honoured (`dimensions`), if any was given."""
        return next(iter(self.model_extra or {}), None)


class Embedding(BaseModel):
    """One input's vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """The inputs' vectors, in their order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
