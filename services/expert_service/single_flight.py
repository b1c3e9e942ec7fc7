"""Concurrent first uses of one thing share one computation."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SingleFlight(Generic[Key, Value]):
    """Computes on an executor, once per key at a time; neither values nor failures are remembered."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._flights: dict[Key, Future[Value]] = {}

    def start(self, key: Key, compute: Callable[[], Value]) -> "Future[Value]":
        """The computation under way for `key`, begun now if there is none. Never cancel it: others wait for it too."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight
            flight = self._flights[key] = self._executor.submit(compute)
        flight.add_done_callback(lambda _done: self._land(key))
        return flight

    def _land(self, key: Key) -> None:
        with self._lock:
            self._flights.pop(key, None)
