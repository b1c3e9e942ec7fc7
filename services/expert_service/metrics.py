"""What a replica counts, for Prometheus. One registry per application, so that tests can have several."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.expert_service.adapter_cache import CacheCounts
from services.shared.schemas.sequences import ErrorEvent, FinishedEvent, TokenEvent
from services.shared.vocabulary import BASE, FinishReason

_STEP_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_WAIT_BUCKETS_S: Final = (*_STEP_BUCKETS_S, 10.0, 30.0, 60.0, 120.0)
_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_EXPERT_BUCKETS: Final = (0, 1, 2, 3, 4, 6, 8, 16, 32)


class EngineMetrics:
    """Counters of one engine; written by its thread, read by anyone."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._running = Gauge("amoe_expert_sequences_running", "Sequences in flight.", registry=self.registry)
        self._waiting = Gauge("amoe_expert_sequences_waiting", "Sequences in the queue.", registry=self.registry)
        self._tokens = Counter(
            "amoe_expert_computed_tokens", "Tokens computed, prompts included.", registry=self.registry
        )
        self._generated = Counter("amoe_expert_generated_tokens", "Tokens generated.", registry=self.registry)
        self._finished = Counter(
            "amoe_expert_sequences_finished",
            "Sequences by the reason of their end.",
            ["reason"],
            registry=self.registry,
        )
        self._step_seconds = Histogram(
            "amoe_expert_step_seconds", "Duration of a step.", buckets=_STEP_BUCKETS_S, registry=self.registry
        )
        self._batch_size = Histogram(
            "amoe_expert_batch_size", "Sequences in a step.", buckets=_BATCH_BUCKETS, registry=self.registry
        )
        self._queue_seconds = Histogram(
            "amoe_expert_queue_seconds",
            "Seconds from a sequence's arrival until it was admitted.",
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self._first_token_seconds = Histogram(
            "amoe_expert_first_token_seconds",
            "Seconds from a sequence's arrival to its first token.",
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self._output_token_seconds = Histogram(
            "amoe_expert_output_token_seconds",
            "Seconds per token after the first, averaged over a sequence.",
            buckets=_STEP_BUCKETS_S,
            registry=self.registry,
        )
        self._experts_per_token = Histogram(
            "amoe_expert_experts_per_token",
            "Experts that had a weight in a generated token; 0 is the base alone.",
            buckets=_EXPERT_BUCKETS,
            registry=self.registry,
        )
        self._rejected = Counter(
            "amoe_expert_sequences_rejected",
            "Sequences that were refused, by the error's code.",
            ["reason"],
            registry=self.registry,
        )
        self.expert_tokens: dict[str, float] = {}
        """Generated tokens by the weight of each expert; who reads them removes those that are gone."""
        self._resident = Gauge("amoe_expert_adapters_resident", "Adapters in slots.", registry=self.registry)
        self._cache = {
            kind: Counter(f"amoe_expert_adapter_cache_{kind}", f"Adapter slots: {kind}.", registry=self.registry)
            for kind in ("hits", "misses", "evictions")
        }
        self._seen = CacheCounts()

    def step(self, *, seconds: float, num_tokens: int, num_running: int, num_waiting: int) -> None:
        """After every step."""
        self._running.set(num_running)
        self._waiting.set(num_waiting)
        if num_tokens:
            self._batch_size.observe(num_running)
            self._tokens.inc(num_tokens)
            self._step_seconds.observe(seconds)

    def told(self, events: Iterable[TokenEvent | FinishedEvent | ErrorEvent]) -> None:
        """After every step: what a sequence's client is told."""
        for event in events:
            if isinstance(event, TokenEvent):
                self._token(event)
            elif isinstance(event, FinishedEvent):
                self._finish(event)

    def _token(self, event: TokenEvent) -> None:
        experts = [name for name, weight in event.gates.items() if weight and name != BASE]
        self._experts_per_token.observe(len(experts))
        for name in experts:
            self.expert_tokens[name] = self.expert_tokens.get(name, 0.0) + abs(event.gates[name])

    def _finish(self, event: FinishedEvent) -> None:
        timings = event.timings
        self._queue_seconds.observe(timings.queue_ms / 1000)
        self._first_token_seconds.observe((timings.queue_ms + timings.prefill_ms) / 1000)
        if event.num_generated_tokens > 1:
            self._output_token_seconds.observe(timings.decode_ms / 1000 / (event.num_generated_tokens - 1))

    def rejected(self, code: str) -> None:
        """After every refusal; `code` is one of our own errors'."""
        self._rejected.labels(code).inc()

    def adapters(self, counts: CacheCounts, *, num_resident: int) -> None:
        """After every step: what the adapter cache has done since."""
        self._resident.set(num_resident)
        for kind, counter in self._cache.items():
            counter.inc(getattr(counts, kind) - getattr(self._seen, kind))
            setattr(self._seen, kind, getattr(counts, kind))

    def finished(self, reason: FinishReason, *, num_tokens: int) -> None:
        """After every sequence."""
        self._finished.labels(reason.value).inc()
        self._generated.inc(num_tokens)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
