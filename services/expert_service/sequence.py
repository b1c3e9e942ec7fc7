"""One request in flight on this replica."""

import time
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import Enum

from services.expert_service.answer_text import AnswerText
from services.expert_service.kv_places import Place
from services.expert_service.pooled_states import PooledStates
from services.expert_service.sampling import TokenChooser
from services.expert_service.sequence_gate import SequenceGate
from services.shared.modeling.adapter_files import Adapter
from services.shared.schemas.sequences import SequenceRequest, SequenceTimings, TopLogprobs
from services.shared.vocabulary import FinishReason


class Phase(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"  # for a row of the cache, or for slots
    PREFILL = "prefill"  # its prompt is being read
    DECODE = "decode"  # one token per step
    FINISHED = "finished"


@dataclass(frozen=True)
class PlannedAdapter:
    """An expert that may speak in a sequence, verified and in host memory."""

    name: str
    digest: str
    adapter: Adapter


@dataclass
class SequenceClock:
    """When things happened, in seconds of the monotonic clock."""

    arrived: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first_token: float | None = None
    finished: float | None = None

    def timings(self) -> SequenceTimings:
        """Milliseconds in the queue, in prefill and in decoding so far."""
        end = self.finished or time.monotonic()
        admitted = self.admitted or end
        first_token = self.first_token or end
        return SequenceTimings(
            queue_ms=round(1000 * (admitted - self.arrived), 3),
            prefill_ms=round(1000 * (first_token - admitted), 3),
            decode_ms=round(1000 * (end - first_token), 3),
        )


@dataclass(eq=False)
class Sequence:
    """A request with all that the engine remembers of it. Owned by the engine's thread once submitted."""

    request: SequenceRequest
    gate: SequenceGate
    adapters: Items[PlannedAdapter]
    chooser: TokenChooser
    text: AnswerText
    clock: SequenceClock = field(default_factory=SequenceClock)
    phase: Phase = Phase.WAITING
    place: Place | None = None
    """Where its keys and values stand while it runs."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """Where its experts are while it runs, by name."""
    holds_slots: bool = False
    """Its experts are in slots, or on their way there, and stay until it leaves."""
    num_overtaken: int = 0
    """Sequences that came later and were admitted first."""
    generated_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    last_gates: dict[str, float] = field(default_factory=dict)
    """The weights at the last computed token: those under which the next one is predicted."""
    prompt_logprobs: list[float | None] = field(default_factory=list)
    prompt_top_logprobs: list[TopLogprobs] = field(default_factory=list)
    pooled: PooledStates | None = None
    """The mean of the prompt's states, where it is asked for."""
    must_run_alone: bool = False
    """Memory ran out although it was alone in a pass; at its next try nobody else holds any."""
    cancelled: bool = False
    """Set from any thread; the engine looks at it between steps."""
    finish_reason: FinishReason | None = None

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return self.num_prompt + len(self.generated_ids)

    @property
    def num_unread(self) -> int:
        """Tokens whose keys and values are not in the cache: the prompt's, after a preemption also the answer's."""
        return self.num_tokens - self.num_computed

    @property
    def max_tokens(self) -> int:
        """Tokens at its longest."""
        return self.num_prompt + self.request.sampling.max_new_tokens

    @property
    def second_stream(self) -> int | None:
        """Layers of the bare trunk that are kept beside the model's own; None without."""
        return self.gate.tap_layer if self.gate.needs_second_stream else None

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Log-probabilities of prompt tokens are asked for and not all there."""
        return self.request.prompt_logprobs and len(self.prompt_logprobs) < self.num_prompt

    @property
    def wants_states(self) -> bool:
        """The mean of the prompt's states is asked for and not there."""
        return self.pooled is not None and not self.pooled.is_complete

    def restart(self) -> None:
        """Forget what was computed, not what was said: all tokens are read again, the choices go on as they would."""
        self.phase = Phase.WAITING
        self.place = None
        self.slots = {}
        self.num_computed = 0
        self.gate.restart()
        if self.pooled is not None:
            self.pooled.restart()
        if self.wants_prompt_logprobs:
            self.prompt_logprobs.clear()
            self.prompt_top_logprobs.clear()

    def token_ids(self, start: int, count: int) -> list[int]:
        """Ids from the prompt and what followed."""
        if start >= self.num_prompt:
            begin = start - self.num_prompt
            return self.generated_ids[begin : begin + count]
        ids = list(self.request.prompt_ids[start : start + count])
        return ids + self.generated_ids[: count - len(ids)]
