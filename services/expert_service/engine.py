"""Continuous batching: one thread owns the model; sequences join and leave with every step (DESIGN D9b).

A step reads a bounded number of prompt tokens and then gives every decoding sequence one token. What goes wrong in a
step ends only the sequences concerned.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor

from services.expert_service.adapter_cache import AdapterCache
from services.expert_service.answers import Answers, Delivery
from services.expert_service.batch import Span
from services.expert_service.metrics import EngineMetrics
from services.expert_service.model_runner import ModelRunner
from services.expert_service.passes import Failure, Part, Passes, is_out_of_memory
from services.expert_service.scheduler import Relocation, Scheduler
from services.expert_service.sequence import Phase, Sequence
from services.expert_service.slot_queue import SlotQueue
from services.shared.errors import Overloaded, Unavailable
from services.shared.schemas.sequences import ReplicaStatus
from services.shared.telemetry import get_logger
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import BASE, FinishReason

log = get_logger(__name__)

Result = TypeVar("Result")

_RETRY_AFTER_S: Final = 1.0
_DRAIN_TICK_S: Final = 0.1
_COPY_TICK_S: Final = 0.001


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one replica."""

    max_sequences: int
    max_waiting: int
    prefill_step_tokens: int
    max_overtaken: int = 16
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
        self._limits = limits
        self._deliver = deliver
        self._metrics = metrics
        self._passes = Passes(runner)
        self._answers = Answers(tokenizer, leave=self._leave, forget=self._forget)
        self._slot_queue = SlotQueue(adapters, max_overtaken=limits.max_overtaken)
        self._scheduler = Scheduler(
            runner.places, max_sequences=limits.max_sequences, prefill_step_tokens=limits.prefill_step_tokens
        )
        self._wake = threading.Condition()
        self._arrivals: deque[Sequence] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._num_open = 0
        self._num_preemptions = 0
        self._drain_until: float | None = None
        self._stopped = False
        self._status = self._make_status()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises PromptTooLong for one that could never fit, Overloaded when the queue is full, Unavailable while shutting
        down.
        """
        self._scheduler.check_fits(sequence)
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
        return self._answers.take()

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
        return bool(self._stopped or self._arrivals or self._errands or self._scheduler.num_running)

    def _patience(self) -> float | None:
        """How long to sleep without work; while copies are awaited or it drains, the clock is looked at."""
        if self._scheduler.waiting:
            return _COPY_TICK_S
        return None if self._drain_until is None else _DRAIN_TICK_S

    def _take_in(self) -> None:
        """New sequences into the queue, cancelled and overdue ones out of it."""
        while self._arrivals:
            self._scheduler.waiting.append(self._arrivals.popleft())
        overdue = self._drain_until is not None and time.monotonic() >= self._drain_until
        for sequence in [*self._scheduler.waiting, *self._scheduler.running]:
            if sequence.cancelled:
                self._answers.close(sequence, FinishReason.CANCELLED)
            elif overdue:
                self._answers.fail(sequence, "The replica is shutting down.", "shutting_down")

    def _admit(self) -> None:
        """Waiting sequences whose experts are in slots, while there are places; nobody waits for another's copies."""
        self._adapters.bring_in_pins()
        for sequence in self._slot_queue.holders(self._scheduler.waiting):
            slots = self._slots_of(sequence)
            if slots is None:
                continue
            place = self._scheduler.find_place(sequence)
            if place is None:  # who comes later does not take what this one waits for
                return
            sequence.slots = slots
            if sequence.clock.admitted is None:
                sequence.clock.admitted = time.monotonic()
            self._scheduler.admit(sequence, place)

    def _slots_of(self, sequence: Sequence) -> Mapping[str, int] | None:
        """The slots that a waiting sequence holds; None while copies are under way, or if one failed and it is over."""
        try:
            return self._adapters.slots_of(sequence)
        except Exception as error:
            log.exception("an adapter could not be copied to the device")
            self._answers.fail_for(sequence, error)
            return None

    def _prefill(self) -> int:
        """Read the next prompt tokens; who has read all of them gets its first token. Returns the tokens read."""
        spans = self._scheduler.prefill_spans()
        for group in _by_logits(spans):
            all_logits = group[0].sequence.wants_prompt_logprobs
            self._compute(group, self._after_prompt_logits if all_logits else self._after_prompt, all_logits=all_logits)
        return sum(span.count for span in spans)

    def _make_room(self) -> None:
        """Every decoding sequence gets room for its next token; the youngest give way."""
        for sequence in self._scheduler.outgrown():
            while sequence.phase is Phase.DECODE:
                relocation = self._scheduler.grow(sequence)
                if relocation is not None:
                    self._relocate(sequence, relocation)
                    break
                self._preempt(self._scheduler.youngest())

    def _relocate(self, sequence: Sequence, relocation: Relocation) -> None:
        try:
            self._runner.relocate(relocation)
        except Exception as error:  # the larger place may be one that memory has no room for after all
            log.exception("a sequence could not be moved")
            self._give_up(Failure(sequence, error))

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's place and slots; it is read again when there is room."""
        self._adapters.release(sequence)
        self._scheduler.preempt(sequence)
        self._num_preemptions += 1

    def _decode(self) -> int:
        """One token for every decoding sequence."""
        self._make_room()
        spans = self._scheduler.decode_spans()
        if spans:
            self._compute(spans, self._after_token)
        return len(spans)

    def _compute(
        self, spans: Items[Span], then: Callable[[Items[Span], Tensor], None], *, all_logits: bool = False
    ) -> None:
        """A pass over spans, and what follows for those that came through."""
        computed = self._passes.compute(spans, all_logits=all_logits)
        for failure in computed.failures:
            self._give_up(failure)
        for part in computed.parts:
            self._keep(part)
            then(part.spans, part.logits)

    def _give_up(self, failure: Failure) -> None:
        """A sequence that failed alone ends; if memory ran out and others hold some, it is tried again without them."""
        if is_out_of_memory(failure.error) and self._scheduler.num_running > 1:
            failure.sequence.must_run_alone = True
            self._preempt(failure.sequence)
        else:
            self._answers.fail_for(failure.sequence, failure.error)

    def _keep(self, part: Part) -> None:
        """What a successful pass has changed."""
        for index, span in enumerate(part.spans):
            span.sequence.num_computed = span.end
            span.sequence.last_gates = span.sequence.gate.named(part.gates.last(index)) or {BASE: 1.0}

    def _after_prompt_logits(self, spans: Items[Span], logits_BQV: Tensor) -> None:
        """Log-probabilities of prompt tokens, then as usual."""
        for row, span in enumerate(spans):
            try:
                self._answers.note_prompt(span, logits_BQV[row, -span.count :])
            except Exception as error:
                log.exception("log-probabilities of a prompt failed")
                self._answers.fail_for(span.sequence, error)
        self._after_prompt(spans, logits_BQV[:, -1])

    def _after_prompt(self, spans: Items[Span], logits_BV: Tensor) -> None:
        """Sequences whose prompt is read go on to decoding with their first token."""
        reading = [row for row, span in enumerate(spans) if span.sequence.phase is Phase.PREFILL]
        done = [row for row in reading if spans[row].sequence.num_unread == 0]
        if not done:
            return
        for row in done:
            sequence = spans[row].sequence
            if sequence.clock.first_token is None:
                sequence.clock.first_token = time.monotonic()
            self._scheduler.promote(sequence)
        self._after_token([spans[row] for row in done], logits_BV[done])

    def _after_token(self, spans: Items[Span], logits_BV: Tensor) -> None:
        self._answers.choose([span.sequence for span in spans], logits_BV)

    def _leave(self, sequence: Sequence, reason: FinishReason) -> None:
        """An ended sequence gives back its place and slots."""
        if sequence.phase is Phase.FINISHED:
            return
        self._adapters.release(sequence)
        self._scheduler.finish(sequence)
        sequence.finish_reason = reason
        self._metrics.finished(reason, num_tokens=len(sequence.generated_ids))
        with self._wake:
            self._num_open -= 1

    def _forget(self, sequence: Sequence) -> None:
        """Numbers that are not finite must not stay in the cache."""
        if sequence.place is not None:
            self._runner.clear(sequence.place)

    def _end_everything(self, message: str, code: str) -> None:
        """Every sequence ends with an ErrorEvent; the last resort and the end of the thread."""
        self._scheduler.waiting.extend(self._arrivals)
        self._arrivals.clear()
        for sequence in [*self._scheduler.waiting, *self._scheduler.running]:
            self._answers.fail(sequence, message, code)
        self._deliver(self._answers.take())
        self._status = self._make_status()

    def _make_status(self) -> ReplicaStatus:
        return ReplicaStatus(
            running=self._scheduler.num_running,
            waiting=len(self._scheduler.waiting) + len(self._arrivals),
            num_slots=self._adapters.num_slots,
            resident=self._adapters.resident,
            pinned=self._adapters.pinned,
            resident_bytes=self._adapters.num_bytes,
            host_resident=self._adapters.host_resident,
            host_bytes=self._adapters.host_bytes,
            pins=self._adapters.pins,
            kv_cache_bytes=self._runner.places.num_bytes,
            kv_cache_limit_bytes=self._runner.places.limit_bytes,
            kv_cached_tokens=self._scheduler.num_cached_tokens,
            kv_capacity_tokens=self._runner.places.capacity_tokens,
            preemptions=self._num_preemptions,
        )


def _by_logits(spans: Items[Span]) -> list[list[Span]]:
    """Spans that want every position's logits apart from those that want the last one's."""
    groups = [[s for s in spans if s.sequence.wants_prompt_logprobs is wanted] for wanted in (False, True)]
    return [group for group in groups if group]
