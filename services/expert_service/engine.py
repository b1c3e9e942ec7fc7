"""Continuous batching: one thread owns the model; sequences join and leave with every step (DESIGN D9b).

A step reads a bounded number of prompt tokens and then gives every decoding sequence one token. What goes wrong in a
step ends only the sequences concerned.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from services.expert_service.adapter_cache import AdapterCache
from services.expert_service.batch import Span
from services.expert_service.metrics import EngineMetrics
from services.expert_service.model_runner import ModelRunner, SpanGates
from services.expert_service.sampling import Choice, choose_tokens
from services.expert_service.scheduler import Relocation, Scheduler
from services.expert_service.sequence import Phase, Sequence
from services.shared.errors import AmoeError, Overloaded, Unavailable
from services.shared.schemas.sequences import ErrorEvent, FinishedEvent, ReplicaStatus, TokenEvent
from services.shared.telemetry import get_logger
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import BASE, FinishReason

log = get_logger(__name__)

Event = TokenEvent | FinishedEvent | ErrorEvent
Delivery = tuple[Sequence, list[Event]]
Result = TypeVar("Result")

_RETRY_AFTER_S: Final = 1.0
_DRAIN_TICK_S: Final = 0.1


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one replica."""

    max_sequences: int
    max_waiting: int
    prefill_step_tokens: int
    num_threads: int | None = None


