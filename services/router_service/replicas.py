"""The expert replicas: found, watched once a second, chosen for a plan, drained on request."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from random import Random
from typing import Final, TypeVar

import httpx

from services.router_service.discovery import Discovery
from services.router_service.expert_client import ConnectionBroken, ExpertClient, ReplicaDown
from services.router_service.metrics import Metrics
from services.router_service.replica import Replica, digests_of
from services.router_service.replica_choice import ranked
from services.shared.errors import AmoeError, NotFound, Unavailable
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

Answer = TypeVar("Answer")

_POLL_S: Final = 1.0
_LOOK_UP_S: Final = 5.0
_RETRY_AFTER_S: Final = 2.0


class Replicas:
    """All replicas that the settings name, asked for their status every second."""

    def __init__(
        self,
        discovery: Discovery,
        http: httpx.AsyncClient,
        metrics: Metrics,
        *,
        lost_after_s: float = 15.0,
        draw: Random | None = None,
    ) -> None:
        self._discovery = discovery
        self._http = http
        self._metrics = metrics
        self._lost_after_s = lost_after_s
        self._draw = draw or Random()
        self._replicas: dict[str, Replica] = {}
        self._num_seen = 0
        self._take_over(discovery.urls)

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._replicas.values()))

    @property
    def num_up(self) -> int:
        """How many answered when last asked."""
        return sum(replica.is_up for replica in self)

    @property
    def base(self) -> BaseModelInfo | None:
        """The base model that the replicas host, once one has said so."""
        return next((replica.base for replica in self if replica.base), None)

    @property
    def num_slots(self) -> int | None:
        """The fewest slots that any known replica has for what is not pinned."""
        return min((replica.status.num_open_slots for replica in self if replica.status), default=None)

    def ranked(self, plan: RoutingPlan, base_fingerprint: str | None) -> list[Replica]:
        """Best first for `plan`, those that are down last; Unavailable if none may be given it."""
        fitting = [replica for replica in self if replica.hosts(base_fingerprint)]
        if self._replicas and not fitting:
            raise Unavailable(
                "The release was made for another base model than the expert service hosts: activate one that was made "
                "for it, or set base_model to the release's.",
                code="base_model_mismatch",
                retry_after_s=_RETRY_AFTER_S,
            )
        return self._in_service(fitting, digests_of(plan))

    async def keep_watching(self) -> None:
        """Ask all for their status, for ever; one that is slow to answer keeps nobody else waiting."""
        looks: dict[Replica, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                looks = {replica: look for replica, look in looks.items() if not look.done()}
                for replica in self:
                    if replica not in looks:
                        looks[replica] = group.create_task(self._look_at(replica))
                await asyncio.sleep(_POLL_S)

    async def keep_discovering(self) -> None:
        """Look names up again, for ever."""
        while True:
            await asyncio.sleep(_LOOK_UP_S)
            await self.discover()

    async def discover(self) -> None:
        """Replicas at new addresses join; those whose address is gone leave, their streams go on to the end."""
        await self._discovery.look_up()
        self._take_over(self._discovery.urls)

    async def look(self) -> None:
        """Ask all for their status once."""
        await asyncio.gather(*(self._look_at(replica) for replica in self))

    async def check_adapter(self, digest: str) -> AdapterReport:
        """Have a replica verify a published adapter."""
        return await self._ask(lambda client: client.check_adapter(digest))

    async def scores(self, request: ScoresRequest) -> ScoresResponse:
        """Have a replica score a prompt whose release reads hidden states."""
        return await self._ask(lambda client: client.scores(request))

    async def drain(self, replica_id: str) -> Replica:
        """Have a replica take nothing new; what it has goes on to its end."""
        return await self._set_intake(replica_id, ExpertClient.drain)

    async def undrain(self, replica_id: str) -> Replica:
        """Have it take sequences again."""
        return await self._set_intake(replica_id, ExpertClient.undrain)

    async def _set_intake(self, replica_id: str, change: Callable[[ExpertClient], Awaitable[ReplicaStatus]]) -> Replica:
        replica = next((replica for replica in self if replica.id == replica_id), None)
        if replica is None:
            raise NotFound(f"No replica {replica_id[:80]!r}.", param="replica", code="replica_not_found")
        replica.status = await change(replica.client)
        return replica

    async def _ask(self, question: Callable[[ExpertClient], Awaitable[Answer]]) -> Answer:
        """The answer of the least loaded replica, or of the next one where that one cannot give any."""
        last: AmoeError | None = None
        for replica in self._in_service(list(self), set()):
            try:
                return await question(replica.client)
            except (Unavailable, ConnectionBroken) as error:
                replica.is_up = replica.is_up and not isinstance(error, ReplicaDown)
                last = error
        assert last is not None
        raise last

    def _in_service(self, replicas: Sequence[Replica], wanted: set[str]) -> list[Replica]:
        """All but those that drain, best first; Unavailable when nobody is left."""
        candidates = [replica for replica in replicas if not replica.is_draining or not replica.is_up]
        if not candidates:
            reason = "All expert replicas are being drained" if replicas else "No expert replica has been found yet"
            raise Unavailable(
                f"{reason}: try again shortly.", code="expert_service_unavailable", retry_after_s=_RETRY_AFTER_S
            )
        return ranked(candidates, wanted, self._draw)

    def _take_over(self, urls: Sequence[str]) -> None:
        for url in self._replicas.keys() - set(urls):
            replica = self._replicas.pop(url)
            self._metrics.forget_replica(replica.id)
            log.info("replica has left", replica=replica.id, url=url)
        for url in urls:
            if url not in self._replicas:
                self._num_seen += 1
                self._replicas[url] = Replica(f"replica-{self._num_seen}", ExpertClient(url, self._http))

    async def _look_at(self, replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        num_ours = replica.num_ours
        replica.last_heard_s = replica.last_heard_s or loop.time()
        try:
            status = await replica.client.status()
            if not replica.is_up:
                replica.base = await replica.client.base()
            replica.heard(status, num_ours_when_asked=num_ours, at_s=loop.time())
            self._note(replica, is_up=True)
        except AmoeError as error:
            self._note(replica, is_up=False, reason=error.message)
            if loop.time() - replica.last_heard_s > self._lost_after_s:
                replica.give_up(now_s=loop.time())
        except Exception:
            log.exception("a replica could not be looked at", replica=replica.id)

    def _note(self, replica: Replica, *, is_up: bool, reason: str = "") -> None:
        if is_up and not replica.is_up:
            log.info(
                "replica found", replica=replica.id, url=replica.client.url, base=replica.base and replica.base.name
            )
        elif replica.is_up and not is_up:
            log.warning("replica lost", replica=replica.id, url=replica.client.url, reason=reason)
        replica.is_up = is_up
        self._metrics.show_replica(replica)
