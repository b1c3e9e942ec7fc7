"""The expert replicas: who is up, how busy they are, and whose slots already hold the experts of a plan."""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx

from services.router_service.expert_client import ExpertClient
from services.router_service.metrics import Metrics
from services.shared.errors import AmoeError, Unavailable
from services.shared.schemas.sequences import (
    AdapterReport,
    BaseModelInfo,
    ReplicaStatus,
    RoutingPlan,
    ScoresRequest,
    ScoresResponse,
)
from services.shared.telemetry import get_logger

log = get_logger(__name__)

_POLL_S: Final = 1.0
_RETRY_AFTER_S: Final = 2.0
_LOAD_OF_A_MISS: Final = 2.0
"""Loading an absent adapter costs about as much as this many more sequences on the replica."""


@dataclass
class Replica:
    """One expert service as this router last saw it. `num_ours` are the sequences that we have there now."""

    client: ExpertClient
    base: BaseModelInfo | None = None
    status: ReplicaStatus | None = None
    num_ours: int = 0
    is_up: bool = field(default=False)

    def cost(self, wanted: Collection[str]) -> float:
        """How slow a plan with these experts would be here; only the order matters."""
        if self.status is None:
            return self.num_ours
        missing = len(set(wanted) - set(self.status.resident))
        return _LOAD_OF_A_MISS * missing + max(self.status.running + self.status.waiting, self.num_ours)

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Counts a sequence of ours here until the end of the block."""
        self.num_ours += 1
        try:
            yield
        finally:
            self.num_ours -= 1


class Replicas:
    """All replicas of the settings, asked for their status every second."""

    def __init__(self, urls: Sequence[str], http: httpx.AsyncClient, metrics: Metrics) -> None:
        self._replicas = [Replica(ExpertClient(url, http)) for url in urls]
        self._metrics = metrics

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    @property
    def num_up(self) -> int:
        """How many answered when last asked."""
        return sum(replica.is_up for replica in self._replicas)

    @property
    def base(self) -> BaseModelInfo | None:
        """The base model that the replicas host, once one has said so."""
        return next((replica.base for replica in self._replicas if replica.base), None)

    @property
    def num_slots(self) -> int | None:
        """The fewest slots that any known replica has."""
        return min((replica.status.num_slots for replica in self._replicas if replica.status), default=None)

    def ranked(self, plan: RoutingPlan, base_fingerprint: str | None) -> list[Replica]:
        """Best first for `plan`, those that are down last; Unavailable if all host another base model."""
        fitting = [replica for replica in self._replicas if _hosts(replica, base_fingerprint)]
        if not fitting:
            raise Unavailable(
                "The release was made for another base model than the expert service hosts: activate one that was made "
                "for it, or set base_model to the release's.",
                code="base_model_mismatch",
                retry_after_s=_RETRY_AFTER_S,
            )
        wanted = {expert.digest for expert in plan.experts if expert.name in plan.candidates}
        return sorted(fitting, key=lambda replica: (not replica.is_up, replica.cost(wanted)))

    async def keep_watching(self) -> None:
        """Ask all for their status, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_POLL_S)

    async def look(self) -> None:
        """Ask all for their status once."""
        await asyncio.gather(*(self._look_at(replica) for replica in self._replicas))

    async def check_adapter(self, digest: str) -> AdapterReport:
        """Have a replica verify a published adapter."""
        return await self._any().check_adapter(digest)

    async def scores(self, request: ScoresRequest) -> ScoresResponse:
        """Have a replica score a prompt whose release reads hidden states."""
        return await self._any().scores(request)

    def _any(self) -> ExpertClient:
        return min(self._replicas, key=lambda replica: (not replica.is_up, replica.cost(()))).client

    async def _look_at(self, replica: Replica) -> None:
        try:
            replica.status = await replica.client.status()
            if not replica.is_up:
                replica.base = await replica.client.base()
            is_up = True
        except AmoeError as error:
            is_up = False
            if replica.is_up:
                log.warning("replica lost", replica=replica.client.url, reason=error.message)
        if is_up and not replica.is_up:
            log.info("replica found", replica=replica.client.url, base=replica.base and replica.base.name)
        replica.is_up = is_up
        self._metrics.replica_up.labels(replica.client.url).set(is_up)


def _hosts(replica: Replica, base_fingerprint: str | None) -> bool:
    return base_fingerprint is None or replica.base is None or replica.base.fingerprint == base_fingerprint
