"""From disk to host memory: adapters and routers read once, verified, shared by all who need them.

Reading happens on threads of the loaders' own, so that a cold adapter or a new release holds up nobody who does not
wait for it. Call from any thread.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import torch

from services.expert_service.host_cache import HostCache
from services.expert_service.single_flight import SingleFlight
from services.shared.errors import Conflict
from services.shared.modeling.adapter_files import Adapter, read_adapter
from services.shared.modeling.block_pool import BlockPool
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.wiring import BaseShapes
from services.shared.schemas.sequences import RoutingPlan
from services.shared.storage import Storage, folder_digest

_ADAPTER_THREADS: Final = 2
_MAX_SCORERS: Final = 8
_MAX_VERIFIED: Final = 65_536

Value = TypeVar("Value")


@dataclass
class LoadCounts:
    """Adapters asked for so far, by where they were found, and the seconds that reading took."""

    host_hits: int = 0
    disk_reads: int = 0
    disk_seconds: float = 0.0


class AdapterLoader:
    """Adapters by digest, from host memory or from storage."""

    def __init__(
        self,
        storage: Storage,
        shapes: BaseShapes,
        *,
        dtype: torch.dtype,
        max_rank: int,
        base_fingerprint: str,
        host: HostCache,
    ) -> None:
        self._storage = storage
        self._shapes = shapes
        self._dtype = dtype
        self._max_rank = max_rank
        self._base_fingerprint = base_fingerprint
        self._lock = threading.Lock()
        self._blocks = BlockPool()
        self._verified: OrderedDict[str, None] = OrderedDict()
        self._flights: SingleFlight[str, Adapter] = SingleFlight(
            ThreadPoolExecutor(_ADAPTER_THREADS, thread_name_prefix="adapter-loader")
        )
        self.host = host
        self.counts = LoadCounts()

    def request(self, digest: str) -> "Future[Adapter]":
        """The adapter as soon as it is in host memory. Fails with NotFound, Conflict (damaged) or InvalidAdapter."""
        adapter = self.host.get(digest)
        if adapter is None:
            return self._flights.start(digest, lambda: self._read(digest))
        with self._lock:
            self.counts.host_hits += 1
        return _known(adapter)

    def load(self, digest: str) -> Adapter:
        """The same, waited for."""
        return self.request(digest).result()

    def _read(self, digest: str) -> Adapter:
        adapter = self.host.get(digest)  # it may have landed since it was looked for
        if adapter is not None:
            return adapter
        started_at = time.perf_counter()
        folder = self._storage.artifact(digest)
        self._verify(digest)
        adapter = read_adapter(
            folder,
            self._shapes,
            max_rank=self._max_rank,
            dtype=self._dtype,
            base_fingerprint=self._base_fingerprint,
            blocks=self._blocks,
        )
        self.host.keep(digest, adapter)
        with self._lock:
            self.counts.disk_reads += 1
            self.counts.disk_seconds += time.perf_counter() - started_at
        return adapter

    def _verify(self, digest: str) -> None:
        """Once per process: the artifact is what its name says."""
        if digest in self._verified:
            return
        if folder_digest(self._storage.artifact(digest)) != digest:
            raise Conflict(
                f"The artifact {digest[:12]} in storage is damaged: its content has another digest. "
                "Restore it from a backup, or import the expert again.",
                code="artifact_damaged",
            )
        with self._lock:
            self._verified[digest] = None
            while len(self._verified) > _MAX_VERIFIED:
                self._verified.popitem(last=False)


class ScorerLoader:
    """Routers by (router, graph, experts), the last few kept."""

    def __init__(self, storage: Storage, *, vocab_size: int) -> None:
        self._storage = storage
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, ReleaseScorer] = OrderedDict()
        self._flights: SingleFlight[Hashable, ReleaseScorer] = SingleFlight(
            ThreadPoolExecutor(1, thread_name_prefix="scorer-loader")
        )

    def request(self, plan: RoutingPlan) -> "Future[ReleaseScorer]":
        """The scorer of a routed plan as soon as it is read. Fails with NotFound or InvalidRequest."""
        key = (plan.router, plan.graph, tuple((expert.name, expert.digest) for expert in plan.experts))
        with self._lock:
            scorer = self._kept.get(key)
            if scorer is not None:
                self._kept.move_to_end(key)
                return _known(scorer)
        return self._flights.start(key, lambda: self._read(key, plan))

    def load(self, plan: RoutingPlan) -> ReleaseScorer:
        """The same, waited for."""
        return self.request(plan).result()

    def _read(self, key: Hashable, plan: RoutingPlan) -> ReleaseScorer:
        assert plan.router is not None
        with self._lock:
            last_used = next(reversed(self._kept.values()), None)
        scorer = ReleaseScorer.load(
            router_dir=self._storage.artifact(plan.router),
            graph_dir=self._storage.artifact(plan.graph) if plan.graph else None,
            experts=[(expert.name, self._storage.artifact(expert.digest)) for expert in plan.experts],
            vocab_size=self._vocab_size,
            like=last_used,
        )
        with self._lock:
            self._kept[key] = scorer
            while len(self._kept) > _MAX_SCORERS:
                self._kept.popitem(last=False)
        return scorer


def _known(value: Value) -> "Future[Value]":
    """A future that has nothing left to wait for."""
    future: Future[Value] = Future()
    future.set_result(value)
    return future
