"""Whether a replica takes new sequences: an operator may close it before maintenance, while streams go on."""

from typing import Final

from services.shared.errors import Unavailable
from services.shared.schemas.sequences import ReplicaStatus

_RETRY_AFTER_S: Final = 2.0


class Intake:
    """Open until it is closed; a process that starts anew is open."""

    def __init__(self) -> None:
        self.is_open = True

    def seen_in(self, status: ReplicaStatus) -> ReplicaStatus:
        """The engine's status with what is known here."""
        return status if self.is_open else status.model_copy(update={"draining": True})

    def check(self) -> None:
        """Raise Unavailable while closed: a router service then tries another replica."""
        if not self.is_open:
            raise Unavailable(
                "This replica is being drained and takes nothing new: ask another one.",
                code="replica_draining",
                retry_after_s=_RETRY_AFTER_S,
            )
