"""Who is computed next: places in the KV cache, texts in bounded chunks, decoding in every step. Holds no tensors.

A sequence is admitted when a place for all its tokens is free. A decoding one that outgrows its place moves to a larger
one; where there is none the youngest sequence gives way: back to the front of the queue, to be read again later.
"""

from collections import deque
from dataclasses import dataclass

from services.expert_service.batch import Span
from services.expert_service.kv_places import KVPlaces, Place
from services.expert_service.sequence import Phase, Sequence
from services.shared.errors import PromptTooLong


@dataclass(frozen=True)
class Relocation:
    """Keys and values that must move to a larger place."""

    source: Place
    target: Place
    num_positions: int


class Scheduler:
    """Waiting, prefilling and decoding sequences of one replica, first come first served."""

    def __init__(self, places: KVPlaces, *, max_sequences: int, prefill_step_tokens: int) -> None:
        self._places = places
        self._max_sequences = max_sequences
        self._prefill_step_tokens = prefill_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []

    @property
    def num_running(self) -> int:
        """Sequences that hold a place."""
        return len(self.prefilling) + len(self.decoding)

    @property
    def running(self) -> list[Sequence]:
        """Sequences that hold a place."""
        return [*self.decoding, *self.prefilling]

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose keys and values are in the cache."""
        return sum(sequence.num_computed for sequence in self.running)

    def check_fits(self, sequence: Sequence) -> None:
        """Raise PromptTooLong when a sequence could not be finished even if it were alone."""
        longest = self._places.longest(sequence.second_stream)
        if sequence.max_tokens > longest:
            raise PromptTooLong(
                f"{sequence.num_prompt} prompt tokens and {sequence.request.sampling.max_new_tokens} new ones exceed "
                f"the {longest} that fit in this replica's KV cache. Shorten the prompt, lower max_new_tokens, or "
                "raise expert_service.kv_cache_bytes.",
                param="max_new_tokens" if sequence.num_prompt < longest else "prompt_ids",
                code="exceeds_kv_cache",
            )

    def find_place(self, sequence: Sequence) -> Place | None:
        """A place for a waiting sequence, taken until it is admitted or the place given back; None: it must wait."""
        if self.num_running >= self._max_sequences or (sequence.must_run_alone and self.num_running):
            return None
        num_positions = min(sequence.num_tokens + self._places.headroom, sequence.max_tokens)
        return self._places.take(num_positions, sequence.second_stream)

    def give_back(self, place: Place) -> None:
        """A place that was found and is not needed after all."""
        self._places.give_back(place)

    def admit(self, sequence: Sequence, place: Place) -> None:
        """A waiting sequence runs from now on, at a place found for it."""
        self.waiting.remove(sequence)
        sequence.place = place
        sequence.must_run_alone = False
        sequence.phase = Phase.PREFILL
        self.prefilling.append(sequence)

    def prefill_spans(self) -> tuple[Span, ...]:
        """The next tokens to read: padded area within the step's budget, shared evenly, so a long one stalls nobody."""
        sequences = self.prefilling[: self._prefill_step_tokens]
        if not sequences:
            return ()
        share = max(1, self._prefill_step_tokens // len(sequences))
        return tuple(
            Span(sequence, sequence.num_computed, min(share, sequence.num_unread))
            for sequence in sorted(sequences, key=_place)
        )

    def decode_spans(self) -> tuple[Span, ...]:
        """The newest token of every decoding sequence."""
        return tuple(Span(sequence, sequence.num_computed, 1) for sequence in sorted(self.decoding, key=_place))

    def promote(self, sequence: Sequence) -> None:
        """From prefill to decoding."""
        self.prefilling.remove(sequence)
        self.decoding.append(sequence)
        sequence.phase = Phase.DECODE

    def outgrown(self) -> list[Sequence]:
        """Decoding sequences without room for their next token, the oldest first."""
        cramped = (sequence for sequence in self.decoding if sequence.num_computed >= _place(sequence).capacity)
        return sorted(cramped, key=_age)

    def grow(self, sequence: Sequence) -> Relocation | None:
        """A larger place; None when there is none at present. What stood in the old one must be moved at once."""
        source = _place(sequence)
        target = self._places.take(sequence.num_tokens, sequence.second_stream)
        if target is None:
            return None
        self._places.give_back(source)
        sequence.place = target
        return Relocation(source, target, sequence.num_computed)

    def youngest(self) -> Sequence:
        """Of all that run, who came last."""
        return max(self.running, key=_age)

    def preempt(self, sequence: Sequence) -> None:
        """Back to the front of the queue, to be read again."""
        self._leave(sequence)
        sequence.restart()
        self.waiting.appendleft(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out."""
        self._leave(sequence)
        sequence.phase = Phase.FINISHED

    def _leave(self, sequence: Sequence) -> None:
        lists = {Phase.WAITING: self.waiting, Phase.PREFILL: self.prefilling, Phase.DECODE: self.decoding}
        lists[sequence.phase].remove(sequence)
        if sequence.place is not None:
            self._places.give_back(sequence.place)
            sequence.place = None


def _place(sequence: Sequence) -> Place:
    assert sequence.place is not None
    return sequence.place


def _age(sequence: Sequence) -> float:
    return sequence.clock.arrived