class Engine:
    """Takes sequences from any thread, computes them on its own, hands their events to `deliver`, once per step."""

    def __init__(
        self,
        runner: ModelRunner,
        adapters: AdapterCache,
        tokenizer: Tokenizer,
        *,
        limits: EngineLimits,
        deliver: Callable[[list[Delivery]], None],
        metrics: EngineMetrics,
    ) -> None:
        self._runner = runner
        self._adapters = adapters
        self._tokenizer = tokenizer
        self._limits = limits
        self._deliver = deliver
        self._metrics = metrics
        self._scheduler = Scheduler(max_sequences=limits.max_sequences, prefill_step_tokens=limits.prefill_step_tokens)
        self._wake = threading.Condition()
        self._arrivals: deque[Sequence] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._outbox: dict[Sequence, list[Event]] = {}
        self._num_open = 0
        self._drain_until: float | None = None
        self._stopped = False
        self._status = self._make_status()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises Overloaded when the queue is full, Unavailable while shutting down."""
        with self._wake:
            if self._drain_until is not None or self._stopped:
                raise Unavailable("This replica is shutting down.", retry_after_s=_RETRY_AFTER_S)
            if self._num_open >= self._limits.max_sequences + self._limits.max_waiting:
                raise Overloaded(
                    f"{self._num_open} sequences are running or waiting on this replica; try again later.",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._num_open += 1
            self._arrivals.append(sequence)
            self._wake.notify()

    def cancel(self, sequence: Sequence) -> None:
        """Free a sequence's place before the next step; nothing more is delivered for it."""
        sequence.cancelled = True
        with self._wake:
            self._wake.notify()

    def run(self, errand: Callable[[], Result]) -> "Future[Result]":
        """Do something with the model between two steps, on the engine's thread."""
        future: Future[Result] = Future()

        def do() -> None:
            try:
                future.set_result(errand())
            except Exception as error:  # noqa: BLE001  # it belongs to whoever asked
                future.set_exception(error)

        with self._wake:
            if self._stopped:
                raise Unavailable("This replica is shutting down.", retry_after_s=_RETRY_AFTER_S)
            self._errands.append(do)
            self._wake.notify()
        return future

    def drain(self, grace_s: float) -> None:
        """Take nothing new; sequences not done in time end with an ErrorEvent. Takes no lock: for signal handlers."""
        if self._drain_until is None:
            self._drain_until = time.monotonic() + grace_s

    def stop(self) -> None:
        """End the thread; whatever is still running ends with an ErrorEvent."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def status(self) -> ReplicaStatus:
        """As of the last step."""
        return self._status

    @property
    def is_alive(self) -> bool:
        """Whether steps are being made."""
        return self._thread.is_alive() and not self._stopped

    def step(self) -> list[Delivery]:
        """One step: take in, drop, admit, read prompts, decode. Returns what there is to tell."""
        started_at = time.perf_counter()
        self._take_in()
        self._admit()
        num_tokens = self._prefill() + self._decode()
        self._metrics.step(
            seconds=time.perf_counter() - started_at,
            num_tokens=num_tokens,
            num_running=self._scheduler.num_running,
            num_waiting=len(self._scheduler.waiting),
        )
        self._metrics.adapters(self._adapters.counts, num_resident=len(self._adapters.resident))
        self._status = self._make_status()
        deliveries, self._outbox = list(self._outbox.items()), {}
        return deliveries

    def _loop(self) -> None:
        # Threads of torch are per thread of Python: what main set does not hold here.
        if self._limits.num_threads is not None:
            torch.set_num_threads(self._limits.num_threads)
        while not self._stopped:
            with self._wake:
                self._wake.wait_for(self._has_work, timeout=self._patience())
                errands = [self._errands.popleft() for _ in range(len(self._errands))]
            for errand in errands:
                errand()
            try:
                self._deliver(self.step())
            except Exception:
                log.exception("a step failed as a whole")
                self._end_everything("The step failed; the replica's log has the reason.", "engine_error")
        self._end_everything("The replica shut down.", "shutting_down")

    def _has_work(self) -> bool:
        scheduler = self._scheduler
        return bool(self._stopped or self._arrivals or self._errands or scheduler.num_running or scheduler.waiting)

    def _patience(self) -> float | None:
        """How long to sleep without work; while draining the clock is looked at."""
        return None if self._drain_until is None else _DRAIN_TICK_S

    def _take_in(self) -> None:
        """New sequences into the queue, cancelled and overdue ones out of it."""
        while self._arrivals:
            self._scheduler.waiting.append(self._arrivals.popleft())
        overdue = self._drain_until is not None and time.monotonic() >= self._drain_until
        for sequence in [*self._scheduler.waiting, *self._scheduler.running]:
            if sequence.cancelled:
                self._close(sequence, FinishReason.CANCELLED)
            elif overdue:
                self._fail(sequence, "The replica is shutting down.", "shutting_down")

    def _admit(self) -> None:
        """First come, first served: who waits for slots holds back those behind, so nobody starves."""
        while self._scheduler.waiting and self._scheduler.has_room:
            sequence = self._scheduler.waiting[0]
            slots = self._adapters.acquire(sequence.adapters)
            if slots is None:
                return
            sequence.slots = slots
            sequence.clock.admitted = time.monotonic()
            self._scheduler.admit(sequence)

    def _prefill(self) -> int:
        """Read the next prompt tokens; who has read all of them gets its first token. Returns the tokens read."""
        spans = self._scheduler.prefill_spans()
        for group in _by_logits(spans):
            all_logits = group[0].sequence.request.prompt_logprobs
            self._compute(group, self._after_prompt_logits if all_logits else self._after_prompt, all_logits=all_logits)
        return sum(span.count for span in spans)

    def _decode(self) -> int:
        """One token for every decoding sequence."""
        spans = self._scheduler.decode_spans()
        if spans:
            self._compute(spans, self._after_token)
        return len(spans)

    def _compute(
        self, spans: Items[Span], then: Callable[[Items[Span], Tensor], None], *, all_logits: bool = False
    ) -> None:
        """A pass over spans; if it fails, each alone, so that only those end that are to blame."""
        spans, gates = self._gated(spans)
        if not spans:
            return
        try:
            logits = self._runner.forward(spans, gates, all_logits=all_logits)
        except Exception as error:  # the engine must survive whatever a step does
            log.exception("a forward pass failed", num_sequences=len(spans))
            if len(spans) == 1:
                self._fail(spans[0].sequence, *_words(error))
                return
            for index, span in enumerate(spans):
                self._compute_alone(span, SpanGates([gates.weights[index]], []), then, all_logits=all_logits)
            return
        self._keep(spans, gates)
        then(spans, logits)

    def _compute_alone(
        self, span: Span, gates: SpanGates, then: Callable[[Items[Span], Tensor], None], *, all_logits: bool
    ) -> None:
        """Second try of one span of a failed pass, under the weights already decided."""
        try:
            logits = self._runner.forward([span], gates, all_logits=all_logits)
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(span.sequence, *_words(error))
            return
        self._keep([span], gates)
        then([span], logits)

    def _gated(self, spans: Items[Span]) -> tuple[Items[Span], SpanGates]:
        """The spans with their weights; a sequence whose router fails ends here."""
        try:
            return spans, self._runner.gates_before(spans)
        except Exception as error:  # as above
            log.exception("a router failed", num_sequences=len(spans))
            for span in spans:
                self._fail(span.sequence, *_words(error))
            return (), SpanGates([], [])

    def _keep(self, spans: Items[Span], gates: SpanGates) -> None:
        """What a successful pass has changed."""
        for index, span in enumerate(spans):
            span.sequence.num_computed = span.end
            span.sequence.last_gates = span.sequence.gate.named(gates.last(index)) or {BASE: 1.0}

    def _after_prompt_logits(self, spans: Items[Span], logits_BQV: Tensor) -> None:
        """Log-probabilities of prompt tokens, then as usual."""
        for row, span in enumerate(spans):
            self._note_prompt_logprobs(span, logits_BQV[row, -span.count :])
        self._after_prompt(spans, logits_BQV[:, -1])

    def _note_prompt_logprobs(self, span: Span, logits_TV: Tensor) -> None:
        sequence = span.sequence
        next_ids = sequence.request.prompt_ids[span.start + 1 : span.end + 1]
        if span.start == 0:
            sequence.prompt_logprobs.append(None)
        targets_T = torch.tensor(next_ids, dtype=torch.long, device=logits_TV.device)
        logprobs_TV = logits_TV[: len(next_ids)].float().log_softmax(dim=-1)
        sequence.prompt_logprobs.extend(logprobs_TV.gather(1, targets_T[:, None])[:, 0].tolist())

    def _after_prompt(self, spans: Items[Span], logits_BV: Tensor) -> None:
        """Sequences whose prompt is read go on to decoding with their first token."""
        done = [row for row, span in enumerate(spans) if span.sequence.num_prompt_left == 0]
        if not done:
            return
        for row in done:
            spans[row].sequence.clock.first_token = time.monotonic()
            self._move(self._scheduler.promote(spans[row].sequence))
        self._after_token([spans[row] for row in done], logits_BV[done])

    def _after_token(self, spans: Items[Span], logits_BV: Tensor) -> None:
        """Choose, tell, and end those that have reached an end."""
        sequences = [span.sequence for span in spans]
        try:
            choices = choose_tokens(
                logits_BV,
                [sequence.chooser for sequence in sequences],
                [_History(sequence) for sequence in sequences],
            )
        except Exception as error:
            log.exception("choosing tokens failed", num_sequences=len(spans))
            if len(spans) == 1:
                self._fail(sequences[0], *_words(error))
                return
            for row, span in enumerate(spans):
                self._after_token([span], logits_BV[row : row + 1])
            return
        for sequence, choice in zip(sequences, choices, strict=True):
            if math.isnan(choice.logprob):
                self._runner.clear_row(_row(sequence))
                self._fail(sequence, "The model's numbers were not finite for this text.", "not_finite")
            else:
                self._append(sequence, choice)

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
        )
        sequence.generated_ids.append(choice.token_id)
        piece = sequence.text.push(event)
        self._tell(sequence, piece.events)
        if piece.stopped:
            self._close(sequence, FinishReason.STOP_SEQUENCE)
        elif is_end and not sampling.ignore_eos_token:
            self._close(sequence, FinishReason.EOS_TOKEN)
        elif len(sequence.generated_ids) >= sampling.max_new_tokens:
            self._close(sequence, FinishReason.LENGTH)

    def _close(self, sequence: Sequence, reason: FinishReason) -> None:
        """The regular end of a sequence."""
        if reason is not FinishReason.CANCELLED:
            piece = sequence.text.finish()
            reason = FinishReason.STOP_SEQUENCE if piece.stopped else reason
            sequence.clock.finished = time.monotonic()
            self._tell(sequence, [*piece.events, _finished_event(sequence, reason)])
        self._leave(sequence, reason)

    def _fail(self, sequence: Sequence, message: str, code: str) -> None:
        """The end of a sequence that cannot go on."""
        self._tell(sequence, [ErrorEvent(message=message, code=code)])
        self._leave(sequence, FinishReason.ERROR)

    def _leave(self, sequence: Sequence, reason: FinishReason) -> None:
        """Give back row and slots."""
        if sequence.phase is Phase.FINISHED:
            return
        if sequence.phase is not Phase.WAITING:
            self._adapters.release(sequence.adapters)
        self._move(self._scheduler.finish(sequence))
        sequence.finish_reason = reason
        self._metrics.finished(reason, num_tokens=len(sequence.generated_ids))
        with self._wake:
            self._num_open -= 1

    def _move(self, relocation: Relocation | None) -> None:
        if relocation is not None:
            self._runner.relocate(relocation)

    def _tell(self, sequence: Sequence, events: Items[Event]) -> None:
        if events and not sequence.cancelled:
            self._outbox.setdefault(sequence, []).extend(events)

    def _end_everything(self, message: str, code: str) -> None:
        """Every sequence ends with an ErrorEvent; the last resort and the end of the thread."""
        self._scheduler.waiting.extend(self._arrivals)
        self._arrivals.clear()
        for sequence in [*self._scheduler.waiting, *self._scheduler.running]:
            self._fail(sequence, message, code)
        deliveries, self._outbox = list(self._outbox.items()), {}
        self._deliver(deliveries)
        self._status = self._make_status()

    def _make_status(self) -> ReplicaStatus:
        return ReplicaStatus(
            running=self._scheduler.num_running,
            waiting=len(self._scheduler.waiting) + len(self._arrivals),
            num_slots=self._adapters.num_slots,
            resident=self._adapters.resident,
            pinned=self._adapters.pinned,
            resident_bytes=self._adapters.num_bytes,
        )


class _History(Items[int]):
    """A sequence's ids so far, put together only if somebody looks."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence

    def __len__(self) -> int:
        return self._sequence.num_prompt + len(self._sequence.generated_ids)

    def __getitem__(self, index: Any) -> Any:
        return [*self._sequence.request.prompt_ids, *self._sequence.generated_ids][index]


