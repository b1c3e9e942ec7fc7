"""What `/metrics` shows, in one registry per application."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.router_service.schemas.generation import ExpertShare

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


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
        self.planning_seconds = Histogram(
            "amoe_planning_seconds",
            "Seconds for tokenising, scoring and planning.",
            registry=self.registry,
            buckets=(0.0005, 0.001, 0.0025, *_SECONDS),
        )
        self.tokens = Counter("amoe_tokens", "Tokens by kind: prompt or generated.", ["kind"], registry=self.registry)
        self.expert_tokens = Counter(
            "amoe_expert_tokens",
            "Generated tokens by the share each expert had in them.",
            ["expert"],
            registry=self.registry,
        )
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
        self.replica_up = Gauge(
            "amoe_replica_up", "Whether an expert replica answers (1) or not (0).", ["replica"], registry=self.registry
        )
        self.active_release = Gauge(
            "amoe_active_release", "Number of the release that new requests run on; 0 for none.", registry=self.registry
        )
        self.catalog_errors = Counter(
            "amoe_catalog_errors", "Times the catalog could not be read; the last one is kept.", registry=self.registry
        )

    def count_tokens(self, *, num_prompt: int, num_generated: int, attribution: Iterable[ExpertShare]) -> None:
        """Count an answer's tokens, the generated ones by expert share."""
        self.tokens.labels("prompt").inc(num_prompt)
        self.tokens.labels("generated").inc(num_generated)
        for part in attribution:
            self.expert_tokens.labels(part.expert).inc(part.share * num_generated)

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self.registry)
