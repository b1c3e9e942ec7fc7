"""From token ids to the text of an answer: streamed, cut at stop strings, never taken back.

A token's text is held back as long as it could be the beginning of a stop string; tokens leave in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.shared.schemas.sequences import TokenEvent
from services.shared.tokenizer import TextStream, Tokenizer


@dataclass(frozen=True)
class AnswerPiece:
    """What one more token releases; `stopped` when a stop string has been completed."""

    events: list[TokenEvent]
    stopped: bool = False


class AnswerText:
    """The growing answer of one sequence. The stop string itself and all after it are not part of the answer."""

    def __init__(self, tokenizer: Tokenizer, *, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._stream = TextStream(tokenizer, prompt_ids)
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._held: list[TokenEvent] = []
        self._released: list[str] = []

    @property
    def text(self) -> str:
        """The answer as released so far."""
        return "".join(self._released)

    def push(self, event: TokenEvent) -> AnswerPiece:
        """Take one token (its `text` still empty) and give out what can no longer be part of a stop string."""
        if event.special:
            self._held.append(event)
        else:
            self._held.append(event.model_copy(update={"text": self._stream.push(event.id)}))
        if not self._stop:
            return AnswerPiece(self._release(len(self._held)))
        tail = "".join(held.text for held in self._held if not held.special)
        cut = _first_stop(tail, self._stop)
        if cut is not None:
            return AnswerPiece(self._release_cut(cut), stopped=True)
        return AnswerPiece(self._release_until(len(tail) - _possible_stop(tail, self._stop)))

    def finish(self) -> AnswerPiece:
        """The end of the sequence: give out everything, unfinished characters included."""
        rest = self._stream.flush()
        last = next((i for i in reversed(range(len(self._held))) if not self._held[i].special), None)
        if rest and last is not None:
            self._held[last] = _with_text(self._held[last], self._held[last].text + rest)
        elif rest:
            self._released.append(rest)
        tail = "".join(held.text for held in self._held if not held.special)
        cut = _first_stop(tail, self._stop)
        if cut is not None:
            return AnswerPiece(self._release_cut(cut), stopped=True)
        return AnswerPiece(self._release(len(self._held)))

    def _release_until(self, num_characters: int) -> list[TokenEvent]:
        """Give out the tokens that lie wholly within the first characters held."""
        end = count = 0
        for held in self._held:
            end += 0 if held.special else len(held.text)
            if end > num_characters:
                break
            count += 1
        return self._release(count)

    def _release_cut(self, num_characters: int) -> list[TokenEvent]:
        """Give out all tokens, their text ending after `num_characters`."""
        for index, held in enumerate(self._held):
            if not held.special:
                self._held[index] = _with_text(held, held.text[:num_characters])
                num_characters -= len(self._held[index].text)
        return self._release(len(self._held))

    def _release(self, count: int) -> list[TokenEvent]:
        events, self._held = self._held[:count], self._held[count:]
        self._released.extend(event.text for event in events if not event.special)
        return events


def _with_text(event: TokenEvent, text: str) -> TokenEvent:
    return event.model_copy(update={"text": text})


def _first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins."""
    found = [position for string in stop if (position := text.find(string)) >= 0]
    return min(found, default=None)


def _possible_stop(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that could be the beginning of a stop string."""
    longest = min(len(text), max(map(len, stop)) - 1)
    for length in range(longest, 0, -1):
        if any(string.startswith(text[-length:]) for string in stop):
            return length
    return 0
