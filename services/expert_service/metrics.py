"""What a replica counts, for Prometheus. One registry per application, so that tests can have several."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.expert_service.adapter_cache import CacheCounts
from services.shared.vocabulary import FinishReason

_STEP_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class EngineMetrics:
    """Counters of one engine; written by its thread, read by anyone."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._running = Gauge("amoe_expert_sequences_running", "Sequences in flight.", registry=self.registry)
        self._waiting = Gauge("amoe_expert_sequences_waiting", "Sequences in the queue.", registry=self.registry)
        self._tokens = Counter("amoe_expert_tokens", "Tokens computed, prompts included.", registry=self.registry)
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
            self._tokens.inc(num_tokens)
            self._step_seconds.observe(seconds)

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
