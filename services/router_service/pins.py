"""Experts that stay in slots on every replica, whatever else is asked for.

The registry remembers who is pinned. A replica says in its status what it keeps, and one that keeps something else
(it came back, the pins changed, another version is active now) is told again; so nothing has to be remembered here.
"""

import asyncio
from typing import Final

from services.router_service.catalog import Catalog, Snapshot
from services.router_service.replicas import Replicas
from services.router_service.transactions import Transactions
from services.shared.errors import AmoeError, ExpertServiceFailed, Unavailable
from services.shared.registry import find_expert_in_use, set_pinned
from services.shared.telemetry import get_logger

log = get_logger(__name__)

_LOOK_EVERY_S: Final = 1.0
_NOT_NOW: Final = (Unavailable, ExpertServiceFailed)


class Pins:
    """Pins and unpins experts, and holds the replicas to it."""

    def __init__(self, *, transactions: Transactions, catalog: Catalog, replicas: Replicas) -> None:
        self._transactions = transactions
        self._catalog = catalog
        self._replicas = replicas
        self._trouble: str | None = None

    async def pin(self, name: str) -> None:
        """Keep `name` in a slot everywhere from now on; Conflict when a replica has no room for one more."""
        await self._transactions.run(find_expert_in_use, name)
        await self._catalog.refresh()
        try:
            # Tried before it is written down, so that no pin is promised that cannot be kept.
            await self._send(pinned_digests(self._catalog.current(), and_also=name))
            await self._transactions.run(set_pinned, name, pinned=True)
        finally:
            await self._catalog.try_refresh()
            await self.apply()

    async def unpin(self, name: str) -> None:
        """Let `name` be evicted again like others."""
        await self._transactions.run(set_pinned, name, pinned=False)
        await self._catalog.try_refresh()
        await self.apply()

    async def keep_applied(self) -> None:
        """Hold the replicas to the pins, for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.apply()

    async def apply(self) -> None:
        """Tell those replicas that keep something else; what they refuse is logged once."""
        snapshot = self._catalog.latest
        if snapshot is None:
            return
        trouble = None
        try:
            await self._send(pinned_digests(snapshot), unless_kept=True)
        except AmoeError as error:
            trouble = error.message
            if trouble != self._trouble:
                log.warning("a replica does not keep all pinned experts", reason=trouble)
        self._trouble = trouble

    async def _send(self, digests: tuple[str, ...], *, unless_kept: bool = False) -> None:
        """To all replicas that are up; raises the first refusal after all have been told.

        One that breaks off is told again when it is back.
        """
        told = [
            replica.client.pin(digests)
            for replica in self._replicas
            if replica.is_up and replica.status and not (unless_kept and set(replica.status.pins) == set(digests))
        ]
        answers = await asyncio.gather(*told, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, _NOT_NOW):
                raise answer


def pinned_digests(snapshot: Snapshot, *, and_also: str | None = None) -> tuple[str, ...]:
    """The version of each pinned expert that new requests get: the active release's, else the newest."""
    speaking = {expert.name: expert for expert in snapshot.release.experts} if snapshot.release else {}
    names = sorted({*snapshot.pinned, *([and_also] if and_also else [])} & snapshot.registered.keys())
    return tuple(sorted({speaking.get(name, snapshot.registered[name]).digest for name in names}))
