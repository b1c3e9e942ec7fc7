"""One expert replica as this router service sees it: what it last said, and what we have sent it since."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from services.router_service.expert_client import ExpertClient
from services.shared.schemas.sequences import BaseModelInfo, ReplicaStatus, RoutingPlan
from services.shared.vocabulary import ReplicaState

_LOAD_OF_A_MISS: Final = 2.0
"""Loading an absent adapter costs about as much as this many more sequences on the replica."""

_SHARE_OF_A_COPY: Final = 0.25
"""Of that, when it need not be read from disk."""


@dataclass(eq=False)
class Replica:
    """What it said is up to a second old; what we sent it is not, so the choice between replicas counts both.

    `num_ours` are the sequences that we have there now.
    """

    id: str
    client: ExpertClient
    base: BaseModelInfo | None = None
    status: ReplicaStatus | None = None
    is_up: bool = False
    num_ours: int = 0
    is_lost: bool = False
    """It has not answered for so long that nothing is expected of it any more."""
    last_heard_s: float | None = None
    """When it last answered, on the event loop's clock."""
    _num_ours_at_look: int = 0
    _sent: set[str] = field(default_factory=set)
    _sent_before: set[str] = field(default_factory=set)
    _waits: set[asyncio.Timeout] = field(default_factory=set)

    @property
    def state(self) -> ReplicaState:
        """Whether it may be given sequences."""
        if not self.is_up:
            return ReplicaState.DOWN
        return ReplicaState.DRAINING if self.is_draining else ReplicaState.UP

    @property
    def is_draining(self) -> bool:
        """It was asked to take nothing new."""
        return self.status is not None and self.status.draining

    @property
    def load(self) -> int:
        """Sequences there: ours as of now, everybody else's as of the last look."""
        if self.status is None:
            return self.num_ours
        return max(0, self.status.running + self.status.waiting - self._num_ours_at_look) + self.num_ours

    def num_missing(self, wanted: Collection[str]) -> float:
        """How many of these adapters it would have to load; one in host memory counts a quarter.

        What was sent there lately counts as loaded.
        """
        if self.status is None:
            return 0
        missing = set(wanted).difference(self.status.resident, self._sent, self._sent_before)
        in_memory = missing.intersection(self.status.host_resident)
        return len(missing) - len(in_memory) + _SHARE_OF_A_COPY * len(in_memory)

    def cost(self, wanted: Collection[str]) -> float:
        """How slow a plan with these adapters would be here; only the order matters."""
        return _LOAD_OF_A_MISS * self.num_missing(wanted) + self.load

    def hosts(self, base_fingerprint: str | None) -> bool:
        """Whether it may host this base model: what is not known yet may be."""
        return base_fingerprint is None or self.base is None or self.base.fingerprint == base_fingerprint

    def heard(self, status: ReplicaStatus, *, num_ours_when_asked: int, at_s: float) -> None:
        """It answered."""
        self.status, self.last_heard_s, self.is_lost = status, at_s, False
        self._num_ours_at_look = max(num_ours_when_asked, self.num_ours)
        # Two looks are kept: what was sent while one was under way is in the next one's answer at the latest.
        self._sent_before, self._sent = self._sent, set()

    def give_up(self, *, now_s: float) -> None:
        """It has been silent for too long: whoever waits for it stops waiting now."""
        self.is_lost = True
        for wait in self._waits:
            wait.reschedule(now_s)

    @contextmanager
    def occupied(self, plan: RoutingPlan) -> Iterator[None]:
        """Counts a sequence of ours here until the end of the block."""
        self.num_ours += 1
        self._sent |= digests_of(plan)
        try:
            yield
        finally:
            self.num_ours -= 1

    @contextmanager
    def awaited(self, wait: asyncio.Timeout) -> Iterator[None]:
        """Inside the block, `wait` ends as soon as the replica is given up."""
        self._waits.add(wait)
        try:
            yield
        finally:
            self._waits.discard(wait)


def digests_of(plan: RoutingPlan) -> set[str]:
    """The adapters that a plan may use."""
    return {expert.digest for expert in plan.experts if expert.name in plan.candidates}
