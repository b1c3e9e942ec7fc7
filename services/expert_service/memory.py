"""Memory in use and its budgets, by kind, with a warning in the log before a budget is reached."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch

from services.shared.config import ExpertServiceSettings
from services.shared.schemas.sequences import ReplicaStatus
from services.shared.telemetry import get_logger

log = get_logger(__name__)

WARN_SHARE: Final = 0.9
_CALM_SHARE: Final = 0.85
"""Below it the next crossing warns again; in between nothing is said, so that use around the limit fills no log."""
_LOOK_S: Final = 5.0
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one kind, and how many there may be."""

    kind: str
    num_bytes: int
    budget_bytes: int

    @property
    def share(self) -> float:
        """Of the budget; 0 where there is none."""
        return self.num_bytes / self.budget_bytes if self.budget_bytes else 0.0


class MemoryReader:
    """Reads what a replica uses: the process, the device, and what the engine says of its own."""

    def __init__(
        self, status: Callable[[], ReplicaStatus], limits: ExpertServiceSettings, device: torch.device
    ) -> None:
        self._status = status
        self._limits = limits
        self._device = device
        self._process = psutil.Process()
        self._host_budget = host_budget()

    def uses(self) -> list[MemoryUse]:
        """All kinds, as of now."""
        status = self._status()
        uses = [
            MemoryUse("host", self._process.memory_info().rss, self._host_budget),
            MemoryUse("adapters_device", status.resident_bytes, self._limits.slot_bytes),
            MemoryUse("adapters_host", status.host_bytes, self._limits.host_cache_bytes),
            MemoryUse("kv_cache", status.kv_cache_bytes, status.kv_cache_limit_bytes),
        ]
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            uses.append(MemoryUse("device", total - free, total))
        return uses


class MemoryWatch:
    """Warns once each time that a kind comes near its budget."""

    def __init__(self, uses: Callable[[], Iterable[MemoryUse]]) -> None:
        self._uses = uses
        self._near: set[str] = set()

    async def keep_watching(self) -> None:
        """Look every few seconds, for ever."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_S)

    def look(self) -> None:
        """Look once."""
        for use in self._uses():
            if use.share >= WARN_SHARE and use.kind not in self._near:
                self._near.add(use.kind)
                log.warning(
                    "memory is nearly used up",
                    kind=use.kind,
                    bytes=use.num_bytes,
                    budget_bytes=use.budget_bytes,
                    share=round(use.share, 3),
                )
            elif use.share < _CALM_SHARE:
                self._near.discard(use.kind)


def host_budget() -> int:
    """What this process may use: the machine's memory, or less where its container has a limit."""
    physical = psutil.virtual_memory().total
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical
