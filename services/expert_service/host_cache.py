"""The middle tier: verified adapters in host memory, between the slots and the disk. Any thread."""

import threading
from collections import OrderedDict
from itertools import islice
from weakref import WeakValueDictionary

from services.shared.modeling.adapter_files import Adapter


class HostCache:
    """Adapters by digest, the least recently used given up beyond a byte budget.

    What a sequence or a slot still holds is found again even then: it is in memory anyway. On a CPU a slot holds the
    very tensors that are kept here, so an adapter in both tiers takes its bytes once.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Adapter] = OrderedDict()  # in order of last use, oldest first
        self._in_use: WeakValueDictionary[str, Adapter] = WeakValueDictionary()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of what is kept."""
        return self._num_bytes

    @property
    def digests(self) -> tuple[str, ...]:
        """What is kept, the last used first."""
        return self.last_used(len(self._kept))

    def last_used(self, count: int) -> tuple[str, ...]:
        """The `count` last used of what is kept."""
        with self._lock:
            return tuple(islice(reversed(self._kept), count))

    def get(self, digest: str) -> Adapter | None:
        """The adapter, now the last used; None when it must be read from disk."""
        with self._lock:
            adapter = self._kept.get(digest) or self._in_use.get(digest)
            if adapter is not None:
                self._keep(digest, adapter)
            return adapter

    def keep(self, digest: str, adapter: Adapter) -> None:
        """Remember an adapter as the last used; one that is larger than the whole budget only while it is in use."""
        with self._lock:
            self._in_use[digest] = adapter
            self._keep(digest, adapter)

    def _keep(self, digest: str, adapter: Adapter) -> None:
        if digest not in self._kept:
            self._num_bytes += adapter.num_bytes
        self._kept[digest] = adapter
        self._kept.move_to_end(digest)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= oldest.num_bytes
