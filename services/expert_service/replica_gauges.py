"""What is read off a replica when it is scraped: residency, load, memory, and the names that affinity routers know.

Labels name experts that are in a tier or in flight, never others, so a scrape stays as small as the replica is.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from services.expert_service.adapter_cache import CacheCounts
from services.expert_service.adapter_loader import LoadCounts
from services.expert_service.memory import MemoryUse
from services.expert_service.metrics import EngineMetrics
from services.expert_service.sequence import Phase, PlannedAdapter
from services.expert_service.sequence import Sequence as InFlight
from services.shared.schemas.sequences import ReplicaStatus

_DIGEST_CHARACTERS: Final = 12
_MOST_NAMES: Final = 4096


class ReplicaGauges(Collector):
    """Makes series from a replica's status and its open streams; nothing is kept but names."""

    def __init__(
        self,
        metrics: EngineMetrics,
        *,
        status: Callable[[], ReplicaStatus],
        in_flight: Callable[[], Sequence[InFlight]],
        slots: CacheCounts,
        loads: LoadCounts,
        memory: Callable[[], Iterable[MemoryUse]],
    ) -> None:
        self._metrics = metrics
        self._status = status
        self._in_flight = in_flight
        self._slots = slots
        self._loads = loads
        self._memory = memory
        self._names: dict[str, str] = {}

    def note_names(self, adapters: Iterable[PlannedAdapter]) -> None:
        """Remember what these are called: the engine knows digests only."""
        self._names.update((planned.digest, planned.name) for planned in adapters)
        if len(self._names) > _MOST_NAMES:
            # Nobody scrapes, or they would have been sorted out.
            self._forget(self._status(), self._tiers(self._status()), self._in_flight())

    def describe(self) -> list[Metric]:
        """Nothing before the first scrape: the engine may not be there yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All series, as of now."""
        status, in_flight = self._status(), self._in_flight()
        tiers = self._tiers(status)
        self._forget(status, tiers, in_flight)
        yield self._residency(tiers)
        yield self._expert_tokens()
        yield from self._loading()
        yield from self._memory_series()
        yield _gauge("amoe_expert_slots", "Adapters that fit at once.", status.num_slots)
        yield _gauge("amoe_expert_draining", "Whether new sequences are refused (1).", int(status.draining))
        yield _gauge("amoe_expert_kv_tokens", "Tokens in the KV cache.", status.kv_cached_tokens)
        yield _gauge("amoe_expert_kv_capacity_tokens", "Tokens that its present size holds.", status.kv_capacity_tokens)
        yield CounterMetricFamily(
            "amoe_expert_preemptions", "Sequences that gave way and were read again.", value=status.preemptions
        )
        yield _gauge("vllm:kv_cache_usage_perc", "Share of the KV cache's limit in use, 0..1.", status.kv_usage)
        yield _gauge("vllm:num_requests_running", "Sequences in flight.", status.running)
        yield _gauge("vllm:num_requests_waiting", "Sequences in the queue.", status.waiting)
        yield _lora_requests(status.num_slots, in_flight)

    def _tiers(self, status: ReplicaStatus) -> dict[str, tuple[str, ...]]:
        """Digests by tier."""
        return {"device": status.resident, "host": status.host_resident}

    def _forget(self, status: ReplicaStatus, tiers: dict[str, tuple[str, ...]], in_flight: Sequence[InFlight]) -> None:
        """Names and counts of experts that are neither in a tier nor in flight."""
        here = {digest for digests in tiers.values() for digest in digests} | set(status.pinned)
        here |= {planned.digest for sequence in in_flight for planned in sequence.adapters}
        self._names = {digest: name for digest, name in self._names.items() if digest in here}
        names = set(self._names.values())
        for name in [name for name in list(self._metrics.expert_tokens) if name not in names]:
            self._metrics.expert_tokens.pop(name, None)

    def _residency(self, tiers: dict[str, tuple[str, ...]]) -> Metric:
        family = GaugeMetricFamily(
            "amoe_expert_adapter_resident",
            "1 for each tier that holds an expert's adapter.",
            labels=["expert", "digest", "tier"],
        )
        for tier, digests in tiers.items():
            for digest in digests:
                short = digest[:_DIGEST_CHARACTERS]
                family.add_metric([self._names.get(digest, short), short, tier], 1)
        return family

    def _expert_tokens(self) -> Metric:
        family = CounterMetricFamily(
            "amoe_expert_adapter_tokens",
            "Generated tokens by the weight of each expert in them; starts anew when an expert comes back.",
            labels=["expert"],
        )
        for name, tokens in dict(self._metrics.expert_tokens).items():
            family.add_metric([name], tokens)
        return family

    def _loading(self) -> Iterator[Metric]:
        found = CounterMetricFamily(
            "amoe_expert_adapter_found",
            "Adapters that sequences asked for, by the tier that had them.",
            labels=["tier"],
        )
        tiers = {"device": self._slots.hits, "host": self._loads.host_hits, "disk": self._loads.disk_reads}
        for tier, times in tiers.items():
            found.add_metric([tier], times)
        took = SummaryMetricFamily(
            "amoe_expert_adapter_load_seconds",
            "Seconds to bring an adapter up from a tier: from disk to host memory, from there into a slot.",
            labels=["tier"],
        )
        took.add_metric(["disk"], self._loads.disk_reads, self._loads.disk_seconds)
        took.add_metric(["host"], self._slots.copies, self._slots.copy_seconds)
        yield from (found, took)

    def _memory_series(self) -> Iterator[Metric]:
        used = GaugeMetricFamily("amoe_expert_memory_bytes", "Memory in use, by kind.", labels=["kind"])
        budget = GaugeMetricFamily("amoe_expert_memory_budget_bytes", "What there may be of it.", labels=["kind"])
        for use in self._memory():
            used.add_metric([use.kind], use.num_bytes)
            budget.add_metric([use.kind], use.budget_bytes)
        yield from (used, budget)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _lora_requests(num_slots: int, in_flight: Sequence[InFlight]) -> Metric:
    """Gateway API Inference Extension, model server protocol: who runs and who waits; the value is the time."""
    waiting = {
        planned.name for sequence in in_flight if sequence.phase is Phase.WAITING for planned in sequence.adapters
    }
    running = {
        planned.name
        for sequence in in_flight
        if sequence.phase in (Phase.PREFILL, Phase.DECODE)
        for planned in sequence.adapters
    }
    family = GaugeMetricFamily(
        "vllm:lora_requests_info",
        "Adapters of running and of waiting requests; the value is the time of this answer.",
        labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
    )
    family.add_metric([str(num_slots), ",".join(sorted(running)), ",".join(sorted(waiting - running))], time.time())
    return family