def _by_logits(spans: Items[Span]) -> list[list[Span]]:
    """Spans that want every position's logits apart from those that want the last one's."""
    groups = [[s for s in spans if s.sequence.request.prompt_logprobs is wanted] for wanted in (False, True)]
    return [group for group in groups if group]


def _finished_event(sequence: Sequence, reason: FinishReason) -> FinishedEvent:
    return FinishedEvent(
        finish_reason=reason,
        generated_text=sequence.text.text,
        num_prompt_tokens=sequence.num_prompt,
        num_generated_tokens=len(sequence.generated_ids),
        seed=sequence.chooser.seed,
        prompt_logprobs=tuple(sequence.prompt_logprobs) if sequence.request.prompt_logprobs else None,
        timings=sequence.clock.timings(),
    )


def _words(error: Exception) -> tuple[str, str]:
    """Message and code for the caller; details of unexpected errors stay in the log."""
    if isinstance(error, AmoeError):
        return error.message, error.error_code
    if isinstance(error, torch.OutOfMemoryError):
        return "The replica ran out of memory on this sequence; try a shorter one.", "out_of_memory"
    return "The replica failed on this sequence; its log has the reason.", "engine_error"


def _row(sequence: Sequence) -> int:
    assert sequence.row is not None
    return sequence.row
