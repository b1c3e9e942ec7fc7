"""What sequences say: tokens chosen from logits, told with their gates, and how every sequence ends.

Events are gathered per sequence and handed over once per step. What goes wrong with one sequence's text or choice ends
that one.
"""

import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor

from services.expert_service.batch import Span
from services.expert_service.passes import is_out_of_memory
from services.expert_service.sampling import Choice, choose_tokens, top_logprobs
from services.expert_service.sequence import Sequence
from services.shared.errors import AmoeError
from services.shared.schemas.sequences import ErrorEvent, FinishedEvent, TokenEvent
from services.shared.telemetry import get_logger
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import FinishReason

log = get_logger(__name__)

Event = TokenEvent | FinishedEvent | ErrorEvent
Delivery = tuple[Sequence, list[Event]]


class Answers:
    """The growing answers of one engine. `leave` gives back what an ended sequence holds, before anything else is done;
    `forget` clears what is kept of one whose numbers were not finite."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        leave: Callable[[Sequence, FinishReason], None],
        forget: Callable[[Sequence], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._leave = leave
        self._forget = forget
        self._outbox: dict[Sequence, list[Event]] = {}

    def take(self) -> list[Delivery]:
        """All events since the last call."""
        deliveries, self._outbox = list(self._outbox.items()), {}
        return deliveries

    def choose(self, sequences: Items[Sequence], logits_BV: Tensor) -> None:
        """The next token of each: chosen, told, and the end of those that have reached one."""
        try:
            choices = choose_tokens(
                logits_BV,
                [sequence.chooser for sequence in sequences],
                [_History(sequence) for sequence in sequences],
            )
        except Exception as error:
            log.exception("choosing tokens failed", num_sequences=len(sequences))
            if len(sequences) == 1:
                self.fail_for(sequences[0], error)
                return
            for row, sequence in enumerate(sequences):
                self.choose([sequence], logits_BV[row : row + 1])
            return
        for sequence, choice in zip(sequences, choices, strict=True):
            self._take_choice(sequence, choice)

    def note_prompt(self, span: Span, logits_TV: Tensor) -> None:
        """Log-probabilities of the prompt tokens after these."""
        sequence = span.sequence
        next_ids = sequence.request.prompt_ids[span.start + 1 : span.end + 1]
        if span.start == 0:
            sequence.prompt_logprobs.append(None)
            sequence.prompt_top_logprobs.append(())
        targets_T = torch.tensor(next_ids, dtype=torch.long, device=logits_TV.device)
        logprobs_TV = logits_TV[: len(next_ids)].float().log_softmax(dim=-1)
        sequence.prompt_logprobs.extend(logprobs_TV.gather(1, targets_T[:, None])[:, 0].tolist())
        num_top = sequence.chooser.num_top_logprobs
        sequence.prompt_top_logprobs.extend(top_logprobs(logprobs_V, num_top) for logprobs_V in logprobs_TV)

    def close(self, sequence: Sequence, reason: FinishReason) -> None:
        """The regular end of a sequence."""
        if reason is not FinishReason.CANCELLED:
            piece = sequence.text.finish()
            reason = FinishReason.STOP_SEQUENCE if piece.stopped else reason
            sequence.clock.finished = time.monotonic()
            self._tell(sequence, [*piece.events, _finished_event(sequence, reason)])
        self._leave(sequence, reason)

    def fail(self, sequence: Sequence, message: str, code: str) -> None:
        """The end of a sequence that cannot go on."""
        self._tell(sequence, [ErrorEvent(message=message, code=code)])
        self._leave(sequence, FinishReason.ERROR)

    def fail_for(self, sequence: Sequence, error: Exception) -> None:
        """The same in the words of an error; details of unexpected ones stay in the log."""
        if isinstance(error, AmoeError):
            self.fail(sequence, error.message, error.error_code)
        elif is_out_of_memory(error):
            self.fail(sequence, "The replica ran out of memory on this sequence; try a shorter one.", "out_of_memory")
        else:
            self.fail(sequence, "The replica failed on this sequence; its log has the reason.", "engine_error")

    def _take_choice(self, sequence: Sequence, choice: Choice) -> None:
        if math.isnan(choice.logprob):
            self._forget(sequence)
            self.fail(sequence, "The model's numbers were not finite for this text.", "not_finite")
            return
        try:
            self._append(sequence, choice)
        except Exception as error:
            log.exception("a token could not be told", token_id=choice.token_id)
            self.fail_for(sequence, error)

    def _append(self, sequence: Sequence, choice: Choice) -> None:
        sampling = sequence.request.sampling
        is_end = choice.token_id in self._tokenizer.eos_ids
        event = TokenEvent(
            index=len(sequence.generated_ids),
            id=choice.token_id,
            text="",
            logprob=choice.logprob,
            special=self._tokenizer.is_special(choice.token_id),
            gates=sequence.last_gates,
            top_logprobs=choice.top,
        )
        sequence.generated_ids.append(choice.token_id)
        piece = sequence.text.push(event)
        self._tell(sequence, piece.events)
        if piece.stopped:
            self.close(sequence, FinishReason.STOP_SEQUENCE)
        elif is_end and not sampling.ignore_eos_token:
            self.close(sequence, FinishReason.EOS_TOKEN)
        elif len(sequence.generated_ids) >= sampling.max_new_tokens:
            self.close(sequence, FinishReason.LENGTH)

    def _tell(self, sequence: Sequence, events: Items[Event]) -> None:
        if events and not sequence.cancelled:
            self._outbox.setdefault(sequence, []).extend(events)


class _History(Items[int]):
    """A sequence's ids so far, put together only if somebody looks."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence

    def __len__(self) -> int:
        return self._sequence.num_prompt + len(self._sequence.generated_ids)

    def __getitem__(self, index: Any) -> Any:
        return [*self._sequence.request.prompt_ids, *self._sequence.generated_ids][index]


def _finished_event(sequence: Sequence, reason: FinishReason) -> FinishedEvent:
    return FinishedEvent(
        finish_reason=reason,
        generated_text=sequence.text.text,
        num_prompt_tokens=sequence.num_prompt,
        num_generated_tokens=len(sequence.generated_ids),
        seed=sequence.chooser.seed,
        prompt_logprobs=tuple(sequence.prompt_logprobs) if sequence.request.prompt_logprobs else None,
        prompt_top_logprobs=tuple(sequence.prompt_top_logprobs) if sequence.request.prompt_logprobs else None,
        prompt_states=sequence.pooled.mean() if sequence.pooled else None,
        timings=sequence.clock.timings(),
    )
