"""Forward passes that fail for as few sequences as possible: a pass that fails is repeated by halves, down to one."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.expert_service.batch import Span
from services.expert_service.model_runner import ModelRunner, SpanGates
from services.expert_service.sequence import Sequence
from services.expert_service.sequence_gate import Weights
from services.shared.telemetry import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class Part:
    """Spans that were computed together; `logits` as ModelRunner.forward gives them."""

    spans: Items[Span]
    gates: SpanGates
    logits: Tensor


@dataclass(frozen=True)
class Failure:
    """A sequence whose pass failed although it was alone in it."""

    sequence: Sequence
    error: Exception


@dataclass
class Computed:
    """What became of a pass: usually one part and no failure."""

    parts: list[Part] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Passes:
    """Computes spans with their gates. A router's state moves on exactly once for every token that was computed."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def compute(self, spans: Items[Span], *, all_logits: bool = False) -> Computed:
        """One pass over all spans if it succeeds."""
        done = Computed()
        gated, weights = self._gate(spans, done)
        if gated:
            self._run(gated, weights, done, all_logits=all_logits)
        return done

    def _gate(self, spans: Items[Span], done: Computed) -> tuple[Items[Span], list[Weights | None]]:
        """The weights that follow from the tokens alone; a sequence whose router fails is left out."""
        saved = [span.sequence.gate.saved_state() for span in spans]
        try:
            return spans, self._runner.gates_before(spans).weights
        except Exception as error:
            log.exception("a router failed", num_sequences=len(spans))
            failure = _without_frames(error)
        for span, state in zip(spans, saved, strict=True):
            span.sequence.gate.restore(state)
        if len(spans) == 1:
            done.failures.append(Failure(spans[0].sequence, failure))
            return (), []
        each = [self._gate([span], done) for span in spans]
        return [span for gated, _ in each for span in gated], [weight for _, weights in each for weight in weights]

    def _run(self, spans: Items[Span], weights: Items[Weights | None], done: Computed, *, all_logits: bool) -> None:
        # A pass fills in weights that only it can know; the next try must start from what was known before.
        gates = SpanGates(list(weights), [])
        try:
            logits = self._runner.forward(spans, gates, all_logits=all_logits)
        except Exception as error:  # the engine must survive whatever a step does
            if is_out_of_memory(error):
                log.warning("memory ran out in a forward pass", num_sequences=len(spans), reason=str(error)[:300])
            else:
                log.exception("a forward pass failed", num_sequences=len(spans))
            failure = _without_frames(error)
        else:
            done.parts.append(Part(spans, gates, logits))
            return
        if is_out_of_memory(failure):
            self._runner.give_up_memory()
        if len(spans) == 1:
            done.failures.append(Failure(spans[0].sequence, failure))
            return
        middle = len(spans) // 2
        self._run(spans[:middle], weights[:middle], done, all_logits=all_logits)
        self._run(spans[middle:], weights[middle:], done, all_logits=all_logits)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or on the host (torch's CPU allocator has no error class of its own)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _without_frames(error: Exception) -> Exception:
    """The error alone: its frames would keep the failed pass's tensors in memory."""
    error.__context__ = None
    return error.with_traceback(None)
