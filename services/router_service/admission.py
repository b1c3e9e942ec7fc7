"""How many sequences this service answers at once."""

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

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        return self._num_in_flight >= self._limit

    @contextmanager
    def spare(self, at_most: int) -> Iterator[int]:
        """As many places as are free, none if none is; for work that can also be done in the caller's own place."""
        count = max(0, min(at_most, self._limit - self._num_in_flight))
        with self.admitted(count):
            yield count

    @contextmanager
    def admitted(self, count: int = 1) -> Iterator[None]:
        """Holds `count` places until the end of the block; Overloaded when there are not so many left."""
        if self._num_in_flight + count > self._limit:
            raise Overloaded(
                f"{self._num_in_flight} of {self._limit} places are taken: try again in a moment.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._num_in_flight += count
        self._metrics.in_flight.set(self._num_in_flight)
        try:
            yield
        finally:
            self._num_in_flight -= count
            self._metrics.in_flight.set(self._num_in_flight)
