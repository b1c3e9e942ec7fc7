"""A request for text, whichever API it came through: what `/generate` and `/v1` are both translated into."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.router_service.schemas.generation import AnswerOptions, Integration
from services.shared.schemas.sampling import SamplingParameters
from services.shared.schemas.sequences import ExpertRef

_SEEDS: Final = 2**63


@dataclass(frozen=True)
class Prompt:
    """Text to be tokenised, or token ids where the caller did that. `truncate` keeps the last so many tokens."""

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    add_special_tokens: bool = True
    """False for chats: their template has written them."""
    truncate: int | None = None


@dataclass(frozen=True)
class Speakers:
    """Who may speak: experts by name with fixed weights, or whom a release's router chooses."""

    weights: Mapping[str, float] | None = None
    release: int | None = None
    """Number of the release that decides; None for the active one."""
    versions: Mapping[str, ExpertRef] = field(default_factory=dict)
    """Versions that stand in for the newest ones."""


@dataclass(frozen=True)
class FieldNames:
    """What the API in question calls things, for errors that name a field."""

    prompt: str = "inputs"
    sampling: str = "parameters."
    """Put before the name of a sampling parameter."""
    max_new_tokens: str = "max_new_tokens"
    num_choices: str = "best_of"
    options: str = "parameters."
    """Put before the name of an option of ours."""

    def of(self, name: str) -> str:
        """Where a sampling parameter stands in the request."""
        return f"{self.sampling}{name}"


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt and how to go on from it, `num_choices` times.

    `max_new_tokens` None asks for the service's default, whatever `sampling` says. `parameters` are what the caller
    sent, for the routing log.
    """

    prompt: Prompt
    speakers: Speakers = Speakers()
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    max_new_tokens: int | None = None
    num_choices: int = 1
    prompt_logprobs: bool = False
    options: AnswerOptions = field(default_factory=AnswerOptions)
    token_details: bool = False
    """What is told of an answer's tokens: their confidence and, with an ablation, the effects on each."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    names: FieldNames = FieldNames()

    @property
    def num_sequences(self) -> int:
        """Sequences that may run at the same time for it."""
        is_ensemble = self.options.integration is Integration.ENSEMBLE
        return self.num_choices * (self.options.num_members if is_ensemble else 1)

    def sampling_of(self, choice: int, *, max_new_tokens: int) -> SamplingParameters:
        """Sampling of one choice: its seed is the request's plus its number, so that each can be had again alone."""
        seed = self.sampling.seed
        if seed is not None:
            seed = (seed + choice) % _SEEDS
        return self.sampling.model_copy(update={"max_new_tokens": max_new_tokens, "seed": seed})
