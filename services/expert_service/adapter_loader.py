"""From storage to host memory: adapters and routers read once, verified, shared by all who need them. Any thread."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

import torch

from services.expert_service.sequence import PlannedAdapter
from services.expert_service.sequence_gate import Scorer
from services.shared.errors import Conflict
from services.shared.modeling.adapter_files import Adapter, read_adapter
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.wiring import BaseShapes
from services.shared.schemas.sequences import ExpertRef, RoutingPlan
from services.shared.storage import Storage, folder_digest

_MAX_SCORERS: Final = 8
_MAX_VERIFIED: Final = 65_536

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SingleFlight(Generic[Key, Value]):
    """Concurrent first uses of one key share one computation; failures are not remembered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Key, Future[Value]] = {}

    def run(self, key: Key, compute: Callable[[], Value]) -> Value:
        """The value, computed here or awaited from whoever computes it."""
        with self._lock:
            flight = self._flights.get(key)
            is_mine = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not is_mine:
            return flight.result()
        try:
            flight.set_result(compute())
        except BaseException as error:  # noqa: BLE001  # handed to everyone who waits, here included
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._flights[key]
        return flight.result()


class AdapterLoader:
    """Adapters by digest. Shared as long as a sequence or a slot holds them, then read again."""

    def __init__(
        self, storage: Storage, shapes: BaseShapes, *, dtype: torch.dtype, max_rank: int, base_fingerprint: str
    ) -> None:
        self._storage = storage
        self._shapes = shapes
        self._dtype = dtype
        self._max_rank = max_rank
        self._base_fingerprint = base_fingerprint
        self._in_memory: WeakValueDictionary[str, Adapter] = WeakValueDictionary()
        self._verified: OrderedDict[str, None] = OrderedDict()
        self._flights: SingleFlight[str, Adapter] = SingleFlight()

    def load(self, expert: ExpertRef) -> PlannedAdapter:
        """A verified adapter in host memory. Raises NotFound, Conflict (damaged artifact) or InvalidAdapter."""
        return PlannedAdapter(expert.name, expert.digest, self.load_digest(expert.digest))

    def load_digest(self, digest: str) -> Adapter:
        """The same by digest alone."""
        adapter = self._in_memory.get(digest)
        return adapter if adapter is not None else self._flights.run(digest, lambda: self._read(digest))

    def _read(self, digest: str) -> Adapter:
        folder = self._storage.artifact(digest)
        if digest not in self._verified:
            if folder_digest(folder) != digest:
                raise Conflict(
                    f"The artifact {digest[:12]} in storage is damaged: its content has another digest. "
                    "Restore it from a backup, or import the expert again.",
                    code="artifact_damaged",
                )
            self._verified[digest] = None
            while len(self._verified) > _MAX_VERIFIED:
                self._verified.popitem(last=False)
        adapter = read_adapter(
            folder,
            self._shapes,
            max_rank=self._max_rank,
            dtype=self._dtype,
            base_fingerprint=self._base_fingerprint,
        )
        self._in_memory[digest] = adapter
        return adapter


class ScorerLoader:
    """Routers by (router, graph, experts), the last few kept."""

    def __init__(self, storage: Storage, *, vocab_size: int) -> None:
        self._storage = storage
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Scorer] = OrderedDict()
        self._flights: SingleFlight[Hashable, Scorer] = SingleFlight()

    def load(self, plan: RoutingPlan) -> Scorer:
        """The scorer of a routed plan. Raises NotFound or InvalidRequest."""
        key = (plan.router, plan.graph, tuple((expert.name, expert.digest) for expert in plan.experts))
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        scorer = self._flights.run(key, lambda: self._read(plan))
        with self._lock:
            self._kept[key] = scorer
            while len(self._kept) > _MAX_SCORERS:
                self._kept.popitem(last=False)
        return scorer

    def _read(self, plan: RoutingPlan) -> Scorer:
        assert plan.router is not None
        return ReleaseScorer.load(
            router_dir=self._storage.artifact(plan.router),
            graph_dir=self._storage.artifact(plan.graph) if plan.graph else None,
            experts=[(expert.name, self._storage.artifact(expert.digest)) for expert in plan.experts],
            vocab_size=self._vocab_size,
        )
