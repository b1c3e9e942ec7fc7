"""Who is computed next: rows of the cache, prompts in bounded chunks, decoding in every step. Holds no tensors.

Decoding sequences stand in rows 0..n-1 without gaps, so that attention reads the cache in place; whoever changes that
is told what to move.
"""

from collections import deque
from dataclasses import dataclass

from services.expert_service.batch import Span
from services.expert_service.sequence import Phase, Sequence


@dataclass(frozen=True)
class Relocation:
    """A row's content that must move within the cache; `swap` when both rows are in use."""

    source: int
    target: int
    num_positions: int
    swap: bool = False


class Scheduler:
    """Waiting, prefilling and decoding sequences of one replica, first come first served."""

    def __init__(self, *, max_sequences: int, prefill_step_tokens: int) -> None:
        self._prefill_step_tokens = prefill_step_tokens
        self._free_rows = set(range(max_sequences))
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []

    @property
    def num_running(self) -> int:
        """Sequences that hold a row."""
        return len(self.prefilling) + len(self.decoding)

    @property
    def running(self) -> list[Sequence]:
        """Sequences that hold a row."""
        return [*self.decoding, *self.prefilling]

    @property
    def has_room(self) -> bool:
        """Whether a row is free."""
        return bool(self._free_rows)

    def admit(self, sequence: Sequence) -> None:
        """Give a waiting sequence the highest free row (the low ones are for decoding)."""
        self.waiting.remove(sequence)
        sequence.row = max(self._free_rows)
        self._free_rows.remove(sequence.row)
        sequence.phase = Phase.PREFILL
        self.prefilling.append(sequence)

    def prefill_spans(self) -> tuple[Span, ...]:
        """The next prompt tokens: padded area within the step's budget, shared evenly, so a long one stalls nobody."""
        sequences = self.prefilling[: self._prefill_step_tokens]
        if not sequences:
            return ()
        share = max(1, self._prefill_step_tokens // len(sequences))
        return tuple(
            Span(sequence, sequence.num_computed, min(share, sequence.num_prompt_left)) for sequence in sequences
        )

    def decode_spans(self) -> tuple[Span, ...]:
        """The newest token of every decoding sequence, in row order."""
        return tuple(Span(sequence, sequence.num_computed, 1) for sequence in self.decoding)

    def promote(self, sequence: Sequence) -> Relocation | None:
        """From prefill to decoding: into the first row after those that decode."""
        self.prefilling.remove(sequence)
        target = len(self.decoding)
        self.decoding.append(sequence)
        sequence.phase = Phase.DECODE
        return self._relocate(sequence, target)

    def finish(self, sequence: Sequence) -> Relocation | None:
        """Take a sequence out; the last decoding one closes the gap."""
        phase, sequence.phase = sequence.phase, Phase.FINISHED
        if phase is Phase.WAITING:
            self.waiting.remove(sequence)
        if sequence.row is None:
            return None
        row, sequence.row = sequence.row, None
        self._free_rows.add(row)
        if phase is Phase.PREFILL:
            self.prefilling.remove(sequence)
            return None
        self.decoding.remove(sequence)
        last = max(self.decoding, key=_row, default=None)
        if last is None or _row(last) < row:
            return None
        relocation = self._relocate(last, row)
        self.decoding.sort(key=_row)
        return relocation

    def _relocate(self, sequence: Sequence, target: int) -> Relocation | None:
        """Move a sequence to a row, exchanging places with whoever is there."""
        source = _row(sequence)
        if source == target:
            return None
        occupant = next((other for other in self.prefilling if other.row == target), None)
        sequence.row = target
        if occupant is None:
            self._free_rows.remove(target)
            self._free_rows.add(source)
            return Relocation(source, target, sequence.num_computed)
        occupant.row = source
        return Relocation(source, target, max(sequence.num_computed, occupant.num_computed), swap=True)


def _row(sequence: Sequence) -> int:
    assert sequence.row is not None
    return sequence.row
