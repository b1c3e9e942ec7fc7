"""How many requests this service answers at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from services.router_service.metrics import Metrics
from services.shared.errors import Overloaded

_RETRY_AFTER_S: Final = 1.0


class Admission:
    """A count with a limit; over it requests are refused at once rather than kept waiting."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._num_in_flight = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Holds a place until the end of the block; Overloaded when all are taken."""
        if self._num_in_flight >= self._limit:
            raise Overloaded(
                f"All {self._limit} places are taken: try again in a moment.", retry_after_s=_RETRY_AFTER_S
            )
        self._num_in_flight += 1
        self._metrics.in_flight.set(self._num_in_flight)
        try:
            yield
        finally:
            self._num_in_flight -= 1
            self._metrics.in_flight.set(self._num_in_flight)
