"""What `/metrics` shows, in one registry per application."""

from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.router_service.replica import Replica
from services.router_service.schemas.generation import ExpertShare

_TOKEN_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_EXPERTS: Final = (0, 1, 2, 3, 4, 6, 8, 16, 32)
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_REPLICA_GAUGES: Final = {
    "up": "Whether an expert replica answers (1) or not (0).",
    "draining": "Whether an expert replica was asked to take nothing new.",
    "load": "Sequences running or waiting on a replica, as far as this router service knows.",
    "ours": "Sequences that this router service has on a replica.",
}


class Metrics:
    """Counters of one router service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "amoe_requests",
            "Generation requests by endpoint and outcome.",
            ["endpoint", "outcome"],
            registry=self.registry,
        )
        self.in_flight = Gauge("amoe_requests_in_flight", "Generation requests being answered.", registry=self.registry)
        self.request_seconds = Histogram(
            "amoe_request_seconds", "Seconds from arrival to the last token.", registry=self.registry, buckets=_SECONDS
        )
        self.first_token_seconds = Histogram(
            "amoe_first_token_seconds",
            "Seconds from arrival to the first token.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.output_token_seconds = Histogram(
            "amoe_output_token_seconds",
            "Seconds per token after the first, averaged over an answer.",
            registry=self.registry,
            buckets=_TOKEN_SECONDS,
        )
        self.queue_seconds = Histogram(
            "amoe_queue_seconds",
            "Seconds that a request waited on its replica before it was computed.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.experts_per_token = Histogram(
            "amoe_experts_per_token",
            "Experts that had a weight in a generated token; 0 is the base alone.",
            registry=self.registry,
            buckets=_EXPERTS,
        )
        self.planning_seconds = Histogram(
            "amoe_planning_seconds",
            "Seconds for tokenising, scoring and planning.",
            registry=self.registry,
            buckets=(0.0005, 0.001, 0.0025, *_SECONDS),
        )
        self.tokens = Counter(
            "amoe_tokens",
            "Tokens by kind: prompt, generated, or reread (of answers, for attribution).",
            ["kind"],
            registry=self.registry,
        )
        self.expert_tokens = Counter(
            "amoe_expert_tokens",
            "Generated tokens by the share each expert had in them.",
            ["expert"],
            registry=self.registry,
        )
        self.integrations = Counter(
            "amoe_integrations",
            "Answers given, by mode of integration and who wrote them: the mixture, one expert, or the base.",
            ["mode", "written_by"],
            registry=self.registry,
        )
        self.prompts_assessed = Counter(
            "amoe_prompts_assessed",
            "Answered prompts by whether a calibrated release flagged them as of no domain it knows.",
            ["flagged"],
            registry=self.registry,
        )
        self._experts_shown: set[str] = set()
        self.log_dropped = Counter(
            "amoe_request_log_dropped",
            "Routing logs that were not written, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.log_written = Counter("amoe_request_log_written", "Routing logs written.", registry=self.registry)
        self.log_waiting = Gauge(
            "amoe_request_log_waiting", "Routing logs waiting to be written.", registry=self.registry
        )
        self.passed_on = Counter(
            "amoe_requests_passed_on",
            "Times that a replica did not take a request and the next one was tried, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._replica_gauges = {
            name: Gauge(f"amoe_replica_{name}", meaning, ["replica"], registry=self.registry)
            for name, meaning in _REPLICA_GAUGES.items()
        }
        self.active_release = Gauge(
            "amoe_active_release", "Number of the release that new requests run on; 0 for none.", registry=self.registry
        )
        self.catalog_errors = Counter(
            "amoe_catalog_errors", "Times the catalog could not be read; the last one is kept.", registry=self.registry
        )

    def show_replica(self, replica: Replica) -> None:
        """After every look at a replica."""
        values = {"up": replica.is_up, "draining": replica.is_draining, "load": replica.load, "ours": replica.num_ours}
        for name, gauge in self._replica_gauges.items():
            gauge.labels(replica.id).set(values[name])

    def forget_replica(self, replica_id: str) -> None:
        """When a replica has left."""
        for gauge in self._replica_gauges.values():
            with suppress(KeyError):
                gauge.remove(replica_id)

    def count_tokens(self, *, num_prompt: int, num_generated: int, attribution: Iterable[ExpertShare]) -> None:
        """Count an answer's tokens, the generated ones by expert share."""
        self.tokens.labels("prompt").inc(num_prompt)
        self.tokens.labels("generated").inc(num_generated)
        for part in attribution:
            self.expert_tokens.labels(part.expert).inc(part.share * num_generated)
            self._experts_shown.add(part.expert)

    def keep_experts(self, names: Collection[str]) -> None:
        """When the catalog has changed: forget the experts that are gone, so that series do not pile up."""
        for expert in self._experts_shown.difference(names):
            self._experts_shown.discard(expert)
            self.expert_tokens.remove(expert)

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self.registry)
